//! A guest's kernel, found and understood: its structs can be read by name. Every read can fail,
//! since the guest may be running; nothing here follows more pointers than its caller allows.

mod block;
mod dentry;
mod device;
mod dm;
mod extent_buffer;
mod list;
mod lock;
mod mapping;
mod module;
mod rbtree;
mod space;
mod tlb;
mod xarray;

use profiles::{Field, Layouts, Profile};

use block::SECTOR_BYTES;
pub(crate) use block::{BlockDevice, Disk};
pub(crate) use list::Walk;
pub(crate) use mapping::{Inode, SuperBlock};
pub(crate) use module::split_btf;
pub(crate) use space::Space;
pub use space::Unreadable;
pub(crate) use xarray::Folio;

use crate::address::{Gva, Pfn};
use crate::attach::ProfileOrigin;

/// What identifies a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelInfo {
    /// uname -r.
    pub release: String,
    /// The build id of vmlinux, in hexadecimal, where the kernel tells.
    pub build_id: Option<String>,
    /// Virtual address of `_stext`: KASLR moves it.
    pub stext: u64,
    /// What is added to `virtual - 0xffffffff80000000` to get the physical address.
    pub phys_base: i64,
    /// 4, or 5 with LA57.
    pub page_table_levels: u32,
}

/// A kernel whose structs can be read.
pub struct Kernel<'m> {
    pub(crate) info: KernelInfo,
    pub(crate) space: Space<'m>,
    pub(crate) layouts: Layouts,
    /// Head of the list of all super blocks.
    pub(crate) super_blocks: Gva,
    /// Address of the struct page of frame 0.
    pub(crate) vmemmap: Gva,
    /// Head of the list of modules with BTF, on kernels that have it.
    pub(crate) btf_modules: Option<Gva>,
    pub(crate) profile: Profile,
    pub(crate) origin: ProfileOrigin,
    /// Why a kept profile could not be used, or this one not be kept.
    pub(crate) profile_problem: Option<String>,
}

impl Kernel<'_> {
    /// What identifies it.
    pub fn info(&self) -> &KernelInfo {
        &self.info
    }

    /// What it is read by, as small as it can be.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Where that came from.
    pub fn profile_origin(&self) -> ProfileOrigin {
        self.origin
    }

    /// The frame that a struct page describes; None when the address is no struct page of RAM.
    pub(crate) fn page_to_pfn(&self, page: Gva) -> Option<Pfn> {
        let size = u64::from(self.layouts.page.size);
        let offset = page.0.checked_sub(self.vmemmap.0)?;
        (size > 0 && offset % size == 0).then(|| Pfn(offset / size))
    }

    /// An unsigned field of the struct at `base`.
    pub(crate) fn uint(&self, base: Gva, field: Field) -> Result<u64, Unreadable> {
        self.space.uint(base, field)
    }

    /// A pointer field of the struct at `base`.
    pub(crate) fn pointer(&self, base: Gva, field: Field) -> Result<Gva, Unreadable> {
        self.space.uint(base, field).map(Gva)
    }

    /// The string that the pointer field of the struct at `base` points to.
    pub(crate) fn string_behind(&self, base: Gva, field: Field) -> Result<String, Unreadable> {
        self.space
            .string(self.pointer(base, field)?, STRING_BYTES_MAX)
    }

    /// The string in the char array that is a field of the struct at `base`.
    pub(crate) fn string_in(&self, base: Gva, field: Field) -> Result<String, Unreadable> {
        let bytes = (field.size as usize).min(STRING_BYTES_MAX);
        self.space.string(base.offset(field.offset.into()), bytes)
    }
}

/// Names of devices, disks, file systems. The longest, a file's name, has 255 bytes.
const STRING_BYTES_MAX: usize = 256;

#[cfg(test)]
mod tests;
