//! The kernel's address space: virtual reads over the direct mapping, the kernel's image, and page
//! tables for everything else. A read that meets memory that is not there fails with its address.

use std::cell::RefCell;

use profiles::Field;
use thiserror::Error;

use crate::address::{Gpa, Gva, PAGE_BYTES};
use crate::cache::FrameCache;
use crate::kernel::tlb::Tlb;
use crate::memory::GuestMemory;
use crate::paging::PageTable;

/// A pointer that leads nowhere: the guest's, or one that was read torn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("guest memory at {0} cannot be read")]
pub struct Unreadable(pub Gva);

/// Virtual memory of one kernel.
pub(crate) struct Space<'m> {
    mem: &'m dyn GuestMemory,
    table: PageTable,
    /// Start and length of the direct mapping of all physical memory, once it is known.
    direct_map: Option<(u64, u64)>,
    frames: RefCell<FrameCache<'m>>,
    tlb: RefCell<Tlb>,
}

impl<'m> Space<'m> {
    pub(crate) fn new(mem: &'m dyn GuestMemory, table: PageTable) -> Space<'m> {
        Space {
            mem,
            table,
            direct_map: None,
            frames: RefCell::new(FrameCache::new()),
            tlb: RefCell::new(Tlb::new()),
        }
    }

    /// Uses the direct mapping at `start` for all RAM up to the highest range of whose last page the page
    /// tables say the same: what lies above that is no memory to the kernel, a DIMM that is offline for one.
    pub(crate) fn use_direct_map(&mut self, start: u64) {
        let agrees = |gpa: u64| {
            start
                .checked_add(gpa)
                .is_some_and(|va| self.translate(Gva(va)) == Some(Gpa(gpa)))
        };
        // Not frame 0: the kernel keeps the first megabyte in smaller pieces.
        if agrees(self.table.root.0) {
            let mut ends = self
                .mem
                .ranges()
                .iter()
                .rev()
                .map(|range| range.gpa + range.bytes);
            let mapped = ends.find(|&end| agrees(end.saturating_sub(PAGE_BYTES)));
            self.direct_map = mapped.map(|end| (start, end));
        }
    }

    pub(crate) fn mem(&self) -> &'m dyn GuestMemory {
        self.mem
    }

    pub(crate) fn table(&self) -> PageTable {
        self.table
    }

    /// Forgets what was read, so that it is read anew.
    pub(crate) fn forget(&self) {
        self.frames.borrow_mut().clear();
        *self.tlb.borrow_mut() = Tlb::new();
    }

    /// Guest physical address of a virtual one.
    pub(crate) fn translate(&self, at: Gva) -> Option<Gpa> {
        if let Some((start, bytes)) = self.direct_map
            && let Some(gpa) = at.0.checked_sub(start)
            && gpa < bytes
        {
            return Some(Gpa(gpa));
        }
        let known = self.tlb.borrow().get(at);
        known.or_else(|| {
            let leaf = self.table.leaf(at, |entry| {
                let mut value = [0; 8];
                self.read_physical(entry, &mut value)?;
                Some(u64::from_le_bytes(value))
            })?;
            self.tlb.borrow_mut().insert(at, leaf);
            Some(leaf.gpa(at))
        })
    }

    /// Fills `buf`, which must not cross a page, from guest physical memory.
    pub(crate) fn read_physical(&self, at: Gpa, buf: &mut [u8]) -> Option<()> {
        self.frames.borrow_mut().read(self.mem, at, buf)
    }

    /// Fills `buf` from virtual memory.
    pub(crate) fn read(&self, at: Gva, buf: &mut [u8]) -> Result<(), Unreadable> {
        let mut done = 0;
        while done < buf.len() {
            let from = at.offset(done as u64);
            let room = (PAGE_BYTES - from.0 % PAGE_BYTES) as usize;
            let piece = room.min(buf.len() - done);
            self.translate(from)
                .and_then(|gpa| self.read_physical(gpa, &mut buf[done..done + piece]))
                .ok_or(Unreadable(from))?;
            done += piece;
        }
        Ok(())
    }

    /// The number of eight bytes at an address.
    pub(crate) fn u64(&self, at: Gva) -> Result<u64, Unreadable> {
        self.uint(at, Field { offset: 0, size: 8 })
    }

    /// An unsigned field of up to eight bytes; of a longer one the first eight.
    pub(crate) fn uint(&self, base: Gva, field: Field) -> Result<u64, Unreadable> {
        let mut value = [0; 8];
        let size = (field.size as usize).min(8);
        self.read(base.offset(field.offset.into()), &mut value[..size])?;
        Ok(u64::from_le_bytes(value))
    }

    /// A string up to its NUL or `bytes_max`. What is not printable is escaped: names come from the
    /// guest and end on a terminal.
    pub(crate) fn string(&self, at: Gva, bytes_max: usize) -> Result<String, Unreadable> {
        let mut bytes = Vec::new();
        while bytes.len() < bytes_max {
            let from = at.offset(bytes.len() as u64);
            let room = (PAGE_BYTES - from.0 % PAGE_BYTES) as usize;
            let mut piece = [0; 32];
            let piece = &mut piece[..room.min(32).min(bytes_max - bytes.len())];
            self.read(from, piece)?;
            match piece.iter().position(|&b| b == 0) {
                Some(end) => {
                    bytes.extend_from_slice(&piece[..end]);
                    break;
                }
                None => bytes.extend_from_slice(piece),
            }
        }
        Ok(printable(&bytes))
    }
}

/// Text of a guest's bytes, without anything that moves a cursor or starts an escape sequence.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars()
        .fold(String::with_capacity(text.len()), |mut out, c| {
            if c.is_control() {
                out.extend(c.escape_default())
            } else {
                out.push(c)
            }
            out
        })
}
