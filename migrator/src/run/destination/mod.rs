//! The destination's loop: gives its QEMU what the source tells and what storage holds, as the core decides.
//! Contract: its guest never runs before every page is settled and the source has said that it is ours.

mod feed;
mod handover;
pub(super) mod reads;

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use san_io::Completed;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;

use super::journal::Journal;
use super::lan::{LanIn, LanOut};
use super::qemu;
use super::storage::Storage;
use super::{Interrupts, write_pieces};
use crate::core::digest::DigestKey;
use crate::core::handover::{Destination, DestinationEvent, End};
use crate::core::pieces::Pieces;
use crate::core::plan::Plan;
use crate::core::ram::RamTable;
use crate::core::wire::{self, Kind, Run};
use crate::qmp::{Event, Qmp};
use feed::Feed;
use reads::Reads;

/// Reports in a frame; when so many wait, they go before anything else.
const REPORTS_MAX: usize = 4096;
/// So long reports wait for others: a frame for each read of storage would cost both sides more than the pages.
const REPORTS_GATHERED: Duration = Duration::from_millis(2);
/// Return path messages are small.
const RETURN_PATH_BYTES: usize = 1 << 10;

/// How long QEMU may take for what we give it at a time, a frame or a read. It loads pages as they come; one that stands
/// still may keep a stopped guest waiting for ever. Shorter than what the source's TCP grants us (20 s), so that it hears why.
const QEMU_WAIT: Duration = Duration::from_secs(10);

/// How it ended.
#[derive(Debug)]
pub struct Outcome {
    /// The migration's name in the journals.
    pub id: String,
    /// Whose the guest is.
    pub end: End,
    /// What went wrong, if anything.
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
    Lan(Option<anyhow::Result<(Kind, Bytes)>>),
    Storage(Completed),
    ReturnPath(std::io::Result<usize>, Vec<u8>),
    QemuEvent(Result<Event, broadcast::error::RecvError>),
    Room(Result<mpsc::OwnedPermit<Pieces>, mpsc::error::SendError<()>>),
    Tick,
}

/// The next bytes of pages, from storage or the LAN by chance: neither network may keep the other waiting.
async fn page_traffic(
    reads: &mut Reads,
    lan_in: &mut mpsc::Receiver<anyhow::Result<(Kind, Bytes)>>,
) -> Wake {
    tokio::select! {
        Some(completed) = reads.completed() => Wake::Storage(completed),
        frame = lan_in.recv() => Wake::Lan(frame),
    }
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
    /// The operator's.
    pub interrupts: Interrupts,
}

/// One migration coming in.
pub struct Transfer<'a> {
    qmp: &'a Qmp,
    events: broadcast::Receiver<Event>,
    lan_in: mpsc::Receiver<anyhow::Result<(Kind, Bytes)>>,
    lan_out: LanOut,
    qemu_in: OwnedReadHalf,
    qemu_out: OwnedWriteHalf,
    return_path_open: bool,
    feed: Feed,
    reads: Reads,
    /// What QEMU was given last. Its buffers go back with the next reads, so that storage's thread wakes once for both.
    written: Pieces,
    /// Frames that go before reports.
    control: VecDeque<Vec<u8>>,
    /// When reports were last sent.
    reported: Instant,
    handover: Destination,
    run: Option<Run>,
    journal: Journal,
    why: Option<anyhow::Error>,
    interrupts: Interrupts,
    tick: tokio::time::Interval,
}

