//! From an offset in a file to an offset on a disk. Pure; every sum is checked, since the numbers
//! are the guest's.

use std::rc::Rc;

use crate::address::PAGE_BYTES;
use crate::reason::Reason;
use crate::volume::{DiskOffset, Volume};

/// Adjacent blocks of a file, in blocks of the file system; on btrfs, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) logical: u64,
    pub(crate) blocks: u64,
    /// The first block on the file system's device (on btrfs, its logical address), or why there is none.
    pub(crate) physical: Result<u64, Reason>,
}

impl Extent {
    /// Stands for `logical..end`, which could not be read or makes no sense.
    pub(crate) fn unusable(logical: u64, end: u64, reason: Reason) -> Extent {
        Extent {
            logical,
            blocks: end - logical,
            physical: Err(reason),
        }
    }
}

/// Where the pages of one mapping are.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) volume: Rc<Volume>,
    /// i_size, or the device's size.
    pub(crate) size_bytes: u64,
    pub(crate) blocks: Mapped,
}

/// How offsets in a mapping become offsets on its device.
#[derive(Debug)]
pub(crate) enum Mapped {
    /// The block device itself.
    Identity,
    /// Sorted, in blocks of `block_bytes`.
    Extents {
        block_bytes: u64,
        extents: Vec<Extent>,
    },
}

impl Place {
    /// Where on a disk the whole page at `index` is.
    pub(crate) fn page(&self, index: u64) -> Result<DiskOffset, Reason> {
        let offset = index.checked_mul(PAGE_BYTES).ok_or(Reason::BeyondSize)?;
        if offset >= self.size_bytes {
            return Err(Reason::BeyondSize);
        }
        let on_device = match &self.blocks {
            Mapped::Identity => offset,
            Mapped::Extents {
                block_bytes,
                extents,
            } => adjacent(offset, *block_bytes, extents)?,
        };
        self.volume.at(on_device, PAGE_BYTES)
    }
}

/// Offset on the device of the page's bytes at `offset`, if they are all there and adjacent.
fn adjacent(offset: u64, block_bytes: u64, extents: &[Extent]) -> Result<u64, Reason> {
    let (first, mut bytes) = mapped(offset, block_bytes, extents)?;
    while bytes < PAGE_BYTES {
        match mapped(offset + bytes, block_bytes, extents) {
            Ok((next, more)) if first.checked_add(bytes) == Some(next) => bytes += more,
            _ => return Err(Reason::SplitBlocks),
        }
    }
    Ok(first)
}

/// Offset on the device, and how many bytes follow each other there.
fn mapped(offset: u64, block_bytes: u64, extents: &[Extent]) -> Result<(u64, u64), Reason> {
    let block = offset / block_bytes;
    let after = extents.partition_point(|extent| extent.logical <= block);
    let extent = after.checked_sub(1).map(|index| extents[index]);
    let extent = extent.filter(|extent| block - extent.logical < extent.blocks);
    let extent = extent.ok_or(Reason::Hole)?;
    let inside = offset - extent.logical * block_bytes;
    let start = extent
        .physical?
        .checked_mul(block_bytes)
        .ok_or(Reason::BeyondDevice)?;
    let at = start.checked_add(inside).ok_or(Reason::BeyondDevice)?;
    Ok((at, extent.blocks * block_bytes - inside))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(block_bytes: u64, extents: &[(u64, u64, Result<u64, Reason>)]) -> Place {
        let extents = extents.iter().map(|&(logical, blocks, physical)| Extent {
            logical,
            blocks,
            physical,
        });
        let disk = Volume::disk(0, 1 << 31);
        let partition = disk.part(1 << 20, 1 << 30).unwrap();
        Place {
            volume: Rc::new(partition),
            size_bytes: 1 << 20,
            blocks: Mapped::Extents {
                block_bytes,
                extents: extents.collect(),
            },
        }
    }

    /// A byte of the partition.
    fn at(offset: u64) -> Result<DiskOffset, Reason> {
        let offset = (1 << 20) + offset;
        Ok(DiskOffset { disk: 0, offset })
    }

    #[test]
    fn pages_lie_in_their_extents() {
        let place = place(
            4096,
            &[
                (0, 2, Ok(100)),
                (3, 1, Err(Reason::Unwritten)),
                (4, 1, Ok(1 << 50)),
            ],
        );
        assert_eq!(place.page(0), at(100 * 4096));
        assert_eq!(place.page(1), at(101 * 4096));
        assert_eq!(place.page(2), Err(Reason::Hole));
        assert_eq!(place.page(3), Err(Reason::Unwritten));
        assert_eq!(place.page(4), Err(Reason::BeyondDevice));
        assert_eq!(place.page(5), Err(Reason::Hole));
        assert_eq!(place.page(256), Err(Reason::BeyondSize));
        assert_eq!(place.page(u64::MAX / 4096 + 1), Err(Reason::BeyondSize));
    }

    #[test]
    fn small_blocks_have_to_be_adjacent_and_fill_the_page() {
        let place = place(
            1024,
            &[
                (0, 3, Ok(8)),
                (3, 5, Ok(11)),
                (8, 2, Ok(40)),
                (10, 2, Ok(50)),
            ],
        );
        assert_eq!(place.page(0), at(8 * 1024));
        assert_eq!(place.page(1), at(12 * 1024));
        assert_eq!(place.page(2), Err(Reason::SplitBlocks));
        assert_eq!(place.page(3), Err(Reason::Hole));
    }
}
