//! Where QEMU's disks sit in the machine, told in the guest's terms from the object model. Slots and
//! functions only: bus numbers are the firmware's, and a QEMU that waits for a migration has none.

use serde_json::{Value, json};
use vmi::{DiskPath, DiskUnit};

use crate::qmp::{Qmp, QmpError};

/// Bridges above a controller.
const BRIDGES_MAX: usize = 16;
/// Linux gives LUNs from here on in the flat space of SAM-5, as QEMU does.
const FLAT_LUNS_FROM: u64 = 256;
const FLAT_LUN: u64 = 0x4000;

/// The place of the disk at this QOM path or id; None where its kind of controller is not known.
pub(super) async fn disk_path(qmp: &Qmp, qdev: &str) -> Result<Option<DiskPath>, QmpError> {
    let device = if qdev.starts_with('/') {
        qdev.to_owned()
    } else {
        format!("/machine/peripheral/{qdev}")
    };
    let Some(unit) = unit(qmp, &device).await? else {
        return Ok(None);
    };
    let functions = functions(qmp, device).await?;
    Ok((!functions.is_empty()).then_some(DiskPath {
        root: (0, 0),
        functions,
        unit,
    }))
}

/// Slots and functions from the root bus down to the device's own.
async fn functions(qmp: &Qmp, device: String) -> Result<Vec<(u8, u8)>, QmpError> {
    let mut functions = Vec::new();
    let mut at = Some(device);
    while let Some(path) = at.filter(|_| functions.len() < BRIDGES_MAX) {
        let function = pci_function(qmp, &path).await?;
        let device = function.map_or(path, |(device, function)| {
            functions.push(function);
            device
        });
        at = parent_bus(qmp, &device).await?;
    }
    functions.reverse();
    Ok(functions)
}

async fn unit(qmp: &Qmp, device: &str) -> Result<Option<DiskUnit>, QmpError> {
    let bus = parent_bus(qmp, device).await?.unwrap_or_default();
    let (controller, bus) = bus.rsplit_once('/').unwrap_or_default();
    Ok(match kind(qmp, device).await?.as_str() {
        "virtio-blk-device" | "nvme" | "nvme-ns" => Some(DiskUnit::Function),
        "scsi-hd" | "scsi-cd" | "scsi-block" | "scsi-disk"
            if kind(qmp, controller).await? == "virtio-scsi-device" =>
        {
            let channel = number(qmp, device, "channel").await?;
            let target = number(qmp, device, "scsi-id").await?;
            let lun = number(qmp, device, "lun").await?;
            scsi(channel, target, lun)
        }
        "ide-hd" | "ide-cd" => ata(bus, number(qmp, device, "unit").await?),
        _ => None,
    })
}

fn scsi(channel: Option<u64>, target: Option<u64>, lun: Option<u64>) -> Option<DiskUnit> {
    let flat = |lun| {
        if lun < FLAT_LUNS_FROM {
            lun
        } else {
            lun | FLAT_LUN
        }
    };
    Some(DiskUnit::Scsi {
        channel: u32::try_from(channel?).ok()?,
        target: u32::try_from(target?).ok()?,
        lun: flat(lun?),
    })
}

/// A controller's buses, one a port, are `ide.0`, or named after its id: `sata7.0`.
fn ata(bus: &str, unit: Option<u64>) -> Option<DiskUnit> {
    let (_, port) = bus.rsplit_once('.')?;
    Some(DiskUnit::Ata {
        port: port.parse().ok()?,
        device: u32::try_from(unit?).ok()?,
    })
}

/// The PCI device at a QOM path, or that the path is inside of, and its slot and function.
async fn pci_function(qmp: &Qmp, path: &str) -> Result<Option<(String, (u8, u8))>, QmpError> {
    let mut at = Some(path);
    while let Some(device) = at.filter(|at| at.len() > "/machine".len()) {
        // Only PCI devices have a number here; memory devices have an "addr" beside no "romfile".
        let devfn = number(qmp, device, "addr").await?;
        let is_pci = property(qmp, device, "romfile").await?.is_some();
        let devfn = devfn.and_then(|devfn| u8::try_from(devfn).ok());
        if let Some(devfn) = devfn.filter(|_| is_pci) {
            return Ok(Some((device.to_owned(), (devfn >> 3, devfn & 7))));
        }
        at = device.rsplit_once('/').map(|(parent, _)| parent);
    }
    Ok(None)
}

/// The bus that a device sits on; None at the top, where the bus belongs to the machine.
async fn parent_bus(qmp: &Qmp, device: &str) -> Result<Option<String>, QmpError> {
    let bus = text(qmp, device, "parent_bus").await?;
    Ok(Some(bus).filter(|bus| !bus.is_empty()))
}

/// An object's class.
async fn kind(qmp: &Qmp, path: &str) -> Result<String, QmpError> {
    text(qmp, path, "type").await
}

async fn text(qmp: &Qmp, path: &str, name: &str) -> Result<String, QmpError> {
    let value = property(qmp, path, name).await?;
    let text = value.as_ref().and_then(Value::as_str);
    Ok(text.unwrap_or_default().to_owned())
}

async fn number(qmp: &Qmp, path: &str, name: &str) -> Result<Option<u64>, QmpError> {
    let value = property(qmp, path, name).await?;
    Ok(value.as_ref().and_then(Value::as_u64))
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

    #[test]
    fn units_are_as_linux_numbers_them() {
        let lun = |lun| scsi(Some(0), Some(3), Some(lun));
        let expected = |lun| {
            Some(DiskUnit::Scsi {
                channel: 0,
                target: 3,
                lun,
            })
        };
        assert_eq!(lun(255), expected(255));
        assert_eq!(lun(256), expected(0x4100));
        assert_eq!(scsi(Some(0), None, Some(0)), None);
        let port = |port, device| Some(DiskUnit::Ata { port, device });
        assert_eq!(ata("ide.1", Some(1)), port(1, 1));
        assert_eq!(ata("my.sata.5", Some(0)), port(5, 0));
        assert_eq!(ata("ide", Some(0)), None);
    }
}
