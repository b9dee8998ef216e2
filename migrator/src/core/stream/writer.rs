//! Section "ram" as the destination QEMU is told it. It writes what it is given and knows no digest.

use bytes::Bytes;

use super::{FOOTER, RamFlags, SECTION_END, SECTION_PART};
use crate::core::pieces::Pieces;
use crate::core::ram::{PAGE_BYTES, RamPage, RamTable};

/// Writes section "ram" for the destination QEMU: any pages, any order, a page more than once.
#[derive(Debug)]
pub struct RamWriter {
    table: RamTable,
    section_id: u32,
    out: Pieces,
    block: Option<usize>,
    open: bool,
}

impl RamWriter {
    /// A writer of parts of section `section_id`.
    pub fn new(table: RamTable, section_id: u32) -> RamWriter {
        RamWriter {
            table,
            section_id,
            out: Pieces::default(),
            block: None,
            open: false,
        }
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

    /// Bytes written and not yet taken.
    pub fn len(&self) -> usize {
        self.out.len()
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

    fn section(&mut self, kind: u8) {
        self.out.copy(&[kind]);
        self.out.copy(&self.section_id.to_be_bytes());
        self.block = None;
    }

    fn close(&mut self) {
        self.out.copy(&RamFlags::EOS.bits().to_be_bytes());
        self.out.copy(&[FOOTER]);
        self.out.copy(&self.section_id.to_be_bytes());
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
        let idstr = self.table.blocks()[block].idstr.as_bytes();
        let length = u8::try_from(idstr.len()).expect("the table bounds names to 255 bytes");
        self.out.copy(&[length]);
        self.out.copy(idstr);
        self.block = Some(block);
    }
}
