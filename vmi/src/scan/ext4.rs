//! Where the pages of ext4's files are. Its driver also mounts what says ext3 or ext2.

use crate::address::{Gva, PAGE_BYTES};
use crate::ext4::{self, Wanted};
use crate::kernel::{Inode, SuperBlock, Unreadable};
use crate::place::{Mapped, Place};
use crate::reason::Reason;
use crate::scan::walk::Scanner;

impl Scanner<'_, '_> {
    pub(super) fn place_of_ext4(
        &mut self,
        sb: &SuperBlock,
        inode: &Inode,
    ) -> Result<Place, Reason> {
        let torn = |_| Reason::Torn;
        let kernel = self.kernel;
        let ext4 = kernel.layouts.ext4.as_ref();
        let layout = ext4.map_err(|_| Reason::NoTypes)?.inode_info;
        self.check_ext4_mount(sb)?;
        let info = inode.address.container(layout.vfs_inode.offset);
        let flags = kernel.uint(info, layout.i_flags).map_err(torn)?;
        if let Some(reason) = ext4::excluded(flags) {
            return Err(reason);
        }
        let i_data_sem = info.offset(layout.i_data_sem.offset.into());
        if kernel.rwsem_is_write_locked(i_data_sem).map_err(torn)? {
            return Err(Reason::Changing);
        }
        let volume = self.volume(sb.bdev)?;
        if !sb.block_bytes.is_power_of_two() || !(1024..=1 << 16).contains(&sb.block_bytes) {
            return Err(Reason::Torn);
        }
        let mut i_data = [0; ext4::I_DATA_BYTES];
        let at = info.offset(layout.i_data.offset.into());
        kernel.space.read(at, &mut i_data).map_err(torn)?;
        let wanted = (!ext4::has_extents(flags)).then(|| self.wanted(inode, sb.block_bytes));
        let metadata = self.metadata(sb.bdev, &volume);
        let mut blocks = ext4::Blocks {
            read: &mut |block, buf| metadata.read_block(block, buf),
            block_bytes: sb.block_bytes as usize,
            budget: self.extent_blocks_left,
        };
        let extents = match &wanted {
            None => ext4::extents(&i_data, &mut blocks),
            Some(wanted) => ext4::indirect(&i_data, wanted, &mut blocks),
        };
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

    /// That ext4's driver has mounted the file system, and does not journal its data.
    fn check_ext4_mount(&self, sb: &SuperBlock) -> Result<(), Reason> {
        let ext4 = self.kernel.layouts.ext4.as_ref();
        let layout = ext4.map_err(|_| Reason::NoTypes)?.sb_info;
        let options = || -> Result<Option<u64>, Unreadable> {
            let s_fs_info = self.kernel.layouts.super_block.s_fs_info;
            let s_fs_info = self.kernel.pointer(sb.address, s_fs_info)?;
            let own = self.kernel.pointer(s_fs_info, layout.s_sb)? == sb.address;
            let options = self.kernel.uint(s_fs_info, layout.s_mount_opt)?;
            Ok(own.then_some(options))
        };
        match options() {
            // A driver of ext2 that is not ext4's.
            Ok(None) => Err(Reason::Filesystem),
            Ok(Some(options)) if ext4::journals_data(options) => Err(Reason::JournalledData),
            Ok(Some(_)) => Ok(()),
            Err(_) => Err(Reason::Torn),
        }
    }

    /// The blocks of a file that are in the page cache.
    fn wanted(&mut self, inode: &Inode, block_bytes: u64) -> Wanted {
        let kernel = self.kernel;
        let mut pages: Vec<(u64, u64)> = Vec::new();
        let folios_max = self.folios_left as usize;
        let mut add = |index: u64, page: Gva| {
            if pages.len() < folios_max {
                let folio = kernel.folio(page).map_or(1, |folio| folio.pages);
                pages.push((index, index.saturating_add(folio)));
            }
        };
        let i_pages = kernel.i_pages(inode.mapping);
        // What cannot be walked here cannot be walked later either, and is counted then.
        let _ = kernel.xa_for_each(i_pages, &mut self.nodes_left, &mut add);
        pages.sort_unstable();
        let block = |index: u64| index.saturating_mul(PAGE_BYTES) / block_bytes;
        let to_blocks = |(from, end): (u64, u64)| (block(from), block(end).max(block(from) + 1));
        Wanted::new(pages.into_iter().map(to_blocks).collect())
    }
}
