use proptest::prelude::*;

use super::*;
use crate::Btf;
use crate::btf::tests::Builder;

const STRUCT: u32 = 4;

pub(crate) fn sample(build_id: &str) -> Profile {
    let mut b = Builder::default();
    let long = b.int(8);
    b.composite(
        STRUCT,
        "list_head",
        16,
        &[("next", long, 0), ("prev", long, 64)],
    );
    b.composite(
        STRUCT,
        "rb_root",
        8,
        &[("rb_node", long, 0), ("not_asked_for", long, 0)],
    );
    b.composite(STRUCT, "not_asked_for", 8, &[]);
    let data = b.build();
    let kernel = Identity {
        release: "6.1.0-test".into(),
        build_id: Some(build_id.into()),
    };
    let symbol = |name: &str| match name {
        "_stext" => Some(0xffff_ffff_9100_0000),
        "super_blocks" => Some(0xffff_ffff_9200_1230),
        _ => None,
    };
    Profile::new(kernel, &Btf::parse(&data).unwrap(), 0x1000_0000, symbol)
}

#[test]
fn a_profile_holds_what_is_asked_for_and_no_more() {
    let json = sample("00ff").to_json();
    let expected = r#"{
  "pct-vmi-profile": 1,
  "kernel": {
    "release": "6.1.0-test",
    "build_id": "00ff"
  },
  "asked": "ASKED",
  "symbols": {
    "_stext": "0xffffffff81000000",
    "super_blocks": "0xffffffff82001230"
  },
  "types": {
    "structs": {
      "list_head": {
        "size": 16,
        "members": {
          "next": [
            0,
            8
          ],
          "prev": [
            8,
            8
          ]
        }
      },
      "rb_root": {
        "size": 8,
        "members": {
          "rb_node": [
            0,
            8
          ]
        }
      }
    },
    "enums": {}
  }
}
"#;
    let asked = Layouts::names().digest();
    assert_eq!(json, expected.replace("ASKED", &asked));
    assert_eq!(Profile::parse(json.as_bytes()).unwrap(), sample("00ff"));
}

#[test]
fn symbols_move_with_the_kernel() {
    let profile = sample("00ff");
    let stext = 0xffff_ffff_a200_0000;
    assert_eq!(
        profile.address("super_blocks", stext),
        Some(0xffff_ffff_a300_1230)
    );
    assert_eq!(profile.address("_stext", stext), Some(stext));
    assert_eq!(profile.address("vmemmap_base", stext), None);
}

#[test]
fn what_is_no_profile_is_refused() {
    let json = sample("00ff").to_json();
    let parse = |json: &str| Profile::parse(json.as_bytes());
    assert!(matches!(parse("{}"), Err(ProfileError::NotAProfile(_))));
    let newer = json.replace("profile\": 1", "profile\": 2");
    assert!(matches!(parse(&newer), Err(ProfileError::Version(2))));
    for (from, to) in [
        ("\"release\"", "\"extra\": 1, \"release\""),
        ("\"size\"", "\"extra\": 1, \"size\""),
        ("\"enums\"", "\"extra\": 1, \"enums\""),
        ("0xffffffff82001230", "82001230"),
    ] {
        let changed = json.replacen(from, to, 1);
        assert!(
            matches!(parse(&changed), Err(ProfileError::Json(_))),
            "{to}"
        );
    }
    let large = vec![b' '; PROFILE_BYTES_MAX + 1];
    assert!(matches!(
        Profile::parse(&large),
        Err(ProfileError::TooLarge(_))
    ));
}

#[test]
fn one_profile_completes_another() {
    let mut first = sample("00ff");
    first.types.structs.remove("rb_root");
    let mut second = sample("00ff");
    second.types.structs.get_mut("list_head").unwrap().size = 99;
    first.complete_from(&second);
    assert_eq!(first, sample("00ff"), "what it had is not replaced");
}

#[test]
fn a_profile_of_a_release_that_asked_for_less_is_told_from_todays() {
    let mut old = sample("00ff");
    assert!(old.is_current());
    let mut names = Layouts::names();
    names.structs.get_mut("inode").unwrap().remove("i_mode");
    old.asked = names.digest();
    assert!(!old.is_current());
    old.complete_from(&sample("00ff"));
    assert!(old.is_current(), "all was asked for again");
}

proptest! {
    #[test]
    fn hostile_profiles_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        let mut json = sample("00ff").to_json().into_bytes();
        for (at, byte) in changes {
            let at = at.index(json.len());
            json[at] = byte;
        }
        if let Ok(profile) = Profile::parse(&json) {
            let _ = profile.address("super_blocks", 0);
            let _ = Layouts::resolve(&profile);
        }
    }
}
