use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const GEOMETRY: Geometry = Geometry {
    sb_agblocks: 1000,
    sb_agblklog: 10,
    sb_agcount: 1 << 20,
};
const DELAYED: u64 = STARTBLOCKMASK | 5;

/// xfs_iext_set: (startoff, blockcount, startblock, unwritten).
fn record(&(startoff, blocks, start, unwritten): &(u64, u64, u64, bool)) -> [u8; 16] {
    let lo = startoff | start << 54;
    let hi = blocks | u64::from(unwritten) << 21 | (start >> 10) << 22;
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&lo.to_le_bytes());
    bytes[8..].copy_from_slice(&hi.to_le_bytes());
    bytes
}

fn leaf_of(records: &[(u64, u64, u64, bool)]) -> Vec<u8> {
    let mut bytes: Vec<u8> = records.iter().flat_map(record).collect();
    bytes.resize(RECORDS_PER_LEAF * RECORD_BYTES, 0);
    // Pointers to the neighbours, which must not be taken for a record.
    bytes.extend([0xff; 16]);
    bytes
}

fn node_of(below: &[(u64, u64)]) -> Vec<u8> {
    let mut words = [KEY_INVALID; 2 * KEYS_PER_NODE];
    for (slot, &(key, at)) in below.iter().enumerate() {
        words[slot] = key;
        words[KEYS_PER_NODE + slot] = at;
    }
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

fn walk(fork: Fork, nodes: &HashMap<u64, Vec<u8>>) -> Result<Vec<Extent>, Reason> {
    let mut read = |at: Gva, buf: &mut [u8]| {
        let bytes = nodes.get(&at.0).and_then(|node| node.get(..buf.len()));
        bytes.map(|bytes| buf.copy_from_slice(bytes)).is_some()
    };
    let mut budget = 1000;
    let mut nodes = Nodes {
        read: &mut read,
        budget: &mut budget,
    };
    extents(&fork, &GEOMETRY, &mut nodes)
}

fn fork(if_height: u64, if_bytes: u64) -> Fork {
    Fork {
        if_format: XFS_DINODE_FMT_EXTENTS,
        if_height,
        if_bytes,
        root: Gva(1),
    }
}

fn written(logical: u64, blocks: u64, physical: u64) -> Extent {
    Extent {
        logical,
        blocks,
        physical: Ok(physical),
    }
}

#[test]
fn records_are_unpacked() {
    let far = ((1 << 19) + 7) << 10 | 900;
    let records = [
        (0, 100, 5, false),
        (100, 3, 50, true),
        (200, 1, DELAYED, false),
        ((1 << 54) - 1, 100, far, false),
    ];
    // No more bytes than there are records: a short root is allocated short.
    let bytes: Vec<u8> = records.iter().flat_map(record).collect();
    let nodes = HashMap::from([(1, bytes)]);
    let nowhere = |logical, blocks, why| Extent {
        logical,
        blocks,
        physical: Err(why),
    };
    let expected = [
        written(0, 100, 5),
        nowhere(100, 3, Reason::Unwritten),
        nowhere(200, 1, Reason::DelayedAllocation),
        written((1 << 54) - 1, 100, ((1 << 19) + 7) * 1000 + 900),
    ];
    assert_eq!(walk(fork(1, 64), &nodes).unwrap(), expected);
    assert_eq!(walk(fork(0, 0), &nodes).unwrap(), []);
}

#[test]
fn deeper_trees_are_walked_in_order() {
    let one: Vec<_> = (0..15).map(|at| (10 * at, 5, 20 * at, false)).collect();
    let nodes = HashMap::from([
        (1, node_of(&[(0, 2), (300, 3)])),
        (2, node_of(&[(0, 4), (150, 5)])),
        (3, node_of(&[(300, 6)])),
        (4, leaf_of(&one)),
        (5, leaf_of(&[(150, 5, 400, false), (200, 5, 500, false)])),
        (6, leaf_of(&[(300, 5, 600, false)])),
    ]);
    let mut expected: Vec<Extent> = (0..15).map(|at| written(10 * at, 5, 20 * at)).collect();
    expected.extend([
        written(150, 5, 400),
        written(200, 5, 500),
        written(300, 5, 600),
    ]);
    assert_eq!(walk(fork(3, 18 * 16), &nodes).unwrap(), expected);
}

#[test]
fn forks_without_extents_say_why() {
    let of_format = |if_format, if_height| Fork {
        if_format,
        ..fork(if_height, 16)
    };
    let nodes = HashMap::new();
    let cases = [
        (XFS_DINODE_FMT_LOCAL, 0, Reason::InlineData),
        (XFS_DINODE_FMT_BTREE, 0, Reason::ExtentBlockUnread),
        (XFS_DINODE_FMT_BTREE, 1, Reason::Torn),
        (XFS_DINODE_FMT_EXTENTS, HEIGHT_MAX + 1, Reason::BadExtents),
        (5, 1, Reason::BadExtents),
    ];
    for (format, height, reason) in cases {
        assert_eq!(walk(of_format(format, height), &nodes), Err(reason));
    }
    assert_eq!(excluded(0x101), Some(Reason::Realtime));
    assert_eq!(excluded(0xfffe), None);
}

#[test]
fn records_that_make_no_sense_are_bad() {
    let bad = [
        [(0, 10, 5, false), (9, 1, 100, false)],
        // Out of the allocation group, beyond the last one.
        [(0, 10, 5, false), (10, 1000, 5, false)],
        [(0, 10, 5, false), (10, 1, 1 << 40, false)],
        // Length 0.
        [(0, 10, 5, false), (10, 0, 1 << 10, false)],
    ];
    for records in bad {
        let nodes = HashMap::from([(1, leaf_of(&records))]);
        let found = walk(fork(1, 32), &nodes);
        assert_eq!(found, Err(Reason::BadExtents), "{records:?}");
    }
}

#[test]
fn a_tree_that_leads_back_into_itself_ends() {
    let below: Vec<(u64, u64)> = (0..16).map(|slot| (slot, 1)).collect();
    let nodes = HashMap::from([(1, node_of(&below))]);
    assert_eq!(
        walk(fork(HEIGHT_MAX, 1 << 20), &nodes),
        Err(Reason::BadExtents)
    );
}

proptest! {
    #[test]
    fn hostile_trees_give_sorted_extents(
        parts in prop::collection::vec(
            (0u64..8, 1u64..9, 0u64..64, any::<bool>()), 1..=RECORDS_PER_LEAF),
        noise in prop::collection::vec((0..NODE_BYTES, any::<u8>()), 0..6),
        if_height in prop_oneof![3 => Just(1), 1 => 0u64..18],
        if_format in prop_oneof![3 => Just(XFS_DINODE_FMT_EXTENTS), 1 => 0u64..6],
        if_bytes: u64,
        (sb_agblocks, sb_agblklog, sb_agcount) in prop_oneof![
            3 => Just((1000, 10, 1 << 20)),
            1 => (any::<u64>(), 0u64..70, any::<u64>()),
        ],
    ) {
        // A leaf as it should be, and then changed.
        let mut startoff = 0;
        let records = parts.into_iter().map(|(gap, blocks, start, unwritten)| {
            let record = (startoff + gap, blocks, start, unwritten);
            startoff += gap + blocks;
            record
        });
        let mut bytes = leaf_of(&records.collect::<Vec<_>>());
        for (at, byte) in noise {
            bytes[at] = byte;
        }
        let mut read = |_: Gva, buf: &mut [u8]| {
            buf.copy_from_slice(&bytes[..buf.len()]);
            true
        };
        let fork = Fork { if_format, if_height, if_bytes, root: Gva(1) };
        let geometry = Geometry { sb_agblocks, sb_agblklog, sb_agcount };
        let mut budget = 300;
        let mut nodes = Nodes { read: &mut read, budget: &mut budget };
        let found = extents(&fork, &geometry, &mut nodes).unwrap_or_default();
        for pair in found.windows(2) {
            prop_assert!(pair[0].logical + pair[0].blocks <= pair[1].logical);
        }
    }
}
