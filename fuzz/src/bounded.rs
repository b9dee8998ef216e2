//! The system's allocator, which counts what is held. For a binary's `#[global_allocator]`.
#![allow(unsafe_code)] // GlobalAlloc.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts bytes that are allocated and not yet given back.
pub struct Bounded {
    held: AtomicUsize,
    before: AtomicUsize,
    peak: AtomicUsize,
}

impl Bounded {
    /// Nothing held yet.
    pub const fn new() -> Bounded {
        Bounded {
            held: AtomicUsize::new(0),
            before: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
        }
    }

    /// Counts from here on.
    pub fn restart(&self) {
        let held = self.held.load(Ordering::Relaxed);
        self.before.store(held, Ordering::Relaxed);
        self.peak.store(held, Ordering::Relaxed);
    }

    /// The most that was held at a time since the restart, without what was held then.
    pub fn peak(&self) -> usize {
        let peak = self.peak.load(Ordering::Relaxed);
        peak.saturating_sub(self.before.load(Ordering::Relaxed))
    }
}

impl Default for Bounded {
    fn default() -> Bounded {
        Bounded::new()
    }
}

// SAFETY: every call goes on to the system's allocator with the same arguments; the counters are
// only numbers.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = self.held.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        self.peak.fetch_max(held, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let held = self.held.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        self.peak.fetch_max(held, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        self.held.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}
