//! Guest memory by page frame, each frame read at most once in a while: a walk reads many small
//! fields that lie together, and a read through process_vm_readv costs 1 µs however small it is.
//! What it holds is bounded; it never writes back.

use std::collections::HashMap;

use crate::address::{Gpa, PAGE_BYTES};
use crate::memory::GuestMemory;

/// 64 MiB. The struct pages of a 1 GiB guest take 16 MiB; when full, all is dropped and read anew.
const FRAMES_MAX: usize = 16384;

type Frame = [u8; PAGE_BYTES as usize];

/// Frames already read.
pub(crate) struct FrameCache {
    index: HashMap<u64, usize>,
    frames: Vec<Box<Frame>>,
    /// The frame read last: most reads go on in it.
    last: (u64, usize),
}

impl FrameCache {
    pub(crate) fn new() -> FrameCache {
        FrameCache {
            index: HashMap::new(),
            frames: Vec::new(),
            last: (u64::MAX, 0),
        }
    }

    /// Forgets everything, so that it is read anew.
    pub(crate) fn clear(&mut self) {
        *self = FrameCache::new();
    }

    /// Fills `buf`, which must not cross a page; None when the memory is not there.
    pub(crate) fn read(&mut self, mem: &dyn GuestMemory, at: Gpa, buf: &mut [u8]) -> Option<()> {
        let slot = self.slot(mem, at.pfn().0)?;
        let start = (at.0 % PAGE_BYTES) as usize;
        buf.copy_from_slice(self.frames[slot].get(start..start + buf.len())?);
        Some(())
    }

    fn slot(&mut self, mem: &dyn GuestMemory, pfn: u64) -> Option<usize> {
        if self.last.0 == pfn {
            return Some(self.last.1);
        }
        let slot = match self.index.get(&pfn) {
            Some(&slot) => slot,
            None => self.load(mem, pfn)?,
        };
        self.last = (pfn, slot);
        Some(slot)
    }

    fn load(&mut self, mem: &dyn GuestMemory, pfn: u64) -> Option<usize> {
        let mut frame = Box::new([0; PAGE_BYTES as usize]);
        mem.read(Gpa(pfn * PAGE_BYTES), frame.as_mut_slice()).ok()?;
        if self.frames.len() == FRAMES_MAX {
            self.clear();
        }
        self.frames.push(frame);
        self.index.insert(pfn, self.frames.len() - 1);
        Some(self.frames.len() - 1)
    }
}
