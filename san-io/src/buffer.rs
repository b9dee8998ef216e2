//! Page-aligned memory for direct reads and the bounded pool it comes from. Must never free or
//! lend memory that the kernel may still write: a block is owned by its read until that completes.
#![allow(unsafe_code)] // Aligned allocation: Vec<u8> cannot be told an alignment.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::mpsc::Sender;

use crate::reader::Event;

/// O_DIRECT wants at most a page for memory; disks with a larger alignment give their own.
const BLOCK_ALIGN: usize = 4096;

/// One allocation, always initialised, `capacity` bytes.
pub(crate) struct Block {
    bytes: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a Block is the only owner of its allocation, and plain bytes have no thread.
unsafe impl Send for Block {}
// SAFETY: shared access only reads.
unsafe impl Sync for Block {}

impl Block {
    fn new(capacity: usize, align: usize) -> Self {
        let layout = Layout::from_size_align(capacity.max(1), align.max(BLOCK_ALIGN))
            .expect("lengths are bounded by Options, alignments are powers of two");
        // SAFETY: the layout has a size above zero.
        let bytes = unsafe { alloc_zeroed(layout) };
        let bytes = NonNull::new(bytes).unwrap_or_else(|| handle_alloc_error(layout));
        Self { bytes, layout }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in new(), freed only here.
        unsafe { dealloc(self.bytes.as_ptr(), self.layout) }
    }
}

impl Deref for Block {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: layout.size() initialised bytes (zeroed at first) that self owns.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref, and self is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.as_ptr(), self.layout.size()) }
    }
}

/// Blocks of one disk, kept for reuse. At most `bytes_max` exist at any time, lent ones included.
pub(crate) struct Pool {
    free: BTreeMap<usize, Vec<Block>>,
    allocated: usize,
    bytes_max: usize,
    align: usize,
}

impl Pool {
    pub(crate) fn new(bytes_max: usize, align: usize) -> Self {
        Self {
            free: BTreeMap::new(),
            allocated: 0,
            bytes_max,
            align,
        }
    }

    /// A block of at least `bytes`, or None until enough lent ones come back. Its content is
    /// whatever was read into it before.
    pub(crate) fn take(&mut self, bytes: usize) -> Option<Block> {
        // More than twice the need would hold memory that others wait for.
        if let Some(block) = self.take_free(bytes..=bytes.saturating_mul(2)) {
            return Some(block);
        }
        while self.allocated.checked_add(bytes)? > self.bytes_max {
            let block = self.take_free(0..=usize::MAX)?;
            self.allocated -= block.capacity();
        }
        self.allocated += bytes;
        Some(Block::new(bytes, self.align))
    }

    pub(crate) fn give_back(&mut self, block: Block) {
        self.free.entry(block.capacity()).or_default().push(block);
    }

    fn take_free(&mut self, capacities: std::ops::RangeInclusive<usize>) -> Option<Block> {
        let (&capacity, blocks) = self.free.range_mut(capacities).next()?;
        let block = blocks.pop();
        if blocks.is_empty() {
            self.free.remove(&capacity);
        }
        block
    }
}

/// The bytes of a completed read, exactly as many as were asked for. Goes back to its pool when
/// dropped: a caller that keeps many stops the reader from starting more.
pub struct Buffer {
    block: Option<Block>,
    start: usize,
    len: usize,
    disk: usize,
    home: Sender<Event>,
}

impl Buffer {
    pub(crate) fn new(
        block: Block,
        start: usize,
        len: usize,
        disk: usize,
        home: Sender<Event>,
    ) -> Self {
        Self {
            block: Some(block),
            start,
            len,
            disk,
            home,
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let block = self.block.as_deref().unwrap_or_default();
        &block[self.start..self.start + self.len]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            // A reader that has ended has no pool: the block is freed with the message.
            drop(self.home.send(Event::GivenBack {
                disk: self.disk,
                block,
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_never_allocates_more_than_its_bound() {
        let mut pool = Pool::new(64 << 10, 512);
        let first = pool.take(40 << 10).unwrap();
        assert!(pool.take(32 << 10).is_none());
        let second = pool.take(24 << 10).unwrap();
        assert!(pool.take(1).is_none());
        pool.give_back(first);
        pool.give_back(second);
        // Needs both free blocks gone first.
        assert_eq!(pool.take(64 << 10).unwrap().capacity(), 64 << 10);
        assert!(pool.take(1).is_none());
    }

    #[test]
    fn pool_lends_the_same_memory_again() {
        let mut pool = Pool::new(64 << 10, 512);
        let block = pool.take(8 << 10).unwrap();
        let address = block.as_ptr();
        assert_eq!(address.align_offset(BLOCK_ALIGN), 0);
        pool.give_back(block);
        assert_eq!(pool.take(6 << 10).unwrap().as_ptr(), address);
    }

    #[test]
    fn blocks_have_the_alignment_of_their_disk() {
        let mut pool = Pool::new(1 << 20, 65536);
        assert_eq!(pool.take(65536).unwrap().as_ptr().align_offset(65536), 0);
    }
}
