//! The page cache's xarray (include/linux/xarray.h, lib/xarray.c) and the folios in it. Depth is
//! bounded by the nodes' shifts, which have to fall, and the number of nodes by a budget.

use profiles::Field;
use profiles::layout::Page;

use crate::address::{Gva, Pfn};
use crate::kernel::{Kernel, Unreadable};

/// xa_is_internal: the low bits of pointers to nodes, of siblings, and of retry entries.
const INTERNAL: u64 = 2;
/// xa_is_node: an internal entry above the ones that carry small numbers.
const NODE_MIN: u64 = 4096;
/// XA_CHUNK_SIZE is 64, or 16 with CONFIG_BASE_SMALL.
const SLOTS_MAX: usize = 64;
/// XA_CHUNK_SHIFT times the levels that a 64-bit index can need.
const SHIFT_MAX: u64 = 60;
/// A folio is never larger than this: MAX_PAGECACHE_ORDER is 9 today, huge pages have 18.
const FOLIO_ORDER_MAX: u64 = 18;

/// The head page of a folio, as read in one piece.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Folio {
    pub(crate) pfn: Pfn,
    pub(crate) flags: u64,
    /// address_space it says that it belongs to, with the low bits' flags.
    pub(crate) mapping: Gva,
    pub(crate) index: u64,
    pub(crate) private: Gva,
    pub(crate) pages: u64,
}

/// A node still to be looked into.
struct Pending {
    node: Gva,
    /// Index of the node's first slot.
    base: u64,
    /// What the node's shift has to be; None at the top.
    shift: Option<u64>,
}

/// An xa_node read in one piece.
struct Node {
    shift: u64,
    chunk_shift: u64,
    slots: [u64; SLOTS_MAX],
    count: usize,
}

