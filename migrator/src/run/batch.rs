//! What the source's network carries next: frames, with page records gathered into few of them. It decides
//! nothing about a page.

use bytes::Bytes;

use crate::core::pieces::Pieces;
use crate::core::wire::{self, Kind, PagesFrame, Record};

/// A batch for the network is closed at this size: 128 KiB take 10 ms at 100 Mbit/s.
pub(super) const BATCH_BYTES: usize = 128 << 10;

/// Frames for the network, page records gathered.
#[derive(Default)]
pub(super) struct Batch {
    done: Pieces,
    pages: PagesFrame,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn len(&self) -> usize {
        self.done.len() + self.pages.len()
    }

    /// Adds a record, whose content is a part of `owner`.
    pub(super) fn record(&mut self, record: &Record<'_>, owner: &Bytes) {
        if !self.pages.has_room() {
            self.close();
        }
        self.pages.push(record, owner);
    }

    pub(super) fn raw(&mut self, raw: &[u8]) {
        for part in raw.chunks(BATCH_BYTES) {
            self.frame(&wire::frame(Kind::Raw, part));
        }
    }

    pub(super) fn frame(&mut self, frame: &[u8]) {
        self.close();
        self.done.copy(frame);
    }

    fn close(&mut self) {
        if !self.pages.is_empty() {
            self.done.append(std::mem::take(&mut self.pages).finish());
        }
    }

    pub(super) fn finish(mut self) -> Option<Pieces> {
        self.close();
        (!self.done.is_empty()).then_some(self.done)
    }
}
