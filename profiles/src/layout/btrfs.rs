//! What is read of btrfs (fs/btrfs/). Never holds a layout of the disk: those are no kernel's secret.

use super::Resolver;

layouts! {
    /// fs/btrfs/btrfs_inode.h
    BtrfsInode "btrfs_inode" { root, extent_tree, vfs_inode }
    /// fs/btrfs/extent_map.h
    ExtentMapTree "extent_map_tree" { root | "map" }
    /// fs/btrfs/extent_map.h
    ExtentMap "extent_map" {
        rb_node, start, len, flags
    } + { disk_bytenr, offset, block_start, map_lookup }
    /// fs/btrfs/fs.h (fs/btrfs/ctree.h)
    BtrfsFsInfo "btrfs_fs_info" { mapping_tree }
}

/// The types of btrfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Btrfs {
    pub inode: BtrfsInode,
    pub extent_map_tree: ExtentMapTree,
    pub extent_map: ExtentMap,
    pub fs_info: BtrfsFsInfo,
}

impl Btrfs {
    pub(super) fn resolve(from: &mut Resolver<'_>) -> Btrfs {
        Btrfs {
            inode: BtrfsInode::resolve(from),
            extent_map_tree: ExtentMapTree::resolve(from),
            extent_map: ExtentMap::resolve(from),
            fs_info: BtrfsFsInfo::resolve(from),
        }
    }
}
