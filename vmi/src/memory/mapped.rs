//! A file read through a mapping: guest RAM's memfd or file, or a dump. Another process may be
//! writing to it: bytes are only ever copied out, no reference into the mapping is made. Holes are
//! read with pread, since touching them through a mapping would allocate pages of the guest's RAM.
#![allow(unsafe_code)] // Copies out of a mapping that others write to.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{SeekFrom, seek};

use crate::memory::hugetlb;

/// Extents of data remembered; what lies behind the last of them is read with pread.
const DATA_EXTENTS_MAX: usize = 1 << 16;

/// A part of a file, mapped read-only.
#[derive(Debug)]
pub(super) struct MappedFile {
    file: File,
    map: MmapRaw,
    /// Offset in the file of the mapping's first byte.
    start: u64,
    /// Parts of the mapping that were no holes when it was made, sorted.
    data: Vec<Range<u64>>,
}

impl MappedFile {
    /// Maps `bytes` from `start`, which is a multiple of the page size.
    pub(super) fn map(file: File, start: u64, bytes: u64) -> io::Result<MappedFile> {
        let length = usize::try_from(bytes).map_err(io::Error::other)?;
        let end = start
            .checked_add(bytes)
            .ok_or_else(|| io::Error::other("offset overflows"))?;
        if file.metadata()?.len() < end {
            return Err(io::Error::other(
                "the file is shorter than what is to be mapped",
            ));
        }
        let data = data_extents(&file, start, end);
        // Of hugetlbfs a mapping would otherwise reserve pages in the host's pool.
        let map = MmapOptions::new()
            .offset(start)
            .len(length)
            .no_reserve_swap()
            .map_raw_read_only(&file)?;
        Ok(MappedFile {
            file,
            map,
            start,
            data,
        })
    }

    /// As [`MappedFile::map`], for RAM that process `pid` has at `hva`.
    pub(super) fn map_ram(
        file: File,
        start: u64,
        bytes: u64,
        pid: i32,
        hva: u64,
    ) -> io::Result<MappedFile> {
        let mut mapped = MappedFile::map(file, start, bytes)?;
        if let Some(page_bytes) = hugetlb::page_bytes(&mapped.file)? {
            mapped.data = hugetlb::present(pid, hva, bytes, page_bytes).unwrap_or_default();
        }
        Ok(mapped)
    }

    /// Fills `buf` from `offset` bytes behind the start.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        let end = end.filter(|&end| end <= self.map.len() as u64);
        let end = end.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let after = self.data.partition_point(|extent| extent.start <= offset);
        let extent = after.checked_sub(1).map(|index| &self.data[index]);
        if extent.is_none_or(|extent| extent.end < end) {
            return self.file.read_exact_at(buf, self.start + offset);
        }
        // SAFETY: offset + buf.len() is within the mapping (checked above), which lives as long as
        // self; buf is ours, so the two cannot overlap. The other side may be written to meanwhile:
        // the copy may then be torn, which every reader of guest memory has to expect.
        unsafe {
            let from = self.map.as_ptr().add(offset as usize);
            std::ptr::copy_nonoverlapping(from, buf.as_mut_ptr(), buf.len());
        }
        Ok(())
    }
}

/// Where the file has data, relative to `start`. A file system that cannot tell says all of it.
fn data_extents(file: &File, start: u64, end: u64) -> Vec<Range<u64>> {
    let mut extents = Vec::new();
    let mut at = start;
    while at < end && extents.len() < DATA_EXTENTS_MAX {
        let Ok(data) = seek(file, SeekFrom::Data(at)) else {
            break;
        };
        let hole = seek(file, SeekFrom::Hole(data)).unwrap_or(end).min(end);
        if data >= hole {
            break;
        }
        extents.push(data - start..hole - start);
        at = hole;
    }
    extents
}
