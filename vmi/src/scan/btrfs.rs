//! Where the pages of a file on btrfs are: reads extent maps, chunks and blocks of trees for the
//! decoders.

use std::collections::HashMap;
use std::rc::Rc;

use profiles::layout::{Btrfs, Chunks, ExtentAddress};

use crate::address::Gva;
use crate::btrfs::chunk::{self, Chunk};
use crate::btrfs::extent_map::{self, ExtentMap};
use crate::btrfs::fs_tree;
use crate::kernel::{Inode, Kernel, Unreadable};
use crate::place::{Extent, Mapped, Place};
use crate::reason::Reason;
use crate::scan::walk::Scanner;
use crate::volume::Volume;

/// nodesize, BTRFS_MAX_METADATA_BLOCKSIZE
const NODE_BYTES_MAX: u64 = 1 << 16;
/// Blocks of trees kept that came from disk: 16 MiB of the usual 16 KiB. When full, all are dropped.
const TREE_BLOCKS_MAX: usize = 1024;

/// Blocks of trees that came from disk, by btrfs_fs_info and logical address.
pub(super) type TreeBlocks = HashMap<(Gva, u64), Rc<[u8]>>;

/// A subvolume's tree, ready to be read.
struct FsTree {
    fs_info: Gva,
    /// The mapping of the btree_inode.
    btree: Gva,
    /// Logical address of the root.
    root: u64,
    node_bytes: usize,
}

impl Scanner<'_, '_> {
    pub(super) fn place_of_btrfs(&mut self, inode: &Inode) -> Result<Place, Reason> {
        let kernel = self.kernel;
        let layout = kernel.layouts.btrfs.as_ref();
        let layout = layout.map_err(|_| Reason::NoTypes)?;
        let torn = |_| Reason::Torn;
        let btrfs_inode = inode.address.container(layout.inode.vfs_inode.offset);
        let root = kernel
            .pointer(btrfs_inode, layout.inode.root)
            .map_err(torn)?;
        let fs_info = kernel.pointer(root, layout.root.fs_info).map_err(torn)?;
        let volume = self.logical_volume(layout, fs_info)?;
        let mut extents = self.extent_maps(layout, btrfs_inode, inode.size_bytes)?;
        if extent_map::has_gap(&extents, inode.size_bytes) {
            let tree = fs_tree(kernel, layout, root, fs_info).map_err(torn)?;
            let in_tree = self.extents_in_tree(layout, &tree, inode, &volume);
            extents = extent_map::fill_gaps(&extents, &in_tree);
        }
        Ok(Place {
            volume,
            size_bytes: inode.size_bytes,
            blocks: Mapped::Extents {
                block_bytes: 1,
                extents,
            },
        })
    }

    /// The logical address space of a mounted file system.
    fn logical_volume(&mut self, layout: &Btrfs, fs_info: Gva) -> Result<Rc<Volume>, Reason> {
        if let Some(known) = self.volumes.get(&fs_info) {
            return known.clone();
        }
        let chunks = chunks(self.kernel, layout, fs_info, &mut self.extent_structs_left);
        let chunks = chunks.map_err(|_| Reason::Torn);
        let volume = chunks.and_then(|chunks| {
            let volume = chunk::logical_volume(chunks, |bdev| self.volume(bdev))?;
            Ok(Rc::new(volume))
        });
        self.volumes.insert(fs_info, volume.clone());
        volume
    }

    fn extent_maps(
        &mut self,
        layout: &Btrfs,
        inode: Gva,
        size_bytes: u64,
    ) -> Result<Vec<Extent>, Reason> {
        let tree = inode.offset(layout.inode.extent_tree.offset.into());
        let lock = tree.offset(layout.extent_map_tree.lock.offset.into());
        let torn = |_| Reason::Torn;
        if self.kernel.rwlock_is_write_locked(lock).map_err(torn)? {
            return Err(Reason::Changing);
        }
        let root = tree.offset(layout.extent_map_tree.root.offset.into());
        let budget = &mut self.extent_structs_left;
        let entries = self
            .kernel
            .rb_entries(root, layout.extent_map.rb_node, budget);
        let entries = entries.map_err(torn)?;
        let maps = entries
            .into_iter()
            .map(|at| extent_map(self.kernel, layout, at));
        let maps: Vec<ExtentMap> = maps.collect::<Result<_, _>>().map_err(torn)?;
        extent_map::extents(&maps, size_bytes)
    }

