//! How the driver core links a device to its children (drivers/base/base.h).

use super::Resolver;
use crate::types::Field;

layouts! {
    /// drivers/base/base.h
    DevicePrivate "device_private" { klist_children, knode_parent, device }
    /// include/linux/klist.h
    Klist "klist" { k_list }
    /// include/linux/klist.h
    KlistNode "klist_node" { n_node }
}

/// From a device to its children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceChildren {
    /// `device.p`
    pub p: Field,
    pub private: DevicePrivate,
    pub klist: Klist,
    pub klist_node: KlistNode,
}

impl DeviceChildren {
    pub(super) fn resolve(from: &mut Resolver<'_>) -> DeviceChildren {
        DeviceChildren {
            p: from.field("device", &["p"]),
            private: DevicePrivate::resolve(from),
            klist: Klist::resolve(from),
            klist_node: KlistNode::resolve(from),
        }
    }
}
