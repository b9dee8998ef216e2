//! The page frames met in a scan: each belongs to one folio, so a second owner is a lie or torn.

use crate::address::{Gpa, PAGE_BYTES, Pfn};
use crate::layout::RamRange;
use crate::memory::GuestMemory;

/// One bit a frame of RAM.
pub(super) struct FrameSet {
    ranges: Vec<RamRange>,
    /// For each range the number of frames in the ranges before it.
    before: Vec<u64>,
    taken: Vec<u64>,
}

impl FrameSet {
    pub(super) fn new(mem: &dyn GuestMemory) -> FrameSet {
        let ranges = mem.ranges().to_vec();
        let mut frames = 0;
        let before = ranges.iter().map(|range| {
            let before = frames;
            frames += range.bytes.div_ceil(PAGE_BYTES);
            before
        });
        let before = before.collect();
        FrameSet {
            ranges,
            before,
            taken: vec![0; frames.div_ceil(64) as usize],
        }
    }

    /// Takes adjacent frames; false when one of them is no RAM or already taken, and then none is.
    pub(super) fn claim(&mut self, first: Pfn, frames: u64) -> bool {
        let Some(start) = self.number(first, frames) else {
            return false;
        };
        let bit = |number: u64| ((number / 64) as usize, 1 << (number % 64));
        let numbers = start..start + frames;
        let is_taken = |number| {
            let (word, bit): (usize, u64) = bit(number);
            self.taken[word] & bit != 0
        };
        if numbers.clone().any(is_taken) {
            return false;
        }
        for number in numbers {
            let (word, bit) = bit(number);
            self.taken[word] |= bit;
        }
        true
    }

    fn number(&self, first: Pfn, frames: u64) -> Option<u64> {
        let Gpa(gpa) = first.gpa()?;
        let after = self.ranges.partition_point(|range| range.gpa <= gpa);
        let index = after.checked_sub(1)?;
        let range = &self.ranges[index];
        let inside = gpa - range.gpa;
        let fits = frames.checked_mul(PAGE_BYTES)? <= range.bytes.checked_sub(inside)?;
        fits.then(|| self.before[index] + inside / PAGE_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> FrameSet {
        let ranges = vec![
            RamRange {
                gpa: 0,
                bytes: 100 * PAGE_BYTES,
                block: 0,
                offset: 0,
            },
            RamRange {
                gpa: 1 << 32,
                bytes: 50 * PAGE_BYTES,
                block: 0,
                offset: 100 * PAGE_BYTES,
            },
        ];
        FrameSet {
            ranges,
            before: vec![0, 100],
            taken: vec![0; 3],
        }
    }

    #[test]
    fn a_frame_has_one_owner() {
        let mut set = set();
        assert!(set.claim(Pfn(60), 8));
        assert!(!set.claim(Pfn(67), 2), "frame 67 is taken");
        assert!(set.claim(Pfn(68), 1), "a refused claim takes nothing");
        assert!(set.claim(Pfn(1 << 20), 50));
        assert!(!set.claim(Pfn((1 << 20) + 49), 1));
    }

    #[test]
    fn what_is_no_ram_cannot_be_claimed() {
        let mut set = set();
        assert!(!set.claim(Pfn(100), 1));
        assert!(!set.claim(Pfn(99), 2), "half of it is outside");
        assert!(!set.claim(Pfn(u64::MAX), 1));
    }
}
