//! Finds the kernel in a guest's memory: VMCOREINFO gives its page tables and symbols, its image gives
//! kallsyms and BTF. A note is believed only when the page tables it names lead to what it says, and,
//! where vCPU registers are known, when a vCPU runs on that kernel: a reboot or kexec leaves stale ones.

use profiles::{Btf, BtfError, Image, Kallsyms, KallsymsError, Layouts, MissingFields, Vmcoreinfo};
use thiserror::Error;

use crate::address::{Gpa, Gva, PAGE_BYTES};
use crate::kernel::{Kernel, KernelInfo, Space};
use crate::memory::{GuestMemory, MemoryError};
use crate::paging::PageTable;

/// __START_KERNEL_map.
const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// The image is mapped in pages of this size.
const IMAGE_STEP: u64 = 2 << 20;
/// Debian's kernels have 30 to 60 MiB; KERNEL_IMAGE_SIZE allows 1 GiB.
const IMAGE_BYTES_MAX: u64 = 192 << 20;
/// An ELF note header (elf(5)) with the name VMCOREINFO, padded to four bytes.
const NOTE_HEADER_BYTES: usize = 24;
const NOTE_NAME: &[u8] = b"VMCOREINFO\0\0";
const NOTE_TEXT_START: &[u8] = b"OSRELEASE=";
const NOTE_PROBE_BYTES: usize = NOTE_HEADER_BYTES + NOTE_TEXT_START.len();
/// VMCOREINFO_BYTES is one page.
const NOTE_TEXT_BYTES_MAX: usize = 4096;
/// Addresses probed at once.
const PROBE_BATCH: u64 = 1024;
/// Notes looked at. Each boot or kexec leaves at most one.
const NOTES_MAX: usize = 64;
/// PTI keeps the user half's table in the page behind the kernel's.
const PTI_USER_TABLE: u64 = 1 << 12;

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
    let found = find(mem, vcpus)?;
    let space = Space::new(mem, found.table);
    let bytes = read_image(&space, found.stext)?;
    let image = Image {
        base: found.stext.0,
        bytes: &bytes,
    };
    understand(space, image, &found)
}

/// A kernel that VMCOREINFO told of.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    info: Vmcoreinfo,
    table: PageTable,
    stext: Gva,
    phys_base: i64,
}

fn find(mem: &dyn GuestMemory, vcpus: &[VcpuRegisters]) -> Result<Found, AttachError> {
    let notes = vmcoreinfo_notes(mem);
    if notes.is_empty() {
        return Err(AttachError::NoVmcoreinfo);
    }
    let releases = |notes: &mut dyn Iterator<Item = &Vmcoreinfo>| {
        let names: Vec<&str> = notes.filter_map(|info| info.text("OSRELEASE")).collect();
        names.join(", ")
    };
    let mut running: Vec<Found> = Vec::new();
    // A note that lacks something is only an error when no other is good.
    let (candidates, errors): (Vec<_>, Vec<_>) = notes.iter().map(found).partition(Result::is_ok);
    for found in candidates.into_iter().flatten() {
        if found.is_running(mem, vcpus) && !running.contains(&found) {
            running.push(found);
        }
    }
    match running.len() {
        0 => match errors.into_iter().find_map(Result::err) {
            Some(error) => Err(error),
            None => Err(AttachError::Stale(releases(&mut notes.iter()))),
        },
        1 => Ok(running.remove(0)),
        _ => Err(AttachError::Ambiguous(releases(
            &mut running.iter().map(|found| &found.info),
        ))),
    }
}

fn found(info: &Vmcoreinfo) -> Result<Found, AttachError> {
    let symbol = |name| info.symbol(name).ok_or(AttachError::Vmcoreinfo(name));
    let number = |name| info.number(name).ok_or(AttachError::Vmcoreinfo(name));
    let phys_base = number("phys_base")?;
    let levels = if number("pgtable_l5_enabled").unwrap_or(0) == 1 {
        5
    } else {
        4
    };
    let root = image_gpa(symbol("swapper_pg_dir")?, phys_base);
    Ok(Found {
        info: info.clone(),
        table: PageTable { root, levels },
        stext: Gva(symbol("_stext")?),
        phys_base,
    })
}

/// The image is contiguous: __pa_symbol.
fn image_gpa(address: u64, phys_base: i64) -> Gpa {
    Gpa(address
        .wrapping_sub(START_KERNEL_MAP)
        .wrapping_add_signed(phys_base))
}

