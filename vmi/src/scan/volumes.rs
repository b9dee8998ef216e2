//! Block devices resolved to bytes of the machine's disks, and blocks of metadata read through
//! them. How many segments there can be is bounded for a whole scan.

use std::rc::Rc;

use crate::address::Gva;
use crate::kernel::Kernel;
use crate::reason::Reason;
use crate::scan::walk::Scanner;
use crate::scan::{GuestDisk, ReadDisk};
use crate::volume::Volume;

/// Mapped devices on mapped devices: LVM puts three on each other at the most.
const STACKED_MAX: u32 = 8;
/// Targets looked at and segments kept in one scan, for all mapped devices together.
pub(super) const SEGMENTS_MAX: usize = 1 << 16;

impl<'m> Scanner<'_, 'm> {
    /// Where the bytes of a block device are.
    pub(super) fn volume(&mut self, bdev: Gva) -> Result<Rc<Volume>, Reason> {
        if let Some(known) = self.volumes.get(&bdev) {
            return known.clone();
        }
        let volume = self.resolve(bdev, STACKED_MAX).map(Rc::new);
        self.volumes.insert(bdev, volume.clone());
        volume
    }

    fn resolve(&mut self, bdev: Gva, stacked_max: u32) -> Result<Volume, Reason> {
        let bdev = self.kernel.block_device(bdev).map_err(|_| Reason::Torn)?;
        let index = self
            .disks
            .iter()
            .position(|disk| disk.gendisk == bdev.gendisk)
            .ok_or(Reason::NotOnDisk)?;
        let disk = &self.disks[index];
        let whole = match &self.guest_disks[index].path {
            Some(_) => Volume::disk(index, disk.bytes),
            None if disk.is_mapped() => self.resolve_mapped(bdev.gendisk, stacked_max)?,
            None => return Err(Reason::NotOnDisk),
        };
        whole.part(bdev.start, bdev.bytes)
    }

    /// A device of device mapper.
    fn resolve_mapped(&mut self, gendisk: Gva, stacked_max: u32) -> Result<Volume, Reason> {
        let stacked_max = stacked_max.checked_sub(1).ok_or(Reason::NotOnDisk)?;
        let kernel = self.kernel;
        let layout = kernel.layouts.dm.as_ref().map_err(|_| Reason::NoTypes)?;
        let targets = kernel.dm_targets(layout, gendisk, self.segments_left);
        let targets = targets.ok().flatten().ok_or(Reason::Torn)?;
        self.segments_left -= targets.len();
        let mut volume = Volume::default();
        for target in targets {
            if target.begin != volume.bytes() {
                return Err(Reason::Torn);
            }
            let part = match target.linear {
                Some((bdev, start)) => self
                    .resolve(bdev, stacked_max)
                    .and_then(|below| below.part(start, target.bytes)),
                None => Err(Reason::of_dm_target(&target.kind)),
            };
            match part {
                Ok(part) => volume.append(&part),
                Err(why) => volume.append_unusable(target.bytes, why),
            }
            if volume.segments() > self.segments_left {
                return Err(Reason::NotOnDisk);
            }
        }
        self.segments_left -= volume.segments();
        Ok(volume)
    }

    /// The disks, as far as the host can read them.
    pub(super) fn storage(&self) -> Storage<'_> {
        Storage {
            read_disk: self.options.read_disk.as_ref(),
            disks: &self.guest_disks,
        }
    }

    /// Reads metadata of the file system on a block device.
    pub(super) fn metadata<'a>(&'a self, bdev: Gva, volume: &'a Volume) -> Metadata<'a, 'm> {
        Metadata {
            kernel: self.kernel,
            storage: self.storage(),
            bdev,
            volume,
        }
    }
}

/// Blocks of a device, from its page cache or from the disk below it.
pub(super) struct Metadata<'a, 'm> {
    kernel: &'a Kernel<'m>,
    storage: Storage<'a>,
    bdev: Gva,
    volume: &'a Volume,
}

impl Metadata<'_, '_> {
    /// Fills `buf` with a block that has its size; false when it cannot.
    pub(super) fn read_block(&self, block: u64, buf: &mut [u8]) -> bool {
        let cached = self.kernel.read_cached_block(self.bdev, block, buf);
        cached.is_some() || self.read_from_disk(block, buf).is_some()
    }

    fn read_from_disk(&self, block: u64, buf: &mut [u8]) -> Option<()> {
        let offset = block.checked_mul(buf.len() as u64)?;
        self.storage.read(self.volume, offset, buf)
    }
}

/// The disks of the machine, read from the host.
pub(super) struct Storage<'a> {
    read_disk: Option<&'a ReadDisk>,
    disks: &'a [GuestDisk],
}

impl Storage<'_> {
    /// Fills `buf` with what lies at an offset of a volume, if that is all in one piece.
    pub(super) fn read(&self, volume: &Volume, offset: u64, buf: &mut [u8]) -> Option<()> {
        let at = volume.at(offset, buf.len() as u64).ok()?;
        let read = self.read_disk?;
        read(&self.disks[at.disk], at.offset, buf).then_some(())
    }
}
