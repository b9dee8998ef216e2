//! The engine of one disk: an io_uring on a thread of its own, since io_uring_enter(2) may block at
//! a sick disk (it does on FUSE), and the kernel's workers belong to a thread too. Must never drop
//! an operation that the kernel has not answered.
#![allow(unsafe_code)] // The kernel is handed pointers into blocks.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SendError, Sender, TryRecvError, channel};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::io::Errno;

use crate::engine::{Done, Op};
use crate::reader::Event;

/// user_data of what is not a read; keys count from 0 and do not get there.
const WAKE: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;

enum Request {
    Read(Op),
    Cancel(u64),
}

pub(crate) struct Handle {
    /// None only while dropping.
    requests: Option<Sender<Request>>,
    wake: Arc<OwnedFd>,
    /// Requests that the ring has not been woken for.
    unseen: bool,
}

impl Handle {
    pub(crate) fn read(&mut self, op: Op) -> Result<(), Op> {
        self.unseen = true;
        let requests = self.requests.as_ref();
        match requests.map(|requests| requests.send(Request::Read(op))) {
            Some(Err(SendError(Request::Read(op)))) => Err(op),
            _ => Ok(()),
        }
    }

    pub(crate) fn cancel(&mut self, key: u64) {
        self.unseen = true;
        if let Some(requests) = &self.requests {
            drop(requests.send(Request::Cancel(key)));
        }
    }

    pub(crate) fn wake(&mut self) {
        if std::mem::take(&mut self.unseen) {
            // Fails only when the counter is full: then the ring is awake anyway.
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.requests = None;
        self.unseen = true;
        self.wake();
    }
}

/// A ring that can do what is needed here, or why the kernel gives none: ENOSYS, EPERM (seccomp,
/// sysctl kernel.io_uring_disabled), ENOMEM (RLIMIT_MEMLOCK before Linux 5.12), too old.
pub(crate) fn setup(depth: usize) -> io::Result<IoUring> {
    // Room for each read, a cancel of each, and the wake: push() then never finds it full for long.
    let ring = IoUring::new(2 * depth as u32 + 2)?;
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

pub(crate) fn start(uring: IoUring, file: File, answers: Sender<Event>) -> io::Result<Handle> {
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (sender, requests) = channel();
    let ring = Ring {
        uring,
        file,
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
        unseen: false,
    })
}

struct Ring {
    uring: IoUring,
    file: File,
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
                Err(TryRecvError::Disconnected) => {
                    let keys: Vec<u64> = self.ops.keys().copied().collect();
                    keys.into_iter().for_each(|key| self.cancel(key));
                    return false;
                }
            }
        }
        self.watch_wake();
        true
    }

    fn begin(&mut self, mut op: Op) {
        let fd = types::Fd(self.file.as_raw_fd());
        let rest = &mut op.block[op.filled..op.want];
        // Options bound a block to 1 GiB.
        let read = opcode::Read::new(fd, rest.as_mut_ptr(), rest.len() as u32)
            .offset(op.offset + op.filled as u64)
            .build()
            .user_data(op.key);
        self.ops.insert(op.key, op);
        // SAFETY: the block does not move with its Op and is kept in self.ops, which not even a
        // panic drops, until the kernel has answered; the file is self's.
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
            // Full only where the kernel has not taken all in one go.
            if self.uring.submit().is_err() {
                std::thread::yield_now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::buffer::Pool;

    /// Its end that never writes has to be kept. The kernel can cancel a read of a pipe, as those
    /// that still queue for one of its workers; those at a device it cannot.
    fn reading_a_pipe() -> (OwnedFd, Handle, Receiver<Event>) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (sender, events) = channel();
        let mut handle = start(setup(2).unwrap(), reader.into(), sender).unwrap();
        let block = Pool::new(1 << 16, 512).take(4096).unwrap();
        let op = Op {
            key: 7,
            disk: 0,
            offset: 0,
            want: 4096,
            filled: 0,
            block,
        };
        assert!(handle.read(op).is_ok());
        handle.wake();
        (writer, handle, events)
    }

    fn errno(events: &Receiver<Event>) -> Option<i32> {
        match events.recv_timeout(Duration::from_secs(10)) {
            Ok(Event::Done(done)) => done.result.unwrap_err().raw_os_error(),
            _ => panic!("no answer"),
        }
    }

    #[test]
    fn a_cancelled_read_comes_back() {
        let (_writer, mut handle, events) = reading_a_pipe();
        assert!(events.recv_timeout(Duration::from_millis(50)).is_err());
        handle.cancel(7);
        handle.wake();
        assert_eq!(errno(&events), Some(Errno::CANCELED.raw_os_error()));
    }

    #[test]
    fn an_ending_ring_cancels_what_it_has() {
        let (_writer, handle, events) = reading_a_pipe();
        drop(handle);
        assert_eq!(errno(&events), Some(Errno::CANCELED.raw_os_error()));
        // The thread has let go of its sender: it has ended.
        assert!(events.recv_timeout(Duration::from_secs(10)).is_err());
    }
}
