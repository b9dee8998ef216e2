//! The pure core: which read starts when, which is given up, which disk is dead. Takes events and
//! the time, returns actions; must do no I/O and must answer every accepted read exactly once.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use crate::Read;
use crate::buffer::Block;
use crate::engine::{Done, Op};
use crate::error::ReadError;
use crate::share::{DiskInfo, Limits, Share, Verdict};

/// The asked bytes within the block they were read into.
pub(crate) struct Filled {
    pub block: Block,
    pub start: usize,
}

pub(crate) enum Action {
    Start(Op),
    Cancel {
        disk: usize,
        key: u64,
    },
    Complete {
        read: Read,
        result: Result<Filled, ReadError>,
        elapsed: Duration,
    },
}

/// A read that the engine has and that is still waited for.
pub(crate) struct Running {
    pub read: Read,
    started: Instant,
    /// Starts of this read at the engine that brought nothing, and the first.
    pub tries: u32,
    block_bytes: usize,
}

pub(crate) struct Desk {
    shares: Vec<Share>,
    limits: Limits,
    /// By key, and keys grow with time: the first one has waited longest.
    running: BTreeMap<u64, Running>,
    /// Keys of reads that were given up; the engine still has them.
    abandoned: HashSet<u64>,
    next_key: u64,
}

impl Desk {
    pub(crate) fn new(disks: Vec<DiskInfo>, limits: Limits) -> Self {
        Self {
            shares: disks
                .into_iter()
                .map(|info| Share::new(info, limits))
                .collect(),
            limits,
            running: BTreeMap::new(),
            abandoned: HashSet::new(),
            next_key: 0,
        }
    }

    pub(crate) fn submit(&mut self, read: Read, now: Instant, out: &mut Vec<Action>) {
        let disks = self.shares.len();
        let Some(share) = self.shares.get_mut(read.disk) else {
            return out.push(not_started(
                read,
                ReadError::NoSuchDisk {
                    disk: read.disk,
                    disks,
                },
            ));
        };
        match share.check(&read) {
            Ok(()) => {
                share.waiting.push_back(read);
                self.start_waiting(read.disk, now, out);
            }
            Err(refused) => out.push(not_started(read, refused)),
        }
    }

    /// The engine's answer to a started read.
    pub(crate) fn done(&mut self, done: Done, now: Instant, out: &mut Vec<Action>) {
        let Done { mut op, result } = done;
        let disk = op.disk;
        let share = &mut self.shares[disk];
        // Errors are no sign of life: they also come from our cancelling, and from the timeouts of
        // a path that hangs.
        if result.is_ok() {
            share.stalled_in_a_row = 0;
        }
        if self.abandoned.remove(&op.key) {
            share.abandoned -= 1;
            share.abandoned_bytes -= op.block.capacity();
            share.retire(op.block);
        } else if let Some(mut running) = self.running.remove(&op.key) {
            match share.judge(&running, &mut op, result) {
                Verdict::Again { progress } => {
                    running.tries += u32::from(!progress);
                    self.running.insert(op.key, running);
                    out.push(Action::Start(op));
                }
                Verdict::Failed(error) => {
                    share.retire(op.block);
                    out.push(running.completion(Err(error), now));
                }
                Verdict::Filled { start } => {
                    share.running -= 1;
                    let filled = Filled {
                        block: op.block,
                        start,
                    };
                    out.push(running.completion(Ok(filled), now));
                }
            }
        }
        self.start_waiting(disk, now, out);
    }

    /// The caller has dropped the bytes of a completed read.
    pub(crate) fn given_back(
        &mut self,
        disk: usize,
        block: Block,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        self.shares[disk].pool.give_back(block);
        self.start_waiting(disk, now, out);
    }

    /// Abandons what has not been answered in time.
    pub(crate) fn tick(&mut self, now: Instant, out: &mut Vec<Action>) {
        while let Some(oldest) = self.running.first_entry() {
            if now.saturating_duration_since(oldest.get().started) < self.limits.stall {
                return;
            }
            let (key, running) = oldest.remove_entry();
            let disk = running.read.disk;
            self.abandoned.insert(key);
            let share = &mut self.shares[disk];
            share.abandoned += 1;
            share.abandoned_bytes += running.block_bytes;
            share.stalled_in_a_row += 1;
            let stalled = ReadError::Stalled {
                place: share.place(&running.read),
                after_ms: self.limits.stall.as_millis() as u64,
            };
            out.push(running.completion(Err(stalled), now));
            out.push(Action::Cancel { disk, key });
            self.start_waiting(disk, now, out);
        }
    }

    /// When tick() has something to do, if no answer comes before.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let (_, oldest) = self.running.first_key_value()?;
        Some(oldest.started + self.limits.stall)
    }

    fn start_waiting(&mut self, disk: usize, now: Instant, out: &mut Vec<Action>) {
        let share = &mut self.shares[disk];
        while let Some(&read) = share.waiting.front() {
            // A dead disk is tried with a single read, once the kernel has answered all others.
            if let Some(stalled) = share.dead().filter(|_| share.running > 0) {
                share.waiting.pop_front();
                let dead = ReadError::Dead {
                    place: share.place(&read),
                    stalled,
                };
                out.push(not_started(read, dead));
                continue;
            }
            let Some(op) = share.start(&read, self.next_key) else {
                return;
            };
            share.waiting.pop_front();
            let block_bytes = op.block.capacity();
            let running = Running {
                read,
                started: now,
                tries: 1,
                block_bytes,
            };
            self.running.insert(self.next_key, running);
            self.next_key += 1;
            out.push(Action::Start(op));
        }
    }
}

fn not_started(read: Read, error: ReadError) -> Action {
    Action::Complete {
        read,
        result: Err(error),
        elapsed: Duration::ZERO,
    }
}

impl Running {
    fn completion(&self, result: Result<Filled, ReadError>, now: Instant) -> Action {
        let elapsed = now.saturating_duration_since(self.started);
        Action::Complete {
            read: self.read,
            result,
            elapsed,
        }
    }
}
