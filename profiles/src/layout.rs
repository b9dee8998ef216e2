//! The fields of kernel structs that are read, resolved once: a kernel that lacks one is refused
//! with its name before anything is walked. A field that only some kernels have is an Option, or
//! has its other names listed with the newest first; no code asks for a version.

use thiserror::Error;

use crate::btf::{Btf, Field};

/// Fields, structs or constants that this kernel's BTF does not have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the kernel's BTF lacks {}", .0.join(", "))]
pub struct MissingFields(pub Vec<String>);

/// Collects what is missing, so that the error names everything at once.
struct Resolver<'a> {
    btf: &'a Btf<'a>,
    missing: Vec<String>,
}

impl Resolver<'_> {
    fn optional(&self, name: &str, members: &[&str]) -> Option<Field> {
        members
            .iter()
            .find_map(|member| self.btf.field(name, member))
    }

    fn field(&mut self, name: &str, members: &[&str]) -> Field {
        self.optional(name, members).unwrap_or_else(|| {
            self.missing.push(format!("{name}.{}", members.join("|")));
            Field { offset: 0, size: 0 }
        })
    }

    fn size(&mut self, name: &str) -> u32 {
        self.btf.struct_size(name).unwrap_or_else(|| {
            self.missing.push(format!("struct {name}"));
            0
        })
    }

    fn bit(&self, of: &str, constant: &str) -> Option<u64> {
        let bit = self.btf.enumerator(of, constant)?;
        1u64.checked_shl(u32::try_from(bit).ok()?)
    }

    fn flag(&mut self, of: &str, constant: &str) -> u64 {
        self.bit(of, constant).unwrap_or_else(|| {
            self.missing.push(format!("enum {of}.{constant}"));
            0
        })
    }
}

// After `+` come fields that only some kernels have; `|` lists other names of one.
macro_rules! layouts {
    ($($(#[$doc:meta])* $layout:ident $name:literal {
        $($field:ident $(| $other:literal)*),* $(,)?
    } $(+ { $($maybe:ident $(| $maybe_other:literal)*),* $(,)? })?)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy)]
            pub struct $layout {
                /// Size of the struct in bytes.
                pub size: u32,
                $(pub $field: Field,)*
                $($(pub $maybe: Option<Field>,)*)?
            }

            impl $layout {
                fn resolve(from: &mut Resolver<'_>) -> $layout {
                    $layout {
                        size: from.size($name),
                        $($field: from.field($name, &[stringify!($field) $(, $other)*]),)*
                        $($($maybe: from.optional($name, &[stringify!($maybe) $(, $maybe_other)*]),)*)?
                    }
                }
            }
        )*
    };
}

layouts! {
    /// include/linux/types.h
    ListHead "list_head" { next, prev }
    /// include/linux/fs.h (include/linux/fs/super_types.h)
    SuperBlock "super_block" { s_list, s_blocksize, s_type, s_bdev, s_inodes, s_id }
    /// include/linux/fs.h
    FileSystemType "file_system_type" { name }
    /// include/linux/fs.h
    Inode "inode" { i_mode, i_flags, i_mapping, i_ino, i_size, i_sb_list, i_dentry }
    /// include/linux/fs.h
    AddressSpace "address_space" { host, i_pages, nrpages }
    /// include/linux/xarray.h
    Xarray "xarray" { xa_head }
    /// include/linux/xarray.h
    XaNode "xa_node" { shift, slots }
    /// include/linux/mm_types.h
    Page "page" {
        flags, mapping, private, index | "__folio_index"
    } + { compound_order }
    /// include/linux/buffer_head.h
    BufferHead "buffer_head" { b_state, b_this_page }
    /// block/bdev.c
    BdevInode "bdev_inode" { bdev, vfs_inode }
    /// include/linux/blk_types.h
    BlockDevice "block_device" {
        bd_disk, bd_start_sect, bd_nr_sectors, bd_device
    } + { bd_holders, bd_holder }
    /// include/linux/blkdev.h
    Gendisk "gendisk" { disk_name, part0 }
    /// include/linux/device.h
    Device "device" { kobj, parent }
    /// include/linux/kobject.h
    Kobject "kobject" { name }
    /// include/linux/dcache.h
    Dentry "dentry" { d_parent, d_name, d_u }
    /// include/linux/dcache.h
    Qstr "qstr" { name, len }
    /// fs/ext4/ext4.h
    Ext4InodeInfo "ext4_inode_info" { vfs_inode, i_data, i_flags }
}

