//! Scans of hand-made guests. Here is what they share: a guest with ext4 on a partition, and what holds
//! of every scan.

mod devices;
mod ext4;
mod filesystems;
mod hostile;
mod pages;

use super::*;
use crate::address::{Gva, PAGE_BYTES};
use crate::mock::cache::MockFolio;
use crate::mock::{CACHE_PFN, MockGuest, RAM_BYTES};

const DISK_BYTES: u64 = 1 << 30;
const PARTITION_START: u64 = 1 << 20;

/// A guest with a partition that ext4 is on, and a second disk that nobody holds.
struct Sample {
    guest: MockGuest,
    ext4: Gva,
    partition: Gva,
    spare: Gva,
    next_pfn: u64,
}

impl Sample {
    fn new() -> Sample {
        let mut guest = MockGuest::new();
        let bdev = guest.super_block("bdev", "bdev", 4096, Gva(0));
        let vda = guest.disk(bdev, "vda", "0000:00:02.0", DISK_BYTES);
        let spare = guest.disk(bdev, "vdb", "0000:00:03.0", DISK_BYTES);
        let gendisk = guest.gendisk_of(vda);
        let bytes = DISK_BYTES - PARTITION_START;
        let partition = guest.block_device(bdev, gendisk, PARTITION_START, bytes);
        let ext4 = guest.super_block("ext4", "vda1", 4096, partition);
        Sample {
            guest,
            ext4,
            partition,
            spare,
            next_pfn: CACHE_PFN,
        }
    }

    fn folio(&mut self, index: u64, order: u32, flags: u64) -> MockFolio {
        let pfn = self.next_pfn.next_multiple_of(1 << order);
        self.next_pfn = pfn + (1 << order);
        MockFolio {
            index,
            order,
            pfn,
            flags,
        }
    }

    fn cache(&mut self, inode: Gva, folios: &[(u64, u32, u64)]) -> Vec<MockFolio> {
        let folios: Vec<MockFolio> = folios
            .iter()
            .map(|&(index, order, flags)| self.folio(index, order, flags))
            .collect();
        self.guest.cache(inode, &folios);
        folios
    }

    fn scan(&self) -> Scan {
        self.scan_with(&ScanOptions::default())
    }

    fn scan_with(&self, options: &ScanOptions) -> Scan {
        let scan = scan_kernel(&self.guest.kernel(), options);
        assert_sane(&scan);
        scan
    }
}

/// What holds of every scan, whatever the guest's memory says.
fn assert_sane(scan: &Scan) {
    let left_out: u64 = scan.reasons().values().sum();
    assert_eq!(scan.cached_pages(), scan.restorable_pages() + left_out);
    let mapped: u64 = scan.page_map.iter().map(|run| run.pages).sum();
    assert_eq!(mapped, scan.restorable_pages());
    let mut frames = std::collections::HashSet::new();
    for run in &scan.page_map {
        let disk = &scan.disks[run.disk];
        assert!(disk.path.is_some());
        assert!(run.offset + run.pages * PAGE_BYTES <= disk.bytes);
        for pfn in run.pfn..run.pfn + run.pages {
            assert!(
                pfn < RAM_BYTES / PAGE_BYTES && frames.insert(pfn),
                "frame {pfn} twice"
            );
        }
    }
    assert!(scan.page_map.windows(2).all(|pair| pair[0] < pair[1]));
}
