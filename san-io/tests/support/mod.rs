//! Shared by the tests: image files on a real file system and a reader with blocking completions.
#![allow(dead_code)] // Each test binary uses its part.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use san_io::{Buffer, Completed, Disk, Options, Read, ReadError, Reader};

/// Under the workspace's target directory: /tmp may be a tmpfs, which has no O_DIRECT.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// The byte at `offset` of every test image: no two pages are equal.
pub(crate) fn byte_at(offset: u64) -> u8 {
    let word = (offset / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word.to_le_bytes()[(offset % 8) as usize]
}

pub(crate) fn bytes_at(offset: u64, len: usize) -> Vec<u8> {
    (offset..offset + len as u64).map(byte_at).collect()
}

pub(crate) fn image(dir: &Path, name: &str, len: usize) -> PathBuf {
    let path = dir.join(name);
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&bytes_at(0, len)).unwrap();
    file.sync_all().unwrap();
    path
}

pub(crate) struct Rig {
    pub(crate) reader: Reader,
    pub(crate) completions: Receiver<Completed>,
}

impl Rig {
    pub(crate) fn start(disks: Vec<Disk>, options: Options) -> Self {
        let (sender, completions) = channel();
        let sink = move |completed| drop(sender.send(completed));
        Self {
            reader: Reader::start(disks, options, sink).unwrap(),
            completions,
        }
    }

    pub(crate) fn open(paths: &[&Path], options: Options) -> Self {
        Self::start(
            paths.iter().map(|path| Disk::open(path).unwrap()).collect(),
            options,
        )
    }

    /// No completion within 10 s is a failed test.
    pub(crate) fn next(&self) -> Completed {
        self.completions
            .recv_timeout(Duration::from_secs(10))
            .expect("a completion")
    }

    pub(crate) fn read(&self, offset: u64, len: u32) -> Result<Buffer, ReadError> {
        self.reader
            .submit(Read {
                id: offset,
                disk: 0,
                offset,
                len,
            })
            .unwrap();
        let completed = self.next();
        assert_eq!(completed.id, offset);
        completed.result
    }
}

/// Both engines; the tests of what a caller sees run on each.
pub(crate) fn engines() -> [Options; 2] {
    [true, false].map(|io_uring| Options {
        io_uring,
        ..Options::default()
    })
}
