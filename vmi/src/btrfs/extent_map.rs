//! Extent maps (fs/btrfs/extent_map.h), what the kernel keeps of file extents in memory. Two shapes:
//! `block_start`, or in newer kernels `disk_bytenr` and `offset`. Pure; never takes a gap for a hole.

use crate::btrfs::split_at_end;
use crate::place::Extent;
use crate::reason::Reason;

const EXTENT_MAP_LAST_BYTE: u64 = u64::MAX - 3;
const EXTENT_MAP_HOLE: u64 = u64::MAX - 2;
const EXTENT_MAP_INLINE: u64 = u64::MAX - 1;
/// Only older kernels have it.
const EXTENT_MAP_DELALLOC: u64 = u64::MAX;

/// One extent map as read, its flags already told apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExtentMap {
    pub(crate) start: u64,
    pub(crate) len: u64,
    /// block_start, or disk_bytenr.
    pub(crate) address: u64,
    /// Added to the address where it is one.
    pub(crate) offset: u64,
    /// Where the extent on disk ends.
    pub(crate) disk_end: u64,
    pub(crate) compressed: bool,
    pub(crate) prealloc: bool,
}

impl ExtentMap {
    /// The extent in bytes; None when it makes no sense.
    fn extent(&self) -> Option<Extent> {
        let physical = match self.address {
            EXTENT_MAP_HOLE => Err(Reason::Hole),
            EXTENT_MAP_INLINE => Err(Reason::InlineData),
            EXTENT_MAP_DELALLOC => Err(Reason::DelayedAllocation),
            EXTENT_MAP_LAST_BYTE => return None,
            _ if self.compressed => Err(Reason::Compressed),
            _ if self.prealloc => Err(Reason::Unwritten),
            address => Ok(address.checked_add(self.offset)?),
        };
        // A hole may reach to the end of all files.
        let blocks = self.len.min(u64::MAX - self.start);
        (blocks > 0).then_some(Extent {
            logical: self.start,
            blocks,
            physical,
        })
    }
}

/// Extents in bytes of a file of so many, in the order of the tree; holes are extents too.
///
/// # Errors
/// When they overlap or make no sense.
pub(crate) fn extents(maps: &[ExtentMap], size_bytes: u64) -> Result<Vec<Extent>, Reason> {
    let mut extents: Vec<Extent> = Vec::with_capacity(maps.len());
    for map in maps {
        let free_from = extents.last().map_or(0, |last| last.logical + last.blocks);
        let extent = map.extent().filter(|extent| extent.logical >= free_from);
        let extent = extent.ok_or(Reason::Torn)?;
        extents.extend(split_at_end(extent, map.disk_end, size_bytes));
    }
    Ok(extents)
}

/// Whether sorted extents leave a gap below `end`.
pub(crate) fn has_gap(extents: &[Extent], end: u64) -> bool {
    let covered = extents.iter().try_fold(0, |covered, extent| {
        (extent.logical <= covered).then_some(extent.logical + extent.blocks)
    });
    covered.is_none_or(|covered| covered < end)
}

/// `first`, and in its gaps what `second` has there. Both sorted and free of overlaps.
pub(crate) fn fill_gaps(first: &[Extent], second: &[Extent]) -> Vec<Extent> {
    let mut filled = Vec::with_capacity(first.len() + second.len());
    let mut rest = second.iter().copied().peekable();
    let mut covered = 0;
    let end = Extent {
        logical: u64::MAX,
        blocks: 0,
        physical: Err(Reason::Hole),
    };
    for extent in first.iter().chain([&end]) {
        while let Some(other) = rest.peek().copied() {
            if other.logical >= extent.logical {
                break;
            }
            filled.extend(clip(&other, covered, extent.logical));
            if other.logical + other.blocks > extent.logical {
                break;
            }
            rest.next();
        }
        filled.push(*extent);
        covered = extent.logical + extent.blocks;
    }
    filled.pop();
    filled
}

