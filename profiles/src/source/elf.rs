//! What an ELF file of a kernel tells: vmlinux, a module, the separate debug file of either. Sections
//! may be compressed; those of relocatable files (modules) are relocated. Never trusts an offset.

use std::borrow::Cow;
use std::collections::BTreeMap;

use goblin::elf::section_header::{SHF_COMPRESSED, SHT_NOBITS, SHT_NOTE, SHT_RELA};
use goblin::elf::sym::STB_GLOBAL;
use goblin::elf::{Elf, SectionHeader, header, program_header, reloc};
use thiserror::Error;
use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

use super::compress::{self, CompressError};
use super::dwarf::Sections;

/// __START_KERNEL_map: where a kernel is linked to run.
const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// Kernels have 30 to 60 MiB.
const IMAGE_BYTES_MAX: u64 = 192 << 20;
/// ELFCOMPRESS_ZLIB and ELFCOMPRESS_ZSTD of an Elf64_Chdr.
const ELFCOMPRESS_ZLIB: u32 = 1;
const ELFCOMPRESS_ZSTD: u32 = 2;
const CHDR_BYTES: usize = 24;
/// Offset of e_type in an ELF header.
const E_TYPE: usize = 16;
/// NT_GNU_BUILD_ID.
const NT_GNU_BUILD_ID: u32 = 3;
/// "ZLIB" and the length, big-endian, before the data of a .zdebug section.
const ZDEBUG_HEADER_BYTES: usize = 12;

/// Why an ELF file could not be read.
#[derive(Debug, Error)]
pub enum ElfError {
    #[error("malformed ELF")]
    Elf(#[from] goblin::error::Error),
    #[error("an ELF file of another machine than x86-64")]
    Machine,
    #[error("section {0} lies outside of the file")]
    Section(String),
    #[error("cannot decompress section {0}")]
    Compressed(String, #[source] CompressError),
    #[error("section {0} is compressed by method {1}, which is not known")]
    Method(String, u32),
}

/// A parsed file.
pub(crate) struct ElfFile<'a> {
    bytes: &'a [u8],
    elf: Elf<'a>,
}

impl<'a> ElfFile<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<ElfFile<'a>, ElfError> {
        let elf = Elf::parse(bytes)?;
        let is_x86_64 = elf.header.e_machine == header::EM_X86_64;
        if !is_x86_64 || !elf.is_64 || !elf.little_endian {
            return Err(ElfError::Machine);
        }
        Ok(ElfFile { bytes, elf })
    }

