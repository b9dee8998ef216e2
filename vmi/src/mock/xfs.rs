//! XFS in the hand-made guest: inodes with trees of in-core extents.

use profiles::layout::{Xfs, XfsIfork, XfsInode, XfsMount, XfsSb};

use super::vfs::S_IFREG;
use super::{MockGuest, field};
use crate::address::Gva;

/// Allocation groups of so many blocks; the next power of two is 2¹⁰.
pub(crate) const AG_BLOCKS: u64 = 1000;

/// Of an inode's data fork.
pub(crate) const I_LOCK: u32 = 64;

impl MockGuest {
    /// A regular file with these extents: (logical, blocks, group, block in the group, unwritten).
    pub(crate) fn xfs_file(
        &mut self,
        sb: Gva,
        size_bytes: u64,
        extents: &[(u64, u64, u64, u64, bool)],
    ) -> Gva {
        let layout = self.layouts.xfs.clone().unwrap();
        let mount = self.alloc(layout.mount.size);
        let m_sb = mount.offset(layout.mount.m_sb.offset.into());
        self.put(m_sb, layout.sb.sb_agblocks, AG_BLOCKS);
        self.put(m_sb, layout.sb.sb_agblklog, 10);
        self.put(m_sb, layout.sb.sb_agcount, 1 << 10);
        let xfs_inode = self.alloc(layout.inode.size);
        self.put(xfs_inode, layout.inode.i_mount, mount.0);
        let inode = xfs_inode.offset(layout.inode.i_vnode.offset.into());
        self.inode_at(inode, sb, S_IFREG, size_bytes);
        let records: Vec<[u64; 2]> = extents.iter().map(record).collect();
        let (root, height) = self.iext_tree(&records);
        let fork = xfs_inode.offset(layout.inode.i_df.offset.into());
        self.put(fork, layout.ifork.if_data, root.0);
        self.put(fork, layout.ifork.if_height, height);
        self.put(fork, layout.ifork.if_bytes, 16 * records.len() as u64);
        self.put(fork, layout.ifork.if_format, 2);
        inode
    }

    /// The xfs_inode around an inode.
    pub(crate) fn xfs_inode(&self, inode: Gva) -> Gva {
        let layout = self.layouts.xfs.as_ref().unwrap();
        inode.container(layout.inode.i_vnode.offset)
    }

    /// Leaves of up to 15 records below one node of up to 16 leaves.
    fn iext_tree(&mut self, records: &[[u64; 2]]) -> (Gva, u64) {
        let leaves: Vec<(u64, Gva)> = records
            .chunks(15)
            .map(|records| {
                let words: Vec<u64> = records.iter().flatten().copied().collect();
                (records[0][0] & ((1 << 54) - 1), self.iext_node(&words))
            })
            .collect();
        if let [(_, leaf)] = leaves[..] {
            return (leaf, 1);
        }
        let mut words = [1 << 63; 32];
        for (slot, (key, leaf)) in leaves.into_iter().enumerate() {
            words[slot] = key;
            words[16 + slot] = leaf.0;
        }
        (self.iext_node(&words), 2)
    }

    fn iext_node(&mut self, words: &[u64]) -> Gva {
        let node = self.alloc(256);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.write(Self::gpa(node), &bytes);
        node
    }
}

fn record(&(logical, blocks, group, block, unwritten): &(u64, u64, u64, u64, bool)) -> [u64; 2] {
    let start = group << 10 | block;
    let hi = blocks | u64::from(unwritten) << 21 | (start >> 10) << 22;
    [logical | start << 54, hi]
}

pub(super) fn layout() -> Xfs {
    Xfs {
        inode: XfsInode {
            size: 512,
            i_mount: field(8, 8),
            i_df: field(16, 48),
            i_lock: field(I_LOCK, 40),
            i_vnode: field(128, 256),
            i_diflags: Some(field(120, 2)),
            i_d: None,
        },
        i_diflags: field(120, 2),
        ifork: XfsIfork {
            size: 48,
            if_data: field(0, 8),
            if_bytes: field(8, 8),
            if_height: field(20, 4),
            if_format: field(28, 1),
        },
        mount: XfsMount {
            size: 512,
            m_sb: field(64, 256),
        },
        sb: XfsSb {
            size: 256,
            sb_agblocks: field(84, 4),
            sb_agblklog: field(124, 1),
            sb_agcount: field(88, 4),
        },
    }
}
