//! Caches of block devices, and what lies between a file system and its disks.

use super::*;
use crate::mock::block::BD_NR_SECTORS;
use crate::mock::cache::UPTODATE;
use crate::mock::ext4::leaf;

#[test]
fn a_disks_cache_counts_where_nothing_else_is() {
    let mut sample = Sample::new();
    let (partition, spare) = (
        sample.guest.inode_of(sample.partition),
        sample.guest.inode_of(sample.spare),
    );
    sample.cache(partition, &[(5, 0, UPTODATE)]);
    let vda = sample.guest.part0_of(sample.partition);
    let whole = sample.guest.inode_of(vda);
    let first = PARTITION_START / PAGE_BYTES;
    let table = sample.cache(whole, &[(0, 0, UPTODATE), (first, 0, UPTODATE)])[0];
    let folio = sample.cache(spare, &[(7, 0, UPTODATE)])[0];
    let held = BTreeMap::from([(Reason::DeviceHeld, 2)]);
    let run = |disk, page: u64, folio: MockFolio| Run {
        disk,
        offset: page * 4096,
        pfn: folio.pfn,
        pages: 1,
    };
    let expected = [run(0, 0, table), run(1, 7, folio)];
    let scan = sample.scan();
    assert_eq!(
        (scan.reasons(), scan.page_map),
        (held.clone(), expected.to_vec())
    );

    // A claim of the partition, as the kernel marks it on both.
    let holders = sample.guest.layouts.block_device.bd_holders.unwrap();
    sample.guest.put(vda, holders, 1);
    sample.guest.put(sample.partition, holders, 1);
    let scan = sample.scan();
    assert_eq!((scan.reasons(), scan.page_map), (held, expected.to_vec()));

    sample.guest.put(sample.spare, holders, 1);
    let scan = sample.scan();
    assert_eq!(scan.reasons(), BTreeMap::from([(Reason::DeviceHeld, 3)]));
    assert_eq!(scan.page_map, expected[..1]);
}

#[test]
fn a_partition_without_mount_has_a_cache_of_its_own() {
    let mut sample = Sample::new();
    let gendisk = sample.guest.gendisk_of(sample.spare);
    let sb = sample.guest.super_block("bdev", "bdev", 4096, Gva(0));
    let part = sample.guest.block_device(sb, gendisk, 1 << 21, 1 << 21);
    let (inode, whole) = (
        sample.guest.inode_of(part),
        sample.guest.inode_of(sample.spare),
    );
    let folio = sample.cache(inode, &[(3, 0, UPTODATE)])[0];
    // The same block once more: who wrote it last is not known here.
    sample.cache(whole, &[((1 << 21) / PAGE_BYTES + 3, 0, UPTODATE)]);
    let scan = sample.scan();
    assert_eq!(scan.reasons(), BTreeMap::from([(Reason::DeviceHeld, 1)]));
    let expected = Run {
        disk: 1,
        offset: (1 << 21) + 3 * 4096,
        pfn: folio.pfn,
        pages: 1,
    };
    assert_eq!(scan.page_map, [expected]);
}

#[test]
fn a_partition_that_leaves_its_disk_is_refused() {
    let mut sample = Sample::new();
    let file = sample
        .guest
        .ext4_file(sample.ext4, 4096, &leaf(&[(0, 1, 10, false)]));
    sample.cache(file, &[(0, 0, UPTODATE)]);
    for count in [DISK_BYTES / 512, u64::MAX / 512, u64::MAX] {
        sample.guest.put(sample.partition, BD_NR_SECTORS, count);
        let scan = sample.scan();
        assert_eq!(scan.restorable_pages(), 0, "{count} sectors");
    }
}

