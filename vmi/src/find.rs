//! Finds the running kernel in a guest's memory. A VMCOREINFO note is believed only when the page
//! tables that it names lead to what it says, and, where vCPU registers are known, when a vCPU runs
//! on that kernel: a reboot or kexec leaves stale notes behind.

use std::collections::HashSet;

use profiles::{Image, Kallsyms, Vmcoreinfo};

use crate::address::{Gpa, Gva, PAGE_BYTES};
use crate::attach::{AttachError, Profiles, VcpuRegisters};
use crate::derive::Running;
use crate::kernel::Space;
use crate::memory::{GuestMemory, MemoryError};
use crate::paging::PageTable;

/// __START_KERNEL_map.
const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// KERNEL_IMAGE_SIZE with KASLR: where the image may be.
const KERNEL_IMAGE_BYTES: u64 = 1 << 30;
/// CR4.LA57: five-level page tables.
const CR4_LA57: u64 = 1 << 12;
/// The image is mapped in pages of this size.
const IMAGE_STEP: u64 = 2 << 20;
/// Debian's kernels have 30 to 60 MiB.
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
/// The variable that points to the note, and the one that tells where the direct mapping of all RAM
/// begins, which the note is in.
const NOTE_SYMBOLS: [&str; 2] = ["vmcoreinfo_note", "page_offset_base"];
/// PTI keeps the user half's table in the page behind the kernel's.
const PTI_USER_TABLE: u64 = 1 << 12;

/// A kernel that VMCOREINFO told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) info: Vmcoreinfo,
    pub(crate) table: PageTable,
    pub(crate) stext: Gva,
    pub(crate) phys_base: i64,
}

/// Where a kernel's image is, from `_stext` on. Page tables of a vCPU die with their process, so they
/// are asked for this alone, at once: what else is read of a kernel is at fixed distances from here,
/// or behind its own page tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct MappedImage {
    stext: Gva,
    gpa: Gpa,
    bytes: u64,
}

/// Finds the running kernel, from a vCPU's page tables where any is known, else by its note.
pub(crate) fn find<'m>(
    mem: &'m dyn GuestMemory,
    vcpus: &[VcpuRegisters],
    profiles: &Profiles,
) -> Result<Running<'m>, AttachError> {
    let mapped = (!vcpus.is_empty()).then(|| mapped_images(mem, vcpus));
    // What is no Linux is looked at once, however many vCPUs run it.
    let by_image = mapped
        .iter()
        .flatten()
        .find_map(|image| by_image(mem, *image, profiles));
    match by_image {
        Some(running) => Ok(running),
        None => Ok(Running::new(mem, by_note(mem, mapped.as_deref())?, None)),
    }
}

/// The kernels that vCPUs run on, each once: an image begins at the first address that is mapped
/// where kernels are. Costs the same for any size of RAM.
fn mapped_images(mem: &dyn GuestMemory, vcpus: &[VcpuRegisters]) -> Vec<MappedImage> {
    let tables = vcpus.iter().flat_map(|vcpu| {
        let levels = if vcpu.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
        let cr3 = [vcpu.cr3, vcpu.cr3 & !PTI_USER_TABLE];
        cr3.map(|cr3| PageTable::from_cr3(cr3, levels))
    });
    let image = |table| {
        let space = Space::new(mem, table);
        let steps = (START_KERNEL_MAP..=u64::MAX).step_by(IMAGE_STEP as usize);
        let mut steps = steps.take((KERNEL_IMAGE_BYTES / IMAGE_STEP) as usize);
        steps.find_map(|step| MappedImage::at(&space, Gva(step)))
    };
    let mut seen = HashSet::new();
    let images = tables.filter_map(image);
    images.filter(|image| seen.insert(*image)).collect()
}

