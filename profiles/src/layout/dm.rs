//! What is read of device mapper (drivers/md/): the table of a mapped device and its linear targets.

use super::Resolver;

layouts! {
    /// drivers/md/dm-core.h
    MappedDevice "mapped_device" { map, disk }
    /// drivers/md/dm-core.h
    DmTable "dm_table" { md, num_targets, targets }
    /// include/linux/device-mapper.h
    DmTarget "dm_target" { table, r#type, begin, len, private }
    /// include/linux/device-mapper.h
    TargetType "target_type" { name }
    /// include/linux/device-mapper.h
    DmDev "dm_dev" { bdev }
    /// drivers/md/dm-linear.c
    LinearC "linear_c" { dev, start }
}

/// The types of device mapper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dm {
    pub mapped_device: MappedDevice,
    pub table: DmTable,
    pub target: DmTarget,
    pub target_type: TargetType,
    pub dev: DmDev,
    pub linear: LinearC,
}

impl Dm {
    pub(super) fn resolve(from: &mut Resolver<'_>) -> Dm {
        Dm {
            mapped_device: MappedDevice::resolve(from),
            table: DmTable::resolve(from),
            target: DmTarget::resolve(from),
            target_type: TargetType::resolve(from),
            dev: DmDev::resolve(from),
            linear: LinearC::resolve(from),
        }
    }
}
