//! The source's loop: carries QEMU's stream to the destination, page by page, and decides nothing by itself — the
//! core does. Contract: on success the guest is the destination's; on failure it runs on here.

mod events;
mod figures;
mod handover;
pub(super) mod pacing;
mod supply;

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{anyhow, bail};
use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc};
use vmi::LiveMemory;

use super::Interrupts;
use super::batch::Batch;
use super::downtime::{Pace, govern_downtime};
use super::journal::Journal;
use super::lan::{LanIn, LanOut};
use super::progress::Progress;
use super::summary::Summary;
use crate::core::dispatcher::Dispatcher;
use crate::core::handover::{End, Source, SourceEvent};
use crate::core::pieces::Pieces;
use crate::core::ram::{RamPage, RamTable};
use crate::core::stream::{Parser, return_path};
use crate::core::wire::{self, Kind, Run};
use crate::qmp::{Event, Qmp};
use crate::vm::LiveVm;
use supply::StreamBuffer;

/// Bytes of QEMU's stream read at a time. They count as sent for QEMU, as the socket's do.
const READ_BYTES: usize = 256 << 10;
/// The destination tells its progress at every tick, too. One whose host answers for it but that says nothing for 30 s
/// hangs, and may keep a stopped guest waiting. In ticks: a source that was stopped itself has not listened.
const SILENT_TICKS_MAX: u32 = 150;

/// How a migration ended.
#[derive(Debug)]
pub struct Outcome {
    /// The migration's name in the journals.
    pub id: String,
    /// Whose the guest is.
    pub end: End,
    /// What went wrong, if anything.
    pub why: Option<anyhow::Error>,
    /// The guest was to run at the destination, not to stay paused.
    pub resume: bool,
    /// The figures.
    pub summary: Summary,
}

/// Why the loop woke up.
enum Wake {
    Interrupt,
    Lan(Option<anyhow::Result<(Kind, Bytes)>>),
    QemuEvent(Result<Event, broadcast::error::RecvError>),
    Stream(std::io::Result<usize>),
    /// The network would run dry.
    Hungry,
    Room(Result<mpsc::OwnedPermit<Pieces>, mpsc::error::SendError<()>>),
    Tick,
}

/// What the guest was and shall be.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    /// It ran when the migration began.
    pub was_running: bool,
    /// What the destination shall do with it.
    pub run: Run,
    /// QEMU's downtime-limit once it is let go, in milliseconds.
    pub downtime_limit_ms: u64,
}

/// What a migration going out starts with.
#[derive(Debug)]
pub struct Outgoing {
    /// Where QEMU writes its stream.
    pub stream: UnixStream,
    /// The destination, which has the plan.
    pub lan: (LanIn, LanOut),
    /// The core, with the plan.
    pub dispatcher: Dispatcher,
    /// The guest's RAM blocks.
    pub table: RamTable,
    /// The source's journal.
    pub journal: Journal,
    /// What the guest was and shall be.
    pub guest: Guest,
    /// When the command began.
    pub begun: Instant,
    /// What people see.
    pub progress: Progress,
    /// The operator's.
    pub interrupts: Interrupts,
}

/// One migration going out.
pub struct Transfer<'a> {
    qmp: &'a Qmp,
    memory: Arc<dyn LiveMemory>,
    table: RamTable,
    dispatcher: Dispatcher,
    parser: Parser,
    reserve: u32,
    buffer: StreamBuffer,
    qemu_in: OwnedReadHalf,
    qemu_out: OwnedWriteHalf,
    stream_open: bool,
    /// What the stream has told and the network has not taken yet.
    batch: Batch,
    /// The next batch takes pages along that QEMU has not emitted.
    takes_more: bool,
    events: broadcast::Receiver<Event>,
    lan_in: mpsc::Receiver<anyhow::Result<(Kind, Bytes)>>,
    lan_out: LanOut,
    /// Frames that go before everything else.
    control: VecDeque<Vec<u8>>,
    /// Pages that the destination asked for.
    needs: VecDeque<RamPage>,
    gate: return_path::Gate,
    /// QEMU must not come to its end yet.
    held: bool,
    /// What the downtime governor goes by.
    pace: Rc<Pace>,
    guest: Guest,
    handover: Source,
    /// When waiting for the peer's part in the handover is over.
    deadline: Option<Instant>,
    /// Ticks since the destination last said anything.
    silent_ticks: u32,
    /// The destination has said that its guest will never run.
    peer_aborted: bool,
    journal: Journal,
    why: Option<anyhow::Error>,
    storage: wire::Progress,
    pass: u64,
    stopped: Option<Instant>,
    up: Option<Instant>,
    begun: Instant,
    progress: Progress,
    interrupts: Interrupts,
    tick: tokio::time::Interval,
}

