//! Dump files: raw RAM from guest physical address 0 on (pmemsave), and ELF cores as QEMU's
//! dump-guest-memory writes them. A file in another format is refused by name, never read as raw.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use goblin::container::{Container, Ctx, Endian};
use goblin::elf::header::{EI_CLASS, ELFCLASS64, ELFMAG, ET_CORE};
use goblin::elf::program_header::{PT_LOAD, ProgramHeader};
use goblin::elf64::header::{Header, SIZEOF_EHDR};

use crate::address::{Gpa, PAGE_BYTES};
use crate::layout::{RamRange, range_at};
use crate::memory::mapped::MappedFile;
use crate::memory::{GuestMemory, MemoryError};

/// e_phnum says that the count is elsewhere (elf(5), PN_XNUM).
const PN_XNUM: u16 = 0xffff;
const SIZEOF_PHDR: usize = 56;
/// LiME's header (doc/README.md of LiME), little endian.
const LIME_MAGIC: &[u8] = b"EMiL";
const KDUMP_MAGICS: [&[u8]; 2] = [b"KDUMP   ", b"makedumpfile"];

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
            elf_core_ranges(&file, &head, bytes).map_err(format)?
        } else {
            raw_ranges(&head, bytes).map_err(format)?
        };
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
        let range = range_at(&self.ranges, gpa.0);
        let range = range.filter(|range| range.bytes - (gpa.0 - range.gpa) >= buf.len() as u64);
        let range = range.ok_or(MemoryError::NotRam {
            gpa,
            bytes: buf.len(),
        })?;
        self.map
            .read(range.offset + (gpa.0 - range.gpa), buf)
            .map_err(|source| MemoryError::File {
                path: self.path.clone(),
                source,
            })
    }

    fn ranges(&self) -> &[RamRange] {
        &self.ranges
    }
}

fn raw_ranges(head: &[u8], bytes: u64) -> Result<Vec<RamRange>, String> {
    if head.starts_with(LIME_MAGIC) {
        return Err("LiME dumps are not supported; use dump-guest-memory".into());
    }
    if KDUMP_MAGICS.iter().any(|magic| head.starts_with(magic)) {
        return Err("kdump-compressed dumps are not supported; \
                    use dump-guest-memory without a format, which gives ELF"
            .into());
    }
    if !bytes.is_multiple_of(PAGE_BYTES) {
        return Err(format!(
            "{bytes} bytes are not whole pages: neither raw RAM nor an ELF core"
        ));
    }
    Ok(vec![RamRange {
        gpa: 0,
        bytes,
        block: 0,
        offset: 0,
    }])
}

/// The PT_LOAD segments, which carry the guest physical address in p_paddr.
fn elf_core_ranges(
    file: &File,
    head: &[u8; SIZEOF_EHDR],
    file_bytes: u64,
) -> Result<Vec<RamRange>, String> {
    let header = Header::from_bytes(head);
    if head[EI_CLASS] != ELFCLASS64 || header.e_type != ET_CORE {
        return Err("this ELF file is not a 64-bit core; use dump-guest-memory".into());
    }
    if header.e_phnum == PN_XNUM || usize::from(header.e_phentsize) != SIZEOF_PHDR {
        return Err("this ELF core has a program header table of an unusual form".into());
    }
    let count = usize::from(header.e_phnum);
    let mut table = vec![0; count * SIZEOF_PHDR];
    let read: io::Result<()> = file.read_exact_at(&mut table, header.e_phoff);
    read.map_err(|error| format!("cannot read the program headers: {error}"))?;
    let context = Ctx::new(Container::Big, Endian::Little);
    let segments = ProgramHeader::parse(&table, 0, count, context)
        .map_err(|error| format!("cannot read the program headers: {error}"))?;
    let mut ranges: Vec<RamRange> = segments
        .iter()
        .filter(|segment| segment.p_type == PT_LOAD && segment.p_filesz > 0)
        .map(|s| RamRange {
            gpa: s.p_paddr,
            bytes: s.p_filesz,
            block: 0,
            offset: s.p_offset,
        })
        .collect();
    ranges.sort_by_key(|range| range.gpa);
    let fits = |at: u64, bytes: u64, end: u64| at.checked_add(bytes).is_some_and(|to| to <= end);
    let next = ranges
        .iter()
        .skip(1)
        .map(|range| range.gpa)
        .chain([u64::MAX]);
    for (range, next) in ranges.iter().zip(next) {
        if !fits(range.offset, range.bytes, file_bytes) || !fits(range.gpa, range.bytes, next) {
            return Err(format!(
                "the segment at guest physical address {:#x} is cut short or overlaps another",
                range.gpa
            ));
        }
    }
    if ranges.is_empty() {
        Err("this ELF core holds no memory".into())
    } else {
        Ok(ranges)
    }
}

#[cfg(test)]
#[path = "dump_tests.rs"]
mod tests;
