//! What the network carries next: what is urgent, what only it can carry, and what it takes from storage when it would
//! run dry. The core decides of each page.

use anyhow::Context;
use bytes::{Buf, Bytes, BytesMut};

use super::Transfer;
use crate::core::dispatcher::{Dispatcher, Telling};
use crate::core::pieces::Pieces;
use crate::core::ram::{PAGE_BYTES, RamPage};
use crate::core::stream::Item;
use crate::core::wire::{self, Kind, Record};
use crate::run::batch::BATCH_BYTES;

/// A batch that gives the network less than this is all digests and zero pages: 8 KiB are gone before the next is there.
const THIN_BYTES: usize = 8 << 10;
/// Pages taken or answered at a time: pieces small enough that both suppliers end together.
const PIECE_PAGES: usize = 16;
/// Pieces of zero pages looked at before something else is taken: reading them, page faults of the guest's untouched RAM
/// included, must not last longer than the network is busy with what is taken then (64 KiB, 0.5 ms at 1 Gbit/s).
const LOOKS_MAX: usize = 4;

/// What the core makes of a page that was read from guest RAM.
type Recorder = for<'a> fn(&mut Dispatcher, RamPage, &'a [u8; PAGE_BYTES]) -> Option<Record<'a>>;

fn ram_start() -> Vec<u8> {
    wire::frame(Kind::RamStart, &[])
}

/// Bytes of QEMU's stream that are not parsed yet.
#[derive(Default)]
pub(super) struct StreamBuffer {
    /// What is read to.
    pub(super) reading: BytesMut,
    unparsed: Bytes,
    /// Whether the parser may find an item: false once it asked for more bytes.
    pub(super) ripe: bool,
}

impl StreamBuffer {
    /// Makes room for `bytes` more, behind what the parser left.
    pub(super) fn make_room(&mut self, bytes: usize) {
        let left = std::mem::take(&mut self.unparsed);
        self.reading.reserve(left.len() + bytes);
        self.reading.extend_from_slice(&left);
    }

    /// Offers what was read to the parser.
    pub(super) fn ripen(&mut self) {
        self.unparsed = self.reading.split().freeze();
        self.ripe = true;
    }
}

