//! Guest memory by page frame: where it is mapped, or a copy of it, made at most once in a while. A walk
//! reads many small fields that lie together; a read through process_vm_readv costs 1 µs however small
//! it is, and even of a mapping it takes a while to find the place. What is held is bounded; it never
//! writes back.

use crate::address::{Gpa, PAGE_BYTES};
use crate::memory::{GuestMemory, MappedPage};

/// Frames held, as copies 8 MiB: more make no walk faster, as the pages of a file lie together.
const FRAMES: usize = 2048;

type Frame = [u8; PAGE_BYTES as usize];

enum Held<'m> {
    Mapped(MappedPage<'m>),
    Copy(Box<Frame>),
}

/// Frames already met, each in the one slot that its number gives it.
pub(crate) struct FrameCache<'m> {
    slots: Vec<Option<(u64, Held<'m>)>>,
}

impl<'m> FrameCache<'m> {
    pub(crate) fn new() -> FrameCache<'m> {
        FrameCache { slots: Vec::new() }
    }

    /// Forgets everything, so that it is read anew.
    pub(crate) fn clear(&mut self) {
        self.slots.clear();
    }

    /// Fills `buf`, which must not cross a page; None when the memory is not there.
    #[inline]
    pub(crate) fn read(&mut self, mem: &'m dyn GuestMemory, at: Gpa, buf: &mut [u8]) -> Option<()> {
        let pfn = at.pfn().0;
        let start = (at.0 % PAGE_BYTES) as usize;
        match self.slots.get((pfn % FRAMES as u64) as usize) {
            Some(Some((there, Held::Mapped(page)))) if *there == pfn => page.read(start, buf),
            Some(Some((there, Held::Copy(frame)))) if *there == pfn => {
                buf.copy_from_slice(frame.get(start..start + buf.len())?);
                Some(())
            }
            _ => self.meet(mem, at, buf),
        }
    }

    /// Reads from a frame that is not held, and holds it if all of it is RAM.
    #[cold]
    fn meet(&mut self, mem: &'m dyn GuestMemory, at: Gpa, buf: &mut [u8]) -> Option<()> {
        if self.slots.is_empty() {
            self.slots.resize_with(FRAMES, || None);
        }
        let pfn = at.pfn().0;
        let gpa = Gpa(pfn * PAGE_BYTES);
        let slot = &mut self.slots[(pfn % FRAMES as u64) as usize];
        if let Some(page) = mem.mapped_page(gpa) {
            *slot = Some((pfn, Held::Mapped(page)));
            return page.read((at.0 - gpa.0) as usize, buf);
        }
        if !mem.reads_are_dear() {
            return mem.read(at, buf).ok();
        }
        let mut frame = match slot.take() {
            Some((_, Held::Copy(frame))) => frame,
            _ => Box::new([0; PAGE_BYTES as usize]),
        };
        match mem.read(gpa, frame.as_mut_slice()) {
            Ok(()) => {
                let start = (at.0 - gpa.0) as usize;
                buf.copy_from_slice(frame.get(start..start + buf.len())?);
                *slot = Some((pfn, Held::Copy(frame)));
                Some(())
            }
            // Only a part of it is RAM: a dump's segments may end anywhere.
            Err(_) => mem.read(at, buf).ok(),
        }
    }
}
