//! ext4 in the hand-made guest: inodes, and extent trees as they are on disk.

use profiles::layout::{Ext4, Ext4InodeInfo, Ext4SbInfo};

use super::vfs::S_IFREG;
use super::{MockGuest, field};
use crate::address::Gva;

pub(crate) const EXTENTS_FL: u64 = 0x8_0000;

impl MockGuest {
    /// A regular file of ext4 with these i_data.
    pub(crate) fn ext4_file(&mut self, sb: Gva, size_bytes: u64, i_data: &[u8; 60]) -> Gva {
        let layout = self.layouts.ext4.as_ref().unwrap().inode_info;
        let info = self.alloc(layout.size);
        let inode = info.offset(layout.vfs_inode.offset.into());
        self.inode_at(inode, sb, S_IFREG, size_bytes);
        self.put(info, layout.i_flags, EXTENTS_FL);
        self.write(Self::gpa(info.offset(layout.i_data.offset.into())), i_data);
        inode
    }

    pub(crate) fn set_ext4_flags(&mut self, inode: Gva, flags: u64) {
        let layout = self.layouts.ext4.as_ref().unwrap().inode_info;
        self.put(
            inode.container(layout.vfs_inode.offset),
            layout.i_flags,
            flags,
        );
    }
}

/// i_data of an inode whose tree has one level: (logical, blocks, physical, unwritten).
pub(crate) fn leaf(extents: &[(u32, u16, u64, bool)]) -> [u8; 60] {
    let mut bytes = [0; 60];
    let leaf = leaf_bytes(extents, 4);
    bytes[..leaf.len()].copy_from_slice(&leaf);
    bytes
}

pub(crate) fn leaf_bytes(extents: &[(u32, u16, u64, bool)], max: u16) -> Vec<u8> {
    let mut bytes = header(extents.len() as u16, max, 0);
    for &(logical, blocks, physical, unwritten) in extents {
        bytes.extend(logical.to_le_bytes());
        bytes.extend((blocks + if unwritten { 1 << 15 } else { 0 }).to_le_bytes());
        bytes.extend(((physical >> 32) as u16).to_le_bytes());
        bytes.extend((physical as u32).to_le_bytes());
    }
    bytes
}

pub(crate) fn index_bytes(entries: &[(u32, u64)], max: u16, depth: u16) -> Vec<u8> {
    let mut bytes = header(entries.len() as u16, max, depth);
    for &(logical, block) in entries {
        bytes.extend(logical.to_le_bytes());
        bytes.extend((block as u32).to_le_bytes());
        bytes.extend(((block >> 32) as u16).to_le_bytes());
        bytes.extend([0, 0]);
    }
    bytes
}

pub(crate) fn header(entries: u16, max: u16, depth: u16) -> Vec<u8> {
    let words = [0xf30a, entries, max, depth, 0, 0];
    words.into_iter().flat_map(u16::to_le_bytes).collect()
}

pub(super) const EXT4: Ext4 = Ext4 {
    inode_info: Ext4InodeInfo {
        size: 512,
        i_data: field(0, 60),
        i_flags: field(72, 8),
        i_data_sem: field(84, 40),
        vfs_inode: field(128, 256),
    },
    sb_info: Ext4SbInfo {
        size: 256,
        s_mount_opt: field(104, 4),
        s_sb: field(144, 8),
    },
};
