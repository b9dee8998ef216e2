//! One walk over a guest's page cache: super blocks, inodes, folios, and for each page its place on
//! a disk or the reason why it has none. What is torn or odd is counted and left out; it never ends
//! a scan, and a hostile guest can make it no longer than a guest of its size that tells the truth.

mod btrfs;
mod claims;
mod disks;
mod ext4;
mod frames;
mod place_of;
mod volumes;
mod walk;
mod xfs;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::attach::{AttachError, ProfileOrigin, Profiles, VcpuRegisters, attach};
use crate::disk_path::DiskPath;
use crate::kernel::{Kernel, KernelInfo};
use crate::memory::GuestMemory;
use crate::page_map::Run;
use crate::reason::Reason;
use walk::Scanner;

/// Reads bytes of a disk of the guest, for blocks of metadata that the guest has no longer in its
/// cache; false when it cannot.
pub type ReadDisk = Box<dyn Fn(&GuestDisk, u64, &mut [u8]) -> bool + Send + Sync>;

/// What a scan is told.
#[derive(Default)]
pub struct ScanOptions {
    /// Registers of the guest's vCPUs; empty where they are not known.
    pub vcpus: Vec<VcpuRegisters>,
    /// By default all is derived from the guest's memory, and nothing is kept.
    pub profiles: Profiles,
    /// How many of the files with the most cached pages to list.
    pub files_max: usize,
    pub read_disk: Option<ReadDisk>,
}

/// Why there is no scan.
#[derive(Debug, Error)]
pub enum ScanError {
    #[error("cannot read the guest's kernel")]
    Attach(#[from] AttachError),
}

/// A disk as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestDisk {
    /// The kernel's name, such as vda.
    pub name: String,
    /// None where it is not on a PCI controller of a known kind.
    pub path: Option<DiskPath>,
    pub bytes: u64,
    /// Names of the device and its parents, from the disk up to the PCI root.
    pub parents: Vec<String>,
}

/// Counts of one file system, or of the cache of block devices ("bdev").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesystemCounts {
    /// ext4, tmpfs, …
    pub fs: String,
    /// The device's name, or the file system's where there is none.
    pub device: String,
    /// Inodes with cached pages.
    pub files: u64,
    pub cached_pages: u64,
    pub restorable_pages: u64,
    /// Pages that are not restorable; together with the restorable ones they are the cached ones.
    pub reasons: BTreeMap<Reason, u64>,
}

/// A file with cached pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedFile {
    /// Index into [`Scan::filesystems`].
    pub filesystem: usize,
    pub ino: u64,
    /// Within its file system; None where no dentry is cached.
    pub path: Option<String>,
    pub size_bytes: u64,
    pub cached_pages: u64,
    pub restorable_pages: u64,
}

/// How long the parts took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// Finding the kernel and its symbols and types.
    pub attach: Duration,
    /// Walking the page cache and deriving blocks.
    pub walk: Duration,
}

/// What a scan found.
#[derive(Debug, Clone)]
pub struct Scan {
    pub kernel: KernelInfo,
    pub profile_origin: ProfileOrigin,
    /// Why a kept profile could not be used, or the derived one not be kept.
    pub profile_problem: Option<String>,
    pub disks: Vec<GuestDisk>,
    /// Those with cached pages.
    pub filesystems: Vec<FilesystemCounts>,
    /// The files with the most cached pages, as many as asked for.
    pub files: Vec<CachedFile>,
    /// Restorable pages, sorted by disk and offset. Only disks with a path occur.
    pub page_map: Vec<Run>,
    /// Structures that could not be read or contradicted each other, beside the pages counted as
    /// torn.
    pub structs_torn: u64,
    pub timings: Timings,
}

impl Scan {
    /// Pages in the page cache.
    pub fn cached_pages(&self) -> u64 {
        self.filesystems.iter().map(|fs| fs.cached_pages).sum()
    }

    /// Pages with a known place on a disk.
    pub fn restorable_pages(&self) -> u64 {
        self.filesystems.iter().map(|fs| fs.restorable_pages).sum()
    }

    /// All pages that are not restorable, by reason.
    pub fn reasons(&self) -> BTreeMap<Reason, u64> {
        let mut sums = BTreeMap::new();
        for (reason, pages) in self.filesystems.iter().flat_map(|fs| &fs.reasons) {
            *sums.entry(*reason).or_default() += pages;
        }
        sums
    }
}

/// Scans a guest's memory.
///
/// # Errors
/// When its kernel cannot be found or read; whatever is wrong further on is counted in the scan.
pub fn scan(mem: &dyn GuestMemory, options: &ScanOptions) -> Result<Scan, ScanError> {
    let start = Instant::now();
    let kernel = attach(mem, &options.vcpus, &options.profiles)?;
    let attach = start.elapsed();
    let mut scan = scan_kernel(&kernel, options);
    scan.timings = Timings {
        attach,
        walk: start.elapsed() - attach,
    };
    Ok(scan)
}

/// Scans a kernel that has been found; sets no timings.
pub fn scan_kernel(kernel: &Kernel<'_>, options: &ScanOptions) -> Scan {
    let mut scanner = Scanner::new(kernel, options);
    scanner.walk();
    scanner.finish()
}

#[cfg(test)]
mod tests;
