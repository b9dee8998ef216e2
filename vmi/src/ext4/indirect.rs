//! The block pointers of ext2 and ext3, which ext4 still reads: twelve direct ones, then blocks of
//! pointers in one, two and three levels. Only branches with cached pages are read: a large file has
//! one block of pointers for every 1024 of its own.

use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use crate::ext4::{BLOCKS_END, Blocks, I_DATA_BYTES};
use crate::place::Extent;
use crate::reason::Reason;

/// EXT4_NDIR_BLOCKS
const DIRECT: usize = 12;

/// The logical blocks that are asked for.
pub(crate) struct Wanted {
    /// Sorted, not overlapping: first and end.
    ranges: Vec<(u64, u64)>,
}

impl Wanted {
    /// From ranges of blocks in rising order.
    pub(crate) fn new(ranges: Vec<(u64, u64)>) -> Wanted {
        Wanted { ranges }
    }

    fn any(&self, start: u64, end: u64) -> bool {
        let after = self.ranges.partition_point(|&(_, to)| to <= start);
        self.ranges.get(after).is_some_and(|&(from, _)| from < end)
    }
}

/// The extents of an inode without extent tree, sorted by logical block, not overlapping: at least
/// those that are wanted. Where a branch could not be read an extent with the reason stands for it.
pub(crate) fn indirect(
    i_data: &[u8; I_DATA_BYTES],
    wanted: &Wanted,
    blocks: &mut Blocks<'_>,
) -> Vec<Extent> {
    let mut walk = Walk {
        wanted,
        pointers_a_block: blocks.block_bytes as u64 / 4,
        blocks,
        extents: Vec::new(),
    };
    let mut logical = 0;
    let pointers = <[U32]>::ref_from_bytes(i_data).unwrap_or_default();
    for (at, pointer) in pointers.iter().enumerate() {
        let level = (at + 1).saturating_sub(DIRECT) as u32;
        walk.branch(pointer.get(), level, logical);
        logical += walk.covered(level);
    }
    walk.extents
}

struct Walk<'w, 'b> {
    wanted: &'w Wanted,
    pointers_a_block: u64,
    blocks: &'w mut Blocks<'b>,
    extents: Vec<Extent>,
}

impl Walk<'_, '_> {
    /// How many blocks of the file a pointer of this level stands for.
    fn covered(&self, level: u32) -> u64 {
        self.pointers_a_block.saturating_pow(level).min(BLOCKS_END)
    }

    fn branch(&mut self, block: u32, level: u32, logical: u64) {
        let end = (logical + self.covered(level)).min(BLOCKS_END);
        if block == 0 || logical >= end || !self.wanted.any(logical, end) {
            return;
        }
        let Some(below) = level.checked_sub(1) else {
            return self.data(block.into(), logical);
        };
        let Some(bytes) = self.blocks.read(block.into()) else {
            let unread = Extent::unusable(logical, end, Reason::ExtentBlockUnread);
            return self.extents.push(unread);
        };
        let pointers = <[U32]>::ref_from_bytes(&bytes).unwrap_or_default();
        for (at, pointer) in (0..).zip(pointers) {
            self.branch(pointer.get(), below, logical + at * self.covered(below));
        }
    }

