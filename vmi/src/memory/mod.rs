//! Sources of guest memory behind one small read-only trait. A read gives every byte asked for or
//! fails: no source may fill in zeros for what it could not read.

mod dump;
mod hugetlb;
mod live;
mod mapped;
mod maps;
mod memflow;
mod memflow_kvm;
mod process;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use dump::Dump;
pub use live::QemuRam;
pub use mapped::MappedPage;
pub use memflow::{MemflowConnector, MemflowSource};
pub use memflow_kvm::memflow_kvm;

use crate::address::Gpa;
use crate::layout::{RamLayout, RamRange, range_at};

/// Why guest memory could not be read.
#[derive(Debug, Error)]
pub enum MemoryError {
    #[error("{bytes} bytes at guest physical address {gpa} are not RAM")]
    NotRam { gpa: Gpa, bytes: usize },
    #[error("{bytes} bytes at {offset:#x} are outside of RAM block {block} or cannot be reached")]
    Block {
        block: usize,
        offset: u64,
        bytes: usize,
    },
    #[error("cannot read {bytes} bytes at {address:#x} of process {pid}")]
    Process {
        pid: i32,
        address: u64,
        bytes: usize,
        source: io::Error,
    },
    #[error("cannot read {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{}: {problem}", path.display())]
    Format { path: PathBuf, problem: String },
    #[error("memflow connector: {0}")]
    Connector(String),
}

/// What introspection needs of a guest's memory.
pub trait GuestMemory: Send + Sync {
    /// Fills `buf` from guest physical memory.
    ///
    /// # Errors
    /// When any byte of it is not RAM or cannot be read.
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError>;

    /// Guest RAM, sorted by address.
    fn ranges(&self) -> &[RamRange];

    /// Whether a page that is not mapped is better copied whole and kept than read field by field.
    fn reads_are_dear(&self) -> bool {
        true
    }

    /// The page at `gpa`, a multiple of 4096, where all of it is mapped here.
    fn mapped_page(&self, _gpa: Gpa) -> Option<MappedPage<'_>> {
        None
    }

    /// Fills `out` with the same number of bytes from each address, in order.
    ///
    /// # Errors
    /// When any of them cannot be read; `out` then holds nothing of use.
    fn read_each(&self, gpas: &[Gpa], out: &mut [u8]) -> Result<(), MemoryError> {
        let each = out.len() / gpas.len().max(1);
        for (gpa, buf) in gpas.iter().zip(out.chunks_exact_mut(each.max(1))) {
            self.read(*gpa, buf)?;
        }
        Ok(())
    }
}

/// The RAM of a QEMU that is there now, addressed as its migration stream does.
pub trait LiveMemory: GuestMemory {
    /// Blocks and ranges.
    fn layout(&self) -> &RamLayout;

    /// Fills `buf` from a RAM block.
    ///
    /// # Errors
    /// When the bytes are not all in the block, or the block cannot be reached.
    fn read_block(&self, block: usize, offset: u64, buf: &mut [u8]) -> Result<(), MemoryError>;

    /// Fills `out` with 4096 bytes for each (block, byte offset), in order, in few system calls.
    ///
    /// # Errors
    /// As [`LiveMemory::read_block`]; `out` then holds nothing of use.
    ///
    /// # Panics
    /// When `out` is not 4096 bytes a page.
    fn read_block_pages(&self, pages: &[(usize, u64)], out: &mut [u8]) -> Result<(), MemoryError>;
}

/// Reads a piece of memory that may run over borders of ranges that touch: to the guest, NUMA nodes,
/// DIMMs and a dump's segments are one. `read` gets a range, the offset of the piece in its block, and
/// the piece.
fn read_pieces(
    ranges: &[RamRange],
    gpa: Gpa,
    buf: &mut [u8],
    mut read: impl FnMut(&RamRange, u64, &mut [u8]) -> Result<(), MemoryError>,
) -> Result<(), MemoryError> {
    let outside = MemoryError::NotRam {
        gpa,
        bytes: buf.len(),
    };
    let (mut at, mut rest) = (gpa.0, buf);
    loop {
        let Some(range) = range_at(ranges, at) else {
            return Err(outside);
        };
        let into = at - range.gpa;
        let length = rest
            .len()
            .min(usize::try_from(range.bytes - into).unwrap_or(usize::MAX));
        let (piece, behind) = rest.split_at_mut(length);
        read(range, range.offset + into, piece)?;
        if behind.is_empty() {
            return Ok(());
        }
        (at, rest) = (range.gpa + range.bytes, behind);
    }
}
