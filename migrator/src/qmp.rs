//! A QMP client: one command at a time, events on the side, file descriptors passed along.
//!
//! It knows the protocol (QEMU's docs/interop/qmp-spec) and no command's meaning.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, broadcast, mpsc};

/// Longest line accepted from QEMU. The largest replies (query-named-block-nodes of a VM with
/// hundreds of nodes, `info mtree -f`) stay below 4 MiB.
const LINE_BYTES_MAX: u64 = 16 << 20;
/// QEMU serves one QMP client a socket and greets it at once; a second one waits for ever.
const GREETING_WAIT: Duration = Duration::from_secs(5);
/// QEMU's main loop can be busy for seconds (a device load, a slow disk), never for minutes.
const REPLY_WAIT: Duration = Duration::from_secs(60);
const EVENTS_KEPT: usize = 256;

/// Why a QMP command could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket cannot be reached.
    #[error("cannot connect to QMP socket {path}: {source}; is QEMU running with -qmp unix:{path},server=on,wait=off?", path = path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// No greeting came: the socket serves one client at a time.
    #[error("QMP socket {path} is busy: QEMU serves one client at a time; close the other one or give QEMU a second -qmp socket", path = path.display())]
    Busy {
        /// The socket.
        path: PathBuf,
    },
    /// QEMU refused the command.
    #[error("QEMU refused {command}: {class}: {desc}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class.
        class: String,
        /// QEMU's description.
        desc: String,
    },
    /// The connection ended: QEMU quit or died.
    #[error("the QMP connection ended during {command}: QEMU quit or died")]
    Gone {
        /// The command.
        command: String,
    },
    /// QEMU did not answer in time.
    #[error("QEMU did not answer {command} within {} s", REPLY_WAIT.as_secs())]
    Silent {
        /// The command.
        command: String,
    },
    /// What arrived is not QMP.
    #[error("not QMP: {what}")]
    Protocol {
        /// What was seen.
        what: String,
    },
}

/// An event of QEMU's: its name and data.
#[derive(Debug, Clone)]
pub struct Event {
    /// The event's name, such as `MIGRATION` or `RESET`.
    pub name: String,
    /// The event's data; null where it has none.
    pub data: Value,
}

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    line: Mutex<Line>,
    events: broadcast::Sender<Event>,
    peer_pid: Option<i32>,
    qemu_version: (u64, u64),
}

#[derive(Debug)]
struct Line {
    write: OwnedWriteHalf,
    /// Ties a reply to its command: one that comes too late must not answer the next.
    last_id: u64,
    replies: mpsc::Receiver<Result<Value, QmpError>>,
}

