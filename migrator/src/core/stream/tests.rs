use bytes::Bytes;
use proptest::prelude::*;

use super::super::pieces::Pieces;
use super::super::ram::RamBlock;
use super::*;

fn table() -> RamTable {
    let block = |idstr: &str, bytes| RamBlock {
        idstr: idstr.into(),
        bytes,
    };
    RamTable::new(vec![block("pc.ram", 8 * 4096), block("vga.vram", 2 * 4096)]).unwrap()
}

fn preamble() -> Vec<u8> {
    let mut bytes = b"QEVM\0\0\0\x03\x07\0\0\0\x03q35".to_vec();
    bytes.extend(b"\x05\x1econfiguration/target-page-bits\0\0\0\x01\0\0\0\x0c");
    bytes.extend(b"\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x01\x06events");
    bytes.extend([8, 0, 1, 0, 0]);
    bytes
}

fn section_start() -> Vec<u8> {
    let mut bytes = b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04".to_vec();
    bytes.extend(((10 * 4096_u64) | RamFlags::MEM_SIZE.bits()).to_be_bytes());
    bytes.extend(b"\x06pc.ram");
    bytes.extend((8 * 4096_u64).to_be_bytes());
    bytes.extend(b"\x08vga.vram");
    bytes.extend((2 * 4096_u64).to_be_bytes());
    bytes.extend(RamFlags::EOS.bits().to_be_bytes());
    bytes.extend(b"\x7e\0\0\0\x02");
    bytes
}

#[derive(Debug, PartialEq, Clone)]
enum Seen {
    Raw(usize),
    Command(usize),
    RamStart,
    Zero(u32),
    Page(u32, u8),
    PartEnd,
    RamEnd,
    Device(usize),
}

/// Feeds `bytes` in pieces that end at `cuts`, as sockets do.
fn parse(bytes: &[u8], cuts: &[usize]) -> Result<Vec<Seen>, StreamError> {
    let mut parser = Parser::new(table());
    let mut seen = vec![];
    let (mut start, mut ends) = (0, cuts.to_vec());
    ends.push(bytes.len());
    for end in ends {
        while let Some((taken, item)) = parser.next(&bytes[start..end.max(start)])? {
            start += taken;
            let item = match item {
                Item::Raw(raw) => Seen::Raw(raw.len()),
                Item::Command(raw) => Seen::Command(raw.len()),
                Item::RamStart => Seen::RamStart,
                Item::Zero(page) => Seen::Zero(page.0),
                Item::Page(page, content) => Seen::Page(page.0, content[0]),
                Item::PartEnd => Seen::PartEnd,
                Item::RamEnd => Seen::RamEnd,
                Item::Device(device) => Seen::Device(device.len()),
            };
            // How device state is cut is the socket's doing.
            match (seen.last_mut(), item) {
                (Some(Seen::Device(all)), Seen::Device(more)) => *all += more,
                (_, item) => seen.push(item),
            }
        }
    }
    Ok(seen)
}

/// A stream with all that a plain one has, made by the writer that the destination uses.
fn stream() -> (Vec<u8>, Vec<Seen>) {
    let mut writer = RamWriter::new(table());
    let mut written = Pieces::default();
    writer.take(&mut written);
    assert_eq!(written.concat(), section_start());
    let page = |writer: &mut RamWriter, page, fill| {
        let owner = Bytes::from(vec![fill; PAGE_BYTES]);
        writer.page(RamPage(page), owner.first_chunk().unwrap(), &owner);
    };
    page(&mut writer, 3, 7);
    writer.zero(RamPage(4));
    page(&mut writer, 9, 8);
    writer.take(&mut written);
    written.copy(&[8, 0, 2, 0, 4, 0, 0, 0, 1]);
    writer.zero(RamPage(0));
    writer.end(&mut written);
    written.copy(b"device state");
    let bytes = [preamble(), written.concat()].concat();
    let expected = vec![
        Seen::Raw(8),
        Seen::Raw(8),
        Seen::Raw(40),
        Seen::Raw(43),
        Seen::Command(5),
        Seen::RamStart,
        Seen::Page(3, 7),
        Seen::Zero(4),
        Seen::Page(9, 8),
        Seen::PartEnd,
        Seen::Command(9),
        Seen::Zero(0),
        Seen::PartEnd,
        Seen::RamEnd,
        Seen::Device(12),
    ];
    (bytes, expected)
}

