//! btrfs in the hand-made guest: chunks, inodes with extent maps, and a subvolume's tree of one leaf
//! in the cache of the btree_inode.

use profiles::layout::{
    Btrfs, BtrfsChunkMap, BtrfsDevice, BtrfsFsInfo, BtrfsInode, BtrfsRoot, Chunks, ExtentAddress,
    ExtentBuffer, ExtentFlags, ExtentMap, ExtentMapTree, MapLookup, Stripe,
};

use super::cache::{MockFolio, PRIVATE, UPTODATE};
use super::vfs::S_IFREG;
use super::{MockGuest, field};
use crate::address::{Gva, PAGE_BYTES};

/// Logical address of the subvolume's only leaf, in the metadata chunk.
pub(crate) const LEAF: u64 = 2 << 20;
pub(crate) const NODE_BYTES: u64 = PAGE_BYTES;
/// The data chunk: logical address, length, and where it is on the device.
pub(crate) const DATA: (u64, u64, u64) = (16 << 20, 64 << 20, 8 << 20);
/// The metadata chunk, twice on the device (DUP).
pub(crate) const METADATA: (u64, u64, u64) = (1 << 20, 4 << 20, 1 << 20);
pub(crate) const GENERATION: u64 = 7;

/// Masks of extent_map.flags.
pub(crate) const ZSTD: u64 = 8;
pub(crate) const PREALLOC: u64 = 16;

/// A mounted btrfs with one subvolume.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MockBtrfs {
    pub(crate) sb: Gva,
    pub(crate) root: Gva,
    pub(crate) leaf_buffer: Gva,
    pub(crate) btree_inode: Gva,
}

impl MockGuest {
    /// btrfs on a block device; its leaf is in the cache at `leaf_pfn`, empty.
    pub(crate) fn btrfs(&mut self, bdev: Gva, leaf_pfn: u64) -> MockBtrfs {
        let layout = self.layouts.btrfs.clone().unwrap();
        let sb = self.super_block("btrfs", "btrfs-3", PAGE_BYTES, Gva(0));
        let fs_info = self.alloc(layout.fs_info.size);
        let device = self.alloc(layout.device.size);
        self.put(device, layout.device.bdev, bdev.0);
        self.chunk_tree(fs_info, device);
        let btree_inode = self.alloc(self.layouts.inode.size);
        self.inode_at(btree_inode, sb, 0, 1 << 62);
        self.put(fs_info, layout.fs_info.btree_inode, btree_inode.0);
        let leaf_buffer = self.alloc(layout.extent_buffer.size);
        self.put(leaf_buffer, layout.extent_buffer.start, LEAF);
        self.put(leaf_buffer, layout.extent_buffer.len, NODE_BYTES);
        let root = self.alloc(layout.root.size);
        self.put(root, layout.root.node, leaf_buffer.0);
        self.put(root, layout.root.fs_info, fs_info.0);
        let btrfs = MockBtrfs {
            sb,
            root,
            leaf_buffer,
            btree_inode,
        };
        self.cache_leaf(&btrfs, leaf_pfn, UPTODATE);
        btrfs
    }

    /// Puts the leaf's page into the cache.
    pub(crate) fn cache_leaf(&mut self, btrfs: &MockBtrfs, pfn: u64, flags: u64) {
        let folio = MockFolio {
            index: LEAF / PAGE_BYTES,
            order: 0,
            pfn,
            flags: flags | PRIVATE,
        };
        self.cache(btrfs.btree_inode, &[folio]);
        let private = self.layouts.page.private;
        self.put(Self::page(pfn), private, btrfs.leaf_buffer.0);
    }

