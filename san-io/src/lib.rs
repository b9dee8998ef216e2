//! Reads shared storage past the host's page cache, never through it: that cache may be older
//! than what the other host wrote. A stalled read is abandoned, never waited for.
//!
//! A [`Disk`] is a raw image file or a block device, opened read-only with O_DIRECT, or an export of
//! an NBD server. A [`Reader`] serves any number of disks with a bounded queue each: files by io_uring
//! or, where the kernel forbids that, by threads, exports over their connections. Each accepted [`Read`] gives exactly one [`Completed`] to the sink.
//!
//! ```no_run
//! use san_io::{Completed, Disk, Options, Read, Reader};
//! let disk = Disk::open("/dev/vg/vm".as_ref())?;
//! let (sender, completions) = std::sync::mpsc::channel();
//! let sink = move |completed: Completed| drop(sender.send(completed));
//! let reader = Reader::start(vec![disk], Options::default(), sink)?;
//! reader.submit(Read { id: 1, disk: 0, offset: 0, len: 4096 })?;
//! let bytes = completions.recv()?.result?;
//! assert_eq!(bytes.len(), 4096);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod buffer;
mod desk;
#[cfg(test)]
mod desk_tests;
mod disk;
mod engine;
mod error;
mod fault;
mod nbd;
mod reader;
mod ring;
mod share;
mod threads;

use std::time::Duration;

pub use buffer::Buffer;
pub use disk::Disk;
pub use engine::EngineKind;
pub use error::{DiskError, Place, ReadError, StartError, SubmitError};
pub use fault::Fault;
pub use nbd::{NbdError, NbdUri, NbdUriError};
pub use reader::Reader;

/// The guest's page size: a read may reach past a disk's end by less than this, see [`Read`].
pub const PAGE_BYTES: usize = 4096;

/// One read of `len` bytes at byte `offset` of disk number `disk` (its place in the `Vec` given to
/// [`Reader::start`]). Neither needs to be aligned. The part of the last page that lies beyond the
/// end of the disk reads as zero, as the guest kernel has it in its page cache; a whole page beyond
/// the end is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// The caller's own number, given back in [`Completed`].
    pub id: u64,
    pub disk: usize,
    pub offset: u64,
    pub len: u32,
}

/// The one answer to a [`Read`].
#[derive(Debug)]
pub struct Completed {
    pub id: u64,
    pub result: Result<Buffer, ReadError>,
    /// Time from the start of the read at the device; zero for a read that was never started.
    pub elapsed: Duration,
}

/// Bounds of a [`Reader`]. Each disk has its own share, so that a dead one starves no other.
#[derive(Debug, Clone)]
pub struct Options {
    /// Reads at one disk at a time, 1 to 1024. 4 KiB reads need 64 to saturate an NVMe drive,
    /// large ones fewer.
    pub depth: usize,
    /// Bytes of buffers of one disk: being read, abandoned, or held by the caller. One read can
    /// take half of it. Divided by `stall_ms` it is the slowest disk that is not taken for a
    /// stalled one: 32 MiB in 5 s is 6.7 MB/s.
    pub bytes_in_flight_max: usize,
    /// A read that has not completed after this time is abandoned. Too small: a slow disk passes
    /// for dead; too large: the pages of a dead disk come late over the LAN.
    pub stall_ms: u64,
    /// `false` reads with threads although the kernel may have io_uring.
    pub io_uring: bool,
    /// For tests only: misbehaves on purpose.
    pub fault: Option<Fault>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            depth: 64,
            bytes_in_flight_max: 32 << 20,
            stall_ms: 5000,
            io_uring: true,
            fault: None,
        }
    }
}
