//! Single reads of the VM's raw disks on this host, for the few blocks of metadata that a guest no
//! longer has in its cache. Past the host's page cache, and never twice from a disk that failed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

use san_io::{Completed, Disk, Options, Read, Reader};
use vmi::GuestDisk;

use crate::disks::{HostDisk, match_disks};

/// Host disks, each opened when it is first asked for.
#[derive(Debug)]
pub struct DiskReader {
    host: Vec<HostDisk>,
    /// By node name; None where the disk cannot be read.
    opened: Mutex<HashMap<String, Option<Opened>>>,
}

#[derive(Debug)]
struct Opened {
    reader: Reader,
    completions: Receiver<Completed>,
}

impl DiskReader {
    /// Reads from these disks.
    pub fn new(host: Vec<HostDisk>) -> DiskReader {
        DiskReader {
            host,
            opened: Mutex::default(),
        }
    }

    /// Fills `buf` from a disk of the guest; false when that disk is not raw, not matched, or
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
            .or_insert_with(|| Opened::open(host));
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
    fn open(host: &HostDisk) -> Option<Opened> {
        let disk = (host.format == "raw").then(|| Disk::open(Path::new(&host.filename)).ok())??;
        let (sender, completions) = channel();
        let sink = move |completed| drop(sender.send(completed));
        let reader = Reader::start(vec![disk], Options::default(), sink).ok()?;
        Some(Opened {
            reader,
            completions,
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
