//! Block devices (block/bdev.c, include/linux/blk_types.h): a partition's place on its disk, and
//! which disk of the machine that is, told by its parents up to the PCI root.

use profiles::layout::Partition;

use crate::address::{Gpa, Gva, PAGE_BYTES, Pfn};
use crate::disk_path::{DiskPath, is_numbered};
use crate::kernel::{Folio, Inode, Kernel, Unreadable};

/// Linux counts in these whatever the device's block size is.
pub(super) const SECTOR_BYTES: u64 = 512;
/// Buffers of a folio: those of 512 bytes in one of 64 KiB.
const BUFFERS_MAX: u64 = 128;

/// A block device: a disk, or a partition of one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockDevice {
    pub(crate) gendisk: Gva,
    /// Where it begins on the disk, in bytes.
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    /// The disk itself, no partition.
    pub(crate) is_whole: bool,
    /// Someone has claimed it, or a partition of it: a file system, device mapper, swap, or an opener
    /// with O_EXCL. So where the kernel does not tell.
    pub(crate) is_held: bool,
}

/// A disk as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) gendisk: Gva,
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// Names of the device and its parents: vda, virtio0, 0000:00:02.0, pci0000:00.
    pub(crate) parents: Vec<String>,
    pub(crate) path: Option<DiskPath>,
}

impl Disk {
    /// A device of device mapper, by its name.
    pub(crate) fn is_mapped(&self) -> bool {
        is_numbered(&self.name, "dm-")
    }
}

impl Kernel<'_> {
    /// The block device whose inode this is.
    pub(crate) fn bdev_of_inode(&self, inode: Gva) -> Gva {
        let layout = &self.layouts.bdev_inode;
        inode
            .container(layout.vfs_inode.offset)
            .offset(layout.bdev.offset.into())
    }

    /// The inode that holds a block device's page cache.
    pub(crate) fn inode_of_bdev(&self, bdev: Gva) -> Result<Inode, Unreadable> {
        let layout = &self.layouts.bdev_inode;
        self.inode(
            bdev.container(layout.bdev.offset)
                .offset(layout.vfs_inode.offset.into()),
        )
    }

    pub(crate) fn block_device(&self, bdev: Gva) -> Result<BlockDevice, Unreadable> {
        let layout = &self.layouts.block_device;
        let sectors = |count: u64| count.checked_mul(SECTOR_BYTES).ok_or(Unreadable(bdev));
        let mut is_held = layout.bd_holders.or(layout.bd_holder).is_none();
        for field in [layout.bd_holders, layout.bd_holder].into_iter().flatten() {
            is_held |= self.uint(bdev, field)? != 0;
        }
        let gendisk = self.pointer(bdev, layout.bd_disk)?;
        let part0 = self.layouts.gendisk.part0;
        let (part, whole, start, length) = match self.layouts.partition {
            Partition::BlockDevice {
                bd_start_sect,
                bd_nr_sectors,
                ..
            } => {
                let whole = self.pointer(gendisk, part0)?;
                (bdev, whole, bd_start_sect, bd_nr_sectors)
            }
            Partition::HdStruct {
                bd_part,
                start_sect,
                nr_sects,
                ..
            } => {
                let whole = gendisk.offset(part0.offset.into());
                (self.pointer(bdev, bd_part)?, whole, start_sect, nr_sects)
            }
        };
        // No hd_struct, no disk: nobody has the device open.
        let sectors_at = |field| match part.is_null() {
            true => Ok(0),
            false => sectors(self.uint(part, field)?),
        };
        Ok(BlockDevice {
            gendisk,
            is_whole: part == whole,
            start: sectors_at(start)?,
            bytes: sectors_at(length)?,
            is_held,
        })
    }

    pub(crate) fn disk(&self, gendisk: Gva) -> Result<Disk, Unreadable> {
        let part0 = self.layouts.gendisk.part0;
        let (part0, length, device) = match self.layouts.partition {
            Partition::BlockDevice {
                bd_nr_sectors,
                bd_device,
                ..
            } => (self.pointer(gendisk, part0)?, bd_nr_sectors, bd_device),
            Partition::HdStruct {
                nr_sects, device, ..
            } => (gendisk.offset(part0.offset.into()), nr_sects, device),
        };
        let sectors = self.uint(part0, length)?;
        let device = part0.offset(device.offset.into());
        let devices = self.device_and_parents(device)?;
        let parents: Vec<String> = devices
            .iter()
            .map(|&device| self.device_name(device))
            .collect::<Result<_, _>>()?;
        let names: Vec<&str> = parents.iter().map(String::as_str).collect();
        let path = DiskPath::from_parents(&names, |level| {
            self.ata_port(*devices.get(level)?, *devices.get(level + 1)?)
        });
        Ok(Disk {
            gendisk,
            name: self.string_in(gendisk, self.layouts.gendisk.disk_name)?,
            bytes: sectors.checked_mul(SECTOR_BYTES).ok_or(Unreadable(part0))?,
            parents,
            path,
        })
    }

    /// Fills `buf` with a block of a device out of the device's own page cache; None when it is not
    /// there, or not up to date. A dirty one is newer than the disk, and right.
    pub(crate) fn read_cached_block(&self, bdev: Gva, block: u64, buf: &mut [u8]) -> Option<()> {
        let block_bytes = buf.len() as u64;
        let offset = block.checked_mul(block_bytes)?;
        let mapping = self.inode_of_bdev(bdev).ok()?.mapping;
        for (page, buf) in (offset / PAGE_BYTES..).zip(buf.chunks_mut(PAGE_BYTES as usize)) {
            let (folio, inside) = self.folio_at(mapping, page)?;
            let in_folio = inside * PAGE_BYTES + offset % PAGE_BYTES;
            let uptodate = folio.flags & self.layouts.page_flags.uptodate != 0
                || self.buffer_uptodate(&folio, in_folio / block_bytes)?;
            if !uptodate {
                return None;
            }
            let frame = Pfn(folio.pfn.0.checked_add(inside)?).gpa()?;
            self.space
                .read_physical(Gpa(frame.0 + offset % PAGE_BYTES), buf)?;
        }
        Some(())
    }

    /// Whether the folio's buffer of this number is up to date. Metadata is read buffer by buffer,
    /// which leaves the folio's own flag unset.
    fn buffer_uptodate(&self, folio: &Folio, number: u64) -> Option<bool> {
        if folio.flags & self.layouts.page_flags.private == 0 || number >= BUFFERS_MAX {
            return None;
        }
        let layout = self.layouts.buffer_head;
        let mut buffer = folio.private;
        for _ in 0..number {
            buffer = self.pointer(buffer, layout.b_this_page).ok()?;
        }
        let state = self.uint(buffer, layout.b_state).ok()?;
        Some(state & self.layouts.bh_uptodate != 0)
    }
}
