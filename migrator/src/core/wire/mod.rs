//! Our wire protocol: preface, frames, page records. PROTOCOL.md describes it for readers.
//!
//! The peer's bytes are hostile: every length is checked before it is used, zero is no valid kind.

mod frames;
mod pages;
mod reports;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes, Unaligned};

use super::digest::DigestKey;
use super::plan::PlanRun;
use super::ram::{RamBlock, RamPage};
pub use frames::{Frames, READ_BYTES};
pub use pages::{PagesFrame, Record, ZERO_PAGES_MAX, parse_pages};
pub use reports::{Outcome, Report};

/// The protocol's versions that this program speaks, best last.
pub const VERSIONS: [u16; 1] = [1];
const MAGIC: [u8; 8] = *b"PCT-VMI\n";
/// Bytes of the preface, from either side.
pub const PREFACE_BYTES: usize = 12;
/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 8;
/// The longest frame body. Larger ones would make a small message behind them wait: 1 MiB takes 84 ms at 100 Mbit/s.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// What is wrong with the peer's bytes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    /// Not this protocol at all.
    #[error("the peer does not speak pct-vmi's protocol (its first bytes are {0:02x?})")]
    Magic([u8; 8]),
    /// No common version.
    #[error(
        "the peer speaks protocol versions {lowest} to {highest}, this pct-vmi {} to {}; install the same release on both hosts",
        VERSIONS[0], VERSIONS[VERSIONS.len() - 1]
    )]
    Version {
        /// The peer's lowest.
        lowest: u16,
        /// The peer's highest.
        highest: u16,
    },
    /// A frame that cannot be.
    #[error("the peer sent a bad frame: {0}")]
    Frame(String),
}

fn bad<T>(what: impl Into<String>) -> Result<T, WireError> {
    Err(WireError::Frame(what.into()))
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Preface {
    magic: [u8; 8],
    lowest: U16,
    highest: U16,
}

/// The preface that either side sends first: the versions it speaks.
pub fn preface() -> [u8; PREFACE_BYTES] {
    let [lowest, highest] = [VERSIONS[0], VERSIONS[VERSIONS.len() - 1]].map(U16::new);
    zerocopy::transmute!(Preface {
        magic: MAGIC,
        lowest,
        highest
    })
}

/// The best version that both sides speak.
pub fn choose_version(peer: &[u8; PREFACE_BYTES]) -> Result<u16, WireError> {
    let peer: &Preface = zerocopy::transmute_ref!(peer);
    if peer.magic != MAGIC {
        return Err(WireError::Magic(peer.magic));
    }
    let (lowest, highest) = (peer.lowest.get(), peer.highest.get());
    let common = VERSIONS
        .into_iter()
        .rev()
        .find(|version| (lowest..=highest).contains(version));
    common.ok_or(WireError::Version { lowest, highest })
}

/// What a frame is. Values are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, TryFromBytes)]
#[repr(u8)]
pub enum Kind {
    /// S: the VM, the key, the disks.
    Hello = 1,
    /// S: runs of the plan, in order.
    Plan = 2,
    /// S: the plan is whole.
    PlanEnd = 3,
    /// S: bytes of QEMU's stream to be passed on as they are.
    Raw = 4,
    /// S: all that QEMU says before section "ram" has gone.
    RamStart = 5,
    /// S: page records, in the order of QEMU's emissions.
    Pages = 6,
    /// S: every page has had its last emission.
    RamEnd = 7,
    /// S: the plan's positions from here on are carried by the LAN.
    Stolen = 8,
    /// S: the guest is the destination's.
    Run = 9,
    /// S or D: give up, with the reason.
    Abort = 10,
    /// S: bytes to be thrown away, which tell how fast the LAN is.
    Probe = 11,
    /// D: accepted.
    Welcome = 32,
    /// D: what became of pages.
    Reports = 33,
    /// D: what was read from storage.
    Progress = 34,
    /// D: bytes of QEMU's return path.
    ReturnPath = 35,
    /// D: all pages settled, device state loaded, guest paused.
    Loaded = 36,
    /// D: the guest is up as it was asked for.
    Running = 37,
    /// D: how fast storage is.
    Sampled = 38,
}

impl Kind {
    /// The longest body that it may have.
    fn body_bytes_max(self) -> usize {
        match self {
            Kind::PlanEnd | Kind::RamStart | Kind::RamEnd | Kind::Loaded | Kind::Running => 0,
            _ => BODY_BYTES_MAX,
        }
    }
}

#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    kind: u8,
    zero: [u8; 3],
    len: U32,
}

impl Header {
    fn new(kind: Kind, len: u32) -> Header {
        Header {
            kind: kind as u8,
            zero: [0; 3],
            len: len.into(),
        }
    }
}

/// A frame: its header and `body`.
///
/// # Panics
/// When the peer would refuse its length.
pub fn frame(kind: Kind, body: &[u8]) -> Vec<u8> {
    let len = body.len();
    assert!(
        len <= BODY_BYTES_MAX,
        "a frame of {len} bytes would be refused by the peer"
    );
    let mut frame = Vec::with_capacity(HEADER_BYTES + len);
    frame.extend_from_slice(Header::new(kind, len as u32).as_bytes());
    frame.extend_from_slice(body);
    frame
}

/// Bytes of a reason that are sent, and shown: enough for a message, too few to flood a terminal with.
const REASON_BYTES_MAX: usize = 1000;

/// An [`Kind::Abort`] with its reason, which may repeat what the peer has said: of any length, and of any bytes.
pub fn abort_frame(reason: &str) -> Vec<u8> {
    frame(Kind::Abort, abort_reason(reason.as_bytes()).as_bytes())
}

