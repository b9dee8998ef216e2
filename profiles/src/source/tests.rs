//! Sources made by the compiler of this machine: every form that debug information comes in has to
//! say the same.

use std::collections::BTreeSet;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::types::{Field, Names, Struct};

/// Structs with all that makes layouts hard.
const SOURCE: &str = r#"
typedef unsigned long pgoff_t;
enum pageflags { PG_locked, PG_dirty = 4, PG_none = -1 };
enum { EXTENT_FLAG_PINNED, EXTENT_FLAG_FILLING = 7 };
enum { NOT_ASKED_FOR };
struct list_head { struct list_head *next, *prev; };
struct page {
    volatile unsigned long flags;
    union {
        struct { const pgoff_t index; struct list_head lru; };
        struct { void *mapping; unsigned few : 3; unsigned more : 13; unsigned short after; };
    };
    enum pageflags state;
    char name[4][8];
    unsigned char slots[];
};
struct declared;
union both { int one; struct declared *other; };
struct page *a(struct page *p) { struct inner { int x; } i = { 1 }; p->state = PG_dirty + i.x; return p; }
int b(union both *u) { return u->one + EXTENT_FLAG_FILLING + NOT_ASKED_FOR; }
"#;

fn names() -> Names {
    let structs = ["page", "list_head", "both", "declared", "inner", "absent"];
    let constants = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    Names {
        structs: structs
            .map(|name| (name.to_owned(), BTreeSet::new()))
            .into(),
        enums: [
            ("pageflags".to_owned(), constants(&["PG_dirty"])),
            (String::new(), constants(&["EXTENT_FLAG_PINNED"])),
        ]
        .into(),
    }
}

fn expected() -> Recording {
    let of = |size, members: &[(&str, u32, u32)]| Struct {
        size,
        members: members
            .iter()
            .map(|&(name, offset, size)| (name.to_owned(), Field { offset, size }))
            .collect(),
    };
    let constants = |constants: &[(&str, i64)]| {
        constants
            .iter()
            .map(|&(name, value)| (name.to_owned(), value))
            .collect()
    };
    let page = [
        ("flags", 0, 8),
        ("index", 8, 8),
        ("lru", 16, 16),
        ("mapping", 8, 8),
        ("after", 18, 2),
        ("state", 32, 4),
        ("name", 36, 32),
        ("slots", 68, 0),
    ];
    Recording {
        structs: [
            ("page".to_owned(), of(72, &page)),
            (
                "list_head".to_owned(),
                of(16, &[("next", 0, 8), ("prev", 8, 8)]),
            ),
            ("both".to_owned(), of(8, &[("one", 0, 4), ("other", 0, 8)])),
        ]
        .into(),
        enums: [
            (
                "pageflags".to_owned(),
                constants(&[("PG_locked", 0), ("PG_dirty", 4), ("PG_none", -1)]),
            ),
            (
                String::new(),
                constants(&[
                    ("EXTENT_FLAG_PINNED", 0),
                    ("EXTENT_FLAG_FILLING", 7),
                    ("NOT_ASKED_FOR", 0),
                ]),
            ),
        ]
        .into(),
    }
}

struct Compiled {
    folder: tempfile::TempDir,
}

impl Compiled {
    fn new() -> Compiled {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.c"), SOURCE).unwrap();
        Compiled { folder }
    }

    fn run(&self, program: &str, arguments: &[&str]) -> bool {
        let status = Command::new(program)
            .args(arguments)
            .current_dir(self.folder.path())
            .output();
        status
            .unwrap_or_else(|error| panic!("{program}: {error}"))
            .status
            .success()
    }

    fn object(&self, arguments: &[&str]) -> Vec<u8> {
        let always = ["-c", "a.c", "-o", "a.o"];
        assert!(
            self.run("gcc", &[&always[..], arguments].concat()),
            "gcc {arguments:?}"
        );
        std::fs::read(self.folder.path().join("a.o")).unwrap()
    }
}

fn recorded(elf: &[u8]) -> Recording {
    let file = ElfFile::parse(elf).unwrap();
    let sections = file.debug_sections().unwrap().expect("debug information");
    dwarf::record(&sections, &names()).unwrap()
}

