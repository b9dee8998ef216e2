use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const VA: u64 = 0xffff_ffff_9bc0_1234;

/// Tables that map the page of `VA`, which ends at table `last` (0: 4 KiB, 1: 2 MiB, 2: 1 GiB).
fn tables(levels: u32, last: u32, target: u64) -> (PageTable, HashMap<u64, u64>) {
    let mut entries = HashMap::new();
    for level in last..levels {
        let table = 0x1000 * u64::from(level + 1);
        let index = VA >> (12 + 9 * level) & 511;
        let is_page = level == last;
        let size = if is_page && level > 0 { PAGE_SIZE } else { 0 };
        let below = if is_page {
            target
        } else {
            0x1000 * u64::from(level)
        };
        // NX and the software bits are not part of the address.
        entries.insert(
            table + 8 * index,
            below | size | PRESENT | 1 << 63 | 1 << 58 | 0x66,
        );
    }
    let root = Gpa(0x1000 * u64::from(levels));
    (PageTable { root, levels }, entries)
}

#[test]
fn every_page_size_and_depth_is_walked() {
    for levels in [4, 5] {
        for (last, target) in [(0, 0x1_2345_6000), (1, 0x1_2340_0000), (2, 0x1_4000_0000)] {
            let (table, entries) = tables(levels, last, target);
            let read = |at: Gpa| Some(entries.get(&at.0).copied().unwrap_or(0));
            let inside = VA & ((1 << (12 + 9 * last)) - 1);
            assert_eq!(table.translate(Gva(VA), read), Some(Gpa(target + inside)));
            let other = Gva(VA ^ 1 << (12 + 9 * last));
            assert_eq!(table.translate(other, read), None, "not present");
            assert_eq!(table.translate(Gva(VA), |_| None), None, "not readable");
        }
    }
}

#[test]
fn cr3_loses_its_pcid() {
    let table = PageTable::from_cr3(0x8000_0000_0123_4fff, 4);
    assert_eq!(table.root, Gpa(0x123_4000));
}

proptest! {
    #[test]
    fn any_entries_end_within_the_levels(
        root: u64, va: u64, levels in 4u32..=5, entries in prop::collection::vec(any::<u64>(), 5),
    ) {
        let mut reads = 0;
        let table = PageTable::from_cr3(root, levels);
        let _ = table.translate(Gva(va), |_| {
            reads += 1;
            Some(entries[reads - 1])
        });
        prop_assert!(reads <= levels as usize);
    }
}
