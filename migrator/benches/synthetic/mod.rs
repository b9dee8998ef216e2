//! Guests and QEMU streams of any size, made up as they are read: a terabyte takes no memory. Every page is known
//! from its number alone. It imitates what QEMU says, never how fast QEMU says it.

use bytes::{BufMut, Bytes, BytesMut};
use migrator::core::ram::{PAGE_BYTES, RamBlock, RamPage, RamTable};

pub(crate) type Page = [u8; PAGE_BYTES];

/// The id of section "ram".
const SECTION_ID: u32 = 2;
/// A guest whose memory is a function of the page's number.
pub(crate) struct Guest {
    pub(crate) table: RamTable,
    text: Page,
}

impl Guest {
    pub(crate) fn new(bytes: u64) -> Guest {
        let idstr = "pc.ram".to_owned();
        let table = RamTable::new(vec![RamBlock { idstr, bytes }]).expect("a RAM table");
        // Not zero and not repeating; what a page is about does not matter to a digest.
        let text = std::array::from_fn(|at| (at * at / 7 + at) as u8 | 1);
        Guest { table, text }
    }

    /// The content of `page` in its `version`: 0 in the first pass, 1 in the second.
    pub(crate) fn fill(&self, page: RamPage, version: u8, into: &mut [u8]) {
        into.copy_from_slice(&self.text);
        into[..4].copy_from_slice(&page.0.to_le_bytes());
        into[4] = version;
    }
}

/// Writes a stream as QEMU 7.2 does (migration/ram.c, migration/savevm.c).
pub(crate) struct Qemu {
    out: BytesMut,
    /// A record with CONTINUE means the block before.
    block_named: bool,
    part_open: bool,
}

impl Qemu {
    /// A stream that has said all that comes before pages.
    pub(crate) fn begin(table: &RamTable) -> Qemu {
        let mut out = BytesMut::from(&b"QEVM\0\0\0\x03\x07\0\0\0\x03q35"[..]);
        out.put_u8(1);
        out.put_u32(SECTION_ID);
        out.put_slice(b"\x03ram\0\0\0\0\0\0\0\x04");
        let total: u64 = table.blocks().iter().map(|block| block.bytes).sum();
        out.put_u64(total | 0x04);
        for block in table.blocks() {
            out.put_u8(block.idstr.len() as u8);
            out.put_slice(block.idstr.as_bytes());
            out.put_u64(block.bytes);
        }
        let mut qemu = Qemu {
            out,
            block_named: false,
            part_open: false,
        };
        qemu.end_of_section();
        qemu
    }

    pub(crate) fn zero(&mut self, page: RamPage) {
        self.head(page, 0x02);
        self.out.put_u8(0);
    }

    /// A page whose content `fill` writes.
    pub(crate) fn page(&mut self, page: RamPage, fill: impl FnOnce(&mut [u8])) {
        self.head(page, 0x08);
        let start = self.out.len();
        self.out.put_bytes(0, PAGE_BYTES);
        fill(&mut self.out[start..]);
    }

    /// Hands over what was said since the last time. At the `end` RAM is over as well.
    pub(crate) fn take(&mut self, end: bool) -> Bytes {
        if std::mem::take(&mut self.part_open) {
            self.end_of_section();
        }
        if end {
            self.out.put_u8(3);
            self.out.put_u32(SECTION_ID);
            self.end_of_section();
        }
        self.out.split().freeze()
    }

    fn head(&mut self, page: RamPage, flag: u64) {
        if !std::mem::replace(&mut self.part_open, true) {
            self.out.put_u8(2);
            self.out.put_u32(SECTION_ID);
            self.block_named = false;
        }
        let at = u64::from(page.0) * PAGE_BYTES as u64;
        if std::mem::replace(&mut self.block_named, true) {
            return self.out.put_u64(at | flag | 0x20);
        }
        self.out.put_u64(at | flag);
        self.out.put_slice(b"\x06pc.ram");
    }

    fn end_of_section(&mut self) {
        self.out.put_u64(0x10);
        self.out.put_u8(0x7e);
        self.out.put_u32(SECTION_ID);
    }
}
