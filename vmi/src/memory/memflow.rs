//! memflow both ways: any of its connectors as a source of guest memory, and any source as a connector
//! for its tools. What cannot be read is reported as such, never filled with zeros: memflow's
//! convenience calls (`phys_read_into`) do that, so they are not used here.

use std::sync::{Arc, Mutex};

use ::memflow::cglue::{CSliceMut, CTup2, CTup3};
use ::memflow::error::{Error, ErrorKind, ErrorOrigin, Result};
use ::memflow::mem::mem_data::{MemOps, ReadCallback, ReadData, opt_call};
use ::memflow::mem::{
    PhysicalMemory, PhysicalMemoryMetadata, PhysicalReadMemOps, PhysicalWriteMemOps,
};
use ::memflow::types::{Address, PhysicalAddress};

use crate::address::{Gpa, PAGE_BYTES};
use crate::layout::RamRange;
use crate::memory::{GuestMemory, MemoryError};

/// A connector tells its highest address and no ranges. More than any host has would only cost time and
/// page sets of that size.
const ADDRESSES_MAX: u64 = 16 << 40;

/// A memflow connector as a source of guest memory.
#[derive(Debug)]
pub struct MemflowSource<P> {
    connector: Mutex<P>,
    ranges: [RamRange; 1],
}

impl<P: PhysicalMemory> MemflowSource<P> {
    /// Takes a connector. Its memory is one range from 0 to its highest address; reads of holes in it fail.
    ///
    /// # Errors
    /// When the connector has no memory, or says that it has more than 16 TiB.
    pub fn new(connector: P) -> std::result::Result<MemflowSource<P>, MemoryError> {
        let metadata = connector.metadata();
        let last = metadata.max_address.to_umem();
        if metadata.real_size == 0 || last >= ADDRESSES_MAX {
            let (first, last) = (0, last);
            return Err(MemoryError::Connector(format!(
                "it has {} bytes of memory between {first:#x} and {last:#x}",
                metadata.real_size
            )));
        }
        let range = RamRange {
            gpa: 0,
            bytes: last + 1,
            block: 0,
            offset: 0,
        };
        Ok(MemflowSource {
            connector: Mutex::new(connector),
            ranges: [range],
        })
    }

    /// One call for all pieces, which have `bytes` together.
    fn read_all<'b>(
        &self,
        pieces: impl Iterator<Item = (Gpa, &'b mut [u8])> + 'b,
        bytes: usize,
    ) -> std::result::Result<(), MemoryError> {
        let (mut given, mut refused) = (0, None);
        let out = &mut |CTup2(_, piece): ReadData<'b>| {
            given += piece.len();
            true
        };
        let out_fail = &mut |CTup2(at, _): ReadData<'b>| {
            refused.get_or_insert(at);
            // No use in reading on.
            false
        };
        let pieces =
            pieces.map(|(gpa, piece)| (PhysicalAddress::from(gpa.0), CSliceMut::from(piece)));
        let (out, out_fail): (&mut ReadCallback, &mut ReadCallback) =
            (&mut out.into(), &mut out_fail.into());
        let Ok(mut connector) = self.connector.lock() else {
            return Err(MemoryError::Connector("it panicked before".into()));
        };
        let read = MemOps::with(pieces, Some(out), Some(out_fail), |ops| {
            connector.phys_read_raw_iter(ops)
        });
        match (read, refused) {
            (Err(error), _) => Err(MemoryError::Connector(error.to_string())),
            (Ok(()), Some(at)) => Err(MemoryError::Connector(format!("it cannot read at {at:#x}"))),
            // A connector that tells of no success has given nothing.
            (Ok(()), None) if given != bytes => Err(MemoryError::Connector(format!(
                "it gave {given} of {bytes} bytes"
            ))),
            (Ok(()), None) => Ok(()),
        }
    }
}

impl<P: PhysicalMemory> GuestMemory for MemflowSource<P> {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> std::result::Result<(), MemoryError> {
        let bytes = buf.len();
        self.read_all(std::iter::once((gpa, buf)), bytes)
    }

    fn ranges(&self) -> &[RamRange] {
        &self.ranges
    }

    fn read_each(&self, gpas: &[Gpa], out: &mut [u8]) -> std::result::Result<(), MemoryError> {
        let each = out.len() / gpas.len().max(1);
        let pieces = gpas.iter().copied().zip(out.chunks_exact_mut(each.max(1)));
        self.read_all(pieces, each * gpas.len())
    }
}

/// A source of guest memory as a memflow connector. It cannot write.
#[derive(Clone)]
pub struct MemflowConnector(Arc<dyn GuestMemory>);

impl MemflowConnector {
    /// Takes any source.
    pub fn new(memory: Arc<dyn GuestMemory>) -> MemflowConnector {
        MemflowConnector(memory)
    }
}

impl PhysicalMemory for MemflowConnector {
    fn phys_read_raw_iter(&mut self, ops: PhysicalReadMemOps) -> Result<()> {
        let MemOps {
            inp,
            mut out,
            mut out_fail,
        } = ops;
        for CTup3(address, tag, data) in inp {
            let gpa = address.address().to_umem();
            let whole: &mut [u8] = data.into();
            if self.0.read(Gpa(gpa), whole).is_ok() {
                if !opt_call(out.as_deref_mut(), CTup2(tag, whole.into())) {
                    return Ok(());
                }
                continue;
            }
            // Some of it may be there: page by page.
            let (mut at, mut rest) = (gpa, whole);
            while !rest.is_empty() {
                let to_page_end = (PAGE_BYTES - at % PAGE_BYTES) as usize;
                let (piece, behind) = rest.split_at_mut(to_page_end.min(rest.len()));
                let (length, tag) = (piece.len() as u64, tag + (at - gpa));
                let callback = match self.0.read(Gpa(at), piece) {
                    Ok(()) => &mut out,
                    Err(_) => &mut out_fail,
                };
                if !opt_call(callback.as_deref_mut(), CTup2(tag, piece.into())) {
                    return Ok(());
                }
                (at, rest) = (at.wrapping_add(length), behind);
            }
        }
        Ok(())
    }

    fn phys_write_raw_iter(&mut self, _: PhysicalWriteMemOps) -> Result<()> {
        Err(Error(ErrorOrigin::Connector, ErrorKind::ReadOnly))
    }

    fn metadata(&self) -> PhysicalMemoryMetadata {
        let ranges = self.0.ranges();
        let end = ranges.last().map_or(0, |range| range.gpa + range.bytes);
        let real_size: u64 = ranges.iter().map(|range| range.bytes).sum();
        PhysicalMemoryMetadata {
            max_address: Address::from(end.saturating_sub(1)),
            real_size,
            readonly: true,
            ideal_batch_size: u32::MAX,
        }
    }
}

#[cfg(test)]
#[path = "memflow_tests.rs"]
mod tests;
