//! A subvolume's tree (fs/btrfs/ctree.c, include/uapi/linux/btrfs_tree.h): the file extents of one
//! inode, where no extent map is left in memory. Pure: blocks come through a closure. A block counts
//! only if it says of itself what its parent says of it (address, generation, level); the tree may
//! be hostile, so levels have to fall, keys have to rise, and the blocks read are bounded.

use std::rc::Rc;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::address::PAGE_BYTES;
use crate::btrfs::split_at_end;
use crate::place::Extent;
use crate::reason::Reason;

/// BTRFS_MAX_LEVEL
const LEVELS_MAX: u8 = 8;
const BTRFS_EXTENT_DATA_KEY: u8 = 108;
const BTRFS_FILE_EXTENT_INLINE: u8 = 0;
const BTRFS_FILE_EXTENT_REG: u8 = 1;
const BTRFS_FILE_EXTENT_PREALLOC: u8 = 2;

/// struct btrfs_header
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    csum: [u8; 32],
    fsid: [u8; 16],
    bytenr: U64,
    flags: U64,
    chunk_tree_uuid: [u8; 16],
    generation: U64,
    owner: U64,
    nritems: U32,
    level: u8,
}

/// struct btrfs_disk_key
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskKey {
    objectid: U64,
    kind: u8,
    offset: U64,
}

impl DiskKey {
    fn key(&self) -> Key {
        (self.objectid.get(), self.kind, self.offset.get())
    }
}

/// struct btrfs_key_ptr
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct KeyPtr {
    key: DiskKey,
    blockptr: U64,
    generation: U64,
}

/// struct btrfs_item
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Item {
    key: DiskKey,
    /// Of the data, from the end of the header.
    offset: U32,
    size: U32,
}

/// struct btrfs_file_extent_item, the part that inline extents have too.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct FileExtentHead {
    generation: U64,
    ram_bytes: U64,
    compression: u8,
    encryption: u8,
    other_encoding: U16,
    kind: u8,
}

/// The rest of it.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct FileExtentTail {
    disk_bytenr: U64,
    disk_num_bytes: U64,
    offset: U64,
    num_bytes: U64,
}

/// Object id, type and offset, as the tree orders them.
type Key = (u64, u8, u64);

/// What a parent says of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockPtr {
    /// Logical address.
    pub(crate) bytenr: u64,
    pub(crate) generation: u64,
    pub(crate) level: u8,
}

/// Reads blocks of a tree.
pub(crate) struct Blocks<'a> {
    /// A block by its logical address, or why it cannot be read.
    pub(crate) read: &'a mut dyn FnMut(u64) -> Result<Rc<[u8]>, Reason>,
    /// Blocks that may still be read.
    pub(crate) budget: &'a mut u64,
}

/// The extents of an inode of so many bytes in the tree below a root, in bytes, sorted, not overlapping; holes are
/// gaps. Where a part of the tree could not be read or makes no sense, an extent with the reason
/// stands for it.
pub(crate) fn extents(
    root: u64,
    (ino, size_bytes): (u64, u64),
    blocks: &mut Blocks<'_>,
) -> Vec<Extent> {
    let mut search = Search {
        ino,
        size_bytes,
        extents: Vec::new(),
    };
    let whole = (
        (ino, BTRFS_EXTENT_DATA_KEY, 0),
        (ino, BTRFS_EXTENT_DATA_KEY + 1, 0),
    );
    // Nobody but the root itself says what its generation and level are.
    let found = search.read(root, blocks).and_then(|bytes| {
        let (header, _) = Header::ref_from_prefix(&bytes).map_err(|_| Reason::BadExtents)?;
        let root = BlockPtr {
            bytenr: root,
            generation: header.generation.get(),
            level: header.level,
        };
        search.block(&bytes, &root, whole, blocks)
    });
    if let Err(reason) = found {
        search.extents.clear();
        search.unusable(whole, reason);
    }
    search.extents
}

/// The keys from the first on, up to and without the second.
type Range = (Key, Key);

struct Search {
    ino: u64,
    size_bytes: u64,
    extents: Vec<Extent>,
}

impl Search {
    /// Where the extents found so far end.
    fn end(&self) -> u64 {
        self.extents
            .last()
            .map_or(0, |last| last.logical + last.blocks)
    }

    fn read(&self, bytenr: u64, blocks: &mut Blocks<'_>) -> Result<Rc<[u8]>, Reason> {
        let left = blocks.budget.checked_sub(1);
        *blocks.budget = left.ok_or(Reason::ExtentBlockUnread)?;
        (blocks.read)(bytenr)
    }

