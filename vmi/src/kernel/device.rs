//! The device tree of the driver core (include/linux/device.h, drivers/base/base.h): names, parents,
//! children. Every walk is bounded.

use profiles::Field;

use crate::address::Gva;
use crate::disk_path::is_numbered;
use crate::kernel::{Kernel, Unreadable};

/// A disk's parents: virtio has three, SCSI behind a bridge about nine.
const PARENTS_MAX: usize = 32;
/// An AHCI controller has up to 32 ports.
const CHILDREN_MAX: usize = 256;

impl Kernel<'_> {
    /// A device, its parent, and so on to the root.
    pub(super) fn device_and_parents(&self, mut device: Gva) -> Result<Vec<Gva>, Unreadable> {
        let mut devices = Vec::new();
        while !device.is_null() && devices.len() < PARENTS_MAX {
            devices.push(device);
            device = self.pointer(device, self.layouts.device.parent)?;
        }
        Ok(devices)
    }

    /// dev_name()
    pub(super) fn device_name(&self, device: Gva) -> Result<String, Unreadable> {
        let kobj = device.offset(self.layouts.device.kobj.offset.into());
        self.string_behind(kobj, self.layouts.kobject.name)
    }

    /// Which port of its controller an ATA port is. The kernel numbers the ports of all controllers
    /// in one sequence (ata_host_register), so the port's place among its siblings is the answer.
    pub(super) fn ata_port(&self, port: Gva, controller: Gva) -> Option<u32> {
        let number = |device: Gva| -> Option<u32> {
            let name = self.device_name(device).ok()?;
            is_numbered(&name, "ata").then(|| name["ata".len()..].parse().ok())?
        };
        let own = number(port)?;
        let children = self.children(controller)?;
        let mut ports: Vec<u32> = children.iter().filter_map(|&child| number(child)).collect();
        ports.sort_unstable();
        let consecutive = ports.windows(2).all(|pair| pair[1] - pair[0] == 1);
        let place = ports.iter().position(|&number| number == own)?;
        consecutive.then(|| u32::try_from(place).ok())?
    }

    /// device_for_each_child()
    fn children(&self, device: Gva) -> Option<Vec<Gva>> {
        let layout = self.layouts.device_children.as_ref().ok()?;
        let node = layout.klist_node.n_node;
        let inside = |outer: Field, inner: Field| {
            let offset = outer.offset.checked_add(inner.offset)?;
            Some(Field { offset, ..inner })
        };
        let link = inside(layout.private.knode_parent, node)?;
        let list = inside(layout.private.klist_children, layout.klist.k_list)?;
        let head = self
            .pointer(device, layout.p)
            .ok()?
            .offset(list.offset.into());
        let walk = self.list_entries(head, link, CHILDREN_MAX);
        let children = walk.entries.into_iter();
        let devices = children.map(|child| self.pointer(child, layout.private.device).ok());
        (!walk.torn).then(|| devices.collect())?
    }
}
