//! Scans of hand-made guests with XFS and btrfs: from the kernel's structs to bytes of the disk.

use super::*;
use crate::mock::btrfs::{self, DATA, LEAF, METADATA, MockBtrfs, NODE_BYTES, PREALLOC, ZSTD};
use crate::mock::cache::{DIRTY, LOCKED, UPTODATE};
use crate::mock::xfs::AG_BLOCKS;

const HOLE: u64 = u64::MAX - 2;
const INLINE: u64 = u64::MAX - 1;

fn xfs(sample: &mut Sample) -> Gva {
    let partition = sample.partition;
    sample.guest.super_block("xfs", "vda1", 4096, partition)
}

fn mount_btrfs(sample: &mut Sample) -> (MockBtrfs, u64) {
    let leaf_pfn = sample.folio(0, 0, 0).pfn;
    let partition = sample.partition;
    (sample.guest.btrfs(partition, leaf_pfn), leaf_pfn)
}

/// Pages 0 to `count`, clean.
fn pages(count: u64) -> Vec<(u64, u32, u64)> {
    (0..count).map(|index| (index, 0, UPTODATE)).collect()
}

/// Where the pages of the map are on the partition, by frame.
fn places(scan: &Scan) -> Vec<(u64, u64)> {
    let pages = scan.page_map.iter().flat_map(|run| {
        (0..run.pages).map(|at| (run.pfn + at, run.offset + at * PAGE_BYTES - PARTITION_START))
    });
    let mut pages: Vec<(u64, u64)> = pages.collect();
    pages.sort_unstable();
    pages
}

/// A bit of everything, for scans of memory that has been tampered with.
pub(super) fn add_files(sample: &mut Sample) {
    let sb = xfs(sample);
    let extents: Vec<_> = (0..40)
        .map(|at| (2 * at, 1, at % 4, at, at % 9 == 8))
        .collect();
    let file = sample.guest.xfs_file(sb, 80 * 4096, &extents);
    sample.cache(
        file,
        &[(0, 0, UPTODATE), (2, 0, UPTODATE), (60, 0, UPTODATE)],
    );
    let (mounted, leaf_pfn) = mount_btrfs(sample);
    let items = btrfs::leaf(&[(300, 8192, DATA.0 + 4096, 8192)]);
    sample.guest.write(leaf_pfn * PAGE_BYTES, &items);
    let maps = [(0, 4096, DATA.0, 0), (4096, 4096, DATA.0 + 8192, ZSTD)];
    let file = sample.guest.btrfs_file(&mounted, 300, 16384, &maps);
    sample.cache(file, &pages(4));
}

#[test]
fn files_on_xfs_are_where_their_data_fork_says() {
    let mut sample = Sample::new();
    let sb = xfs(&mut sample);
    let extents = [(0, 2, 3, 17, false), (2, 1, 0, 500, true)];
    let file = sample.guest.xfs_file(sb, 4 * 4096, &extents);
    let folios = sample.cache(file, &pages(4));
    let scan = sample.scan();
    let block = 3 * AG_BLOCKS + 17;
    let expected = [
        (folios[0].pfn, block * 4096),
        (folios[1].pfn, (block + 1) * 4096),
    ];
    assert_eq!(places(&scan), expected);
    let reasons = [(Reason::Unwritten, 1), (Reason::Hole, 1)];
    assert_eq!(scan.reasons(), BTreeMap::from(reasons));
    assert_eq!(scan.structs_torn, 0);
}

#[test]
fn many_extents_on_xfs_are_found_through_the_tree() {
    let mut sample = Sample::new();
    let sb = xfs(&mut sample);
    let extents: Vec<_> = (0..200)
        .map(|at| (2 * at, 1, at % 4, 3 * at, false))
        .collect();
    let file = sample.guest.xfs_file(sb, 400 * 4096, &extents);
    let folios = sample.cache(file, &[(0, 0, UPTODATE), (398, 0, UPTODATE)]);
    let block = |at: u64| ((at % 4) * AG_BLOCKS + 3 * at) * 4096;
    let expected = [(folios[0].pfn, block(0)), (folios[1].pfn, block(199))];
    assert_eq!(places(&sample.scan()), expected);
}

