//! NBD's messages as bytes (the NBD project's doc/proto.md): big endian, each with its magic. Lengths
//! that a server sends are bounded here, before anything is allocated for them; nothing here can
//! express a command that writes.

use std::io::{self, Read};

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::NbdError;

pub(super) const MAGIC_INIT: u64 = u64::from_be_bytes(*b"NBDMAGIC");
pub(super) const MAGIC_OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const MAGIC_REQUEST: u32 = 0x2560_9513;
const MAGIC_SIMPLE_REPLY: u32 = 0x6744_6698;
const MAGIC_STRUCTURED_REPLY: u32 = 0x668e_33ef;

/// Handshake flags of both sides.
pub(super) const FIXED_NEWSTYLE: u16 = 1 << 0;
pub(super) const NO_ZEROES: u16 = 1 << 1;

/// Transmission flags.
pub(super) const HAS_FLAGS: u16 = 1 << 0;
pub(super) const CAN_MULTI_CONN: u16 = 1 << 8;

pub(super) const OPT_GO: u32 = 7;
pub(super) const OPT_STRUCTURED_REPLY: u32 = 8;

pub(super) const INFO_EXPORT: u16 = 0;
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

/// Text of an error, or one piece of information: NBD's strings have at most 4096 bytes.
const TEXT_BYTES_MAX: u32 = 4096 + 64;

/// What a server greets with.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Greeting {
    pub(super) magic: U64,
    pub(super) style: U64,
    pub(super) flags: U16,
}

#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct OptionHead {
    magic: U64,
    option: U32,
    len: U32,
}

#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct OptionReplyHead {
    magic: U64,
    option: U32,
    kind: U32,
    len: U32,
}

#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Request {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    len: U32,
}

#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SimpleTail {
    errno: U32,
    cookie: U64,
}

#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct StructuredTail {
    flags: U16,
    kind: U16,
    cookie: U64,
    len: U32,
}

pub(super) fn read_struct<T: FromBytes + IntoBytes>(from: &mut impl Read) -> io::Result<T> {
    let mut value = T::new_zeroed();
    from.read_exact(value.as_mut_bytes())?;
    Ok(value)
}

/// One option of the handshake.
pub(super) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let head = OptionHead {
        magic: MAGIC_OPTION.into(),
        option: option.into(),
        len: (data.len() as u32).into(),
    };
    [head.as_bytes(), data].concat()
}

/// The data of NBD_OPT_GO: the export's name, and that its block sizes are wanted.
pub(super) fn go(export: &str) -> Vec<u8> {
    let mut data = (export.len() as u32).to_be_bytes().to_vec();
    data.extend(export.as_bytes());
    data.extend(1u16.to_be_bytes());
    data.extend(INFO_BLOCK_SIZE.to_be_bytes());
    data
}

/// A server's answer to an option.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OptionReply {
    Ack,
    Info(u16, Vec<u8>),
    /// NBD_REP_ERR_*, and what the server says to it.
    Refused(u32, String),
}

impl OptionReply {
    pub(super) fn read(from: &mut impl Read, option: u32) -> Result<Self, NbdError> {
        let head: OptionReplyHead = read_struct(from)?;
        if head.magic != MAGIC_OPTION_REPLY || head.option != option {
            return Err(NbdError::Protocol(
                "its answer is to no option that was asked",
            ));
        }
        let body = read_bounded(from, head.len.get())?;
        match head.kind.get() {
            1 => Ok(Self::Ack),
            3 if body.len() >= 2 => {
                let kind = u16::from_be_bytes([body[0], body[1]]);
                Ok(Self::Info(kind, body[2..].to_vec()))
            }
            kind if kind >> 31 == 1 => Ok(Self::Refused(kind, printable(&body))),
            _ => Err(NbdError::Protocol(
                "its answer to an option is of no known kind",
            )),
        }
    }
}

/// NBD_INFO_EXPORT.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct ExportInfo {
    pub(super) size: U64,
    pub(super) flags: U16,
}

