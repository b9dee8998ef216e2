//! The page map: which page frames hold which disk blocks, as runs. Two runs may name the same
//! blocks (a page cached twice), never the same frame.

use crate::address::{PAGE_BYTES, Pfn};

/// Adjacent page frames that hold adjacent bytes of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// Index into [`crate::Scan::disks`].
    pub disk: usize,
    /// Bytes from the disk's start; a multiple of 512.
    pub offset: u64,
    /// The first page frame.
    pub pfn: u64,
    pub pages: u64,
}

impl Run {
    fn continues(&self, disk: usize, offset: u64, pfn: u64) -> bool {
        self.disk == disk
            && self.pfn + self.pages == pfn
            && self.offset + self.pages * PAGE_BYTES == offset
    }
}

/// Collects pages in any order.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    runs: Vec<Run>,
}

impl Builder {
    pub(crate) fn push(&mut self, disk: usize, offset: u64, pfn: Pfn) {
        match self.runs.last_mut() {
            Some(last) if last.continues(disk, offset, pfn.0) => last.pages += 1,
            _ => self.runs.push(Run {
                disk,
                offset,
                pfn: pfn.0,
                pages: 1,
            }),
        }
    }

    /// The runs, sorted by disk and offset, as few as there can be.
    pub(crate) fn finish(mut self) -> Vec<Run> {
        self.runs.sort_unstable();
        self.runs.dedup_by(|next, run| {
            let merges = run.continues(next.disk, next.offset, next.pfn);
            if merges {
                run.pages += next.pages;
            }
            merges
        });
        self.runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_sorted_and_merged() {
        let mut builder = Builder::default();
        for (disk, page, pfn) in [(1, 8, 3), (0, 5, 11), (0, 4, 10), (0, 6, 12), (0, 7, 14)] {
            builder.push(disk, page * PAGE_BYTES, Pfn(pfn));
        }
        let expected = [(0, 4, 10, 3), (0, 7, 14, 1), (1, 8, 3, 1)];
        let expected = expected.map(|(disk, page, pfn, pages)| Run {
            disk,
            offset: page * PAGE_BYTES,
            pfn,
            pages,
        });
        assert_eq!(builder.finish(), expected);
    }
}
