//! From an offset on a block device to a byte of a disk of the machine, as segments: a disk or a
//! partition is one, a logical volume is several. Pure; every sum is checked, since the numbers are
//! the guest's.

use std::ops::Range;

use crate::reason::Reason;

/// A byte of a disk of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskOffset {
    /// Index into the scan's disks.
    pub(crate) disk: usize,
    /// In bytes from the disk's start.
    pub(crate) offset: u64,
}

impl DiskOffset {
    fn plus(self, bytes: u64) -> Option<DiskOffset> {
        let offset = self.offset.checked_add(bytes)?;
        Some(DiskOffset { offset, ..self })
    }
}

/// Adjacent bytes of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    /// On the device.
    start: u64,
    bytes: u64,
    /// Where the first byte is, or why nowhere.
    place: Result<DiskOffset, Reason>,
}

impl Segment {
    fn end(&self) -> u64 {
        self.start + self.bytes
    }

    fn place(&self, inside: u64) -> Result<DiskOffset, Reason> {
        self.place?.plus(inside).ok_or(Reason::BeyondDevice)
    }
}

/// Where the bytes of one block device are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Volume {
    /// The first begins at 0, each of the others where the one before it ends.
    segments: Vec<Segment>,
}

impl Volume {
    /// A disk of the machine.
    pub(crate) fn disk(disk: usize, bytes: u64) -> Volume {
        let mut volume = Volume::default();
        volume.push(bytes, Ok(DiskOffset { disk, offset: 0 }));
        volume
    }

    /// In bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.last().map_or(0, Segment::end)
    }

    /// How many pieces it is in.
    pub(crate) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Where the bytes at `offset` are, if they are all there and adjacent.
    pub(crate) fn at(&self, offset: u64, bytes: u64) -> Result<DiskOffset, Reason> {
        let end = offset.checked_add(bytes).ok_or(Reason::BeyondDevice)?;
        if end > self.bytes() {
            return Err(Reason::BeyondDevice);
        }
        let segment = &self.segments[self.segment_after(offset)];
        let place = segment.place(offset - segment.start)?;
        let adjacent = end <= segment.end();
        adjacent.then_some(place).ok_or(Reason::SplitBlocks)
    }

    /// A part of it as a device of its own.
    pub(crate) fn part(&self, start: u64, bytes: u64) -> Result<Volume, Reason> {
        let end = start.checked_add(bytes).ok_or(Reason::BeyondDevice)?;
        if end > self.bytes() {
            return Err(Reason::BeyondDevice);
        }
        let mut part = Volume::default();
        for segment in &self.segments[self.segment_after(start)..] {
            let from = segment.start.max(start);
            let to = segment.end().min(end);
            if from >= to {
                break;
            }
            part.push(to - from, segment.place(from - segment.start));
        }
        Ok(part)
    }

    /// Puts another volume behind the end.
    pub(crate) fn append(&mut self, other: &Volume) {
        for segment in &other.segments {
            self.push(segment.bytes, segment.place);
        }
    }

    /// Puts bytes that are nowhere behind the end.
    pub(crate) fn append_unusable(&mut self, bytes: u64, why: Reason) {
        self.push(bytes, Err(why));
    }

    /// Gives up, for `why`, what lies in ranges of disks.
    pub(crate) fn without(&self, ranges: &DiskRanges, why: Reason) -> Volume {
        let mut volume = Volume::default();
        for segment in &self.segments {
            let Ok(at) = segment.place else {
                volume.push(segment.bytes, segment.place);
                continue;
            };
            let mut done = 0;
            for range in ranges.overlapping(at, segment.bytes) {
                let from = range.start.saturating_sub(at.offset).max(done);
                let to = (range.end - at.offset).min(segment.bytes);
                volume.push(from - done, segment.place(done));
                volume.push(to - from, Err(why));
                done = to;
            }
            volume.push(segment.bytes - done, segment.place(done));
        }
        volume
    }

    /// Adds to `ranges` where its bytes are.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (usize, Range<u64>)> {
        self.segments.iter().filter_map(|segment| {
            let at = segment.place.ok()?;
            Some((at.disk, at.offset..at.offset + segment.bytes))
        })
    }

    fn segment_after(&self, offset: u64) -> usize {
        self.segments
            .partition_point(|segment| segment.end() <= offset)
    }

    fn push(&mut self, bytes: u64, place: Result<DiskOffset, Reason>) {
        // What would not fit into 64 bits is beyond every device.
        let start = self.bytes();
        let bytes = bytes.min(u64::MAX - start);
        let place = place.and_then(|at| at.plus(bytes).map(|_| at).ok_or(Reason::BeyondDevice));
        if bytes == 0 {
            return;
        }
        match self.segments.last_mut() {
            Some(last) if last.place(last.bytes) == place => last.bytes += bytes,
            _ => self.segments.push(Segment {
                start,
                bytes,
                place,
            }),
        }
    }
}

/// Ranges of bytes of disks.
#[derive(Debug, Clone, Default)]
pub(crate) struct DiskRanges {
    /// Sorted, not overlapping, not empty.
    ranges: Vec<(usize, Range<u64>)>,
}

