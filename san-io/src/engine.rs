//! What does the reading: one io_uring or a few threads, behind two messages each way. An engine
//! knows nothing of time, bounds or the end of a disk; it may be stuck, its caller never.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::buffer::Block;
use crate::disk::Disk;
use crate::reader::Event;
use crate::{ring, threads};

/// One direct read, all aligned, on its way to the engine or back. It owns the memory that the
/// kernel writes, so that memory lives until the kernel has answered, whoever stopped waiting.
pub(crate) struct Op {
    pub key: u64,
    pub disk: usize,
    /// Bytes on the disk.
    pub offset: u64,
    /// Bytes wanted in all; the first `filled` are in the block already.
    pub want: usize,
    pub filled: usize,
    pub block: Block,
}

/// The kernel's answer: bytes read after `filled`.
pub(crate) struct Done {
    pub op: Op,
    pub result: io::Result<usize>,
}

/// What a [`crate::Reader`] reads with.
#[derive(Debug)]
pub enum EngineKind {
    IoUring,
    /// `why` is the kernel's refusal of io_uring; None if it was not wanted. A process that ends
    /// while such a thread hangs in the kernel stays a zombie until the disk answers; with
    /// io_uring it ends at once.
    Threads {
        why: Option<io::Error>,
    },
}

impl std::fmt::Display for EngineKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::IoUring => write!(f, "io_uring"),
            Self::Threads { why: None } => write!(f, "threads"),
            Self::Threads { why: Some(refused) } => write!(f, "threads (io_uring: {refused})"),
        }
    }
}

/// Dropping it lets its threads end, as soon as the kernel has answered what they have begun.
pub(crate) enum Engine {
    Ring(ring::Handle),
    Threads(threads::Handle),
}

impl Engine {
    /// `depth` reads of each disk at a time; the second value is how many are possible.
    pub(crate) fn start(
        disks: &[Arc<Disk>],
        depth: usize,
        want_ring: bool,
        answers: &Sender<Event>,
    ) -> io::Result<(Self, usize, EngineKind)> {
        let why = match want_ring.then(|| ring::setup(depth * disks.len())) {
            Some(Ok(uring)) => {
                let handle = ring::start(uring, disks.to_vec(), answers.clone())?;
                return Ok((Self::Ring(handle), depth, EngineKind::IoUring));
            }
            Some(Err(refused)) => Some(refused),
            None => None,
        };
        let depth = depth.min(threads::PER_DISK);
        let handle = threads::start(disks, depth, answers)?;
        Ok((Self::Threads(handle), depth, EngineKind::Threads { why }))
    }

    /// Err gives the op back: the engine's thread has ended.
    pub(crate) fn read(&self, op: Op) -> Result<(), Op> {
        match self {
            Self::Ring(handle) => handle.read(op),
            Self::Threads(handle) => handle.read(op),
        }
    }

    /// Asks the kernel to give up a read. It may not be able to.
    pub(crate) fn cancel(&self, key: u64) {
        match self {
            Self::Ring(handle) => handle.cancel(key),
            Self::Threads(_) => {} // pread(2) cannot be cancelled
        }
    }

    /// Makes the engine look at what it was given.
    pub(crate) fn wake(&self) {
        if let Self::Ring(handle) = self {
            handle.wake();
        }
    }
}