impl<'a> Transfer<'a> {
    /// A migration of `vm` that QEMU has begun.
    pub fn new(vm: &'a LiveVm, outgoing: Outgoing) -> Transfer<'a> {
        let Outgoing {
            stream,
            lan,
            dispatcher,
            table,
            journal,
            guest,
            begun,
            progress,
            interrupts,
        } = outgoing;
        let (lan_in, lan_out) = lan;
        let (qemu_in, qemu_out) = stream.into_split();
        Transfer {
            qmp: &vm.qmp,
            memory: vm.memory.clone(),
            dispatcher,
            parser: Parser::new(table.clone()),
            reserve: pacing::reserve(vm.memory.as_ref(), &table),
            table,
            buffer: StreamBuffer::default(),
            qemu_in,
            qemu_out,
            stream_open: true,
            batch: Batch::default(),
            takes_more: false,
            events: vm.qmp.events(),
            lan_in: lan_in.into_channel(),
            lan_out,
            control: VecDeque::new(),
            needs: VecDeque::new(),
            gate: return_path::Gate::default(),
            held: true,
            pace: Rc::default(),
            guest,
            handover: Source::START,
            deadline: None,
            silent_ticks: 0,
            peer_aborted: false,
            journal,
            why: None,
            storage: wire::Progress::default(),
            pass: 0,
            stopped: None,
            up: None,
            begun,
            progress,
            interrupts,
            tick: super::ticks(),
        }
    }

    /// Carries the migration to its end.
    pub async fn run(mut self) -> Outcome {
        let pace = Rc::clone(&self.pace);
        let governor = govern_downtime(self.qmp, &pace, self.guest.downtime_limit_ms);
        let end = tokio::select! {
            end = self.carry() => end,
            never = governor => match never {},
        };
        self.progress.finish();
        let summary = self.summary();
        let may_hold_still = self.parser.is_past_ram() && !self.peer_aborted;
        let Transfer {
            lan_out,
            journal,
            mut why,
            ..
        } = self;
        let id = journal.id().to_owned();
        lan_out.finish().await;
        let closed = match end {
            // The destination may hold still with all that it needs: `settle` tells from this journal whose the guest is.
            End::Stayed if may_hold_still => Ok(()),
            End::Moved | End::Stayed => journal.end(),
            End::Uncertain => Ok(()),
        };
        if let Err(error) = closed {
            why.get_or_insert(error);
        }
        Outcome {
            id,
            end,
            why,
            resume: self.guest.run.resume,
            summary,
        }
    }

    async fn carry(&mut self) -> End {
        loop {
            let event = match self.step().await {
                Ok(None) => continue,
                Ok(Some(event)) => event,
                Err(error) => {
                    self.why.get_or_insert(error);
                    SourceEvent::Failed
                }
            };
            if let Some(end) = self.drive(event).await {
                return end;
            }
        }
    }

    /// Waits for one thing to happen and deals with it.
    async fn step(&mut self) -> anyhow::Result<Option<SourceEvent>> {
        self.let_go().await?;
        if self.is_transferring() {
            self.tell_stream()?;
        }
        match self.wake().await {
            Wake::Interrupt if self.handover.is_committed() => {
                super::note("the guest is the destination's already: waiting for its answer");
            }
            Wake::Interrupt => bail!("interrupted"),
            Wake::Lan(Some(Ok((kind, body)))) => {
                self.silent_ticks = 0;
                return self.on_frame(kind, &body).await;
            }
            Wake::Lan(Some(Err(error))) => return Ok(Some(self.peer_lost(error))),
            Wake::Lan(None) => {
                let error = anyhow!("the destination closed the connection");
                return Ok(Some(self.peer_lost(error)));
            }
            Wake::Room(Err(_)) => {
                return Ok(Some(
                    self.peer_lost(anyhow!("the connection to the destination failed")),
                ));
            }
            Wake::Room(Ok(permit)) => {
                if let Some(batch) = self.next_batch()? {
                    permit.send(batch);
                }
            }
            Wake::Stream(read) => {
                // A stream that never pauses must not keep this thread from the network.
                tokio::task::yield_now().await;
                return self.on_stream(read).await;
            }
            Wake::QemuEvent(Ok(event)) => self.on_qemu_event(&event),
            // Events are news, not state: what was missed shows in the stream.
            Wake::QemuEvent(Err(_)) => {}
            Wake::Hungry => {
                // Looking at pages that turn out zero must not keep this thread from all else.
                tokio::task::yield_now().await;
                self.take_more()?;
            }
            Wake::Tick => {
                self.progress.show(&self.snapshot());
                self.tell_rate();
                self.silent_ticks += 1;
                if self.is_transferring() && self.silent_ticks > SILENT_TICKS_MAX {
                    bail!("the destination says nothing any more");
                }
                if self
                    .deadline
                    .is_some_and(|deadline| Instant::now() > deadline)
                {
                    let error = anyhow!("the destination does not answer");
                    return Ok(Some(self.peer_lost(error)));
                }
            }
        }
        Ok(None)
    }

    async fn wake(&mut self) -> Wake {
        // Looked at before room is reserved: a reserved place makes the network look busy.
        self.takes_more = self.is_time_for_more();
        let has_work = self.has_work();
        let waits_for_hunger = !has_work && self.has_more();
        let wants_stream = self.stream_open && !self.buffer.ripe && self.is_transferring();
        // Records are gathered while the stream gives more of them, but at nobody's expense.
        let wants_stream = wants_stream && !self.keeps_someone_waiting();
        if wants_stream {
            self.buffer.make_room(READ_BYTES);
        }
        let mut limited = (&mut self.qemu_in).take(READ_BYTES as u64);
        tokio::select! {
            biased;
            () = self.interrupts.next() => Wake::Interrupt,
            _ = self.tick.tick() => Wake::Tick,
            frame = self.lan_in.recv() => Wake::Lan(frame),
            event = self.events.recv() => Wake::QemuEvent(event),
            read = limited.read_buf(&mut self.buffer.reading), if wants_stream => Wake::Stream(read),
            permit = self.lan_out.queue.clone().reserve_owned(), if has_work => Wake::Room(permit),
            () = self.lan_out.hungry(), if waits_for_hunger => Wake::Hungry,
        }
    }

    fn is_transferring(&self) -> bool {
        matches!(self.handover, Source::Transferring { .. })
    }

    fn has_work(&self) -> bool {
        let transfers = self.is_transferring()
            && (!self.needs.is_empty() || !self.batch.is_empty() || self.takes_more);
        transfers || !self.control.is_empty()
    }
}