/// The reason in an [`Kind::Abort`]'s body, made fit for a terminal and for a frame.
pub fn abort_reason(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(REASON_BYTES_MAX)]);
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// A frame whose body is `message` in postcard's encoding.
pub fn message_frame(kind: Kind, message: &impl Serialize) -> Vec<u8> {
    let body = postcard::to_stdvec(message).expect("plain data always encodes");
    frame(kind, &body)
}

/// A frame whose body is `items` one behind the other.
pub fn array_frame<T: IntoBytes + Immutable>(kind: Kind, items: &[T]) -> Vec<u8> {
    frame(kind, items.as_bytes())
}

/// Checks a frame's header: its kind and the length of its body.
pub fn parse_header(header: &[u8; HEADER_BYTES]) -> Result<(Kind, usize), WireError> {
    let header: &Header = zerocopy::transmute_ref!(header);
    let Ok(kind) = Kind::try_read_from_bytes(&[header.kind]) else {
        return bad(format!("kind {}", header.kind));
    };
    if header.zero != [0; 3] {
        return bad(format!("{kind:?} with a header of {header:02x?}"));
    }
    let (len, len_max) = (header.len.get() as usize, kind.body_bytes_max());
    if len > len_max {
        return bad(format!(
            "{kind:?} of {len} bytes; at most {len_max} are allowed"
        ));
    }
    Ok((kind, len))
}

/// Decodes a body that [`message_frame`] made.
pub fn parse_message<T: DeserializeOwned>(kind: Kind, body: &[u8]) -> Result<T, WireError> {
    let decoded = postcard::take_from_bytes(body);
    match decoded {
        Ok((message, [])) => Ok(message),
        Ok(_) => bad(format!("{kind:?} with bytes left over")),
        Err(error) => bad(format!("{kind:?}: {error}")),
    }
}

/// Decodes a body that [`array_frame`] made.
pub fn parse_array<T>(kind: Kind, body: &[u8]) -> Result<&[T], WireError>
where
    T: FromBytes + Immutable + KnownLayout + Unaligned,
{
    match <[T]>::ref_from_bytes(body) {
        Ok(items) => Ok(items),
        Err(_) => bad(format!("{kind:?} of {} bytes", body.len())),
    }
}

/// One disk of the VM, as source and destination recognise it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskIdentity {
    /// The guest kernel's name, such as `vda`.
    pub name: String,
    /// Its place in the machine, as [`vmi::DiskPath`] is written: `pci0000:00/02.0`.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
}

/// The source's first message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    /// Names the migration in both journals.
    pub id: u128,
    /// The digest's key.
    pub key: DigestKey,
    /// RAM blocks in QEMU's order; pages are numbered over them.
    pub ram: Vec<RamBlock>,
    /// The disks that the plan numbers.
    pub disks: Vec<DiskIdentity>,
    /// The source QEMU's version, for messages.
    pub qemu_version: (u64, u64),
    /// Whether the source QEMU can wait for the switchover's acknowledgement.
    pub switchover_ack: bool,
    /// A rehearsal: the networks are measured and nothing moves.
    pub dry_run: bool,
}

/// The destination's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Welcome {
    /// The destination QEMU's version, for messages.
    pub qemu_version: (u64, u64),
    /// Whether the destination QEMU will acknowledge the switchover.
    pub switchover_ack: bool,
    /// For each disk of the Hello, whether the destination can read it.
    pub readable: Vec<bool>,
}

/// What to do with the guest once it is the destination's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Whether it runs; otherwise it stays paused.
    pub resume: bool,
}

/// What the destination has read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes read from storage.
    pub san_bytes: u64,
    /// Time during which at least one read was outstanding, in microseconds.
    pub san_busy_us: u64,
}

/// What the destination read of the plan in a rehearsal, once storage had got going.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sampled {
    /// Pages of the plan.
    pub pages: u64,
    /// Bytes read: those of the pages, and of the gaps that were read through.
    pub bytes: u64,
    /// Time during which at least one read was outstanding, in microseconds.
    pub busy_us: u64,
}

/// A run of the plan on the wire.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct WireRun {
    page: U32,
    pages: U32,
    disk: U32,
    zero: U32,
    offset: U64,
}

impl From<&PlanRun> for WireRun {
    fn from(run: &PlanRun) -> WireRun {
        WireRun {
            page: run.page.0.into(),
            pages: run.pages.into(),
            disk: run.disk.into(),
            zero: U32::ZERO,
            offset: run.offset.into(),
        }
    }
}

impl From<&WireRun> for PlanRun {
    fn from(run: &WireRun) -> PlanRun {
        PlanRun {
            page: RamPage(run.page.get()),
            pages: run.pages.get(),
            disk: run.disk.get(),
            offset: run.offset.get(),
        }
    }
}

/// Frames that carry a plan, and the one that ends it.
pub fn plan_frames(runs: &[PlanRun]) -> impl Iterator<Item = Vec<u8>> {
    const RUNS_MAX: usize = BODY_BYTES_MAX / size_of::<WireRun>();
    runs.chunks(RUNS_MAX)
        .map(|runs| {
            array_frame(
                Kind::Plan,
                &runs.iter().map(WireRun::from).collect::<Vec<WireRun>>(),
            )
        })
        .chain(std::iter::once_with(|| frame(Kind::PlanEnd, &[])))
}

fn checked(page: u32, ram_pages: u32) -> Result<RamPage, WireError> {
    if page >= ram_pages {
        return bad(format!("page {page} of a guest of {ram_pages} pages"));
    }
    Ok(RamPage(page))
}

#[cfg(test)]
mod tests;
