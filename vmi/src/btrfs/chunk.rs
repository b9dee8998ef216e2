//! The chunk map: the file system's logical addresses to bytes of its devices
//! (fs/btrfs/volumes.c, btrfs_map_block). Pure. Only what lies in one piece is mapped: a chunk of any
//! other profile, or of a kind that is not known, keeps a reason.

use std::rc::Rc;

use crate::address::Gva;
use crate::reason::Reason;
use crate::volume::Volume;

const BTRFS_BLOCK_GROUP_DATA: u64 = 1 << 0;
const BTRFS_BLOCK_GROUP_SYSTEM: u64 = 1 << 1;
const BTRFS_BLOCK_GROUP_METADATA: u64 = 1 << 2;
/// Twice on one device: either copy will do.
const BTRFS_BLOCK_GROUP_DUP: u64 = 1 << 5;
/// With no other bit set, a chunk is its first stripe.
const LINEAR: u64 = BTRFS_BLOCK_GROUP_DATA
    | BTRFS_BLOCK_GROUP_SYSTEM
    | BTRFS_BLOCK_GROUP_METADATA
    | BTRFS_BLOCK_GROUP_DUP;

/// A range of logical addresses (struct btrfs_chunk_map, until 6.7 struct map_lookup).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) start: u64,
    pub(crate) len: u64,
    /// BTRFS_BLOCK_GROUP_*
    pub(crate) kind: u64,
    /// The block device of the first stripe, null where the device is missing.
    pub(crate) bdev: Gva,
    /// Of the first stripe, in bytes on the device.
    pub(crate) physical: u64,
}

/// The logical address space as one volume; `device` gives the volume of a block device.
///
/// # Errors
/// When chunks overlap.
pub(crate) fn logical_volume(
    mut chunks: Vec<Chunk>,
    mut device: impl FnMut(Gva) -> Result<Rc<Volume>, Reason>,
) -> Result<Volume, Reason> {
    chunks.sort_unstable_by_key(|chunk| chunk.start);
    let mut volume = Volume::default();
    for chunk in chunks {
        let gap = chunk.start.checked_sub(volume.bytes());
        volume.append_unusable(gap.ok_or(Reason::Torn)?, Reason::BeyondDevice);
        match place(&chunk, &mut device) {
            Ok(part) => volume.append(&part),
            Err(reason) => volume.append_unusable(chunk.len, reason),
        }
    }
    Ok(volume)
}

fn place(
    chunk: &Chunk,
    device: &mut impl FnMut(Gva) -> Result<Rc<Volume>, Reason>,
) -> Result<Volume, Reason> {
    if chunk.kind & !LINEAR != 0 {
        return Err(Reason::ChunkProfile);
    }
    device(chunk.bdev)?.part(chunk.physical, chunk.len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::DiskOffset;

    fn chunk(start: u64, len: u64, kind: u64, bdev: u64, physical: u64) -> Chunk {
        Chunk {
            start,
            len,
            kind,
            bdev: Gva(bdev),
            physical,
        }
    }

    fn device(bdev: Gva) -> Result<Rc<Volume>, Reason> {
        let index = bdev.0.checked_sub(1).ok_or(Reason::NotOnDisk)?;
        Ok(Rc::new(Volume::disk(index as usize, 1 << 30)))
    }

    #[test]
    fn chunks_in_one_piece_are_mapped() {
        let (data, dup) = (BTRFS_BLOCK_GROUP_DATA, BTRFS_BLOCK_GROUP_DUP);
        let chunks = vec![
            chunk(8 << 20, 1 << 20, data, 2, 5 << 20),
            chunk(1 << 20, 1 << 20, data | dup, 1, 7 << 20),
            // RAID1, and a kind from the future.
            chunk(9 << 20, 1 << 20, data | 1 << 4, 1, 0),
            chunk(10 << 20, 1 << 20, data | 1 << 11, 1, 0),
            // A missing device, and one that is too short.
            chunk(11 << 20, 1 << 20, data, 0, 0),
            chunk(12 << 20, 1 << 20, data, 1, 1 << 30),
        ];
        let volume = logical_volume(chunks, device).unwrap();
        let at = |offset| volume.at(offset, 4096);
        let place = |disk, offset| Ok(DiskOffset { disk, offset });
        assert_eq!(at((1 << 20) + 4096), place(0, (7 << 20) + 4096));
        assert_eq!(at(8 << 20), place(1, 5 << 20));
        assert_eq!(at((9 << 20) - 2048), Err(Reason::SplitBlocks));
        assert_eq!(at(0), Err(Reason::BeyondDevice));
        assert_eq!(at(4 << 20), Err(Reason::BeyondDevice));
        assert_eq!(at(9 << 20), Err(Reason::ChunkProfile));
        assert_eq!(at(10 << 20), Err(Reason::ChunkProfile));
        assert_eq!(at(11 << 20), Err(Reason::NotOnDisk));
        assert_eq!(at(12 << 20), Err(Reason::BeyondDevice));
        assert_eq!(at(13 << 20), Err(Reason::BeyondDevice));
    }

    #[test]
    fn chunks_that_overlap_are_torn() {
        let data = BTRFS_BLOCK_GROUP_DATA;
        let chunks = vec![
            chunk(0, 1 << 20, data, 1, 0),
            chunk(4096, 1 << 20, data, 1, 0),
        ];
        assert_eq!(logical_volume(chunks, device), Err(Reason::Torn));
    }
}
