use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::mock::MockGuest;
use crate::mock::cache::{MockFolio, UPTODATE};

const BUDGET: u64 = 100_000;

/// Folios that do not overlap, sorted, from gaps and orders.
fn folios(parts: &[(u64, u32)]) -> Vec<(u64, u32)> {
    let mut at = 0u64;
    let mut folios = Vec::new();
    for &(gap, order) in parts {
        let index = (at + gap).next_multiple_of(1 << order);
        folios.push((index, order));
        at = index + (1 << order);
    }
    folios
}

fn walked(guest: &MockGuest, xarray: Gva) -> Option<BTreeMap<u64, Gva>> {
    let mut found = BTreeMap::new();
    let kernel = guest.kernel();
    let mut budget = BUDGET;
    let done = kernel.xa_for_each(xarray, &mut budget, |index, entry| {
        assert!(found.insert(index, entry).is_none(), "index {index} twice");
    });
    done.ok().map(|()| found)
}

proptest! {
    #[test]
    fn an_xarray_gives_back_what_was_stored(
        parts in prop::collection::vec((0u64..5000, 0u32..=9), 0..40),
        probes in prop::collection::vec(0u64..20_000, 20),
    ) {
        let mut guest = MockGuest::new();
        let xarray = guest.alloc(16);
        let entries: Vec<(u64, u32, u64)> = folios(&parts)
            .into_iter()
            .enumerate()
            .map(|(pfn, (index, order))| (index, order, MockGuest::page(pfn as u64).0))
            .collect();
        guest.xarray(xarray, &entries);
        let expected: BTreeMap<u64, Gva> = entries.iter().map(|e| (e.0, Gva(e.2))).collect();
        prop_assert_eq!(walked(&guest, xarray), Some(expected));
        let kernel = guest.kernel();
        let holds = |index: u64| entries.iter().find(|e| e.0 <= index && index < e.0 + (1 << e.1));
        let ends = entries.iter().flat_map(|e| [e.0, e.0 + (1 << e.1) - 1]);
        for index in ends.chain(probes) {
            let expected = holds(index).map(|e| Gva(e.2));
            prop_assert_eq!(kernel.xa_load(xarray, index), expected, "index {}", index);
        }
        prop_assert_eq!(kernel.xa_load(xarray, 1 << 50), None);
    }
}

#[test]
fn values_siblings_and_retries_are_no_folios() {
    let mut guest = MockGuest::new();
    let xarray = guest.alloc(16);
    let page = MockGuest::page(7).0;
    // A shadow entry, XA_RETRY_ENTRY, XA_ZERO_ENTRY, and a page.
    guest.xarray(
        xarray,
        &[
            (1, 0, 0x1235),
            (2, 0, 256 << 2 | 2),
            (3, 0, 257 << 2 | 2),
            (4, 0, page),
        ],
    );
    assert_eq!(
        walked(&guest, xarray),
        Some(BTreeMap::from([(4, Gva(page))]))
    );
}

#[test]
fn an_xarray_that_leads_back_into_itself_ends() {
    let mut guest = MockGuest::new();
    let xarray = guest.alloc(16);
    let layout = guest.layouts.xa_node;
    let node = guest.alloc(layout.size);
    guest.put(xarray, guest.layouts.xarray.xa_head, node.0 | 2);
    guest.put(node, layout.shift, 60);
    let slots = MockGuest::gpa(node.offset(layout.slots.offset.into()));
    for slot in 0..64 {
        guest.write(slots + 8 * slot, &(node.0 | 2).to_le_bytes());
    }
    assert_eq!(walked(&guest, xarray), None, "the shift does not fall");
    assert_eq!(guest.kernel().xa_load(xarray, u64::MAX), None);
    // Shifts that fall, but every slot leads to the next node: 64^10 paths.
    let mut below = node;
    for level in (0..10).rev() {
        let next = guest.alloc(layout.size);
        let slots = MockGuest::gpa(below.offset(layout.slots.offset.into()));
        for slot in 0..64 {
            guest.write(slots + 8 * slot, &(next.0 | 2).to_le_bytes());
        }
        guest.put(next, layout.shift, 6 * level);
        below = next;
    }
    assert_eq!(walked(&guest, xarray), None, "the budget ends it");
}

#[test]
fn lists_that_are_torn_or_endless_end() {
    let mut guest = MockGuest::new();
    let sb = guest.super_block("ext4", "vda", 4096, Gva(0));
    let inodes: Vec<Gva> = (0..10).map(|_| guest.ext4_file(sb, 0, &[0; 60])).collect();
    let whole = guest.kernel().inode_addresses(sb, 1000);
    assert!(!whole.torn);
    assert_eq!(whole.entries, inodes);
    let bounded = guest.kernel().inode_addresses(sb, 4);
    assert!(bounded.torn && bounded.entries.len() == 4);
    // The sixth is taken out: LIST_POISON1.
    let link = inodes[5].offset(guest.layouts.inode.i_sb_list.offset.into());
    guest.put(link, guest.layouts.list_head.next, 0xdead_0000_0000_0100);
    let torn = guest.kernel().inode_addresses(sb, 1000);
    assert!(torn.torn);
    assert_eq!(torn.entries, inodes[..6]);
    // A ring without the head.
    let first = inodes[2].offset(guest.layouts.inode.i_sb_list.offset.into());
    guest.put(link, guest.layouts.list_head.next, first.0);
    assert!(guest.kernel().inode_addresses(sb, 1000).torn);
}

