//! Super blocks, inodes and their page caches (include/linux/fs.h).

use crate::address::Gva;
use crate::kernel::{Kernel, Unreadable, Walk};
use crate::reason::Reason;

const S_IFMT: u64 = 0o170_000;
const S_IFREG: u64 = 0o100_000;
const S_IFBLK: u64 = 0o060_000;
// Of inode.i_flags.
/// A quota file: its contents are metadata.
const S_NOQUOTA: u64 = 1 << 5;
const S_SWAPFILE: u64 = 1 << 8;
/// There is no page cache, the pages are the storage.
const S_DAX: u64 = 1 << 13;
/// The page cache has plain text, the disk has not.
const S_ENCRYPTED: u64 = 1 << 14;

/// A mounted file system, or one of the kernel's own.
#[derive(Debug, Clone)]
pub(crate) struct SuperBlock {
    pub(crate) address: Gva,
    /// file_system_type.name: "ext4", "tmpfs", "bdev".
    pub(crate) fs: String,
    /// The device's name, or the file system's where there is none.
    pub(crate) id: String,
    pub(crate) block_bytes: u64,
    /// Null where there is no device.
    pub(crate) bdev: Gva,
}

/// An inode that may have a page cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inode {
    pub(crate) address: Gva,
    pub(crate) mapping: Gva,
    pub(crate) ino: u64,
    mode: u64,
    flags: u64,
    pub(crate) size_bytes: u64,
    /// The mapping's errseq_t: 0 as long as no page of it failed to be written.
    wb_err: u64,
    /// The mapping's host is this inode: not so for a block device's node in a file system.
    pub(crate) is_host: bool,
}

impl Inode {
    pub(crate) fn is_regular(&self) -> bool {
        self.mode & S_IFMT == S_IFREG
    }

    pub(crate) fn is_block_device(&self) -> bool {
        self.mode & S_IFMT == S_IFBLK
    }

    /// Why none of its pages is what a disk has, whatever the file system.
    pub(crate) fn excluded(&self) -> Option<Reason> {
        let flags = [
            (S_DAX, Reason::Dax),
            (S_ENCRYPTED, Reason::Encrypted),
            (S_SWAPFILE, Reason::PastCache),
            (S_NOQUOTA, Reason::PastCache),
        ];
        let set = flags.into_iter().find(|(flag, _)| self.flags & flag != 0);
        // A page that could not be written is clean afterwards, and nothing of the page tells.
        let failed = (self.wb_err != 0).then_some(Reason::WritebackFailed);
        set.map(|(_, reason)| reason).or(failed)
    }
}

impl Kernel<'_> {
    /// Addresses of all super blocks.
    pub(crate) fn super_block_addresses(&self, entries_max: usize) -> Walk {
        self.list_entries(
            self.super_blocks,
            self.layouts.super_block.s_list,
            entries_max,
        )
    }

    pub(crate) fn super_block(&self, address: Gva) -> Result<SuperBlock, Unreadable> {
        let layout = &self.layouts.super_block;
        let kind = self.pointer(address, layout.s_type)?;
        Ok(SuperBlock {
            address,
            fs: self.string_behind(kind, self.layouts.file_system_type.name)?,
            id: self.string_in(address, layout.s_id)?,
            block_bytes: self.uint(address, layout.s_blocksize)?,
            bdev: self.pointer(address, layout.s_bdev)?,
        })
    }

    /// Addresses of a super block's inodes.
    pub(crate) fn inode_addresses(&self, sb: Gva, entries_max: usize) -> Walk {
        let head = sb.offset(self.layouts.super_block.s_inodes.offset.into());
        self.list_entries(head, self.layouts.inode.i_sb_list, entries_max)
    }

    pub(crate) fn inode(&self, address: Gva) -> Result<Inode, Unreadable> {
        let layout = &self.layouts.inode;
        let mapping = self.pointer(address, layout.i_mapping)?;
        Ok(Inode {
            address,
            mapping,
            ino: self.uint(address, layout.i_ino)?,
            mode: self.uint(address, layout.i_mode)?,
            flags: self.uint(address, layout.i_flags)?,
            size_bytes: self.uint(address, layout.i_size)?,
            wb_err: self.uint(mapping, self.layouts.address_space.wb_err)?,
            is_host: self.pointer(mapping, self.layouts.address_space.host)? == address,
        })
    }

    /// The inode, if its mapping holds pages: most do not, and are passed over with few reads.
    pub(crate) fn inode_with_pages(&self, address: Gva) -> Result<Option<Inode>, Unreadable> {
        let mapping = self.pointer(address, self.layouts.inode.i_mapping)?;
        match self.uint(mapping, self.layouts.address_space.nrpages)? {
            0 => Ok(None),
            _ => self.inode(address).map(Some),
        }
    }

    /// The xarray of a mapping's pages.
    pub(crate) fn i_pages(&self, mapping: Gva) -> Gva {
        mapping.offset(self.layouts.address_space.i_pages.offset.into())
    }
}
