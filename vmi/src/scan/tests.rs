use proptest::prelude::*;

use super::*;
use crate::address::{Gva, PAGE_BYTES};
use crate::mock::{
    CACHE_PFN, DIRTY, EXTENTS_FL, MockFolio, MockGuest, PRIVATE, RAM_BYTES, UPTODATE, WRITEBACK,
    index_bytes, leaf, leaf_bytes,
};

const DISK_BYTES: u64 = 1 << 30;
pub(super) const PARTITION_START: u64 = 1 << 20;

/// A guest with a partition that ext4 is on, and a second disk that nobody holds.
pub(super) struct Sample {
    pub(super) guest: MockGuest,
    ext4: Gva,
    pub(super) partition: Gva,
    pub(super) spare: Gva,
    next_pfn: u64,
}

impl Sample {
    pub(super) fn new() -> Sample {
        let mut guest = MockGuest::new();
        let bdev = guest.super_block("bdev", "bdev", 4096, Gva(0));
        let vda = guest.disk(bdev, "vda", "0000:00:02.0", DISK_BYTES);
        let spare = guest.disk(bdev, "vdb", "0000:00:03.0", DISK_BYTES);
        let gendisk = guest.gendisk_of(vda);
        let bytes = DISK_BYTES - PARTITION_START;
        let partition = guest.block_device(bdev, gendisk, PARTITION_START, bytes);
        let ext4 = guest.super_block("ext4", "vda1", 4096, partition);
        Sample {
            guest,
            ext4,
            partition,
            spare,
            next_pfn: CACHE_PFN,
        }
    }

    pub(super) fn folio(&mut self, index: u64, order: u32, flags: u64) -> MockFolio {
        let pfn = self.next_pfn.next_multiple_of(1 << order);
        self.next_pfn = pfn + (1 << order);
        MockFolio {
            index,
            order,
            pfn,
            flags,
        }
    }

    pub(super) fn cache(&mut self, inode: Gva, folios: &[(u64, u32, u64)]) -> Vec<MockFolio> {
        let folios: Vec<MockFolio> = folios
            .iter()
            .map(|&(index, order, flags)| self.folio(index, order, flags))
            .collect();
        self.guest.cache(inode, &folios);
        folios
    }

    pub(super) fn scan(&self) -> Scan {
        self.scan_with(&ScanOptions::default())
    }

    pub(super) fn scan_with(&self, options: &ScanOptions) -> Scan {
        let scan = scan_kernel(&self.guest.kernel(), options);
        assert_sane(&scan);
        scan
    }
}

/// What holds of every scan, whatever the guest's memory says.
fn assert_sane(scan: &Scan) {
    let left_out: u64 = scan.reasons().values().sum();
    assert_eq!(scan.cached_pages(), scan.restorable_pages() + left_out);
    let mapped: u64 = scan.page_map.iter().map(|run| run.pages).sum();
    assert_eq!(mapped, scan.restorable_pages());
    let mut frames = std::collections::HashSet::new();
    for run in &scan.page_map {
        let disk = &scan.disks[run.disk];
        assert!(disk.path.is_some());
        assert!(run.offset + run.pages * PAGE_BYTES <= disk.bytes);
        for pfn in run.pfn..run.pfn + run.pages {
            assert!(
                pfn < RAM_BYTES / PAGE_BYTES && frames.insert(pfn),
                "frame {pfn} twice"
            );
        }
    }
    assert!(scan.page_map.windows(2).all(|pair| pair[0] < pair[1]));
}

