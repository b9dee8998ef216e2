//! From a kernel that was found to one whose structs can be read: its image gives kallsyms and BTF.
//! What it lacks of all that is read later is told here, by name.

use profiles::{Btf, BtfError, Image, Kallsyms, KallsymsError, Layouts, MissingFields};
use thiserror::Error;

use crate::address::Gva;
use crate::find::{Found, find};
use crate::kernel::{Kernel, KernelInfo, Space};
use crate::memory::{GuestMemory, MemoryError};

/// What a vCPU's registers say about its address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuRegisters {
    pub cr3: u64,
    pub cr4: u64,
}

/// Why no kernel could be read.
#[derive(Debug, Error)]
pub enum AttachError {
    #[error(
        "no VMCOREINFO note in guest memory: not a Linux guest, one without CONFIG_VMCORE_INFO, \
         or one that has not booted yet"
    )]
    NoVmcoreinfo,
    #[error(
        "the VMCOREINFO notes in guest memory belong to no running kernel ({0}): the guest has \
         rebooted or is booting"
    )]
    Stale(String),
    #[error("guest memory holds several kernels ({0}) and nothing tells which one runs")]
    Ambiguous(String),
    #[error("VMCOREINFO lacks {0}")]
    Vmcoreinfo(&'static str),
    #[error("the kernel's image at {address} is not mapped")]
    Image { address: Gva },
    #[error("cannot read the kernel's image")]
    Memory(#[from] MemoryError),
    #[error("cannot read the kernel's symbols")]
    Kallsyms(#[from] KallsymsError),
    #[error("kallsyms has no symbol {0}")]
    Symbol(&'static str),
    #[error("the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)")]
    NoBtf,
    #[error("cannot read the kernel's BTF")]
    Btf(#[from] BtfError),
    #[error(transparent)]
    MissingFields(#[from] MissingFields),
}

/// Finds the kernel. `vcpus` may be empty, as for a dump.
///
/// # Errors
/// When there is no Linux kernel, several, or one that lacks something that is read.
pub fn attach<'m>(
    mem: &'m dyn GuestMemory,
    vcpus: &[VcpuRegisters],
) -> Result<Kernel<'m>, AttachError> {
    let (found, bytes) = find(mem, vcpus)?;
    let space = Space::new(mem, found.table);
    let image = Image {
        base: found.stext.0,
        bytes: &bytes,
    };
    understand(space, image, &found)
}

fn understand<'m>(
    mut space: Space<'m>,
    image: Image<'_>,
    found: &Found,
) -> Result<Kernel<'m>, AttachError> {
    let kallsyms = Kallsyms::find(image, Some(&found.info))?;
    let [
        start_btf,
        stop_btf,
        super_blocks,
        page_offset_base,
        vmemmap_base,
    ] = kallsyms.lookup([
        "__start_BTF",
        "__stop_BTF",
        "super_blocks",
        "page_offset_base",
        "vmemmap_base",
    ]);
    let (Some(start), Some(stop)) = (start_btf, stop_btf) else {
        return Err(AttachError::NoBtf);
    };
    let length = usize::try_from(stop.saturating_sub(start)).unwrap_or(usize::MAX);
    let btf = image.at(start, length).ok_or(AttachError::Image {
        address: Gva(start),
    })?;
    let layouts = Layouts::resolve(&Btf::parse(btf)?)?;

    // Variables, whose values are read.
    let variable = |address: Option<u64>, name| {
        address
            .and_then(|at| image.u64(at))
            .ok_or(AttachError::Symbol(name))
    };
    let vmemmap = Gva(variable(vmemmap_base, "vmemmap_base")?);
    space.use_direct_map(variable(page_offset_base, "page_offset_base")?);
    let info = KernelInfo {
        release: found.info.text("OSRELEASE").unwrap_or("unknown").to_owned(),
        build_id: found.info.text("BUILD-ID").map(str::to_owned),
        stext: found.stext.0,
        phys_base: found.phys_base,
        page_table_levels: space.table().levels,
    };
    let super_blocks = Gva(super_blocks.ok_or(AttachError::Symbol("super_blocks"))?);
    Ok(Kernel {
        info,
        space,
        layouts,
        super_blocks,
        vmemmap,
    })
}
