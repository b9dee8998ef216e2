//! Reads a guest's memory from the host: memory sources, page tables, kernel views, and from them
//! the page map that says which page frame holds which disk block.
//!
//! All of it is a hint. Guest memory is hostile and may be torn while the guest runs: nothing here
//! panics, loops or allocates on its word, and nothing here ever writes to a guest.

pub mod address;
pub mod attach;
mod btrfs;
mod cache;
mod derive;
mod disk_path;
mod ext4;
mod find;
mod isf;
pub mod kernel;
pub mod layout;
pub mod memory;
#[cfg(test)]
mod mock;
pub mod page_map;
pub mod paging;
mod place;
pub mod reason;
pub mod scan;
mod volume;
mod xfs;

pub use address::{Gpa, Gva, PAGE_BYTES, Pfn};
pub use attach::{AttachError, ProfileOrigin, Profiles, VcpuRegisters, attach};
pub use disk_path::{DiskPath, DiskUnit};
pub use isf::isf;
pub use kernel::{Kernel, KernelInfo};
pub use layout::{LayoutError, RamBlock, RamLayout, RamRange};
pub use memory::{
    Dump, GuestMemory, LiveMemory, MemflowConnector, MemflowSource, MemoryError, QemuRam,
    memflow_kvm,
};
pub use page_map::Run;
pub use reason::Reason;
pub use scan::{
    CachedFile, FilesystemCounts, GuestDisk, ReadDisk, Scan, ScanError, ScanOptions, Timings, scan,
    scan_kernel,
};
