//! A file read through a mapping: guest RAM's memfd or file, or a dump. Another process may be
//! writing to it: bytes are only ever copied out, no reference into the mapping is made. Holes are
//! read with pread, since touching them through a mapping would allocate pages of the guest's RAM.
#![allow(unsafe_code)] // Copies out of a mapping that others write to.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{SeekFrom, seek};

use crate::address::PAGE_BYTES;
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
        if !self.is_data(offset, end) {
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

    /// The page from `offset` bytes behind the start, if it was no hole.
    pub(super) fn page(&self, offset: u64) -> Option<MappedPage<'_>> {
        let end = offset.checked_add(PAGE_BYTES)?;
        if end > self.map.len() as u64 || !self.is_data(offset, end) {
            return None;
        }
        // SAFETY: offset + PAGE_BYTES is within the mapping (checked above).
        let from = unsafe { self.map.as_ptr().add(offset as usize) };
        Some(MappedPage {
            from,
            map: PhantomData,
        })
    }

    /// Whether `start..end` was no hole when the mapping was made.
    fn is_data(&self, start: u64, end: u64) -> bool {
        let after = self.data.partition_point(|extent| extent.start <= start);
        let extent = after.checked_sub(1).map(|index| &self.data[index]);
        extent.is_some_and(|extent| end <= extent.end)
    }
}

/// 4096 mapped bytes, wherever in the mapping they start. They can only be copied, as all of it.
#[derive(Debug, Clone, Copy)]
pub struct MappedPage<'m> {
    from: *const u8,
    map: PhantomData<&'m MappedFile>,
}

impl MappedPage<'_> {
    /// Fills `buf` from `start`; None when the page ends before.
    #[inline]
    pub fn read(&self, start: usize, buf: &mut [u8]) -> Option<()> {
        let end = start.checked_add(buf.len())?;
        if end > PAGE_BYTES as usize {
            return None;
        }
        // SAFETY: all 4096 bytes from `from` on are in the mapping, which is borrowed as long as self
        // lives; start + buf.len() is within them (checked above); buf is ours. A torn copy is as in
        // MappedFile::read.
        unsafe { std::ptr::copy_nonoverlapping(self.from.add(start), buf.as_mut_ptr(), buf.len()) };
        Some(())
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
