//! The engine: one io_uring on a thread of its own, since io_uring_enter(2) itself may block on a
//! sick device. Must never drop an operation that the kernel has not answered.
#![allow(unsafe_code)] // The kernel is handed pointers into blocks.

use std::collections::HashMap;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SendError, Sender, TryRecvError, channel};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::io::Errno;

use crate::disk::Disk;
use crate::engine::{Done, Op};
use crate::reader::Event;

/// user_data of what is not a read; keys count from 0 and do not get there.
const WAKE: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;

/// More reads than this wait for room in the submission queue, which submit() makes at once.
const ENTRIES_MAX: usize = 4096;

enum Request {
    Read(Op),
    Cancel(u64),
}

pub(crate) struct Handle {
    /// None only while dropping.
    requests: Option<Sender<Request>>,
    wake: Arc<OwnedFd>,
}

impl Handle {
    pub(crate) fn read(&self, op: Op) -> Result<(), Op> {
        let requests = self.requests.as_ref();
        match requests.map(|requests| requests.send(Request::Read(op))) {
            Some(Err(SendError(Request::Read(op)))) => Err(op),
            _ => Ok(()),
        }
    }

    pub(crate) fn cancel(&self, key: u64) {
        if let Some(requests) = &self.requests {
            drop(requests.send(Request::Cancel(key)));
        }
    }

    pub(crate) fn wake(&self) {
        // Fails only when the counter is full: then the ring is awake anyway.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.requests = None;
        self.wake();
    }
}

/// A ring that can do what is needed here, or why the kernel gives none: ENOSYS, EPERM (seccomp,
/// sysctl kernel.io_uring_disabled), ENOMEM (RLIMIT_MEMLOCK before Linux 5.12), too old.
pub(crate) fn setup(reads_max: usize) -> io::Result<IoUring> {
    let ring = IoUring::new(reads_max.clamp(2, ENTRIES_MAX) as u32)?;
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::Read::CODE,
        opcode::PollAdd::CODE,
        opcode::AsyncCancel::CODE,
    ];
    if needed.into_iter().all(|code| probe.is_supported(code)) {
        Ok(ring)
    } else {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "io_uring without read: before Linux 5.6",
        ))
    }
}

pub(crate) fn start(
    uring: IoUring,
    disks: Vec<Arc<Disk>>,
    answers: Sender<Event>,
) -> io::Result<Handle> {
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (sender, requests) = channel();
    let ring = Ring {
        uring,
        disks,
        requests,
        wake: wake.clone(),
        answers,
        ops: ManuallyDrop::new(HashMap::new()),
    };
    std::thread::Builder::new()
        .name("san-ring".into())
        .spawn(move || ring.run())?;
    Ok(Handle {
        requests: Some(sender),
        wake,
    })
}

struct Ring {
    uring: IoUring,
    disks: Vec<Arc<Disk>>,
    requests: Receiver<Request>,
    wake: Arc<OwnedFd>,
    answers: Sender<Event>,
    /// What the kernel may write to. Never dropped with the ring: an unforeseen end leaks it.
    ops: ManuallyDrop<HashMap<u64, Op>>,
}

impl Ring {
    /// Ends when the handle is gone and the kernel has answered every read. Never joined.
    fn run(mut self) {
        let mut open = true;
        self.watch_wake();
        while open || !self.ops.is_empty() {
            match self.uring.submit_and_wait(1) {
                Ok(_) => {}
                // Interrupted, or completions first have to be taken.
                Err(e)
                    if matches!(
                        Errno::from_io_error(&e),
                        Some(Errno::INTR | Errno::AGAIN | Errno::BUSY)
                    ) => {}
                Err(_) => return, // The reader notices: reads stall, new ones are refused.
            }
            let completions: Vec<_> = self.uring.completion().collect();
            for completion in completions {
                match completion.user_data() {
                    WAKE => open = self.take_requests(),
                    CANCEL => {}
                    key => self.answer(key, completion.result()),
                }
            }
        }
        drop(ManuallyDrop::into_inner(self.ops));
    }

    fn watch_wake(&mut self) {
        let fd = types::Fd(self.wake.as_raw_fd());
        let poll = opcode::PollAdd::new(fd, PollFlags::IN.bits().into())
            .build()
            .user_data(WAKE);
        // SAFETY: the eventfd lives as long as the ring, and a poll has no buffer.
        unsafe { self.push(&poll) };
    }

    /// False when the handle is gone.
    fn take_requests(&mut self) -> bool {
        // First the counter, then the requests: none that comes in between is slept through.
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        loop {
            match self.requests.try_recv() {
                Ok(Request::Read(op)) => self.begin(op),
                Ok(Request::Cancel(key)) => self.cancel(key),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        self.watch_wake();
        true
    }

    fn begin(&mut self, mut op: Op) {
        let fd = types::Fd(self.disks[op.disk].file.as_raw_fd());
        let rest = &mut op.block[op.filled..op.want];
        // Options bound a block to 1 GiB.
        let read = opcode::Read::new(fd, rest.as_mut_ptr(), rest.len() as u32)
            .offset(op.offset + op.filled as u64)
            .build()
            .user_data(op.key);
        self.ops.insert(op.key, op);
        // SAFETY: the block does not move with its Op and is kept in self.ops, which not even a
        // panic drops, until the kernel has answered; the file is kept by self.disks.
        unsafe { self.push(&read) };
    }

    fn cancel(&mut self, key: u64) {
        if self.ops.contains_key(&key) {
            let cancel = opcode::AsyncCancel::new(key).build().user_data(CANCEL);
            // SAFETY: a cancel has no buffer.
            unsafe { self.push(&cancel) };
        }
    }

    fn answer(&mut self, key: u64, result: i32) {
        let Some(op) = self.ops.remove(&key) else {
            return;
        };
        let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        drop(self.answers.send(Event::Done(Done { op, result })));
    }

    /// # Safety
    /// What the entry points to must live until its completion.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the caller's promise.
        while unsafe { self.uring.submission().push(entry) }.is_err() {
            // Full: submitting makes room, or fails and is tried again by run() after completions.
            if self.uring.submit().is_err() {
                std::thread::yield_now();
            }
        }
    }
}
