//! A process's mappings (/proc/PID/maps, proc_pid_maps(5)) and the files behind them. A file is taken for
//! a mapping's only where device and inode say so.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::memory::MemoryError;

/// One line of /proc/PID/maps.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) start: u64,
    pub(super) end: u64,
    /// MAP_SHARED: a private mapping's own pages are not in the file.
    shared: bool,
    pub(super) file_offset: u64,
    /// Major and minor number.
    device: (u32, u32),
    inode: u64,
}

/// The mappings of a process, sorted by address.
pub(super) fn read(pid: i32) -> Result<Vec<Mapping>, MemoryError> {
    let path = PathBuf::from(format!("/proc/{pid}/maps"));
    let text = fs::read_to_string(&path).map_err(|source| MemoryError::File { path, source })?;
    Ok(text.lines().filter_map(Mapping::parse).collect())
}

impl Mapping {
    /// `7f0000000000-7f0040000000 rw-s 00000000 00:01 1042 /memfd:ram (deleted)`
    fn parse(line: &str) -> Option<Mapping> {
        let hex = |digits| u64::from_str_radix(digits, 16).ok();
        let number = |digits| u32::from_str_radix(digits, 16).ok();
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let shared = words.next()?.ends_with('s');
        let file_offset = words.next()?;
        let (major, minor) = words.next()?.split_once(':')?;
        Some(Mapping {
            start: hex(start)?,
            end: hex(end)?,
            shared,
            file_offset: hex(file_offset)?,
            device: (number(major)?, number(minor)?),
            inode: words.next()?.parse().ok()?,
        })
    }

    /// All its pages are a file's.
    pub(super) fn is_file_shared(&self) -> bool {
        self.shared && self.inode != 0
    }

    /// The file behind it. map_files needs CAP_CHECKPOINT_RESTORE; a memfd is also among the
    /// process's descriptors.
    pub(super) fn open(&self, pid: i32) -> io::Result<File> {
        let direct = format!("/proc/{pid}/map_files/{:x}-{:x}", self.start, self.end);
        if let Ok(file) = File::open(direct) {
            return Ok(file);
        }
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let path = entry?.path();
            if fs::metadata(&path).is_ok_and(|metadata| self.is_of(&metadata))
                && let Ok(file) = File::open(&path)
                && self.is_of(&file.metadata()?)
            {
                return Ok(file);
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    fn is_of(&self, metadata: &fs::Metadata) -> bool {
        let device = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
        metadata.is_file() && metadata.ino() == self.inode && device == self.device
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_mapping_is_read_from_its_line() {
        let line = "7f0000000000-7f0040000000 rw-s 00200000 fe:1a 1042   /memfd:a b (deleted)";
        let expected = Mapping {
            start: 0x7f00_0000_0000,
            end: 0x7f00_4000_0000,
            shared: true,
            file_offset: 0x20_0000,
            device: (0xfe, 0x1a),
            inode: 1042,
        };
        assert_eq!(Mapping::parse(line), Some(expected));
        let private = Mapping::parse("7ffd-8000 rw-p 0 00:00 0").unwrap();
        assert!(!private.is_file_shared());
        assert_eq!(Mapping::parse("garbage"), None);
    }

    #[test]
    fn a_file_with_the_same_inode_on_another_device_is_another_file() {
        let file = tempfile::tempfile().unwrap();
        let metadata = file.metadata().unwrap();
        let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
        let pid = std::process::id() as i32;
        let mut mapping = Mapping {
            start: 0x1000,
            end: 0x2000,
            shared: true,
            file_offset: 0,
            device: (major, minor),
            inode: metadata.ino(),
        };
        let found = mapping.open(pid).unwrap();
        assert_ne!(found.as_raw_fd(), file.as_raw_fd());
        assert_eq!(found.metadata().unwrap().ino(), metadata.ino());
        mapping.device.1 ^= 1;
        assert!(mapping.open(pid).is_err());
    }
}
