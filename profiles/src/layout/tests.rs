use super::*;
use crate::Btf;
use crate::btf::tests::Builder;

const STRUCT: u32 = 4;
const ENUM: u32 = 6;

#[test]
fn all_that_is_missing_is_named_at_once() {
    let mut b = Builder::default();
    let int = b.int(8);
    b.composite(STRUCT, "list_head", 16, &[("next", int, 0)]);
    b.composite(
        STRUCT,
        "page",
        64,
        &[("flags", int, 0), ("mapping", int, 64)],
    );
    let data = b.build();
    let missing = Layouts::resolve(&Btf::parse(&data).unwrap()).unwrap_err();
    let text = missing.to_string();
    for name in [
        "list_head.prev",
        "page.index|__folio_index",
        "struct super_block",
        "enum pageflags.PG_dirty",
        "enum bh_state_bits.BH_Uptodate",
        "folio._folio_order|_flags_1, page.compound_order",
    ] {
        assert!(text.contains(name), "{name} is not in: {text}");
    }
    for found in ["list_head.next", "super_block.s_inodes"] {
        assert!(!text.contains(found), "{found} is in: {text}");
    }
}

fn order_of(build: impl FnOnce(&mut Builder, u32)) -> FolioOrder {
    let mut b = Builder::default();
    let byte = b.int(1);
    build(&mut b, byte);
    let data = b.build();
    let btf = Btf::parse(&data).unwrap();
    let mut from = Resolver::new(&btf);
    let page = Page::resolve(&mut from);
    folio_order(&mut from, &page)
}

#[test]
fn the_order_is_where_the_kernel_keeps_it() {
    let old = order_of(|b, byte| {
        b.composite(STRUCT, "page", 64, &[("compound_order", byte, 17 * 8)]);
    });
    assert_eq!(
        old.field,
        Field {
            offset: 64 + 17,
            size: 1
        },
        "of the page behind the head"
    );
    let folio = order_of(|b, byte| {
        b.composite(STRUCT, "page", 64, &[("compound_order", byte, 17 * 8)]);
        b.composite(STRUCT, "folio", 128, &[("_folio_order", byte, 81 * 8)]);
    });
    assert_eq!(
        folio.field,
        Field {
            offset: 81,
            size: 1
        }
    );
    let flags = order_of(|b, byte| {
        b.composite(STRUCT, "page", 64, &[]);
        b.composite(STRUCT, "folio", 128, &[("_flags_1", byte, 64 * 8)]);
    });
    assert_eq!((flags.field.offset, flags.mask), (64, 0xff));
}

#[test]
fn flags_are_masks_and_may_be_absent() {
    let mut b = Builder::default();
    let names = b.enumerators(&[("PG_uptodate", 2), ("PG_dirty", 3), ("PG_hwpoison", 22)]);
    b.add(ENUM, "pageflags", 3, 4, &names);
    let data = b.build();
    let btf = Btf::parse(&data).unwrap();
    let mut from = Resolver::new(&btf);
    let flags = PageFlags::resolve(&mut from);
    assert_eq!(
        (flags.uptodate, flags.dirty, flags.hwpoison),
        (1 << 2, 1 << 3, 1 << 22)
    );
    assert_eq!(flags.error, 0, "a kernel without PG_error");
    assert_eq!(
        from.missing.len(),
        4,
        "locked, writeback, head, private: {:?}",
        from.missing
    );
}

#[test]
fn a_member_outside_of_its_struct_is_none() {
    let mut b = Builder::default();
    let long = b.int(8);
    b.composite(
        STRUCT,
        "list_head",
        16,
        &[("next", long, 0), ("prev", long, 9 * 8)],
    );
    b.composite(
        STRUCT,
        "rb_root",
        u32::MAX,
        &[("rb_node", long, 0xffff_ff00)],
    );
    let data = b.build();
    let missing = Layouts::resolve(&Btf::parse(&data).unwrap()).unwrap_err();
    for name in ["list_head.prev", "struct rb_root", "rb_root.rb_node"] {
        assert!(missing.0.iter().any(|missing| missing == name), "{missing}");
    }
    assert!(!missing.0.iter().any(|missing| missing == "list_head.next"));
}

#[test]
fn names_are_asked_for_whatever_is_found() {
    let names = Layouts::names();
    let asked = |name: &str| names.structs.contains_key(name);
    for name in [
        "page",
        "hd_struct",
        "ext4_inode_info",
        "xfs_sb",
        "btrfs_inode",
        "linear_c",
    ] {
        assert!(asked(name), "{name}");
    }
    assert!(names.enums["pageflags"].contains("PG_hwpoison"));
}
