//! The VM's disks as QEMU knows them, and which of them a disk of the guest is. A match needs the
//! same PCI address and the same size, and no second disk with both: nothing is matched by guess.

pub mod image;
pub mod qemu_nbd;
pub mod reader;

use serde_json::{Value, json};
use thiserror::Error;
use vmi::GuestDisk;

pub use self::image::Image;
use crate::qmp::{Qmp, QmpError};

/// Devices between a disk and its PCI function, or bridges above it.
const PARENTS_MAX: usize = 16;

/// A disk of a VM on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDisk {
    /// QOM path or id of the guest's device.
    pub qdev: String,
    /// Of the disk's PCI function or controller, in the guest kernel's form: 0000:00:02.0.
    pub pci_address: Option<String>,
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
    #[error("it is behind no PCI device")]
    NoPciAddress,
    #[error("QEMU has no disk at PCI address {0}")]
    Unknown(String),
    #[error("QEMU's disk at PCI address {0} has another size")]
    Size(String),
    #[error("several disks at PCI address {0} have its size")]
    Ambiguous(String),
}

/// QEMU's disks that have a medium, in QEMU's order.
///
/// # Errors
/// When QEMU refuses a command or is gone.
pub async fn host_disks(qmp: &Qmp) -> Result<Vec<HostDisk>, QmpError> {
    let blocks = qmp.execute("query-block", json!({})).await?;
    let bridges = Bridges::query(qmp).await?;
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
            pci_address: pci_address(qmp, qdev, &bridges).await?,
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
        let address = disk.pci_address.as_ref().ok_or(Unmatched::NoPciAddress)?;
        let at_address: Vec<&HostDisk> = host
            .iter()
            .filter(|host| host.pci_address.as_ref() == Some(address))
            .collect();
        let same_size: Vec<&HostDisk> = at_address
            .iter()
            .copied()
            .filter(|host| host.bytes == disk.bytes)
            .collect();
        let twins = guest
            .iter()
            .filter(|twin| twin.pci_address == disk.pci_address && twin.bytes == disk.bytes);
        match same_size[..] {
            [] if at_address.is_empty() => Err(Unmatched::Unknown(address.clone())),
            [] => Err(Unmatched::Size(address.clone())),
            [host] if twins.count() == 1 => Ok(host),
            _ => Err(Unmatched::Ambiguous(address.clone())),
        }
    };
    guest.iter().map(matched).collect()
}

/// PCI bridges by address, with the number of the bus behind them.
struct Bridges(Vec<(u64, u64, u64)>);

impl Bridges {
    async fn query(qmp: &Qmp) -> Result<Bridges, QmpError> {
        let mut bridges = Vec::new();
        let buses = qmp.execute("query-pci", json!({})).await?;
        let mut pending: Vec<&Value> = buses.as_array().into_iter().flatten().collect();
        while let Some(bus) = pending.pop() {
            for device in bus["devices"].as_array().into_iter().flatten() {
                let bridge = &device["pci_bridge"];
                let number = |value: &Value| value.as_u64().unwrap_or(0);
                if let Some(behind) = bridge["bus"]["number"].as_u64() {
                    let secondary = bridge["bus"]["secondary"].as_u64().unwrap_or(behind);
                    let devfn = number(&device["slot"]) << 3 | number(&device["function"]);
                    bridges.push((number(&device["bus"]), devfn, secondary));
                }
                pending.push(bridge);
            }
        }
        Ok(Bridges(bridges))
    }

    fn behind(&self, bus: u64, devfn: u64) -> Option<u64> {
        let bridge = self
            .0
            .iter()
            .find(|bridge| (bridge.0, bridge.1) == (bus, devfn));
        bridge.map(|&(_, _, secondary)| secondary)
    }
}

