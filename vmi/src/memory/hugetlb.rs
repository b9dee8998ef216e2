//! RAM on hugetlbfs. It cannot tell where a file has holes, and touching one would take a page from the
//! host's pool (or kill us where the pool is empty): QEMU's own page tables tell which pages there are.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// HUGETLBFS_MAGIC (linux/magic.h).
const MAGIC: i64 = 0x9584_58f6;
/// Of /proc/PID/pagemap: an entry of 8 bytes for each 4 KiB; bit 63 says that the page is there.
const ENTRY_BYTES: u64 = 8;
const ENTRY_SPAN: u64 = 4096;
const PRESENT: u64 = 1 << 63;

/// The size of its pages, if the file is on hugetlbfs.
pub(super) fn page_bytes(file: &File) -> io::Result<Option<u64>> {
    let stat = rustix::fs::fstatfs(file)?;
    // The magic number is unsigned in a signed field on some machines.
    let is_hugetlbfs = stat.f_type as u32 == MAGIC as u32;
    Ok(is_hugetlbfs
        .then_some(stat.f_bsize as u64)
        .filter(|&bytes| bytes >= ENTRY_SPAN))
}

/// The parts of `bytes` from `hva` on, in pages of `page_bytes`, that process `pid` has in its page
/// tables. Fails where it may not be asked.
pub(super) fn present(
    pid: i32,
    hva: u64,
    bytes: u64,
    page_bytes: u64,
) -> io::Result<Vec<Range<u64>>> {
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut present: Vec<Range<u64>> = Vec::new();
    for at in (0..bytes).step_by(usize::try_from(page_bytes).map_err(io::Error::other)?) {
        let mut entry = [0; ENTRY_BYTES as usize];
        pagemap.read_exact_at(&mut entry, (hva + at) / ENTRY_SPAN * ENTRY_BYTES)?;
        if u64::from_le_bytes(entry) & PRESENT == 0 {
            continue;
        }
        match present.last_mut() {
            Some(last) if last.end == at => last.end = at + page_bytes,
            _ => present.push(at..at + page_bytes),
        }
    }
    Ok(present)
}