#[test]
fn a_plain_stream_is_followed_to_its_end() {
    let (bytes, expected) = stream();
    assert_eq!(parse(&bytes, &[]), Ok(expected));
}

fn refused(tail: &[u8]) -> String {
    let bytes = [preamble(), section_start(), tail.to_vec()].concat();
    parse(&bytes, &[]).unwrap_err().to_string()
}

#[test]
fn what_a_plain_stream_does_not_have_is_refused_by_name() {
    let part = |flags: u64| [b"\x02\0\0\0\x02".as_slice(), &flags.to_be_bytes()].concat();
    assert!(refused(&part(0x200)).contains("multifd"));
    assert!(refused(&part(0x40)).contains("xbzrle"));
    assert!(
        refused(&part(0x1000 | (RamFlags::PAGE | RamFlags::CONTINUE).bits())).contains("0x1000")
    );
    assert!(refused(b"\x01\0\0\0\x03\x04vfio\0\0\0\0\0\0\0\x01").contains("\"vfio\""));
    assert!(refused(b"\x04").contains("0x04"));
    assert!(refused(b"\x02\0\0\0\x09").contains("section 9"));
    let beyond = [
        part((8 * 4096) | RamFlags::PAGE.bits()),
        b"\x06pc.ram".to_vec(),
    ]
    .concat();
    assert!(refused(&beyond).contains("does not reach"));
    assert_eq!(
        parse(b"GARBAGE!", &[]),
        Err(StreamError::Header {
            magic: 0x4741_5242,
            version: 0x4147_4521
        })
    );
}

#[test]
fn blocks_that_differ_from_the_table_are_refused() {
    let mut bytes = [preamble(), section_start()].concat();
    let at = bytes
        .windows(6)
        .position(|window| window == b"pc.ram")
        .unwrap();
    bytes[at] = b'P';
    let refused = parse(&bytes, &[]).unwrap_err().to_string();
    assert!(refused.contains("\"Pc.ram\""), "{refused}");

    // A block that QEMU leaves out: the destination QEMU was told of it.
    let mut bytes = preamble();
    bytes.extend(&section_start()[..17]);
    bytes.extend(((8 * 4096_u64) | RamFlags::MEM_SIZE.bits()).to_be_bytes());
    bytes.extend(&section_start()[25..40]);
    bytes.extend(RamFlags::EOS.bits().to_be_bytes());
    let refused = parse(&bytes, &[]).unwrap_err().to_string();
    assert!(refused.contains("no RAM block \"vga.vram\""), "{refused}");
}

#[test]
fn the_gate_holds_only_the_switchovers_acknowledgement() {
    let mut gate = return_path::Gate::default();
    let mut passed = vec![];
    let pong = [0, 2, 0, 4, 0, 0, 0, 1];
    let ack = [0, 7, 0, 0];
    gate.push(&[&pong[..], &ack[..], &pong[..3]].concat(), &mut passed)
        .unwrap();
    assert_eq!(passed, pong);
    gate.push(&pong[3..], &mut passed).unwrap();
    assert_eq!(passed, [pong, pong].concat());
    gate.release(&mut passed);
    assert_eq!(passed[16..], ack);
    gate.push(&ack, &mut passed).unwrap();
    assert_eq!(passed[20..], ack);
    assert_eq!(gate.push(&[0, 1, 0xff, 0xff], &mut passed), Err(0xffff));
}

proptest! {
    #[test]
    fn how_a_stream_is_cut_does_not_matter(cuts in prop::collection::vec(0..9000_usize, 0..20)) {
        let (bytes, expected) = stream();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.sort_unstable();
        prop_assert_eq!(parse(&bytes, &cuts), Ok(expected));
    }

    #[test]
    fn hostile_streams_never_panic(
        at in 0..400_usize,
        change in prop::collection::vec(any::<u8>(), 1..30),
    ) {
        let (mut bytes, _) = stream();
        for (byte, change) in bytes[at..].iter_mut().zip(change) {
            *byte = change;
        }
        let _ = parse(&bytes, &[]);
    }
}
