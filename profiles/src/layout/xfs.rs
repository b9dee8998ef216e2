//! What is read of XFS (fs/xfs/). Never holds a layout of the disk: those are no kernel's secret.

use super::Resolver;
use crate::types::Field;

layouts! {
    /// fs/xfs/xfs_inode.h
    XfsInode "xfs_inode" { i_vnode, i_mount, i_df, i_lock } + { i_diflags, i_d }
    /// fs/xfs/libxfs/xfs_inode_fork.h
    XfsIfork "xfs_ifork" { if_data | "if_u1", if_bytes, if_height, if_format }
    /// fs/xfs/xfs_mount.h
    XfsMount "xfs_mount" { m_sb }
    /// fs/xfs/libxfs/xfs_format.h
    XfsSb "xfs_sb" { sb_agblocks, sb_agblklog, sb_agcount }
}

/// The types of XFS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xfs {
    pub inode: XfsInode,
    /// `xfs_inode.i_diflags`, or where it has an `i_d` that struct's `di_flags`.
    pub i_diflags: Field,
    pub ifork: XfsIfork,
    pub mount: XfsMount,
    pub sb: XfsSb,
}

impl Xfs {
    pub(super) fn resolve(from: &mut Resolver<'_>) -> Xfs {
        let inode = XfsInode::resolve(from);
        Xfs {
            i_diflags: i_diflags(from, &inode),
            inode,
            ifork: XfsIfork::resolve(from),
            mount: XfsMount::resolve(from),
            sb: XfsSb::resolve(from),
        }
    }
}

fn i_diflags(from: &mut Resolver<'_>, inode: &XfsInode) -> Field {
    let in_i_d = from.optional("xfs_icdinode", &["di_flags"]);
    let in_i_d = inode.i_d.zip(in_i_d).map(|(i_d, di_flags)| Field {
        offset: i_d.offset.saturating_add(di_flags.offset),
        ..di_flags
    });
    inode.i_diflags.or(in_i_d).unwrap_or_else(|| {
        let names = "xfs_inode.i_diflags|i_d with xfs_icdinode.di_flags";
        from.missing.push(names.into());
        Field { offset: 0, size: 0 }
    })
}
