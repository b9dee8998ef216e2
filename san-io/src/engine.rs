//! What does the reading: for each disk an io_uring or a few threads, so that a hanging disk holds
//! up no other. Knows nothing of time, bounds or a disk's end; may get stuck, its caller must not.

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
    /// while such a thread hangs in the kernel stays a zombie until the disk answers.
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

/// One engine for each disk. Dropping it lets its threads end, as soon as the kernel has answered
/// what they have begun.
pub(crate) enum Engine {
    Rings(Vec<ring::Handle>),
    Threads(Vec<threads::Handle>),
}

impl Engine {
    /// `depth` reads of each disk at a time; the second value is how many are possible.
    pub(crate) fn start(
        disks: &[Arc<Disk>],
        depth: usize,
        want_rings: bool,
        answers: &Sender<Event>,
    ) -> io::Result<(Self, usize, EngineKind)> {
        let setup = || {
            disks
                .iter()
                .map(|_| ring::setup(depth))
                .collect::<Result<Vec<_>, _>>()
        };
        let why = match want_rings.then(setup) {
            Some(Ok(rings)) => {
                let start = |(ring, disk): (_, &Arc<Disk>)| {
                    ring::start(ring, disk.clone(), answers.clone())
                };
                let rings = rings.into_iter().zip(disks).map(start);
                let rings = Self::Rings(rings.collect::<Result<_, _>>()?);
                return Ok((rings, depth, EngineKind::IoUring));
            }
            Some(Err(refused)) => Some(refused),
            None => None,
        };
        let depth = depth.min(threads::PER_DISK);
        let threads = disks
            .iter()
            .map(|disk| threads::start(disk, depth, answers));
        let threads = Self::Threads(threads.collect::<Result<_, _>>()?);
        Ok((threads, depth, EngineKind::Threads { why }))
    }

    /// Err gives the op back: the engine's thread has ended.
    pub(crate) fn read(&mut self, op: Op) -> Result<(), Op> {
        match self {
            Self::Rings(rings) => rings[op.disk].read(op),
            Self::Threads(threads) => threads[op.disk].read(op),
        }
    }

    /// Asks the kernel to give up a read. It may not be able to.
    pub(crate) fn cancel(&mut self, disk: usize, key: u64) {
        match self {
            Self::Rings(rings) => rings[disk].cancel(key),
            Self::Threads(_) => {} // pread(2) cannot be cancelled
        }
    }

    /// Makes the engine look at what it was given since the last time.
    pub(crate) fn wake(&mut self) {
        if let Self::Rings(rings) = self {
            rings.iter_mut().for_each(ring::Handle::wake);
        }
    }
}
