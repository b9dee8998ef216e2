//! Finds the running kernel in a guest's memory. A VMCOREINFO note is believed only when the page
//! tables that it names lead to what it says, and, where vCPU registers are known, when a vCPU runs
//! on that kernel: a reboot or kexec leaves stale notes behind.

use std::collections::HashSet;

use profiles::{Image, Kallsyms, Vmcoreinfo};

use crate::address::{Gpa, Gva, PAGE_BYTES};
use crate::attach::{AttachError, Profiles, VcpuRegisters};
use crate::derive::Running;
use crate::kernel::Space;
use crate::memory::GuestMemory;
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
/// The variable that points to the note.
const NOTE_SYMBOL: &str = "vmcoreinfo_note";
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

/// Finds the running kernel, from a vCPU's page tables where any is known, else by its note.
pub(crate) fn find<'m>(
    mem: &'m dyn GuestMemory,
    vcpus: &[VcpuRegisters],
    profiles: &Profiles,
) -> Result<Running<'m>, AttachError> {
    match by_registers(mem, vcpus, profiles) {
        Some(running) => Ok(running),
        None => Ok(Running::new(mem, by_note(mem, vcpus)?, None)),
    }
}

/// The kernel that a vCPU runs on: its image begins at the first address that is mapped where
/// kernels are. Costs the same for any size of RAM.
fn by_registers<'m>(
    mem: &'m dyn GuestMemory,
    vcpus: &[VcpuRegisters],
    profiles: &Profiles,
) -> Option<Running<'m>> {
    let mut tried = HashSet::new();
    let tables = vcpus.iter().flat_map(|vcpu| {
        let levels = if vcpu.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
        let cr3 = [vcpu.cr3, vcpu.cr3 & !PTI_USER_TABLE];
        cr3.map(|cr3| (PageTable::from_cr3(cr3, levels), vcpu))
    });
    for (table, vcpu) in tables {
        let space = Space::new(mem, table);
        let steps = (START_KERNEL_MAP..=u64::MAX).step_by(IMAGE_STEP as usize);
        let mut steps = steps
            .take((KERNEL_IMAGE_BYTES / IMAGE_STEP) as usize)
            .map(Gva);
        let mapped = steps.find_map(|step| Some((step, space.translate(step)?)));
        // What is no Linux is looked at once, however many vCPUs run it.
        let Some((stext, _)) = mapped.filter(|image| tried.insert(*image)) else {
            continue;
        };
        let is_it = |found: &Found| found.stext == stext && found.is_running(mem, &[*vcpu]);
        let known = profiles
            .known()
            .find_map(|profile| note_behind(&space, profile.address(NOTE_SYMBOL, stext.0)?));
        if let Some(found) = known.filter(is_it) {
            return Some(Running::new(mem, found, None));
        }
        let by_image = by_image(&space, stext).filter(|(found, _)| is_it(found));
        if let Some((found, image)) = by_image {
            return Some(Running::new(mem, found, Some(image)));
        }
    }
    None
}

/// The kernel's symbols, which its image holds, tell where its note is.
fn by_image(space: &Space<'_>, stext: Gva) -> Option<(Found, Vec<u8>)> {
    let bytes = read_image(space, stext).ok()?;
    let image = Image {
        base: stext.0,
        bytes: &bytes,
    };
    let kallsyms = Kallsyms::find(image, None).ok()?;
    let [note] = kallsyms.lookup([NOTE_SYMBOL]);
    Some((note_behind(space, note?)?, bytes))
}

/// The note that the pointer at an address points to.
fn note_behind(space: &Space<'_>, pointer: u64) -> Option<Found> {
    let note = space.u64(Gva(pointer)).ok()?;
    let note = space.translate(Gva(note))?;
    found(&read_note(space.mem(), note)?).ok()
}

/// The kernel whose VMCOREINFO note is somewhere in RAM.
fn by_note(mem: &dyn GuestMemory, vcpus: &[VcpuRegisters]) -> Result<Found, AttachError> {
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
    if header[12..] != *NOTE_NAME {
        return None;
    }
    let length = u32::from_le_bytes(header[4..8].try_into().ok()?) as usize;
    let mut text = vec![0; length.min(NOTE_TEXT_BYTES_MAX)];
    mem.read(Gpa(gpa.0 + NOTE_HEADER_BYTES as u64), &mut text)
        .ok()?;
    Some(Vmcoreinfo::parse(&String::from_utf8_lossy(&text)))
}

/// The kernel's image from `_stext` to where its mapping ends.
pub(crate) fn read_image(space: &Space<'_>, stext: Gva) -> Result<Vec<u8>, AttachError> {
    let unmapped = AttachError::Image { address: stext };
    let Some(start) = space.translate(stext) else {
        return Err(unmapped);
    };
    let mut length = 0;
    while length < IMAGE_BYTES_MAX
        && space.translate(stext.offset(length)) == Some(Gpa(start.0 + length))
    {
        length += IMAGE_STEP - stext.offset(length).0 % IMAGE_STEP;
    }
    let mut bytes = vec![0; length as usize];
    space.mem().read(start, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
#[path = "find_tests.rs"]
mod tests;
