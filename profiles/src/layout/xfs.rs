//! What is read of XFS (fs/xfs/). Never holds a layout of the disk: those are no kernel's secret.

use super::Resolver;

layouts! {
    /// fs/xfs/xfs_inode.h
    XfsInode "xfs_inode" { i_vnode, i_mount, i_df }
    /// fs/xfs/libxfs/xfs_inode_fork.h
    XfsIfork "xfs_ifork" { if_data | "if_u1", if_bytes, if_height, if_nextents, if_format }
    /// fs/xfs/xfs_mount.h
    XfsMount "xfs_mount" { m_sb }
    /// fs/xfs/libxfs/xfs_format.h
    XfsSb "xfs_sb" { sb_blocksize, sb_agblocks, sb_agblklog, sb_agcount }
}

/// The types of XFS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xfs {
    pub inode: XfsInode,
    pub ifork: XfsIfork,
    pub mount: XfsMount,
    pub sb: XfsSb,
}

impl Xfs {
    pub(super) fn resolve(from: &mut Resolver<'_>) -> Xfs {
        Xfs {
            inode: XfsInode::resolve(from),
            ifork: XfsIfork::resolve(from),
            mount: XfsMount::resolve(from),
            sb: XfsSb::resolve(from),
        }
    }
}
