//! Guest memory by page frame, each frame read at most once in a while: a walk reads many small
//! fields that lie together, and a read through process_vm_readv costs 1 µs however small it is.
//! What it holds is bounded; it never writes back.

use crate::address::{Gpa, PAGE_BYTES};
use crate::memory::GuestMemory;

/// Frames held: 64 MiB, what the struct pages of a 4 GiB guest take.
const FRAMES: usize = 16384;

type Frame = [u8; PAGE_BYTES as usize];

/// Frames already read, each in the one slot that its number gives it.
pub(crate) struct FrameCache {
    slots: Vec<Option<(u64, Box<Frame>)>>,
}

impl FrameCache {
    pub(crate) fn new() -> FrameCache {
        FrameCache { slots: Vec::new() }
    }

    /// Forgets everything, so that it is read anew.
    pub(crate) fn clear(&mut self) {
        self.slots.clear();
    }

    /// Fills `buf`, which must not cross a page; None when the memory is not there.
    pub(crate) fn read(&mut self, mem: &dyn GuestMemory, at: Gpa, buf: &mut [u8]) -> Option<()> {
        let frame = self.frame(mem, at.pfn().0)?;
        let start = (at.0 % PAGE_BYTES) as usize;
        buf.copy_from_slice(frame.get(start..start + buf.len())?);
        Some(())
    }

    fn frame(&mut self, mem: &dyn GuestMemory, pfn: u64) -> Option<&Frame> {
        if self.slots.is_empty() {
            self.slots.resize_with(FRAMES, || None);
        }
        let slot = &mut self.slots[(pfn % FRAMES as u64) as usize];
        if slot.as_ref().is_none_or(|(there, _)| *there != pfn) {
            let (_, mut frame) = slot
                .take()
                .unwrap_or_else(|| (pfn, Box::new([0; PAGE_BYTES as usize])));
            mem.read(Gpa(pfn * PAGE_BYTES), frame.as_mut_slice()).ok()?;
            *slot = Some((pfn, frame));
        }
        slot.as_ref().map(|(_, frame)| &**frame)
    }
}
