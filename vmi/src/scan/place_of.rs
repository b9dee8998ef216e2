//! Where an inode's pages are, by file system.

use std::rc::Rc;

use crate::kernel::{Inode, SuperBlock};
use crate::place::{Mapped, Place};
use crate::reason::Reason;
use crate::scan::walk::Scanner;

impl Scanner<'_, '_> {
    /// Where the pages of an inode are, or why none of them is anywhere.
    pub(super) fn place(&mut self, sb: &SuperBlock, inode: &Inode) -> Result<Place, Reason> {
        match sb.fs.as_str() {
            "bdev" => return self.place_of_bdev(inode),
            "ext4" | "ext3" | "ext2" | "xfs" | "btrfs" => {}
            _ => return Err(Reason::Filesystem),
        }
        if !inode.is_regular() {
            return Err(Reason::NotRegular);
        }
        if let Some(reason) = inode.excluded() {
            return Err(reason);
        }
        match sb.fs.as_str() {
            "xfs" => self.place_of_xfs(sb, inode),
            "btrfs" => self.place_of_btrfs(inode),
            _ => self.place_of_ext4(sb, inode),
        }
    }

    fn place_of_bdev(&mut self, inode: &Inode) -> Result<Place, Reason> {
        let address = self.kernel.bdev_of_inode(inode.address);
        let bdev = self
            .kernel
            .block_device(address)
            .map_err(|_| Reason::Torn)?;
        let volume = self.volume(address)?;
        let is_mapped = self.is_mapped(&bdev);
        let cacheable = self.claims.cacheable(&bdev, is_mapped, &volume)?;
        Ok(Place {
            size_bytes: volume.bytes(),
            volume: Rc::new(cacheable),
            blocks: Mapped::Identity,
        })
    }
}
