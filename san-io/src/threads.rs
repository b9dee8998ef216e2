//! The engine of one disk where io_uring is forbidden (seccomp in containers, sysctl
//! kernel.io_uring_disabled): a few threads with pread(2). Must never be waited for.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use crate::engine::{Done, Op};
use crate::reader::Event;

/// Threads of one disk. Large reads saturate most storage at 16; each costs a stack.
pub(crate) const PER_DISK: usize = 16;

const STACK_BYTES: usize = 64 << 10;

pub(crate) struct Handle(Sender<Op>);

impl Handle {
    pub(crate) fn read(&self, op: Op) -> Result<(), Op> {
        self.0.send(op).map_err(|refused| refused.0)
    }
}

pub(crate) fn start(file: File, depth: usize, answers: &Sender<Event>) -> io::Result<Handle> {
    let (sender, ops) = channel();
    let file = Arc::new(file);
    let ops = Arc::new(Mutex::new(ops));
    for _ in 0..depth {
        let (file, ops, answers) = (file.clone(), ops.clone(), answers.clone());
        std::thread::Builder::new()
            .name("san-pread".into())
            .stack_size(STACK_BYTES)
            .spawn(move || serve(&file, &ops, &answers))?;
    }
    Ok(Handle(sender))
}

/// Ends when the handle is gone. Never joined: it may hang in the kernel.
fn serve(file: &File, ops: &Mutex<Receiver<Op>>, answers: &Sender<Event>) {
    while let Some(mut op) = ops.lock().ok().and_then(|ops| ops.recv().ok()) {
        let place = op.offset + op.filled as u64;
        let result = file.read_at(&mut op.block[op.filled..op.want], place);
        drop(answers.send(Event::Done(Done { op, result })));
    }
}