    /// Adds the extents in a block whose keys lie in a range; an error adds none.
    fn block(
        &mut self,
        bytes: &[u8],
        ptr: &BlockPtr,
        range: Range,
        blocks: &mut Blocks<'_>,
    ) -> Result<(), Reason> {
        let (header, rest) = Header::ref_from_prefix(bytes).map_err(|_| Reason::BadExtents)?;
        let is_it = header.bytenr.get() == ptr.bytenr
            && header.generation.get() == ptr.generation
            && header.level == ptr.level
            && header.level < LEVELS_MAX;
        if !is_it {
            return Err(Reason::BadExtents);
        }
        let count = header.nritems.get() as usize;
        let added = self.extents.len();
        let found = if header.level == 0 {
            self.leaf(rest, count, range)
        } else {
            self.node(rest, count, header.level - 1, range, blocks)
        };
        if found.is_none() {
            self.extents.truncate(added);
        }
        found.ok_or(Reason::BadExtents)
    }

    fn node(
        &mut self,
        rest: &[u8],
        count: usize,
        level: u8,
        (start, end): Range,
        blocks: &mut Blocks<'_>,
    ) -> Option<()> {
        let (children, _) = <[KeyPtr]>::ref_from_prefix_with_elems(rest, count).ok()?;
        rising(children.iter().map(|child| child.key.key()))?;
        // The last child that begins at or before the range, and all that begin inside it.
        let first = children.partition_point(|child| child.key.key() <= start);
        let last = children.partition_point(|child| child.key.key() < end);
        for at in first.saturating_sub(1)..last {
            let child = &children[at];
            let next = children.get(at + 1).map_or(end, |next| next.key.key());
            let range = (start.max(child.key.key()), end.min(next));
            let ptr = BlockPtr {
                bytenr: child.blockptr.get(),
                generation: child.generation.get(),
                level,
            };
            let bytes = self.read(ptr.bytenr, blocks);
            let found = bytes.and_then(|bytes| self.block(&bytes, &ptr, range, blocks));
            if let Err(reason) = found {
                self.unusable(range, reason);
            }
        }
        Some(())
    }

    fn leaf(&mut self, rest: &[u8], count: usize, (start, end): Range) -> Option<()> {
        let (items, _) = <[Item]>::ref_from_prefix_with_elems(rest, count).ok()?;
        rising(items.iter().map(|item| item.key.key()))?;
        let wanted = items
            .iter()
            .filter(|item| start <= item.key.key() && item.key.key() < end);
        for item in wanted {
            let data = rest.get(item.offset.get() as usize..)?;
            let data = data.get(..item.size.get() as usize)?;
            let Some((extent, disk_end)) = file_extent(item.key.offset.get(), data)? else {
                continue;
            };
            (extent.logical >= self.end()).then_some(())?;
            let parts = split_at_end(extent, disk_end, self.size_bytes);
            self.extents.extend(parts);
        }
        Some(())
    }

    /// Stands for the file extents with keys in a range.
    fn unusable(&mut self, (start, end): Range, reason: Reason) {
        let offset = |key: Key| match (key.0, key.1).cmp(&(self.ino, BTRFS_EXTENT_DATA_KEY)) {
            std::cmp::Ordering::Less => 0,
            std::cmp::Ordering::Equal => key.2,
            std::cmp::Ordering::Greater => u64::MAX,
        };
        let start = offset(start).max(self.end());
        let end = offset(end);
        if start < end {
            self.extents.push(Extent::unusable(start, end, reason));
        }
    }
}

fn rising(keys: impl Iterator<Item = Key>) -> Option<()> {
    keys.is_sorted_by(|one, next| one < next).then_some(())
}

/// A file extent item at an offset in the file, and where the extent on disk ends: None when it makes
/// no sense, Some(None) for a hole.
fn file_extent(logical: u64, data: &[u8]) -> Option<Option<(Extent, u64)>> {
    let (head, rest) = FileExtentHead::ref_from_prefix(data).ok()?;
    let (blocks, physical, disk_end) = match head.kind {
        BTRFS_FILE_EXTENT_INLINE => {
            let bytes = head.ram_bytes.get().max(1);
            let blocks = bytes.checked_next_multiple_of(PAGE_BYTES)?;
            (blocks, Err(Reason::InlineData), 0)
        }
        BTRFS_FILE_EXTENT_REG | BTRFS_FILE_EXTENT_PREALLOC => {
            let (tail, _) = FileExtentTail::ref_from_prefix(rest).ok()?;
            if tail.disk_bytenr == 0 {
                return Some(None);
            }
            let at = tail.disk_bytenr.get().checked_add(tail.offset.get())?;
            let physical = if head.encryption != 0 || head.other_encoding != 0 {
                Err(Reason::Encrypted)
            } else if head.compression != 0 {
                Err(Reason::Compressed)
            } else if head.kind == BTRFS_FILE_EXTENT_PREALLOC {
                Err(Reason::Unwritten)
            } else {
                Ok(at)
            };
            let disk_end = tail
                .disk_bytenr
                .get()
                .checked_add(tail.disk_num_bytes.get())?;
            (tail.num_bytes.get(), physical, disk_end)
        }
        _ => return None,
    };
    logical.checked_add(blocks)?;
    let extent = Extent {
        logical,
        blocks,
        physical,
    };
    (blocks > 0).then_some(Some((extent, disk_end)))
}

#[cfg(test)]
#[path = "fs_tree_tests.rs"]
mod tests;
