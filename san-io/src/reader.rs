//! The reader's thread: carries events to the desk and its actions out, one after another. Must
//! never wait for a disk; only engines do.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::buffer::{Block, Buffer};
use crate::desk::{Action, Desk};
use crate::disk::Disk;
use crate::engine::{Done, Engine, EngineKind, Op};
use crate::error::{StartError, SubmitError};
use crate::fault::{Admitted, Faults};
use crate::share::{DiskInfo, Limits};
use crate::{Completed, Options, Read};

const DEPTH_MAX: usize = 1024;

/// io_uring gives lengths back in an i32, and allocations must fit an isize everywhere.
const BYTES_MAX: usize = 1 << 30;

/// What the reader's thread is told.
pub(crate) enum Event {
    Submit(Read),
    Done(Done),
    GivenBack { disk: usize, block: Block },
    End,
}

/// Reads disks in the background. Dropping it ends it at once: what is outstanding then gets no
/// completion, and nothing waits for a stalled read.
#[derive(Debug)]
pub struct Reader {
    events: Sender<Event>,
    outstanding: Arc<AtomicUsize>,
    capacity: usize,
    engine: EngineKind,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// `sink` is called on the reader's thread, once for each accepted read in the order of their
    /// ends. It must not block: no stall is noticed meanwhile. To await completions in tokio, let
    /// it send into an unbounded mpsc channel; [`Reader::capacity`] bounds what is in there.
    pub fn start(
        disks: Vec<Disk>,
        options: Options,
        sink: impl FnMut(Completed) + Send + 'static,
    ) -> Result<Self, StartError> {
        check(&options, &disks)?;
        let infos: Vec<DiskInfo> = disks.iter().map(DiskInfo::from).collect();
        let sources = disks.into_iter().map(Disk::into_source).collect();
        let (events, inbox) = channel();
        let (engine, depth, kind) =
            Engine::start(sources, options.depth, options.io_uring, &events)
                .map_err(StartError::Threads)?;
        let limits = Limits {
            depth,
            bytes_max: options.bytes_in_flight_max,
            stall: Duration::from_millis(options.stall_ms),
        };
        let outstanding = Arc::new(AtomicUsize::new(0));
        let capacity = 2 * depth * infos.len().max(1);
        let worker = Worker {
            desk: Desk::new(infos, limits),
            engine,
            faults: Faults::new(options.fault, Instant::now()),
            events: events.clone(),
            outstanding: outstanding.clone(),
            sink,
        };
        let thread = std::thread::Builder::new()
            .name("san-desk".into())
            .spawn(move || worker.run(&inbox))
            .map_err(StartError::Threads)?;
        Ok(Self {
            events,
            outstanding,
            capacity,
            engine: kind,
            thread: Some(thread),
        })
    }

    /// Never blocks. The read has been accepted, or an error says why not; what is wrong with the
    /// read itself comes as its completion.
    pub fn submit(&self, read: Read) -> Result<(), SubmitError> {
        let take = |n| (n < self.capacity).then_some(n + 1);
        self.outstanding
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .map_err(|_| SubmitError::Full {
                capacity: self.capacity,
            })?;
        self.events
            .send(Event::Submit(read))
            .map_err(|_| SubmitError::Ended)
    }

    /// Reads that may be outstanding: twice as many as all disks serve at a time, so that none
    /// idles until its next read is submitted.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn engine(&self) -> &EngineKind {
        &self.engine
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // The thread has ended by itself if this fails.
        let _ = self.events.send(Event::End);
        let own = |thread: &JoinHandle<()>| thread.thread().id() == std::thread::current().id();
        if let Some(thread) = self.thread.take().filter(|thread| !own(thread)) {
            // After this the sink is not called any more. Its panic has been reported already.
            let _ = thread.join();
        }
    }
}

