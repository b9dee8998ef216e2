//! What is read of btrfs (fs/btrfs/). Never holds a layout of the disk: those are no kernel's secret.

use super::Resolver;
use crate::types::Field;

layouts! {
    /// fs/btrfs/btrfs_inode.h
    BtrfsInode "btrfs_inode" { root, extent_tree, vfs_inode }
    /// fs/btrfs/extent_map.h
    ExtentMapTree "extent_map_tree" { root | "map", lock }
    /// fs/btrfs/extent_map.h
    ExtentMap "extent_map" {
        rb_node, start, len, flags
    } + {
        disk_bytenr, offset, disk_num_bytes,
        block_start, orig_start, orig_block_len,
        map_lookup,
    }
    /// fs/btrfs/ctree.h
    BtrfsRoot "btrfs_root" { node, fs_info }
    /// fs/btrfs/extent_io.h
    ExtentBuffer "extent_buffer" { start, len, lock }
    /// fs/btrfs/fs.h (fs/btrfs/ctree.h)
    BtrfsFsInfo "btrfs_fs_info" { mapping_tree, btree_inode }
    /// fs/btrfs/volumes.h
    BtrfsChunkMap "btrfs_chunk_map" { rb_node, start, chunk_len, r#type, num_stripes, stripes }
    /// fs/btrfs/volumes.h
    MapLookup "map_lookup" { r#type, num_stripes, stripes }
    /// fs/btrfs/volumes.h
    BtrfsDevice "btrfs_device" { bdev }
}

/// Bits of `extent_map.flags`, as masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtentFlags {
    pub compressed: u64,
    pub prealloc: u64,
}

/// The address of an extent map's first byte, and what tells where the extent on disk ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentAddress {
    /// The extent as it is on disk, and where in it the map begins.
    DiskBytenr {
        disk_bytenr: Field,
        disk_num_bytes: Field,
        offset: Field,
    },
    /// The first byte's address, and where in the file the extent on disk would begin.
    BlockStart {
        block_start: Field,
        orig_start: Field,
        orig_block_len: Field,
    },
}

/// How chunks are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunks {
    /// `btrfs_fs_info.mapping_tree` is a tree of them.
    ChunkMap(BtrfsChunkMap),
    /// `btrfs_fs_info.mapping_tree` is an extent_map_tree, and each extent map has a struct
    /// map_lookup.
    MapLookup {
        map_lookup: Field,
        lookup: MapLookup,
    },
}

/// The stripe of a chunk: struct btrfs_io_stripe, before that btrfs_bio_stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stripe {
    pub dev: Field,
    pub physical: Field,
}

/// The types of btrfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Btrfs {
    pub inode: BtrfsInode,
    pub extent_map_tree: ExtentMapTree,
    pub extent_map: ExtentMap,
    pub extent_address: ExtentAddress,
    pub extent_flags: ExtentFlags,
    pub root: BtrfsRoot,
    pub extent_buffer: ExtentBuffer,
    pub fs_info: BtrfsFsInfo,
    pub chunks: Chunks,
    pub stripe: Stripe,
    pub device: BtrfsDevice,
}

impl Btrfs {
    pub(super) fn resolve(from: &mut Resolver<'_>) -> Btrfs {
        let extent_map = ExtentMap::resolve(from);
        Btrfs {
            inode: BtrfsInode::resolve(from),
            extent_map_tree: ExtentMapTree::resolve(from),
            extent_address: ExtentAddress::resolve(from, &extent_map),
            extent_flags: ExtentFlags::resolve(from),
            chunks: Chunks::resolve(from, &extent_map),
            extent_map,
            root: BtrfsRoot::resolve(from),
            extent_buffer: ExtentBuffer::resolve(from),
            fs_info: BtrfsFsInfo::resolve(from),
            stripe: Stripe::resolve(from),
            device: BtrfsDevice::resolve(from),
        }
    }
}

