//! Mapped devices of the hand-made guest.

use profiles::layout::{Dm, DmDev, DmTable, DmTarget, LinearC, MappedDevice, TargetType};

use super::{MockGuest, field};
use crate::address::Gva;

/// A target of a mapped device: kind, bytes, and for a linear one the device and the offset there.
pub(crate) type MockTarget<'t> = (&'t str, u64, Option<(Gva, u64)>);

impl MockGuest {
    /// A mapped device of these targets.
    pub(crate) fn mapped(&mut self, bdev_sb: Gva, name: &str, targets: &[MockTarget<'_>]) -> Gva {
        let layout = self.layouts.dm.clone().unwrap();
        let bytes = targets.iter().map(|target| target.1).sum();
        let bdev = self.disk_below(bdev_sb, &[name], bytes);
        let gendisk = self.gendisk_of(bdev);
        let md = self.alloc(layout.mapped_device.size);
        let table = self.alloc(layout.table.size);
        let array = self.alloc(layout.target.size * targets.len() as u32);
        self.put(gendisk, self.layouts.gendisk.private_data, md.0);
        self.put(md, layout.mapped_device.disk, gendisk.0);
        self.put(md, layout.mapped_device.map, table.0);
        self.put(table, layout.table.md, md.0);
        self.put(table, layout.table.num_targets, targets.len() as u64);
        self.put(table, layout.table.targets, array.0);
        let mut begin = 0;
        for (at, (kind, bytes, linear)) in (0..).zip(targets) {
            let target = array.offset(at * u64::from(layout.target.size));
            let (kind, text) = (self.alloc(layout.target_type.size), self.text(kind));
            self.put(kind, layout.target_type.name, text);
            self.put(target, layout.target.table, table.0);
            self.put(target, layout.target.r#type, kind.0);
            self.put(target, layout.target.begin, begin / 512);
            self.put(target, layout.target.len, bytes / 512);
            begin += bytes;
            if let Some((below, start)) = linear {
                let (private, dev) = (self.alloc(layout.linear.size), self.alloc(layout.dev.size));
                self.put(target, layout.target.private, private.0);
                self.put(private, layout.linear.dev, dev.0);
                self.put(private, layout.linear.start, start / 512);
                self.put(dev, layout.dev.bdev, below.0);
            }
        }
        bdev
    }

    /// The struct dm_dev of a mapped device's first target.
    pub(crate) fn dm_dev_of(&self, bdev: Gva) -> Gva {
        let layout = self.layouts.dm.as_ref().unwrap();
        let private = self.layouts.gendisk.private_data;
        let md = Gva(self.get(self.gendisk_of(bdev), private));
        let table = Gva(self.get(md, layout.mapped_device.map));
        let target = Gva(self.get(table, layout.table.targets));
        let linear = Gva(self.get(target, layout.target.private));
        Gva(self.get(linear, layout.linear.dev))
    }
}

pub(super) const DM: Dm = Dm {
    mapped_device: MappedDevice {
        size: 256,
        map: field(40, 8),
        disk: field(120, 8),
    },
    table: DmTable {
        size: 128,
        md: field(16, 8),
        num_targets: field(72, 4),
        targets: field(96, 8),
    },
    target: DmTarget {
        size: 80,
        table: field(8, 8),
        r#type: field(16, 8),
        begin: field(24, 8),
        len: field(40, 8),
        private: field(56, 8),
    },
    target_type: TargetType {
        size: 64,
        name: field(24, 8),
    },
    dev: DmDev {
        size: 32,
        bdev: field(8, 8),
    },
    linear: LinearC {
        size: 16,
        dev: field(8, 8),
        start: field(0, 8),
    },
};