#[test]
fn xfs_leaves_out_what_is_not_plainly_in_its_data_fork() {
    type Spoil = fn(&mut MockGuest, Gva);
    let cases: [(Spoil, Reason); 5] = [
        (
            |guest, inode| {
                let field = guest.layouts.xfs.as_ref().unwrap().i_diflags;
                guest.put(inode, field, 1);
            },
            Reason::Realtime,
        ),
        (
            |guest, inode| {
                let layout = guest.layouts.xfs.clone().unwrap();
                let lock = inode.offset(layout.inode.i_lock.offset.into());
                let count = guest.layouts.locks.rw_semaphore_count.unwrap();
                guest.put(lock, count, 1);
            },
            Reason::Changing,
        ),
        (
            |guest, inode| put_format(guest, inode, 1),
            Reason::InlineData,
        ),
        (
            |guest, inode| {
                put_format(guest, inode, 3);
                put_height(guest, inode, 0);
            },
            Reason::ExtentBlockUnread,
        ),
        (
            |guest, inode| put_height(guest, inode, 200),
            Reason::BadExtents,
        ),
    ];
    for (change, reason) in cases {
        let mut sample = Sample::new();
        let sb = xfs(&mut sample);
        let file = sample.guest.xfs_file(sb, 8192, &[(0, 2, 0, 5, false)]);
        sample.cache(file, &pages(2));
        assert_eq!(sample.scan().restorable_pages(), 2);
        let inode = sample.guest.xfs_inode(file);
        change(&mut sample.guest, inode);
        assert_eq!(sample.scan().reasons(), BTreeMap::from([(reason, 2)]));
    }
}

fn put_format(guest: &mut MockGuest, inode: Gva, format: u64) {
    let layout = guest.layouts.xfs.clone().unwrap();
    let fork = inode.offset(layout.inode.i_df.offset.into());
    guest.put(fork, layout.ifork.if_format, format);
}

fn put_height(guest: &mut MockGuest, inode: Gva, height: u64) {
    let layout = guest.layouts.xfs.clone().unwrap();
    let fork = inode.offset(layout.inode.i_df.offset.into());
    guest.put(fork, layout.ifork.if_height, height);
}

#[test]
fn files_on_btrfs_are_where_maps_and_chunks_say() {
    for older in [false, true] {
        let mut sample = Sample::new();
        let (compressed, prealloc) = if older {
            sample.guest.layouts.btrfs = Ok(btrfs::older_layout());
            (1 << 1, 1 << 2)
        } else {
            (ZSTD, PREALLOC)
        };
        let (mounted, _) = mount_btrfs(&mut sample);
        let maps = [
            (0, 8192, DATA.0 + 4096, 0),
            (8192, 4096, DATA.0 + 65536, compressed),
            (12288, 4096, DATA.0 + 65536, prealloc),
            (16384, 4096, HOLE, 0),
            (20480, 4096, INLINE, 0),
            (24576, 4096, DATA.0 + DATA.1, 0),
        ];
        let file = sample.guest.btrfs_file(&mounted, 300, 7 * 4096, &maps);
        let folios = sample.cache(file, &pages(7));
        let scan = sample.scan();
        let expected = [
            (folios[0].pfn, DATA.2 + 4096),
            (folios[1].pfn, DATA.2 + 8192),
        ];
        assert_eq!(places(&scan), expected);
        let reasons = [
            (Reason::Compressed, 1),
            (Reason::Unwritten, 1),
            (Reason::Hole, 1),
            (Reason::InlineData, 1),
            (Reason::BeyondDevice, 1),
            // The btree_inode.
            (Reason::NotRegular, 1),
        ];
        assert_eq!(scan.reasons(), BTreeMap::from(reasons));
    }
}

#[test]
fn where_extent_maps_are_gone_the_tree_says_it() {
    let mut sample = Sample::new();
    let (mounted, leaf_pfn) = mount_btrfs(&mut sample);
    // The map is newer than the tree.
    let maps = [(4096, 4096, DATA.0 + 65536, 0)];
    let items = [(299, 0, DATA.0, 4096), (300, 0, DATA.0 + 16384, 12288)];
    let file = sample.guest.btrfs_file(&mounted, 300, 16384, &maps);
    let folios = sample.cache(file, &pages(4));
    sample
        .guest
        .write(leaf_pfn * PAGE_BYTES, &btrfs::leaf(&items));
    let scan = sample.scan();
    let expected = [
        (folios[0].pfn, DATA.2 + 16384),
        (folios[1].pfn, DATA.2 + 65536),
        (folios[2].pfn, DATA.2 + 16384 + 8192),
    ];
    assert_eq!(places(&scan), expected);
    let reasons = [(Reason::Hole, 1), (Reason::NotRegular, 1)];
    assert_eq!(scan.reasons(), BTreeMap::from(reasons));

    // Stopped while someone inserted an item.
    let layout = sample.guest.layouts.btrfs.clone().unwrap();
    let lock = layout.extent_buffer.lock.offset.into();
    let lock = mounted.leaf_buffer.offset(lock);
    let count = sample.guest.layouts.locks.rw_semaphore_count.unwrap();
    sample.guest.put(lock, count, 1);
    let scan = sample.scan();
    assert_eq!(places(&scan), expected[1..2]);
    assert_eq!(scan.reasons()[&Reason::Changing], 3);
}

