//! Where an inode's pages are, by file system.

use std::rc::Rc;

use crate::ext4;
use crate::kernel::{Inode, SuperBlock};
use crate::place::{Mapped, Place};
use crate::reason::Reason;
use crate::scan::walk::Scanner;

impl Scanner<'_> {
    /// Where the pages of an inode are, or why none of them is anywhere.
    pub(super) fn place(&mut self, sb: &SuperBlock, inode: &Inode) -> Result<Place, Reason> {
        match sb.fs.as_str() {
            "bdev" => return self.place_of_bdev(inode),
            "ext4" | "xfs" | "btrfs" => {}
            _ => return Err(Reason::Filesystem),
        }
        if !inode.is_regular() {
            return Err(Reason::NotRegular);
        }
        if let Some(reason) = inode.excluded() {
            return Err(reason);
        }
        match sb.fs.as_str() {
            "ext4" => self.place_of_ext4(sb, inode),
            "xfs" => self.place_of_xfs(sb, inode),
            _ => self.place_of_btrfs(inode),
        }
    }

    fn place_of_bdev(&mut self, inode: &Inode) -> Result<Place, Reason> {
        let address = self.kernel.bdev_of_inode(inode.address);
        let bdev = self
            .kernel
            .block_device(address)
            .map_err(|_| Reason::Torn)?;
        let volume = self.volume(address)?;
        Ok(Place {
            size_bytes: volume.bytes(),
            volume: Rc::new(self.claims.cacheable(&bdev, &volume)?),
            blocks: Mapped::Identity,
        })
    }

    fn place_of_ext4(&mut self, sb: &SuperBlock, inode: &Inode) -> Result<Place, Reason> {
        let ext4 = self.kernel.layouts.ext4.as_ref();
        let layout = ext4.map_err(|_| Reason::NoTypes)?.inode_info;
        let torn = |_| Reason::Torn;
        let info = inode.address.container(layout.vfs_inode.offset);
        let flags = self.kernel.uint(info, layout.i_flags).map_err(torn)?;
        if let Some(reason) = ext4::excluded(flags) {
            return Err(reason);
        }
        let volume = self.volume(sb.bdev)?;
        if !sb.block_bytes.is_power_of_two() || !(1024..=1 << 16).contains(&sb.block_bytes) {
            return Err(Reason::Torn);
        }
        let mut i_data = [0; ext4::I_DATA_BYTES];
        let at = info.offset(layout.i_data.offset.into());
        self.kernel.space.read(at, &mut i_data).map_err(torn)?;
        let metadata = self.metadata(sb.bdev, &volume);
        let mut blocks = ext4::Blocks {
            read: &mut |block, buf| metadata.read_block(block, buf),
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
            volume,
            size_bytes: inode.size_bytes,
            blocks,
        })
    }
}
