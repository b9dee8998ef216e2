#![allow(unsafe_code)] // Maps files of the tests' own: RAM such as QEMU's.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use memmap2::MmapMut;
use rustix::fs::MemfdFlags;

use super::*;

fn memfd(bytes: u64) -> File {
    let file = File::from(rustix::fs::memfd_create("test-ram", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(bytes).unwrap();
    file
}

fn layout(blocks: &[(&str, u64, Option<u64>)]) -> RamLayout {
    let blocks: Vec<RamBlock> = blocks
        .iter()
        .map(|&(name, used_bytes, hva)| RamBlock {
            name: name.into(),
            used_bytes,
            hva,
        })
        .collect();
    let ranges = blocks
        .iter()
        .enumerate()
        .filter(|(_, block)| block.hva.is_some())
        .map(|(index, block)| RamRange {
            gpa: (index as u64) << 32,
            bytes: block.used_bytes,
            block: index,
            offset: 0,
        });
    let ranges = ranges.collect();
    RamLayout { blocks, ranges }
}

fn own_pid() -> i32 {
    std::process::id() as i32
}

#[test]
fn shared_files_are_mapped_and_all_else_is_read_through_the_process() {
    let file = memfd(64 << 12);
    // SAFETY: the file is this test's own and keeps its size.
    let mut shared = unsafe { MmapMut::map_mut(&file).unwrap() };
    let private: Vec<u8> = (0..20_000u32).map(|at| (at % 253) as u8).collect();
    shared[5 << 12..6 << 12].fill(0x5a);
    let layout = layout(&[
        ("shared", 64 << 12, Some(shared.as_ptr() as u64)),
        ("private", 20_000, Some(private.as_ptr() as u64)),
        ("rom", 4096, None),
    ]);
    let ram = QemuRam::open(own_pid(), layout).unwrap();
    assert_eq!(ram.mapped_bytes(), 64 << 12);

    let mut buf = [0; 4096];
    ram.read_block(0, 5 << 12, &mut buf).unwrap();
    assert!(buf.iter().all(|&byte| byte == 0x5a));
    // Written after the mapping was made, where there was a hole then.
    shared[9 << 12..10 << 12].fill(0x77);
    ram.read_block(0, 9 << 12, &mut buf).unwrap();
    assert!(buf.iter().all(|&byte| byte == 0x77));

    let mut both = vec![0; 3 * 4096];
    ram.read_block_pages(&[(1, 100), (0, 5 << 12), (1, 8192)], &mut both)
        .unwrap();
    assert_eq!(both[..4096], private[100..4196]);
    assert!(both[4096..8192].iter().all(|&byte| byte == 0x5a));
    assert_eq!(both[8192..], private[8192..12_288]);

    ram.read(Gpa((1 << 32) + 7), &mut buf).unwrap();
    assert_eq!(buf, private[7..4103]);
    for (block, offset) in [
        (0, 64 << 12),
        (1, 20_000 - 4095),
        (1, u64::MAX),
        (2, 0),
        (3, 0),
    ] {
        assert!(
            ram.read_block(block, offset, &mut buf).is_err(),
            "{block} {offset:#x}"
        );
    }
    assert!(ram.read(Gpa(2 << 32), &mut buf).is_err(), "no RAM there");
}

#[test]
fn a_private_mapping_is_not_what_its_file_is() {
    let file = memfd(4096);
    // SAFETY: the file is this test's own and keeps its size.
    let mut private = unsafe { memmap2::MmapOptions::new().map_copy(&file).unwrap() };
    private[0] = 9;
    let ram = QemuRam::open(
        own_pid(),
        layout(&[("private", 4096, Some(private.as_ptr() as u64))]),
    );
    let mut byte = [0];
    ram.unwrap().read(Gpa(0), &mut byte).unwrap();
    assert_eq!(byte, [9]);
}

#[test]
fn reading_a_hole_allocates_nothing() {
    let file = memfd(256 << 12);
    // SAFETY: the file is this test's own and keeps its size.
    let mut shared = unsafe { MmapMut::map_mut(&file).unwrap() };
    shared[0] = 1;
    let layout = layout(&[("shared", 256 << 12, Some(shared.as_ptr() as u64))]);
    let ram = QemuRam::open(own_pid(), layout).unwrap();
    let before = file.metadata().unwrap().blocks();
    let mut all = vec![1; 256 << 12];
    ram.read(Gpa(0), &mut all).unwrap();
    assert!(all[1..].iter().all(|&byte| byte == 0));
    let mut heads = vec![1; 256 * 16];
    let gpas: Vec<Gpa> = (0..256).map(|page| Gpa(page << 12)).collect();
    ram.read_each(&gpas, &mut heads).unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), before);
}

#[test]
fn a_block_that_is_not_there_is_refused() {
    let error = QemuRam::open(own_pid(), layout(&[("pc.ram", 4096, Some(0x1000))])).unwrap_err();
    assert!(
        matches!(
            error,
            MemoryError::Process {
                address: 0x1000,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn a_read_runs_over_the_border_of_blocks_that_touch_and_over_no_hole() {
    let file = memfd(4096);
    // SAFETY: the file is this test's own and keeps its size.
    let mut shared = unsafe { MmapMut::map_mut(&file).unwrap() };
    shared.fill(0x5a);
    let private = vec![7_u8; 3 * 4096];
    let mut layout = layout(&[
        ("node0", 4096, Some(shared.as_ptr() as u64)),
        ("node1", 3 * 4096, Some(private.as_ptr() as u64)),
    ]);
    let of_node1 = |gpa, offset| RamRange {
        gpa,
        bytes: 4096,
        block: 1,
        offset,
    };
    // A hole of the guest's address space that is none in the block, as below 1 MiB.
    layout.ranges[1] = of_node1(4096, 0);
    layout.ranges.push(of_node1(3 * 4096, 2 * 4096));
    let ram = QemuRam::open(own_pid(), layout).unwrap();
    let mut buf = [0; 6];
    ram.read(Gpa(4093), &mut buf).unwrap();
    assert_eq!(buf, [0x5a, 0x5a, 0x5a, 7, 7, 7]);
    let mut both = [0; 12];
    ram.read_each(&[Gpa(8), Gpa(4094)], &mut both).unwrap();
    assert_eq!(both[..8], [0x5a; 8]);
    assert_eq!(both[8..], [7; 4]);
    for gpa in [2 * 4096 - 3, 3 * 4096 - 3, 4 * 4096 - 3] {
        assert!(ram.read(Gpa(gpa), &mut buf).is_err(), "{gpa:#x}");
        assert!(ram.read_each(&[Gpa(8), Gpa(gpa)], &mut both).is_err());
    }
    let mut over_the_hole = [0; 2 * 4096];
    assert!(ram.read(Gpa(4096 + 2048), &mut over_the_hole).is_err());
}