/// Bits of `page.flags`, as masks (include/linux/page-flags.h).
#[derive(Debug, Clone, Copy)]
pub struct PageFlags {
    pub uptodate: u64,
    pub dirty: u64,
    pub writeback: u64,
    pub head: u64,
    /// The folio has buffer heads, on a file system that uses them.
    pub private: u64,
    /// 0 where the kernel has no such flag.
    pub error: u64,
    /// 0 where the kernel is built without CONFIG_MEMORY_FAILURE.
    pub hwpoison: u64,
}

/// Where a folio keeps its order: read `field`, counted from the head page, and mask it.
#[derive(Debug, Clone, Copy)]
pub struct FolioOrder {
    pub field: Field,
    pub mask: u64,
}

/// Everything that is read of the kernel proper.
#[derive(Debug, Clone)]
pub struct Layouts {
    pub list_head: ListHead,
    pub super_block: SuperBlock,
    pub file_system_type: FileSystemType,
    pub inode: Inode,
    pub address_space: AddressSpace,
    pub xarray: Xarray,
    pub xa_node: XaNode,
    pub page: Page,
    pub folio_order: FolioOrder,
    pub page_flags: PageFlags,
    /// BH_Uptodate of `buffer_head.b_state`, as a mask.
    pub bh_uptodate: u64,
    pub buffer_head: BufferHead,
    pub bdev_inode: BdevInode,
    pub block_device: BlockDevice,
    pub gendisk: Gendisk,
    pub device: Device,
    pub kobject: Kobject,
    pub dentry: Dentry,
    pub qstr: Qstr,
    /// Absent where ext4 is not part of this BTF.
    pub ext4_inode_info: Option<Ext4InodeInfo>,
}

impl Layouts {
    /// Resolves every field.
    ///
    /// # Errors
    /// Names all that is missing.
    pub fn resolve(btf: &Btf<'_>) -> Result<Layouts, MissingFields> {
        let mut from = Resolver {
            btf,
            missing: Vec::new(),
        };
        let page = Page::resolve(&mut from);
        let layouts = Layouts {
            list_head: ListHead::resolve(&mut from),
            super_block: SuperBlock::resolve(&mut from),
            file_system_type: FileSystemType::resolve(&mut from),
            inode: Inode::resolve(&mut from),
            address_space: AddressSpace::resolve(&mut from),
            xarray: Xarray::resolve(&mut from),
            xa_node: XaNode::resolve(&mut from),
            folio_order: folio_order(&mut from, &page),
            page,
            page_flags: PageFlags::resolve(&mut from),
            bh_uptodate: from.flag("bh_state_bits", "BH_Uptodate"),
            buffer_head: BufferHead::resolve(&mut from),
            bdev_inode: BdevInode::resolve(&mut from),
            block_device: BlockDevice::resolve(&mut from),
            gendisk: Gendisk::resolve(&mut from),
            device: Device::resolve(&mut from),
            kobject: Kobject::resolve(&mut from),
            dentry: Dentry::resolve(&mut from),
            qstr: Qstr::resolve(&mut from),
            ext4_inode_info: from
                .btf
                .has_struct("ext4_inode_info")
                .then(|| Ext4InodeInfo::resolve(&mut from)),
        };
        if from.missing.is_empty() {
            Ok(layouts)
        } else {
            Err(MissingFields(from.missing))
        }
    }
}

impl PageFlags {
    fn resolve(from: &mut Resolver<'_>) -> PageFlags {
        PageFlags {
            uptodate: from.flag("pageflags", "PG_uptodate"),
            dirty: from.flag("pageflags", "PG_dirty"),
            writeback: from.flag("pageflags", "PG_writeback"),
            head: from.flag("pageflags", "PG_head"),
            private: from.flag("pageflags", "PG_private"),
            error: from.bit("pageflags", "PG_error").unwrap_or(0),
            hwpoison: from.bit("pageflags", "PG_hwpoison").unwrap_or(0),
        }
    }
}

/// `folio._folio_order` until it moved into the low byte of `folio._flags_1`; before there were
/// folios it was `compound_order` of the page behind the head.
fn folio_order(from: &mut Resolver<'_>, page: &Page) -> FolioOrder {
    if let Some(field) = from.btf.field("folio", "_folio_order") {
        return FolioOrder { field, mask: 0xff };
    }
    if let Some(field) = from.btf.field("folio", "_flags_1") {
        return FolioOrder { field, mask: 0xff };
    }
    let Some(order) = page.compound_order else {
        from.missing
            .push("folio._folio_order|_flags_1, page.compound_order".into());
        return FolioOrder {
            field: Field { offset: 0, size: 0 },
            mask: 0,
        };
    };
    let offset = order.offset.saturating_add(page.size);
    FolioOrder {
        field: Field { offset, ..order },
        mask: 0xff,
    }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
