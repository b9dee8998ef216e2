//! Which pages are restorable, and for what reasons others are left out.

use super::*;
use crate::mock::cache::{DIRTY, UPTODATE, WRITEBACK};
use crate::mock::ext4::{EXTENTS_FL, leaf};

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
