//! Misbehaviour on purpose, between the desk and the engine. For tests only: it must never be
//! reachable by an operator's mistake.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::engine::{Done, Op};

/// A way to misbehave, for tests only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Every n-th read fails with EIO; 1 fails all, 0 none.
    FailEvery(u64),
    /// No read is ever answered.
    StallForEver,
    /// Every byte read is altered.
    Wrong,
    /// All disks together give no more than this.
    Slow { bytes_per_s: u64 },
}

pub(crate) enum Admitted {
    /// For the engine.
    Start(Op),
    /// Answered here and now.
    Answer(Done),
    /// Never answered.
    Swallowed,
}

pub(crate) struct Faults {
    fault: Option<Fault>,
    reads: u64,
    stuck: Vec<Op>,
    delayed: VecDeque<(Instant, Done)>,
    busy_until: Instant,
}

impl Faults {
    pub(crate) fn new(fault: Option<Fault>, now: Instant) -> Self {
        Self {
            fault,
            reads: 0,
            stuck: Vec::new(),
            delayed: VecDeque::new(),
            busy_until: now,
        }
    }

    /// Before the engine.
    pub(crate) fn admit(&mut self, op: Op) -> Admitted {
        self.reads += 1;
        match self.fault {
            Some(Fault::FailEvery(n)) if n > 0 && self.reads.is_multiple_of(n) => {
                let result = Err(io::Error::from_raw_os_error(Errno::IO.raw_os_error()));
                Admitted::Answer(Done { op, result })
            }
            Some(Fault::StallForEver) => {
                self.stuck.push(op);
                Admitted::Swallowed
            }
            _ => Admitted::Start(op),
        }
    }

    /// After the engine: None is a delayed answer, which due() gives later.
    pub(crate) fn pass(&mut self, mut done: Done, now: Instant) -> Option<Done> {
        let bytes = *done.result.as_ref().unwrap_or(&0);
        match self.fault {
            Some(Fault::Wrong) => {
                let filled = done.op.filled;
                done.op.block[filled..filled + bytes]
                    .iter_mut()
                    .for_each(|byte| *byte ^= 0xa5);
                Some(done)
            }
            Some(Fault::Slow { bytes_per_s }) => {
                let took = Duration::from_secs_f64(bytes as f64 / bytes_per_s.max(1) as f64);
                self.busy_until = self.busy_until.max(now) + took;
                self.delayed.push_back((self.busy_until, done));
                None
            }
            _ => Some(done),
        }
    }

    pub(crate) fn due(&mut self, now: Instant) -> Option<Done> {
        let &(at, _) = self.delayed.front()?;
        if at > now {
            None
        } else {
            self.delayed.pop_front().map(|(_, done)| done)
        }
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.delayed.front().map(|&(at, _)| at)
    }
}
