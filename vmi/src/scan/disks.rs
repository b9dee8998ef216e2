//! The guest's disks, and which parts of them someone has claimed.

use std::collections::HashSet;

use crate::address::Gva;
use crate::kernel::{BlockDevice, Disk, SuperBlock};
use crate::scan::GuestDisk;
use crate::scan::claims::Device;
use crate::scan::walk::Scanner;

impl Scanner<'_, '_> {
    /// Disks and claims, from the inodes of all block devices and from the mounts.
    pub(super) fn find_disks(&mut self, super_blocks: &[SuperBlock], inodes: &[Vec<Gva>]) {
        let mounted: HashSet<Gva> = super_blocks
            .iter()
            .map(|sb| sb.bdev)
            .filter(|bdev| !bdev.is_null())
            .collect();
        let of_inodes = super_blocks.iter().zip(inodes);
        let of_inodes = of_inodes
            .filter(|(sb, _)| sb.fs == "bdev")
            .flat_map(|(_, inodes)| inodes)
            .filter(|&&inode| {
                let inode = self.kernel.inode(inode);
                inode.is_ok_and(|inode| inode.is_block_device())
            })
            .map(|&inode| self.kernel.bdev_of_inode(inode));
        let addresses: HashSet<Gva> = of_inodes.chain(mounted.iter().copied()).collect();
        // In an order that does not change from scan to scan.
        let mut addresses: Vec<Gva> = addresses.into_iter().collect();
        addresses.sort_unstable();
        let mut devices = Vec::new();
        let mut seen = HashSet::new();
        for address in addresses {
            let Ok(bdev) = self.kernel.block_device(address) else {
                self.structs_torn += 1;
                continue;
            };
            // Before 5.11 a device that nobody has open has no disk.
            if bdev.gendisk.is_null() {
                continue;
            }
            if seen.insert(bdev.gendisk) {
                self.add_disk(bdev.gendisk);
            }
            devices.push(Device {
                address,
                bdev,
                is_mounted: mounted.contains(&address),
            });
        }
        // sda, sdb, …, sdaa
        self.disks
            .sort_by(|a, b| (a.name.len(), &a.name).cmp(&(b.name.len(), &b.name)));
        self.guest_disks = self.disks.iter().map(GuestDisk::of).collect();
        self.find_claims(&devices);
    }

    fn add_disk(&mut self, gendisk: Gva) {
        match self.kernel.disk(gendisk) {
            // Loop devices and the like that nothing is attached to.
            Ok(disk) if disk.bytes == 0 => {}
            Ok(disk) => self.disks.push(disk),
            Err(_) => self.structs_torn += 1,
        }
    }

    fn find_claims(&mut self, devices: &[Device]) {
        // Whoever claims a partition leaves a mark on the disk (bd_may_claim), which is no claim.
        let marks: HashSet<Gva> = devices
            .iter()
            .filter(|device| !device.bdev.is_whole && device.bdev.is_held)
            .map(|device| device.bdev.gendisk)
            .collect();
        for device in devices {
            let is_mark = device.bdev.is_whole && marks.contains(&device.bdev.gendisk);
            let is_claimed = device.is_mounted || device.bdev.is_held && !is_mark;
            if let Ok(volume) = self.volume(device.address) {
                let is_mapped = self.is_mapped(&device.bdev);
                self.claims.add(device, is_claimed, is_mapped, &volume);
            }
        }
    }

    /// Whether a block device is of device mapper.
    pub(super) fn is_mapped(&self, bdev: &BlockDevice) -> bool {
        let disk = self.disks.iter().find(|disk| disk.gendisk == bdev.gendisk);
        disk.is_some_and(Disk::is_mapped)
    }
}

impl GuestDisk {
    fn of(disk: &Disk) -> GuestDisk {
        GuestDisk {
            name: disk.name.clone(),
            path: disk.path.clone(),
            bytes: disk.bytes,
            parents: disk.parents.clone(),
        }
    }
}
