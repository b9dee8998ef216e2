//! Which parts of the disks are not their block devices' own to cache. What a file system, swap or
//! device mapper writes does not pass through the cache of the device that it has claimed, nor
//! through that of another device with the same blocks: clean pages there may be old.

use std::ops::Range;

use crate::address::Gva;
use crate::kernel::BlockDevice;
use crate::reason::Reason;
use crate::volume::{DiskRanges, Volume};

/// More than any real guest's mounts, partitions and logical volumes. With more of them, no block
/// device's cache is used.
const CLAIMS_MAX: usize = 4096;
/// Claims looked at in one scan, for all block devices together.
const LOOKS_MAX: usize = 1 << 24;

/// A part of a disk.
struct Part {
    gendisk: Gva,
    /// It is of device mapper.
    is_mapped: bool,
    disk: usize,
    range: Range<u64>,
}

/// What has been claimed on the machine's disks.
pub(super) struct Claims {
    claimed: Vec<Part>,
    partitions: Vec<Part>,
    too_many: bool,
    looks_left: usize,
}

/// A block device, and whether it is mounted.
#[derive(Clone, Copy)]
pub(super) struct Device {
    pub(super) address: Gva,
    pub(super) bdev: BlockDevice,
    pub(super) is_mounted: bool,
}

impl Claims {
    pub(super) fn new() -> Claims {
        Claims {
            claimed: Vec::new(),
            partitions: Vec::new(),
            too_many: false,
            looks_left: LOOKS_MAX,
        }
    }

    /// Notes a device's place, for what it says of other devices' caches.
    pub(super) fn add(
        &mut self,
        device: &Device,
        is_claimed: bool,
        is_mapped: bool,
        volume: &Volume,
    ) {
        for (disk, range) in volume.ranges() {
            let part = |range| Part {
                gendisk: device.bdev.gendisk,
                is_mapped,
                disk,
                range,
            };
            if is_claimed {
                self.claimed.push(part(range.clone()));
            }
            if !device.bdev.is_whole {
                self.partitions.push(part(range));
            }
        }
        self.too_many |= self.claimed.len().max(self.partitions.len()) > CLAIMS_MAX;
    }

    /// What of a device its own cache can be trusted for.
    pub(super) fn cacheable(
        &mut self,
        bdev: &BlockDevice,
        is_mapped: bool,
        volume: &Volume,
    ) -> Result<Volume, Reason> {
        let looks = self.claimed.len() + self.partitions.len() + 1;
        self.looks_left = self.looks_left.saturating_sub(looks);
        if self.too_many || self.looks_left == 0 {
            return Err(Reason::DeviceHeld);
        }
        // A disk's cache does not see what is written through a partition, now or earlier.
        let inside = |part: &&Part| bdev.is_whole && part.gendisk == bdev.gendisk;
        let partitions = self.partitions.iter().filter(inside);
        // What device mapper maps it has claimed itself.
        let others = |part: &&Part| part.is_mapped || !is_mapped;
        let parts = self.claimed.iter().filter(others).chain(partitions);
        let ranges: DiskRanges = parts.map(|part| (part.disk, part.range.clone())).collect();
        Ok(volume.without(&ranges, Reason::DeviceHeld))
    }
}