impl ExtentAddress {
    fn resolve(from: &mut Resolver<'_>, map: &ExtentMap) -> ExtentAddress {
        let newer = (map.disk_bytenr, map.disk_num_bytes, map.offset);
        let older = (map.block_start, map.orig_start, map.orig_block_len);
        if let (Some(disk_bytenr), Some(disk_num_bytes), Some(offset)) = newer {
            return ExtentAddress::DiskBytenr {
                disk_bytenr,
                disk_num_bytes,
                offset,
            };
        }
        let (block_start, orig_start, orig_block_len) = match older {
            (Some(block_start), Some(orig_start), Some(orig_block_len)) => {
                (block_start, orig_start, orig_block_len)
            }
            _ => {
                let names = "extent_map.disk_bytenr, .disk_num_bytes, .offset or \
                             extent_map.block_start, .orig_start, .orig_block_len";
                from.missing.push(names.into());
                let none = Field { offset: 0, size: 0 };
                (none, none, none)
            }
        };
        ExtentAddress::BlockStart {
            block_start,
            orig_start,
            orig_block_len,
        }
    }
}

impl ExtentFlags {
    /// The enum has no name. Its constants are masks where each kind of compression has its own;
    /// before that they are numbers of bits.
    fn resolve(from: &mut Resolver<'_>) -> ExtentFlags {
        let kinds = ["ZLIB", "LZO", "ZSTD"].map(|kind| {
            let name = format!("EXTENT_FLAG_COMPRESS_{kind}");
            from.types.enumerator("", &name)
        });
        let (compressed_bit, prealloc_bit) = (
            from.bit("", "EXTENT_FLAG_COMPRESSED"),
            from.bit("", "EXTENT_FLAG_PREALLOC"),
        );
        let prealloc_mask = from.types.enumerator("", "EXTENT_FLAG_PREALLOC");
        let found = if let [Some(zlib), Some(lzo), Some(zstd)] = kinds {
            prealloc_mask.map(|prealloc| (zlib | lzo | zstd, prealloc))
        } else {
            let mask = |bit: u64| bit as i64;
            compressed_bit.map(mask).zip(prealloc_bit.map(mask))
        };
        let (compressed, prealloc) = found.unwrap_or_else(|| {
            let names = "enum EXTENT_FLAG_COMPRESSED|COMPRESS_ZLIB, EXTENT_FLAG_PREALLOC";
            from.missing.push(names.into());
            (0, 0)
        });
        ExtentFlags {
            compressed: compressed as u64,
            prealloc: prealloc as u64,
        }
    }
}

impl Chunks {
    fn resolve(from: &mut Resolver<'_>, map: &ExtentMap) -> Chunks {
        let mut of_lookup = Resolver::new(from.types);
        let mut of_chunk_map = Resolver::new(from.types);
        let lookup = MapLookup::resolve(&mut of_lookup);
        let chunk_map = BtrfsChunkMap::resolve(&mut of_chunk_map);
        let (chunks, missing) = match map.map_lookup {
            Some(map_lookup) => (Chunks::MapLookup { map_lookup, lookup }, of_lookup.missing),
            None => (Chunks::ChunkMap(chunk_map), of_chunk_map.missing),
        };
        from.missing.extend(missing);
        chunks
    }
}

impl Stripe {
    fn resolve(from: &mut Resolver<'_>) -> Stripe {
        let mut of = |member: &str| {
            let names = ["btrfs_io_stripe", "btrfs_bio_stripe"];
            let found = names.map(|name| from.optional(name, &[member]));
            found.into_iter().flatten().next().unwrap_or_else(|| {
                let name = format!("btrfs_io_stripe|btrfs_bio_stripe.{member}");
                from.missing.push(name);
                Field { offset: 0, size: 0 }
            })
        };
        Stripe {
            dev: of("dev"),
            physical: of("physical"),
        }
    }
}