    fn extents_in_tree(
        &mut self,
        layout: &Btrfs,
        tree: &FsTree,
        inode: &Inode,
        volume: &Volume,
    ) -> Vec<Extent> {
        let mut budget = self.extent_blocks_left;
        let mut from_disk = std::mem::take(&mut self.tree_blocks);
        let (kernel, storage) = (self.kernel, self.storage());
        let mut read = |bytenr| {
            let cached =
                kernel.cached_extent_buffer(layout, tree.btree, bytenr, tree.node_bytes)?;
            let key = (tree.fs_info, bytenr);
            if let Some(block) = cached.or_else(|| from_disk.get(&key).cloned()) {
                return Ok(block);
            }
            let mut block = vec![0; tree.node_bytes];
            let read = storage.read(volume, bytenr, &mut block);
            read.ok_or(Reason::ExtentBlockUnread)?;
            let block: Rc<[u8]> = block.into();
            if from_disk.len() == TREE_BLOCKS_MAX {
                from_disk.clear();
            }
            from_disk.insert(key, Rc::clone(&block));
            Ok(block)
        };
        let mut blocks = fs_tree::Blocks {
            read: &mut read,
            budget: &mut budget,
        };
        let extents = fs_tree::extents(tree.root, (inode.ino, inode.size_bytes), &mut blocks);
        self.tree_blocks = from_disk;
        self.extent_blocks_left = budget;
        extents
    }
}

fn extent_map(kernel: &Kernel<'_>, layout: &Btrfs, at: Gva) -> Result<ExtentMap, Unreadable> {
    let flags = kernel.uint(at, layout.extent_map.flags)?;
    let uint = |field| kernel.uint(at, field);
    let start = uint(layout.extent_map.start)?;
    let (address, offset, disk_end) = match layout.extent_address {
        ExtentAddress::DiskBytenr {
            disk_bytenr,
            disk_num_bytes,
            offset,
        } => {
            let address = uint(disk_bytenr)?;
            let disk_end = address.saturating_add(uint(disk_num_bytes)?);
            (address, uint(offset)?, disk_end)
        }
        ExtentAddress::BlockStart {
            block_start,
            orig_start,
            orig_block_len,
        } => {
            let address = uint(block_start)?;
            let before = start.saturating_sub(uint(orig_start)?);
            let disk_start = address.saturating_sub(before);
            (address, 0, disk_start.saturating_add(uint(orig_block_len)?))
        }
    };
    Ok(ExtentMap {
        start,
        len: uint(layout.extent_map.len)?,
        address,
        offset,
        disk_end,
        compressed: flags & layout.extent_flags.compressed != 0,
        prealloc: flags & layout.extent_flags.prealloc != 0,
    })
}

fn chunks(
    kernel: &Kernel<'_>,
    layout: &Btrfs,
    fs_info: Gva,
    budget: &mut u64,
) -> Result<Vec<Chunk>, Unreadable> {
    let tree = fs_info.offset(layout.fs_info.mapping_tree.offset.into());
    let chunk = |at, start, len, kind, num_stripes, stripes: profiles::Field| {
        // A chunk has one stripe at least.
        if kernel.uint(at, num_stripes)? == 0 {
            return Err(Unreadable(at));
        }
        let stripe = at.offset(stripes.offset.into());
        let device = kernel.pointer(stripe, layout.stripe.dev)?;
        Ok(Chunk {
            start,
            len,
            kind: kernel.uint(at, kind)?,
            bdev: kernel.pointer(device, layout.device.bdev)?,
            physical: kernel.uint(stripe, layout.stripe.physical)?,
        })
    };
    match layout.chunks {
        Chunks::ChunkMap(map) => {
            let entries = kernel.rb_entries(tree, map.rb_node, budget)?.into_iter();
            let chunks = entries.map(|at| {
                let (start, len) = (kernel.uint(at, map.start)?, kernel.uint(at, map.chunk_len)?);
                chunk(at, start, len, map.r#type, map.num_stripes, map.stripes)
            });
            chunks.collect()
        }
        Chunks::MapLookup { map_lookup, lookup } => {
            let root = tree.offset(layout.extent_map_tree.root.offset.into());
            let map = layout.extent_map;
            let entries = kernel.rb_entries(root, map.rb_node, budget)?.into_iter();
            let chunks = entries.map(|map_at| {
                let at = kernel.pointer(map_at, map_lookup)?;
                let (start, len) = (
                    kernel.uint(map_at, map.start)?,
                    kernel.uint(map_at, map.len)?,
                );
                chunk(
                    at,
                    start,
                    len,
                    lookup.r#type,
                    lookup.num_stripes,
                    lookup.stripes,
                )
            });
            chunks.collect()
        }
    }
}

fn fs_tree(
    kernel: &Kernel<'_>,
    layout: &Btrfs,
    root: Gva,
    fs_info: Gva,
) -> Result<FsTree, Unreadable> {
    let node = kernel.pointer(root, layout.root.node)?;
    let bytes = kernel.uint(node, layout.extent_buffer.len)?;
    let btree_inode = kernel.pointer(fs_info, layout.fs_info.btree_inode)?;
    if !bytes.is_power_of_two() || !(4096..=NODE_BYTES_MAX).contains(&bytes) {
        return Err(Unreadable(node));
    }
    Ok(FsTree {
        fs_info,
        btree: kernel.inode(btree_inode)?.mapping,
        root: kernel.uint(node, layout.extent_buffer.start)?,
        node_bytes: bytes as usize,
    })
}
