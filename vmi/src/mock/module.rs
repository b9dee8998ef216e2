//! Modules of the hand-made guest, with the BTF that they bring.

use profiles::layout::{BtfBlob, BtfModule, BtfModules};

use super::{MockGuest, field};
use crate::address::Gva;

impl MockGuest {
    /// A module of this name in the list of those that have BTF.
    pub(crate) fn btf_module(&mut self, head: Gva, name: &str, data: &[u8], data_size: u64) {
        let layout = self.layouts.btf_modules.clone().unwrap();
        let (module, btf) = (
            self.alloc(layout.btf_module.size),
            self.alloc(layout.btf.size),
        );
        let at = self.alloc(data.len() as u32);
        self.write(Self::gpa(at), data);
        self.write(
            Self::gpa(btf.offset(layout.btf.name.offset.into())),
            name.as_bytes(),
        );
        self.put(btf, layout.btf.data, at.0);
        self.put(btf, layout.btf.data_size, data_size);
        self.put(module, layout.btf_module.btf, btf.0);
        self.list_add(module.offset(layout.btf_module.list.offset.into()), head);
    }
}

pub(super) const BTF_MODULES: BtfModules = BtfModules {
    btf_module: BtfModule {
        size: 64,
        list: field(8, 16),
        btf: field(40, 8),
    },
    btf: BtfBlob {
        size: 256,
        data: field(16, 8),
        data_size: field(32, 4),
        name: field(64, 56),
    },
};
