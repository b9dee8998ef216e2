//! The source's loop: carries QEMU's stream to the destination, page by page, and decides nothing by itself — the
//! core does. Contract: on success the guest is the destination's; on failure it runs on here.

mod supply;

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc};
use vmi::LiveMemory;

use super::downtime::{Pace, govern_downtime};
use super::journal::{Journal, Promise};
use super::lan::{LanIn, LanOut};
use super::migrate::{Guest, abort_reason};
use super::progress::{Progress, Snapshot};
use super::qemu;
use super::summary::{Summary, Use, bound_ms};
use super::{Interrupts, TICK};
use crate::core::dispatcher::Dispatcher;
use crate::core::handover::{End, Source, SourceAction, SourceEvent};
use crate::core::ram::{PAGE_BYTES, RamPage, RamTable};
use crate::core::stream::{Parser, return_path};
use crate::core::wire::{self, Kind, Report};
use crate::qmp::{Event, Qmp};
use crate::vm::LiveVm;
use supply::StreamBuffer;

/// Bytes of QEMU's stream read at a time. They count as sent for QEMU, as the socket's do.
const READ_BYTES: usize = 64 << 10;
/// QEMU's own buffer in front of its socket (migration/qemu-file.c, IO_BUF_SIZE).
const QEMU_FILE_BYTES: usize = 32 << 10;
/// Bytes that a zero page takes in the stream; the kernel may double the socket's size.
const ZERO_PAGE_BYTES: usize = 9;
/// Guest pages that must stay unread while QEMU is held back: as many as everything between its
/// page loop and our parser can swallow if all are zero. Fewer, and QEMU runs out of pages, stops the
/// guest and waits for us with the guest stopped. More, and their content is sent later than it could be.
const RESERVE_PAGES: u32 =
    ((2 * qemu::SOURCE_SOCKET_BYTES + READ_BYTES + QEMU_FILE_BYTES) / ZERO_PAGE_BYTES) as u32;
/// How long a destination that was told to give up may take to end its QEMU.
const RETREAT_WAIT: Duration = Duration::from_secs(10);
/// How long a committed handover may take: the destination's QEMU takes the disks and continues.
const RUN_WAIT: Duration = Duration::from_secs(30);

/// How a migration ended.
#[derive(Debug)]
pub struct Outcome {
    /// The migration's name in the journals.
    pub id: String,
    /// Whose the guest is.
    pub end: End,
    /// Why it is not the destination's.
    pub why: Option<anyhow::Error>,
    /// The figures.
    pub summary: Summary,
}

