//! The RAM of a running QEMU: blocks that are a shared memfd or file are mapped, all others are
//! read with process_vm_readv. Read only, and only what the layout says is a block.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use crate::address::Gpa;
use crate::layout::{RamBlock, RamLayout, RamRange, range_at};
use crate::memory::mapped::MappedFile;
use crate::memory::{GuestMemory, LiveMemory, MemoryError, process};

/// How one block is reached.
#[derive(Debug)]
enum Backing {
    Mapped(MappedFile),
    /// At a host virtual address.
    Process(u64),
    /// QEMU tells no address: a ROM that the guest does not see.
    Unknown,
}

/// The RAM of one QEMU process.
#[derive(Debug)]
pub struct QemuRam {
    pid: i32,
    layout: RamLayout,
    backings: Vec<Backing>,
}

impl QemuRam {
    /// Opens the RAM of process `pid`, whose blocks' addresses `layout` has, and reads one byte of
    /// each range as a proof.
    ///
    /// # Errors
    /// When a block that the guest sees has no address, or cannot be read.
    pub fn open(pid: i32, layout: RamLayout) -> Result<QemuRam, MemoryError> {
        let maps = maps(pid)?;
        let backings = layout
            .blocks
            .iter()
            .map(|block| backing(pid, &maps, block))
            .collect();
        let ram = QemuRam {
            pid,
            layout,
            backings,
        };
        for range in &ram.layout.ranges {
            ram.read_block(range.block, range.offset, &mut [0])?;
        }
        Ok(ram)
    }

    /// Bytes of the guest's RAM that are mapped, so that small reads of them are cheap.
    pub fn mapped_bytes(&self) -> u64 {
        let mapped = |range: &&RamRange| matches!(self.backings[range.block], Backing::Mapped(_));
        self.layout
            .ranges
            .iter()
            .filter(mapped)
            .map(|range| range.bytes)
            .sum()
    }

    /// Host virtual address of a piece of a block, where the block is not mapped.
    fn process_address(&self, block: usize, offset: u64, bytes: usize) -> Option<u64> {
        let end = offset.checked_add(bytes as u64)?;
        match self.backings.get(block)? {
            Backing::Process(hva) if end <= self.layout.blocks[block].used_bytes => {
                hva.checked_add(offset)
            }
            _ => None,
        }
    }

    fn locate(&self, gpa: Gpa, bytes: usize) -> Result<(usize, u64), MemoryError> {
        let range = range_at(&self.layout.ranges, gpa.0);
        let range = range.filter(|range| range.bytes - (gpa.0 - range.gpa) >= bytes as u64);
        let range = range.ok_or(MemoryError::NotRam { gpa, bytes })?;
        Ok((range.block, range.offset + (gpa.0 - range.gpa)))
    }

    /// Reads equal pieces of blocks: in few calls where no block is mapped, else one by one.
    fn read_pieces(&self, pieces: &[(usize, u64)], out: &mut [u8]) -> Result<(), MemoryError> {
        let each = out.len() / pieces.len().max(1);
        let addresses: Option<Vec<u64>> = pieces
            .iter()
            .map(|&(block, at)| self.process_address(block, at, each))
            .collect();
        if let Some(addresses) = addresses {
            return process::read_each(self.pid, &addresses, out);
        }
        for (&(block, offset), buf) in pieces.iter().zip(out.chunks_exact_mut(each.max(1))) {
            self.read_block(block, offset, buf)?;
        }
        Ok(())
    }
}

impl GuestMemory for QemuRam {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        let (block, offset) = self.locate(gpa, buf.len())?;
        self.read_block(block, offset, buf)
    }

    fn ranges(&self) -> &[RamRange] {
        &self.layout.ranges
    }

    fn read_each(&self, gpas: &[Gpa], out: &mut [u8]) -> Result<(), MemoryError> {
        let each = out.len() / gpas.len().max(1);
        let pieces: Vec<(usize, u64)> = gpas
            .iter()
            .map(|&gpa| self.locate(gpa, each))
            .collect::<Result<_, _>>()?;
        self.read_pieces(&pieces, out)
    }
}

impl LiveMemory for QemuRam {
    fn layout(&self) -> &RamLayout {
        &self.layout
    }

    fn read_block(&self, block: usize, offset: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let outside = MemoryError::Block {
            block,
            offset,
            bytes: buf.len(),
        };
        match self.backings.get(block) {
            Some(Backing::Mapped(file)) => file.read(offset, buf).map_err(|_| outside),
            _ => match self.process_address(block, offset, buf.len()) {
                Some(address) => process::read_each(self.pid, &[address], buf),
                None => Err(outside),
            },
        }
    }

    fn read_block_pages(&self, pages: &[(usize, u64)], out: &mut [u8]) -> Result<(), MemoryError> {
        assert_eq!(out.len(), pages.len() * 4096, "4096 bytes a page");
        self.read_pieces(pages, out)
    }
}

/// One line of /proc/PID/maps.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    /// MAP_SHARED: a private mapping's own pages are not in the file.
    shared: bool,
    file_offset: u64,
    inode: u64,
}

fn maps(pid: i32) -> Result<Vec<Mapping>, MemoryError> {
    let path = PathBuf::from(format!("/proc/{pid}/maps"));
    let text = fs::read_to_string(&path).map_err(|source| MemoryError::File { path, source })?;
    Ok(text.lines().filter_map(parse_mapping).collect())
}

/// `7f0000000000-7f0040000000 rw-s 00000000 00:01 1042 /memfd:ram (deleted)`
fn parse_mapping(line: &str) -> Option<Mapping> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let shared = words.next()?.ends_with('s');
    let file_offset = words.next()?;
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        shared,
        file_offset: u64::from_str_radix(file_offset, 16).ok()?,
        inode: words.nth(1)?.parse().ok()?,
    })
}

/// Maps a block where it can be: what cannot be mapped is read through the process, which always
/// gives the same bytes.
fn backing(pid: i32, maps: &[Mapping], block: &RamBlock) -> Backing {
    let Some(hva) = block.hva else {
        return Backing::Unknown;
    };
    let Some(end) = hva.checked_add(block.used_bytes) else {
        return Backing::Unknown;
    };
    let whole = maps.iter().find(|map| map.start <= hva && end <= map.end);
    match whole.filter(|map| map.shared && map.inode != 0) {
        Some(map) => {
            let mapped = open_mapping(pid, map).and_then(|file| {
                MappedFile::map(file, map.file_offset + (hva - map.start), block.used_bytes)
            });
            mapped.map_or(Backing::Process(hva), Backing::Mapped)
        }
        None => Backing::Process(hva),
    }
}

/// The file behind a mapping. map_files needs CAP_CHECKPOINT_RESTORE; a memfd is also among the
/// process's descriptors.
fn open_mapping(pid: i32, map: &Mapping) -> io::Result<File> {
    use std::os::unix::fs::MetadataExt;
    let direct = format!("/proc/{pid}/map_files/{:x}-{:x}", map.start, map.end);
    if let Ok(file) = File::open(direct) {
        return Ok(file);
    }
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        let is_it = fs::metadata(&path).is_ok_and(|m| m.ino() == map.inode && m.is_file());
        if is_it && let Ok(file) = File::open(&path) {
            return Ok(file);
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