    /// A section's contents, decompressed; None where the file has none.
    pub(crate) fn section(&self, name: &str) -> Result<Option<Cow<'a, [u8]>>, ElfError> {
        let Some(index) = self.index(name) else {
            return Ok(None);
        };
        let header = &self.elf.section_headers[index];
        let contents = self.contents(header, name)?;
        if self.name(header) == Some(name) {
            return Ok(Some(contents));
        }
        let data = contents.get(ZDEBUG_HEADER_BYTES..);
        let data = data.ok_or_else(|| ElfError::Section(name.to_owned()))?;
        let data = compress::zlib(data);
        data.map(|data| Some(data.into()))
            .map_err(|error| ElfError::Compressed(name.to_owned(), error))
    }

    /// The section of this name, or of the one that GNU tools gave a compressed one before ELF had
    /// such: `.zdebug_info` for `.debug_info`.
    fn index(&self, name: &str) -> Option<usize> {
        let find = |name: &str| {
            let mut headers = self.elf.section_headers.iter();
            headers
                .position(|header| header.sh_type != SHT_NOBITS && self.name(header) == Some(name))
        };
        let old = || find(&format!(".zdebug_{}", name.strip_prefix(".debug_")?));
        find(name).or_else(old)
    }

    fn name(&self, header: &SectionHeader) -> Option<&str> {
        self.elf.shdr_strtab.get_at(header.sh_name)
    }

    fn contents(&self, header: &SectionHeader, name: &str) -> Result<Cow<'a, [u8]>, ElfError> {
        let raw = self
            .at(header.sh_offset, header.sh_size)
            .ok_or_else(|| ElfError::Section(name.to_owned()))?;
        if header.sh_flags & u64::from(SHF_COMPRESSED) == 0 {
            return Ok(raw.into());
        }
        let outside = || ElfError::Section(name.to_owned());
        let method = raw.first_chunk::<4>().ok_or_else(outside)?;
        let data = raw.get(CHDR_BYTES..).ok_or_else(outside)?;
        let data = match u32::from_le_bytes(*method) {
            ELFCOMPRESS_ZLIB => compress::zlib(data),
            ELFCOMPRESS_ZSTD => compress::zstd(data),
            method => return Err(ElfError::Method(name.to_owned(), method)),
        };
        let data = data.map_err(|error| ElfError::Compressed(name.to_owned(), error))?;
        Ok(data.into())
    }

    fn at(&self, offset: u64, length: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        self.bytes.get(start..end)
    }

    /// The sections that hold types; None where there is no debug information.
    pub(crate) fn debug_sections(&self) -> Result<Option<Sections<'a>>, ElfError> {
        let mut by_name = BTreeMap::new();
        for name in Sections::NAMES {
            if let Some(mut contents) = self.section(name)? {
                self.relocate(name, &mut contents)?;
                by_name.insert(name, contents);
            }
        }
        Ok(by_name
            .contains_key(".debug_info")
            .then_some(Sections { by_name }))
    }

    /// A module, not linked to an address.
    pub(crate) fn is_relocatable(&self) -> bool {
        self.elf.header.e_type == header::ET_REL
    }

    /// References of a relocatable file into other sections are in its relocations only.
    fn relocate(&self, name: &str, contents: &mut Cow<'a, [u8]>) -> Result<(), ElfError> {
        if !self.is_relocatable() {
            return Ok(());
        }
        let of = self.index(name);
        let mut headers = self.elf.section_headers.iter();
        let relocations = headers
            .find(|header| header.sh_type == SHT_RELA && Some(header.sh_info as usize) == of);
        let Some(relocations) = relocations else {
            return Ok(());
        };
        let relocations = self.contents(relocations, name)?;
        let contents = contents.to_mut();
        for entry in relocations.chunks_exact(24) {
            let Ok((entry, _)) = <[U64; 3]>::ref_from_prefix(entry) else {
                continue;
            };
            let [offset, info, addend] = entry.map(U64::get);
            let width = match info as u32 {
                reloc::R_X86_64_64 => 8,
                reloc::R_X86_64_32 | reloc::R_X86_64_32S => 4,
                _ => continue,
            };
            let symbol = self.elf.syms.get((info >> 32) as usize);
            let value = symbol
                .map_or(0, |symbol| symbol.st_value)
                .wrapping_add(addend);
            let place = usize::try_from(offset)
                .ok()
                .and_then(|start| contents.get_mut(start..start.checked_add(width)?));
            if let Some(place) = place {
                place.copy_from_slice(&value.to_le_bytes()[..width]);
            }
        }
        Ok(())
    }

    /// The GNU build id in hexadecimal.
    pub(crate) fn build_id(&self) -> Option<String> {
        let notes = self.elf.section_headers.iter();
        let notes = notes.filter(|header| header.sh_type == SHT_NOTE);
        notes
            .filter_map(|header| self.at(header.sh_offset, header.sh_size))
            .find_map(build_id_of_notes)
    }

    /// Addresses of symbols, by name; empty where the file has no symbol table.
    pub(crate) fn symbols(&self) -> BTreeMap<String, u64> {
        let mut symbols = BTreeMap::new();
        for symbol in self.elf.syms.iter().filter(|symbol| symbol.st_value != 0) {
            let name = self.elf.strtab.get_at(symbol.st_name).unwrap_or_default();
            // A local symbol may share a name; a global one has it alone.
            if !name.is_empty() && (symbol.st_bind() == STB_GLOBAL || !symbols.contains_key(name)) {
                symbols.insert(name.to_owned(), symbol.st_value);
            }
        }
        symbols
    }

    /// A kernel as it is loaded: the address of its first byte, and its bytes.
    pub(crate) fn image(&self) -> Option<(u64, Vec<u8>)> {
        let segments: Vec<_> = self
            .elf
            .program_headers
            .iter()
            .filter(|segment| {
                segment.p_type == program_header::PT_LOAD && segment.p_vaddr >= START_KERNEL_MAP
            })
            .filter_map(|segment| {
                Some((
                    segment.p_vaddr,
                    self.at(segment.p_offset, segment.p_filesz)?,
                ))
            })
            .collect();
        let base = segments.iter().map(|(start, _)| *start).min()?;
        let mut image = Vec::new();
        for (start, bytes) in segments {
            let end = (start - base).checked_add(bytes.len() as u64)?;
            if end > IMAGE_BYTES_MAX {
                return None;
            }
            if image.len() < end as usize {
                image.resize(end as usize, 0);
            }
            image[(start - base) as usize..end as usize].copy_from_slice(bytes);
        }
        Some((base, image))
    }
}

/// Whether a file that begins so is a core dump.
pub(crate) fn is_core(start: &[u8]) -> bool {
    start.get(E_TYPE..E_TYPE + 2) == Some(&header::ET_CORE.to_le_bytes())
}

fn build_id_of_notes(mut notes: &[u8]) -> Option<String> {
    loop {
        let (header, rest) = <[U32; 3]>::ref_from_prefix(notes).ok()?;
        let [name_bytes, bytes, kind] = header.map(|word| word.get() as usize);
        let name = rest.get(..name_bytes)?;
        let rest = rest.get(name_bytes.checked_next_multiple_of(4)?..)?;
        let contents = rest.get(..bytes)?;
        if name == b"GNU\0" && kind == NT_GNU_BUILD_ID as usize {
            return Some(contents.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        notes = rest.get(bytes.checked_next_multiple_of(4)?..)?;
    }
}
