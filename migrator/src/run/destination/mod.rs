//! The destination's loop: gives its QEMU what the source tells and what storage holds, as the core decides.
//! Contract: its guest never runs before every page is settled and the source has said that it is ours.

mod reads;

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use san_io::Completed;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc};

use super::journal::{Journal, Promise};
use super::lan::{LanIn, LanOut};
use super::migrate::abort_reason;
use super::qemu;
use super::storage::Storage;
use super::{Interrupts, TICK};
use crate::core::assembler::{Assembler, Verdict};
use crate::core::digest::DigestKey;
use crate::core::handover::{Destination, DestinationAction, DestinationEvent, End};
use crate::core::plan::Plan;
use crate::core::ram::{PAGE_BYTES, RamPage, RamTable};
use crate::core::stream::RamWriter;
use crate::core::wire::{self, Kind, Record, Report, Run};
use crate::qmp::{Event, Qmp};
use reads::Reads;

/// Reports in a frame; when so many wait, they go before anything else.
const REPORTS_MAX: usize = 4096;
/// Device state that is kept until the last page is settled. Real guests have some hundred KiB.
const DEVICE_BYTES_MAX: usize = 64 << 20;
/// Return path messages are small.
const RETURN_PATH_BYTES: usize = 16 << 10;

/// How it ended.
#[derive(Debug)]
pub struct Outcome {
    /// The migration's name in the journals.
    pub id: String,
    /// Whose the guest is.
    pub end: End,
    /// Why it is not ours.
    pub why: Option<anyhow::Error>,
    /// Pages whose claim was met.
    pub pages_met: u64,
    /// Pages that had to be asked for.
    pub pages_needed: u64,
    /// Bytes read from storage.
    pub san_bytes: u64,
    /// Whether the guest was resumed.
    pub resumed: bool,
}

/// Why the loop woke up.
enum Wake {
    Interrupt,
    Lan(Option<anyhow::Result<(Kind, Vec<u8>)>>),
    Storage(Completed),
    ReturnPath(std::io::Result<usize>, Vec<u8>),
    QemuEvent(Result<Event, broadcast::error::RecvError>),
    Room(Result<mpsc::OwnedPermit<Vec<u8>>, mpsc::error::SendError<()>>),
    Tick,
}

/// The next bytes of pages, from storage or the LAN by chance: neither network may keep the other waiting.
async fn page_traffic(
    reads: &mut Reads,
    lan_in: &mut mpsc::Receiver<anyhow::Result<(Kind, Vec<u8>)>>,
) -> Wake {
    tokio::select! {
        Some(completed) = reads.completed() => Wake::Storage(completed),
        frame = lan_in.recv() => Wake::Lan(frame),
    }
}

/// What QEMU has been given so far.
enum Stage {
    /// Section "ram" has not started: no page can be written.
    BeforeRam,
    /// Pages may be written.
    Ram(RamWriter),
    /// Every page is settled; the device state follows.
    Device,
}

/// What a migration coming in starts with.
#[derive(Debug)]
pub struct Incoming {
    /// Where QEMU reads its stream.
    pub stream: UnixStream,
    /// The source, which has sent the plan.
    pub lan: (LanIn, LanOut),
    /// The disks that the plan names.
    pub storage: Storage,
    /// The plan.
    pub plan: Plan,
    /// The guest's RAM blocks.
    pub table: RamTable,
    /// The digest's key.
    pub key: DigestKey,
    /// The destination's journal.
    pub journal: Journal,
}

/// One migration coming in.
pub struct Transfer<'a> {
    qmp: &'a Qmp,
    events: broadcast::Receiver<Event>,
    lan_in: mpsc::Receiver<anyhow::Result<(Kind, Vec<u8>)>>,
    lan_out: LanOut,
    qemu_in: OwnedReadHalf,
    qemu_out: OwnedWriteHalf,
    return_path_open: bool,
    table: RamTable,
    assembler: Assembler,
    reads: Reads,
    reports: Vec<Report>,
    control: VecDeque<Vec<u8>>,
    stage: Stage,
    /// Every page has had its last emission.
    ram_ended: bool,
    /// Device state that waits for the last page.
    device: Vec<u8>,
    /// Bytes for QEMU.
    out: Vec<u8>,
    handover: Destination,
    run: Option<Run>,
    journal: Journal,
    why: Option<anyhow::Error>,
    interrupts: Interrupts,
    tick: tokio::time::Interval,
}

