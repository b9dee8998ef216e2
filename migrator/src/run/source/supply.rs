//! What the network carries next: what is urgent, what only it can carry, and what it takes from storage when it would
//! run dry. The core decides of each page.

use anyhow::Context;

use super::Transfer;
use crate::core::dispatcher::{Dispatcher, Telling};
use crate::core::ram::{PAGE_BYTES, RamPage};
use crate::core::stream::Item;
use crate::core::wire::{self, Kind, Record};
use crate::run::batch::{BATCH_BYTES, Batch};

/// A batch of the stream that gives the network less than this is all digests and zero pages: 8 KiB are gone
/// before the next batch is parsed.
const THIN_BYTES: usize = 8 << 10;
/// Pages stolen or answered at a time: pieces small enough that both suppliers end together.
const PIECE_PAGES: usize = 16;

/// Bytes of QEMU's stream that are not parsed yet.
#[derive(Default)]
pub(super) struct StreamBuffer {
    pub(super) bytes: Vec<u8>,
    start: usize,
    /// Whether the parser may find an item: false once it asked for more bytes.
    pub(super) ripe: bool,
}

impl StreamBuffer {
    pub(super) fn compact(&mut self) {
        self.bytes.drain(..std::mem::take(&mut self.start));
    }
}

impl Transfer<'_> {
    /// Stealing is for a network that would run dry: nothing waits for it, and QEMU has said nothing for it to carry.
    pub(super) fn is_time_to_steal(&self) -> bool {
        self.dispatcher.can_steal()
            && self.lan_out.is_idle()
            && (self.stream_is_thin || !self.may_parse())
    }

    /// What the network carries next: what is urgent, what was asked for, what only it can carry; and what
    /// storage could carry as well, whenever the network would otherwise be idle.
    pub(super) fn next_batch(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        if let Some(frame) = self.control.pop_front() {
            return Ok(Some(frame));
        }
        if !self.needs.is_empty() {
            return self.answer_needs();
        }
        if std::mem::take(&mut self.steals_next) {
            self.stream_is_thin = false;
            let stolen = self.steal()?;
            if stolen.is_some() {
                return Ok(stolen);
            }
        }
        let batch = self.tell_stream()?;
        self.stream_is_thin = batch.as_ref().is_none_or(|batch| batch.len() < THIN_BYTES);
        Ok(batch)
    }

    /// Parses what was read of the stream into frames for the destination.
    fn tell_stream(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        let mut batch = Batch::new();
        while batch.len() < BATCH_BYTES && self.may_parse() {
            let Some((taken, item)) = self.parser.next(&self.buffer.bytes[self.buffer.start..])?
            else {
                self.buffer.ripe = false;
                break;
            };
            self.buffer.start += taken;
            match item {
                Item::Page(page, content) => match self.dispatcher.emit(page, content) {
                    Telling::Content => batch.record(&Record::Content(page, content)),
                    Telling::Claim(digest) => batch.record(&Record::Claim(page, digest)),
                    Telling::Nothing => {}
                },
                Item::Zero(page) => {
                    self.dispatcher.emit_zero(page);
                    batch.record(&Record::Zero(page, 1));
                }
                Item::Raw(raw) | Item::Device(raw) => batch.raw(raw),
                Item::RamStart {
                    raw,
                    section_id,
                    pages,
                } => {
                    self.dispatcher.first_pass(pages);
                    batch.raw(raw);
                    batch.frame(&wire::frame(Kind::RamStart, &section_id.to_le_bytes()));
                }
                Item::PartEnd => {}
                Item::RamEnd => batch.frame(&wire::frame(Kind::RamEnd, &[])),
            }
        }
        Ok(batch.finish())
    }

    fn answer_needs(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        let n = self.needs.len().min(PIECE_PAGES);
        let pages: Vec<RamPage> = self.needs.drain(..n).collect();
        let mut batch = Batch::new();
        self.with_guest_pages(&pages, |dispatcher, page, bytes| {
            if let Some(record) = dispatcher.answer(page, bytes) {
                batch.record(&record);
            }
        })?;
        Ok(batch.finish())
    }

    fn steal(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        let mut pages = Vec::with_capacity(PIECE_PAGES);
        let back = self.dispatcher.steal(PIECE_PAGES, &mut pages);
        if pages.is_empty() {
            return Ok(None);
        }
        let mut batch = Batch::new();
        batch.frame(&wire::frame(Kind::Stolen, &back.to_le_bytes()));
        self.with_guest_pages(&pages, |dispatcher, page, bytes| {
            if let Some(record) = dispatcher.stolen(page, bytes) {
                batch.record(&record);
            }
        })?;
        Ok(batch.finish())
    }

    /// Reads `pages` from guest RAM and hands each to `each`; those that cannot be read are left to QEMU.
    fn with_guest_pages(
        &mut self,
        pages: &[RamPage],
        mut each: impl FnMut(&mut Dispatcher, RamPage, &[u8; PAGE_BYTES]),
    ) -> anyhow::Result<()> {
        let places: Vec<(usize, u64)> = pages.iter().map(|page| self.table.locate(*page)).collect();
        let mut bytes = vec![0; pages.len() * PAGE_BYTES];
        if self.memory.read_block_pages(&places, &mut bytes).is_ok() {
            for (page, bytes) in pages.iter().zip(bytes.as_chunks().0) {
                each(&mut self.dispatcher, *page, bytes);
            }
            return Ok(());
        }
        for (page, (block, offset)) in pages.iter().zip(places) {
            let mut bytes = [0; PAGE_BYTES];
            match self.memory.read_block(block, offset, &mut bytes) {
                Ok(()) => each(&mut self.dispatcher, *page, &bytes),
                Err(error) if self.dispatcher.unreadable(*page) => {
                    return Err(error)
                        .context("guest RAM that the destination needs cannot be read");
                }
                Err(_) => {}
            }
        }
        Ok(())
    }
}
