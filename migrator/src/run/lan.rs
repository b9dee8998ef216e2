//! The connection between the hosts: frames in, frames out, little buffered on the way.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};

use super::summary::Use;
use super::{tcp_info, write_pieces};
use crate::core::pieces::Pieces;
use crate::core::wire::{self, HEADER_BYTES, Kind, PREFACE_BYTES};

/// Frames that wait for the network. What waits here waits before anything more urgent, and QEMU takes
/// it for sent: four frames of 128 KiB are 42 ms at 100 Mbit/s. Fewer would let the network run dry between two wake-ups.
const FRAMES_QUEUED: usize = 4;
/// Bytes that the kernel keeps unsent, for the same reason: sent and unacknowledged ones do not count.
const UNSENT_BYTES: u32 = 128 << 10;
/// Unacknowledged data, or silence in the face of probes, for so long means that the peer is lost. Shorter would
/// give up on a switch that reboots its spanning tree, longer would keep the operator in the dark.
const PEER_LOST: Duration = Duration::from_secs(20);
/// A peer that connects and says nothing does not hold up the listener for longer.
const PREFACE_WAIT: Duration = Duration::from_secs(5);

/// The sending end: a queue in front of a task that writes.
#[derive(Debug)]
pub struct LanOut {
    /// Room for whole batches of frames.
    pub queue: mpsc::Sender<Pieces>,
    stats: Arc<Stats>,
    writer: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Stats {
    bytes: AtomicU64,
    /// As the kernel counts them when a write ends.
    acked: AtomicU64,
    busy_us: AtomicU64,
    is_writing: AtomicBool,
    /// Woken when a write is over and nothing waits behind it.
    idle: Notify,
}

/// The receiving end.
#[derive(Debug)]
pub struct LanIn {
    read: OwnedReadHalf,
    body: Vec<u8>,
}

/// Sets the connection up and exchanges prefaces; fails when the peer is something else.
pub async fn open(stream: TcpStream) -> anyhow::Result<(LanIn, LanOut)> {
    let socket = socket2::SockRef::from(&stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    socket.set_tcp_user_timeout(Some(PEER_LOST))?;
    let probes = socket2::TcpKeepalive::new()
        .with_time(PEER_LOST / 4)
        .with_interval(PEER_LOST / 4)
        .with_retries(3);
    socket.set_tcp_keepalive(&probes)?;
    let (mut read, mut write) = stream.into_split();
    write.write_all(&wire::preface()).await?;
    let mut peer = [0; PREFACE_BYTES];
    match tokio::time::timeout(PREFACE_WAIT, read.read_exact(&mut peer)).await {
        Ok(read) => drop(read.context("the peer closed the connection at once")?),
        Err(_) => bail!("the peer did not greet within {} s", PREFACE_WAIT.as_secs()),
    }
    wire::choose_version(&peer)?;
    let stats = Arc::new(Stats::default());
    let (queue, frames) = mpsc::channel(FRAMES_QUEUED);
    let writer = tokio::spawn(write_frames(write, frames, stats.clone()));
    Ok((
        LanIn {
            read,
            body: Vec::new(),
        },
        LanOut {
            queue,
            stats,
            writer,
        },
    ))
}

impl LanIn {
    /// The next frame's kind, its body in `self.body`; none when the peer closed the connection.
    async fn next(&mut self) -> anyhow::Result<Option<Kind>> {
        let mut header = [0; HEADER_BYTES];
        if let Err(error) = self.read.read_exact(&mut header).await {
            return match error.kind() {
                std::io::ErrorKind::UnexpectedEof => Ok(None),
                _ => Err(error).context("the connection to the peer failed"),
            };
        }
        let (kind, len) = wire::parse_header(&header)?;
        self.body.clear();
        self.body.reserve_exact(len);
        let mut rest = (&mut self.read).take(len as u64);
        while self.body.len() < len {
            if rest.read_buf(&mut self.body).await? == 0 {
                bail!("the peer ended inside a frame");
            }
        }
        Ok(Some(kind))
    }

    /// The next frame; none when the peer closed the connection. Not safe to drop half-way.
    pub async fn receive(&mut self) -> anyhow::Result<Option<(Kind, Bytes)>> {
        let kind = self.next().await?;
        Ok(kind.map(|kind| (kind, std::mem::take(&mut self.body).into())))
    }

    /// Reads frames in a task of their own, so that a `select!` can wait for them. The channel ends with
    /// the connection; an error is its last message.
    pub fn into_channel(mut self) -> mpsc::Receiver<anyhow::Result<(Kind, Bytes)>> {
        let (sender, receiver) = mpsc::channel(FRAMES_QUEUED);
        tokio::spawn(async move {
            loop {
                let Some(message) = self.receive().await.transpose() else {
                    return;
                };
                let last = message.is_err();
                if sender.send(message).await.is_err() || last {
                    return;
                }
            }
        });
        receiver
    }
}

impl LanOut {
    /// Whether nothing waits for the network: it will run dry if nothing comes.
    pub fn is_idle(&self) -> bool {
        self.queue.capacity() == FRAMES_QUEUED && !self.stats.is_writing.load(Ordering::Relaxed)
    }

    /// Waits until the network is idle. Only for one waiter at a time.
    pub async fn idle(&self) {
        while !self.is_idle() {
            self.stats.idle.notified().await;
        }
    }

    /// Sends frames, waiting for room.
    pub async fn send(&self, frames: impl Into<Pieces>) -> anyhow::Result<()> {
        self.queue
            .send(frames.into())
            .await
            .context("the connection to the peer is closed")
    }

    /// Bytes handed to the network so far.
    pub fn bytes(&self) -> u64 {
        self.stats.bytes.load(Ordering::Relaxed)
    }

    /// How much of the network was in use: the bytes that the peer has acknowledged, and the time that took.
    pub fn network_use(&self) -> Use {
        let bytes = self.stats.acked.load(Ordering::Relaxed) as f64;
        Use {
            bytes,
            seconds: self.stats.busy_us.load(Ordering::Relaxed) as f64 / 1e6,
        }
    }

    /// Writes what is queued and closes the sending direction.
    pub async fn finish(self) {
        drop(self.queue);
        // The peer may be gone; whoever finishes has nothing more to lose.
        let _ = tokio::time::timeout(PREFACE_WAIT, self.writer).await;
    }
}

async fn write_frames(
    mut write: OwnedWriteHalf,
    mut frames: mpsc::Receiver<Pieces>,
    stats: Arc<Stats>,
) {
    while let Some(batch) = frames.recv().await {
        stats.is_writing.store(true, Ordering::Relaxed);
        if write_pieces(&mut write, &batch).await.is_err() {
            return;
        }
        stats.bytes.fetch_add(batch.len() as u64, Ordering::Relaxed);
        let sent = tcp_info::sent(write.as_ref().as_fd());
        stats.acked.store(sent.bytes, Ordering::Relaxed);
        stats.busy_us.store(sent.busy_us, Ordering::Relaxed);
        stats.is_writing.store(false, Ordering::Relaxed);
        if frames.is_empty() {
            stats.idle.notify_one();
        }
    }
    let _ = write.shutdown().await;
}

/// The peer's reason, made fit for a terminal.
pub(super) fn abort_reason(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(1000)]).into_owned();
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
