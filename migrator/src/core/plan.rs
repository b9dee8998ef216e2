//! The plan: which pages shared storage can supply, in disk order. Both hosts hold the same one. The
//! destination reads it from the front, the source steals from the far end; a position counts pages.

use std::ops::Range;

use super::ram::{PAGE_BYTES, RamPage};

/// Pages that are neighbours in guest RAM and on a disk alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanRun {
    /// The first page.
    pub page: RamPage,
    /// How many pages: at least one.
    pub pages: u32,
    /// The disk, as the handshake numbers them.
    pub disk: u32,
    /// Where the first page's bytes are on the disk, in bytes.
    pub offset: u64,
}

/// A plan that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// A run outside guest RAM.
    #[error("the plan has {pages} pages from page {page}, beyond guest RAM of {ram_pages} pages")]
    Page {
        /// First page.
        page: u32,
        /// Length in pages.
        pages: u32,
        /// Pages of guest RAM.
        ram_pages: u32,
    },
    /// A page that is there twice.
    #[error("the plan names page {0} twice")]
    Twice(u32),
    /// A run outside its disk.
    #[error("the plan reads disk {disk} at byte {offset}, beyond what that disk holds")]
    Disk {
        /// The disk's number.
        disk: u32,
        /// Byte offset.
        offset: u64,
    },
    /// Not in disk order.
    #[error("the plan is not in disk order at run {0}")]
    Order(usize),
}

/// The plan, checked: every page inside guest RAM and there once, every byte inside its disk, in disk order.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    runs: Vec<PlanRun>,
    /// Position of each run's first page.
    starts: Vec<u32>,
    pages: u32,
}

/// One read that the destination should do: bytes of one disk and the pages that lie in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOp {
    /// The disk, as the handshake numbers them.
    pub disk: u32,
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes to read.
    pub bytes: u32,
    /// The pages wanted and where in those bytes each begins.
    pub pages: Vec<(RamPage, u32)>,
    /// The position behind the last page.
    pub end: u32,
}

/// Gaps up to this many bytes are read through: a read costs a seek's worth of latency, and 16 KiB take
/// less than that on any storage. Larger wastes bandwidth, smaller splits files that have small holes.
const GAP_BYTES_MAX: u64 = 16 << 10;

impl Plan {
    /// Checks `runs` against a guest of `ram_pages` pages and disks of `disk_bytes` bytes each.
    pub fn new(runs: Vec<PlanRun>, ram_pages: u32, disk_bytes: &[u64]) -> Result<Plan, PlanError> {
        let mut seen = Bitmap::new(ram_pages);
        let mut starts = Vec::with_capacity(runs.len());
        let mut pages = 0;
        for (at, run) in runs.iter().enumerate() {
            let (page, n) = (run.page.0, run.pages);
            let outside = PlanError::Page {
                page,
                pages: n,
                ram_pages,
            };
            if n == 0 || page.checked_add(n).is_none_or(|end| end > ram_pages) {
                return Err(outside);
            }
            for page in page..page + n {
                if !seen.insert(RamPage(page)) {
                    return Err(PlanError::Twice(page));
                }
            }
            let end = run.offset.checked_add(u64::from(n) * PAGE_BYTES as u64);
            // The last page of a disk may stick out over its end: a disk is whole sectors, not whole pages.
            let limit = disk_bytes
                .get(run.disk as usize)
                .map(|b| b.next_multiple_of(PAGE_BYTES as u64));
            if end.zip(limit).is_none_or(|(end, limit)| end > limit) {
                return Err(PlanError::Disk {
                    disk: run.disk,
                    offset: run.offset,
                });
            }
            if at > 0 && (runs[at - 1].disk, runs[at - 1].offset) > (run.disk, run.offset) {
                return Err(PlanError::Order(at));
            }
            starts.push(pages);
            pages += n;
        }
        Ok(Plan {
            runs,
            starts,
            pages,
        })
    }

    /// Pages in the plan.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// The runs in disk order.
    pub fn runs(&self) -> &[PlanRun] {
        &self.runs
    }

    /// The plan's first `pages` pages.
    pub fn truncated(&self, pages: u32) -> Plan {
        let mut short = Plan::default();
        short.append(self, 0..pages.min(self.pages));
        short
    }

