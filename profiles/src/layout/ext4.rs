//! What is read of ext4 (fs/ext4/). Never holds a layout of the disk: those are no kernel's secret.

use super::Resolver;

layouts! {
    /// fs/ext4/ext4.h
    Ext4InodeInfo "ext4_inode_info" { vfs_inode, i_data, i_flags, i_data_sem }
    /// fs/ext4/ext4.h
    Ext4SbInfo "ext4_sb_info" { s_mount_opt, s_sb }
}

/// The types of ext4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ext4 {
    pub inode_info: Ext4InodeInfo,
    pub sb_info: Ext4SbInfo,
}

impl Ext4 {
    pub(super) fn resolve(from: &mut Resolver<'_>) -> Ext4 {
        Ext4 {
            inode_info: Ext4InodeInfo::resolve(from),
            sb_info: Ext4SbInfo::resolve(from),
        }
    }
}
