//! The guest's disks, and which of them someone has claimed.

use std::collections::HashSet;

use crate::address::Gva;
use crate::kernel::SuperBlock;
use crate::scan::GuestDisk;
use crate::scan::walk::Scanner;

impl Scanner<'_> {
    /// Disks and who holds them, from the inodes of all block devices.
    pub(super) fn find_disks(&mut self, super_blocks: &[SuperBlock], inodes: &[Vec<Gva>]) {
        let is_bdev = |sb: &SuperBlock| sb.fs == "bdev";
        let inodes = super_blocks
            .iter()
            .zip(inodes)
            .filter(|(sb, _)| is_bdev(sb));
        let of_inodes = inodes.flat_map(|(_, inodes)| inodes).filter_map(|&inode| {
            let is_device = self
                .kernel
                .inode(inode)
                .is_ok_and(|inode| inode.is_block_device());
            is_device.then(|| (self.kernel.bdev_of_inode(inode), false))
        });
        let mounted = super_blocks.iter().filter(|sb| !sb.bdev.is_null());
        let of_mounts = mounted.map(|sb| (sb.bdev, true));
        let bdevs: Vec<(Gva, bool)> = of_inodes.chain(of_mounts).collect();
        let mut seen = HashSet::new();
        for (address, is_mounted) in bdevs {
            let Ok(bdev) = self.kernel.block_device(address) else {
                self.structs_torn += 1;
                continue;
            };
            if bdev.is_held || is_mounted {
                self.held.insert(bdev.gendisk);
            }
            if seen.insert(bdev.gendisk) {
                self.add_disk(bdev.gendisk);
            }
        }
    }

    fn add_disk(&mut self, gendisk: Gva) {
        match self.kernel.disk(gendisk) {
            // Loop devices and the like that nothing is attached to.
            Ok(disk) if disk.bytes == 0 => {}
            Ok(disk) => {
                self.guest_disks.push(GuestDisk {
                    name: disk.name.clone(),
                    pci_address: disk.pci_address().map(str::to_owned),
                    bytes: disk.bytes,
                    parents: disk.parents.clone(),
                });
                self.disks.push(disk);
            }
            Err(_) => self.structs_torn += 1,
        }
    }
}
