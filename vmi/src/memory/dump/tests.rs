use std::io::Write;

use goblin::elf::header::ET_CORE;
use goblin::elf::program_header::PT_LOAD;
use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::*;

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn pattern(bytes: usize, seed: u8) -> Vec<u8> {
    (0..bytes).map(|at| (at / 7) as u8 ^ seed).collect()
}

/// An ELF core with segments at these guest physical addresses.
fn core(segments: &[(u64, &[u8])]) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    for half in [ET_CORE, 62] {
        bytes.extend(half.to_le_bytes());
    }
    bytes.extend(1u32.to_le_bytes());
    for word in [0u64, 64, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(0u32.to_le_bytes());
    for half in [64, 56, segments.len() as u16 + 1, 64, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    let mut at = 64 + 56 * (segments.len() as u64 + 1);
    let mut header = |kind: u32, gpa: u64, length: u64| {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(4u32.to_le_bytes());
        for word in [at, 0, gpa, length, length, 0] {
            bytes.extend(word.to_le_bytes());
        }
        at += length;
    };
    header(4, 0, 0);
    for (gpa, data) in segments {
        header(PT_LOAD, *gpa, data.len() as u64);
    }
    bytes.extend(segments.iter().flat_map(|(_, data)| data.iter()));
    bytes
}

fn refusal(bytes: &[u8]) -> String {
    Dump::open(file(bytes).path()).unwrap_err().to_string()
}

#[test]
fn raw_ram_begins_at_zero() {
    let bytes = pattern(3 * 4096, 1);
    let file = file(&bytes);
    let dump = Dump::open(file.path()).unwrap();
    let mut buf = [0; 5000];
    dump.read(Gpa(1234), &mut buf).unwrap();
    assert_eq!(buf, bytes[1234..6234]);
    assert!(matches!(
        dump.read(Gpa(3 * 4096 - 1), &mut buf),
        Err(MemoryError::NotRam { .. })
    ));
}

#[test]
fn holes_read_as_zeros() {
    let file = file(&[]);
    file.as_file().set_len(1 << 20).unwrap();
    file.as_file().write_all_at(&[7; 4096], 8192).unwrap();
    let dump = Dump::open(file.path()).unwrap();
    let mut buf = [1; 3 * 4096];
    dump.read(Gpa(4096), &mut buf).unwrap();
    assert!(
        buf[..4096]
            .iter()
            .chain(&buf[8192..])
            .all(|&byte| byte == 0)
    );
    assert!(buf[4096..8192].iter().all(|&byte| byte == 7));
}

#[test]
fn elf_segments_are_where_they_say() {
    let (low, high) = (pattern(8192, 3), pattern(4096, 9));
    let file = file(&core(&[(1 << 32, &high), (0, &low)]));
    let dump = Dump::open(file.path()).unwrap();
    let mut buf = [0; 100];
    dump.read(Gpa(8000), &mut buf).unwrap();
    assert_eq!(buf, low[8000..8100]);
    dump.read(Gpa((1 << 32) + 50), &mut buf).unwrap();
    assert_eq!(buf, high[50..150]);
    assert!(
        dump.read(Gpa(8150), &mut buf).is_err(),
        "over the end of a segment"
    );
    assert!(dump.read(Gpa(1 << 31), &mut buf).is_err());
}

/// A LiME dump of these ranges.
fn lime(ranges: &[(u64, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (gpa, data) in ranges {
        bytes.extend(b"EMiL\x01\0\0\0");
        for word in [*gpa, gpa + data.len() as u64 - 1, 0] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(*data);
    }
    bytes
}

#[test]
fn lime_ranges_are_where_their_headers_say() {
    // 0x9fc00 bytes of conventional memory are no whole pages.
    let (low, high) = (pattern(0x9fc00, 3), pattern(4096, 9));
    let file = file(&lime(&[(1 << 32, &high), (0, &low)]));
    let dump = Dump::open(file.path()).unwrap();
    let mut buf = [0; 100];
    dump.read(Gpa(0x9fc00 - 100), &mut buf).unwrap();
    assert_eq!(buf, low[0x9fc00 - 100..]);
    dump.read(Gpa((1 << 32) + 3996), &mut buf).unwrap();
    assert_eq!(buf, high[3996..]);
    for gpa in [0x9fc00 - 99, 0x9fc00, (1 << 32) - 1, (1 << 32) + 3997] {
        assert!(dump.read(Gpa(gpa), &mut buf).is_err(), "{gpa:#x}");
    }
}

#[test]
fn a_read_runs_over_the_border_of_ranges_that_touch() {
    let (one, two, far) = (pattern(4096, 3), pattern(8192, 9), pattern(4096, 17));
    let ranges: [(u64, &[u8]); 3] = [(4096, &two), (0, &one), (16384, &far)];
    for file in [file(&core(&ranges)), file(&lime(&ranges))] {
        let dump = Dump::open(file.path()).unwrap();
        let mut buf = [0; 6000];
        dump.read(Gpa(4000), &mut buf).unwrap();
        assert_eq!(buf[..96], one[4000..]);
        assert_eq!(buf[96..], two[..5904]);
        assert!(dump.read(Gpa(8000), &mut buf).is_err(), "into a hole");
        assert!(dump.read(Gpa(12_288), &mut buf).is_err(), "over a hole");
    }
}

#[test]
fn lime_dumps_that_cannot_be_are_refused() {
    let whole = lime(&[(0, &[1; 4096]), (8192, &[2; 4096])]);
    let with = |at: usize, bytes: &[u8]| {
        let mut dump = whole.clone();
        dump[at..at + bytes.len()].copy_from_slice(bytes);
        refusal(&dump)
    };
    assert!(refusal(&whole[..whole.len() - 1]).contains("cut short"));
    assert!(refusal(&whole[..4096 + 40]).contains("LiME header at 0x1020"));
    assert!(with(4, &[2]).contains("LiME version 2"));
    assert!(with(4096 + 32, b"EMiX").contains("no LiME header at 0x1020"));
    // The end of the second before its start, and at the very end of the address space.
    let second_end = 4096 + 32 + 16;
    assert!(with(second_end, &[0; 8]).contains("0x2000-0x0 cannot be"));
    assert!(with(second_end, &[0xff; 8]).contains("cut short"));
    assert!(refusal(&lime(&[(0, &[1; 4096]), (2048, &[2; 4096])])).contains("overlaps"));
    assert!(with(16, &[0xff, 0xff, 0xff, 0xff, 0xff]).contains("cut short"));
}

#[test]
fn other_formats_are_refused_by_name() {
    assert!(refusal(b"EMiL").contains("4 bytes"));
    let long = |head: &[u8]| [head, &[0; 8192][head.len()..]].concat();
    assert!(refusal(&long(b"KDUMP   ")).contains("without -z"));
    assert!(refusal(&long(b"LibvirtQemudSavePart")).contains("--memory-only"));
    assert!(refusal(&long(b"\x1f\x8b\x08")).contains("gzip"));
    assert!(refusal(&[1; 5000]).contains("whole pages"));
    // A program, a core of another machine, and one of another byte order.
    for (at, byte) in [(16, 2), (18, 183), (5, 2)] {
        let mut other = core(&[(0, &[0; 4096])]);
        other[at] = byte;
        assert!(refusal(&other).contains("not the core of an x86 guest"));
    }
    let mut other = core(&[(0, &[0; 4096])]);
    other[4] = 1;
    assert!(refusal(&other).contains("32-bit"));
    let cut = core(&[(0, &[0; 4096])]);
    assert!(refusal(&cut[..cut.len() - 1]).contains("cut short"));
    assert!(refusal(&cut[..100]).contains("program headers"));
    let overlap = core(&[(0, &[0; 8192]), (4096, &[0; 4096])]);
    assert!(refusal(&overlap).contains("overlaps"));
    assert!(refusal(&core(&[])).contains("no memory"));
}

proptest! {
    #[test]
    fn hostile_headers_never_panic(
        is_lime in any::<bool>(),
        changes in prop::collection::vec((0usize..240, any::<u8>()), 1..30),
    ) {
        let make = if is_lime { lime } else { core };
        let mut bytes = make(&[(0, &[5; 64]), (1 << 32, &[6; 4096])]);
        for (at, byte) in changes {
            if at < bytes.len() {
                bytes[at] = byte;
            }
        }
        let file = file(&bytes);
        if let Ok(dump) = Dump::open(file.path()) {
            for range in dump.ranges().to_vec() {
                let mut buf = vec![0; range.bytes.min(4096) as usize];
                prop_assert!(dump.read(Gpa(range.gpa), &mut buf).is_ok());
            }
        }
    }
}
