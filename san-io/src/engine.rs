//! What does the reading: for each disk an io_uring, a few threads, or connections to an NBD server,
//! so that a hanging disk holds up no other. Knows nothing of time, bounds or a disk's end; may get stuck, its caller must not.

use std::io;
use std::sync::mpsc::Sender;

use crate::buffer::Block;
use crate::disk::Source;
use crate::reader::Event;
use crate::{nbd, ring, threads};

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

/// What a [`crate::Reader`] reads files and block devices with.
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

/// One for each disk. Dropping it lets its threads end, as soon as the kernel has answered what they
/// have begun.
pub(crate) struct Engine(Vec<DiskEngine>);

enum DiskEngine {
    Ring(ring::Handle),
    Threads(threads::Handle),
    Nbd(nbd::Handle),
}

impl Engine {
    /// `depth` reads of each disk at a time; the second value is how many are possible.
    pub(crate) fn start(
        disks: Vec<Source>,
        depth: usize,
        want_rings: bool,
        answers: &Sender<Event>,
    ) -> io::Result<(Self, usize, EngineKind)> {
        let files = disks.iter().filter(|disk| matches!(disk, Source::File(_)));
        let setup = || files.map(|_| ring::setup(depth)).collect::<Result<_, _>>();
        let (mut rings, depth, kind) = match want_rings.then(setup) {
            Some(Ok(rings)) => (rings, depth, EngineKind::IoUring),
            refused => {
                let why = refused.and_then(Result::err);
                let kind = EngineKind::Threads { why };
                (Vec::new(), depth.min(threads::PER_DISK), kind)
            }
        };
        let start = |disk| {
            Ok(match disk {
                Source::Nbd(export) => DiskEngine::Nbd(nbd::start(export, answers)?),
                Source::File(file) => match rings.pop() {
                    Some(ring) => DiskEngine::Ring(ring::start(ring, file, answers.clone())?),
                    None => DiskEngine::Threads(threads::start(file, depth, answers)?),
                },
            })
        };
        let engines: io::Result<Vec<_>> = disks.into_iter().map(start).collect();
        Ok((Self(engines?), depth, kind))
    }

    /// Err gives the op back: the engine's thread has ended.
    pub(crate) fn read(&mut self, op: Op) -> Result<(), Op> {
        match &mut self.0[op.disk] {
            DiskEngine::Ring(ring) => ring.read(op),
            DiskEngine::Threads(threads) => threads.read(op),
            DiskEngine::Nbd(nbd) => {
                nbd.read(op);
                Ok(())
            }
        }
    }

    /// Asks for a read to be given up. That may not be possible.
    pub(crate) fn cancel(&mut self, disk: usize, key: u64) {
        match &mut self.0[disk] {
            DiskEngine::Ring(ring) => ring.cancel(key),
            // Neither pread(2) nor NBD knows how.
            DiskEngine::Threads(_) | DiskEngine::Nbd(_) => {}
        }
    }

    /// Makes the engines look at what they were given since the last time.
    pub(crate) fn wake(&mut self) {
        for engine in &mut self.0 {
            match engine {
                DiskEngine::Ring(ring) => ring.wake(),
                DiskEngine::Threads(_) => {}
                DiskEngine::Nbd(nbd) => nbd.wake(),
            }
        }
    }
}
