//! Single reads of the VM's disks on this host, for the few blocks of metadata that a guest no longer
//! has in its cache. Past the host's page cache, and never twice from a disk that failed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

use san_io::{Completed, Options, Read, Reader};
use vmi::GuestDisk;

use crate::disks::image;
use crate::disks::qemu_nbd::QemuNbd;
use crate::disks::{HostDisk, Image, match_disks};

/// Host disks, each opened when it is first asked for.
#[derive(Debug)]
pub struct DiskReader {
    host: Vec<HostDisk>,
    /// The program for what only QEMU can read.
    qemu_nbd: PathBuf,
    /// By node name; None where the disk cannot be read.
    opened: Mutex<HashMap<String, Option<Opened>>>,
}

#[derive(Debug)]
struct Opened {
    reader: Reader,
    completions: Receiver<Completed>,
    /// Ends after its last reader.
    _server: Option<QemuNbd>,
}

impl DiskReader {
    /// Reads from these disks, those that only QEMU can read by the program `qemu_nbd`.
    pub fn new(host: Vec<HostDisk>, qemu_nbd: PathBuf) -> DiskReader {
        DiskReader {
            host,
            qemu_nbd,
            opened: Mutex::default(),
        }
    }

    /// Fills `buf` from a disk of the guest; false when that disk cannot be opened, is not matched, or
    /// failed.
    pub fn read(&self, disk: &GuestDisk, offset: u64, buf: &mut [u8]) -> bool {
        let matched = match_disks(std::slice::from_ref(disk), &self.host);
        let Some(Ok(host)) = matched.into_iter().next() else {
            return false;
        };
        let Ok(mut opened) = self.opened.lock() else {
            return false;
        };
        let entry = opened
            .entry(host.node_name.clone())
            .or_insert_with(|| Opened::open(&host.image, &self.qemu_nbd));
        let done = entry
            .as_ref()
            .is_some_and(|disk| disk.read(offset, buf).is_some());
        if !done {
            *entry = None;
        }
        done
    }
}

impl Opened {
    fn open(image: &Image, qemu_nbd: &Path) -> Option<Opened> {
        let image::Opened { disk, server } = image.open(qemu_nbd).ok()?;
        let (sender, completions) = channel();
        let sink = move |completed| drop(sender.send(completed));
        let reader = Reader::start(vec![disk], Options::default(), sink).ok()?;
        Some(Opened {
            reader,
            completions,
            _server: server,
        })
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Option<()> {
        let len = u32::try_from(buf.len()).ok()?;
        self.reader
            .submit(Read {
                id: 0,
                disk: 0,
                offset,
                len,
            })
            .ok()?;
        let bytes = self.completions.recv().ok()?.result.ok()?;
        buf.copy_from_slice(bytes.get(..buf.len())?);
        Some(())
    }
}
