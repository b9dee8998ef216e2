//! A client of NBD servers that only reads: any number of reads on the way, over several connections
//! where the server allows them. A server is hostile until it proves harmless, and may be gone or
//! silent at any time: then reads fail or stall, and nothing else does.

mod engine;
mod negotiate;
mod socket;
mod uri;
mod wire;

use std::io;
use std::time::{Duration, Instant};

pub(crate) use engine::{Handle, start};
use negotiate::{Agreed, negotiate};
use socket::{Socket, Timed};
pub use uri::{NbdUri, NbdUriError};

/// Servers that serve each connection by a thread or process of its own get faster with more, up to
/// about four; QEMU's, whose exports have one thread, does not suffer.
const CONNECTIONS_MAX: usize = 4;

/// For connecting and the handshake together. Too short: a server behind a slow name service or a
/// busy host fails; too long: an operator's mistake shows late.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// For each further connection: a server that has no place for it may leave it waiting.
const MORE_TIME_MAX: Duration = Duration::from_secs(1);

/// Why an NBD export cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    #[error("no connection or no answer: does the server run, and may this host reach it?")]
    Io(#[from] io::Error),
    #[error(
        "what answers there is no NBD server, or one that speaks the protocol of before 2011 \
         (oldstyle): use qemu-nbd or another current server"
    )]
    NotNbd,
    #[error("the server breaks the NBD protocol: {0}")]
    Protocol(&'static str),
    #[error("the server wants TLS, which is not supported here: export it on a unix socket")]
    Tls,
    #[error("the server has no export {export:?} ({said}): name another after the host's slash")]
    NoSuchExport { export: String, said: String },
    #[error("the server refuses export {export:?} to this client: {said}")]
    Refused { export: String, said: String },
    #[error("the server does not know NBD_OPT_GO ({said}): use one from 2017 or later")]
    NoGo { said: String },
}

/// An export, connected.
#[derive(Debug)]
pub(crate) struct Export {
    connections: Vec<Socket>,
    agreed: Agreed,
}

impl Export {
    /// Connects as often as is good for the server.
    pub(crate) fn connect(uri: &NbdUri) -> Result<Self, NbdError> {
        let connect = |time_max| {
            let until = Instant::now() + time_max;
            let socket = Socket::connect(&uri.address, until)?;
            let agreed = negotiate(&mut Timed::new(&socket, until), &uri.export)?;
            socket.set_timeout(None)?;
            Ok((socket, agreed))
        };
        let (first, agreed) = connect(CONNECT_TIME_MAX)?;
        let mut connections = vec![first];
        // A server may have fewer places than it promises; what it gives is enough.
        while agreed.can_multi_conn && connections.len() < CONNECTIONS_MAX {
            match connect(MORE_TIME_MAX) {
                Ok((socket, same)) if same == agreed => connections.push(socket),
                Ok(_) | Err(NbdError::Io(_)) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            connections,
            agreed,
        })
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.agreed.size
    }

    /// Offsets and lengths of reads are multiples of it.
    pub(crate) fn alignment(&self) -> u32 {
        self.agreed.block_min
    }
}
