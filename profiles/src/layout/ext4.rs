//! What is read of ext4 (fs/ext4/). Never holds a layout of the disk: those are no kernel's secret.

use super::Resolver;

layouts! {
    /// fs/ext4/ext4.h
    Ext4InodeInfo "ext4_inode_info" { vfs_inode, i_data, i_flags }
}

/// The types of ext4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ext4 {
    pub inode_info: Ext4InodeInfo,
}

impl Ext4 {
    pub(super) fn resolve(from: &mut Resolver<'_>) -> Ext4 {
        Ext4 {
            inode_info: Ext4InodeInfo::resolve(from),
        }
    }
}