/// Address of the PCI function that is the device, or that is nearest above it.
async fn pci_address(qmp: &Qmp, qdev: &str, bridges: &Bridges) -> Result<Option<String>, QmpError> {
    let path = if qdev.starts_with('/') {
        qdev.to_owned()
    } else {
        format!("/machine/peripheral/{qdev}")
    };
    // From the device up to the root bus; each function is on the bus of the one behind it.
    let mut functions = Vec::new();
    let mut at = Some(path);
    while let Some(path) = at.filter(|_| functions.len() < PARENTS_MAX) {
        let function = pci_function(qmp, &path).await?;
        let device = function.as_ref().map_or(path, |(device, devfn)| {
            functions.push(*devfn);
            device.clone()
        });
        at = parent_bus(qmp, &device).await?;
    }
    let Some((function, above)) = functions.split_first() else {
        return Ok(None);
    };
    let bus = above
        .iter()
        .rev()
        .try_fold(0, |bus, &bridge| bridges.behind(bus, bridge));
    Ok(bus.map(|bus| format!("0000:{bus:02x}:{:02x}.{:x}", function >> 3, function & 7)))
}

/// The PCI device at a QOM path, or that the path is inside of, and its slot and function.
async fn pci_function(qmp: &Qmp, path: &str) -> Result<Option<(String, u64)>, QmpError> {
    let mut at = Some(path);
    while let Some(device) = at.filter(|at| at.len() > "/machine".len()) {
        // Only PCI devices have a number here; memory devices have an "addr" beside no "romfile".
        let devfn = property(qmp, device, "addr")
            .await?
            .as_ref()
            .and_then(Value::as_u64);
        let is_pci = property(qmp, device, "romfile").await?.is_some();
        if let Some(devfn) = devfn.filter(|&devfn| is_pci && devfn < 256) {
            return Ok(Some((device.to_owned(), devfn)));
        }
        at = device.rsplit_once('/').map(|(parent, _)| parent);
    }
    Ok(None)
}

/// The bus that a device sits on; None at the top, where the bus belongs to the machine.
async fn parent_bus(qmp: &Qmp, device: &str) -> Result<Option<String>, QmpError> {
    let bus = property(qmp, device, "parent_bus").await?;
    Ok(bus
        .as_ref()
        .and_then(Value::as_str)
        .filter(|bus| !bus.is_empty())
        .map(str::to_owned))
}

/// None when the object has no such property.
async fn property(qmp: &Qmp, path: &str, name: &str) -> Result<Option<Value>, QmpError> {
    let arguments = json!({ "path": path, "property": name });
    match qmp.execute("qom-get", arguments).await {
        Ok(value) => Ok(Some(value)),
        Err(QmpError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(address: &str, bytes: u64) -> HostDisk {
        HostDisk {
            qdev: "/machine/peripheral-anon/device[0]/virtio-backend".into(),
            pci_address: Some(address.into()),
            bytes,
            image: Image::Raw("/disk".into()),
            cache_direct: true,
            node_name: String::new(),
            read_only: false,
        }
    }

    fn guest(address: Option<&str>, bytes: u64) -> GuestDisk {
        let (name, pci_address) = ("vda".into(), address.map(str::to_owned));
        GuestDisk {
            name,
            pci_address,
            bytes,
            parents: Vec::new(),
        }
    }

    #[test]
    fn a_match_needs_address_and_size_and_no_twin() {
        let host = [
            host("0000:00:02.0", 100),
            host("0000:00:03.0", 7),
            host("0000:00:03.0", 7),
        ];
        let of = |guest: &[GuestDisk]| match_disks(guest, &host)[0].clone();
        assert_eq!(of(&[guest(Some("0000:00:02.0"), 100)]), Ok(&host[0]));
        let size = Unmatched::Size("0000:00:02.0".into());
        assert_eq!(of(&[guest(Some("0000:00:02.0"), 99)]), Err(size));
        let unknown = Unmatched::Unknown("0000:00:04.0".into());
        assert_eq!(of(&[guest(Some("0000:00:04.0"), 100)]), Err(unknown));
        assert_eq!(of(&[guest(None, 100)]), Err(Unmatched::NoPciAddress));
        let twins = Unmatched::Ambiguous("0000:00:03.0".into());
        assert_eq!(of(&[guest(Some("0000:00:03.0"), 7)]), Err(twins));
        let two = [
            guest(Some("0000:00:02.0"), 100),
            guest(Some("0000:00:02.0"), 100),
        ];
        assert_eq!(of(&two), Err(Unmatched::Ambiguous("0000:00:02.0".into())));
    }
}
