//! ext4's extent tree (Documentation/filesystems/ext4/ifork.rst, fs/ext4/ext4_extents.h), from the
//! 60 bytes of i_data and the blocks below them. Pure: blocks come through a closure. The tree may
//! be hostile: depth has to fall, entries have to rise, and the blocks read are bounded.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::ext4::{BLOCKS_END, Blocks, I_DATA_BYTES};
use crate::place::Extent;
use crate::reason::Reason;

const EXT4_EXT_MAGIC: u16 = 0xf30a;
/// EXT4_MAX_EXTENT_DEPTH.
const DEPTH_MAX: u16 = 5;
/// ee_len above this says that the extent is unwritten, and its length is what is above.
const EXT_INIT_MAX_LEN: u16 = 1 << 15;

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    eh_magic: U16,
    eh_entries: U16,
    eh_max: U16,
    eh_depth: U16,
    eh_generation: U32,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Leaf {
    ee_block: U32,
    ee_len: U16,
    ee_start_hi: U16,
    ee_start_lo: U32,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Index {
    ei_block: U32,
    ei_leaf_lo: U32,
    ei_leaf_hi: U16,
    ei_unused: U16,
}

/// All extents of an inode, sorted by logical block, not overlapping. Where a part of the tree
/// could not be read or makes no sense, an extent with the reason stands for it.
pub(crate) fn extents(i_data: &[u8; I_DATA_BYTES], blocks: &mut Blocks<'_>) -> Vec<Extent> {
    let mut extents = Vec::new();
    if node(i_data, None, 0, BLOCKS_END, blocks, &mut extents).is_none() {
        extents = vec![Extent::unusable(0, BLOCKS_END, Reason::BadExtents)];
    }
    extents
}

/// Adds the extents of one node that covers `start..end`. None when it is no node, with nothing
/// added.
fn node(
    bytes: &[u8],
    depth: Option<u16>,
    start: u64,
    end: u64,
    blocks: &mut Blocks<'_>,
    extents: &mut Vec<Extent>,
) -> Option<()> {
    let (header, rest) = Header::ref_from_prefix(bytes).ok()?;
    let entries = usize::from(header.eh_entries.get());
    let own_depth = header.eh_depth.get();
    let fits = header.eh_magic.get() == EXT4_EXT_MAGIC
        && header.eh_entries <= header.eh_max
        && depth.map_or(own_depth <= DEPTH_MAX, |depth| depth == own_depth);
    if !fits {
        return None;
    }
    match own_depth.checked_sub(1) {
        None => {
            let (entries, _) = <[Leaf]>::ref_from_prefix_with_elems(rest, entries).ok()?;
            extents.extend(leaves(entries, start, end)?);
        }
        Some(below) => {
            let (entries, _) = <[Index]>::ref_from_prefix_with_elems(rest, entries).ok()?;
            index(entries, below, start, end, blocks, extents)?;
        }
    }
    Some(())
}

fn leaves(entries: &[Leaf], start: u64, end: u64) -> Option<Vec<Extent>> {
    let mut extents = Vec::with_capacity(entries.len());
    let mut free_from = start;
    for entry in entries {
        let logical = u64::from(entry.ee_block.get());
        let length = entry.ee_len.get();
        let unwritten = length > EXT_INIT_MAX_LEN;
        let blocks = u64::from(if unwritten {
            length - EXT_INIT_MAX_LEN
        } else {
            length
        });
        if blocks == 0 || logical < free_from || logical + blocks > end {
            return None;
        }
        let physical =
            u64::from(entry.ee_start_hi.get()) << 32 | u64::from(entry.ee_start_lo.get());
        let physical = if unwritten {
            Err(Reason::Unwritten)
        } else {
            Ok(physical)
        };
        extents.push(Extent {
            logical,
            blocks,
            physical,
        });
        free_from = logical + blocks;
    }
    Some(extents)
}

fn index(
    entries: &[Index],
    depth: u16,
    start: u64,
    end: u64,
    blocks: &mut Blocks<'_>,
    extents: &mut Vec<Extent>,
) -> Option<()> {
    let first_block = |entry: &Index| u64::from(entry.ei_block.get());
    let rises = entries
        .windows(2)
        .all(|pair| first_block(&pair[0]) < first_block(&pair[1]));
    let inside = entries
        .first()
        .is_none_or(|first| first_block(first) >= start)
        && entries.last().is_none_or(|last| first_block(last) < end);
    if !rises || !inside {
        return None;
    }
    let ends = entries.iter().skip(1).map(first_block).chain([end]);
    for (entry, end) in entries.iter().zip(ends) {
        let start = first_block(entry);
        let block = u64::from(entry.ei_leaf_hi.get()) << 32 | u64::from(entry.ei_leaf_lo.get());
        let Some(bytes) = blocks.read(block) else {
            extents.push(Extent::unusable(start, end, Reason::ExtentBlockUnread));
            continue;
        };
        if node(&bytes, Some(depth), start, end, blocks, extents).is_none() {
            extents.push(Extent::unusable(start, end, Reason::BadExtents));
        }
    }
    Some(())
}

#[cfg(test)]
#[path = "extents_tests.rs"]
mod tests;
