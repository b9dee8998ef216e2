//! A disk of the VM: a raw image file or a block device, opened read-only with O_DIRECT, or an NBD
//! export. Must refuse what would be read through the page cache instead.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, OFlags, StatxFlags};

use crate::error::DiskError;
use crate::nbd::{self, NbdUri};

/// include/uapi/linux/magic.h
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Used where the kernel tells no alignment: no file system or device wants more than a page.
const ALIGNMENT_FALLBACK: u32 = 4096;

/// An opened disk: its size is the one at the time of opening.
#[derive(Debug)]
pub struct Disk {
    source: Source,
    name: Arc<str>,
    size: u64,
    alignment: u32,
}

/// What an engine reads from.
#[derive(Debug)]
pub(crate) enum Source {
    File(File),
    Nbd(nbd::Export),
}

impl Disk {
    /// Opens a regular file or block device for reading past the page cache. Blocks as open(2)
    /// does: for ever, when the file system of `path` hangs.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        let failed = |source| DiskError::Open {
            path: path.into(),
            source,
        };
        // Looked at first: opening a FIFO would wait for its writer.
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::NotADisk { path: path.into() });
        }
        let mut file = open_direct(path)?;
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let alignment = if kind.is_block_device() {
            rustix::fs::ioctl_blksszget(&file).unwrap_or(ALIGNMENT_FALLBACK)
        } else {
            file_alignment(&file, path)?
        };
        Ok(Self {
            source: Source::File(file),
            name: path.to_string_lossy().into(),
            size,
            alignment,
        })
    }

    /// Connects to an NBD export, which is only ever read. Blocks for at most about 10 s.
    pub fn connect(uri: &NbdUri) -> Result<Self, DiskError> {
        let export = nbd::Export::connect(uri).map_err(|source| DiskError::Nbd {
            uri: uri.to_string(),
            source,
        })?;
        Ok(Self {
            size: export.size(),
            alignment: export.alignment(),
            name: uri.to_string().into(),
            source: Source::Nbd(export),
        })
    }

    /// Its path or URI, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What offsets and lengths of direct reads are multiples of: a power of two, in bytes. Callers
    /// of [`crate::Reader`] need not care.
    pub fn alignment(&self) -> u32 {
        self.alignment
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        self.name.clone()
    }

    pub(crate) fn into_source(self) -> Source {
        self.source
    }
}

fn open_direct(path: &Path) -> Result<File, DiskError> {
    let flags = (OFlags::DIRECT | OFlags::NOCTTY).bits() as i32;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    opened.map_err(|source| match source.raw_os_error() {
        // open(2): EINVAL is how a file system says that it has no O_DIRECT.
        Some(errno) if errno == rustix::io::Errno::INVAL.raw_os_error() => DiskError::NoDirectIo {
            path: path.into(),
            why: "no O_DIRECT",
        },
        _ => DiskError::Open {
            path: path.into(),
            source,
        },
    })
}

/// STATX_DIOALIGN (Linux 6.1; many file systems do not answer it) gives 0 where O_DIRECT opens but
/// falls back to the page cache: ext4 with data=journal, encrypted or verity files.
fn file_alignment(file: &File, path: &Path) -> Result<u32, DiskError> {
    let no_direct_io = |why| DiskError::NoDirectIo {
        path: path.into(),
        why,
    };
    let failed = |source| DiskError::Open {
        path: path.into(),
        source,
    };
    // From Linux 6.6 tmpfs takes O_DIRECT and ignores it.
    if rustix::fs::fstatfs(file).is_ok_and(|statfs| statfs.f_type == TMPFS_MAGIC) {
        return Err(no_direct_io("tmpfs"));
    }
    let statx = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        .map_err(|errno| failed(errno.into()))?;
    if !StatxFlags::from_bits_retain(statx.stx_mask).contains(StatxFlags::DIOALIGN) {
        return Ok(ALIGNMENT_FALLBACK);
    }
    match statx.stx_dio_offset_align.max(statx.stx_dio_mem_align) {
        0 => Err(no_direct_io("direct I/O is off for this file")),
        align if align.is_power_of_two() => Ok(align),
        align => Err(failed(io::Error::other(format!(
            "stx_dio_offset_align {align} is no power of two"
        )))),
    }
}
