//! The VM's disks as QEMU knows them, and which of them a disk of the guest is. A match needs the
//! same place in the machine and the same size, and no second disk there: nothing is matched by guess.

pub mod image;
pub mod qemu_nbd;
pub mod reader;
mod topology;

use serde_json::json;
use thiserror::Error;
use vmi::{DiskPath, GuestDisk};

pub use self::image::Image;
use crate::qmp::{Qmp, QmpError};

/// A disk of a VM on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDisk {
    /// QOM path or id of the guest's device.
    pub qdev: String,
    /// None where it is on a controller of an unknown kind.
    pub path: Option<DiskPath>,
    /// Virtual size.
    pub bytes: u64,
    pub image: Image,
    /// QEMU uses O_DIRECT (cache=none or directsync).
    pub cache_direct: bool,
    pub node_name: String,
    pub read_only: bool,
}

/// Why a guest's disk is none of QEMU's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unmatched {
    #[error("it is on no PCI controller whose disks are known: virtio, AHCI, IDE, NVMe")]
    NoPath,
    #[error("QEMU has no disk at {0}")]
    Unknown(DiskPath),
    #[error("QEMU's disk at {path} has {host_bytes} bytes, the guest's has {guest_bytes}")]
    Size {
        path: DiskPath,
        host_bytes: u64,
        guest_bytes: u64,
    },
    #[error("there are several disks at {0}")]
    Ambiguous(DiskPath),
}

/// QEMU's disks that have a medium, in QEMU's order.
///
/// # Errors
/// When QEMU refuses a command or is gone.
pub async fn host_disks(qmp: &Qmp) -> Result<Vec<HostDisk>, QmpError> {
    let blocks = qmp.execute("query-block", json!({})).await?;
    let mut disks = Vec::new();
    for block in blocks.as_array().into_iter().flatten() {
        let (qdev, inserted) = (block["qdev"].as_str(), &block["inserted"]);
        let (Some(qdev), Some(bytes)) = (qdev, inserted["image"]["virtual-size"].as_u64()) else {
            continue;
        };
        let driver = inserted["drv"].as_str().unwrap_or_default();
        let filename = inserted["image"]["filename"].as_str().unwrap_or_default();
        disks.push(HostDisk {
            qdev: qdev.to_owned(),
            path: topology::disk_path(qmp, qdev).await?,
            bytes,
            image: Image::of_qemu(driver, filename, qmp.peer_pid()),
            cache_direct: inserted["cache"]["direct"].as_bool().unwrap_or(false),
            node_name: inserted["node-name"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            read_only: inserted["ro"].as_bool().unwrap_or(false),
        });
    }
    Ok(disks)
}

/// For each disk of the guest QEMU's own, or why there is none.
pub fn match_disks<'h>(
    guest: &[GuestDisk],
    host: &'h [HostDisk],
) -> Vec<Result<&'h HostDisk, Unmatched>> {
    let matched = |disk: &GuestDisk| {
        let path = disk.path.clone().ok_or(Unmatched::NoPath)?;
        let mut there = host.iter().filter(|host| host.path.as_ref() == Some(&path));
        let twins = guest.iter().filter(|twin| twin.path == disk.path).count();
        match (there.next(), there.next()) {
            (None, _) => Err(Unmatched::Unknown(path)),
            (Some(_), Some(_)) => Err(Unmatched::Ambiguous(path)),
            (Some(_), None) if twins > 1 => Err(Unmatched::Ambiguous(path)),
            (Some(host), None) if host.bytes != disk.bytes => Err(Unmatched::Size {
                path,
                host_bytes: host.bytes,
                guest_bytes: disk.bytes,
            }),
            (Some(host), None) => Ok(host),
        }
    };
    guest.iter().map(matched).collect()
}

#[cfg(test)]
mod tests {
    use vmi::DiskUnit;

    use super::*;

    fn path(slot: u8) -> DiskPath {
        DiskPath {
            root: (0, 0),
            functions: vec![(slot, 0)],
            unit: DiskUnit::Function,
        }
    }

    fn host(slot: u8, bytes: u64) -> HostDisk {
        HostDisk {
            qdev: "/machine/peripheral-anon/device[0]/virtio-backend".into(),
            path: Some(path(slot)),
            bytes,
            image: Image::Raw("/disk".into()),
            cache_direct: true,
            node_name: String::new(),
            read_only: false,
        }
    }

    fn guest(slot: Option<u8>, bytes: u64) -> GuestDisk {
        GuestDisk {
            name: "vda".into(),
            path: slot.map(path),
            bytes,
            parents: Vec::new(),
        }
    }

    #[test]
    fn a_match_needs_place_and_size_and_no_twin() {
        let nowhere = HostDisk {
            path: None,
            ..host(9, 100)
        };
        let host = [host(2, 100), host(3, 7), host(3, 8), nowhere];
        let of = |guest: &[GuestDisk]| match_disks(guest, &host)[0].clone();
        assert_eq!(of(&[guest(Some(2), 100)]), Ok(&host[0]));
        let size = Unmatched::Size {
            path: path(2),
            host_bytes: 100,
            guest_bytes: 99,
        };
        assert_eq!(of(&[guest(Some(2), 99)]), Err(size));
        let unknown = Unmatched::Unknown(path(4));
        assert_eq!(of(&[guest(Some(4), 100)]), Err(unknown));
        assert_eq!(of(&[guest(None, 100)]), Err(Unmatched::NoPath));
        let ambiguous = |slot| Err(Unmatched::Ambiguous(path(slot)));
        assert_eq!(of(&[guest(Some(3), 7)]), ambiguous(3));
        let two = [guest(Some(2), 100), guest(Some(2), 7)];
        assert_eq!(of(&two), ambiguous(2));
    }
}
