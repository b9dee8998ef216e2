//! The plan as the destination reads it from storage: from the front, as far as the source has not stolen it, with
//! as much under way as keeps a disk busy. It judges no page.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use san_io::{Buffer, Completed};

use crate::core::plan::{Plan, ReadOp};
use crate::core::ram::RamPage;
use crate::core::wire;
use crate::run::storage::Storage;

/// Reads under way at a time, and bytes in them. 64 reads keep any disk busy; the bytes bound what the LAN may
/// carry a second time at the end, when the source steals what is being read.
const READS_MAX: usize = 64;
const READ_BYTES_MAX: u32 = 256 << 10;
pub(in crate::run) const READING_BYTES_MAX: u64 = 5 << 20;

/// What of the plan is read, is being read, and is left.
pub(in crate::run) struct Reads {
    plan: Plan,
    /// Positions before this one are read or being read.
    front: u32,
    /// Positions from here on are the source's.
    back: u32,
    storage: Storage,
    reading: HashMap<u64, ReadOp>,
    reading_bytes: u64,
    next_id: u64,
    progress: wire::Progress,
    busy_since: Option<Instant>,
}

impl Reads {
    pub(in crate::run) fn new(plan: Plan, storage: Storage) -> Reads {
        Reads {
            front: 0,
            back: plan.pages(),
            plan,
            storage,
            reading: HashMap::new(),
            reading_bytes: 0,
            next_id: 0,
            progress: wire::Progress::default(),
            busy_since: None,
        }
    }

    /// Keeps storage busy with the pages that are `wanted`.
    pub(in crate::run) fn issue(&mut self, wanted: impl Fn(RamPage) -> bool) {
        while self.reading.len() < READS_MAX && self.reading_bytes < READING_BYTES_MAX {
            let op = self
                .plan
                .next_read(self.front, self.back, READ_BYTES_MAX, &wanted);
            let Some(op) = op else {
                // What was passed over is settled or the source's.
                self.front = self.front.max(self.back);
                return;
            };
            let id = self.next_id;
            if !self.storage.submit(id, op.disk, op.offset, op.bytes) {
                return;
            }
            self.next_id += 1;
            self.front = op.end;
            self.reading_bytes += u64::from(op.bytes);
            self.reading.insert(id, op);
            self.busy_since.get_or_insert_with(Instant::now);
        }
    }

    /// The source carries the plan from this position on.
    pub(in crate::run) fn leave(&mut self, back: u32) {
        self.back = self.back.min(back);
    }

    /// The next read that storage has answered; None when there is no storage.
    pub(in crate::run) async fn completed(&mut self) -> Option<Completed> {
        self.storage.completions.recv().await
    }

    /// What was asked, and the bytes; None where storage failed, which the operator is told once.
    pub(in crate::run) fn finish(
        &mut self,
        completed: Completed,
    ) -> anyhow::Result<(ReadOp, Option<Buffer>)> {
        let op = self
            .reading
            .remove(&completed.id)
            .context("storage answered a read that was never asked")?;
        self.reading_bytes -= u64::from(op.bytes);
        if self.reading.is_empty()
            && let Some(since) = self.busy_since.take()
        {
            self.progress.san_busy_us += since.elapsed().as_micros() as u64;
        }
        match completed.result {
            Ok(buffer) => {
                self.progress.san_bytes += u64::from(op.bytes);
                Ok((op, Some(buffer)))
            }
            Err(error) => {
                self.storage.note_once(error);
                Ok((op, None))
            }
        }
    }

    /// Reads under way.
    pub(in crate::run) fn reading(&self) -> usize {
        self.reading.len()
    }

    /// Bytes from storage so far, and how long it was busy.
    pub(in crate::run) fn progress(&self) -> wire::Progress {
        let mut progress = self.progress;
        let reading = self
            .busy_since
            .map_or(Duration::ZERO, |since| since.elapsed());
        progress.san_busy_us += reading.as_micros() as u64;
        progress
    }
}
