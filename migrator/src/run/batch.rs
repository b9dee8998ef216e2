//! What the source's network carries next: frames, with page records gathered into few of them. It decides
//! nothing about a page.

use crate::core::ram::PAGE_BYTES;
use crate::core::wire::{self, Kind, PagesFrame, Record};

/// A batch for the network is closed at this size: 128 KiB take 10 ms at 100 Mbit/s.
pub(super) const BATCH_BYTES: usize = 128 << 10;

/// Frames for the network, page records gathered.
pub(super) struct Batch {
    done: Vec<u8>,
    pages: Option<PagesFrame>,
}

impl Batch {
    pub(super) fn new() -> Batch {
        Batch {
            done: Vec::new(),
            pages: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.done.len() + self.pages.as_ref().map_or(0, PagesFrame::len)
    }

    pub(super) fn record(&mut self, record: &Record<'_>) {
        let capacity = BATCH_BYTES + 2 * PAGE_BYTES;
        self.pages
            .get_or_insert_with(|| PagesFrame::new(capacity))
            .push(record);
    }

    pub(super) fn raw(&mut self, raw: &[u8]) {
        for part in raw.chunks(BATCH_BYTES) {
            self.frame(&wire::frame(Kind::Raw, part));
        }
    }

    pub(super) fn frame(&mut self, frame: &[u8]) {
        self.close();
        self.done.extend_from_slice(frame);
    }

    fn close(&mut self) {
        if let Some(pages) = self.pages.take() {
            let frame = pages.finish();
            if self.done.is_empty() {
                self.done = frame;
            } else {
                self.done.extend_from_slice(&frame);
            }
        }
    }

    pub(super) fn finish(mut self) -> Option<Vec<u8>> {
        self.close();
        (!self.done.is_empty()).then_some(self.done)
    }
}