impl<'a> Transfer<'a> {
    /// A migration that QEMU waits for.
    pub fn new(qmp: &'a Qmp, incoming: Incoming) -> anyhow::Result<Transfer<'a>> {
        let Incoming {
            stream,
            lan,
            storage,
            plan,
            table,
            key,
            journal,
        } = incoming;
        let (lan_in, lan_out) = lan;
        let mut assembler = Assembler::new(table.pages(), key);
        for run in plan.runs() {
            for page in run.page.0..run.page.0 + run.pages {
                assembler.expect_from_storage(RamPage(page));
            }
        }
        let (qemu_in, qemu_out) = stream.into_split();
        Ok(Transfer {
            qmp,
            events: qmp.events(),
            lan_in: lan_in.into_channel(),
            lan_out,
            qemu_in,
            qemu_out,
            return_path_open: true,
            table,
            assembler,
            reads: Reads::new(plan, storage),
            reports: Vec::new(),
            control: VecDeque::new(),
            stage: Stage::BeforeRam,
            ram_ended: false,
            device: Vec::new(),
            out: Vec::new(),
            handover: Destination::Receiving,
            run: None,
            journal,
            why: None,
            interrupts: Interrupts::new()?,
            tick: tokio::time::interval(TICK),
        })
    }

    /// Carries the migration to its end.
    pub async fn run(mut self) -> anyhow::Result<Outcome> {
        let end = loop {
            let event = match self.step().await {
                Ok(None) => continue,
                Ok(Some(event)) => event,
                Err(error) => {
                    self.why.get_or_insert(error);
                    DestinationEvent::Failed
                }
            };
            if let Some(end) = self.drive(event).await {
                break end;
            }
        };
        let counts = self.assembler.counts();
        let Transfer {
            lan_out,
            journal,
            why,
            control,
            ..
        } = self;
        let id = journal.id().to_owned();
        for frame in control {
            // The last words: a source that is gone does not hear them.
            let _ = lan_out.send(frame).await;
        }
        lan_out.finish().await;
        match end {
            End::Moved => journal.end(Promise::Moved)?,
            End::Stayed => journal.end(Promise::Stayed)?,
            End::Uncertain => {}
        }
        Ok(Outcome {
            id,
            end,
            why,
            pages_met: counts.met,
            pages_needed: counts.needed,
            san_bytes: self.reads.progress().san_bytes,
            resumed: self.run.is_some_and(|run| run.resume),
        })
    }

    async fn step(&mut self) -> anyhow::Result<Option<DestinationEvent>> {
        if matches!(self.stage, Stage::Ram(_)) {
            self.reads
                .issue(|page| self.assembler.wants_from_storage(page));
        }
        match self.wake().await {
            Wake::Interrupt => bail!("interrupted"),
            Wake::Lan(Some(Ok((kind, body)))) => return self.on_frame(kind, &body).await,
            Wake::Lan(Some(Err(error))) => return Ok(Some(self.peer_lost(error))),
            Wake::Lan(None) => {
                return Ok(Some(
                    self.peer_lost(anyhow!("the source closed the connection")),
                ));
            }
            Wake::Room(Err(_)) => {
                return Ok(Some(
                    self.peer_lost(anyhow!("the connection to the source failed")),
                ));
            }
            Wake::Room(Ok(permit)) => drop(permit.send(self.next_frame())),
            Wake::Storage(completed) => self.on_storage(completed).await?,
            Wake::ReturnPath(read, bytes) => {
                // QEMU closes its end when it has loaded everything; its events say how that went.
                match read {
                    Ok(0) | Err(_) => self.return_path_open = false,
                    Ok(n) => self
                        .control
                        .push_back(wire::frame(Kind::ReturnPath, &bytes[..n])),
                }
            }
            Wake::QemuEvent(Ok(event)) if event.name == "MIGRATION" => {
                return self
                    .on_migration(event.data["status"].as_str().unwrap_or_default())
                    .await;
            }
            Wake::QemuEvent(_) => {}
            Wake::Tick
                if matches!(self.stage, Stage::Device)
                    && self.handover == Destination::Receiving =>
            {
                let status = qemu::migration_status(self.qmp).await?;
                return self.on_migration(&status).await;
            }
            Wake::Tick => {}
        }
        Ok(None)
    }

    async fn wake(&mut self) -> Wake {
        let urgent = !self.control.is_empty() || self.reports.len() >= REPORTS_MAX;
        let mut bytes = vec![0; RETURN_PATH_BYTES];
        tokio::select! {
            biased;
            () = self.interrupts.next() => Wake::Interrupt,
            permit = self.lan_out.queue.clone().reserve_owned(), if urgent => Wake::Room(permit),
            _ = self.tick.tick() => Wake::Tick,
            event = self.events.recv() => Wake::QemuEvent(event),
            read = self.qemu_in.read(&mut bytes), if self.return_path_open => {
                Wake::ReturnPath(read, bytes)
            }
            wake = page_traffic(&mut self.reads, &mut self.lan_in) => wake,
            permit = self.lan_out.queue.clone().reserve_owned(), if !self.reports.is_empty() => {
                Wake::Room(permit)
            }
        }
    }

    fn peer_lost(&mut self, error: anyhow::Error) -> DestinationEvent {
        self.why.get_or_insert(error);
        DestinationEvent::PeerLost
    }

    fn next_frame(&mut self) -> Vec<u8> {
        if let Some(frame) = self.control.pop_front() {
            return frame;
        }
        let n = self.reports.len().min(REPORTS_MAX);
        let mut frames = wire::array_frame(Kind::Reports, &self.reports[..n]);
        self.reports.drain(..n);
        let progress = self.reads.progress();
        frames.append(&mut wire::message_frame(Kind::Progress, &progress));
        frames
    }

    async fn on_storage(&mut self, completed: Completed) -> anyhow::Result<()> {
        let (op, result) = self.reads.finish(completed)?;
        for (page, at) in op.pages {
            let bytes = result.as_ref().map(|buffer| &buffer[at as usize..]);
            match bytes.and_then(|bytes| bytes.first_chunk::<PAGE_BYTES>()) {
                Some(bytes) => {
                    let verdict = self.assembler.from_storage(page, bytes);
                    self.carry_out(page, verdict, bytes);
                }
                None => {
                    let Verdict { report, .. } = self.assembler.storage_failed(page);
                    self.reports
                        .extend(report.map(|outcome| Report::new(page, outcome)));
                }
            }
        }
        self.flush().await
    }

    fn carry_out(&mut self, page: RamPage, verdict: Verdict, bytes: &[u8; PAGE_BYTES]) {
        // Once QEMU has all pages, what storage still answers is for pages that never were emitted.
        if let (Stage::Ram(writer), true) = (&mut self.stage, verdict.write) {
            writer.page(page, bytes);
        }
        self.reports
            .extend(verdict.report.map(|outcome| Report::new(page, outcome)));
    }

    async fn on_frame(
        &mut self,
        kind: Kind,
        body: &[u8],
    ) -> anyhow::Result<Option<DestinationEvent>> {
        match kind {
            Kind::Raw => return self.on_raw(body).await.map(|()| None),
            Kind::RamStart => {
                let id: &[u8; 4] = body
                    .try_into()
                    .context("a RamStart that is not 4 bytes long")?;
                ensure!(matches!(self.stage, Stage::BeforeRam), "RAM starts twice");
                self.stage =
                    Stage::Ram(RamWriter::new(self.table.clone(), u32::from_le_bytes(*id)));
            }
            Kind::Pages => return self.on_pages(body).await.map(|()| None),
            Kind::RamEnd => {
                ensure!(
                    matches!(self.stage, Stage::Ram(_)) && !self.ram_ended,
                    "RAM ends before it starts"
                );
                self.ram_ended = true;
                return self.finish_ram().await.map(|()| None);
            }
            Kind::Stolen => {
                let from: &[u8; 4] = body
                    .try_into()
                    .context("a Stolen that is not 4 bytes long")?;
                self.reads.leave(u32::from_le_bytes(*from));
            }
            Kind::Run => {
                self.run = Some(wire::parse_message(kind, body)?);
                return Ok(Some(DestinationEvent::PeerRun));
            }
            Kind::Abort => {
                self.why
                    .get_or_insert(anyhow!("the source gave up: {}", abort_reason(body)));
                return Ok(Some(DestinationEvent::PeerAborted));
            }
            other => bail!("the source sent {other:?} in the middle of a migration"),
        }
        Ok(None)
    }

    /// Bytes of QEMU's stream that are not pages: structure goes on at once, device state when all is settled.
    async fn on_raw(&mut self, raw: &[u8]) -> anyhow::Result<()> {
        if self.ram_ended && !matches!(self.stage, Stage::Device) {
            ensure!(
                self.device.len() + raw.len() <= DEVICE_BYTES_MAX,
                "more than {DEVICE_BYTES_MAX} bytes of device state"
            );
            self.device.extend_from_slice(raw);
            return Ok(());
        }
        if let Stage::Ram(writer) = &mut self.stage {
            writer.take(&mut self.out);
        }
        self.out.extend_from_slice(raw);
        self.flush().await
    }

    async fn on_pages(&mut self, body: &[u8]) -> anyhow::Result<()> {
        for record in wire::parse_pages(body, self.table.pages()) {
            let record = record?;
            let Stage::Ram(writer) = &mut self.stage else {
                bail!("pages outside of RAM")
            };
            let verdict = self.assembler.record(&record);
            let page = match record {
                Record::Zero(page, count) => {
                    (page.0..page.0 + u32::from(count)).for_each(|page| writer.zero(RamPage(page)));
                    continue;
                }
                Record::Content(page, bytes) | Record::Early(page, bytes) => {
                    if verdict.write {
                        writer.page(page, bytes);
                    }
                    page
                }
                Record::Claim(page, _) | Record::Dirtied(page) => page,
            };
            self.reports
                .extend(verdict.report.map(|outcome| Report::new(page, outcome)));
        }
        self.flush().await?;
        self.finish_ram().await
    }

    /// Hands QEMU what was written for it.
    async fn flush(&mut self) -> anyhow::Result<()> {
        if let Stage::Ram(writer) = &mut self.stage
            && !writer.is_empty()
        {
            writer.take(&mut self.out);
        }
        let written = self.qemu_out.write_all(&self.out).await;
        self.out.clear();
        written.context("the destination QEMU closed its stream; its own messages say why")
    }

    /// Ends RAM and passes the device state on, once every emission was made and every page is settled.
    async fn finish_ram(&mut self) -> anyhow::Result<()> {
        if !self.ram_ended {
            return Ok(());
        }
        ensure!(
            !self.assembler.has_stale(),
            "QEMU did not emit a page again that the guest had written to"
        );
        if let Stage::Ram(writer) = &mut self.stage
            && self.assembler.is_settled()
        {
            writer.end(&mut self.out);
            self.out.append(&mut self.device);
            self.stage = Stage::Device;
            self.flush().await?;
        }
        Ok(())
    }

    async fn on_migration(&mut self, status: &str) -> anyhow::Result<Option<DestinationEvent>> {
        match status {
            "completed" if matches!(self.stage, Stage::Device) => {
                // `completed` may be said a moment before the run state leaves inmigrate.
                for _ in 0..500 {
                    if qemu::run_state(self.qmp).await? != "inmigrate" {
                        return Ok(Some(DestinationEvent::Loaded));
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                bail!("the destination QEMU has loaded everything and stays in state inmigrate");
            }
            "completed" => bail!("the destination QEMU calls the migration completed before it is"),
            "failed" => {
                bail!("the destination QEMU could not load the guest; its own messages say why")
            }
            _ => Ok(None),
        }
    }

    /// Lets the handover take `event` and does what it says, until it is over or has to wait.
    async fn drive(&mut self, event: DestinationEvent) -> Option<End> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.handover.on(event) {
                match action {
                    DestinationAction::SendLoaded => self.tell(Kind::Loaded, b""),
                    DestinationAction::WriteRun => {
                        let written = self.journal.write(Promise::Run);
                        events.push_back(self.or_failed(written, DestinationEvent::RunWritten));
                    }
                    DestinationAction::StartGuest => {
                        let started = self.start_guest().await;
                        events.push_back(self.or_failed(started, DestinationEvent::GuestUp));
                    }
                    DestinationAction::SendRunning => self.tell(Kind::Running, b""),
                    DestinationAction::QuitQemu => {
                        // Gone already, or it refuses: without Run its guest stays paused either way.
                        let _ = self.qmp.execute("quit", json!({})).await;
                    }
                    DestinationAction::SendAborted => {
                        let reason = self.why.as_ref().map(|why| format!("{why:#}"));
                        self.tell(Kind::Abort, reason.unwrap_or_default().as_bytes());
                    }
                    DestinationAction::End(end) => return Some(end),
                }
            }
        }
        None
    }

    fn tell(&mut self, kind: Kind, body: &[u8]) {
        self.control.push_back(wire::frame(kind, body));
    }

    fn or_failed(&mut self, done: anyhow::Result<()>, event: DestinationEvent) -> DestinationEvent {
        match done {
            Ok(()) => event,
            Err(error) => {
                self.why.get_or_insert(error);
                DestinationEvent::Failed
            }
        }
    }

    async fn start_guest(&mut self) -> anyhow::Result<()> {
        if self.run.is_some_and(|run| run.resume) {
            self.qmp
                .execute("cont", json!({}))
                .await
                .context("the guest is ours but does not continue")?;
        }
        Ok(())
    }
}
