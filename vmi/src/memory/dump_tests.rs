use std::io::Write;

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

#[test]
fn other_formats_are_refused_by_name() {
    assert!(refusal(b"EMiL").contains("4 bytes"));
    let long = |head: &[u8]| [head, &[0; 8192][head.len()..]].concat();
    assert!(refusal(&long(b"EMiL")).contains("LiME"));
    assert!(refusal(&long(b"KDUMP   ")).contains("kdump"));
    assert!(refusal(&[1; 5000]).contains("whole pages"));
    let mut program = core(&[(0, &[0; 4096])]);
    program[16] = 2;
    assert!(refusal(&program).contains("not a 64-bit core"));
    let cut = core(&[(0, &[0; 4096])]);
    assert!(refusal(&cut[..cut.len() - 1]).contains("cut short"));
    let overlap = core(&[(0, &[0; 8192]), (4096, &[0; 4096])]);
    assert!(refusal(&overlap).contains("overlaps"));
    assert!(refusal(&core(&[])).contains("no memory"));
}

proptest! {
    #[test]
    fn hostile_headers_never_panic(
        changes in prop::collection::vec((0usize..240, any::<u8>()), 1..30),
    ) {
        let mut bytes = core(&[(0, &[5; 4096]), (1 << 32, &[6; 4096])]);
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
