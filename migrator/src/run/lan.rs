//! The connection between the hosts: frames in, frames out, little buffered on the way.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};

use super::summary::Use;
use super::{tcp_info, write_pieces};
use crate::core::pieces::Pieces;
use crate::core::wire::{self, Frames, Kind, PREFACE_BYTES};

/// Frames that wait for the network. What waits here waits before anything more urgent, and QEMU takes
/// it for sent: four batches of 128 KiB are 42 ms at 100 Mbit/s, and one is gathered behind them. Fewer would let the network run dry between two wake-ups.
const FRAMES_QUEUED: usize = 4;
/// Bytes that the kernel keeps unsent, for the same reason: sent and unacknowledged ones do not count. They last for so
/// long, or a busy host that lets us wait for a CPU would let the network run dry; before its rate is known, and at the
/// most, they are …
const UNSENT_SECONDS: f64 = 0.01;
const UNSENT_BYTES: u32 = 128 << 10;
const UNSENT_BYTES_MAX: u32 = 4 << 20;
/// Packets carry up to 64 KiB, and each would wake us: what comes within this time, and the runtime's timer's millisecond, is
/// read at once.
const GATHERED: Duration = Duration::from_millis(1);
/// How often the kernel is asked what of the network was in use.
const USE_ASKED: Duration = Duration::from_millis(10);
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
    /// Woken when the last frame that waited is being written.
    hungry: Notify,
}

/// The receiving end.
#[derive(Debug)]
pub struct LanIn {
    read: OwnedReadHalf,
    frames: Frames,
    /// Not to be read from before.
    due: tokio::time::Instant,
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
            frames: Frames::default(),
            due: tokio::time::Instant::now(),
        },
        LanOut {
            queue,
            stats,
            writer,
        },
    ))
}

impl LanIn {
    /// The next frame; none when the peer closed the connection.
    pub async fn receive(&mut self) -> anyhow::Result<Option<(Kind, Bytes)>> {
        loop {
            if let Some(frame) = self.frames.take()? {
                return Ok(Some(frame));
            }
            tokio::time::sleep_until(self.due).await;
            let room = self.frames.room();
            let room_bytes = room.capacity() - room.len();
            let read = self.read.read_buf(room).await;
            match read.context("the connection to the peer failed")? {
                0 if self.frames.is_empty() => return Ok(None),
                0 => bail!("the peer ended inside a frame"),
                n if n < room_bytes => self.due = tokio::time::Instant::now() + GATHERED,
                // More may be there.
                _ => {}
            }
        }
    }

    /// Reads frames in a task of their own, so that a `select!` can wait for them. The channel ends with
    /// the connection; an error is its last message.
    pub fn into_channel(mut self) -> mpsc::Receiver<anyhow::Result<(Kind, Bytes)>> {
        let (sender, receiver) = mpsc::channel(FRAMES_QUEUED);
        tokio::spawn(async move {
            loop {
                // Nobody listens any more: the peer's end must not be held for it.
                let received = tokio::select! {
                    received = self.receive() => received,
                    () = sender.closed() => return,
                };
                let Some(message) = received.transpose() else {
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
    /// Whether nothing waits behind what is being written: the network will run dry if nothing comes.
    pub fn is_hungry(&self) -> bool {
        self.queue.capacity() == FRAMES_QUEUED
    }

    /// Waits until it is. Only for one waiter at a time.
    pub async fn hungry(&self) {
        while !self.is_hungry() {
            self.stats.hungry.notified().await;
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
    let mut asked = Instant::now();
    while let Some(batch) = frames.recv().await {
        if frames.is_empty() {
            stats.hungry.notify_one();
        }
        if write_pieces(&mut write, &batch).await.is_err() {
            return;
        }
        stats.bytes.fetch_add(batch.len() as u64, Ordering::Relaxed);
        if asked.elapsed() > USE_ASKED {
            asked = Instant::now();
            let sent = tcp_info::sent(write.as_ref().as_fd());
            stats.acked.store(sent.bytes, Ordering::Relaxed);
            stats.busy_us.store(sent.busy_us, Ordering::Relaxed);
            // One that stays as it was only makes the network less sure to be busy.
            let _ = socket2::SockRef::from(write.as_ref()).set_tcp_notsent_lowat(unsent(sent));
        }
    }
    let _ = write.shutdown().await;
}

/// How many bytes the kernel shall keep unsent.
fn unsent(sent: tcp_info::Sent) -> u32 {
    let rate = sent.bytes as f64 * 1e6 / sent.busy_us.max(1) as f64;
    ((rate * UNSENT_SECONDS) as u32).clamp(UNSENT_BYTES, UNSENT_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_much_is_unsent_as_the_network_carries_in_ten_milliseconds() {
        let sent = |bytes, busy_us| tcp_info::Sent { bytes, busy_us };
        assert_eq!(unsent(sent(0, 0)), UNSENT_BYTES);
        assert_eq!(unsent(sent(12_500_000, 1_000_000)), UNSENT_BYTES);
        assert_eq!(unsent(sent(125_000_000, 1_000_000)), 1_250_000);
        assert_eq!(unsent(sent(u64::MAX, 1)), UNSENT_BYTES_MAX);
    }
}
