//! Where an inode's pages are, by file system.

use crate::ext4;
use crate::kernel::{BlockDevice, Inode, SuperBlock};
use crate::place::{Mapped, Place, Span};
use crate::reason::Reason;
use crate::scan::walk::Scanner;

impl Scanner<'_> {
    /// Where the pages of an inode are, or why none of them is anywhere.
    pub(super) fn place(&mut self, sb: &SuperBlock, inode: &Inode) -> Result<Place, Reason> {
        match sb.fs.as_str() {
            "bdev" => self.place_of_bdev(inode),
            "ext4" => self.place_of_ext4(sb, inode),
            _ => Err(Reason::Filesystem),
        }
    }

    fn place_of_bdev(&self, inode: &Inode) -> Result<Place, Reason> {
        let bdev = self.kernel.bdev_of_inode(inode.address);
        let bdev = self.kernel.block_device(bdev).map_err(|_| Reason::Torn)?;
        let span = self.span(&bdev)?;
        if self.held.contains(&bdev.gendisk) {
            return Err(Reason::DeviceHeld);
        }
        Ok(Place {
            span,
            size_bytes: span.bytes,
            blocks: Mapped::Identity,
        })
    }

    /// The part of a disk of the machine that a block device is.
    fn span(&self, bdev: &BlockDevice) -> Result<Span, Reason> {
        let index = self
            .disks
            .iter()
            .position(|disk| disk.gendisk == bdev.gendisk);
        let disk = index.filter(|&index| self.guest_disks[index].pci_address.is_some());
        let disk = disk.ok_or(Reason::NotOnDisk)?;
        let inside = bdev.start.checked_add(bdev.bytes);
        let inside = inside.is_some_and(|end| end <= self.disks[disk].bytes);
        let span = Span {
            disk,
            start: bdev.start,
            bytes: bdev.bytes,
        };
        inside.then_some(span).ok_or(Reason::BeyondDevice)
    }

    fn place_of_ext4(&mut self, sb: &SuperBlock, inode: &Inode) -> Result<Place, Reason> {
        if !inode.is_regular() {
            return Err(Reason::NotRegular);
        }
        if inode.is_dax() {
            return Err(Reason::Dax);
        }
        let layout = self
            .kernel
            .layouts
            .ext4_inode_info
            .ok_or(Reason::Filesystem)?;
        let torn = |_| Reason::Torn;
        let info = inode.address.container(layout.vfs_inode.offset);
        let flags = self.kernel.uint(info, layout.i_flags).map_err(torn)?;
        if let Some(reason) = ext4::excluded(flags) {
            return Err(reason);
        }
        let bdev = self.kernel.block_device(sb.bdev).map_err(torn)?;
        let span = self.span(&bdev)?;
        if !sb.block_bytes.is_power_of_two() || !(1024..=1 << 16).contains(&sb.block_bytes) {
            return Err(Reason::Torn);
        }
        let mut i_data = [0; ext4::I_DATA_BYTES];
        let at = info.offset(layout.i_data.offset.into());
        self.kernel.space.read(at, &mut i_data).map_err(torn)?;
        let (kernel, read_disk, disks) = (
            self.kernel,
            self.options.read_disk.as_ref(),
            &self.guest_disks,
        );
        let mut blocks = ext4::Blocks {
            read: &mut |block, buf| {
                kernel.read_cached_block(sb.bdev, block, buf).is_some()
                    || read_disk.is_some_and(|read| {
                        let offset = block.checked_mul(sb.block_bytes);
                        let offset = offset.and_then(|at| at.checked_add(span.start));
                        offset.is_some_and(|at| read(&disks[span.disk], at, buf))
                    })
            },
            block_bytes: sb.block_bytes as usize,
            budget: self.extent_blocks_left,
        };
        let extents = ext4::extents(&i_data, &mut blocks);
        self.extent_blocks_left = blocks.budget;
        let blocks = Mapped::Extents {
            block_bytes: sb.block_bytes,
            extents,
        };
        Ok(Place {
            span,
            size_bytes: inode.size_bytes,
            blocks,
        })
    }
}
