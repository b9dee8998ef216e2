//! ext4's two ways from an inode to blocks (Documentation/filesystems/ext4/ifork.rst). Pure: blocks
//! of metadata come through a closure, and may be hostile.

mod extents;
mod indirect;

pub(crate) use extents::extents;
pub(crate) use indirect::{Wanted, indirect};

use crate::reason::Reason;

/// Bytes of ext4_inode_info.i_data.
pub(crate) const I_DATA_BYTES: usize = 60;
/// Logical block numbers have 32 bits.
const BLOCKS_END: u64 = 1 << 32;

// Flags of ext4_inode_info.i_flags, the same as on disk.
const EXT4_ENCRYPT_FL: u64 = 0x800;
const EXT4_JOURNAL_DATA_FL: u64 = 0x4000;
const EXT4_EXTENTS_FL: u64 = 0x8_0000;
const EXT4_VERITY_FL: u64 = 0x10_0000;
const EXT4_DAX_FL: u64 = 0x200_0000;
const EXT4_INLINE_DATA_FL: u64 = 0x1000_0000;

// Of ext4_sb_info.s_mount_opt.
const EXT4_MOUNT_DATA_FLAGS: u64 = 0xc00;
const EXT4_MOUNT_JOURNAL_DATA: u64 = 0x400;

/// Reads blocks of the file system for a tree.
pub(crate) struct Blocks<'a> {
    /// Fills the buffer with a block; false when it cannot.
    pub(crate) read: &'a mut dyn FnMut(u64, &mut [u8]) -> bool,
    pub(crate) block_bytes: usize,
    /// Blocks that may still be read.
    pub(crate) budget: u64,
}

impl Blocks<'_> {
    fn read(&mut self, block: u64) -> Option<Vec<u8>> {
        self.budget = self.budget.saturating_sub(1);
        let mut bytes = vec![0; self.block_bytes];
        (self.budget > 0 && (self.read)(block, &mut bytes)).then_some(bytes)
    }
}

/// Why an inode with these i_flags has no blocks that could be used.
pub(crate) fn excluded(i_flags: u64) -> Option<Reason> {
    let reasons = [
        (EXT4_INLINE_DATA_FL, Reason::InlineData),
        (EXT4_ENCRYPT_FL, Reason::Encrypted),
        (EXT4_VERITY_FL, Reason::Verity),
        (EXT4_DAX_FL, Reason::Dax),
        (EXT4_JOURNAL_DATA_FL, Reason::JournalledData),
    ];
    let excluded = reasons.into_iter().find(|(flag, _)| i_flags & flag != 0);
    excluded.map(|(_, reason)| reason)
}

/// Whether a mount writes all data to the journal first (data=journal): a clean page may be nowhere
/// else yet.
pub(crate) fn journals_data(s_mount_opt: u64) -> bool {
    s_mount_opt & EXT4_MOUNT_DATA_FLAGS == EXT4_MOUNT_JOURNAL_DATA
}

/// Whether an inode with these i_flags has an extent tree; else it has ext2's blocks of pointers.
pub(crate) fn has_extents(i_flags: u64) -> bool {
    i_flags & EXT4_EXTENTS_FL != 0
}
