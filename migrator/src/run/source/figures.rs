//! A migration in numbers, while it runs and at its end.

use std::time::Instant;

use super::Transfer;
use crate::core::ram::PAGE_BYTES;
use crate::run::progress::Snapshot;
use crate::run::summary::{Summary, Use, bound_ms};

impl Transfer<'_> {
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            elapsed: self.begun.elapsed(),
            ram_pages: self.table.pages(),
            unseen: self.dispatcher.unseen(),
            open: self.dispatcher.open(),
            lan_bytes: self.lan_out.bytes(),
            san_bytes: self.storage.san_bytes,
            pass: self.pass,
            stopped: self.stopped.is_some(),
        }
    }

    pub(super) fn summary(&self) -> Summary {
        let counts = self.dispatcher.counts();
        let ms = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64() * 1e3;
        let total_ms = ms(self.begun, self.up.unwrap_or_else(Instant::now));
        let page = PAGE_BYTES as f64;
        let lan_bytes = self.lan_out.bytes();
        let lan = self.lan_out.network_use();
        let san = Use {
            bytes: self.storage.san_bytes as f64,
            seconds: self.storage.san_busy_us as f64 / 1e6,
        };
        let either = counts.claimed as f64 * page;
        let twice = counts.stolen + counts.needed + counts.ahead_in_vain;
        let only_lan = lan_bytes as f64 - twice as f64 * page;
        let bound_ms = bound_ms(only_lan, either, lan, san);
        Summary {
            total_ms,
            downtime_ms: self.stopped.zip(self.up).map(|(from, to)| ms(from, to)),
            lan_bytes,
            san_bytes: self.storage.san_bytes,
            pages_content: counts.content,
            pages_claimed: counts.claimed,
            pages_zero: counts.zero,
            pages_ahead: counts.ahead,
            pages_ahead_in_vain: counts.ahead_in_vain,
            pages_stolen: counts.stolen,
            pages_needed: counts.needed,
            pages_unchanged: counts.unchanged,
            bound_ms,
            bound_ratio: bound_ms.map(|bound| total_ms / bound),
        }
    }
}