    /// All pages in pieces of `piece` positions (at least one), in an order in which the pieces of any first part lie
    /// evenly over the plan: 0, ½, ¼, ¾, ⅛ … of it. A sample of the plan, which is in disk order only within a piece.
    pub fn spread(&self, piece: u32) -> Plan {
        let mut spread = Plan::default();
        let pieces = self.pages.div_ceil(piece);
        let order = pieces.next_power_of_two();
        for at in 0..order {
            // The bits of the number, mirrored: van der Corput's sequence.
            let mirrored = at.reverse_bits().checked_shr(order.leading_zeros() + 1);
            let at = mirrored.unwrap_or(0);
            if at < pieces {
                let from = at * piece;
                spread.append(self, from..from.saturating_add(piece).min(self.pages));
            }
        }
        spread
    }

    /// Adds these positions of another plan.
    fn append(&mut self, other: &Plan, positions: Range<u32>) {
        let mut at = positions.start;
        while at < positions.end {
            let run_at = other.starts.partition_point(|start| *start <= at) - 1;
            let (run, into) = (&other.runs[run_at], at - other.starts[run_at]);
            let pages = (run.pages - into).min(positions.end - at);
            self.starts.push(self.pages);
            self.pages += pages;
            self.runs.push(PlanRun {
                page: RamPage(run.page.0 + into),
                pages,
                disk: run.disk,
                offset: run.offset + u64::from(into) * PAGE_BYTES as u64,
            });
            at += pages;
        }
    }

    /// Page, disk and byte offset at `position`, which must be below [`Plan::pages`].
    pub fn at(&self, position: u32) -> (RamPage, u32, u64) {
        let run_at = self.starts.partition_point(|start| *start <= position) - 1;
        let run = &self.runs[run_at];
        let into = position - self.starts[run_at];
        (
            RamPage(run.page.0 + into),
            run.disk,
            run.offset + u64::from(into) * PAGE_BYTES as u64,
        )
    }

    /// The next read from `from` on, below position `to`: neighbours on the disk merged up to `bytes_max`, pages
    /// that `wanted` refuses left out, small gaps read through. None when nothing is left to read.
    pub fn next_read(
        &self,
        from: u32,
        to: u32,
        bytes_max: u32,
        mut wanted: impl FnMut(RamPage) -> bool,
    ) -> Option<ReadOp> {
        let mut read: Option<ReadOp> = None;
        for position in from..to.min(self.pages) {
            let (page, disk, offset) = self.at(position);
            if !wanted(page) {
                continue;
            }
            let read = match &mut read {
                None => read.insert(ReadOp {
                    disk,
                    offset,
                    bytes: 0,
                    pages: vec![],
                    end: 0,
                }),
                Some(open) => {
                    let end = open.offset + u64::from(open.bytes);
                    // The next disk begins at a smaller offset.
                    let follows =
                        open.disk == disk && (open.offset..=end + GAP_BYTES_MAX).contains(&offset);
                    if !follows || offset - open.offset + PAGE_BYTES as u64 > u64::from(bytes_max) {
                        break;
                    }
                    open
                }
            };
            let into = (offset - read.offset) as u32;
            read.pages.push((page, into));
            // Two pages may hold the same block (a file and a reflink of it): the end never moves back.
            read.bytes = read.bytes.max(into + PAGE_BYTES as u32);
            read.end = position + 1;
        }
        read
    }
}

/// A set of pages, a bit each.
#[derive(Debug, Clone, Default)]
pub struct Bitmap {
    words: Vec<u64>,
}

impl Bitmap {
    /// An empty set of pages below `pages`.
    pub fn new(pages: u32) -> Bitmap {
        Bitmap {
            words: vec![0; (pages as usize).div_ceil(64)],
        }
    }

    /// Adds `page`; whether it was not there before.
    pub fn insert(&mut self, page: RamPage) -> bool {
        let (word, bit) = (page.index() / 64, 1 << (page.0 % 64));
        let added = self.words[word] & bit == 0;
        self.words[word] |= bit;
        added
    }

    /// Takes `page` out; whether it was there.
    pub fn remove(&mut self, page: RamPage) -> bool {
        let (word, bit) = (page.index() / 64, 1 << (page.0 % 64));
        let had = self.words[word] & bit != 0;
        self.words[word] &= !bit;
        had
    }

