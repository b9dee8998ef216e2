//! The x86-64 page walk, with four and five levels (Intel SDM vol. 3A, 4.5). Pure: table entries
//! come through a closure. It ignores permissions: what the kernel has mapped may be read.

use crate::address::{Gpa, Gva};

const PRESENT: u64 = 1;
/// In a PDPTE or PDE: this entry maps a 1 GiB or 2 MiB page.
const PAGE_SIZE: u64 = 1 << 7;
/// Bits 51:12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// CR3's low bits are the PCID, or PTI's user half.
const CR3_TABLE: u64 = ADDRESS;

/// The top table of an address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageTable {
    pub root: Gpa,
    /// 4, or 5 with LA57.
    pub levels: u32,
}

/// A page of memory that a table maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// Guest physical address of its first byte.
    pub start: Gpa,
    /// 4 KiB, 2 MiB or 1 GiB.
    pub bytes: u64,
}

impl Leaf {
    /// Guest physical address behind a virtual one that this page maps.
    pub fn gpa(self, va: Gva) -> Gpa {
        Gpa(self.start.0 | va.0 & (self.bytes - 1))
    }
}

impl PageTable {
    /// From a vCPU's CR3.
    pub fn from_cr3(cr3: u64, levels: u32) -> PageTable {
        PageTable {
            root: Gpa(cr3 & CR3_TABLE),
            levels,
        }
    }

    /// The guest physical address behind `va`; see [`PageTable::leaf`].
    pub fn translate(&self, va: Gva, entry: impl FnMut(Gpa) -> Option<u64>) -> Option<Gpa> {
        self.leaf(va, entry).map(|leaf| leaf.gpa(va))
    }

    /// The page that maps `va`; None where nothing is mapped or `entry`, which reads the table
    /// entry at an address, says None.
    pub fn leaf(&self, va: Gva, mut entry: impl FnMut(Gpa) -> Option<u64>) -> Option<Leaf> {
        let mut table = self.root.0;
        for level in (0..self.levels).rev() {
            let shift = 12 + 9 * level;
            let index = va.0 >> shift & 511;
            let value = entry(Gpa(table + 8 * index))?;
            if value & PRESENT == 0 {
                return None;
            }
            let is_page = level == 0 || (matches!(level, 1 | 2) && value & PAGE_SIZE != 0);
            if is_page {
                let bytes = 1 << shift;
                let start = Gpa(value & ADDRESS & !(bytes - 1));
                return Some(Leaf { start, bytes });
            }
            table = value & ADDRESS;
        }
        None
    }
}

#[cfg(test)]
#[path = "paging_tests.rs"]
mod tests;
