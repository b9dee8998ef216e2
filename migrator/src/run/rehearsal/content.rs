//! What only the LAN can carry: a look at pages that lie evenly over guest RAM. Bounded whatever the guest's size, and
//! read only.

use vmi::LiveMemory;

use crate::core::plan::{Bitmap, Plan};
use crate::core::ram::{RamPage, RamTable};
use crate::run::source::pacing::{LOOK_PAGES, are_zero};

/// Pages looked at: 256 MiB of RAM. Of a tenth of them it is then known to 1 %, for one standard deviation.
const LOOKS_MAX: u32 = 64 << 10;

/// How many pages are neither in the plan nor all zero.
pub(super) fn content_pages(memory: &dyn LiveMemory, table: &RamTable, plan: &Plan) -> u64 {
    let mut planned = Bitmap::new(table.pages());
    for run in plan.runs() {
        for page in run.page.0..run.page.0 + run.pages {
            planned.insert(RamPage(page));
        }
    }
    let others: Vec<RamPage> = evenly(table.pages())
        .filter(|page| !planned.contains(*page))
        .collect();
    let looks = others.chunks(LOOK_PAGES as usize);
    let zero: usize = looks
        .map(|pages| are_zero(memory, table, pages.iter().copied()))
        .map(|are_zero| are_zero.iter().filter(|is_zero| **is_zero).count())
        .sum();
    let part = (others.len() - zero) as f64 / others.len().max(1) as f64;
    let unplanned = table.pages() - plan.pages();
    (part * f64::from(unplanned)).round() as u64
}

/// One page of each of as many equal parts as are looked at: not always the same one, since the guest's allocator
/// hands out powers of two, whose first pages are not like the others.
fn evenly(pages: u32) -> impl Iterator<Item = RamPage> {
    let looks = u64::from(pages.min(LOOKS_MAX));
    let start = move |look: u64| look * u64::from(pages) / looks;
    (0..looks).map(move |look| {
        // Multiples of the golden ratio lie evenly in every part (Weyl's sequence).
        let within = (look as u32).wrapping_mul(0x9e37_79b9);
        let into = ((start(look + 1) - start(look)) * u64::from(within)) >> 32;
        RamPage((start(look) + into) as u32)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_lie_evenly_and_never_beyond_ram() {
        let small: Vec<u32> = evenly(5).map(|page| page.0).collect();
        assert_eq!(small, [0, 1, 2, 3, 4]);
        assert_eq!(evenly(0).count(), 0);
        let pages = u32::MAX - 7;
        let mut residues = [0; 8];
        let mut last = None;
        for page in evenly(pages) {
            assert!(page.0 < pages && last < Some(page.0), "{page:?}");
            last = Some(page.0);
            residues[(page.0 % 8) as usize] += 1;
        }
        let eighth = LOOKS_MAX / 8;
        assert!(
            residues
                .iter()
                .all(|n| (eighth * 9 / 10..eighth * 11 / 10).contains(n)),
            "{residues:?}"
        );
    }
}