    /// Whether `page` is there.
    pub fn contains(&self, page: RamPage) -> bool {
        self.words[page.index() / 64] & (1 << (page.0 % 64)) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(page: u32, pages: u32, disk: u32, offset: u64) -> PlanRun {
        PlanRun {
            page: RamPage(page),
            pages,
            disk,
            offset,
        }
    }

    const DISKS: [u64; 2] = [1 << 20, 1 << 20];

    #[test]
    fn a_plan_that_cannot_be_is_refused() {
        let plan = |runs: Vec<PlanRun>| Plan::new(runs, 100, &DISKS).map(|plan| plan.pages());
        assert_eq!(plan(vec![run(98, 2, 0, 0)]), Ok(2));
        let beyond = PlanError::Page {
            page: 99,
            pages: 2,
            ram_pages: 100,
        };
        assert_eq!(plan(vec![run(99, 2, 0, 0)]), Err(beyond));
        assert_eq!(
            plan(vec![run(1, 2, 0, 0), run(2, 1, 0, 8192)]),
            Err(PlanError::Twice(2))
        );
        let disk = PlanError::Disk {
            disk: 0,
            offset: (1 << 20) - 4096,
        };
        assert_eq!(plan(vec![run(0, 2, 0, (1 << 20) - 4096)]), Err(disk));
        assert_eq!(
            plan(vec![run(0, 1, 2, 0)]),
            Err(PlanError::Disk { disk: 2, offset: 0 })
        );
        assert_eq!(
            plan(vec![run(0, 1, 1, 0), run(1, 1, 0, 0)]),
            Err(PlanError::Order(1))
        );
        let wraps = run(u32::MAX, 2, 0, u64::MAX - 4096);
        assert!(plan(vec![wraps]).is_err());
    }

    #[test]
    fn a_read_ends_with_its_disk() {
        let plan = Plan::new(vec![run(0, 1, 0, 65536), run(1, 1, 1, 0)], 100, &DISKS).unwrap();
        let read = plan.next_read(0, 2, 1 << 20, |_| true).unwrap();
        assert_eq!((read.disk, read.offset, read.end), (0, 65536, 1));
    }

    #[test]
    fn positions_run_through_the_runs() {
        let plan = Plan::new(vec![run(10, 2, 0, 0), run(5, 3, 0, 65536)], 100, &DISKS).unwrap();
        assert_eq!(plan.at(1), (RamPage(11), 0, 4096));
        assert_eq!(plan.at(2), (RamPage(5), 0, 65536));
        assert_eq!(plan.at(4), (RamPage(7), 0, 65536 + 8192));
        assert_eq!(
            plan.truncated(3).runs(),
            &[run(10, 2, 0, 0), run(5, 1, 0, 65536)]
        );
        assert_eq!(plan.truncated(0).pages(), 0);
    }

    #[test]
    fn a_sample_lies_evenly_over_the_plan_and_is_all_of_it() {
        let runs = vec![run(0, 7, 0, 0), run(20, 4, 0, 65536)];
        let plan = Plan::new(runs, 100, &DISKS).unwrap();
        let first_of =
            |plan: &Plan| -> Vec<u32> { (0..plan.pages()).map(|at| plan.at(at).0.0).collect() };
        let spread = plan.spread(2);
        assert_eq!(first_of(&spread), [0, 1, 21, 22, 4, 5, 2, 3, 23, 6, 20]);
        assert_eq!(spread.at(9), plan.at(6));
        assert_eq!(first_of(&plan.spread(50)), first_of(&plan));
        assert_eq!(Plan::default().spread(2).pages(), 0);
    }

    #[test]
    fn reads_merge_neighbours_read_through_small_gaps_and_stop_at_large_ones() {
        let runs = vec![
            run(0, 2, 0, 0),
            run(9, 1, 0, 8192 + 16384),
            run(20, 1, 0, 65536),
        ];
        let plan = Plan::new(runs, 100, &DISKS).unwrap();
        let read = plan.next_read(0, 4, 1 << 20, |_| true).unwrap();
        assert_eq!(
            (read.offset, read.bytes, read.end),
            (0, 8192 + 16384 + 4096, 3)
        );
        assert_eq!(
            read.pages,
            [(RamPage(0), 0), (RamPage(1), 4096), (RamPage(9), 24576)]
        );
        let read = plan.next_read(3, 4, 1 << 20, |_| true).unwrap();
        assert_eq!((read.offset, read.bytes, read.end), (65536, 4096, 4));
        assert_eq!(plan.next_read(0, 4, 4096, |_| true).unwrap().pages.len(), 1);
        let unwanted = plan
            .next_read(0, 2, 1 << 20, |page| page != RamPage(0))
            .unwrap();
        assert_eq!((unwanted.offset, unwanted.end), (4096, 2));
        assert_eq!(plan.next_read(0, 4, 1 << 20, |_| false), None);
        assert_eq!(plan.next_read(4, 4, 1 << 20, |_| true), None);
    }
}