impl Kernel<'_> {
    /// Calls `each` with every pointer in the xarray and its index (xas_for_each); values, siblings
    /// and retry entries are passed over. Each node costs one of `budget`.
    ///
    /// # Errors
    /// When a node cannot be read or is none; what came before has been delivered.
    pub(crate) fn xa_for_each(
        &self,
        xarray: Gva,
        budget: &mut u64,
        mut each: impl FnMut(u64, Gva),
    ) -> Result<(), Unreadable> {
        let head = self.uint(xarray, self.layouts.xarray.xa_head)?;
        let mut pending = Vec::new();
        if is_node(head) {
            pending.push(Pending {
                node: Gva(head - INTERNAL),
                base: 0,
                shift: None,
            });
        } else if is_pointer(head) {
            each(0, Gva(head));
        }
        while let Some(next) = pending.pop() {
            *budget = budget.checked_sub(1).ok_or(Unreadable(next.node))?;
            let node = self.xa_node(&next)?;
            let below = node.shift.checked_sub(node.chunk_shift);
            for (slot, &entry) in node.slots[..node.count].iter().enumerate() {
                let index = next.base.wrapping_add((slot as u64) << node.shift);
                if is_pointer(entry) {
                    each(index, Gva(entry));
                } else if is_node(entry) && below.is_some() {
                    let node = Gva(entry - INTERNAL);
                    pending.push(Pending {
                        node,
                        base: index,
                        shift: below,
                    });
                }
            }
        }
        Ok(())
    }

    /// The pointer at an index (xa_load).
    pub(crate) fn xa_load(&self, xarray: Gva, index: u64) -> Option<Gva> {
        let mut entry = self.uint(xarray, self.layouts.xarray.xa_head).ok()?;
        let mut shift = None;
        if !is_node(entry) {
            return (index == 0 && is_pointer(entry)).then_some(Gva(entry));
        }
        while is_node(entry) {
            let node = self
                .xa_node(&Pending {
                    node: Gva(entry - INTERNAL),
                    base: 0,
                    shift,
                })
                .ok()?;
            // Only the top node can be too small for the index; below, the bits above are its
            // parents'.
            let slot = index >> node.shift;
            if shift.is_none() && slot >= node.count as u64 {
                return None;
            }
            let mut slot = (slot % node.count as u64) as usize;
            entry = node.slots[slot];
            // A sibling names the slot that holds the entry.
            if entry & 3 == INTERNAL && entry >> 2 < node.count as u64 {
                slot = (entry >> 2) as usize;
                entry = node.slots[slot];
            }
            match node.shift.checked_sub(node.chunk_shift) {
                Some(below) => shift = Some(below),
                None => break,
            }
        }
        is_pointer(entry).then_some(Gva(entry))
    }

    fn xa_node(&self, at: &Pending) -> Result<Node, Unreadable> {
        let layout = self.layouts.xa_node;
        let count = (layout.slots.size as usize / 8).min(SLOTS_MAX);
        let chunk_shift = u64::from(count.max(2).ilog2());
        let shift = self.uint(at.node, layout.shift)?;
        let fits = match at.shift {
            Some(expected) => shift == expected,
            None => shift <= SHIFT_MAX && shift % chunk_shift == 0,
        };
        if !fits || count == 0 {
            return Err(Unreadable(at.node));
        }
        let mut bytes = [0; 8 * SLOTS_MAX];
        self.space.read(
            at.node.offset(layout.slots.offset.into()),
            &mut bytes[..8 * count],
        )?;
        let mut slots = [0; SLOTS_MAX];
        for (slot, bytes) in slots.iter_mut().zip(bytes.chunks_exact(8)) {
            *slot = u64::from_le_bytes(bytes.try_into().expect("chunks of eight"));
        }
        Ok(Node {
            shift,
            chunk_shift,
            slots,
            count,
        })
    }

    /// The folio in a mapping that holds the page at `index`, and which of its pages that is.
    pub(crate) fn folio_at(&self, mapping: Gva, index: u64) -> Option<(Folio, u64)> {
        let page = self.xa_load(self.i_pages(mapping), index)?;
        let folio = self.folio(page).ok()?;
        let inside = index.checked_sub(folio.index)?;
        (folio.mapping == mapping && inside < folio.pages).then_some((folio, inside))
    }

    /// The folio whose head page is at `page`.
    ///
    /// # Errors
    /// When it cannot be read, is no struct page of RAM, or claims to be larger than any folio.
    pub(crate) fn folio(&self, page: Gva) -> Result<Folio, Unreadable> {
        let Page {
            size,
            flags,
            mapping,
            index,
            private,
            ..
        } = self.layouts.page;
        let pfn = self.page_to_pfn(page).ok_or(Unreadable(page))?;
        let mut bytes = [0; 128];
        let bytes = bytes.get_mut(..size as usize).ok_or(Unreadable(page))?;
        self.space.read(page, bytes)?;
        let get = |field| field_of(bytes, field).ok_or(Unreadable(page));
        let flags = get(flags)?;
        let order = if flags & self.layouts.page_flags.head == 0 {
            0
        } else {
            let order = self.layouts.folio_order;
            self.uint(page, order.field)? & order.mask
        };
        if order > FOLIO_ORDER_MAX {
            return Err(Unreadable(page));
        }
        Ok(Folio {
            pfn,
            flags,
            mapping: Gva(get(mapping)?),
            index: get(index)?,
            private: Gva(get(private)?),
            pages: 1 << order,
        })
    }
}

/// The unsigned number that a field of up to eight bytes holds.
fn field_of(bytes: &[u8], field: Field) -> Option<u64> {
    let start = field.offset as usize;
    let size = (field.size as usize).min(8);
    if let Some(eight) = bytes.get(start..).and_then(<[u8]>::first_chunk) {
        let mask = u64::MAX.checked_shr(64 - 8 * size as u32).unwrap_or(0);
        return Some(u64::from_le_bytes(*eight) & mask);
    }
    let mut value = [0; 8];
    value[..size].copy_from_slice(bytes.get(start..start.checked_add(size)?)?);
    Some(u64::from_le_bytes(value))
}

fn is_node(entry: u64) -> bool {
    entry & 3 == INTERNAL && entry > NODE_MIN
}

fn is_pointer(entry: u64) -> bool {
    entry != 0 && entry & 3 == 0
}