#[test]
fn pages_are_restorable_or_left_out_for_a_reason() {
    let mut sample = Sample::new();
    let tree = leaf(&[
        (0, 4, 1000, false),
        (4, 2, 2000, true),
        (8, 16, 3000, false),
    ]);
    let file = sample.guest.ext4_file(sample.ext4, 20 * 4096 + 1, &tree);
    let folios = sample.cache(
        file,
        &[
            (0, 0, UPTODATE),
            (1, 0, UPTODATE | DIRTY),
            (2, 0, UPTODATE | WRITEBACK),
            (3, 0, 0),
            (4, 0, UPTODATE),
            (6, 0, UPTODATE),
            (8, 3, UPTODATE),
            (16, 3, UPTODATE),
        ],
    );
    let scan = sample.scan();
    let reasons = [
        (Reason::NotUptodate, 1),
        (Reason::Dirty, 1),
        (Reason::Writeback, 1),
        (Reason::BeyondSize, 3),
        (Reason::Hole, 1),
        (Reason::Unwritten, 1),
    ];
    assert_eq!(scan.reasons(), BTreeMap::from(reasons));
    assert_eq!(scan.structs_torn, 0);
    let at = |block: u64| PARTITION_START + block * 4096;
    let run = |block, pfn, pages| Run {
        disk: 0,
        offset: at(block),
        pfn,
        pages,
    };
    let expected = [
        run(1000, folios[0].pfn, 1),
        run(3000, folios[6].pfn, 8),
        run(3008, folios[7].pfn, 5),
    ];
    assert_eq!(folios[7].pfn, folios[6].pfn + 8, "so the two runs are one");
    let merged = [
        expected[0],
        Run {
            pages: 13,
            ..expected[1]
        },
    ];
    assert_eq!(scan.page_map, merged);
    assert_eq!(scan.disks[0].name, "vda");
    let path = scan.disks[0].path.as_ref().map(DiskPath::to_string);
    assert_eq!(path.as_deref(), Some("pci0000:00/02.0"));
}

