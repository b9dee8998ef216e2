//! A look at pages that lie evenly over guest RAM: what only the LAN can carry, and after a while what the guest has
//! dirtied. Bounded whatever the guest's size; it reads and never writes.

use vmi::LiveMemory;

use crate::core::digest::{Digest, DigestKey};
use crate::core::plan::{Bitmap, Plan};
use crate::core::ram::{PAGE_BYTES, RamPage, RamTable};
use crate::run::source::pacing::{LOOK_PAGES, read};

/// Pages looked at: 256 MiB of RAM. Of a tenth of them it is then known to 1 %, for one standard deviation.
const LOOKS_MAX: u32 = 64 << 10;

/// Digests of a sample of a guest's pages at one moment.
pub(super) struct Look<'a> {
    memory: &'a dyn LiveMemory,
    table: &'a RamTable,
    key: DigestKey,
    digests: Vec<Digest>,
}

impl<'a> Look<'a> {
    /// Looks.
    pub(super) fn new(memory: &'a dyn LiveMemory, table: &'a RamTable, key: DigestKey) -> Look<'a> {
        let digests = digests(memory, table, &key);
        Look {
            memory,
            table,
            key,
            digests,
        }
    }

    /// How many pages of all are neither in the plan nor all zero.
    pub(super) fn content_pages(&self, plan: &Plan) -> u64 {
        let mut planned = Bitmap::new(self.table.pages());
        for run in plan.runs() {
            for page in run.page.0..run.page.0 + run.pages {
                planned.insert(RamPage(page));
            }
        }
        let zero = self.key.digest(&[0; PAGE_BYTES]);
        let looks = evenly(self.table.pages()).zip(&self.digests);
        let are_zero = looks
            .filter(|(page, _)| !planned.contains(*page))
            .map(|(_, digest)| *digest == zero);
        let content = part(are_zero.map(|is_zero| !is_zero));
        (content * f64::from(self.table.pages() - plan.pages())).round() as u64
    }

    /// Looks again: bytes of all pages that are not what they were.
    pub(super) fn dirtied_bytes(&self) -> f64 {
        let now = digests(self.memory, self.table, &self.key);
        let changed = now.iter().zip(&self.digests).map(|(now, then)| now != then);
        part(changed) * f64::from(self.table.pages()) * PAGE_BYTES as f64
    }
}

/// What part of them is so.
fn part(are: impl Iterator<Item = bool>) -> f64 {
    let (mut all, mut so) = (0, 0);
    for is in are {
        all += 1;
        so += u32::from(is);
    }
    f64::from(so) / f64::from(all.max(1))
}

fn digests(memory: &dyn LiveMemory, table: &RamTable, key: &DigestKey) -> Vec<Digest> {
    let pages: Vec<RamPage> = evenly(table.pages()).collect();
    let mut digests = Vec::with_capacity(pages.len());
    for pages in pages.chunks(LOOK_PAGES as usize) {
        let bytes = read(memory, table, pages.iter().copied());
        let (bytes, _) = bytes.as_chunks::<PAGE_BYTES>();
        digests.extend(bytes.iter().map(|page| key.digest(page)));
    }
    digests
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
