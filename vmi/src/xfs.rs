//! XFS's in-core extents (fs/xfs/libxfs/xfs_iext_tree.c): what every read and write of a file goes
//! by, complete as soon as one page of the file has been cached. Pure: nodes come through a closure.
//! The tree may be hostile: heights have to fall, records have to rise, nodes come from a budget.

use crate::address::Gva;
use crate::place::Extent;
use crate::reason::Reason;

const NODE_BYTES: usize = 256;
const KEYS_PER_NODE: usize = NODE_BYTES / 16;
/// Two pointers to the leaf's neighbours take the place of a record.
const RECORDS_PER_LEAF: usize = NODE_BYTES / 16 - 1;
const RECORD_BYTES: usize = 16;
/// XFS_IEXT_KEY_INVALID
const KEY_INVALID: u64 = 1 << 63;
/// Nodes are at least half full but for the last: 2⁴⁷ records fit below 14 levels of 8.
const HEIGHT_MAX: u64 = 16;

// enum xfs_dinode_fmt
const XFS_DINODE_FMT_LOCAL: u64 = 1;
const XFS_DINODE_FMT_EXTENTS: u64 = 2;
const XFS_DINODE_FMT_BTREE: u64 = 3;

/// On disk and in xfs_inode.i_diflags: the data is on the realtime device.
const XFS_DIFLAG_REALTIME: u64 = 1;

/// STARTBLOCKMASK: a start block with these bits set has none yet.
const STARTBLOCKMASK: u64 = ((1 << 35) - 1) << 17;

/// An inode's data fork (struct xfs_ifork).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fork {
    pub(crate) if_format: u64,
    pub(crate) if_height: u64,
    pub(crate) if_bytes: u64,
    /// if_data, until 6.8 if_u1: the tree's root.
    pub(crate) root: Gva,
}

/// How numbers of blocks count (struct xfs_sb).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) sb_agblocks: u64,
    pub(crate) sb_agblklog: u64,
    pub(crate) sb_agcount: u64,
}

/// Reads nodes of a tree.
pub(crate) struct Nodes<'a> {
    /// Fills the buffer from the kernel's memory; false when it cannot.
    pub(crate) read: &'a mut dyn FnMut(Gva, &mut [u8]) -> bool,
    /// Nodes that may still be read.
    pub(crate) budget: &'a mut u64,
}

/// Why an inode with these i_diflags has no extents that could be used.
pub(crate) fn excluded(i_diflags: u64) -> Option<Reason> {
    (i_diflags & XFS_DIFLAG_REALTIME != 0).then_some(Reason::Realtime)
}

/// All extents of a fork, sorted by logical block, not overlapping.
///
/// # Errors
/// When the fork has no extents, they are not in memory, or they make no sense.
pub(crate) fn extents(
    fork: &Fork,
    geometry: &Geometry,
    nodes: &mut Nodes<'_>,
) -> Result<Vec<Extent>, Reason> {
    match fork.if_format {
        XFS_DINODE_FMT_LOCAL => return Err(Reason::InlineData),
        XFS_DINODE_FMT_EXTENTS => {}
        // xfs_need_iread_extents
        XFS_DINODE_FMT_BTREE if fork.if_height == 0 => return Err(Reason::ExtentBlockUnread),
        XFS_DINODE_FMT_BTREE => {}
        _ => return Err(Reason::BadExtents),
    }
    if fork.if_height > HEIGHT_MAX || !(1..32).contains(&geometry.sb_agblklog) {
        return Err(Reason::BadExtents);
    }
    let mut extents = Vec::new();
    match fork.if_height {
        0 => {}
        1 => {
            // A root that is the only leaf is no longer than its records.
            let records = (fork.if_bytes / RECORD_BYTES as u64).min(RECORDS_PER_LEAF as u64);
            let mut bytes = [0; NODE_BYTES];
            let bytes = &mut bytes[..records as usize * RECORD_BYTES];
            read(nodes, fork.root, bytes)?;
            leaf(bytes, geometry, &mut extents)?;
        }
        height => node(fork.root, height, geometry, nodes, &mut extents)?,
    }
    Ok(extents)
}

fn read(nodes: &mut Nodes<'_>, at: Gva, bytes: &mut [u8]) -> Result<(), Reason> {
    *nodes.budget = nodes.budget.checked_sub(1).ok_or(Reason::BadExtents)?;
    (nodes.read)(at, bytes).then_some(()).ok_or(Reason::Torn)
}

fn node(
    at: Gva,
    height: u64,
    geometry: &Geometry,
    nodes: &mut Nodes<'_>,
    extents: &mut Vec<Extent>,
) -> Result<(), Reason> {
    let mut bytes = [0; NODE_BYTES];
    read(nodes, at, &mut bytes)?;
    if height == 1 {
        return leaf(&bytes[..RECORDS_PER_LEAF * RECORD_BYTES], geometry, extents);
    }
    for slot in 0..KEYS_PER_NODE {
        let (key, below) = (word(&bytes, slot), word(&bytes, KEYS_PER_NODE + slot));
        if key == KEY_INVALID {
            break;
        }
        node(Gva(below), height - 1, geometry, nodes, extents)?;
    }
    Ok(())
}

fn leaf(bytes: &[u8], geometry: &Geometry, extents: &mut Vec<Extent>) -> Result<(), Reason> {
    for record in bytes.chunks_exact(RECORD_BYTES) {
        let (lo, hi) = (word(record, 0), word(record, 1));
        // A length is never 0, so this is an unused record.
        if hi == 0 {
            break;
        }
        let free_from = extents.last().map_or(0, |last| last.logical + last.blocks);
        let extent = extent(lo, hi, geometry).filter(|extent| extent.logical >= free_from);
        extents.push(extent.ok_or(Reason::BadExtents)?);
    }
    Ok(())
}

/// An extent of its record (xfs_iext_get); None when it makes no sense.
fn extent(lo: u64, hi: u64, geometry: &Geometry) -> Option<Extent> {
    let logical = lo & ((1 << 54) - 1);
    let blocks = hi & ((1 << 21) - 1);
    let unwritten = hi & 1 << 21 != 0;
    let start = lo >> 54 | (hi >> 22) << 10;
    let physical = if start & STARTBLOCKMASK == STARTBLOCKMASK {
        Err(Reason::DelayedAllocation)
    } else if unwritten {
        Err(Reason::Unwritten)
    } else {
        Ok(block_on_device(start, blocks, geometry)?)
    };
    (blocks > 0).then_some(Extent {
        logical,
        blocks,
        physical,
    })
}

/// XFS_FSB_TO_DADDR, in blocks: allocation groups count as powers of two. No extent leaves its group.
fn block_on_device(start: u64, blocks: u64, geometry: &Geometry) -> Option<u64> {
    let group = start >> geometry.sb_agblklog;
    let inside = start & ((1 << geometry.sb_agblklog) - 1);
    let fits = group < geometry.sb_agcount && inside + blocks <= geometry.sb_agblocks;
    fits.then_some(())?;
    group.checked_mul(geometry.sb_agblocks)?.checked_add(inside)
}

fn word(bytes: &[u8], number: usize) -> u64 {
    let bytes = bytes[8 * number..8 * number + 8].try_into();
    u64::from_le_bytes(bytes.expect("eight bytes"))
}

#[cfg(test)]
#[path = "xfs_tests.rs"]
mod tests;
