//! A dump with some of its bytes changed. It counts reads: a walk without an end shows.

use std::sync::atomic::{AtomicU64, Ordering};

use vmi::{Dump, Gpa, GuestMemory, MemoryError, RamRange};

/// Eight bytes at an address.
pub(crate) struct Patch {
    pub(crate) gpa: u64,
    pub(crate) value: u64,
}

pub(crate) struct Patched<'d> {
    dump: &'d Dump,
    /// By address.
    bytes: Vec<(u64, u8)>,
    reads_left: AtomicU64,
}

impl<'d> Patched<'d> {
    pub(crate) fn new(dump: &'d Dump, patches: Vec<Patch>, reads_max: u64) -> Patched<'d> {
        let mut bytes: Vec<(u64, u8)> = patches
            .iter()
            .flat_map(|patch| (patch.gpa..).zip(patch.value.to_le_bytes()))
            .collect();
        bytes.sort_by_key(|(gpa, _)| *gpa);
        Patched {
            dump,
            bytes,
            reads_left: AtomicU64::new(reads_max),
        }
    }
}

impl GuestMemory for Patched<'_> {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        let left = self.reads_left.fetch_sub(1, Ordering::Relaxed);
        assert!(left > 0, "a scan that reads without end");
        self.dump.read(gpa, buf)?;
        let first = self.bytes.partition_point(|(at, _)| *at < gpa.0);
        for (at, byte) in &self.bytes[first..] {
            match buf.get_mut((at - gpa.0) as usize) {
                Some(there) => *there = *byte,
                None => break,
            }
        }
        Ok(())
    }

    fn ranges(&self) -> &[RamRange] {
        self.dump.ranges()
    }

    fn is_mapped(&self) -> bool {
        true
    }
}