/// Why the loop woke up.
enum Wake {
    Interrupt,
    Lan(Option<anyhow::Result<(Kind, Vec<u8>)>>),
    QemuEvent(Result<Event, broadcast::error::RecvError>),
    Stream(std::io::Result<usize>),
    /// The network would run dry.
    Idle,
    Room(Result<mpsc::OwnedPermit<Vec<u8>>, mpsc::error::SendError<()>>),
    Tick,
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
    /// The last batch of the stream was next to nothing for the network.
    stream_is_thin: bool,
    /// The next batch is stolen from the plan.
    steals_next: bool,
    events: broadcast::Receiver<Event>,
    lan_in: mpsc::Receiver<anyhow::Result<(Kind, Vec<u8>)>>,
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
    pub fn new(vm: &'a LiveVm, outgoing: Outgoing) -> anyhow::Result<Transfer<'a>> {
        let Outgoing {
            stream,
            lan,
            dispatcher,
            table,
            journal,
            guest,
            begun,
            progress,
        } = outgoing;
        let (lan_in, lan_out) = lan;
        let (qemu_in, qemu_out) = stream.into_split();
        Ok(Transfer {
            qmp: &vm.qmp,
            memory: vm.memory.clone(),
            dispatcher,
            parser: Parser::new(table.clone()),
            reserve: RESERVE_PAGES.min(table.pages() / 4),
            table,
            buffer: StreamBuffer::default(),
            qemu_in,
            qemu_out,
            stream_open: true,
            stream_is_thin: false,
            steals_next: false,
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
            journal,
            why: None,
            storage: wire::Progress::default(),
            pass: 0,
            stopped: None,
            up: None,
            begun,
            progress,
            interrupts: Interrupts::new()?,
            tick: tokio::time::interval(TICK),
        })
    }

    /// Carries the migration to its end.
    pub async fn run(mut self) -> anyhow::Result<Outcome> {
        let pace = Rc::clone(&self.pace);
        let governor = govern_downtime(self.qmp, &pace, self.guest.downtime_limit_ms);
        let end = tokio::select! {
            end = self.carry() => end,
            never = governor => match never {},
        };
        self.progress.finish();
        let summary = self.summary();
        let Transfer {
            lan_out,
            journal,
            mut why,
            ..
        } = self;
        let id = journal.id().to_owned();
        lan_out.finish().await;
        let closed = match end {
            End::Moved => journal.end(Promise::Moved),
            End::Stayed => journal.end(Promise::Stayed),
            End::Uncertain => Ok(()),
        };
        if let (Err(error), None) = (closed, &why) {
            why = Some(error);
        }
        Ok(Outcome {
            id,
            end,
            why,
            summary,
        })
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
        if self.held && self.dispatcher.open() == 0 && self.is_transferring() {
            self.release().await?;
        }
        if !self.pace.let_go.get() && self.may_be_let_go() {
            self.pace
                .lan_bytes_per_s
                .set(self.lan_out.network_use().rate());
            self.pace.let_go.set(true);
            self.pace.woken.notify_one();
        }
        match self.wake().await {
            Wake::Interrupt if self.handover.is_committed() => {
                super::note("the guest is the destination's already: waiting for its answer");
            }
            Wake::Interrupt => bail!("interrupted"),
            Wake::Lan(Some(Ok((kind, body)))) => return self.on_frame(kind, &body).await,
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
            Wake::Stream(read) => return self.on_stream(read).await,
            Wake::QemuEvent(Ok(event)) => self.on_qemu_event(&event),
            // Events are news, not state: what was missed shows in the stream.
            Wake::QemuEvent(Err(_)) => {}
            Wake::Idle => {}
            Wake::Tick => {
                self.progress.show(&self.snapshot());
                self.pace
                    .lan_bytes_per_s
                    .set(self.lan_out.network_use().rate());
                if self
                    .deadline
                    .is_some_and(|deadline| Instant::now() > deadline)
                {
                    return Ok(Some(
                        self.peer_lost(anyhow!("the destination does not answer")),
                    ));
                }
            }
        }
        Ok(None)
    }

    async fn wake(&mut self) -> Wake {
        // Looked at before room is reserved: a reserved place makes the network look busy.
        self.steals_next = self.is_transferring() && self.is_time_to_steal();
        let has_work = self.has_work();
        let waits_to_steal = !has_work && self.is_transferring() && self.dispatcher.can_steal();
        let wants_stream = self.stream_open && !self.buffer.ripe && self.is_transferring();
        if wants_stream {
            self.buffer.compact();
            self.buffer.bytes.reserve(READ_BYTES);
        }
        let mut limited = (&mut self.qemu_in).take(READ_BYTES as u64);
        tokio::select! {
            biased;
            () = self.interrupts.next() => Wake::Interrupt,
            _ = self.tick.tick() => Wake::Tick,
            frame = self.lan_in.recv() => Wake::Lan(frame),
            event = self.events.recv() => Wake::QemuEvent(event),
            read = limited.read_buf(&mut self.buffer.bytes), if wants_stream => Wake::Stream(read),
            permit = self.lan_out.queue.clone().reserve_owned(), if has_work => Wake::Room(permit),
            () = self.lan_out.idle(), if waits_to_steal => Wake::Idle,
        }
    }

    fn is_transferring(&self) -> bool {
        matches!(self.handover, Source::Transferring { .. })
    }

    fn peer_lost(&mut self, error: anyhow::Error) -> SourceEvent {
        self.why.get_or_insert(error);
        SourceEvent::PeerLost
    }

    fn has_work(&self) -> bool {
        let transfers = self.is_transferring()
            && (!self.needs.is_empty() || self.may_parse() || self.steals_next);
        transfers || !self.control.is_empty()
    }

    /// Nothing of the plan is open any more: QEMU may come to its end.
    async fn release(&mut self) -> anyhow::Result<()> {
        self.held = false;
        let mut acks = Vec::new();
        self.gate.release(&mut acks);
        self.qemu_out
            .write_all(&acks)
            .await
            .context("QEMU closed its return path")
    }

    /// Whether what is left of the first pass can be carried within the downtime that the operator allows. Before
    /// that, a burst of digests would make QEMU believe in a fast network and stop the guest with too much left.
    fn may_be_let_go(&self) -> bool {
        let left = f64::from(self.dispatcher.unseen()) * PAGE_BYTES as f64;
        let limit_s = self.guest.downtime_limit_ms as f64 / 1e3;
        !self.held && left <= self.lan_out.network_use().rate() * limit_s
    }

    async fn on_frame(&mut self, kind: Kind, body: &[u8]) -> anyhow::Result<Option<SourceEvent>> {
        match kind {
            Kind::Reports => {
                for report in wire::parse_array::<Report>(kind, body)? {
                    let (page, outcome) = report.parse(self.table.pages())?;
                    if self.dispatcher.report(page, outcome) {
                        self.needs.push_back(page);
                    }
                }
            }
            Kind::Progress => {
                self.storage = wire::parse_message(kind, body)?;
            }
            Kind::ReturnPath => {
                let mut passed = Vec::new();
                let pushed = self.gate.push(body, &mut passed);
                pushed.map_err(|n| anyhow!("the return path has a message of {n} bytes"))?;
                self.qemu_out
                    .write_all(&passed)
                    .await
                    .context("QEMU closed its return path")?;
            }
            Kind::Loaded => return Ok(Some(SourceEvent::PeerLoaded)),
            Kind::Running => {
                self.up = Some(Instant::now());
                return Ok(Some(SourceEvent::PeerRunning));
            }
            Kind::Abort => {
                let reason = abort_reason(body);
                self.why
                    .get_or_insert(anyhow!("the destination gave up: {reason}"));
                return Ok(Some(SourceEvent::PeerAborted));
            }
            other => bail!("the destination sent {other:?}, which only a source sends"),
        }
        Ok(None)
    }

    async fn on_stream(
        &mut self,
        read: std::io::Result<usize>,
    ) -> anyhow::Result<Option<SourceEvent>> {
        if read.context("reading QEMU's stream failed")? > 0 {
            self.buffer.ripe = true;
            return Ok(None);
        }
        self.stream_open = false;
        let over = |status: &str| matches!(status, "completed" | "failed" | "cancelled");
        let status = qemu::wait_for_migration(self.qmp, Duration::from_secs(10), over).await;
        let status = status.context("the source QEMU ended its stream")?;
        if status == "completed" && self.parser.is_past_ram() {
            return Ok(Some(SourceEvent::QemuCompleted));
        }
        let details = self.qmp.execute("query-migrate", json!({})).await?;
        let reason = details["error-desc"].as_str().unwrap_or("no reason given");
        bail!("the source QEMU's migration {status}: {reason}");
    }

    fn on_qemu_event(&mut self, event: &Event) {
        match event.name.as_str() {
            "MIGRATION_PASS" => self.pass = event.data["pass"].as_u64().unwrap_or(self.pass),
            "STOP" => self.stopped = Some(Instant::now()),
            "SHUTDOWN" => {
                let reason = event.data["reason"]
                    .as_str()
                    .unwrap_or("unknown")
                    .to_owned();
                self.why
                    .get_or_insert(anyhow!("the guest shut down (reason {reason})"));
            }
            _ => {}
        }
    }

    /// Lets the handover take `event` and does what it says, until it is over or has to wait.
    async fn drive(&mut self, event: SourceEvent) -> Option<End> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.handover.on(event) {
                match action {
                    SourceAction::WriteCommit => events.push_back(self.commit()),
                    SourceAction::SendRun => {
                        self.control
                            .push_back(wire::message_frame(Kind::Run, &self.guest.run));
                        self.deadline = Some(Instant::now() + RUN_WAIT);
                    }
                    SourceAction::SendAbort => {
                        let reason = self.why.as_ref().map(|why| format!("{why:#}"));
                        let reason = reason.unwrap_or_default();
                        self.control
                            .push_back(wire::frame(Kind::Abort, reason.as_bytes()));
                        self.deadline = Some(Instant::now() + RETREAT_WAIT);
                    }
                    SourceAction::ResumeGuest => {
                        // QEMU may be writing with its main loop locked: it answers only once that fails.
                        let stream = socket2::SockRef::from(self.qemu_out.as_ref());
                        let _ = stream.shutdown(std::net::Shutdown::Both);
                        if let Err(error) = qemu::take_back(self.qmp, self.guest.was_running).await
                        {
                            let why = self.why.take().unwrap_or_else(|| anyhow!("unknown cause"));
                            self.why = Some(why.context(format!("{error:#}")));
                        }
                    }
                    SourceAction::End(end) => return Some(end),
                }
            }
        }
        None
    }

    fn commit(&mut self) -> SourceEvent {
        match self.journal.write(Promise::Commit) {
            Ok(()) => SourceEvent::CommitWritten,
            Err(error) => {
                self.why.get_or_insert(error);
                SourceEvent::Failed
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
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

    fn summary(&self) -> Summary {
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
        let only_lan = lan_bytes as f64 - (counts.stolen + counts.needed) as f64 * page;
        let bound_ms = bound_ms(only_lan, either, lan, san);
        Summary {
            total_ms,
            downtime_ms: self.stopped.zip(self.up).map(|(from, to)| ms(from, to)),
            lan_bytes,
            san_bytes: self.storage.san_bytes,
            pages_content: counts.content,
            pages_claimed: counts.claimed,
            pages_zero: counts.zero,
            pages_stolen: counts.stolen,
            pages_needed: counts.needed,
            pages_unchanged: counts.unchanged,
            bound_ms,
            bound_ratio: bound_ms.map(|bound| total_ms / bound),
        }
    }
}
