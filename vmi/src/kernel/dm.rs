//! Device mapper (drivers/md/dm.c, dm-table.c, dm-linear.c): the targets that a mapped device is made
//! of. Follows nothing further than the block devices that linear targets name.

use profiles::layout::Dm;

use crate::address::Gva;
use crate::kernel::{Kernel, SECTOR_BYTES, Unreadable};

/// A piece of a mapped device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DmTarget {
    /// target_type.name
    pub(crate) kind: String,
    /// On the mapped device, in bytes.
    pub(crate) begin: u64,
    pub(crate) bytes: u64,
    /// What a linear target leads to: a block device and where on it, in bytes.
    pub(crate) linear: Option<(Gva, u64)>,
}

impl Kernel<'_> {
    /// The live table of a mapped device; None where the disk is none, though it is called so.
    pub(crate) fn dm_targets(
        &self,
        layout: &Dm,
        gendisk: Gva,
        targets_max: usize,
    ) -> Result<Option<Vec<DmTarget>>, Unreadable> {
        let md = self.pointer(gendisk, self.layouts.gendisk.private_data)?;
        if self.pointer(md, layout.mapped_device.disk)? != gendisk {
            return Ok(None);
        }
        let table = self.pointer(md, layout.mapped_device.map)?;
        if self.pointer(table, layout.table.md)? != md {
            return Ok(None);
        }
        let count = self.uint(table, layout.table.num_targets)?;
        let targets = self.pointer(table, layout.table.targets)?;
        let Some(count) = usize::try_from(count).ok().filter(|&n| n <= targets_max) else {
            return Ok(None);
        };
        let stride = u64::from(layout.target.size);
        (0..count as u64)
            .map(|at| self.dm_target(layout, table, targets.offset(at * stride)))
            .collect()
    }

    fn dm_target(
        &self,
        layout: &Dm,
        table: Gva,
        target: Gva,
    ) -> Result<Option<DmTarget>, Unreadable> {
        if self.pointer(target, layout.target.table)? != table {
            return Ok(None);
        }
        let bytes = |sectors: u64| sectors.checked_mul(SECTOR_BYTES).ok_or(Unreadable(target));
        let kind = self.pointer(target, layout.target.r#type)?;
        let kind = self.string_behind(kind, layout.target_type.name)?;
        let linear = if kind == "linear" {
            let linear = self.pointer(target, layout.target.private)?;
            let dev = self.pointer(linear, layout.linear.dev)?;
            let start = bytes(self.uint(linear, layout.linear.start)?)?;
            Some((self.pointer(dev, layout.dev.bdev)?, start))
        } else {
            None
        };
        Ok(Some(DmTarget {
            kind,
            begin: bytes(self.uint(target, layout.target.begin)?)?,
            bytes: bytes(self.uint(target, layout.target.len)?)?,
            linear,
        }))
    }
}