/// NBD_INFO_BLOCK_SIZE.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct BlockSizes {
    pub(super) min: U32,
    pub(super) preferred: U32,
    pub(super) max: U32,
}

/// All that is ever asked of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Read { cookie: u64, offset: u64, len: u32 },
    Disconnect,
}

impl Command {
    pub(super) fn write(self, to: &mut Vec<u8>) {
        let (command, cookie, offset, len) = match self {
            Self::Read {
                cookie,
                offset,
                len,
            } => (0, cookie, offset, len),
            Self::Disconnect => (2, 0, 0, 0),
        };
        let request = Request {
            magic: MAGIC_REQUEST.into(),
            flags: 0.into(),
            command: command.into(),
            cookie: cookie.into(),
            offset: offset.into(),
            len: len.into(),
        };
        to.extend(request.as_bytes());
    }
}

/// The head of what a server answers to a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) cookie: u64,
    /// Nothing more follows for this cookie.
    pub(super) done: bool,
    pub(super) content: Content,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// All bytes of the read follow.
    Whole,
    /// `len` bytes for `offset` of the disk follow.
    Data {
        offset: u64,
        len: u32,
    },
    /// Zeros.
    Hole {
        offset: u64,
        len: u32,
    },
    Nothing,
    /// An error number of Linux; never 0.
    Failed(i32),
}

impl Reply {
    /// Reads a reply's head, and errors whole. `structured` is what was agreed on.
    pub(super) fn read(from: &mut impl Read, structured: bool) -> Result<Self, NbdError> {
        let magic: U32 = read_struct(from)?;
        match magic.get() {
            // After the agreement every answer to a read is structured.
            MAGIC_SIMPLE_REPLY if !structured => {
                let tail: SimpleTail = read_struct(from)?;
                let content = match tail.errno.get() {
                    0 => Content::Whole,
                    errno => Content::Failed(linux_errno(errno)),
                };
                Ok(Self {
                    cookie: tail.cookie.get(),
                    done: true,
                    content,
                })
            }
            MAGIC_STRUCTURED_REPLY if structured => {
                let tail: StructuredTail = read_struct(from)?;
                Ok(Self {
                    cookie: tail.cookie.get(),
                    done: tail.flags.get() & 1 != 0,
                    content: chunk(from, tail.kind.get(), tail.len.get())?,
                })
            }
            _ => Err(NbdError::Protocol("its reply has the wrong magic")),
        }
    }
}

fn chunk(from: &mut impl Read, kind: u16, len: u32) -> Result<Content, NbdError> {
    match (kind, len) {
        (0, 0) => Ok(Content::Nothing),
        (1, 9..) => {
            let offset: U64 = read_struct(from)?;
            Ok(Content::Data {
                offset: offset.get(),
                len: len - 8,
            })
        }
        (2, 12) => {
            let offset: U64 = read_struct(from)?;
            let len: U32 = read_struct(from)?;
            Ok(Content::Hole {
                offset: offset.get(),
                len: len.get(),
            })
        }
        // Every kind with this bit is an error and begins with its number; a text follows.
        (0x8000.., 4..) => {
            let errno: U32 = read_struct(from)?;
            read_bounded(from, len - 4)?;
            Ok(Content::Failed(linux_errno(errno.get())))
        }
        _ => Err(NbdError::Protocol("it answers a read with something else")),
    }
}

fn read_bounded(from: &mut impl Read, len: u32) -> Result<Vec<u8>, NbdError> {
    if len > TEXT_BYTES_MAX {
        return Err(NbdError::Protocol(
            "it announces an answer of absurd length",
        ));
    }
    let mut body = vec![0; len as usize];
    from.read_exact(&mut body)?;
    Ok(body)
}

/// NBD's numbers are Linux's; those it does not define count as EINVAL (doc/proto.md).
fn linux_errno(errno: u32) -> i32 {
    match errno {
        1 | 5 | 12 | 22 | 28 | 75 | 95 | 108 => errno as i32,
        _ => rustix::io::Errno::INVAL.raw_os_error(),
    }
}

/// A server's text goes to a terminal.
fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect()
}
