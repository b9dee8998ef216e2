//! Disks and partitions of the hand-made guest, with the devices that they hang off.

use profiles::Field;
use profiles::layout::{
    BdevInode, BlockDevice, Device, DeviceChildren, DevicePrivate, Gendisk, Klist, KlistNode,
    Kobject, Partition,
};

use super::vfs::S_IFBLK;
use super::{MockGuest, field};
use crate::address::Gva;

// Members of block_device that older kernels keep elsewhere.
const BD_START_SECT: Field = field(16, 8);
pub(crate) const BD_NR_SECTORS: Field = field(24, 8);
const BD_DEVICE: Field = field(64, 128);

impl MockGuest {
    /// A virtio disk behind a PCI function, and its whole block device; in the super block "bdev".
    pub(crate) fn disk(&mut self, bdev_sb: Gva, name: &str, pci: &str, bytes: u64) -> Gva {
        self.disk_below(bdev_sb, &[name, "virtio0", pci, "pci0000:00"], bytes)
    }

    /// A disk with these names of its device and the parents.
    pub(crate) fn disk_below(&mut self, bdev_sb: Gva, names: &[&str], bytes: u64) -> Gva {
        let disk = self.alloc(self.layouts.gendisk.size);
        let at = Self::gpa(disk.offset(self.layouts.gendisk.disk_name.offset.into()));
        self.write(at, names[0].as_bytes());
        let bdev = self.block_device(bdev_sb, disk, 0, bytes);
        self.put(disk, self.layouts.gendisk.part0, bdev.0);
        let mut device = bdev.offset(BD_DEVICE.offset.into());
        self.name_device(device, names[0]);
        for name in &names[1..] {
            let parent = self.device(name);
            self.put(device, self.layouts.device.parent, parent.0);
            device = parent;
        }
        bdev
    }

    /// A block device from `start` on, with an inode.
    pub(crate) fn block_device(&mut self, sb: Gva, disk: Gva, start: u64, bytes: u64) -> Gva {
        let layout = self.layouts.bdev_inode;
        let both = self.alloc(layout.size);
        self.inode_at(
            both.offset(layout.vfs_inode.offset.into()),
            sb,
            S_IFBLK,
            bytes,
        );
        let bdev = both.offset(layout.bdev.offset.into());
        let layout = self.layouts.block_device;
        self.put(bdev, layout.bd_disk, disk.0);
        self.put(bdev, BD_START_SECT, start / 512);
        self.put(bdev, BD_NR_SECTORS, bytes / 512);
        bdev
    }

    pub(crate) fn gendisk_of(&self, bdev: Gva) -> Gva {
        Gva(self.get(bdev, self.layouts.block_device.bd_disk))
    }

    pub(crate) fn part0_of(&self, bdev: Gva) -> Gva {
        Gva(self.get(self.gendisk_of(bdev), self.layouts.gendisk.part0))
    }

    pub(crate) fn inode_of(&self, bdev: Gva) -> Gva {
        let layout = self.layouts.bdev_inode;
        bdev.container(layout.bdev.offset)
            .offset(layout.vfs_inode.offset.into())
    }

    pub(crate) fn device(&mut self, name: &str) -> Gva {
        let device = self.alloc(self.layouts.device.size);
        self.name_device(device, name);
        let private = self.alloc(self.children().private.size);
        let layout = self.children();
        self.put(device, layout.p, private.0);
        self.put(private, layout.private.device, device.0);
        self.init_list(self.klist_children(private));
        device
    }

    fn name_device(&mut self, device: Gva, name: &str) {
        let name = self.text(name);
        let kobj = device.offset(self.layouts.device.kobj.offset.into());
        self.put(kobj, self.layouts.kobject.name, name);
    }

    /// klist_add_tail of one device to the children of another.
    pub(crate) fn add_child(&mut self, parent: Gva, child: Gva) {
        let layout = self.children();
        let private = |device| Gva(self.get(device, layout.p));
        let (parent, child) = (private(parent), private(child));
        let node = layout.private.knode_parent.offset + layout.klist_node.n_node.offset;
        self.list_add(child.offset(node.into()), self.klist_children(parent));
    }

    fn klist_children(&self, private: Gva) -> Gva {
        let layout = self.children();
        private.offset((layout.private.klist_children.offset + layout.klist.k_list.offset).into())
    }

    fn children(&self) -> DeviceChildren {
        self.layouts.device_children.clone().unwrap()
    }

    /// The device so many levels above a disk's own.
    pub(crate) fn device_above(&self, bdev: Gva, levels: usize) -> Gva {
        let mut device = bdev.offset(BD_DEVICE.offset.into());
        for _ in 0..levels {
            device = Gva(self.get(device, self.layouts.device.parent));
        }
        device
    }
}

pub(super) const BDEV_INODE: BdevInode = BdevInode {
    size: 512,
    bdev: field(0, 200),
    vfs_inode: field(208, 256),
};

pub(super) const BLOCK_DEVICE: BlockDevice = BlockDevice {
    size: 200,
    bd_disk: field(8, 8),
    bd_holders: Some(field(40, 4)),
    bd_holder: None,
};

pub(super) const PARTITION: Partition = Partition::BlockDevice {
    bd_start_sect: BD_START_SECT,
    bd_nr_sectors: BD_NR_SECTORS,
    bd_device: BD_DEVICE,
};

pub(super) const GENDISK: Gendisk = Gendisk {
    size: 128,
    disk_name: field(16, 32),
    part0: field(64, 8),
    private_data: field(80, 8),
};

pub(super) const DEVICE: Device = Device {
    size: 128,
    kobj: field(8, 64),
    parent: field(96, 8),
};

pub(super) const DEVICE_CHILDREN: DeviceChildren = DeviceChildren {
    p: field(104, 8),
    private: DevicePrivate {
        size: 256,
        klist_children: field(16, 32),
        knode_parent: field(64, 40),
        device: field(200, 8),
    },
    klist: Klist {
        size: 32,
        k_list: field(8, 16),
    },
    klist_node: KlistNode {
        size: 40,
        n_node: field(16, 16),
    },
};

pub(super) const KOBJECT: Kobject = Kobject {
    size: 64,
    name: field(24, 8),
};
