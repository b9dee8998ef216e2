use proptest::prelude::*;

use super::*;
use crate::btf::Btf;
use crate::btf::tests::Builder;

const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;

/// A kernel in which everything occurs that ISF has a form of its own for.
fn sample() -> Vec<u8> {
    let mut b = Builder::default();
    let long = b.add(1, "long unsigned int", 0, 8, &[64]);
    let byte = b.add(1, "unsigned char", 0, 1, &[8]);
    let array = b.add(3, "", 0, 0, &[byte, long, 32]);
    let pointer = b.add(2, "", 0, long, &[]);
    let inner = b.composite(STRUCT, "", 16, &[("index", long, 0), ("s_id", array, 64)]);
    let union = b.composite(UNION, "", 48, &[("mapping", pointer, 0), ("", inner, 0)]);
    let names = b.enumerators(&[("PG_dirty", 3), ("PG_none", u32::MAX)]);
    let flags = b.add(ENUM, "pageflags", 2, 4, &names);
    let names = b.enumerators(&[("EXTENT_FLAG_PINNED", 0), ("EXTENT_FLAG_LOGGING", 4)]);
    b.add(ENUM, "", 2, 4, &names);
    b.composite(
        STRUCT,
        "page",
        64,
        &[
            ("flags", long, 0),
            ("", union, 64),
            ("state", flags, 56 * 8),
        ],
    );
    let bits = Builder::bit_field(3, 5);
    b.flagged(
        STRUCT,
        "bits",
        8,
        &[("whole", byte, 0), ("few", long, bits)],
    );
    b.add(7, "declared", 0, 0, &[]);
    b.build()
}

fn export(data: &[u8]) -> String {
    let btf = Btf::parse(data).unwrap();
    let symbols = [
        ("linux_banner".to_owned(), 0xffff_ffff_8200_0100),
        ("init_task".to_owned(), 16),
    ];
    let isf = Isf::new(&btf, &[], symbols, b"Linux version 6.1.0-test (x)\n");
    serde_json::to_string(&isf).unwrap()
}

#[test]
fn what_is_written_is_read_back_as_btf_has_it() {
    let data = sample();
    let btf = Btf::parse(&data).unwrap();
    let json = export(&data);
    let isf = Isf::parse(json.as_bytes()).unwrap();
    for name in ["page", "bits", "declared", "absent"] {
        assert_eq!(isf.struct_size(name), btf.struct_size(name), "{name}");
        for member in [
            "flags", "mapping", "index", "s_id", "state", "whole", "few", "absent",
        ] {
            assert_eq!(
                isf.field(name, member),
                btf.field(name, member),
                "{name}.{member}"
            );
        }
    }
    let s_id = isf.field("page", "s_id").unwrap();
    assert_eq!((s_id.offset, s_id.size), (16, 32));
    for (of, constant) in [
        ("pageflags", "PG_dirty"),
        ("pageflags", "PG_none"),
        ("", "EXTENT_FLAG_LOGGING"),
        ("", "PG_dirty"),
    ] {
        assert_eq!(
            isf.enumerator(of, constant),
            btf.enumerator(of, constant),
            "{constant}"
        );
    }
    assert_eq!(isf.symbol("linux_banner"), Some(0xffff_ffff_8200_0100));
    assert_eq!(isf.banner().unwrap(), "Linux version 6.1.0-test (x)\n");
}

#[test]
fn types_that_share_a_name_keep_their_own_members() {
    let mut b = Builder::default();
    let long = b.add(1, "long", 0, 8, &[64]);
    b.composite(STRUCT, "same", 8, &[("first", long, 0)]);
    let second = b.composite(STRUCT, "same", 24, &[("second", long, 64)]);
    b.composite(STRUCT, "holder", 32, &[("of", second, 64)]);
    let data = b.build();
    let json = export(&data);
    let isf = Isf::parse(json.as_bytes()).unwrap();
    assert_eq!(isf.struct_size("same"), Some(8));
    let of = Field {
        offset: 8,
        size: 24,
    };
    assert_eq!(isf.field("holder", "of"), Some(of));
}

#[test]
fn the_json_is_of_the_schema() {
    let value: serde_json::Value = serde_json::from_str(&export(&sample())).unwrap();
    let page = &value["user_types"]["page"];
    assert_eq!(page["kind"], "struct");
    let anonymous = &page["fields"]["unnamed_field_1"];
    assert_eq!(anonymous["anonymous"], true);
    assert_eq!(anonymous["type"]["kind"], "union");
    let unnamed = anonymous["type"]["name"].as_str().unwrap();
    assert!(value["user_types"][unnamed]["fields"]["mapping"].is_object());
    let few = &value["user_types"]["bits"]["fields"]["few"];
    assert_eq!(few["offset"], 0);
    assert_eq!(few["type"]["kind"], "bitfield");
    assert_eq!(
        (&few["type"]["bit_position"], &few["type"]["bit_length"]),
        (&5.into(), &3.into())
    );
    assert_eq!(value["user_types"]["declared"]["size"], 0);
    assert_eq!(value["symbols"]["init_task"]["type"]["name"], "task_struct");
    assert_eq!(value["symbols"]["linux_banner"]["type"]["count"], 30);
    assert_eq!(value["metadata"]["format"], "6.2.0");
    assert_eq!(value["base_types"]["pointer"]["size"], 8);
}

proptest! {
    #[test]
    fn hostile_isf_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut json = export(&sample()).into_bytes();
        for (at, byte) in changes {
            let at = at.index(json.len());
            json[at] = byte;
        }
        if let Ok(isf) = Isf::parse(&json) {
            let _ = crate::Layouts::resolve(&isf);
            let _ = isf.banner();
        }
    }

    #[test]
    fn hostile_btf_exports_without_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..40),
    ) {
        let mut data = sample();
        for (at, byte) in changes {
            let at = at.index(data.len());
            data[at] = byte;
        }
        if let Ok(btf) = Btf::parse(&data) {
            let isf = Isf::new(&btf, &[], [], b"");
            let _ = crate::Layouts::resolve(&isf);
        }
    }
}