impl<'a> Transfer<'a> {
    /// A migration that QEMU waits for.
    pub fn new(qmp: &'a Qmp, incoming: Incoming) -> Transfer<'a> {
        let Incoming {
            stream,
            lan,
            storage,
            plan,
            table,
            key,
            journal,
            interrupts,
        } = incoming;
        let (lan_in, lan_out) = lan;
        let (qemu_in, qemu_out) = stream.into_split();
        Transfer {
            qmp,
            events: qmp.events(),
            lan_in: lan_in.into_channel(),
            lan_out,
            qemu_in,
            qemu_out,
            return_path_open: true,
            feed: Feed::new(table, &plan, key),
            reads: Reads::new(plan, storage),
            written: Pieces::default(),
            control: VecDeque::new(),
            reported: Instant::now(),
            handover: Destination::Receiving,
            run: None,
            journal,
            why: None,
            interrupts,
            tick: super::ticks(),
        }
    }

    /// Carries the migration to its end.
    pub async fn run(mut self) -> Outcome {
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
        let counts = self.feed.counts();
        let Transfer {
            lan_out,
            journal,
            mut why,
            control,
            ..
        } = self;
        let id = journal.id().to_owned();
        for frame in control {
            // The last words: a source that is gone does not hear them.
            let _ = lan_out.send(frame).await;
        }
        lan_out.finish().await;
        let closed = match end {
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
            pages_met: counts.met,
            pages_needed: counts.needed,
            san_bytes: self.reads.progress().san_bytes,
            resumed: self.run.is_some_and(|run| run.resume),
        }
    }

    async fn step(&mut self) -> anyhow::Result<Option<DestinationEvent>> {
        if self.feed.takes_pages() {
            self.reads.issue(|page| self.feed.wants_from_storage(page));
        }
        self.written = Pieces::default();
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
            Wake::Room(Ok(permit)) => drop(permit.send(self.next_frame().into())),
            Wake::Storage(completed) => {
                let (op, result) = self.reads.finish(completed)?;
                self.feed.storage_answered(op, result);
                self.flush().await?;
            }
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
            Wake::Tick => {
                self.tell_progress();
                // QEMU's event may have been lost.
                if self.feed.has_all_pages() && self.handover == Destination::Receiving {
                    let status = qemu::migration_status(self.qmp).await?;
                    return self.on_migration(&status).await;
                }
            }
        }
        Ok(None)
    }

    async fn wake(&mut self) -> Wake {
        let urgent = !self.control.is_empty() || self.feed.reports.len() >= REPORTS_MAX;
        let queue = &self.lan_out.queue;
        let due = tokio::time::sleep_until(self.reported + REPORTS_GATHERED);
        let reports_are_due = async {
            due.await;
            queue.clone().reserve_owned().await
        };
        let mut bytes = vec![0; RETURN_PATH_BYTES];
        tokio::select! {
            biased;
            () = self.interrupts.next() => Wake::Interrupt,
            permit = queue.clone().reserve_owned(), if urgent => Wake::Room(permit),
            _ = self.tick.tick() => Wake::Tick,
            event = self.events.recv() => Wake::QemuEvent(event),
            read = self.qemu_in.read(&mut bytes), if self.return_path_open => {
                Wake::ReturnPath(read, bytes)
            }
            // Before the traffic, which may never pause: the source waits for what is asked for.
            permit = reports_are_due, if !self.feed.reports.is_empty() => Wake::Room(permit),
            wake = page_traffic(&mut self.reads, &mut self.lan_in) => wake,
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
        let n = self.feed.reports.len().min(REPORTS_MAX);
        let frame = wire::array_frame(Kind::Reports, &self.feed.reports[..n]);
        self.feed.reports.drain(..n);
        self.reported = Instant::now();
        frame
    }

    /// Tells the source what was read from storage.
    fn tell_progress(&mut self) {
        let progress = wire::message_frame(Kind::Progress, &self.reads.progress());
        self.control.push_back(progress);
    }

    async fn on_frame(
        &mut self,
        kind: Kind,
        body: &Bytes,
    ) -> anyhow::Result<Option<DestinationEvent>> {
        match kind {
            Kind::Raw => {
                self.feed.raw(body)?;
                self.flush().await?;
            }
            Kind::RamStart => {
                self.feed.start_ram()?;
                self.flush().await?;
            }
            Kind::Pages => {
                self.feed.pages(body)?;
                self.flush().await?;
            }
            Kind::RamEnd => {
                self.feed.end_ram()?;
                self.flush().await?;
            }
            Kind::Stolen => {
                let from: &[u8; 4] = body[..]
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
                    .get_or_insert(anyhow!("the source gave up: {}", wire::abort_reason(body)));
                return Ok(Some(DestinationEvent::PeerAborted));
            }
            other => bail!("the source sent {other:?} in the middle of a migration"),
        }
        Ok(None)
    }

    /// Hands QEMU what there is for it.
    async fn flush(&mut self) -> anyhow::Result<()> {
        let out = std::mem::take(self.feed.for_qemu()?);
        let write = tokio::time::timeout(QEMU_WAIT, write_pieces(&mut self.qemu_out, &out));
        let written = tokio::select! {
            written = write => written.context("the destination QEMU does not take its stream")?,
            () = self.interrupts.next() => bail!("interrupted"),
        };
        written.context("the destination QEMU closed its stream; its own messages say why")?;
        self.written = out;
        Ok(())
    }
}