#[test]
fn files_that_are_not_plainly_on_disk_are_left_out_whole() {
    let cases = [
        (EXTENTS_FL | 0x800, Reason::Encrypted),
        (EXTENTS_FL | 0x10_0000, Reason::Verity),
        (EXTENTS_FL | 0x200_0000, Reason::Dax),
        (EXTENTS_FL | 0x4000, Reason::JournalledData),
        (0x1000_0000, Reason::InlineData),
    ];
    for (flags, reason) in cases {
        let mut sample = Sample::new();
        let file = sample
            .guest
            .ext4_file(sample.ext4, 8192, &leaf(&[(0, 2, 10, false)]));
        sample.guest.set_ext4_flags(file, flags);
        sample.cache(file, &[(0, 0, UPTODATE), (1, 0, UPTODATE)]);
        assert_eq!(sample.scan().reasons(), BTreeMap::from([(reason, 2)]));
    }
    let mut sample = Sample::new();
    let directory = sample
        .guest
        .ext4_file(sample.ext4, 4096, &leaf(&[(0, 1, 10, false)]));
    sample.guest.set_mode(directory, 0o040_755);
    sample.cache(directory, &[(0, 0, UPTODATE)]);
    let tmpfs = sample.guest.super_block("tmpfs", "tmpfs", 4096, Gva(0));
    let file = sample.guest.ext4_file(tmpfs, 4096, &[0; 60]);
    sample.cache(file, &[(0, 0, UPTODATE)]);
    let reasons = [(Reason::NotRegular, 1), (Reason::Filesystem, 1)];
    assert_eq!(sample.scan().reasons(), BTreeMap::from(reasons));
}

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
fn with_extent_block(flags: u64) -> (Sample, u64) {
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

#[test]
fn what_contradicts_itself_is_torn() {
    let mut sample = Sample::new();
    let page = sample.guest.layouts.page;
    let file = sample
        .guest
        .ext4_file(sample.ext4, 1 << 20, &leaf(&[(0, 256, 1000, false)]));
    let folios = sample.cache(
        file,
        &[(0, 0, UPTODATE), (1, 0, UPTODATE), (2, 0, UPTODATE)],
    );
    sample
        .guest
        .put(MockGuest::page(folios[0].pfn), page.index, 9);
    sample
        .guest
        .put(MockGuest::page(folios[1].pfn), page.mapping, 0x1234);
    // A second file that claims the third one's frame.
    let other = sample
        .guest
        .ext4_file(sample.ext4, 1 << 20, &leaf(&[(0, 256, 9000, false)]));
    let mapping = sample.guest.mapping(other);
    sample.guest.cache(
        other,
        &[MockFolio {
            index: 2,
            order: 0,
            pfn: folios[2].pfn,
            flags: UPTODATE,
        }],
    );
    let scan = sample.scan();
    assert_eq!(scan.reasons(), BTreeMap::from([(Reason::Torn, 3)]));
    assert_eq!(scan.restorable_pages(), 1);
    // Beyond RAM.
    let bytes = sample.guest.layouts.address_space.i_pages;
    sample.guest.xarray(
        mapping.offset(bytes.offset.into()),
        &[(0, 0, MockGuest::page(1 << 30).0)],
    );
    assert!(sample.scan().reasons()[&Reason::Torn] >= 1);
}

#[test]
fn a_frame_is_in_one_folio() {
    let mut sample = Sample::new();
    let file = sample
        .guest
        .ext4_file(sample.ext4, 1 << 20, &leaf(&[(0, 256, 1000, false)]));
    let large = sample.folio(8, 3, UPTODATE);
    let inside = MockFolio {
        index: 20,
        order: 0,
        pfn: large.pfn + 5,
        flags: UPTODATE,
    };
    sample.guest.cache(file, &[large, inside]);
    let scan = sample.scan();
    assert_eq!(
        (scan.restorable_pages(), scan.reasons()[&Reason::Torn]),
        (8, 1)
    );
}

#[test]
fn a_partition_that_leaves_its_disk_is_refused() {
    let mut sample = Sample::new();
    let sectors = crate::mock::BD_NR_SECTORS;
    let file = sample
        .guest
        .ext4_file(sample.ext4, 4096, &leaf(&[(0, 1, 10, false)]));
    sample.cache(file, &[(0, 0, UPTODATE)]);
    for count in [DISK_BYTES / 512, u64::MAX / 512, u64::MAX] {
        sample.guest.put(sample.partition, sectors, count);
        let scan = sample.scan();
        assert_eq!(scan.restorable_pages(), 0, "{count} sectors");
    }
}

/// A guest with some of everything.
fn busy() -> Sample {
    let (mut sample, _) = with_extent_block(UPTODATE);
    for at in 0..12 {
        let tree = leaf(&[(0, 40, 100 + 50 * at, false), (50, 9, 5000 + 50 * at, true)]);
        let file = sample.guest.ext4_file(sample.ext4, 60 * 4096, &tree);
        let folios = [
            (0, 0, UPTODATE),
            (8, 3, UPTODATE),
            (16, 4, UPTODATE),
            (50, 0, UPTODATE),
        ];
        sample.cache(file, &folios);
    }
    let spare = sample.guest.inode_of(sample.spare);
    sample.cache(
        spare,
        &[(0, 0, UPTODATE), (70, 0, UPTODATE), (5000, 0, DIRTY)],
    );
    super::filesystem_tests::add_files(&mut sample);
    sample
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Bytes, pointers and numbers changed anywhere in the kernel's structs: a scan ends, does not
    /// panic, and what it says holds together.
    #[test]
    fn hostile_memory_never_panics_or_loops(
        bytes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..60),
        words in prop::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0u8..5), 0..30),
    ) {
        let mut sample = busy();
        let words_used: Vec<usize> = (0..sample.guest.ram.len() / 8)
            .filter(|at| sample.guest.ram[8 * at..8 * at + 8] != [0; 8])
            .collect();
        for (at, byte) in bytes {
            let word = words_used[at.index(words_used.len())];
            sample.guest.ram[8 * word + usize::from(byte % 8)] = byte;
        }
        for (at, other, kind) in words {
            let at = 8 * words_used[at.index(words_used.len())];
            let other = 8 * words_used[other.index(words_used.len())];
            let value: [u8; 8] = match kind {
                0 => [0xff; 8],
                1 => [0; 8],
                // Another pointer, so that structs are taken for each other and lists for rings.
                2 | 3 => sample.guest.ram[other..other + 8].try_into().unwrap(),
                _ => (other as u64).to_le_bytes(),
            };
            sample.guest.ram[at..at + 8].copy_from_slice(&value);
        }
        let options = ScanOptions { files_max: 5, ..ScanOptions::default() };
        assert_sane(&scan_kernel(&sample.guest.kernel(), &options));
    }
}
