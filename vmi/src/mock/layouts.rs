//! All layouts of the hand-made guest, and those of the kernel's lists, trees and locks.

use profiles::layout::{Layouts, ListHead, Locks, RbNode, RbRoot};

use super::{block, btrfs, cache, dm, ext4, field, module, vfs, xfs};

pub(super) fn layouts() -> Layouts {
    Layouts {
        list_head: LIST_HEAD,
        super_block: vfs::SUPER_BLOCK,
        file_system_type: vfs::FILE_SYSTEM_TYPE,
        inode: vfs::INODE,
        address_space: cache::ADDRESS_SPACE,
        xarray: cache::XARRAY,
        xa_node: cache::XA_NODE,
        page: cache::PAGE,
        folio_order: cache::FOLIO_ORDER,
        page_flags: cache::PAGE_FLAGS,
        bh_uptodate: 1,
        buffer_head: cache::BUFFER_HEAD,
        bdev_inode: block::BDEV_INODE,
        block_device: block::BLOCK_DEVICE,
        partition: block::PARTITION,
        gendisk: block::GENDISK,
        device: block::DEVICE,
        device_children: Ok(block::DEVICE_CHILDREN),
        kobject: block::KOBJECT,
        dentry: vfs::DENTRY,
        qstr: vfs::QSTR,
        rb_node: RB_NODE,
        rb_root: RB_ROOT,
        locks: LOCKS,
        btf_modules: Ok(module::BTF_MODULES),
        ext4: Ok(ext4::EXT4),
        xfs: Ok(xfs::layout()),
        btrfs: Ok(btrfs::layout()),
        dm: Ok(dm::DM),
    }
}

const LIST_HEAD: ListHead = ListHead {
    size: 16,
    next: field(0, 8),
    prev: field(8, 8),
};

const RB_NODE: RbNode = RbNode {
    size: 24,
    rb_left: field(16, 8),
    rb_right: field(8, 8),
};

const RB_ROOT: RbRoot = RbRoot {
    size: 8,
    rb_node: field(0, 8),
};

const LOCKS: Locks = Locks {
    rw_semaphore_count: Some(field(8, 8)),
    qrwlock_wlocked: Some(field(4, 1)),
};