#[test]
fn folios_say_where_they_belong_and_how_large_they_are() {
    let mut guest = MockGuest::new();
    let sb = guest.super_block("ext4", "vda", 4096, Gva(0));
    let inode = guest.ext4_file(sb, 1 << 20, &[0; 60]);
    guest.cache(
        inode,
        &[MockFolio {
            index: 16,
            order: 4,
            pfn: 1040,
            flags: UPTODATE,
        }],
    );
    let kernel = guest.kernel();
    let folio = kernel.folio(MockGuest::page(1040)).unwrap();
    assert_eq!((folio.pfn, folio.index, folio.pages), (Pfn(1040), 16, 16));
    assert_eq!(folio.mapping, guest.mapping(inode));
    assert!(
        kernel.folio(MockGuest::page(1040).offset(8)).is_err(),
        "no struct page begins there"
    );
    assert!(kernel.folio(Gva(0x1000)).is_err());
}

#[test]
fn names_are_made_printable() {
    let mut guest = MockGuest::new();
    let evil = "a\x1b[2Jb\n\u{85}c";
    let sb = guest.super_block("ext4", evil, 4096, Gva(0));
    let id = guest.kernel().super_block(sb).unwrap().id;
    assert_eq!(id, "a\\u{1b}[2Jb\\n\\u{85}c");
}

#[test]
fn a_disk_is_where_its_parents_say() {
    let mut guest = MockGuest::new();
    let sb = guest.super_block("bdev", "bdev", 4096, Gva(0));
    let bdev = guest.disk(sb, "vda", "0000:00:1f.2", 1 << 30);
    let disk = guest.kernel().disk(guest.gendisk_of(bdev)).unwrap();
    assert_eq!(
        disk.parents,
        ["vda", "virtio0", "0000:00:1f.2", "pci0000:00"]
    );
    let path = disk.path.unwrap().to_string();
    assert_eq!((path.as_str(), disk.bytes), ("pci0000:00/1f.2", 1 << 30));
}

#[test]
fn an_ata_ports_number_is_its_place_among_its_siblings() {
    let mut guest = MockGuest::new();
    let sb = guest.super_block("bdev", "bdev", 4096, Gva(0));
    let names = "sda 3:0:0:0 target3:0:0 host3 ata9 0000:00:1f.2 pci0000:00";
    let names: Vec<&str> = names.split(' ').collect();
    let bdev = guest.disk_below(sb, &names, 1 << 30);
    let path = |guest: &MockGuest| {
        let disk = guest.kernel().disk(guest.gendisk_of(bdev)).unwrap();
        disk.path.map(|path| path.to_string())
    };
    assert_eq!(path(&guest), None, "the port is not among its siblings");
    let port = guest.device_above(bdev, 4);
    let controller = guest.device_above(bdev, 5);
    for name in ["ata8", "0000:00:1f.2:pcie001", "ata7"] {
        let sibling = guest.device(name);
        guest.add_child(controller, sibling);
    }
    guest.add_child(controller, port);
    assert_eq!(path(&guest).as_deref(), Some("pci0000:00/1f.2/ata2.0"));
    let far = guest.device("ata11");
    guest.add_child(controller, far);
    assert_eq!(path(&guest), None, "a sequence with a gap tells nothing");
}

#[test]
fn a_file_has_the_path_that_its_dentries_spell() {
    let mut guest = MockGuest::new();
    let sb = guest.super_block("ext4", "vda", 4096, Gva(0));
    let inode = guest.ext4_file(sb, 0, &[0; 60]);
    let path = |guest: &MockGuest| {
        let kernel = guest.kernel();
        kernel.path(&kernel.inode(inode).unwrap())
    };
    assert_eq!(path(&guest), None, "no dentry is cached");
    let root = guest.dentry(None, "/");
    let folder = guest.dentry(Some(root), "var");
    let file = guest.dentry(Some(folder), "a\nb");
    let alias = file.offset(guest.layouts.dentry.d_u.offset.into());
    guest.put(inode, guest.layouts.inode.i_dentry, alias.0);
    assert_eq!(path(&guest).as_deref(), Some("/var/a\\nb"));
    // Two folders that are each other's parent.
    let parent = guest.layouts.dentry.d_parent;
    let ring = guest.dentry(Some(folder), "ring");
    guest.put(folder, parent, ring.0);
    assert_eq!(path(&guest), None);
}