#[test]
fn dwarf_of_every_form_says_the_same() {
    let compiled = Compiled::new();
    for arguments in [
        &["-g", "-gdwarf-5"][..],
        &["-g", "-gdwarf-4"],
        &["-g", "-gdwarf-3", "-gstrict-dwarf"],
        &["-g", "-gdwarf-2", "-gstrict-dwarf"],
        &["-g", "-gz=zlib"],
        &["-g", "-O2", "-fno-pie", "-mcmodel=kernel"],
    ] {
        let elf = compiled.object(arguments);
        assert_eq!(recorded(&elf), expected(), "gcc {arguments:?}");
    }
}

#[test]
fn debug_files_apart_and_old_sections_are_read() {
    let compiled = Compiled::new();
    compiled.object(&["-g"]);
    assert!(compiled.run("objcopy", &["--only-keep-debug", "a.o", "a.debug"]));
    let apart = std::fs::read(compiled.folder.path().join("a.debug")).unwrap();
    assert_eq!(recorded(&apart), expected());
    assert!(compiled.run(
        "objcopy",
        &["--compress-debug-sections=zlib-gnu", "a.o", "a.zdebug"]
    ));
    let old = std::fs::read(compiled.folder.path().join("a.zdebug")).unwrap();
    assert_eq!(recorded(&old), expected());
}

#[test]
fn damaged_files_never_panic() {
    let elf = Compiled::new().object(&["-g", "-gz=zlib"]);
    let mut runner = proptest::test_runner::TestRunner::default();
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12);
    let outcome = runner.run(&changes, |changes| {
        let mut elf = elf.clone();
        for (at, byte) in changes {
            let at = at.index(elf.len());
            elf[at] = byte;
        }
        let mut files = Files::default();
        let _ = files.add(Path::new("a.o"), elf.into());
        let _ = files.profile();
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn kinds_are_told_by_content() {
    let mut files = Files::default();
    let map = b"ffffffff81000000 T _text\nffffffff81000000 T _stext\n".as_slice();
    assert!(is_of_kernel(map));
    files.add(Path::new("System.map"), map.into()).unwrap();
    assert_eq!(files.symbols["_stext"], 0xffff_ffff_8100_0000);
    let stub = b"ffffffffffffffff B The real System.map is in the -dbg package\n".as_slice();
    let stub = files.add(Path::new("System.map"), stub.into());
    assert!(matches!(stub, Err(SourceError::SystemMap(_))));
    let noise = files.add(Path::new("noise"), [1, 2, 3].as_slice().into());
    assert!(matches!(noise, Err(SourceError::Unknown(_))));
    assert!(matches!(
        files.profile(),
        Err(SourceError::MissingFields(_))
    ));

    let profile = crate::profile::tests::sample("00ff").to_json();
    let xz = xz(profile.as_bytes()).unwrap();
    assert!(is_of_kernel(&xz));
    files.add(Path::new("profile.json.xz"), xz.into()).unwrap();
    assert_eq!(files.release.as_deref(), Some("6.1.0-test"));
    assert_eq!(files.build_id.as_deref(), Some("00ff"));
    let other = profile.replace("6.1.0-test", "6.1.0-other");
    let other = files.add(Path::new("other.json"), other.as_bytes().into());
    assert!(matches!(other, Err(SourceError::DifferentKernels(..))));

    let mut core = b"\x7fELF".to_vec();
    core.resize(64, 0);
    core[16] = 4;
    assert!(!is_of_kernel(&core), "a dump of a guest");
}

#[test]
fn every_compression_is_undone() {
    use std::io::Write;
    let text = b"what is repeated is repeated is repeated is repeated".repeat(100);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&text).unwrap();
    let zstd = ruzstd::encoding::compress_to_vec(
        text.as_slice(),
        ruzstd::encoding::CompressionLevel::Fastest,
    );
    // As the kernel's build does: a block with its length before it, and the length of all behind.
    let block = lz4_flex::block::compress(&text);
    let mut lz4 = b"\x02\x21\x4c\x18".to_vec();
    lz4.extend((block.len() as u32).to_le_bytes());
    lz4.extend(&block);
    lz4.extend((text.len() as u32).to_le_bytes());
    for compressed in [gzip.finish().unwrap(), xz(&text).unwrap(), zstd, lz4] {
        let magic = compressed[..4].to_vec();
        assert!(compress::is_compressed(&compressed), "{magic:02x?}");
        assert_eq!(
            compress::decompress(&compressed).unwrap(),
            text,
            "{magic:02x?}"
        );
        let damaged = compress::decompress(&compressed[..compressed.len() / 2]);
        assert!(damaged.is_err(), "{magic:02x?}");
    }
}
