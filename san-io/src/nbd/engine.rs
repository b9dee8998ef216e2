//! The engine of one NBD export: requests go out from the reader's thread without waiting, a thread a
//! connection takes the replies. A read lives in its connection's table until the server has answered
//! it or the connection has ended; it is answered exactly once.

use std::collections::HashMap;
use std::io::{self, BufReader, Read};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::negotiate::Agreed;
use super::socket::Socket;
use super::wire::{Command, Content, Reply};
use super::{Export, NbdError};
use crate::engine::{Done, Op};
use crate::reader::Event;

/// Replies of 4 KiB reads come many at a time; longer ones go around this buffer.
const BUFFER_BYTES: usize = 32 << 10;

pub(crate) struct Handle {
    connections: Vec<Connection>,
    agreed: Agreed,
    next: usize,
    answers: Sender<Event>,
}

struct Connection {
    shared: Arc<Shared>,
    /// Requests that the socket had no room for, or that wait for the next wake.
    unsent: Vec<u8>,
}

struct Shared {
    socket: Socket,
    state: Mutex<State>,
}

enum State {
    Open(HashMap<u64, Pending>),
    Lost(Arc<NbdError>),
}

/// Why reads fail on a connection that has ended.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the connection to the NBD server is lost")]
struct Lost(#[source] Arc<NbdError>);

/// A read that the server has been asked for.
struct Pending {
    op: Op,
    /// Bytes asked for, from `op.offset + op.filled`.
    len: usize,
    /// Of these, what has come.
    got: usize,
    errno: Option<i32>,
}

/// Starts the threads that take an export's replies.
pub(crate) fn start(export: Export, answers: &Sender<Event>) -> io::Result<Handle> {
    let Export {
        connections,
        agreed,
    } = export;
    let mut handle = Handle {
        connections: Vec::new(),
        agreed,
        next: 0,
        answers: answers.clone(),
    };
    for socket in connections {
        let state = Mutex::new(State::Open(HashMap::new()));
        let shared = Arc::new(Shared { socket, state });
        handle.connections.push(Connection {
            shared: shared.clone(),
            unsent: Vec::new(),
        });
        let answers = answers.clone();
        std::thread::Builder::new()
            .name("san-nbd".into())
            .spawn(move || serve(&shared, agreed.structured, &answers))?;
    }
    Ok(handle)
}

impl Handle {
    /// A connection that has ended is passed over; without any the answer is its end.
    pub(crate) fn read(&mut self, op: Op) {
        let offset = op.offset + op.filled as u64;
        // What lies beyond the end nobody asks a server for; the rest of a long read is asked next.
        let on_disk = self.agreed.size.saturating_sub(offset);
        let len = on_disk
            .min((op.want - op.filled) as u64)
            .min(self.agreed.block_max.into());
        let request = Command::Read {
            cookie: op.key,
            offset,
            len: len as u32,
        };
        let mut pending = Pending {
            op,
            len: len as usize,
            got: 0,
            errno: None,
        };
        let mut lost = None;
        for _ in 0..self.connections.len() {
            self.next = (self.next + 1) % self.connections.len();
            let connection = &mut self.connections[self.next];
            match connection.shared.add(pending) {
                Ok(()) => return request.write(&mut connection.unsent),
                Err((back, why)) => {
                    pending = back;
                    lost = Some(why);
                }
            }
        }
        let result = Err(lost.map_or(io::ErrorKind::NotConnected.into(), io::Error::other));
        let op = pending.op;
        drop(self.answers.send(Event::Done(Done { op, result })));
    }

    /// Sends the requests since the last time, as far as the sockets take them.
    pub(crate) fn wake(&mut self) {
        for connection in &mut self.connections {
            connection.send();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        for connection in &mut self.connections {
            Command::Disconnect.write(&mut connection.unsent);
            connection.send();
            connection.shared.socket.shut_down();
        }
    }
}

impl Connection {
    fn send(&mut self) {
        while !self.unsent.is_empty() {
            match self.shared.socket.send_now(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Replies are outstanding: each of them, or a stall, leads here again.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.unsent.clear();
                    return self.shared.socket.shut_down();
                }
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, pending: Pending) -> Result<(), (Pending, Lost)> {
        match &mut *self.state() {
            State::Open(table) => {
                table.insert(pending.op.key, pending);
                Ok(())
            }
            State::Lost(why) => Err((pending, Lost(why.clone()))),
        }
    }

    fn take(&self, cookie: u64) -> Option<Pending> {
        match &mut *self.state() {
            State::Open(table) => table.remove(&cookie),
            State::Lost(_) => None,
        }
    }
}

/// Until the connection ends, by whichever side. Never joined.
fn serve(shared: &Shared, structured: bool, answers: &Sender<Event>) {
    let mut stream = BufReader::with_capacity(BUFFER_BYTES, &shared.socket);
    let why = loop {
        match reply(&mut stream, structured, shared) {
            Ok(Some(done)) => drop(answers.send(Event::Done(done))),
            Ok(None) => {}
            Err(why) => break Arc::new(why),
        }
    };
    shared.socket.shut_down();
    let state = std::mem::replace(&mut *shared.state(), State::Lost(why.clone()));
    if let State::Open(table) = state {
        for Pending { op, .. } in table.into_values() {
            let result = Err(io::Error::other(Lost(why.clone())));
            drop(answers.send(Event::Done(Done { op, result })));
        }
    }
}

/// Takes one reply, or one piece of it; Some when it was a read's last.
fn reply(
    stream: &mut impl Read,
    structured: bool,
    shared: &Shared,
) -> Result<Option<Done>, NbdError> {
    let reply = Reply::read(stream, structured)?;
    let mut pending = shared
        .take(reply.cookie)
        .ok_or(NbdError::Protocol("it answers what was not asked"))?;
    // Taken out of the table while it is written to, and back in whatever happens.
    let filled = pending.fill(stream, reply.content);
    if filled.is_ok() && reply.done {
        return Ok(Some(pending.done()));
    }
    // This thread alone makes a connection lost, so the table is there.
    let _ = shared.add(pending);
    filled.map(|()| None)
}

impl Pending {
    fn fill(&mut self, stream: &mut impl Read, content: Content) -> Result<(), NbdError> {
        let begin = self.op.offset + self.op.filled as u64;
        let (offset, len, is_data) = match content {
            Content::Whole => (begin, self.len as u64, true),
            Content::Data { offset, len } => (offset, len.into(), true),
            Content::Hole { offset, len } => (offset, len.into(), false),
            Content::Nothing => return Ok(()),
            Content::Failed(errno) => {
                self.errno = Some(errno);
                return Ok(());
            }
        };
        let within = offset
            .checked_sub(begin)
            .filter(|at| {
                at.checked_add(len)
                    .is_some_and(|end| end <= self.len as u64)
            })
            .filter(|_| len <= (self.len - self.got) as u64);
        let Some(at) = within else {
            return Err(NbdError::Protocol("it sends bytes that were not asked for"));
        };
        let at = self.op.filled + at as usize;
        let target = &mut self.op.block[at..at + len as usize];
        match is_data {
            true => stream.read_exact(target)?,
            false => target.fill(0),
        }
        self.got += len as usize;
        Ok(())
    }

    fn done(self) -> Done {
        let result = match self.errno {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None if self.got < self.len => Err(io::Error::other(NbdError::Protocol(
                "it leaves out bytes of a read",
            ))),
            None => Ok(self.got),
        };
        Done {
            op: self.op,
            result,
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