    fn chunk_tree(&mut self, fs_info: Gva, device: Gva) {
        let layout = self.layouts.btrfs.clone().unwrap();
        let tree = fs_info.offset(layout.fs_info.mapping_tree.offset.into());
        let chunks = [(METADATA, 1 << 2 | 1 << 5), (DATA, 1)];
        let nodes = chunks.map(|((start, len, physical), kind)| {
            let at = self.alloc(256);
            let (stripes, node) = match layout.chunks {
                Chunks::ChunkMap(map) => {
                    self.put(at, map.start, start);
                    self.put(at, map.chunk_len, len);
                    self.put(at, map.r#type, kind);
                    self.put(at, map.num_stripes, 1);
                    (at.offset(map.stripes.offset.into()), map.rb_node)
                }
                Chunks::MapLookup { map_lookup, lookup } => {
                    let behind = self.alloc(256);
                    self.put(at, layout.extent_map.start, start);
                    self.put(at, layout.extent_map.len, len);
                    self.put(at, map_lookup, behind.0);
                    self.put(behind, lookup.r#type, kind);
                    self.put(behind, lookup.num_stripes, 1);
                    let stripes = behind.offset(lookup.stripes.offset.into());
                    (stripes, layout.extent_map.rb_node)
                }
            };
            self.put(stripes, layout.stripe.dev, device.0);
            self.put(stripes, layout.stripe.physical, physical);
            at.offset(node.offset.into())
        });
        let root = match layout.chunks {
            Chunks::ChunkMap(_) => tree,
            Chunks::MapLookup { .. } => tree.offset(layout.extent_map_tree.root.offset.into()),
        };
        self.rb_tree(root, &nodes);
    }

    /// A regular file with these extent maps: (start, len, disk_bytenr, flags).
    pub(crate) fn btrfs_file(
        &mut self,
        btrfs: &MockBtrfs,
        ino: u64,
        size_bytes: u64,
        maps: &[(u64, u64, u64, u64)],
    ) -> Gva {
        let layout = self.layouts.btrfs.clone().unwrap();
        let btrfs_inode = self.alloc(layout.inode.size);
        self.put(btrfs_inode, layout.inode.root, btrfs.root.0);
        let inode = btrfs_inode.offset(layout.inode.vfs_inode.offset.into());
        self.inode_at(inode, btrfs.sb, S_IFREG, size_bytes);
        self.put(inode, self.layouts.inode.i_ino, ino);
        let (ExtentAddress::DiskBytenr {
            disk_bytenr: address_field,
            ..
        }
        | ExtentAddress::BlockStart {
            block_start: address_field,
            ..
        }) = layout.extent_address;
        let nodes: Vec<Gva> = maps
            .iter()
            .map(|&(start, len, address, flags)| {
                let at = self.alloc(layout.extent_map.size);
                self.put(at, layout.extent_map.start, start);
                self.put(at, layout.extent_map.len, len);
                self.put(at, layout.extent_map.flags, flags);
                self.put(at, address_field, address);
                at.offset(layout.extent_map.rb_node.offset.into())
            })
            .collect();
        let tree = self.extent_tree(inode);
        self.rb_tree(
            tree.offset(layout.extent_map_tree.root.offset.into()),
            &nodes,
        );
        inode
    }

    /// The extent_map_tree of a file.
    pub(crate) fn extent_tree(&self, inode: Gva) -> Gva {
        let layout = self.layouts.btrfs.as_ref().unwrap();
        let btrfs_inode = inode.container(layout.inode.vfs_inode.offset);
        btrfs_inode.offset(layout.inode.extent_tree.offset.into())
    }

    /// Links nodes that are in order into a balanced tree.
    fn rb_tree(&mut self, root: Gva, nodes: &[Gva]) {
        let top = self.rb_subtree(nodes);
        self.put(root, self.layouts.rb_root.rb_node, top);
    }

    fn rb_subtree(&mut self, nodes: &[Gva]) -> u64 {
        let Some(&middle) = nodes.get(nodes.len() / 2) else {
            return 0;
        };
        let (left, right) = (&nodes[..nodes.len() / 2], &nodes[nodes.len() / 2 + 1..]);
        let (left, right) = (self.rb_subtree(left), self.rb_subtree(right));
        self.put(middle, self.layouts.rb_node.rb_left, left);
        self.put(middle, self.layouts.rb_node.rb_right, right);
        middle.0
    }
}

/// The leaf's bytes with regular file extents: (inode, offset in the file, disk_bytenr, bytes).
pub(crate) fn leaf(extents: &[(u64, u64, u64, u64)]) -> Vec<u8> {
    let mut bytes = vec![0; 101];
    bytes[48..56].copy_from_slice(&LEAF.to_le_bytes());
    bytes[80..88].copy_from_slice(&GENERATION.to_le_bytes());
    bytes[96..100].copy_from_slice(&(extents.len() as u32).to_le_bytes());
    let mut end = NODE_BYTES as usize - bytes.len();
    let mut data = Vec::new();
    for &(ino, offset, disk_bytenr, num_bytes) in extents {
        let mut item = vec![0; 20];
        item.push(1);
        for word in [disk_bytenr, num_bytes, 0, num_bytes] {
            item.extend(word.to_le_bytes());
        }
        end -= item.len();
        bytes.extend(ino.to_le_bytes());
        bytes.push(108);
        bytes.extend(offset.to_le_bytes());
        bytes.extend((end as u32).to_le_bytes());
        bytes.extend((item.len() as u32).to_le_bytes());
        data.splice(0..0, item);
    }
    bytes.resize(NODE_BYTES as usize - data.len(), 0);
    bytes.extend(data);
    bytes
}

pub(super) fn layout() -> Btrfs {
    Btrfs {
        inode: BtrfsInode {
            size: 512,
            root: field(8, 8),
            extent_tree: field(32, 48),
            vfs_inode: field(128, 256),
        },
        extent_map_tree: ExtentMapTree {
            size: 48,
            root: field(0, 16),
            lock: field(32, 8),
        },
        extent_map: EXTENT_MAP,
        extent_address: ExtentAddress::DiskBytenr {
            disk_bytenr: field(48, 8),
            disk_num_bytes: field(56, 8),
            offset: field(64, 8),
        },
        extent_flags: ExtentFlags {
            compressed: 2 | 4 | ZSTD,
            prealloc: PREALLOC,
        },
        root: BtrfsRoot {
            size: 256,
            node: field(16, 8),
            fs_info: field(40, 8),
        },
        extent_buffer: ExtentBuffer {
            size: 256,
            start: field(0, 8),
            len: field(8, 4),
            lock: field(96, 40),
        },
        fs_info: BtrfsFsInfo {
            size: 512,
            mapping_tree: field(64, 16),
            btree_inode: field(96, 8),
        },
        chunks: CHUNK_MAP,
        stripe: Stripe {
            dev: field(0, 8),
            physical: field(8, 8),
        },
        device: BtrfsDevice {
            size: 256,
            bdev: field(80, 8),
        },
    }
}

const EXTENT_MAP: ExtentMap = ExtentMap {
    size: 128,
    rb_node: field(8, 24),
    start: field(32, 8),
    len: field(40, 8),
    flags: field(80, 4),
    disk_bytenr: Some(field(48, 8)),
    offset: Some(field(64, 8)),
    disk_num_bytes: Some(field(56, 8)),
    block_start: None,
    orig_start: None,
    orig_block_len: None,
    map_lookup: None,
};

const CHUNK_MAP: Chunks = Chunks::ChunkMap(BtrfsChunkMap {
    size: 96,
    rb_node: field(0, 24),
    start: field(40, 8),
    chunk_len: field(48, 8),
    r#type: field(64, 8),
    num_stripes: field(80, 4),
    stripes: field(96, 0),
});

/// The chunks as older kernels keep them.
pub(crate) fn older_layout() -> Btrfs {
    let layout = layout();
    let map_lookup = field(88, 8);
    let block_start = field(48, 8);
    let orig_start = field(96, 8);
    let orig_block_len = field(104, 8);
    Btrfs {
        extent_map: ExtentMap {
            disk_bytenr: None,
            disk_num_bytes: None,
            offset: None,
            block_start: Some(block_start),
            orig_start: Some(orig_start),
            orig_block_len: Some(orig_block_len),
            map_lookup: Some(map_lookup),
            ..layout.extent_map
        },
        extent_address: ExtentAddress::BlockStart {
            block_start,
            orig_start,
            orig_block_len,
        },
        extent_flags: ExtentFlags {
            compressed: 1 << 1,
            prealloc: 1 << 2,
        },
        chunks: Chunks::MapLookup {
            map_lookup,
            lookup: MapLookup {
                size: 40,
                r#type: field(0, 8),
                num_stripes: field(24, 4),
                stripes: field(40, 0),
            },
        },
        ..layout
    }
}
