//! Guest RAM as QEMU's stream sees it: named blocks, and one dense index over all their pages.

use serde::{Deserialize, Serialize};

/// Bytes of a page on the wire and in QEMU's stream on x86.
pub const PAGE_BYTES: usize = 4096;
/// More RAM blocks than any machine type has with every slot filled.
const BLOCKS_MAX: usize = 1024;

/// A page of guest RAM: its index over all blocks, in the order of the [`RamTable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RamPage(pub u32);

impl RamPage {
    /// The index, for arrays with an entry a page.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One of QEMU's RAM blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamBlock {
    /// The name that the stream uses, such as `pc.ram`: 1 to 255 bytes.
    pub idstr: String,
    /// The used length in bytes: whole pages.
    pub bytes: u64,
}

/// All RAM blocks of a VM, and where each begins in the page index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamTable {
    blocks: Vec<RamBlock>,
    first: Vec<u32>,
    pages: u32,
}

/// A table that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RamError {
    /// Too many blocks.
    #[error("{0} RAM blocks; at most {BLOCKS_MAX} are supported")]
    Blocks(usize),
    /// A name that the stream cannot carry, or carries twice.
    #[error("RAM block name {0:?} is empty, longer than 255 bytes, or there twice")]
    Name(String),
    /// A length that is not whole pages.
    #[error("RAM block {0} has {1} bytes, which is not a whole number of {PAGE_BYTES}-byte pages")]
    Length(String, u64),
    /// More than the index can number.
    #[error("guest RAM is larger than 16 TiB, which page numbers here cannot count")]
    Size,
}

impl RamTable {
    /// Numbers the pages of `blocks` in order.
    pub fn new(blocks: Vec<RamBlock>) -> Result<RamTable, RamError> {
        if blocks.len() > BLOCKS_MAX {
            return Err(RamError::Blocks(blocks.len()));
        }
        let mut first = Vec::with_capacity(blocks.len());
        let mut pages = 0_u32;
        for (at, block) in blocks.iter().enumerate() {
            let twice = blocks[..at]
                .iter()
                .any(|earlier| earlier.idstr == block.idstr);
            if twice || block.idstr.is_empty() || block.idstr.len() > 255 {
                return Err(RamError::Name(block.idstr.clone()));
            }
            if !block.bytes.is_multiple_of(PAGE_BYTES as u64) {
                return Err(RamError::Length(block.idstr.clone(), block.bytes));
            }
            first.push(pages);
            let of_block = u32::try_from(block.bytes / PAGE_BYTES as u64).ok();
            pages = of_block
                .and_then(|n| pages.checked_add(n))
                .ok_or(RamError::Size)?;
        }
        Ok(RamTable {
            blocks,
            first,
            pages,
        })
    }

    /// The blocks, in order.
    pub fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    /// Pages of all blocks together.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Bytes of all blocks together.
    pub fn bytes(&self) -> u64 {
        u64::from(self.pages) * PAGE_BYTES as u64
    }

    /// The block of that name.
    pub fn block_of(&self, idstr: &[u8]) -> Option<usize> {
        self.blocks
            .iter()
            .position(|block| block.idstr.as_bytes() == idstr)
    }

    /// The page at byte `offset` of block `block`; none when it is not the start of a page there.
    pub fn page(&self, block: usize, offset: u64) -> Option<RamPage> {
        let inside = offset < self.blocks.get(block)?.bytes;
        let whole = offset.is_multiple_of(PAGE_BYTES as u64);
        (inside && whole).then(|| RamPage(self.first[block] + (offset / PAGE_BYTES as u64) as u32))
    }

    /// Block and byte offset of `page`, which must be below [`RamTable::pages`].
    pub fn locate(&self, page: RamPage) -> (usize, u64) {
        let block = self.first.partition_point(|first| *first <= page.0) - 1;
        // Empty blocks share their first page with the block behind them, which is the one found.
        (
            block,
            u64::from(page.0 - self.first[block]) * PAGE_BYTES as u64,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(idstr: &str, bytes: u64) -> RamBlock {
        RamBlock {
            idstr: idstr.into(),
            bytes,
        }
    }

    #[test]
    fn pages_are_numbered_across_blocks_and_found_again() {
        let table = RamTable::new(vec![
            block("pc.ram", 8192),
            block("e", 0),
            block("vga", 4096),
        ]);
        let table = table.unwrap();
        assert_eq!(table.pages(), 3);
        assert_eq!(table.page(0, 4096), Some(RamPage(1)));
        assert_eq!(table.page(2, 0), Some(RamPage(2)));
        assert_eq!(table.locate(RamPage(2)), (2, 0));
        assert_eq!(table.locate(RamPage(1)), (0, 4096));
        assert_eq!(table.page(0, 8192), None);
        assert_eq!(table.page(0, 1), None);
        assert_eq!(table.page(3, 0), None);
    }

    #[test]
    fn tables_that_cannot_be_are_refused() {
        let twice = vec![block("a", 4096), block("a", 4096)];
        assert_eq!(RamTable::new(twice), Err(RamError::Name("a".into())));
        assert_eq!(
            RamTable::new(vec![block("", 0)]),
            Err(RamError::Name(String::new()))
        );
        let odd = RamTable::new(vec![block("a", 5000)]);
        assert_eq!(odd, Err(RamError::Length("a".into(), 5000)));
        let huge = vec![block("a", 1 << 44), block("b", 1 << 43)];
        assert_eq!(RamTable::new(huge), Err(RamError::Size));
    }
}
