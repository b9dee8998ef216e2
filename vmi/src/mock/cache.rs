//! The page cache of the hand-made guest: folios, their struct pages, and the xarrays that hold them.

use profiles::layout::{AddressSpace, BufferHead, FolioOrder, Page, PageFlags, XaNode, Xarray};

use super::{DIRECT_MAP, MockGuest, VMEMMAP, field};
use crate::address::Gva;

pub(crate) const LOCKED: u64 = 1 << 0;
pub(crate) const UPTODATE: u64 = 1 << 3;
pub(crate) const DIRTY: u64 = 1 << 4;
pub(crate) const WRITEBACK: u64 = 1 << 1;
const HEAD: u64 = 1 << 6;
pub(crate) const PRIVATE: u64 = 1 << 9;
const ERROR: u64 = 1 << 11;
const HWPOISON: u64 = 1 << 20;

/// A folio to put into a mapping.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MockFolio {
    pub(crate) index: u64,
    pub(crate) order: u32,
    pub(crate) pfn: u64,
    pub(crate) flags: u64,
}

impl MockGuest {
    /// Address of a frame's struct page.
    pub(crate) fn page(pfn: u64) -> Gva {
        Gva(DIRECT_MAP + VMEMMAP + 64 * pfn)
    }

    /// Fills an inode's page cache.
    pub(crate) fn cache(&mut self, inode: Gva, folios: &[MockFolio]) {
        let mapping = self.mapping(inode);
        let layout = self.layouts.page;
        let mut pages = 0;
        for folio in folios {
            let page = Self::page(folio.pfn);
            let head = if folio.order > 0 { HEAD } else { 0 };
            self.put(page, layout.flags, folio.flags | head);
            self.put(page, layout.mapping, mapping.0);
            self.put(page, layout.index, folio.index);
            if folio.order > 0 {
                self.put(page, self.layouts.folio_order.field, u64::from(folio.order));
            }
            pages += 1 << folio.order;
        }
        self.put(mapping, self.layouts.address_space.nrpages, pages);
        let entries: Vec<(u64, u32, u64)> = folios
            .iter()
            .map(|f| (f.index, f.order, Self::page(f.pfn).0))
            .collect();
        let xarray = mapping.offset(self.layouts.address_space.i_pages.offset.into());
        self.xarray(xarray, &entries);
    }

    /// Stores (index, order, entry), as xas_store lays them out.
    pub(crate) fn xarray(&mut self, xarray: Gva, entries: &[(u64, u32, u64)]) {
        let last = entries
            .iter()
            .map(|e| e.0 + (1 << e.1) - 1)
            .max()
            .unwrap_or(0);
        let head = match entries {
            [] => 0,
            [(0, 0, entry)] => *entry,
            _ => {
                let mut shift = 0;
                while last >> shift > 63 {
                    shift += 6;
                }
                self.xa_node(shift, 0, entries)
            }
        };
        self.put(xarray, self.layouts.xarray.xa_head, head);
    }

    fn xa_node(&mut self, shift: u32, base: u64, entries: &[(u64, u32, u64)]) -> u64 {
        let layout = self.layouts.xa_node;
        let node = self.alloc(layout.size);
        self.put(node, layout.shift, shift.into());
        let mut slots = [0u64; 64];
        for slot in 0..64u64 {
            let start = base + (slot << shift);
            let below: Vec<(u64, u32, u64)> = entries
                .iter()
                .copied()
                .filter(|e| e.1 < shift && e.0 >> shift == start >> shift)
                .collect();
            if !below.is_empty() {
                slots[slot as usize] = self.xa_node(shift - 6, start, &below);
            }
            if let Some(own) = entries.iter().find(|e| e.1 >= shift && e.0 == start) {
                slots[slot as usize] = own.2;
                for sibling in 1..1u64 << (own.1 - shift) {
                    slots[(slot + sibling) as usize] = slot << 2 | 2;
                }
            }
        }
        let at = Self::gpa(node.offset(layout.slots.offset.into()));
        for (slot, value) in slots.into_iter().enumerate() {
            self.write(at + 8 * slot as u64, &value.to_le_bytes());
        }
        node.0 | 2
    }
}

pub(super) const ADDRESS_SPACE: AddressSpace = AddressSpace {
    size: 128,
    host: field(8, 8),
    i_pages: field(24, 16),
    nrpages: field(80, 8),
    wb_err: field(96, 4),
};

pub(super) const XARRAY: Xarray = Xarray {
    size: 16,
    xa_head: field(8, 8),
};

pub(super) const XA_NODE: XaNode = XaNode {
    size: 576,
    shift: field(3, 1),
    slots: field(40, 512),
};

pub(super) const PAGE: Page = Page {
    size: 64,
    flags: field(8, 8),
    mapping: field(24, 8),
    private: field(40, 8),
    index: field(48, 8),
    compound_order: None,
};

pub(super) const FOLIO_ORDER: FolioOrder = FolioOrder {
    field: field(64 + 40, 1),
    mask: 0xff,
};

pub(super) const PAGE_FLAGS: PageFlags = PageFlags {
    locked: LOCKED,
    uptodate: UPTODATE,
    dirty: DIRTY,
    writeback: WRITEBACK,
    head: HEAD,
    private: PRIVATE,
    error: ERROR,
    hwpoison: HWPOISON,
};

pub(super) const BUFFER_HEAD: BufferHead = BufferHead {
    size: 64,
    b_state: field(16, 8),
    b_this_page: field(24, 8),
};
