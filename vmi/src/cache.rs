//! Guest memory by page frame: where it is mapped, or a copy of it, made at most once in a while. A walk
//! reads many small fields that lie together; a read through process_vm_readv costs microseconds however small
//! it is, and even of a mapping it takes a while to find the place. What is held is bounded; it never
//! writes back.

use crate::address::{Gpa, PAGE_BYTES};
use crate::memory::{GuestMemory, MappedPage};

/// Frames held, as copies 8 MiB: more make no walk faster, as the pages of a file lie together.
const FRAMES: usize = 2048;
/// Frames copied at a time. struct page and the nodes of a file lie together: a scan of a 4 GiB guest makes a sixth of the
/// reads that it makes of single frames (`strace -c`).
const RUN_FRAMES: usize = 16;
const RUN_BYTES: u64 = RUN_FRAMES as u64 * PAGE_BYTES;
const RUNS: usize = FRAMES / RUN_FRAMES;

/// A copy of neighbouring frames.
#[derive(Default)]
struct Run {
    at: u64,
    bytes: Vec<u8>,
}

impl Run {
    #[inline]
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Option<()> {
        let start = usize::try_from(at.0.checked_sub(self.at)?).ok()?;
        buf.copy_from_slice(self.bytes.get(start..start.checked_add(buf.len())?)?);
        Some(())
    }

    /// Holds `bytes` from `at` on, or nothing where not all of that is RAM.
    fn fill(&mut self, mem: &dyn GuestMemory, at: u64, bytes: u64) -> bool {
        self.at = at;
        self.bytes.resize(bytes as usize, 0);
        let filled = mem.read(Gpa(at), &mut self.bytes).is_ok();
        if !filled {
            self.bytes.clear();
        }
        filled
    }
}

/// Frames already met, each in the one slot that its number gives it.
pub(crate) struct FrameCache<'m> {
    mapped: Vec<Option<(u64, MappedPage<'m>)>>,
    copied: Vec<Run>,
}

impl<'m> FrameCache<'m> {
    pub(crate) fn new() -> FrameCache<'m> {
        FrameCache {
            mapped: Vec::new(),
            copied: Vec::new(),
        }
    }

    /// Forgets everything, so that it is read anew.
    pub(crate) fn clear(&mut self) {
        self.mapped.clear();
        self.copied.clear();
    }

    /// Fills `buf`, which must not cross a page; None when the memory is not there.
    #[inline]
    pub(crate) fn read(&mut self, mem: &'m dyn GuestMemory, at: Gpa, buf: &mut [u8]) -> Option<()> {
        let pfn = at.pfn().0;
        match self.mapped.get((pfn % FRAMES as u64) as usize) {
            Some(Some((there, page))) if *there == pfn => {
                return page.read((at.0 % PAGE_BYTES) as usize, buf);
            }
            _ => {}
        }
        let run = self.copied.get(slot(at));
        match run.and_then(|run| run.read(at, buf)) {
            Some(()) => Some(()),
            None => self.meet(mem, at, buf),
        }
    }

    /// Reads from a frame that is not held, and holds it if all of it is RAM.
    #[cold]
    fn meet(&mut self, mem: &'m dyn GuestMemory, at: Gpa, buf: &mut [u8]) -> Option<()> {
        let pfn = at.pfn().0;
        if let Some(page) = mem.mapped_page(Gpa(pfn * PAGE_BYTES)) {
            if self.mapped.is_empty() {
                self.mapped.resize_with(FRAMES, || None);
            }
            let (_, page) = self.mapped[(pfn % FRAMES as u64) as usize].insert((pfn, page));
            return page.read((at.0 % PAGE_BYTES) as usize, buf);
        }
        if !mem.reads_are_dear() {
            return mem.read(at, buf).ok();
        }
        if self.copied.is_empty() {
            self.copied.resize_with(RUNS, Run::default);
        }
        let run = &mut self.copied[slot(at)];
        // RAM may end within a run, and a dump's segments even within a frame.
        let filled = run.fill(mem, at.0 - at.0 % RUN_BYTES, RUN_BYTES)
            || run.fill(mem, at.0 - at.0 % PAGE_BYTES, PAGE_BYTES);
        match filled {
            true => run.read(at, buf),
            false => mem.read(at, buf).ok(),
        }
    }
}

fn slot(at: Gpa) -> usize {
    (at.0 / RUN_BYTES % RUNS as u64) as usize
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::RamRange;
    use crate::memory::MemoryError;

    /// RAM from zero on, each byte its frame's number; counts how often it is read.
    struct Ram {
        bytes: u64,
        reads: AtomicUsize,
    }

    impl GuestMemory for Ram {
        fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            let bytes = buf.len();
            if gpa.0 + bytes as u64 > self.bytes {
                return Err(MemoryError::NotRam { gpa, bytes });
            }
            for (at, byte) in (gpa.0..).zip(buf) {
                *byte = (at / PAGE_BYTES) as u8;
            }
            Ok(())
        }

        fn ranges(&self) -> &[RamRange] {
            &[]
        }
    }

    #[test]
    fn neighbours_are_read_together_and_the_end_of_ram_as_far_as_it_goes() {
        // A run, a frame behind it, and a piece of another.
        let bytes = RUN_BYTES + PAGE_BYTES + 100;
        let ram = Ram {
            bytes,
            reads: AtomicUsize::new(0),
        };
        let mut cache = FrameCache::new();
        let mut read = |at| {
            let mut buf = [0xff; 8];
            let there = cache.read(&ram, Gpa(at), &mut buf);
            let frame = (at / PAGE_BYTES) as u8;
            assert!(there.is_none() || buf == [frame; 8], "{buf:?} at {at:#x}");
            (there.is_some(), ram.reads.swap(0, Ordering::Relaxed))
        };
        assert_eq!(read(5 * PAGE_BYTES + 16), (true, 1));
        assert_eq!(read(0), (true, 0));
        assert_eq!(read(RUN_BYTES - 8), (true, 0));
        // The run is not all RAM: its first frame is.
        assert_eq!(read(RUN_BYTES), (true, 2));
        assert_eq!(read(RUN_BYTES + PAGE_BYTES - 8), (true, 0));
        // Of the next frame only a piece is RAM, and nothing of it is held.
        assert_eq!(read(RUN_BYTES + PAGE_BYTES), (true, 3));
        assert_eq!(read(RUN_BYTES + PAGE_BYTES), (true, 3));
        assert_eq!(read(RUN_BYTES + PAGE_BYTES + 96), (false, 3));
        // What was forgotten is read anew.
        cache.clear();
        let mut buf = [0; 8];
        assert!(cache.read(&ram, Gpa(0), &mut buf).is_some());
        assert_eq!(ram.reads.load(Ordering::Relaxed), 1);
    }
}
