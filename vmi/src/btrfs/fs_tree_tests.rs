use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const NODE_BYTES: usize = 4096;
const INO: u64 = 300;
const SIZE_BYTES: u64 = 1 << 20;
const UNREAD: Reason = Reason::ExtentBlockUnread;

fn header(ptr: BlockPtr, nritems: usize) -> Vec<u8> {
    let mut bytes = vec![0; 48];
    bytes.extend(ptr.bytenr.to_le_bytes());
    bytes.extend([0; 24]);
    bytes.extend(ptr.generation.to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend((nritems as u32).to_le_bytes());
    bytes.push(ptr.level);
    bytes
}

fn key((objectid, kind, offset): Key) -> Vec<u8> {
    let parts = [&objectid.to_le_bytes()[..], &[kind], &offset.to_le_bytes()];
    parts.concat()
}

fn node(ptr: BlockPtr, children: &[(Key, BlockPtr)]) -> Vec<u8> {
    let mut bytes = header(ptr, children.len());
    for (first, child) in children {
        bytes.extend(key(*first));
        bytes.extend(child.bytenr.to_le_bytes());
        bytes.extend(child.generation.to_le_bytes());
    }
    bytes.resize(NODE_BYTES, 0);
    bytes
}

fn leaf(ptr: BlockPtr, items: &[(Key, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = header(ptr, items.len());
    let mut end = NODE_BYTES - bytes.len();
    let mut data = Vec::new();
    for (item, content) in items {
        end -= content.len();
        bytes.extend(key(*item));
        bytes.extend((end as u32).to_le_bytes());
        bytes.extend((content.len() as u32).to_le_bytes());
        data.splice(0..0, content.iter().copied());
    }
    bytes.resize(NODE_BYTES - data.len(), 0);
    bytes.extend(data);
    bytes
}

/// A file extent item: (type, compression, disk_bytenr, offset, num_bytes).
fn item(kind: u8, compression: u8, disk_bytenr: u64, offset: u64, num_bytes: u64) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    bytes.extend(num_bytes.to_le_bytes());
    bytes.extend([compression, 0, 0, 0, kind]);
    for word in [disk_bytenr, 1 << 20, offset, num_bytes] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

fn data(offset: u64) -> Key {
    (INO, BTRFS_EXTENT_DATA_KEY, offset)
}

fn at(bytenr: u64, level: u8) -> BlockPtr {
    BlockPtr {
        bytenr,
        generation: 7,
        level,
    }
}

fn search(blocks: &[Vec<u8>], root: u64) -> Vec<Extent> {
    let by_address = blocks.iter().map(|block| {
        let (header, _) = Header::ref_from_prefix(block).unwrap();
        (header.bytenr.get(), Rc::from(&block[..]))
    });
    let by_address: HashMap<u64, Rc<[u8]>> = by_address.collect();
    let mut budget = 1000;
    let mut blocks = Blocks {
        read: &mut |bytenr| by_address.get(&bytenr).cloned().ok_or(UNREAD),
        budget: &mut budget,
    };
    extents(root, (INO, SIZE_BYTES), &mut blocks)
}

fn extent(logical: u64, blocks: u64, physical: Result<u64, Reason>) -> Extent {
    Extent {
        logical,
        blocks,
        physical,
    }
}

#[test]
fn file_extents_of_one_inode_are_found_in_a_leaf() {
    let inline = item(BTRFS_FILE_EXTENT_INLINE, 0, 0, 0, 100)[..21 + 10].to_vec();
    let items = [
        (
            (INO - 1, BTRFS_EXTENT_DATA_KEY, 0),
            item(1, 0, 1 << 20, 0, 4096),
        ),
        ((INO, 1, 0), vec![0; 160]),
        (data(0), inline),
        (data(4096), item(1, 0, 1 << 30, 8192, 8192)),
        // A hole as an item, and one without.
        (data(12288), item(1, 0, 0, 0, 4096)),
        (data(20480), item(1, 1, 1 << 30, 0, 4096)),
        (data(24576), item(2, 0, 1 << 30, 0, 4096)),
        (
            (INO + 1, BTRFS_EXTENT_DATA_KEY, 0),
            item(1, 0, 1 << 20, 0, 4096),
        ),
    ];
    let expected = [
        extent(0, 4096, Err(Reason::InlineData)),
        extent(4096, 8192, Ok((1 << 30) + 8192)),
        extent(20480, 4096, Err(Reason::Compressed)),
        extent(24576, 4096, Err(Reason::Unwritten)),
    ];
    assert_eq!(search(&[leaf(at(16, 0), &items)], 16), expected);
    let mut encrypted = item(1, 0, 1 << 30, 0, 4096);
    encrypted[17] = 1;
    let found = search(&[leaf(at(16, 0), &[(data(0), encrypted)])], 16);
    assert_eq!(found, [extent(0, 4096, Err(Reason::Encrypted))]);
}

/// A root with three leaves: the file begins in the first and ends in the last.
fn three_leaves() -> [Vec<u8>; 4] {
    let regular = |bytenr| item(1, 0, bytenr, 0, 4096);
    let root = node(
        at(16, 1),
        &[
            ((INO - 5, 1, 0), at(32, 0)),
            (data(8192), at(48, 0)),
            (data(16384), at(64, 0)),
        ],
    );
    let first = leaf(
        at(32, 0),
        &[((INO - 5, 1, 0), vec![0; 10]), (data(0), regular(1 << 20))],
    );
    let second = leaf(at(48, 0), &[(data(8192), regular(2 << 20))]);
    let last = leaf(
        at(64, 0),
        &[
            (data(16384), regular(3 << 20)),
            ((INO + 1, BTRFS_EXTENT_DATA_KEY, 0), regular(4 << 20)),
        ],
    );
    [root, first, second, last]
}

#[test]
fn leaves_of_one_file_are_all_found() {
    let expected = [
        extent(0, 4096, Ok(1 << 20)),
        extent(8192, 4096, Ok(2 << 20)),
        extent(16384, 4096, Ok(3 << 20)),
    ];
    assert_eq!(search(&three_leaves(), 16), expected);
}

#[test]
fn what_cannot_be_read_stands_as_such_where_it_covers() {
    let [root, first, _, last] = three_leaves();
    let expected = [
        extent(0, 4096, Ok(1 << 20)),
        extent(8192, 8192, Err(UNREAD)),
        extent(16384, 4096, Ok(3 << 20)),
    ];
    assert_eq!(search(&[root, first, last], 16), expected);
    let all = [extent(0, u64::MAX, Err(UNREAD))];
    assert_eq!(search(&[], 16), all);
}

#[test]
fn a_block_that_is_not_the_one_meant_is_refused() {
    let [root, first, _, last] = three_leaves();
    let other = item(1, 0, 9 << 20, 0, 4096);
    let stale = BlockPtr {
        generation: 6,
        ..at(48, 0)
    };
    for wrong in [stale, at(48, 1)] {
        let second = leaf(wrong, &[(data(8192), other.clone())]);
        let found = search(&[root.clone(), first.clone(), second, last.clone()], 16);
        assert_eq!(found[1], extent(8192, 8192, Err(Reason::BadExtents)));
    }
    // Its address names another block.
    let mut second = leaf(at(48, 0), &[(data(8192), other)]);
    let mut read = |bytenr| match bytenr {
        16 => Ok(Rc::from(&root[..])),
        48 => {
            second[48] = 64;
            Ok(Rc::from(&second[..]))
        }
        _ => Err(UNREAD),
    };
    let mut budget = 10;
    let mut blocks = Blocks {
        read: &mut read,
        budget: &mut budget,
    };
    let found = extents(16, (INO, SIZE_BYTES), &mut blocks);
    assert_eq!(found[1], extent(8192, 8192, Err(Reason::BadExtents)));
}

#[test]
fn leaves_that_make_no_sense_are_bad() {
    let regular = || item(1, 0, 1 << 20, 0, 8192);
    let bad = [
        // Overlapping, falling, a type of the future, cut short, of no length.
        vec![(data(0), regular()), (data(4096), regular())],
        vec![(data(8192), regular()), (data(0), regular())],
        vec![(data(0), item(3, 0, 1 << 20, 0, 4096))],
        vec![(data(0), regular()[..40].to_vec())],
        vec![(data(0), item(1, 0, 1 << 20, 0, 0))],
        vec![(data(0), item(1, 0, u64::MAX, 1, 4096))],
    ];
    let all = [extent(0, u64::MAX, Err(Reason::BadExtents))];
    for items in bad {
        assert_eq!(search(&[leaf(at(16, 0), &items)], 16), all, "{items:x?}");
    }
    let mut too_many = leaf(at(16, 0), &[(data(0), regular())]);
    too_many[96..100].copy_from_slice(&1000u32.to_le_bytes());
    assert_eq!(search(&[too_many], 16), all);
}

#[test]
fn a_tree_that_leads_back_into_itself_ends() {
    let children: Vec<(Key, BlockPtr)> = (0..100).map(|child| (data(child), at(16, 0))).collect();
    let root = node(at(16, 7), &children);
    let found = search(&[root], 16);
    let refused = |extent: &Extent| extent.physical == Err(Reason::BadExtents);
    assert!(
        !found.is_empty() && found.iter().all(refused),
        "levels have to fall"
    );
}

proptest! {
    #[test]
    fn hostile_trees_give_sorted_extents(
        noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..40),
        block in 0usize..4,
    ) {
        let mut blocks = three_leaves();
        for (at, byte) in noise {
            let at = at.index(NODE_BYTES);
            // Not its address, by which the test finds it.
            if !(48..56).contains(&at) {
                blocks[block][at] = byte;
            }
        }
        let found = search(&blocks, 16);
        for extent in &found {
            prop_assert!(extent.blocks > 0);
            prop_assert!(extent.logical.checked_add(extent.blocks).is_some());
        }
        for pair in found.windows(2) {
            prop_assert!(pair[0].logical + pair[0].blocks <= pair[1].logical);
        }
    }
}
