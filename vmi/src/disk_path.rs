//! Where a disk sits in the machine, in terms that the guest's kernel and QEMU share: slots and
//! functions from the PCI root down, then the place on the controller. Bus numbers are left out,
//! since firmware or kernel give those. Two paths that are equal name one disk; nothing is guessed.

use std::fmt;

/// A disk's place in the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPath {
    /// Domain and bus of the PCI root.
    pub root: (u32, u8),
    /// Slot and function on each bus from the root to the controller: bridges come before it.
    pub functions: Vec<(u8, u8)>,
    pub unit: DiskUnit,
}

/// A disk's place on its PCI function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskUnit {
    /// The function is the disk (virtio-blk), or has no more than one (NVMe).
    Function,
    /// Behind virtio-scsi. LUNs as Linux numbers them: from 256 on with 0x4000 added.
    Scsi { channel: u32, target: u32, lun: u64 },
    /// A port of an AHCI or IDE controller, counted from 0, and the device there.
    Ata { port: u32, device: u32 },
}

impl fmt::Display for DiskPath {
    /// `pci0000:00/02.0/00.0`, `pci0000:00/04.0/scsi0:1:0`, `pci0000:00/1f.2/ata1.0`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pci{:04x}:{:02x}", self.root.0, self.root.1)?;
        for (slot, function) in &self.functions {
            write!(f, "/{slot:02x}.{function:x}")?;
        }
        match self.unit {
            DiskUnit::Function => Ok(()),
            DiskUnit::Scsi {
                channel,
                target,
                lun,
            } => write!(f, "/scsi{channel}:{target}:{lun}"),
            DiskUnit::Ata { port, device } => write!(f, "/ata{port}.{device}"),
        }
    }
}

impl DiskPath {
    /// From the names of a disk's device and its parents, the root last, as Linux gives them.
    /// `ata_port` tells which port of its controller the device at a level of the names is.
    pub(crate) fn from_parents(
        parents: &[&str],
        ata_port: impl FnOnce(usize) -> Option<u32>,
    ) -> Option<DiskPath> {
        let (&root, below) = parents.split_last()?;
        let root = pci_root(root)?;
        let at = below.iter().position(|name| pci_function(name).is_some())?;
        let functions: Option<Vec<(u8, u8)>> = below[at..]
            .iter()
            .rev()
            .map(|name| pci_function(name))
            .collect();
        let unit = match below.get(1..at)? {
            [driver] if is_numbered(driver, "virtio") || is_numbered(driver, "nvme") => {
                DiskUnit::Function
            }
            [address, target, host, driver]
                if is_numbered(driver, "virtio") && is_scsi(target, host) =>
            {
                let [_, channel, target, lun] = scsi_address(address)?;
                DiskUnit::Scsi {
                    channel: u32::try_from(channel).ok()?,
                    target: u32::try_from(target).ok()?,
                    lun,
                }
            }
            [address, target, host, port] if is_numbered(port, "ata") && is_scsi(target, host) => {
                // A port multiplier's link would be the channel.
                let [_, 0, device, 0] = scsi_address(address)? else {
                    return None;
                };
                DiskUnit::Ata {
                    port: ata_port(4)?,
                    device: u32::try_from(device).ok()?,
                }
            }
            _ => return None,
        };
        Some(DiskPath {
            root,
            functions: functions?,
            unit,
        })
    }
}

