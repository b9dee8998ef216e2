//! The RAM of a running QEMU: blocks that QEMU maps shared are mapped here as well, all others are read
//! with process_vm_readv. Read only, and only what the layout says is a block.
//!
//! A shared mapping's pages are its file's, whatever the file is: a memfd, a file, hugetlbfs, or the
//! nameless one behind `memory-backend-ram,share=on`. Of a private mapping the file has only what was
//! never written to (memory-backend-file and -mem-path are private unless share=on): it is never mapped.

use crate::address::{Gpa, PAGE_BYTES};
use crate::layout::{RamBlock, RamLayout, RamRange, range_at};
use crate::memory::mapped::{MappedFile, MappedPage};
use crate::memory::maps::{self, Mapping};
use crate::memory::{GuestMemory, LiveMemory, MemoryError, process, read_pieces};

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
        let maps = maps::read(pid)?;
        QemuRam::with(pid, layout, &maps)
    }

    /// As [`QemuRam::open`], mapping nothing: the same bytes, only slower.
    ///
    /// # Errors
    /// As [`QemuRam::open`].
    pub fn open_unmapped(pid: i32, layout: RamLayout) -> Result<QemuRam, MemoryError> {
        QemuRam::with(pid, layout, &[])
    }

    fn with(pid: i32, layout: RamLayout, maps: &[Mapping]) -> Result<QemuRam, MemoryError> {
        let backings = layout
            .blocks
            .iter()
            .map(|block| backing(pid, maps, block))
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

    /// Block and offset of bytes that are all in one range.
    fn locate(&self, gpa: Gpa, bytes: usize) -> Option<(usize, u64)> {
        let range = range_at(&self.layout.ranges, gpa.0)?;
        let into = gpa.0 - range.gpa;
        (range.bytes - into >= bytes as u64).then_some((range.block, range.offset + into))
    }

    /// Reads equal pieces of blocks: in few calls where no block is mapped, else one by one.
    fn read_blocks(&self, pieces: &[(usize, u64)], out: &mut [u8]) -> Result<(), MemoryError> {
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
        read_pieces(&self.layout.ranges, gpa, buf, |range, offset, piece| {
            self.read_block(range.block, offset, piece)
        })
    }

    fn ranges(&self) -> &[RamRange] {
        &self.layout.ranges
    }

    fn mapped_page(&self, gpa: Gpa) -> Option<MappedPage<'_>> {
        let (block, offset) = self.locate(gpa, PAGE_BYTES as usize)?;
        match &self.backings[block] {
            Backing::Mapped(file) => file.page(offset),
            _ => None,
        }
    }

    fn read_each(&self, gpas: &[Gpa], out: &mut [u8]) -> Result<(), MemoryError> {
        let each = out.len() / gpas.len().max(1);
        let pieces: Option<Vec<(usize, u64)>> =
            gpas.iter().map(|&gpa| self.locate(gpa, each)).collect();
        if let Some(pieces) = pieces {
            return self.read_blocks(&pieces, out);
        }
        // One runs over a border, or is no RAM: each for itself.
        for (gpa, buf) in gpas.iter().zip(out.chunks_exact_mut(each.max(1))) {
            self.read(*gpa, buf)?;
        }
        Ok(())
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
        self.read_blocks(pages, out)
    }
}

/// Maps a block where it can be: what cannot be mapped is read through the process, which always
/// gives the same bytes.
fn backing(pid: i32, maps: &[Mapping], block: &RamBlock) -> Backing {
    let end = |hva: u64| hva.checked_add(block.used_bytes);
    let Some((hva, end)) = block.hva.and_then(|hva| Some((hva, end(hva)?))) else {
        return Backing::Unknown;
    };
    let whole = maps.iter().find(|map| map.start <= hva && end <= map.end);
    let mapped = whole.filter(|map| map.is_file_shared()).and_then(|map| {
        let file = map.open(pid).ok()?;
        let start = map.file_offset.checked_add(hva - map.start)?;
        MappedFile::map_ram(file, start, block.used_bytes, pid, hva).ok()
    });
    mapped.map_or(Backing::Process(hva), Backing::Mapped)
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
