//! The VM's disks at the destination: found through QEMU, opened past the page cache, read only.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use san_io::{Completed, Disk, Fault, Options, Read, ReadError, Reader};
use tokio::sync::mpsc;

use crate::core::ram::RamBlock;
use crate::core::wire::DiskIdentity;
use crate::disks::image::{GivenDisk, Image, Opened};
use crate::disks::qemu_nbd::QemuNbd;
use crate::disks::{self, HostDisk};
use crate::qmp::Qmp;

const SECTOR_BYTES: u64 = 512;
/// Firmware's tables have some hundred KiB; QEMU lets them grow to a few MiB.
const ROM_BYTES_MAX: u64 = 64 << 20;

/// The disks of the destination QEMU, opened where that is possible.
#[derive(Debug)]
pub struct Disks {
    host: Vec<(HostDisk, Found)>,
    given: Vec<(GivenDisk, Option<Disk>)>,
    /// The program for what only QEMU can read.
    qemu_nbd: PathBuf,
}

#[derive(Debug)]
enum Found {
    Open(Disk),
    /// To be opened when the plan is there: a reader of qcow2 keeps what it knows of where clusters are,
    /// and the source's QEMU goes on to move them.
    Later,
    /// It should have been readable.
    Failed(san_io::DiskError),
}

impl Disks {
    /// Opens what can be opened now. A raw disk that cannot be read is an error, unless `given` may
    /// concern it.
    pub async fn open(qmp: &Qmp, given: &[GivenDisk], qemu_nbd: &Path) -> anyhow::Result<Disks> {
        let mut opened = Vec::new();
        for given in given {
            // What an operator names is never left to qemu-nbd.
            let open = |image: &Image| image.open(qemu_nbd).map(|opened| opened.disk);
            let disk = given.image.as_ref().map(open).transpose();
            let disk = disk.with_context(|| format!("--disk {}", given.name))?;
            opened.push((given.clone(), disk));
        }
        let mut host = Vec::new();
        for disk in disks::host_disks(qmp).await? {
            let found = match &disk.image {
                Image::Raw(path) => match Disk::open(path) {
                    Ok(disk) => Found::Open(disk),
                    Err(error) if given.is_empty() => {
                        return Err(error).context(format!(
                            "the VM's disk {} cannot be read on this host; make it readable, or name \
                             it with --disk NAME=IMAGE (NAME=none leaves it to the LAN)",
                            disk.image
                        ));
                    }
                    Err(error) => Found::Failed(error),
                },
                Image::Nbd(_) | Image::Qemu { .. } => Found::Later,
            };
            host.push((disk, found));
        }
        Ok(Disks {
            host,
            given: opened,
            qemu_nbd: qemu_nbd.to_owned(),
        })
    }

    /// The disks that the source numbers, in its order; none where one is left to the LAN.
    fn for_hello(mut self, wanted: &[DiskIdentity]) -> anyhow::Result<Vec<Option<Opened>>> {
        let mut disks = Vec::new();
        for disk in wanted {
            let same = |host: &HostDisk| {
                let path = host.path.as_ref();
                path.is_some_and(|path| path.to_string() == disk.path)
            };
            let Some(at) = self.host.iter().position(|(host, _)| same(host)) else {
                bail!(
                    "the source's disk {} at {} is not in the destination QEMU; start it with the source's options",
                    disk.name,
                    disk.path
                );
            };
            let (host, found) = self.host.swap_remove(at);
            ensure!(
                host.bytes == disk.bytes,
                "disk {} has {} bytes at the source and {} ({}) here; it is not the same disk",
                disk.name,
                disk.bytes,
                host.bytes,
                host.image
            );
            let given = self.given.iter().position(|(g, _)| g.name == disk.name);
            disks.push(match given {
                Some(at) => given_disk(disk, self.given.swap_remove(at))?,
                None => host_disk(disk, &host.image, found, &self.qemu_nbd)?,
            });
        }
        // Without introspection the source knows no disk, and needs none.
        if let (Some((unknown, _)), false) = (self.given.first(), wanted.is_empty()) {
            let names: Vec<&str> = wanted.iter().map(|disk| disk.name.as_str()).collect();
            bail!(
                "--disk {}: the guest has no such disk; it has {}",
                unknown.name,
                names.join(", ")
            );
        }
        Ok(disks)
    }
}

/// What the operator named, if it can be the disk.
fn given_disk(
    disk: &DiskIdentity,
    (given, opened): (GivenDisk, Option<Disk>),
) -> anyhow::Result<Option<Opened>> {
    let Some((image, opened)) = given.image.zip(opened) else {
        return Ok(None);
    };
    // QEMU rounds a file up to whole sectors.
    ensure!(
        opened.size().div_ceil(SECTOR_BYTES) == disk.bytes.div_ceil(SECTOR_BYTES),
        "--disk {}: {image} has {} bytes and the guest's disk {}; it is not that disk, or not raw",
        disk.name,
        opened.size(),
        disk.bytes
    );
    let (disk, server) = (opened, None);
    Ok(Some(Opened { disk, server }))
}