fn check(options: &Options, disks: &[Disk]) -> Result<(), StartError> {
    let refuse = |name, value: usize, valid| {
        Err(StartError::Option {
            name,
            value: value as u64,
            valid,
        })
    };
    if !(1..=DEPTH_MAX).contains(&options.depth) {
        return refuse("depth", options.depth, "1 to 1024");
    }
    let alignment_max = disks
        .iter()
        .map(|disk| disk.alignment() as usize)
        .max()
        .unwrap_or(0);
    let bytes = options.bytes_in_flight_max;
    // One unaligned page at least: two units of alignment, in half of it.
    if bytes > BYTES_MAX || bytes < 4 * alignment_max.max(crate::PAGE_BYTES) {
        let valid = "at least 16 KiB and four times the disks' alignment, at most 1 GiB";
        return refuse("bytes_in_flight_max", bytes, valid);
    }
    if !(1..=86_400_000).contains(&options.stall_ms) {
        return Err(StartError::Option {
            name: "stall_ms",
            value: options.stall_ms,
            valid: "1 to 86400000 (a day)",
        });
    }
    Ok(())
}

struct Worker<Sink> {
    desk: Desk,
    engine: Engine,
    faults: Faults,
    events: Sender<Event>,
    outstanding: Arc<AtomicUsize>,
    sink: Sink,
}

impl<Sink: FnMut(Completed)> Worker<Sink> {
    fn run(mut self, inbox: &Receiver<Event>) {
        let mut actions = Vec::new();
        loop {
            let first = match self.wait(inbox) {
                Ok(event) => Some(event),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // What is there is taken in one go, so that an engine is woken once for all of it;
            // bounded, so that deadlines are looked at.
            let events = first.into_iter().chain(inbox.try_iter().take(DEPTH_MAX));
            for event in events {
                if matches!(event, Event::End) {
                    return;
                }
                self.note(event, &mut actions);
            }
            let now = Instant::now();
            while let Some(done) = self.faults.due(now) {
                self.desk.done(done, now, &mut actions);
            }
            self.desk.tick(now, &mut actions);
            self.act(&mut actions);
            self.engine.wake();
        }
    }

    fn wait(&self, inbox: &Receiver<Event>) -> Result<Event, RecvTimeoutError> {
        let wakes = [self.desk.next_deadline(), self.faults.next_due()];
        match wakes.into_iter().flatten().min() {
            Some(at) => inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    fn note(&mut self, event: Event, actions: &mut Vec<Action>) {
        let now = Instant::now();
        match event {
            Event::Submit(read) => self.desk.submit(read, now, actions),
            Event::Done(done) => {
                if let Some(done) = self.faults.pass(done, now) {
                    self.desk.done(done, now, actions);
                }
            }
            Event::GivenBack { disk, block } => self.desk.given_back(disk, block, now, actions),
            Event::End => {}
        }
    }

    fn act(&mut self, actions: &mut Vec<Action>) {
        let mut pending: VecDeque<Action> = actions.drain(..).collect();
        while let Some(action) = pending.pop_front() {
            match action {
                Action::Start(op) => {
                    if let Some(done) = self.start(op) {
                        self.desk.done(done, Instant::now(), actions);
                        pending.extend(actions.drain(..));
                    }
                }
                Action::Cancel { disk, key } => self.engine.cancel(disk, key),
                Action::Complete {
                    read,
                    result,
                    elapsed,
                } => {
                    let result = result.map(|filled| {
                        let (len, home) = (read.len as usize, self.events.clone());
                        Buffer::new(filled.block, filled.start, len, read.disk, home)
                    });
                    // First the room, so that the sink's owner may submit at once.
                    self.outstanding.fetch_sub(1, Ordering::AcqRel);
                    (self.sink)(Completed {
                        id: read.id,
                        result,
                        elapsed,
                    });
                }
            }
        }
    }

    /// Some if the answer is there already.
    fn start(&mut self, op: Op) -> Option<Done> {
        match self.faults.admit(op) {
            Admitted::Start(op) => self.engine.read(op).err().map(|op| Done {
                op,
                result: Err(io::Error::other("the reading thread has ended")),
            }),
            Admitted::Answer(done) => Some(done),
            Admitted::Swallowed => None,
        }
    }
}