#[test]
fn logical_volumes_reach_through_partitions_to_the_disks() {
    let mut sample = Sample::new();
    let guest = &mut sample.guest;
    let bdev = guest.super_block("bdev", "bdev", 4096, Gva(0));
    let (partition, spare) = (sample.partition, sample.spare);
    let below = guest.mapped(
        bdev,
        "dm-0",
        &[
            ("linear", 64 << 10, Some((partition, 1 << 20))),
            ("linear", 6 << 10, Some((spare, 3 << 20))),
            ("linear", 58 << 10, Some((spare, 1 << 20))),
        ],
    );
    let volume = guest.mapped(
        bdev,
        "dm-1",
        &[
            ("linear", 96 << 10, Some((below, 8 << 10))),
            ("crypt", 32 << 10, None),
        ],
    );
    let sb = guest.super_block("ext4", "dm-1", 4096, volume);
    let file = guest.ext4_file(sb, 32 * 4096, &leaf(&[(0, 32, 0, false)]));
    let flags = UPTODATE;
    let indices = [0, 13, 14, 15, 16, 23, 24, 31].map(|index| (index, 0, flags));
    let folios = sample.cache(file, &indices);
    // The volume's own cache is its file system's; the cache of an unused one is not.
    let scan = sample.scan();
    let crypt = Reason::of_dm_target("crypt");
    assert_eq!(crypt.name(), "device mapper target crypt");
    let reasons = [(Reason::SplitBlocks, 1), (crypt, 2)];
    assert_eq!(scan.reasons(), BTreeMap::from(reasons));
    let run = |disk, offset, folio: usize| Run {
        disk,
        offset,
        pfn: folios[folio].pfn,
        pages: 1,
    };
    let in_partition = PARTITION_START + (1 << 20) + (8 << 10);
    let expected = [
        run(0, in_partition, 0),
        run(0, in_partition + 13 * 4096, 1),
        run(1, (1 << 20) + (2 << 10), 4),
        run(1, (1 << 20) + (30 << 10), 5),
        run(1, 3 << 20, 2),
    ];
    assert_eq!(scan.page_map, expected);
}

#[test]
fn a_mapped_device_without_mount_has_a_cache_of_its_own() {
    let mut sample = Sample::new();
    let bdev = sample.guest.super_block("bdev", "bdev", 4096, Gva(0));
    let linear = ("linear", 1 << 20, Some((sample.spare, 1 << 20)));
    let volume = sample.guest.mapped(bdev, "dm-0", &[linear]);
    let holders = sample.guest.layouts.block_device.bd_holders.unwrap();
    sample.guest.put(sample.spare, holders, 1);
    let (inode, whole) = (
        sample.guest.inode_of(volume),
        sample.guest.inode_of(sample.spare),
    );
    let folio = sample.cache(inode, &[(3, 0, UPTODATE)])[0];
    sample.cache(whole, &[(0, 0, UPTODATE)]);
    let scan = sample.scan();
    assert_eq!(scan.reasons(), BTreeMap::from([(Reason::DeviceHeld, 1)]));
    let expected = Run {
        disk: 1,
        offset: (1 << 20) + 3 * 4096,
        pfn: folio.pfn,
        pages: 1,
    };
    assert_eq!(scan.page_map, [expected]);
}

#[test]
fn a_mapped_device_on_itself_is_on_no_disk() {
    let mut sample = Sample::new();
    let bdev = sample.guest.super_block("bdev", "bdev", 4096, Gva(0));
    let linear = ("linear", 1 << 20, Some((sample.spare, 0)));
    let volume = sample.guest.mapped(bdev, "dm-0", &[linear]);
    let sb = sample.guest.super_block("ext4", "dm-0", 4096, volume);
    let file = sample
        .guest
        .ext4_file(sb, 4096, &leaf(&[(0, 1, 10, false)]));
    sample.cache(file, &[(0, 0, UPTODATE)]);
    assert_eq!(sample.scan().restorable_pages(), 1);
    let dev = sample.guest.dm_dev_of(volume);
    let field = sample.guest.layouts.dm.as_ref().unwrap().dev.bdev;
    sample.guest.put(dev, field, volume.0);
    assert_eq!(
        sample.scan().reasons(),
        BTreeMap::from([(Reason::NotOnDisk, 1)])
    );
    // Another struct in the table's place.
    let md = sample.guest.layouts.dm.as_ref().unwrap().mapped_device;
    let private = sample.guest.layouts.gendisk.private_data;
    let gendisk = sample.guest.gendisk_of(volume);
    sample
        .guest
        .put(Gva(sample.guest.get(gendisk, private)), md.disk, 0);
    assert_eq!(sample.scan().reasons(), BTreeMap::from([(Reason::Torn, 1)]));
}