impl Transfer<'_> {
    /// Taking pages that QEMU has not emitted is for a network that would run dry: nothing waits for it, and QEMU has
    /// said next to nothing for it to carry.
    pub(super) fn is_time_for_more(&self) -> bool {
        let is_thin = self.lan_out.is_hungry() && self.batch.len() < THIN_BYTES;
        is_thin && self.may_take() && self.dispatcher.can_steal()
    }

    /// Whether there are such pages. Where storage supplies the rest, only an idle loop goes ahead: reading a page that
    /// QEMU would soon have said costs more than waiting for it.
    pub(super) fn has_more(&self) -> bool {
        self.may_take() && (self.dispatcher.can_steal() || self.dispatcher.can_go_ahead())
    }

    /// Behind the end of RAM the destination takes no page.
    fn may_take(&self) -> bool {
        self.is_transferring() && !self.parser.is_past_ram()
    }

    /// Takes what only the network can carry, and of what storage could carry as well only when there is nothing else.
    pub(super) fn take_more(&mut self) -> anyhow::Result<()> {
        for _ in 0..LOOKS_MAX {
            if !self.dispatcher.can_go_ahead() {
                break;
            }
            let mut pages = Vec::with_capacity(PIECE_PAGES);
            self.dispatcher.look_ahead(PIECE_PAGES, &mut pages);
            let before = self.batch.len();
            self.send_guest_pages(&pages, Dispatcher::ahead)?;
            if self.batch.len() > before {
                return Ok(());
            }
        }
        self.steal()
    }

    /// Whether the network, or a guest that stands still, waits for what there is for it.
    pub(super) fn keeps_someone_waiting(&self) -> bool {
        let enough = self.batch.len() >= THIN_BYTES && self.lan_out.is_hungry();
        let last = self.parser.is_past_ram() && !self.batch.is_empty();
        self.takes_more || enough || last || !self.needs.is_empty()
    }

    /// What the network carries next: what is urgent, what was asked for, what only it can carry; and what
    /// storage could carry as well, whenever the network would otherwise be idle.
    pub(super) fn next_batch(&mut self) -> anyhow::Result<Option<Pieces>> {
        if let Some(frame) = self.control.pop_front() {
            return Ok(Some(frame.into()));
        }
        // Records of one page stay in order: all of them pass through the one batch.
        if !self.needs.is_empty() {
            self.answer_needs()?;
        } else if std::mem::take(&mut self.takes_more) {
            self.take_more()?;
        }
        Ok(std::mem::take(&mut self.batch).finish())
    }

    /// Parses what was read of the stream into frames for the destination, gathered into one batch.
    pub(super) fn tell_stream(&mut self) -> anyhow::Result<()> {
        while self.batch.len() < BATCH_BYTES && self.may_parse() {
            let (unparsed, batch) = (&self.buffer.unparsed, &mut self.batch);
            let Some((taken, item)) = self.parser.next(unparsed)? else {
                self.buffer.ripe = false;
                break;
            };
            match item {
                Item::Page(page, content) => match self.dispatcher.emit(page, content) {
                    Telling::Content => batch.record(&Record::Content(page, content), unparsed),
                    Telling::Claim(digest) => batch.record(&Record::Claim(page, digest), unparsed),
                    Telling::Nothing => {}
                },
                Item::Zero(page) => {
                    self.dispatcher.emit_zero(page);
                    batch.record(&Record::Zero(page, 1), unparsed);
                }
                Item::Raw(raw) | Item::Device(raw) => batch.raw(raw),
                // QEMU starts its section when it has made bitmaps of all RAM; ours starts as soon as it may, so that
                // both networks are busy meanwhile.
                Item::Command(raw) => {
                    batch.raw(raw);
                    self.dispatcher.start().then(|| batch.frame(&ram_start()));
                }
                Item::RamStart => {
                    self.dispatcher.start().then(|| batch.frame(&ram_start()));
                }
                Item::PartEnd => {}
                Item::RamEnd => batch.frame(&wire::frame(Kind::RamEnd, &[])),
            }
            self.buffer.unparsed.advance(taken);
        }
        Ok(())
    }

    fn answer_needs(&mut self) -> anyhow::Result<()> {
        let n = self.needs.len().min(PIECE_PAGES);
        let pages: Vec<RamPage> = self.needs.drain(..n).collect();
        self.send_guest_pages(&pages, Dispatcher::answer)
    }

    fn steal(&mut self) -> anyhow::Result<()> {
        let mut pages = Vec::with_capacity(PIECE_PAGES);
        let back = self.dispatcher.steal(PIECE_PAGES, &mut pages);
        if !pages.is_empty() {
            self.batch
                .frame(&wire::frame(Kind::Stolen, &back.to_le_bytes()));
        }
        self.send_guest_pages(&pages, Dispatcher::stolen)
    }

    /// Reads `pages` from guest RAM and sends what the core makes of each; those that cannot be read are left to QEMU.
    fn send_guest_pages(&mut self, pages: &[RamPage], record: Recorder) -> anyhow::Result<()> {
        let places: Vec<(usize, u64)> = pages.iter().map(|page| self.table.locate(*page)).collect();
        let mut bytes = vec![0; pages.len() * PAGE_BYTES];
        if self.memory.read_block_pages(&places, &mut bytes).is_ok() {
            let owner = Bytes::from(bytes);
            for (page, bytes) in pages.iter().zip(owner.as_chunks().0) {
                let record = record(&mut self.dispatcher, *page, bytes);
                record.inspect(|record| self.batch.record(record, &owner));
            }
            return Ok(());
        }
        for (page, (block, offset)) in pages.iter().zip(places) {
            let mut bytes = vec![0; PAGE_BYTES];
            match self.memory.read_block(block, offset, &mut bytes) {
                Ok(()) => {
                    let owner = Bytes::from(bytes);
                    let bytes = owner.first_chunk().expect("a page");
                    let record = record(&mut self.dispatcher, *page, bytes);
                    record.inspect(|record| self.batch.record(record, &owner));
                }
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
