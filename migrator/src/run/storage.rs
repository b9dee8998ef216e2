//! The VM's disks at the destination: found through QEMU, opened past the page cache, read only.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use san_io::{Completed, Disk, Fault, Options, Read, ReadError, Reader};
use tokio::sync::mpsc;

use crate::core::ram::RamBlock;
use crate::core::wire::DiskIdentity;
use crate::disks::{self, HostDisk};
use crate::qmp::Qmp;

/// `--disk NAME=PATH`: where the disk that the guest calls NAME is on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOverride {
    /// The guest kernel's name, such as `vda`.
    pub name: String,
    /// A raw image or block device; none leaves the disk to the LAN.
    pub path: Option<PathBuf>,
}

impl std::str::FromStr for DiskOverride {
    type Err = String;

    fn from_str(text: &str) -> Result<DiskOverride, String> {
        let (name, path) = text
            .split_once('=')
            .ok_or("expected NAME=PATH, such as vda=/dev/vg/vm")?;
        if name.is_empty() || path.is_empty() {
            return Err("expected NAME=PATH, such as vda=/dev/vg/vm".into());
        }
        let path = (path != "none").then(|| path.into());
        Ok(DiskOverride {
            name: name.into(),
            path,
        })
    }
}

/// The disks of the destination QEMU, opened where that is possible.
#[derive(Debug)]
pub struct Disks {
    host: Vec<(HostDisk, Opened)>,
    overrides: Vec<(DiskOverride, Option<Disk>)>,
}

#[derive(Debug)]
enum Opened {
    Disk(Disk),
    /// Not a format that is read here; its pages come over the LAN.
    NotRaw,
    /// It should have been readable.
    Failed(san_io::DiskError),
}

impl Disks {
    /// Opens what can be opened. A raw disk that cannot be read is an error, unless overrides may concern it.
    pub async fn open(qmp: &Qmp, overrides: &[DiskOverride]) -> anyhow::Result<Disks> {
        let mut opened = Vec::new();
        for wanted in overrides {
            let disk = wanted.path.as_deref().map(Disk::open).transpose();
            let disk = disk.with_context(|| format!("--disk {}", wanted.name))?;
            opened.push((wanted.clone(), disk));
        }
        let mut host = Vec::new();
        for disk in disks::host_disks(qmp).await? {
            let state = match disk.format.as_str() {
                "raw" => match Disk::open(disk.filename.as_ref()) {
                    Ok(opened) => Opened::Disk(opened),
                    Err(error) if overrides.is_empty() => {
                        return Err(error).context(format!(
                            "the VM's disk {} cannot be read on this host; make it readable, or name \
                             it with --disk NAME=PATH (NAME=none leaves it to the LAN)",
                            disk.filename
                        ));
                    }
                    Err(error) => Opened::Failed(error),
                },
                _ => Opened::NotRaw,
            };
            host.push((disk, state));
        }
        Ok(Disks {
            host,
            overrides: opened,
        })
    }

    /// The disks that the source numbers, in its order; none where one is left to the LAN.
    fn for_hello(mut self, wanted: &[DiskIdentity]) -> anyhow::Result<Vec<Option<Disk>>> {
        let mut disks = Vec::new();
        for disk in wanted {
            let same =
                |host: &HostDisk| host.pci_address.as_deref() == Some(disk.pci_address.as_str());
            let Some(at) = self.host.iter().position(|(host, _)| same(host)) else {
                bail!(
                    "the source's disk {} at PCI address {} is not in the destination QEMU; start it with the source's options",
                    disk.name,
                    disk.pci_address
                );
            };
            let (host, opened) = self.host.swap_remove(at);
            ensure!(
                host.bytes == disk.bytes,
                "disk {} has {} bytes at the source and {} ({}) here; it is not the same disk",
                disk.name,
                disk.bytes,
                host.bytes,
                host.filename
            );
            let named = self
                .overrides
                .iter()
                .position(|(wanted, _)| wanted.name == disk.name);
            disks.push(match (named, opened) {
                (Some(at), _) => self.overrides.swap_remove(at).1,
                (None, Opened::Disk(opened)) => Some(opened),
                (None, Opened::NotRaw) => {
                    super::note(&format!(
                        "disk {} has format {}: its pages come over the LAN",
                        disk.name, host.format
                    ));
                    None
                }
                (None, Opened::Failed(error)) => {
                    return Err(error).context(format!("disk {}", disk.name));
                }
            });
        }
        // Without introspection the source knows no disk, and needs none.
        if let (Some((unknown, _)), false) = (self.overrides.first(), wanted.is_empty()) {
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

/// The reader of the disks that the plan names.
#[derive(Debug)]
pub struct Storage {
    /// Reads that are over, in the order of their ends.
    pub completions: mpsc::UnboundedReceiver<Completed>,
    reader: Option<Reader>,
    /// For each of the source's disks, its number in the reader.
    number: Vec<Option<usize>>,
    error_noted: bool,
}

impl Storage {
    /// Starts reading for the disks that the source numbers.
    pub fn start(
        disks: Disks,
        wanted: &[DiskIdentity],
        stall_ms: u64,
        fault: Option<Fault>,
    ) -> anyhow::Result<Storage> {
        let mut opened = Vec::new();
        let mut number = Vec::new();
        for disk in disks.for_hello(wanted)? {
            number.push(disk.as_ref().map(|_| opened.len()));
            opened.extend(disk);
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
                "storage failed, the LAN carries its pages: {error}"
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
        // Blobs that firmware reads through fw_cfg are resizable: QEMU makes them fit while loading.
        if block.idstr.starts_with("/rom@") {
            continue;
        }
        let here = layout.blocks.iter().find(|here| here.name == block.idstr);
        ensure!(
            here.is_some_and(|here| here.used_bytes == block.bytes),
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
