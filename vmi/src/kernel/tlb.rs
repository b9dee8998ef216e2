//! Translations that were found before: a few thousand pages, each in the one slot that its address
//! gives it, so that neither a walk nor a hostile guest makes it grow. Never tells of a page what
//! the tables did not say when it was walked.

use crate::address::{Gpa, Gva};
use crate::paging::Leaf;

/// Slots of each size: 4 MiB of small pages, 2 GiB of large ones. The struct pages of a guest of
/// 128 GiB fill those.
const SLOTS: usize = 1024;
const SMALL_SHIFT: u32 = 12;
const LARGE_SHIFT: u32 = 21;
/// No page has this number.
const EMPTY: (u64, Gpa) = (u64::MAX, Gpa(0));

/// Pages of one size by their number.
struct Slots {
    shift: u32,
    /// Virtual page number, guest physical address.
    pages: Vec<(u64, Gpa)>,
}

impl Slots {
    fn new(shift: u32) -> Slots {
        Slots {
            shift,
            pages: vec![EMPTY; SLOTS],
        }
    }

    fn slot(&self, va: Gva) -> (u64, usize) {
        let page = va.0 >> self.shift;
        (page, (page % SLOTS as u64) as usize)
    }

    fn get(&self, va: Gva) -> Option<Gpa> {
        let (page, slot) = self.slot(va);
        let (there, start) = self.pages[slot];
        (there == page).then(|| Gpa(start.0 | va.0 & ((1 << self.shift) - 1)))
    }

    fn insert(&mut self, va: Gva, leaf: Leaf) {
        let (page, slot) = self.slot(va);
        let inside = (1 << self.shift) - 1;
        self.pages[slot] = (page, Gpa(leaf.gpa(va).0 & !inside));
    }
}

/// The pages that were met last.
pub(super) struct Tlb {
    small: Slots,
    large: Slots,
}

impl Tlb {
    pub(super) fn new() -> Tlb {
        Tlb {
            small: Slots::new(SMALL_SHIFT),
            large: Slots::new(LARGE_SHIFT),
        }
    }

    pub(super) fn get(&self, va: Gva) -> Option<Gpa> {
        self.large.get(va).or_else(|| self.small.get(va))
    }

    pub(super) fn insert(&mut self, va: Gva, leaf: Leaf) {
        if leaf.bytes >= 1 << LARGE_SHIFT {
            self.large.insert(va, leaf);
        } else {
            self.small.insert(va, leaf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_all_sizes_are_kept_until_another_takes_their_slot() {
        let mut tlb = Tlb::new();
        let leaf = |start, bytes| Leaf {
            start: Gpa(start),
            bytes,
        };
        let (small, large, huge) = (Gva(0x7123), Gva(0x4020_0456), Gva(0x12_3456_789a));
        tlb.insert(small, leaf(0x9000, 1 << 12));
        tlb.insert(large, leaf(0x60_0000, 2 << 20));
        tlb.insert(huge, leaf(0x8000_0000, 1 << 30));
        assert_eq!(tlb.get(small), Some(Gpa(0x9123)));
        assert_eq!(tlb.get(small.offset(0x1000)), None);
        assert_eq!(tlb.get(large), Some(Gpa(0x60_0456)));
        assert_eq!(tlb.get(huge), Some(Gpa(0xb456_789a)));
        tlb.insert(Gva(0x7000 + ((SLOTS as u64) << 12)), leaf(0xa000, 1 << 12));
        assert_eq!(tlb.get(small), None);
    }
}
