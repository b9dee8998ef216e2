//! Section "ram" as the destination QEMU is told it, from its start to its end. It writes what it is given and knows
//! no digest.

use bytes::Bytes;

use super::{FOOTER, RAM_VERSION, RamFlags, SECTION_END, SECTION_PART, SECTION_START};
use crate::core::pieces::Pieces;
use crate::core::ram::{PAGE_BYTES, RamPage, RamTable};

/// The section's number. It is this stream's alone: what the source QEMU calls its section does not matter, and QEMU
/// looks for numbers only among sections with parts, of which a plain stream has one.
const SECTION_ID: u32 = 2;

/// Writes section "ram" for the destination QEMU: any pages, any order, a page more than once.
#[derive(Debug)]
pub struct RamWriter {
    table: RamTable,
    out: Pieces,
    block: Option<usize>,
    open: bool,
}

impl RamWriter {
    /// Starts the section: QEMU is told the blocks of `table`, which its own must be alike (migration/ram.c,
    /// ram_save_setup).
    pub fn new(table: RamTable) -> RamWriter {
        let mut writer = RamWriter {
            out: Pieces::default(),
            block: None,
            open: false,
            table,
        };
        writer.start();
        writer
    }

    /// Writes a page's content, which is a part of `owner`.
    pub fn page(&mut self, page: RamPage, content: &[u8; PAGE_BYTES], owner: &Bytes) {
        self.head(page, RamFlags::PAGE);
        self.out.share(owner.slice_ref(content));
    }

    /// Writes that a page is all zero.
    pub fn zero(&mut self, page: RamPage) {
        self.head(page, RamFlags::ZERO);
        self.out.copy(&[0]);
    }

    /// Whether nothing waits to be taken.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Closes the part that is open and hands over what was written.
    pub fn take(&mut self, into: &mut Pieces) {
        if std::mem::take(&mut self.open) {
            self.close();
        }
        into.append(std::mem::take(&mut self.out));
    }

    /// Ends section "ram": no page may follow.
    pub fn end(&mut self, into: &mut Pieces) {
        self.take(into);
        self.section(SECTION_END);
        self.close();
        into.append(std::mem::take(&mut self.out));
    }

    fn start(&mut self) {
        self.section(SECTION_START);
        name(&mut self.out, "ram");
        let instance = 0_u32;
        self.out.copy(&instance.to_be_bytes());
        self.out.copy(&RAM_VERSION.to_be_bytes());
        let total = self.table.bytes() | RamFlags::MEM_SIZE.bits();
        self.out.copy(&total.to_be_bytes());
        // QEMU reads names until the lengths are the total: one without length could be left over.
        for block in self.table.blocks().iter().filter(|block| block.bytes > 0) {
            name(&mut self.out, &block.idstr);
            self.out.copy(&block.bytes.to_be_bytes());
        }
        self.close();
    }

    fn section(&mut self, kind: u8) {
        self.out.copy(&[kind]);
        self.out.copy(&SECTION_ID.to_be_bytes());
        self.block = None;
    }

    fn close(&mut self) {
        self.out.copy(&RamFlags::EOS.bits().to_be_bytes());
        self.out.copy(&[FOOTER]);
        self.out.copy(&SECTION_ID.to_be_bytes());
    }

    fn head(&mut self, page: RamPage, kind: RamFlags) {
        if !self.open {
            self.section(SECTION_PART);
            self.open = true;
        }
        let (block, offset) = self.table.locate(page);
        if self.block == Some(block) {
            let head = offset | (kind | RamFlags::CONTINUE).bits();
            return self.out.copy(&head.to_be_bytes());
        }
        self.out.copy(&(offset | kind.bits()).to_be_bytes());
        name(&mut self.out, &self.table.blocks()[block].idstr);
        self.block = Some(block);
    }
}

/// A name behind its length in one byte.
fn name(out: &mut Pieces, name: &str) {
    let length = u8::try_from(name.len()).expect("the table bounds names to 255 bytes");
    out.copy(&[length]);
    out.copy(name.as_bytes());
}
