//! Where the pages of a file on XFS are: reads its inode's data fork for the decoder. The data fork
//! says it also while the file is being written anew elsewhere (a reflinked file's CoW fork): the
//! page stays under writeback until the data fork has the new blocks.

use profiles::layout::Xfs;

use crate::address::Gva;
use crate::kernel::{Inode, Kernel, SuperBlock, Unreadable};
use crate::place::{Mapped, Place};
use crate::reason::Reason;
use crate::scan::walk::Scanner;
use crate::xfs::{self, Fork, Geometry, Nodes};

impl Scanner<'_, '_> {
    pub(super) fn place_of_xfs(&mut self, sb: &SuperBlock, inode: &Inode) -> Result<Place, Reason> {
        let kernel = self.kernel;
        let layout = kernel.layouts.xfs.as_ref();
        let layout = layout.map_err(|_| Reason::NoTypes)?;
        let torn = |_| Reason::Torn;
        let xfs_inode = inode.address.container(layout.inode.i_vnode.offset);
        let flags = kernel.uint(xfs_inode, layout.i_diflags).map_err(torn)?;
        if let Some(reason) = xfs::excluded(flags) {
            return Err(reason);
        }
        // An mrlock_t begins with the rw_semaphore that it is.
        let lock = xfs_inode.offset(layout.inode.i_lock.offset.into());
        if kernel.rwsem_is_write_locked(lock).map_err(torn)? {
            return Err(Reason::Changing);
        }
        if !sb.block_bytes.is_power_of_two() || !(512..=1 << 16).contains(&sb.block_bytes) {
            return Err(Reason::Torn);
        }
        let fork = fork(kernel, layout, xfs_inode).map_err(torn)?;
        let geometry = geometry(kernel, layout, xfs_inode).map_err(torn)?;
        let mut read = |at, buf: &mut [u8]| kernel.space.read(at, buf).is_ok();
        let mut nodes = Nodes {
            read: &mut read,
            budget: &mut self.extent_structs_left,
        };
        Ok(Place {
            blocks: Mapped::Extents {
                block_bytes: sb.block_bytes,
                extents: xfs::extents(&fork, &geometry, &mut nodes)?,
            },
            volume: self.volume(sb.bdev)?,
            size_bytes: inode.size_bytes,
        })
    }
}

fn fork(kernel: &Kernel<'_>, layout: &Xfs, inode: Gva) -> Result<Fork, Unreadable> {
    let at = inode.offset(layout.inode.i_df.offset.into());
    Ok(Fork {
        if_format: kernel.uint(at, layout.ifork.if_format)?,
        if_height: kernel.uint(at, layout.ifork.if_height)?,
        if_bytes: kernel.uint(at, layout.ifork.if_bytes)?,
        root: kernel.pointer(at, layout.ifork.if_data)?,
    })
}

fn geometry(kernel: &Kernel<'_>, layout: &Xfs, inode: Gva) -> Result<Geometry, Unreadable> {
    let mount = kernel.pointer(inode, layout.inode.i_mount)?;
    let sb = mount.offset(layout.mount.m_sb.offset.into());
    Ok(Geometry {
        sb_agblocks: kernel.uint(sb, layout.sb.sb_agblocks)?,
        sb_agblklog: kernel.uint(sb, layout.sb.sb_agblklog)?,
        sb_agcount: kernel.uint(sb, layout.sb.sb_agcount)?,
    })
}
