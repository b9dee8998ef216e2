//! The page cache of a made-up guest: what of its RAM is where on a disk, and what that disk holds. It knows no
//! stream.

use migrator::core::plan::PlanRun;
use migrator::core::ram::{PAGE_BYTES, RamPage};

use crate::synthetic::Guest;

/// What repeats itself all over guest RAM, in pages: 16 only in RAM, then 48 cached from a disk, then zeros. Mostly
/// zeros, so that a terabyte ends within minutes.
pub(crate) const PATTERN_PAGES: u32 = 1024;
pub(crate) const PRIVATE_PAGES: u32 = 16;
pub(crate) const CACHED_PAGES: u32 = 48;
/// Pages that are neighbours in RAM and on the disk alike.
const RUN_PAGES: u32 = 16;
const RUNS: u32 = CACHED_PAGES / RUN_PAGES;
/// Of so many runs the disk holds an old version of one.
const STALE_EVERY: u32 = 61;

impl Guest {
    pub(crate) fn pages(&self) -> u32 {
        self.table.pages()
    }

    /// Whether QEMU finds `page` all zero in its first pass.
    pub(crate) fn is_zero(page: RamPage) -> bool {
        page.0 % PATTERN_PAGES >= PRIVATE_PAGES + CACHED_PAGES
    }

    /// What the disk holds for `page`.
    pub(crate) fn fill_from_disk(&self, page: RamPage, into: &mut [u8]) {
        let stale = (page.0 / RUN_PAGES).is_multiple_of(STALE_EVERY);
        self.fill(page, if stale { u8::MAX } else { 0 }, into);
    }

    /// The page cache in disk order, which is not RAM's order.
    pub(crate) fn cached(&self) -> Vec<PlanRun> {
        let runs = self.pages() / PATTERN_PAGES * RUNS;
        let run = |place: u32| {
            // A large prime divides no number of runs, so its multiples name every run once.
            let run = (u64::from(place) * 2_654_435_761 % u64::from(runs)) as u32;
            let (pattern, within) = (run / RUNS, run % RUNS);
            PlanRun {
                page: RamPage(pattern * PATTERN_PAGES + PRIVATE_PAGES + within * RUN_PAGES),
                pages: RUN_PAGES,
                disk: 0,
                offset: u64::from(place) * u64::from(RUN_PAGES) * PAGE_BYTES as u64,
            }
        };
        (0..runs).map(run).collect()
    }

    pub(crate) fn disk_bytes(&self) -> u64 {
        u64::from(self.pages() / PATTERN_PAGES * CACHED_PAGES) * PAGE_BYTES as u64
    }
}
