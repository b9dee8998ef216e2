//! LiME dumps (LiME's doc/README.md, "lime" format, version 1): a header before each range of RAM.
//! Only the headers are read.

use std::fs::File;
use std::os::unix::fs::FileExt;

use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

use crate::layout::RamRange;

/// LIME_MAGIC 0x4C694D45, as its bytes lie in the file.
pub(super) const MAGIC: &[u8] = b"EMiL";
const VERSION: u32 = 1;
/// A machine has tens of System RAM ranges; more than this is no dump.
const RANGES_MAX: usize = 1 << 16;

#[derive(FromBytes)]
#[repr(C)]
struct Header {
    magic: U32,
    version: U32,
    /// First and last address of the range.
    s_addr: U64,
    e_addr: U64,
    _reserved: [u8; 8],
}

const HEADER_BYTES: u64 = size_of::<Header>() as u64;

/// The ranges, in the file's order.
pub(super) fn ranges(file: &File, file_bytes: u64) -> Result<Vec<RamRange>, String> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < file_bytes {
        if ranges.len() == RANGES_MAX {
            return Err(format!("more than {RANGES_MAX} LiME ranges"));
        }
        let mut bytes = [0; HEADER_BYTES as usize];
        file.read_exact_at(&mut bytes, at)
            .map_err(|error| format!("cannot read the LiME header at {at:#x}: {error}"))?;
        let header: Header = zerocopy::transmute!(bytes);
        if header.magic.get().to_le_bytes() != MAGIC {
            return Err(format!(
                "no LiME header at {at:#x}, where a range has to begin"
            ));
        }
        if header.version.get() != VERSION {
            return Err(format!(
                "LiME version {}; only {VERSION} is known",
                header.version
            ));
        }
        let (first, last) = (header.s_addr.get(), header.e_addr.get());
        let bytes = last.checked_sub(first).and_then(|span| span.checked_add(1));
        let offset = at + HEADER_BYTES;
        let end = bytes.and_then(|bytes| offset.checked_add(bytes));
        let (Some(bytes), Some(end)) = (bytes, end) else {
            return Err(format!("the LiME range {first:#x}-{last:#x} cannot be"));
        };
        ranges.push(RamRange {
            gpa: first,
            bytes,
            block: 0,
            offset,
        });
        at = end;
    }
    Ok(ranges)
}