/// What of an extent lies between `start` and `end`.
fn clip(extent: &Extent, start: u64, end: u64) -> Option<Extent> {
    let from = extent.logical.max(start);
    let to = (extent.logical + extent.blocks).min(end);
    let skipped = from - extent.logical;
    (from < to).then(|| Extent {
        logical: from,
        blocks: to - from,
        physical: extent.physical.map(|at| at.saturating_add(skipped)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(start: u64, len: u64, address: u64) -> ExtentMap {
        ExtentMap {
            start,
            len,
            address,
            offset: 0,
            disk_end: 0,
            compressed: false,
            prealloc: false,
        }
    }

    fn extent(logical: u64, blocks: u64, physical: Result<u64, Reason>) -> Extent {
        Extent {
            logical,
            blocks,
            physical,
        }
    }

    #[test]
    fn maps_are_extents_or_say_why_not() {
        let with_offset = ExtentMap {
            offset: 8192,
            ..map(0, 4096, 1 << 30)
        };
        let compressed = ExtentMap {
            compressed: true,
            ..map(4096, 4096, 1 << 20)
        };
        let prealloc = ExtentMap {
            prealloc: true,
            ..map(8192, 4096, 1 << 20)
        };
        let maps = [
            with_offset,
            compressed,
            prealloc,
            map(12288, 4096, EXTENT_MAP_INLINE),
            map(16384, 4096, EXTENT_MAP_DELALLOC),
            map(20480, u64::MAX, EXTENT_MAP_HOLE),
        ];
        let expected = [
            extent(0, 4096, Ok((1 << 30) + 8192)),
            extent(4096, 4096, Err(Reason::Compressed)),
            extent(8192, 4096, Err(Reason::Unwritten)),
            extent(12288, 4096, Err(Reason::InlineData)),
            extent(16384, 4096, Err(Reason::DelayedAllocation)),
            extent(20480, u64::MAX - 20480, Err(Reason::Hole)),
        ];
        assert_eq!(extents(&maps, 1 << 20).unwrap(), expected);
        for bad in [
            vec![map(0, 8192, 1), map(4096, 4096, 2)],
            vec![map(0, 0, 1)],
            vec![map(0, 4096, EXTENT_MAP_LAST_BYTE)],
            vec![ExtentMap {
                offset: u64::MAX,
                ..map(0, 4096, 1)
            }],
        ] {
            assert_eq!(extents(&bad, 1 << 20), Err(Reason::Torn), "{bad:?}");
        }
    }

    #[test]
    fn a_gap_is_not_a_hole() {
        let maps = [extent(0, 10, Ok(1)), extent(10, 10, Err(Reason::Hole))];
        assert!(!has_gap(&maps, 20));
        assert!(has_gap(&maps, 21));
        assert!(has_gap(&maps[1..], 20));
        assert!(has_gap(&[], 1) && !has_gap(&[], 0));
    }

    #[test]
    fn maps_win_over_the_tree() {
        let maps = [extent(10, 10, Ok(1000)), extent(30, 10, Err(Reason::Hole))];
        let items = [
            extent(0, 35, Ok(5000)),
            extent(36, 10, Ok(6000)),
            extent(50, 10, Err(Reason::Compressed)),
        ];
        let expected = [
            extent(0, 10, Ok(5000)),
            extent(10, 10, Ok(1000)),
            extent(20, 10, Ok(5020)),
            extent(30, 10, Err(Reason::Hole)),
            extent(40, 6, Ok(6004)),
            extent(50, 10, Err(Reason::Compressed)),
        ];
        assert_eq!(fill_gaps(&maps, &items), expected);
        assert_eq!(fill_gaps(&[], &items), items);
        assert_eq!(fill_gaps(&maps, &[]), maps);
    }

    /// Extents of these lengths with gaps of these lengths before them.
    fn sorted(parts: &[(u64, u64)], base: u64) -> Vec<Extent> {
        let mut at = 0;
        let extents = parts.iter().map(|&(gap, blocks)| {
            let logical = at + gap;
            at = logical + blocks;
            extent(logical, blocks, Ok(base + logical))
        });
        extents.collect()
    }

    proptest! {
        #[test]
        fn every_byte_comes_from_the_first_that_has_it(
            first in prop::collection::vec((0u64..5, 1u64..5), 0..12),
            second in prop::collection::vec((0u64..5, 1u64..5), 0..12),
        ) {
            let (first, second) = (sorted(&first, 1000), sorted(&second, 5000));
            let filled = fill_gaps(&first, &second);
            for pair in filled.windows(2) {
                prop_assert!(pair[0].logical + pair[0].blocks <= pair[1].logical);
            }
            let at = |extents: &[Extent], byte: u64| {
                let holds = |e: &&Extent| e.logical <= byte && byte < e.logical + e.blocks;
                extents.iter().find(holds).map(|e| e.physical.unwrap() + byte - e.logical)
            };
            for byte in 0..130 {
                prop_assert_eq!(at(&filled, byte), at(&first, byte).or(at(&second, byte)));
            }
        }
    }
}
