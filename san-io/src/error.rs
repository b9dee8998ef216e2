//! What can go wrong, with the path and place of it and what to do about it. Must not flatten an
//! errno into a string: the operating system's error stays the source.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::nbd::NbdError;

/// A path or NBD export that cannot be read as a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("cannot open disk {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error(
        "{path} is neither a regular file nor a block device: give the VM's raw image or device"
    )]
    NotADisk { path: PathBuf },
    #[error(
        "{path}: its file system ({why}) would read through the host's page cache, which may be \
         stale: put the image on a file system with O_DIRECT or on a block device"
    )]
    NoDirectIo { path: PathBuf, why: &'static str },
    #[error("cannot read {uri}")]
    Nbd { uri: String, source: NbdError },
}

/// Options that make no sense, or a host that gives neither io_uring nor threads.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("option {name} = {value}: must be {valid}")]
    Option {
        name: &'static str,
        value: u64,
        valid: &'static str,
    },
    #[error("cannot start the reader's threads")]
    Threads(#[source] io::Error),
}

/// A read that was not accepted: there is no completion for it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SubmitError {
    #[error("{capacity} reads are outstanding already: wait for a completion")]
    Full { capacity: usize },
    #[error("the reader has ended")]
    Ended,
}

/// Where a read failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The disk's path or URI.
    pub disk: Arc<str>,
    /// Bytes, as asked.
    pub offset: u64,
    /// Bytes, as asked.
    pub len: u32,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: {} bytes at offset {}",
            self.disk, self.len, self.offset
        )
    }
}

/// An accepted read that gave no bytes.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{place}: cannot read")]
    Io { place: Place, source: io::Error },
    #[error("{place}: the disk ended after {got} bytes: has the file been shrunk?")]
    Short { place: Place, got: usize },
    #[error("{place}: no answer in {after_ms} ms: abandoned")]
    Stalled { place: Place, after_ms: u64 },
    #[error("{place}: not tried, {stalled} reads of this disk have stalled")]
    Dead { place: Place, stalled: usize },
    #[error("{place}: beyond the end of the disk ({size} bytes)")]
    BeyondEnd { place: Place, size: u64 },
    #[error("{place}: a read is 1 to {len_max} bytes, alignment included")]
    Length { place: Place, len_max: usize },
    #[error("no disk {disk}: there are {disks}")]
    NoSuchDisk { disk: usize, disks: usize },
}