impl FromIterator<(usize, Range<u64>)> for DiskRanges {
    fn from_iter<I: IntoIterator<Item = (usize, Range<u64>)>>(ranges: I) -> DiskRanges {
        let mut ranges: Vec<_> = ranges.into_iter().filter(|(_, r)| !r.is_empty()).collect();
        ranges.sort_unstable_by_key(|(disk, range)| (*disk, range.start));
        ranges.dedup_by(|(disk, next), (last_disk, last)| {
            let joins = disk == last_disk && next.start <= last.end;
            if joins {
                last.end = last.end.max(next.end);
            }
            joins
        });
        DiskRanges { ranges }
    }
}

impl DiskRanges {
    fn overlapping(&self, at: DiskOffset, bytes: u64) -> impl Iterator<Item = &Range<u64>> {
        let key = (at.disk, at.offset);
        let first = self
            .ranges
            .partition_point(|(disk, range)| (*disk, range.end) <= key);
        let of_disk = self.ranges[first..]
            .iter()
            .take_while(move |(disk, range)| {
                *disk == at.disk && range.start < at.offset.saturating_add(bytes)
            });
        of_disk.map(|(_, range)| range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(disk: usize, offset: u64) -> Result<DiskOffset, Reason> {
        Ok(DiskOffset { disk, offset })
    }

    fn two_segments() -> Volume {
        let mut volume = Volume::disk(0, 1 << 20).part(4096, 8192).unwrap();
        volume.append(&Volume::disk(1, 1 << 20).part(1 << 19, 8192).unwrap());
        volume
    }

    #[test]
    fn what_lies_in_one_segment_has_a_place() {
        let volume = two_segments();
        assert_eq!(volume.bytes(), 16384);
        assert_eq!(volume.at(0, 4096), at(0, 4096));
        assert_eq!(volume.at(4096, 4096), at(0, 8192));
        assert_eq!(volume.at(8192, 4096), at(1, 1 << 19));
        assert_eq!(volume.at(12288, 4096), at(1, (1 << 19) + 4096));
        assert_eq!(volume.at(7680, 4096), Err(Reason::SplitBlocks));
        assert_eq!(volume.at(12800, 4096), Err(Reason::BeyondDevice));
        assert_eq!(volume.at(u64::MAX, 4096), Err(Reason::BeyondDevice));
        assert_eq!(Volume::default().at(0, 1), Err(Reason::BeyondDevice));
    }

    #[test]
    fn parts_of_parts_reach_the_disk() {
        let volume = two_segments().part(4096, 8192).unwrap();
        assert_eq!(volume.segments(), 2);
        assert_eq!(volume.at(0, 4096), at(0, 8192));
        assert_eq!(volume.at(4096, 4096), at(1, 1 << 19));
        let inner = volume.part(4608, 512).unwrap();
        assert_eq!(inner.at(0, 512), at(1, (1 << 19) + 512));
        assert_eq!(volume.part(4096, 4097), Err(Reason::BeyondDevice));
        assert_eq!(volume.part(u64::MAX, 2), Err(Reason::BeyondDevice));
    }

    #[test]
    fn adjacent_segments_are_one() {
        let disk = Volume::disk(0, 1 << 20);
        let mut volume = disk.part(0, 4096 + 512).unwrap();
        volume.append(&disk.part(4096 + 512, 4096).unwrap());
        volume.append(&disk.part(0, 512).unwrap());
        assert_eq!(volume.segments(), 2);
        assert_eq!(volume.at(4096, 4096), at(0, 4096));
        assert_eq!(volume.at(8192, 1024), Err(Reason::SplitBlocks));
    }

    #[test]
    fn what_is_nowhere_keeps_its_reason() {
        let mut volume = Volume::disk(0, 4096);
        volume.append_unusable(4096, Reason::NotOnDisk);
        volume.append_unusable(4096, Reason::NotOnDisk);
        volume.append_unusable(u64::MAX, Reason::Torn);
        assert_eq!(volume.at(0, 4096), at(0, 0));
        assert_eq!(volume.at(4096, 8192), Err(Reason::NotOnDisk));
        assert_eq!(volume.at(12288, 4096), Err(Reason::Torn));
        assert_eq!((volume.bytes(), volume.segments()), (u64::MAX, 3));
        let far = Volume::disk(0, u64::MAX).part(8192, 1 << 40).unwrap();
        assert_eq!(far.at(0, 1), at(0, 8192));
    }

    #[test]
    fn ranges_are_cut_out() {
        let volume = Volume::disk(2, 100 * 512);
        let ranges = [
            (2, 10 * 512..20 * 512),
            (1, 0..1 << 30),
            (2, 15 * 512..30 * 512),
            (2, 90 * 512..1 << 20),
        ];
        let ranges = ranges.into_iter().collect();
        let rest = volume.without(&ranges, Reason::DeviceHeld);
        assert_eq!(rest.bytes(), volume.bytes());
        assert_eq!(rest.at(0, 10 * 512), at(2, 0));
        for sector in 10..30 {
            assert_eq!(rest.at(sector * 512, 512), Err(Reason::DeviceHeld));
        }
        assert_eq!(rest.at(30 * 512, 60 * 512), at(2, 30 * 512));
        assert_eq!(rest.at(9 * 512, 1024), Err(Reason::SplitBlocks));
        assert_eq!(rest.at(99 * 512, 512), Err(Reason::DeviceHeld));
        let part = volume.part(12 * 512, 512).unwrap();
        assert_eq!(
            part.without(&ranges, Reason::DeviceHeld).at(0, 512),
            Err(Reason::DeviceHeld)
        );
    }
}
