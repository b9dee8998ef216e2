//! What is read of the list of modules' types (kernel/bpf/btf.c), which kernels have that are built
//! with CONFIG_DEBUG_INFO_BTF_MODULES.

use super::Resolver;

layouts! {
    /// kernel/bpf/btf.c
    BtfModule "btf_module" { list, btf }
    /// kernel/bpf/btf.c
    BtfBlob "btf" { data, data_size, name }
}

/// How the BTF of loaded modules is found, from `btf_modules` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BtfModules {
    pub btf_module: BtfModule,
    pub btf: BtfBlob,
}

impl BtfModules {
    pub(super) fn resolve(from: &mut Resolver<'_>) -> BtfModules {
        BtfModules {
            btf_module: BtfModule::resolve(from),
            btf: BtfBlob::resolve(from),
        }
    }
}