#[test]
fn blocks_of_trees_that_the_guest_gave_up_come_from_the_disk() {
    let mut sample = Sample::new();
    let (mounted, leaf_pfn) = mount_btrfs(&mut sample);
    let file = sample.guest.btrfs_file(&mounted, 300, 4096, &[]);
    let folio = sample.cache(file, &pages(1))[0];
    sample.guest.cache_leaf(&mounted, leaf_pfn, 0);
    let unread = sample.scan().reasons();
    assert_eq!(unread[&Reason::ExtentBlockUnread], 1);
    let on_disk = |bytes: Vec<u8>| -> ScanOptions {
        let read_disk: ReadDisk = Box::new(move |disk, offset, buf| {
            let expected = PARTITION_START + METADATA.2 + LEAF - METADATA.0;
            assert_eq!((disk.name.as_str(), offset), ("vda", expected));
            assert_eq!(buf.len() as u64, NODE_BYTES);
            buf.copy_from_slice(&bytes);
            true
        });
        ScanOptions {
            read_disk: Some(read_disk),
            ..ScanOptions::default()
        }
    };
    let leaf = btrfs::leaf(&[(300, 0, DATA.0 + 4096, 4096)]);
    let scan = sample.scan_with(&on_disk(leaf.clone()));
    assert_eq!(places(&scan), [(folio.pfn, DATA.2 + 4096)]);
    let mut other = leaf;
    other[48] ^= 1;
    let scan = sample.scan_with(&on_disk(other));
    assert_eq!(scan.reasons()[&Reason::BadExtents], 1);
}

#[test]
fn extent_maps_that_are_being_changed_are_not_believed() {
    let mut sample = Sample::new();
    let (mounted, _) = mount_btrfs(&mut sample);
    let maps = [(0, 4096, DATA.0, 0)];
    let file = sample.guest.btrfs_file(&mounted, 300, 4096, &maps);
    sample.cache(file, &pages(1));
    assert_eq!(sample.scan().restorable_pages(), 1);
    let layout = sample.guest.layouts.btrfs.clone().unwrap();
    let lock = layout.extent_map_tree.lock.offset.into();
    let lock = sample.guest.extent_tree(file).offset(lock);
    let wlocked = sample.guest.layouts.locks.qrwlock_wlocked.unwrap();
    sample.guest.put(lock, wlocked, 0xff);
    assert_eq!(sample.scan().reasons()[&Reason::Changing], 1);
}

#[test]
fn a_page_that_someone_holds_locked_is_left_out() {
    let mut sample = Sample::new();
    let sb = xfs(&mut sample);
    let file = sample.guest.xfs_file(sb, 8192, &[(0, 2, 0, 5, false)]);
    let flags = [UPTODATE | LOCKED, UPTODATE | LOCKED | DIRTY];
    sample.cache(file, &[(0, 0, flags[0]), (1, 0, flags[1])]);
    let reasons = [(Reason::Locked, 1), (Reason::Dirty, 1)];
    assert_eq!(sample.scan().reasons(), BTreeMap::from(reasons));
}

#[test]
fn a_file_that_could_not_be_written_is_left_out() {
    let mut sample = Sample::new();
    let sb = xfs(&mut sample);
    let file = sample.guest.xfs_file(sb, 4096, &[(0, 1, 0, 5, false)]);
    sample.cache(file, &pages(1));
    let wb_err = sample.guest.layouts.address_space.wb_err;
    let mapping = sample.guest.mapping(file);
    sample.guest.put(mapping, wb_err, 0x1fb);
    let reasons = BTreeMap::from([(Reason::WritebackFailed, 1)]);
    assert_eq!(sample.scan().reasons(), reasons);
}

#[test]
fn a_file_system_without_types_says_so() {
    let mut sample = Sample::new();
    let sb = xfs(&mut sample);
    let file = sample.guest.xfs_file(sb, 4096, &[(0, 1, 0, 5, false)]);
    sample.cache(file, &pages(1));
    let missing = profiles::MissingFields(vec!["struct xfs_inode".into()]);
    sample.guest.layouts.xfs = Err(missing);
    let reasons = BTreeMap::from([(Reason::NoTypes, 1)]);
    assert_eq!(sample.scan().reasons(), reasons);
}