impl Qmp {
    /// Connects to the QMP socket at `path` and leaves capability negotiation.
    pub async fn connect(path: &Path) -> Result<Qmp, QmpError> {
        let connect = UnixStream::connect(path);
        let stream = match tokio::time::timeout(GREETING_WAIT, connect).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) => {
                return Err(QmpError::Connect {
                    path: path.into(),
                    source,
                });
            }
            Err(_) => return Err(QmpError::Busy { path: path.into() }),
        };
        let peer_pid = stream.peer_cred().ok().and_then(|cred| cred.pid());
        let (read, write) = stream.into_split();
        let mut read = BufReader::new(read);
        let greeting = match tokio::time::timeout(GREETING_WAIT, read_line(&mut read)).await {
            Ok(greeting) => greeting?,
            Err(_) => return Err(QmpError::Busy { path: path.into() }),
        };
        let version = &greeting["QMP"]["version"]["qemu"];
        let (Some(major), Some(minor)) = (version["major"].as_u64(), version["minor"].as_u64())
        else {
            let what = format!("{} does not greet as QMP does", path.display());
            return Err(QmpError::Protocol { what });
        };
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        let (reply_tx, replies) = mpsc::channel(4);
        tokio::spawn(dispatch(read, reply_tx, events.clone()));
        let qmp = Qmp {
            line: Mutex::new(Line {
                write,
                last_id: 0,
                replies,
            }),
            events,
            peer_pid,
            qemu_version: (major, minor),
        };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// QEMU's version: major and minor. For messages only: features are asked for by name.
    pub fn qemu_version(&self) -> (u64, u64) {
        self.qemu_version
    }

    /// The process that listens on the socket (SO_PEERCRED), where the kernel tells.
    pub fn peer_pid(&self) -> Option<i32> {
        self.peer_pid
    }

    /// Events from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Runs one command and returns what QEMU returned.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.send(command, arguments, None).await
    }

    /// Runs one command with a file descriptor beside it (`getfd`).
    pub async fn execute_with_fd(
        &self,
        command: &str,
        arguments: Value,
        fd: BorrowedFd<'_>,
    ) -> Result<Value, QmpError> {
        self.send(command, arguments, Some(fd)).await
    }

    /// Runs one line of the human monitor and returns what it printed.
    pub async fn hmp(&self, line: &str) -> Result<String, QmpError> {
        let reply = self
            .execute("human-monitor-command", json!({ "command-line": line }))
            .await?;
        Ok(reply.as_str().unwrap_or_default().to_owned())
    }

    async fn send(
        &self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QmpError> {
        let gone = || QmpError::Gone {
            command: command.into(),
        };
        let mut line = self.line.lock().await;
        line.last_id += 1;
        let id = line.last_id;
        let mut request =
            json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        request.push('\n');
        let sent = match fd {
            None => 0,
            Some(fd) => send_with_fd(&line.write, request.as_bytes(), fd)
                .await
                .map_err(|_| gone())?,
        };
        line.write
            .write_all(&request.as_bytes()[sent..])
            .await
            .map_err(|_| gone())?;
        let own_reply = async {
            loop {
                let reply = line.replies.recv().await.ok_or_else(gone)??;
                if reply["id"] == id {
                    return Ok::<_, QmpError>(reply);
                }
            }
        };
        let reply = match tokio::time::timeout(REPLY_WAIT, own_reply).await {
            Ok(reply) => reply?,
            Err(_) => {
                return Err(QmpError::Silent {
                    command: command.into(),
                });
            }
        };
        match reply.get("error") {
            None => Ok(reply["return"].clone()),
            Some(error) => Err(QmpError::Refused {
                command: command.into(),
                class: error["class"].as_str().unwrap_or_default().into(),
                desc: error["desc"].as_str().unwrap_or_default().into(),
            }),
        }
    }
}

/// Sends the first bytes of `request` together with `fd`; returns how many went.
async fn send_with_fd(
    write: &OwnedWriteHalf,
    request: &[u8],
    fd: BorrowedFd<'_>,
) -> std::io::Result<usize> {
    let stream: &UnixStream = write.as_ref();
    loop {
        stream.writable().await?;
        let sent = stream.try_io(tokio::io::Interest::WRITABLE, || {
            let fds = [fd];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
            let iov = [IoSlice::new(request)];
            Ok(sendmsg(
                stream.as_fd(),
                &iov,
                &mut ancillary,
                SendFlags::NOSIGNAL,
            )?)
        });
        match sent {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

async fn read_line(read: &mut BufReader<OwnedReadHalf>) -> Result<Value, QmpError> {
    let mut line = Vec::new();
    let read = read.take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
    if read.is_err() || line.is_empty() {
        return Err(QmpError::Gone {
            command: "the wait for a reply".into(),
        });
    }
    serde_json::from_slice(&line).map_err(|error| QmpError::Protocol {
        what: format!("a line is not JSON: {error}"),
    })
}

/// Sorts what arrives into replies and events until the connection ends.
async fn dispatch(
    mut read: BufReader<OwnedReadHalf>,
    replies: mpsc::Sender<Result<Value, QmpError>>,
    events: broadcast::Sender<Event>,
) {
    loop {
        match read_line(&mut read).await {
            Ok(value) => match value.get("event").and_then(Value::as_str) {
                // Nobody may be listening: an event is news, not state.
                Some(name) => drop(events.send(Event {
                    name: name.to_owned(),
                    data: value["data"].clone(),
                })),
                None => {
                    if replies.send(Ok(value)).await.is_err() {
                        return;
                    }
                }
            },
            Err(error) => {
                let _ = replies.send(Err(error)).await;
                return;
            }
        }
    }
}
