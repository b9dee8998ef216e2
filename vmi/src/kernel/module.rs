//! Modules that describe their own types (kernel/bpf/btf.c): a list of small structs that lead to
//! their BTF. Only those whose types are still wanted are read, and each within a bound.

use profiles::Btf;

use crate::address::Gva;
use crate::kernel::{Kernel, Unreadable};

/// A Debian guest has under a hundred loaded.
const MODULES_MAX: usize = 4096;
/// The largest module's BTF has 1 MB.
const BTF_BYTES_MAX: u64 = 4 << 20;

/// Where a module's BTF is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModuleBtf {
    name: String,
    data: Gva,
    bytes: u64,
}

impl Kernel<'_> {
    /// The loaded modules that can tell of types that are still missing.
    pub(crate) fn modules_to_learn(&self) -> Vec<ModuleBtf> {
        let missing = self.layouts.modules();
        let is_wanted = |module: &ModuleBtf| {
            let mut missing = missing.iter().filter(|(_, missing)| missing.is_some());
            missing.any(|(name, _)| *name == module.name)
        };
        let mut modules = self.modules_with_btf();
        modules.retain(is_wanted);
        modules
    }

    /// All loaded modules that describe their types, each name once.
    pub(crate) fn modules_with_btf(&self) -> Vec<ModuleBtf> {
        let (Some(head), Ok(layout)) = (self.btf_modules, &self.layouts.btf_modules) else {
            return Vec::new();
        };
        let mut found: Vec<ModuleBtf> = Vec::new();
        for module in self
            .list_entries(head, layout.btf_module.list, MODULES_MAX)
            .entries
        {
            let Ok(btf) = self.pointer(module, layout.btf_module.btf) else {
                continue;
            };
            let name = self.string_in(btf, layout.btf.name).unwrap_or_default();
            let data = self.pointer(btf, layout.btf.data);
            if let (Ok(data), Ok(bytes)) = (data, self.uint(btf, layout.btf.data_size))
                && !found.iter().any(|module| module.name == name)
            {
                found.push(ModuleBtf { name, data, bytes });
            }
        }
        found
    }

    /// The BTF of these modules. What cannot be read is left out: its types are then said to be missing.
    pub(crate) fn read_btf(&self, modules: &[ModuleBtf]) -> Vec<Vec<u8>> {
        let blobs = modules.iter().map(|module| self.module_btf(module));
        blobs.filter_map(Result::ok).collect()
    }

    fn module_btf(&self, module: &ModuleBtf) -> Result<Vec<u8>, Unreadable> {
        if module.bytes > BTF_BYTES_MAX {
            return Err(Unreadable(module.data));
        }
        let mut bytes = vec![0; module.bytes as usize];
        self.space.read(module.data, &mut bytes)?;
        Ok(bytes)
    }
}

/// Modules' BTF as what continues the kernel's. What is torn or odd is left out.
pub(crate) fn split_btf<'b>(blobs: &'b [Vec<u8>], base: &'b Btf<'b>) -> Vec<Btf<'b>> {
    let splits = blobs.iter().map(|blob| Btf::parse_split(blob, base));
    splits.filter_map(Result::ok).collect()
}

#[cfg(test)]
mod tests {
    use profiles::MissingFields;

    use super::*;
    use crate::mock::MockGuest;

    /// A guest that lacks the types of ext4 and of dm_mod.
    fn guest() -> (MockGuest, Gva) {
        let mut guest = MockGuest::new();
        let head = guest.list();
        let lacks = || MissingFields(vec!["all of it".into()]);
        guest.layouts.ext4 = Err(lacks());
        guest.layouts.dm = Err(lacks());
        (guest, head)
    }

    #[test]
    fn only_modules_whose_types_are_missing_are_read() {
        let (mut guest, head) = guest();
        guest.btf_module(head, "crc16", b"other", 5);
        guest.btf_module(head, "xfs", b"known", 5);
        guest.btf_module(head, "ext4", b"types", 5);
        guest.btf_module(head, "ext4", b"twice", 5);
        let mut kernel = guest.kernel();
        assert_eq!(
            kernel.modules_to_learn(),
            [],
            "a kernel without such a list"
        );
        kernel.btf_modules = Some(head);
        let found = kernel.modules_to_learn();
        assert_eq!(found.len(), 1);
        assert_eq!(kernel.module_btf(&found[0]).as_deref(), Ok(&b"types"[..]));
    }

    #[test]
    fn a_length_that_is_a_lie_is_not_believed() {
        let (mut guest, head) = guest();
        guest.btf_module(head, "ext4", b"types", BTF_BYTES_MAX + 1);
        let mut kernel = guest.kernel();
        kernel.btf_modules = Some(head);
        let found = kernel.modules_to_learn();
        assert_eq!(found.len(), 1);
        assert!(kernel.module_btf(&found[0]).is_err());
    }
}