    fn data(&mut self, physical: u64, logical: u64) {
        if let Some(last) = self.extents.last_mut()
            && last.logical + last.blocks == logical
            && last.physical.map(|first| first + last.blocks) == Ok(physical)
        {
            last.blocks += 1;
            return;
        }
        self.extents.push(Extent {
            logical,
            blocks: 1,
            physical: Ok(physical),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn i_data(pointers: &[(usize, u32)]) -> [u8; I_DATA_BYTES] {
        let mut bytes = [0; I_DATA_BYTES];
        bytes.copy_from_slice(&pointer_block(I_DATA_BYTES, pointers));
        bytes
    }

    fn pointer_block(bytes: usize, pointers: &[(usize, u32)]) -> Vec<u8> {
        let mut block = vec![0; bytes];
        for &(at, pointer) in pointers {
            block[4 * at..][..4].copy_from_slice(&pointer.to_le_bytes());
        }
        block
    }

    fn of(
        i_data: &[u8; I_DATA_BYTES],
        wanted: &[(u64, u64)],
        on_disk: &HashMap<u64, Vec<u8>>,
    ) -> (Vec<Extent>, Vec<u64>) {
        let mut reads = Vec::new();
        let mut read = |block, buf: &mut [u8]| {
            reads.push(block);
            let found = on_disk.get(&block);
            found.map(|bytes| buf.copy_from_slice(bytes)).is_some()
        };
        let mut blocks = Blocks {
            read: &mut read,
            block_bytes: 1024,
            budget: 100,
        };
        let extents = indirect(i_data, &Wanted::new(wanted.to_vec()), &mut blocks);
        (extents, reads)
    }

    fn written(logical: u64, blocks: u64, physical: u64) -> Extent {
        Extent {
            logical,
            blocks,
            physical: Ok(physical),
        }
    }

    #[test]
    fn every_level_is_followed() {
        let block = |pointers: &[(usize, u32)]| pointer_block(1024, pointers);
        let i_data = i_data(&[
            (0, 100),
            (1, 101),
            (3, 103),
            (11, 40),
            (12, 50),
            (13, 60),
            (14, 70),
        ]);
        let on_disk = HashMap::from([
            (50, block(&[(0, 41), (1, 42), (255, 300)])),
            (60, block(&[(1, 61)])),
            (61, block(&[(0, 400), (2, 402)])),
            (70, block(&[(1, 71)])),
            (71, block(&[(2, 72)])),
            (72, block(&[(3, 500)])),
        ]);
        let double = 12 + 256;
        let triple = double + 256 * 256;
        let (extents, _) = of(&i_data, &[(0, BLOCKS_END)], &on_disk);
        let expected = [
            written(0, 2, 100),
            written(3, 1, 103),
            written(11, 3, 40),
            written(12 + 255, 1, 300),
            written(double + 256, 1, 400),
            written(double + 256 + 2, 1, 402),
            written(triple + 256 * 256 + 2 * 256 + 3, 1, 500),
        ];
        assert_eq!(extents, expected);
    }

    #[test]
    fn only_wanted_branches_are_read() {
        let i_data = i_data(&[(12, 50), (13, 60), (14, 70)]);
        let on_disk = HashMap::from([(50, pointer_block(1024, &[(0, 41)]))]);
        let (extents, reads) = of(&i_data, &[(2, 5), (12, 16)], &on_disk);
        assert_eq!((extents, reads), (vec![written(12, 1, 41)], vec![50]));
        let (extents, reads) = of(&i_data, &[(267, 269)], &on_disk);
        let unread = Extent::unusable(268, 268 + 256 * 256, Reason::ExtentBlockUnread);
        assert_eq!((extents, reads), (vec![unread], vec![50, 60]));
    }

    proptest! {
        /// Blocks that point to themselves and each other: bounded, sorted, never a panic.
        #[test]
        fn hostile_pointers_give_sorted_extents(
            root in prop::collection::vec(0u32..4, 15),
            pointers in prop::collection::vec((0usize..256, any::<u32>()), 0..40),
        ) {
            let root: Vec<(usize, u32)> = root.into_iter().enumerate().collect();
            let looped: Vec<(usize, u32)> = pointers.iter().map(|&(at, to)| (at, to % 4)).collect();
            let on_disk = HashMap::from([
                (1, pointer_block(1024, &pointers)),
                (2, pointer_block(1024, &looped)),
            ]);
            let (extents, reads) = of(&i_data(&root), &[(0, BLOCKS_END)], &on_disk);
            prop_assert!(reads.len() <= 100);
            for pair in extents.windows(2) {
                prop_assert!(pair[0].logical + pair[0].blocks <= pair[1].logical);
            }
            prop_assert!(extents.iter().all(|e| e.blocks > 0 && e.logical + e.blocks <= BLOCKS_END));
        }
    }
}