/// The kernel of an image: a known profile, or its own symbols, tell where its note is.
fn by_image<'m>(
    mem: &'m dyn GuestMemory,
    image: MappedImage,
    profiles: &Profiles,
) -> Option<Running<'m>> {
    let is_it = |found: &Found| found.is_running(mem, Some(&[image]));
    let known = profiles.known().find_map(|profile| {
        let symbols = NOTE_SYMBOLS.map(|symbol| profile.address(symbol, image.stext.0));
        image.note(mem, symbols)
    });
    if let Some(found) = known.filter(is_it) {
        return Some(Running::new(mem, found, None));
    }
    let bytes = image.read(mem).ok()?;
    let symbols = Kallsyms::find(
        Image {
            base: image.stext.0,
            bytes: &bytes,
        },
        None,
    );
    let found = image.note(mem, symbols.ok()?.lookup(NOTE_SYMBOLS));
    Some(Running::new(mem, found.filter(is_it)?, Some(bytes)))
}

impl MappedImage {
    /// The image that begins at `stext` and ends where its mapping does.
    pub(crate) fn at(space: &Space<'_>, stext: Gva) -> Option<MappedImage> {
        let gpa = space.translate(stext)?;
        let mut bytes = 0;
        while bytes < IMAGE_BYTES_MAX
            && space.translate(stext.offset(bytes)) == Some(Gpa(gpa.0 + bytes))
        {
            bytes += IMAGE_STEP - stext.offset(bytes).0 % IMAGE_STEP;
        }
        Some(MappedImage { stext, gpa, bytes })
    }

    pub(crate) fn read(&self, mem: &dyn GuestMemory) -> Result<Vec<u8>, MemoryError> {
        let mut image = vec![0; self.bytes as usize];
        mem.read(self.gpa, &mut image)?;
        Ok(image)
    }

    /// The variable of eight bytes at an address.
    fn variable(&self, mem: &dyn GuestMemory, at: u64) -> Option<u64> {
        let offset = at.checked_sub(self.stext.0)?;
        let mut value = [0; 8];
        let gpa = Gpa(self.gpa.0 + Some(offset).filter(|&offset| offset < self.bytes)?);
        mem.read(gpa, &mut value).ok()?;
        Some(u64::from_le_bytes(value))
    }

    /// What the note says to which [`NOTE_SYMBOLS`] lead.
    fn note(&self, mem: &dyn GuestMemory, symbols: [Option<u64>; 2]) -> Option<Found> {
        let [pointer, direct_map] = symbols.map(|symbol| self.variable(mem, symbol?));
        let gpa = Gpa(pointer?.checked_sub(direct_map?)?);
        found(&read_note(mem, gpa)?).ok()
    }
}

/// The kernel whose VMCOREINFO note is somewhere in RAM.
fn by_note(mem: &dyn GuestMemory, mapped: Option<&[MappedImage]>) -> Result<Found, AttachError> {
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
        if found.is_running(mem, mapped) && !running.contains(&found) {
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
    /// The kernel's own page tables lead from `_stext` to where it is said to be, and where vCPUs are
    /// known, one runs on that image.
    fn is_running(&self, mem: &dyn GuestMemory, mapped: Option<&[MappedImage]>) -> bool {
        let gpa = image_gpa(self.stext.0, self.phys_base);
        let is_it = |image: &MappedImage| (image.stext, image.gpa) == (self.stext, gpa);
        Space::new(mem, self.table).translate(self.stext) == Some(gpa)
            && mapped.is_none_or(|mapped| mapped.iter().any(is_it))
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
    if header[12..] != *NOTE_NAME {
        return None;
    }
    let length = u32::from_le_bytes(header[4..8].try_into().ok()?) as usize;
    let mut text = vec![0; length.min(NOTE_TEXT_BYTES_MAX)];
    mem.read(Gpa(gpa.0 + NOTE_HEADER_BYTES as u64), &mut text)
        .ok()?;
    Some(Vmcoreinfo::parse(&String::from_utf8_lossy(&text)))
}

#[cfg(test)]
#[path = "find_tests.rs"]
mod tests;
