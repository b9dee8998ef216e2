//! Dump files: raw RAM from guest physical address 0 on (pmemsave; LiME's padded form), ELF cores and
//! LiME dumps. A file in another format is refused by name, never read as raw.

mod elf;
mod lime;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use goblin::elf::header::ELFMAG;
use goblin::elf64::header::SIZEOF_EHDR;

use crate::address::{Gpa, PAGE_BYTES};
use crate::layout::{RamRange, range_at};
use crate::memory::mapped::{MappedFile, MappedPage};
use crate::memory::{GuestMemory, MemoryError, read_pieces};

/// First bytes of what people take for a dump, what it is, and the way to one.
const OTHER_FORMATS: [(&[u8], &str); 10] = [
    (b"KDUMP   ", KDUMP),
    (b"makedumpfile", KDUMP),
    (
        b"PAGEDU64",
        "a Windows crash dump; use dump-guest-memory without -w",
    ),
    (
        b"AVML",
        "an AVML dump, which is compressed; use avml-convert to make a LiME dump of it",
    ),
    (b"QEVM", SAVED_STATE),
    (b"LibvirtQemudSave", SAVED_STATE),
    (b"QFI\xfb", "a disk image in qcow2 format, no memory"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (b"\xfd7zXZ", "compressed by xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first"),
];
const KDUMP: &str = "a kdump-compressed dump; use dump-guest-memory without -z, -l, -s, or \
                     virsh dump --memory-only with --format elf";
const SAVED_STATE: &str =
    "a saved state or migration stream; use dump-guest-memory, or virsh dump --memory-only";

/// A guest's RAM in a file.
#[derive(Debug)]
pub struct Dump {
    path: PathBuf,
    map: MappedFile,
    /// `block` is 0 and `offset` is in the file.
    ranges: Vec<RamRange>,
}

impl Dump {
    /// Opens a dump; its first bytes tell the format.
    ///
    /// # Errors
    /// When the file cannot be read, is cut short, or has a format that is not supported.
    pub fn open(path: &Path) -> Result<Dump, MemoryError> {
        let io_error = |source| MemoryError::File {
            path: path.to_owned(),
            source,
        };
        let format = |problem| MemoryError::Format {
            path: path.to_owned(),
            problem,
        };
        let file = File::open(path).map_err(io_error)?;
        let bytes = file.metadata().map_err(io_error)?.len();
        let mut head = [0; SIZEOF_EHDR];
        file.read_exact_at(&mut head, 0)
            .map_err(|_| format(format!("{bytes} bytes are no guest memory")))?;
        let ranges = if head.starts_with(ELFMAG) {
            elf::ranges(&file, &head)
        } else if head.starts_with(lime::MAGIC) {
            lime::ranges(&file, bytes)
        } else {
            raw_ranges(&head, bytes)
        };
        let ranges = ranges
            .and_then(|ranges| sound(ranges, bytes))
            .map_err(format)?;
        let map = MappedFile::map(file, 0, bytes).map_err(io_error)?;
        Ok(Dump {
            path: path.to_owned(),
            map,
            ranges,
        })
    }
}

impl GuestMemory for Dump {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        read_pieces(&self.ranges, gpa, buf, |_, offset, piece| {
            self.map
                .read(offset, piece)
                .map_err(|source| MemoryError::File {
                    path: self.path.clone(),
                    source,
                })
        })
    }

    fn ranges(&self) -> &[RamRange] {
        &self.ranges
    }

    fn mapped_page(&self, gpa: Gpa) -> Option<MappedPage<'_>> {
        let range = range_at(&self.ranges, gpa.0)?;
        let into = gpa.0 - range.gpa;
        let is_whole = range.bytes - into >= PAGE_BYTES;
        is_whole.then(|| self.map.page(range.offset + into))?
    }
}

fn raw_ranges(head: &[u8], bytes: u64) -> Result<Vec<RamRange>, String> {
    if let Some((_, what)) = OTHER_FORMATS
        .iter()
        .find(|(magic, _)| head.starts_with(magic))
    {
        return Err(format!("this is {what}"));
    }
    if !bytes.is_multiple_of(PAGE_BYTES) {
        return Err(format!(
            "{bytes} bytes are not whole pages: neither raw RAM nor an ELF core nor a LiME dump"
        ));
    }
    Ok(vec![RamRange {
        gpa: 0,
        bytes,
        block: 0,
        offset: 0,
    }])
}

/// The ranges sorted, if each is whole in a file of `file_bytes` and overlaps no other.
fn sound(mut ranges: Vec<RamRange>, file_bytes: u64) -> Result<Vec<RamRange>, String> {
    ranges.sort_by_key(|range| range.gpa);
    let fits = |at: u64, bytes: u64, end: u64| at.checked_add(bytes).is_some_and(|to| to <= end);
    if let Some(cut) = ranges
        .iter()
        .find(|range| !fits(range.offset, range.bytes, file_bytes))
    {
        return Err(format!(
            "cut short: the file has {file_bytes} bytes, and {} bytes from {:#x} on are to hold guest physical \
             address {:#x}; make the dump again",
            cut.bytes, cut.offset, cut.gpa
        ));
    }
    let nexts = ranges
        .iter()
        .skip(1)
        .map(|range| range.gpa)
        .chain([u64::MAX]);
    if let Some((range, _)) = ranges
        .iter()
        .zip(nexts)
        .find(|(range, next)| !fits(range.gpa, range.bytes, *next))
    {
        return Err(format!(
            "the range at guest physical address {:#x} overlaps another; if it is from \
             dump-guest-memory -p, leave -p out",
            range.gpa
        ));
    }
    if ranges.is_empty() {
        return Err("it holds no memory".into());
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests;