/// What QEMU has, where it can be read: anything but a raw disk may be left to the LAN.
fn host_disk(
    disk: &DiskIdentity,
    image: &Image,
    found: Found,
    qemu_nbd: &Path,
) -> anyhow::Result<Option<Opened>> {
    match found {
        Found::Open(disk) => {
            let server = None;
            Ok(Some(Opened { disk, server }))
        }
        Found::Failed(error) => Err(error).context(format!("disk {}", disk.name)),
        Found::Later => match image.open(qemu_nbd) {
            Ok(opened) => Ok(Some(opened)),
            Err(error) => {
                super::note(&format!(
                    "the pages of disk {} come over the LAN: {:#}",
                    disk.name,
                    anyhow::Error::new(error)
                ));
                Ok(None)
            }
        },
    }
}

/// The reader of the disks that the plan names.
#[derive(Debug)]
pub struct Storage {
    /// Reads that are over, in the order of their ends.
    pub completions: mpsc::UnboundedReceiver<Completed>,
    reader: Option<Reader>,
    /// For each of the source's disks, its number in the reader.
    number: Vec<Option<usize>>,
    error_noted: bool,
    /// They end after their reader.
    _servers: Vec<QemuNbd>,
}

impl Storage {
    /// Starts reading for the disks that the source numbers.
    pub fn start(
        disks: Disks,
        wanted: &[DiskIdentity],
        stall_ms: u64,
        fault: Option<Fault>,
    ) -> anyhow::Result<Storage> {
        let (mut opened, mut servers) = (Vec::new(), Vec::new());
        let mut number = Vec::new();
        for disk in disks.for_hello(wanted)? {
            number.push(disk.as_ref().map(|_| opened.len()));
            if let Some(disk) = disk {
                opened.push(disk.disk);
                servers.extend(disk.server);
            }
        }
        let (sender, completions) = mpsc::unbounded_channel();
        // The receiver is gone only when the migration is over: then nobody cares for a read.
        let sink = move |completed| drop(sender.send(completed));
        let options = Options {
            stall_ms,
            fault,
            ..Options::default()
        };
        let reader = match opened.is_empty() {
            true => None,
            false => Some(Reader::start(opened, options, sink)?),
        };
        Ok(Storage {
            completions,
            reader,
            number,
            error_noted: false,
            _servers: servers,
        })
    }

    /// Which of the source's disks can be read.
    pub fn readable(&self) -> Vec<bool> {
        self.number.iter().map(Option::is_some).collect()
    }

    /// How far a plan may reach on each of the source's disks, in bytes.
    pub fn disk_bytes(&self, disks: &[DiskIdentity]) -> Vec<u64> {
        let bytes =
            |(number, disk): (&Option<usize>, &DiskIdentity)| number.map_or(0, |_| disk.bytes);
        self.number.iter().zip(disks).map(bytes).collect()
    }

    /// Starts a read of the source's disk `disk`; false when the reader takes no more.
    pub fn submit(&self, id: u64, disk: u32, offset: u64, len: u32) -> bool {
        let disk = self.number[disk as usize].expect("the plan names readable disks only");
        let reader = self.reader.as_ref().expect("a readable disk has a reader");
        reader
            .submit(Read {
                id,
                disk,
                offset,
                len,
            })
            .is_ok()
    }

    /// Tells the operator of the first failure; the rest shows in the figures.
    pub fn note_once(&mut self, error: ReadError) {
        if !std::mem::replace(&mut self.error_noted, true) {
            super::note(&format!(
                "storage failed, the LAN carries its pages: {:#}",
                anyhow::Error::new(error)
            ));
        }
    }
}

/// Refuses a destination whose RAM is not the source's.
pub async fn check_ram(qmp: &Qmp, source: &[RamBlock]) -> anyhow::Result<()> {
    let mtree = qmp.hmp("info mtree -f").await?;
    let ramblock = qmp.hmp("info ramblock").await?;
    let layout = vmi::RamLayout::parse(&mtree, &ramblock)?;
    for block in source {
        let here = layout.blocks.iter().find(|here| here.name == block.idstr);
        // Blobs that firmware reads through fw_cfg are resizable: QEMU makes them fit while loading.
        let is_rom = block.idstr.starts_with("/rom@") && block.bytes <= ROM_BYTES_MAX;
        ensure!(
            here.is_some_and(|here| is_rom || here.used_bytes == block.bytes),
            "the source's RAM block {} has {} bytes, the destination's {}; start the destination QEMU \
             with the source's machine type, -m and memory options",
            block.idstr,
            block.bytes,
            here.map_or("does not exist".into(), |here| format!(
                "{} bytes",
                here.used_bytes
            )),
        );
    }
    Ok(())
}