/// `virtio3`
pub(crate) fn is_numbered(name: &str, prefix: &str) -> bool {
    let digits = name.strip_prefix(prefix).unwrap_or_default();
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_scsi(target: &str, host: &str) -> bool {
    target.starts_with("target") && is_numbered(host, "host")
}

/// `0:0:1:0`: host, channel, target, LUN.
fn scsi_address(name: &str) -> Option<[u64; 4]> {
    let numbers: Option<Vec<u64>> = name.split(':').map(|number| number.parse().ok()).collect();
    numbers?.try_into().ok()
}

/// `pci0000:00`
fn pci_root(name: &str) -> Option<(u32, u8)> {
    let (domain, bus) = name.strip_prefix("pci")?.split_once(':')?;
    Some((hex(domain, 4..=8)?, u8::try_from(hex(bus, 2..=2)?).ok()?))
}

/// Slot and function of `0000:00:02.0`.
fn pci_function(name: &str) -> Option<(u8, u8)> {
    let (domain, rest) = name.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (slot, function) = rest.split_once('.')?;
    hex(domain, 4..=8).and(hex(bus, 2..=2))?;
    let (slot, function) = (hex(slot, 2..=2)?, hex(function, 1..=1)?);
    (slot < 32 && function < 8).then_some((slot as u8, function as u8))
}

fn hex(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let all = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (all && digits.contains(&text.len()))
        .then(|| u32::from_str_radix(text, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(parents: &str) -> Option<String> {
        let parents: Vec<&str> = parents.split(" < ").collect();
        let path = DiskPath::from_parents(&parents, |level| {
            assert!(parents[level].starts_with("ata"));
            Some(1)
        });
        path.map(|path| path.to_string())
    }

    #[test]
    fn what_linux_calls_its_parents_is_where_a_disk_is() {
        let cases = [
            (
                "vda < virtio0 < 0000:00:02.0 < pci0000:00",
                "pci0000:00/02.0",
            ),
            (
                "vdb < virtio3 < 0000:03:00.0 < 0000:00:1c.4 < pci0000:00",
                "pci0000:00/1c.4/00.0",
            ),
            (
                "nvme0n1 < nvme0 < 0000:00:05.0 < pci0000:00",
                "pci0000:00/05.0",
            ),
            (
                "sdb < 0:0:1:2 < target0:0:1 < host0 < virtio1 < 0000:00:04.0 < pci0000:00",
                "pci0000:00/04.0/scsi0:1:2",
            ),
            (
                "sda < 3:0:0:0 < target3:0:0 < host3 < ata4 < 0000:00:1f.2 < pci0000:00",
                "pci0000:00/1f.2/ata1.0",
            ),
            (
                "sda < 0:0:1:0 < target0:0:1 < host0 < ata1 < 0000:00:01.1 < pci0000:00",
                "pci0000:00/01.1/ata1.1",
            ),
            (
                "vda < virtio0 < 10000:00:0a.7 < pci10000:80",
                "pci10000:80/0a.7",
            ),
        ];
        for (parents, expected) in cases {
            assert_eq!(path(parents).as_deref(), Some(expected), "{parents}");
        }
    }

    #[test]
    fn what_is_not_known_exactly_has_no_path() {
        for parents in [
            "",
            "vda",
            "dm-0",
            "vda < virtio0 < virtio-mmio.0 < platform",
            "vda < virtio0 < 0000:00:02.0",
            "vda < virtio0 < 0000:00:02.8 < pci0000:00",
            "vda < virtio0 < 0000:00:20.0 < pci0000:00",
            "vda < virtio0 < 0000:00:+2.0 < pci0000:00",
            "vda < virtio0 < 0000:00:02.0 < thing < pci0000:00",
            "vda < virtio < 0000:00:02.0 < pci0000:00",
            "0000:00:02.0 < pci0000:00",
            "sda < 2:0:0:0 < target2:0:0 < host2 < 1-1:1.0 < 1-1 < usb1 < 0000:00:03.0 < pci0000:00",
            "sda < 2:0:0:0 < target2:0:0 < host2 < 0000:00:03.0 < pci0000:00",
            "sda < 2:0:0 < target2:0:0 < host2 < virtio1 < 0000:00:03.0 < pci0000:00",
            "sda < 2:1:0:0 < target2:1:0 < host2 < ata1 < 0000:00:03.0 < pci0000:00",
        ] {
            assert_eq!(path(parents), None, "{parents}");
        }
    }
}
