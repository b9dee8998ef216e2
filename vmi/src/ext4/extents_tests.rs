use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::mock::ext4::{header, index_bytes, leaf, leaf_bytes};

fn tree(root: &[u8], blocks: &HashMap<u64, Vec<u8>>) -> Vec<Extent> {
    let mut i_data = [0; I_DATA_BYTES];
    i_data[..root.len()].copy_from_slice(root);
    let mut read = |block, buf: &mut [u8]| {
        let Some(bytes) = blocks.get(&block) else {
            return false;
        };
        buf[..bytes.len()].copy_from_slice(bytes);
        true
    };
    extents(
        &i_data,
        &mut Blocks {
            read: &mut read,
            block_bytes: 4096,
            budget: 1000,
        },
    )
}

fn written(logical: u64, blocks: u64, physical: u64) -> Extent {
    Extent {
        logical,
        blocks,
        physical: Ok(physical),
    }
}

#[test]
fn leaves_in_the_inode_are_extents() {
    let root = leaf(&[(0, 1 << 15, 0x1234_5678_9abc, false), (40_000, 7, 5, true)]);
    let expected = [
        written(0, 1 << 15, 0x1234_5678_9abc),
        Extent {
            logical: 40_000,
            blocks: 7,
            physical: Err(Reason::Unwritten),
        },
    ];
    assert_eq!(tree(&root, &HashMap::new()), expected);
    assert_eq!(tree(&leaf(&[]), &HashMap::new()), []);
}

#[test]
fn deeper_trees_are_read_block_by_block() {
    let blocks = HashMap::from([
        (70, index_bytes(&[(0, 71), (100, 72)], 340, 1)),
        (71, leaf_bytes(&[(0, 10, 500, false)], 340)),
        (
            72,
            leaf_bytes(&[(100, 5, 600, false), (110, 5, 700, false)], 340),
        ),
    ]);
    let root = index_bytes(&[(0, 70)], 4, 2);
    let expected = [
        written(0, 10, 500),
        written(100, 5, 600),
        written(110, 5, 700),
    ];
    assert_eq!(tree(&root, &blocks), expected);
}

#[test]
fn what_cannot_be_read_stands_as_such_where_it_covers() {
    let blocks = HashMap::from([(71, leaf_bytes(&[(0, 10, 500, false)], 340))]);
    let root = index_bytes(&[(0, 71), (100, 72), (200, 71)], 4, 1);
    let expected = [
        written(0, 10, 500),
        Extent {
            logical: 100,
            blocks: 100,
            physical: Err(Reason::ExtentBlockUnread),
        },
        // Block 71 does not belong there.
        Extent {
            logical: 200,
            blocks: (1 << 32) - 200,
            physical: Err(Reason::BadExtents),
        },
    ];
    assert_eq!(tree(&root, &blocks), expected);
}

#[test]
fn trees_that_make_no_sense_are_bad_as_a_whole() {
    let bad = [Extent {
        logical: 0,
        blocks: 1 << 32,
        physical: Err(Reason::BadExtents),
    }];
    let no_magic = [0; I_DATA_BYTES];
    let overlapping = leaf(&[(0, 10, 500, false), (9, 1, 600, false)]);
    let empty_extent = leaf(&[(0, 0, 500, false)]);
    let too_many = header(200, 200, 0);
    let more_than_max = header(3, 2, 0);
    let too_deep = index_bytes(&[(0, 71)], 4, 6);
    let falling = index_bytes(&[(100, 71), (50, 72)], 4, 1);
    for root in [
        &no_magic[..],
        &overlapping,
        &empty_extent,
        &too_many,
        &more_than_max,
        &too_deep,
        &falling,
    ] {
        assert_eq!(tree(root, &HashMap::new()), bad, "{root:x?}");
    }
}

#[test]
fn depth_has_to_fall_by_one() {
    let leaf = leaf_bytes(&[(0, 10, 500, false)], 340);
    let blocks = HashMap::from([(70, leaf), (71, index_bytes(&[(0, 70)], 340, 1))]);
    let bad = [Extent {
        logical: 0,
        blocks: 1 << 32,
        physical: Err(Reason::BadExtents),
    }];
    assert_eq!(
        tree(&index_bytes(&[(0, 70)], 4, 2), &blocks),
        bad,
        "a leaf too early"
    );
    assert_eq!(
        tree(&index_bytes(&[(0, 71)], 4, 1), &blocks),
        bad,
        "an index too late"
    );
    assert_eq!(
        tree(&index_bytes(&[(0, 71)], 4, 2), &blocks),
        [written(0, 10, 500)]
    );
}

#[test]
fn a_tree_without_end_is_read_within_the_budget() {
    // A block's number is where it begins; each has 300 more below, down to depth 0.
    let mut reads = 0;
    let mut read = |start: u64, buf: &mut [u8]| {
        reads += 1;
        let below: Vec<(u32, u64)> = (0..300).map(|at| (start as u32 + at, start + 1)).collect();
        let bytes = index_bytes(&below, 340, if reads == 1 { 1 } else { 0 });
        buf[..bytes.len()].copy_from_slice(&bytes);
        true
    };
    let mut i_data = [0; I_DATA_BYTES];
    let root = index_bytes(&[(0, 0)], 4, 2);
    i_data[..root.len()].copy_from_slice(&root);
    let mut blocks = Blocks {
        read: &mut read,
        block_bytes: 4096,
        budget: 100,
    };
    let found = extents(&i_data, &mut blocks);
    assert_eq!(
        found.last().unwrap().physical,
        Err(Reason::ExtentBlockUnread)
    );
    assert!(reads <= 100, "{reads}");
}

proptest! {
    #[test]
    fn hostile_trees_give_sorted_extents(
        root in prop::collection::vec(any::<u8>(), I_DATA_BYTES),
        depth in 0u16..7, entries in 0u16..6,
        block in prop::collection::vec(any::<u8>(), 256),
    ) {
        let mut i_data: [u8; I_DATA_BYTES] = root.try_into().unwrap();
        i_data[..12].copy_from_slice(&header(entries, 4, depth));
        let mut below = depth;
        let mut read = |number: u64, buf: &mut [u8]| {
            buf[..256].copy_from_slice(&block);
            below = below.saturating_sub((number % 2) as u16);
            buf[..12].copy_from_slice(&header((number % 20) as u16, 20, below));
            true
        };
        let found =
            extents(&i_data, &mut Blocks { read: &mut read, block_bytes: 1024, budget: 500 });
        for extent in &found {
            prop_assert!(extent.blocks > 0 && extent.logical + extent.blocks <= BLOCKS_END);
        }
        for pair in found.windows(2) {
            prop_assert!(pair[0].logical + pair[0].blocks <= pair[1].logical);
        }
    }
}
