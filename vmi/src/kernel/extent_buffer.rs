//! Blocks of btrfs's trees in memory (struct extent_buffer, fs/btrfs/extent_io.h): pages of the
//! btree_inode, whose index is the block's logical address. Never gives a block that someone is
//! changing.

use std::rc::Rc;

use profiles::layout::Btrfs;

use crate::address::{Gva, PAGE_BYTES, Pfn};
use crate::kernel::{Folio, Kernel};
use crate::reason::Reason;

impl Kernel<'_> {
    /// The block at `start` out of the mapping of the btree_inode; None when it is not there, or
    /// not up to date. A dirty one is newer than the disk, and right.
    ///
    /// # Errors
    /// When it is being changed, or cannot be read.
    pub(crate) fn cached_extent_buffer(
        &self,
        layout: &Btrfs,
        mapping: Gva,
        start: u64,
        bytes: usize,
    ) -> Result<Option<Rc<[u8]>>, Reason> {
        let mut block = vec![0; bytes];
        let pages = start / PAGE_BYTES..;
        for (page, buf) in pages.zip(block.chunks_mut(PAGE_BYTES as usize)) {
            let Some((folio, inside)) = self.folio_at(mapping, page) else {
                return Ok(None);
            };
            if folio.flags & self.layouts.page_flags.uptodate == 0 {
                return Ok(None);
            }
            if self.is_changing(layout, &folio, start)? {
                return Err(Reason::Changing);
            }
            let frame = folio.pfn.0.checked_add(inside);
            let frame = frame.and_then(|pfn| Pfn(pfn).gpa());
            let read = frame.and_then(|gpa| self.space.read_physical(gpa, buf));
            read.ok_or(Reason::Torn)?;
        }
        Ok(Some(block.into()))
    }

    /// Whether a folio's extent_buffer is locked for writing. Without one nobody can change it.
    fn is_changing(&self, layout: &Btrfs, folio: &Folio, start: u64) -> Result<bool, Reason> {
        if folio.flags & self.layouts.page_flags.private == 0 {
            return Ok(false);
        }
        let buffer = folio.private;
        let torn = |_| Reason::Torn;
        let is_its = self
            .uint(buffer, layout.extent_buffer.start)
            .map_err(torn)?
            == start;
        let lock = buffer.offset(layout.extent_buffer.lock.offset.into());
        let locked = self.rwsem_is_write_locked(lock).map_err(torn)?;
        is_its.then_some(locked).ok_or(Reason::Torn)
    }
}
