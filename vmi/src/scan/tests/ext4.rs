//! ext4, ext3 and ext2: extent blocks and blocks of pointers, and what a mount says of all its files.

use super::*;
use crate::mock::cache::{PRIVATE, UPTODATE};
use crate::mock::ext4::{index_bytes, leaf, leaf_bytes};

#[test]
fn files_of_ext3_have_blocks_of_pointers() {
    let mut sample = Sample::new();
    let sb = sample
        .guest
        .super_block("ext3", "vda1", 1024, sample.partition);
    let mut i_data = [0; 60];
    for (at, pointer) in [100u32, 101, 102, 103, 0, 0, 0, 0, 8, 9, 10, 11, 77]
        .iter()
        .enumerate()
    {
        i_data[4 * at..][..4].copy_from_slice(&pointer.to_le_bytes());
    }
    let file = sample.guest.ext4_file(sb, 1 << 20, &i_data);
    sample.guest.set_ext4_flags(file, 0);
    let folios = sample.cache(
        file,
        &[
            (0, 0, UPTODATE),
            (1, 0, UPTODATE),
            (2, 0, UPTODATE),
            (3, 0, UPTODATE),
        ],
    );
    let read_disk: ReadDisk = Box::new(|_, offset, buf| {
        assert_eq!((offset, buf.len()), (PARTITION_START + 77 * 1024, 1024));
        for (at, word) in buf.chunks_exact_mut(4).enumerate() {
            word.copy_from_slice(&(5000 + at as u32).to_le_bytes());
        }
        true
    });
    let options = ScanOptions {
        read_disk: Some(read_disk),
        ..ScanOptions::default()
    };
    let scan = sample.scan_with(&options);
    assert_eq!(scan.reasons(), BTreeMap::from([(Reason::Hole, 1)]));
    let run = |block: u64, folio: usize| Run {
        disk: 0,
        offset: PARTITION_START + block * 1024,
        pfn: folios[folio].pfn,
        pages: 1,
    };
    assert_eq!(scan.page_map, [run(8, 2), run(100, 0), run(5000, 3)]);
}

#[test]
fn a_mount_that_journals_data_or_is_not_ext4s_is_left_out() {
    let mut sample = Sample::new();
    let file = sample
        .guest
        .ext4_file(sample.ext4, 4096, &leaf(&[(0, 1, 10, false)]));
    sample.cache(file, &[(0, 0, UPTODATE)]);
    let ext4 = sample.guest.layouts.ext4.clone().unwrap();
    let info = sample.guest.fs_info(sample.ext4);
    let reasons = |sample: &Sample| sample.scan().reasons();
    for (options, expected) in [
        (0x800, None),
        (0xc00, None),
        (0x400, Some(Reason::JournalledData)),
    ] {
        sample.guest.put(info, ext4.sb_info.s_mount_opt, options);
        let expected: BTreeMap<Reason, u64> = expected.map(|why| (why, 1)).into_iter().collect();
        assert_eq!(reasons(&sample), expected);
    }
    sample.guest.put(info, ext4.sb_info.s_sb, 0);
    assert_eq!(reasons(&sample), BTreeMap::from([(Reason::Filesystem, 1)]));
    sample.guest.put(info, ext4.sb_info.s_sb, sample.ext4.0);
    sample.guest.put(info, ext4.sb_info.s_mount_opt, 0);
    let inode_info = file.container(ext4.inode_info.vfs_inode.offset);
    let sem = inode_info.offset(ext4.inode_info.i_data_sem.offset.into());
    let count = sample.guest.layouts.locks.rw_semaphore_count.unwrap();
    sample.guest.put(sem, count, 1);
    assert_eq!(reasons(&sample), BTreeMap::from([(Reason::Changing, 1)]));
    sample.guest.put(sem, count, 0x100);
    assert_eq!(reasons(&sample), BTreeMap::new(), "readers change nothing");
    sample
        .guest
        .put(file, sample.guest.layouts.inode.i_flags, 1 << 8);
    assert_eq!(reasons(&sample), BTreeMap::from([(Reason::PastCache, 1)]));
}

/// A file whose extents are in block 77, and that block in the device's cache with these flags.
pub(super) fn with_extent_block(flags: u64) -> (Sample, u64) {
    let mut sample = Sample::new();
    let mut tree = [0; 60];
    let root = index_bytes(&[(0, 77)], 4, 1);
    tree[..root.len()].copy_from_slice(&root);
    let file = sample.guest.ext4_file(sample.ext4, 2 * 4096, &tree);
    sample.cache(file, &[(0, 0, UPTODATE), (1, 0, UPTODATE)]);
    let device = sample.guest.inode_of(sample.partition);
    let block = sample.cache(device, &[(77, 0, flags)])[0];
    let extents = leaf_bytes(&[(0, 2, 500, false)], 340);
    sample.guest.write(block.pfn * 4096, &extents);
    (sample, block.pfn)
}

#[test]
fn extent_blocks_come_from_the_devices_cache_or_from_the_disk() {
    let (sample, _) = with_extent_block(UPTODATE);
    assert_eq!(sample.scan().restorable_pages(), 2);

    // Read buffer by buffer, the page itself never becomes up to date.
    let (mut sample, pfn) = with_extent_block(PRIVATE);
    let (page, bh) = (sample.guest.layouts.page, sample.guest.layouts.buffer_head);
    let buffer = sample.guest.alloc(bh.size);
    sample
        .guest
        .put(MockGuest::page(pfn), page.private, buffer.0);
    let unread = BTreeMap::from([(Reason::ExtentBlockUnread, 2), (Reason::NotUptodate, 1)]);
    assert_eq!(
        sample.scan().reasons(),
        unread,
        "the buffer is not up to date"
    );
    sample.guest.put(buffer, bh.b_state, 1);
    assert_eq!(sample.scan().restorable_pages(), 2);

    let (sample, _) = with_extent_block(0);
    assert_eq!(sample.scan().reasons(), unread);
    let read_disk: ReadDisk = Box::new(|disk, offset, buf| {
        assert_eq!(
            (disk.name.as_str(), offset),
            ("vda", PARTITION_START + 77 * 4096)
        );
        let extents = leaf_bytes(&[(0, 2, 600, false)], 340);
        buf[..extents.len()].copy_from_slice(&extents);
        true
    });
    let options = ScanOptions {
        read_disk: Some(read_disk),
        ..ScanOptions::default()
    };
    let scan = sample.scan_with(&options);
    assert_eq!(scan.page_map[0].offset, PARTITION_START + 600 * 4096);
}
