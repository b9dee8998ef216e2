//! One disk's share of the reader: what waits for it, what runs, when it is dead. Nothing is
//! shared between disks. Part of the pure core: must do no I/O.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use crate::buffer::{Block, Pool};
use crate::desk::Running;
use crate::disk::Disk;
use crate::engine::Op;
use crate::error::{Place, ReadError};
use crate::{PAGE_BYTES, Read};

/// A disk is dead when this many reads in a row stalled (or half its depth, if that is less). Too
/// small: one lost command costs a healthy disk; too large: each round of reads at a dead disk
/// holds up its part of the plan for another `stall_ms`.
const STALLED_MAX: usize = 8;

/// A read that the kernel interrupts, or that brings nothing new, is tried again this often.
const TRIES_MAX: u32 = 8;

/// What a disk looks like from here.
#[derive(Debug, Clone)]
pub(crate) struct DiskInfo {
    pub name: Arc<str>,
    pub size: u64,
    pub alignment: u32,
}

impl From<&Disk> for DiskInfo {
    fn from(disk: &Disk) -> Self {
        Self {
            name: disk.shared_name(),
            size: disk.size(),
            alignment: disk.alignment(),
        }
    }
}

/// Per disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub depth: usize,
    pub bytes_max: usize,
    pub stall: Duration,
}

/// What one disk has and is owed.
pub(crate) struct Share {
    info: DiskInfo,
    limits: Limits,
    pub waiting: VecDeque<Read>,
    pub pool: Pool,
    /// At the engine, abandoned ones included.
    pub running: usize,
    pub abandoned: usize,
    pub abandoned_bytes: usize,
    /// Since the last successful answer.
    pub stalled_in_a_row: usize,
}

/// What an answer of the engine means.
pub(crate) enum Verdict {
    /// The asked bytes begin at `start` of the block.
    Filled {
        start: usize,
    },
    /// Interrupted or cut short: start it again. One that brings bytes each time is no repetition.
    Again {
        progress: bool,
    },
    Failed(ReadError),
}

/// The aligned read around an asked one.
struct Span {
    offset: u64,
    /// Bytes before the asked ones.
    skip: usize,
    /// Bytes, a multiple of the alignment; may reach past the end of the disk.
    want: usize,
}

impl Share {
    pub(crate) fn new(info: DiskInfo, limits: Limits) -> Self {
        Self {
            pool: Pool::new(limits.bytes_max, info.alignment as usize),
            info,
            limits,
            waiting: VecDeque::new(),
            running: 0,
            abandoned: 0,
            abandoned_bytes: 0,
            stalled_in_a_row: 0,
        }
    }

    pub(crate) fn place(&self, read: &Read) -> Place {
        Place {
            disk: self.info.name.clone(),
            offset: read.offset,
            len: read.len,
        }
    }

    /// Refuses what can never be read.
    pub(crate) fn check(&self, read: &Read) -> Result<(), ReadError> {
        // Half: a live disk has less than half abandoned, so that there is always room for one.
        let len_max = self.limits.bytes_max / 2;
        if read.len == 0 || self.span(read).want > len_max {
            return Err(ReadError::Length {
                place: self.place(read),
                len_max,
            });
        }
        let size = self.info.size;
        let past_end = read
            .offset
            .saturating_add(read.len.into())
            .saturating_sub(size);
        if read.offset >= size || past_end >= PAGE_BYTES as u64 {
            return Err(ReadError::BeyondEnd {
                place: self.place(read),
                size,
            });
        }
        Ok(())
    }

    /// None while there is no room.
    pub(crate) fn start(&mut self, read: &Read, key: u64) -> Option<Op> {
        if self.running >= self.limits.depth {
            return None;
        }
        let Span { offset, want, .. } = self.span(read);
        let block = self.pool.take(want)?;
        self.running += 1;
        Some(Op {
            key,
            disk: read.disk,
            offset,
            want,
            filled: 0,
            block,
        })
    }

    /// How many reads stalled, if these are too many: in a row, or never answered to this day.
    pub(crate) fn dead(&self) -> Option<usize> {
        let stalled = self.stalled_in_a_row.max(self.abandoned);
        let bound = STALLED_MAX.min(self.limits.depth.div_ceil(2));
        (stalled >= bound || self.abandoned_bytes >= self.limits.bytes_max.div_ceil(2))
            .then_some(stalled)
    }

    /// The engine is through with a block that nobody gets.
    pub(crate) fn retire(&mut self, block: Block) {
        self.running -= 1;
        self.pool.give_back(block);
    }

    pub(crate) fn judge(
        &self,
        running: &Running,
        op: &mut Op,
        result: io::Result<usize>,
    ) -> Verdict {
        let (read, again) = (&running.read, running.tries < TRIES_MAX);
        let place = || self.place(read);
        let bytes = match result {
            Ok(bytes) => bytes.min(op.want - op.filled),
            Err(source) => {
                let errno = Errno::from_io_error(&source);
                if again && matches!(errno, Some(Errno::INTR | Errno::AGAIN)) {
                    return Verdict::Again { progress: false };
                }
                let place = place();
                return Verdict::Failed(ReadError::Io { place, source });
            }
        };
        op.filled += bytes;
        let Span { skip, .. } = self.span(read);
        let asked_end = skip + read.len as usize;
        let on_disk = (self.info.size - read.offset).min(read.len.into()) as usize;
        if op.filled >= skip + on_disk {
            op.block[skip + on_disk..asked_end].fill(0);
            return Verdict::Filled { start: skip };
        }
        let (got, before) = (op.filled, op.filled - bytes);
        op.filled -= op.filled % self.info.alignment as usize;
        let progress = op.filled > before;
        if !again && !progress {
            return Verdict::Failed(ReadError::Short {
                place: place(),
                got: got.saturating_sub(skip),
            });
        }
        Verdict::Again { progress }
    }

    /// Cannot overflow, whatever is asked: the sum fits a u64, and usize is one on what QEMU
    /// migrates between.
    fn span(&self, read: &Read) -> Span {
        let alignment = u64::from(self.info.alignment);
        let skip = read.offset % alignment;
        let want = (skip + u64::from(read.len)).next_multiple_of(alignment);
        Span {
            offset: read.offset - skip,
            skip: skip as usize,
            want: want as usize,
        }
    }
}
