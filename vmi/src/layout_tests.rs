use proptest::prelude::*;

use super::*;

/// QEMU 7.2, q35, 1 GiB: as it printed them.
const RAMBLOCK: &str =
    "              Block Name    PSize              Offset               Used              Total
                  pc.ram    4 KiB  0x0000000000000000 0x0000000040000000 0x0000000040000000
   0000:00:01.0/vga.vram    4 KiB  0x0000000040080000 0x0000000001000000 0x0000000001000000
    /rom@etc/acpi/tables    4 KiB  0x0000000041080000 0x0000000000020000 0x0000000000200000
                 pc.bios    4 KiB  0x0000000040000000 0x0000000000040000 0x0000000000040000
                  pc.rom    4 KiB  0x0000000040040000 0x0000000000020000 0x0000000000020000
";

const MTREE: &str = "FlatView #0
 AS \"I/O\", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS \"memory\", root: system
 AS \"cpu-memory-0\", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram
  00000000000a0000-00000000000affff (prio 1, ram): vga.vram
  00000000000b0000-00000000000bffff (prio 1, i/o): vga-lowmem @0000000000010000
  00000000000c0000-00000000000e7fff (prio 0, rom): pc.ram @00000000000c0000
  00000000000e8000-000000003fffffff (prio 0, ram): pc.ram @00000000000e8000 KVM
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios

FlatView #2
 AS \"cpu-smm-0\", root: smm
 Root memory region: smm
  0000000000000000-000000003fffffff (prio 0, ram): pc.ram
";

#[test]
fn ranges_are_found_with_their_blocks() {
    let layout = RamLayout::parse(MTREE, RAMBLOCK).unwrap();
    let names: Vec<&str> = layout
        .blocks
        .iter()
        .map(|block| block.name.as_str())
        .collect();
    let expected = [
        "pc.ram",
        "0000:00:01.0/vga.vram",
        "/rom@etc/acpi/tables",
        "pc.bios",
        "pc.rom",
    ];
    assert_eq!(names, expected);
    assert_eq!(layout.blocks[2].used_bytes, 0x2_0000, "used, not total");
    assert_eq!(layout.blocks[0].hva, None);
    let range = |gpa, bytes, block, offset| RamRange {
        gpa,
        bytes,
        block,
        offset,
    };
    let ranges = [
        range(0, 0xa_0000, 0, 0),
        range(0xa_0000, 0x1_0000, 1, 0),
        // The read-only part of RAM and what follows it are one.
        range(0xc_0000, 0x4000_0000 - 0xc_0000, 0, 0xc_0000),
        range(0xfd00_0000, 0x100_0000, 1, 0),
    ];
    assert_eq!(layout.ranges, ranges);
    assert_eq!(layout.locate(0xc_1234), Some((0, 0xc_1234)));
    assert_eq!(layout.locate(0xfd00_0001), Some((1, 1)));
    assert_eq!(layout.locate(0x4000_0000), None);
    assert_eq!(layout.locate(0xffff_fff0), None, "a ROM is no RAM");
}

#[test]
fn newer_qemu_tells_host_addresses() {
    let ramblock = "Block Name PSize Offset Used Total HVA RO\n\
                    pc.ram 4 KiB 0x0 0x40000000 0x40000000 0x00007f4c9fe00000 rw\n";
    let mtree = "FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n  \
                 0000000000000000-000000003fffffff (prio 0, ram): pc.ram\n";
    let layout = RamLayout::parse(mtree, ramblock).unwrap();
    assert_eq!(layout.blocks[0].hva, Some(0x7f4c_9fe0_0000));
}

#[test]
fn ram_above_the_hole_continues_in_its_block() {
    let ramblock = "header\n pc.ram 4 KiB 0x0 0x140000000 0x140000000\n";
    let mtree = "AS \"memory\", root: system\n\
                 0000000000000000-000000007fffffff (prio 0, ram): pc.ram\n\
                 0000000100000000-00000001bfffffff (prio 0, ram): pc.ram @0000000080000000\n";
    let layout = RamLayout::parse(mtree, ramblock).unwrap();
    assert_eq!(layout.ram_bytes(), 5 << 30);
    assert_eq!(layout.locate(0x1_0000_0000), Some((0, 0x8000_0000)));
    assert_eq!(layout.locate(0x8000_0000), None);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let parse = |mtree: &str, ramblock: &str| RamLayout::parse(mtree, ramblock).unwrap_err();
    assert_eq!(parse("nothing", RAMBLOCK), LayoutError::NoMemoryView);
    assert_eq!(parse(MTREE, "header\n"), LayoutError::NoBlocks);
    assert_eq!(
        parse(MTREE, "header\npc.ram 4 KiB\n"),
        LayoutError::Block("pc.ram 4 KiB".into())
    );
    let other = RAMBLOCK.replace("pc.ram", "ram0");
    assert_eq!(
        parse(MTREE, &other),
        LayoutError::Unmatched("pc.ram".into())
    );
    let twice = format!("{RAMBLOCK} 0000:00:09.0/vga.vram 4 KiB 0x0 0x1000000 0x1000000\n");
    assert_eq!(
        parse(MTREE, &twice),
        LayoutError::Unmatched("vga.vram".into())
    );
    let overlap = MTREE.replace("00000000000e8000-", "00000000000e7000-");
    assert_eq!(parse(&overlap, RAMBLOCK), LayoutError::Range(0xe_7000));
    let small = RAMBLOCK.replace("0x0000000040000000 0x0000000040000000", "0x1000 0x1000");
    assert_eq!(parse(MTREE, &small), LayoutError::Range(0));
}

proptest! {
    #[test]
    fn hostile_texts_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0x20u8..0x7f), 0..30),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut mtree = MTREE.as_bytes().to_vec();
        let mut ramblock = RAMBLOCK.as_bytes().to_vec();
        for (at, byte) in changes {
            let at_mtree = at.index(mtree.len());
            mtree[at_mtree] = byte;
            let at_ramblock = at.index(ramblock.len());
            ramblock[at_ramblock] = byte;
        }
        mtree.truncate(cut.index(2 * mtree.len()));
        let texts = (String::from_utf8(mtree).unwrap(), String::from_utf8(ramblock).unwrap());
        if let Ok(layout) = RamLayout::parse(&texts.0, &texts.1) {
            for pair in layout.ranges.windows(2) {
                prop_assert!(pair[0].gpa + pair[0].bytes <= pair[1].gpa);
            }
            for range in &layout.ranges {
                let end = range.offset + range.bytes;
                prop_assert!(end <= layout.blocks[range.block].used_bytes);
                prop_assert_eq!(layout.locate(range.gpa), Some((range.block, range.offset)));
            }
        }
    }
}

#[test]
fn a_block_without_a_name_is_none_of_the_guests() {
    let spare = "                            4 KiB  0x0000000041280000 0x0000000001000000 0x0000000001000000\n";
    let with = RamLayout::parse(MTREE, &format!("{RAMBLOCK}{spare}")).unwrap();
    assert_eq!(with, RamLayout::parse(MTREE, RAMBLOCK).unwrap());
}
