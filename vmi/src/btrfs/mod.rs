//! btrfs: a file's extents are bytes of the file system's logical address space, and chunks say
//! where on its devices those are. Pure: blocks of trees come through a closure.
//!
//! The extent maps in memory are asked first: where one covers a page it is right, also while
//! data that was just written is not yet in the tree (it is pinned until then). Where none does it
//! was never made, or the kernel's shrinker took it, and the subvolume's tree is right.

pub(crate) mod chunk;
pub(crate) mod extent_map;
pub(crate) mod fs_tree;

use crate::address::PAGE_BYTES;
use crate::place::Extent;
use crate::reason::Reason;

/// An extent, and apart from it what covers a last page that is only in part the file's, if the
/// extent on disk goes on behind that page. Then the file was cut short, as far as can be told: what
/// was behind its end is zero in memory now, and still on disk (btrfs_truncate).
fn split_at_end(extent: Extent, disk_end: u64, size_bytes: u64) -> impl Iterator<Item = Extent> {
    let last_page = size_bytes - size_bytes % PAGE_BYTES;
    let inside = last_page
        .checked_sub(extent.logical)
        .filter(|&inside| inside < extent.blocks && !size_bytes.is_multiple_of(PAGE_BYTES));
    let is_cut = |inside: &u64| {
        let page = extent.physical.ok()?.checked_add(*inside)?;
        Some(page.checked_add(PAGE_BYTES)? < disk_end)
    };
    let kept = inside.filter(|inside| is_cut(inside) == Some(true));
    let kept = kept.unwrap_or(extent.blocks);
    let parts = [
        Extent {
            blocks: kept,
            ..extent
        },
        Extent {
            logical: extent.logical + kept,
            blocks: extent.blocks - kept,
            physical: Err(Reason::CutShort),
        },
    ];
    parts.into_iter().filter(|part| part.blocks > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_page_of_a_file_cut_short_is_not_on_disk() {
        let extent = |logical, blocks, physical| Extent {
            logical,
            blocks,
            physical,
        };
        let whole = extent(4096, 16384, Ok(1 << 20));
        let split = |size_bytes, disk_end| -> Vec<Extent> {
            split_at_end(whole, disk_end, size_bytes).collect()
        };
        let end = (1 << 20) + 16384;
        assert_eq!(split(20480, end + 4096), [whole], "at a page's end");
        assert_eq!(split(20000, end), [whole], "the extent ends with the file");
        assert_eq!(split(30000, end + 4096), [whole], "the end is elsewhere");
        let cut = extent(16384, 4096, Err(Reason::CutShort));
        let kept = extent(4096, 12288, Ok(1 << 20));
        assert_eq!(split(20000, end + 4096), [kept, cut]);
        let all = extent(4096, 16384, Err(Reason::CutShort));
        assert_eq!(split(4097, end), [all]);
    }
}