impl Found {
    /// The page tables lead from `_stext` to where it is said to be: the kernel's own, and those of
    /// a vCPU where any is known.
    fn is_running(&self, mem: &dyn GuestMemory, vcpus: &[VcpuRegisters]) -> bool {
        let leads_to_stext = |table: PageTable| {
            let stext = table.translate(self.stext, |entry| {
                let mut value = [0; 8];
                mem.read(entry, &mut value).ok()?;
                Some(u64::from_le_bytes(value))
            });
            stext == Some(image_gpa(self.stext.0, self.phys_base))
        };
        let of_vcpu = |vcpu: &VcpuRegisters| {
            let levels = self.table.levels;
            leads_to_stext(PageTable::from_cr3(vcpu.cr3, levels))
                || leads_to_stext(PageTable::from_cr3(vcpu.cr3 & !PTI_USER_TABLE, levels))
        };
        leads_to_stext(self.table) && (vcpus.is_empty() || vcpus.iter().any(of_vcpu))
    }
}

/// Every page-aligned VMCOREINFO note in RAM.
fn vmcoreinfo_notes(mem: &dyn GuestMemory) -> Vec<Vmcoreinfo> {
    let mut notes = Vec::new();
    for range in mem.ranges() {
        let pages = range.gpa.div_ceil(PAGE_BYTES)..(range.gpa + range.bytes) / PAGE_BYTES;
        let mut batch = pages.start;
        while batch < pages.end && notes.len() < NOTES_MAX {
            let end = (batch + PROBE_BATCH).min(pages.end);
            let gpas: Vec<Gpa> = (batch..end).map(|pfn| Gpa(pfn * PAGE_BYTES)).collect();
            for gpa in probe(mem, &gpas) {
                notes.extend(read_note(mem, gpa));
            }
            batch = end;
        }
    }
    notes
}

/// The addresses at which a note begins.
fn probe(mem: &dyn GuestMemory, gpas: &[Gpa]) -> Vec<Gpa> {
    let mut heads = vec![0; gpas.len() * NOTE_PROBE_BYTES];
    if mem.read_each(gpas, &mut heads).is_err() {
        // Some page of the batch cannot be read: each for itself then.
        for (gpa, head) in gpas.iter().zip(heads.chunks_exact_mut(NOTE_PROBE_BYTES)) {
            if mem.read(*gpa, head).is_err() {
                head.fill(0);
            }
        }
    }
    let is_note = |head: &[u8]| {
        head[12..].starts_with(NOTE_NAME) && head[NOTE_HEADER_BYTES..] == *NOTE_TEXT_START
    };
    let heads = heads.chunks_exact(NOTE_PROBE_BYTES);
    gpas.iter()
        .zip(heads)
        .filter(|(_, head)| is_note(head))
        .map(|(gpa, _)| *gpa)
        .collect()
}

fn read_note(mem: &dyn GuestMemory, gpa: Gpa) -> Option<Vmcoreinfo> {
    let mut header = [0; NOTE_HEADER_BYTES];
    mem.read(gpa, &mut header).ok()?;
    let length = u32::from_le_bytes(header[4..8].try_into().ok()?) as usize;
    let mut text = vec![0; length.min(NOTE_TEXT_BYTES_MAX)];
    mem.read(Gpa(gpa.0 + NOTE_HEADER_BYTES as u64), &mut text)
        .ok()?;
    Some(Vmcoreinfo::parse(&String::from_utf8_lossy(&text)))
}

/// The kernel's image from `_stext` to where its mapping ends.
fn read_image(space: &Space<'_>, stext: Gva) -> Result<Vec<u8>, AttachError> {
    let unmapped = AttachError::Image { address: stext };
    let Some(start) = space.translate(stext) else {
        return Err(unmapped);
    };
    let mut length = 0;
    while length < IMAGE_BYTES_MAX
        && space.translate(stext.offset(length)) == Some(Gpa(start.0 + length))
    {
        length += IMAGE_STEP - (stext.0 + length) % IMAGE_STEP;
    }
    let mut bytes = vec![0; length as usize];
    space.mem().read(start, &mut bytes)?;
    Ok(bytes)
}

fn understand<'m>(
    mut space: Space<'m>,
    image: Image<'_>,
    found: &Found,
) -> Result<Kernel<'m>, AttachError> {
    let kallsyms = Kallsyms::find(image, &found.info)?;
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

#[cfg(test)]
#[path = "attach_tests.rs"]
mod tests;
