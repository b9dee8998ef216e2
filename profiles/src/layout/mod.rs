//! The fields of kernel structs that are read, resolved once: a kernel that lacks one is refused
//! with its name before anything is walked. A field that only some kernels have is an Option, or
//! has its other names listed with the newest first; no code asks for a version.

use thiserror::Error;

use crate::types::{Field, Layers, Names, Recorder, Recording, Types};

/// Types may be hostile: a struct beyond this is none. The largest that is read has a few KiB.
const STRUCT_BYTES_MAX: u32 = 1 << 16;

/// Fields, structs or constants that this kernel's types do not have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the kernel's types lack {}", .0.join(", "))]
pub struct MissingFields(pub Vec<String>);

/// Collects what is missing, so that the error names everything at once.
///
/// Every name is asked for whatever was found before: what is asked of a source that knows nothing
/// is all that is ever needed ([`Layouts::names`]).
struct Resolver<'a> {
    types: &'a dyn Types,
    missing: Vec<String>,
}

impl<'a> Resolver<'a> {
    fn new(types: &'a dyn Types) -> Resolver<'a> {
        Resolver {
            types,
            missing: Vec::new(),
        }
    }

    /// What `resolve` makes, unless something is missing.
    fn complete<T>(
        types: &'a dyn Types,
        resolve: impl FnOnce(&mut Resolver<'a>) -> T,
    ) -> Result<T, MissingFields> {
        let mut from = Resolver::new(types);
        let resolved = resolve(&mut from);
        if from.missing.is_empty() {
            Ok(resolved)
        } else {
            Err(MissingFields(from.missing))
        }
    }

    /// The first of the members that there is.
    fn optional(&self, name: &str, members: &[&str]) -> Option<Field> {
        let mut found = members.iter().map(|member| {
            // A member may be called like a keyword of Rust.
            let member = member.strip_prefix("r#").unwrap_or(member);
            let field = self.types.field(name, member)?;
            let end = field.offset.checked_add(field.size)?;
            (end <= self.types.struct_size(name)?.min(STRUCT_BYTES_MAX)).then_some(field)
        });
        found.find_map(|field| field)
    }

    fn field(&mut self, name: &str, members: &[&str]) -> Field {
        self.optional(name, members).unwrap_or_else(|| {
            // Of a struct that is missing as a whole the members are not worth a word.
            if self.types.struct_size(name).is_some() {
                let names = members.join("|").replace("r#", "");
                self.missing.push(format!("{name}.{names}"));
            }
            Field { offset: 0, size: 0 }
        })
    }

    fn size(&mut self, name: &str) -> u32 {
        let size = self.types.struct_size(name);
        size.filter(|&size| size <= STRUCT_BYTES_MAX)
            .unwrap_or_else(|| {
                self.missing.push(format!("struct {name}"));
                0
            })
    }

    fn bit(&self, of: &str, constant: &str) -> Option<u64> {
        let bit = self.types.enumerator(of, constant)?;
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
            #[derive(Debug, Clone, Copy, PartialEq, Eq)]
            pub struct $layout {
                /// Size of the struct in bytes.
                pub size: u32,
                $(pub $field: $crate::types::Field,)*
                $($(pub $maybe: Option<$crate::types::Field>,)*)?
            }

            impl $layout {
                fn resolve(from: &mut $crate::layout::Resolver<'_>) -> $layout {
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

mod btrfs;
mod device;
mod dm;
mod ext4;
mod module;
mod xfs;

pub use btrfs::*;
pub use device::*;
pub use dm::*;
pub use ext4::*;
pub use module::*;
pub use xfs::*;

layouts! {
    /// include/linux/types.h
    ListHead "list_head" { next, prev }
    /// include/linux/fs.h (include/linux/fs/super_types.h)
    SuperBlock "super_block" {
        s_list, s_blocksize, s_type, s_bdev, s_inodes, s_id, s_fs_info
    }
    /// include/linux/fs.h
    FileSystemType "file_system_type" { name }
    /// include/linux/fs.h
    Inode "inode" { i_mode, i_flags, i_mapping, i_ino, i_size, i_sb_list, i_dentry }
    /// include/linux/fs.h
    AddressSpace "address_space" { host, i_pages, nrpages, wb_err }
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
    BlockDevice "block_device" { bd_disk } + { bd_holders, bd_holder }
    /// include/linux/blkdev.h
    Gendisk "gendisk" { disk_name, part0, private_data }
    /// include/linux/device.h
    Device "device" { kobj, parent }
    /// include/linux/kobject.h
    Kobject "kobject" { name }
    /// include/linux/dcache.h
    Dentry "dentry" { d_parent, d_name, d_u | "d_alias" }
    /// include/linux/dcache.h
    Qstr "qstr" { name, len }
    /// include/linux/rbtree.h
    RbNode "rb_node" { rb_left, rb_right }
    /// include/linux/rbtree.h
    RbRoot "rb_root" { rb_node }
}

/// Bits of `page.flags`, as masks (include/linux/page-flags.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageFlags {
    pub locked: u64,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FolioOrder {
    pub field: Field,
    pub mask: u64,
}

/// Where a block device's first sector, length and device are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partition {
    /// In the block_device; `gendisk.part0` points to that of the whole disk.
    BlockDevice {
        bd_start_sect: Field,
        bd_nr_sectors: Field,
        bd_device: Field,
    },
    /// In the hd_struct that `block_device.bd_part` points to while the device is open;
    /// `gendisk.part0` is the whole disk's (until 0d02129e76ed, "block: merge struct
    /// block_device and struct hd_struct").
    HdStruct {
        bd_part: Field,
        start_sect: Field,
        nr_sects: Field,
        /// The device, `__dev`.
        device: Field,
    },
}

/// Where locks say that someone is changing what they guard. A kernel with CONFIG_PREEMPT_RT has
/// neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locks {
    /// Of struct rw_semaphore; bit 0 is set while a writer holds it.
    pub rw_semaphore_count: Option<Field>,
    /// Of struct qrwlock, which a rwlock_t begins with; 0xff while a writer holds it.
    pub qrwlock_wlocked: Option<Field>,
}

/// Everything that is read of a kernel's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    pub partition: Partition,
    pub gendisk: Gendisk,
    pub device: Device,
    /// A device's children: only disks on ATA ports need them.
    pub device_children: Result<DeviceChildren, MissingFields>,
    pub kobject: Kobject,
    pub dentry: Dentry,
    pub qstr: Qstr,
    pub rb_node: RbNode,
    pub rb_root: RbRoot,
    pub locks: Locks,
    /// Where the kernel keeps the BTF of its modules.
    pub btf_modules: Result<BtfModules, MissingFields>,
    /// Modules on most kernels: each may be without types, and then says what it lacks.
    pub ext4: Result<Ext4, MissingFields>,
    pub xfs: Result<Xfs, MissingFields>,
    pub btrfs: Result<Btrfs, MissingFields>,
    /// Device mapper.
    pub dm: Result<Dm, MissingFields>,
}

impl Layouts {
    /// Resolves every field. A file system or device mapper that the types lack is an Err of its
    /// own.
    ///
    /// # Errors
    /// Names all that is missing of the kernel proper.
    pub fn resolve(types: &dyn Types) -> Result<Layouts, MissingFields> {
        Resolver::complete(types, Layouts::resolve_core)
    }

    /// What of these types a profile has to keep.
    pub fn record(types: &dyn Types) -> Recording {
        Layouts::ask(types).0
    }

    /// Every name that is ever asked for.
    pub fn names() -> Names {
        Layouts::ask(&Layers(Vec::new())).1
    }

    fn ask(types: &dyn Types) -> (Recording, Names) {
        let recorder = Recorder::new(types);
        // What is missing is simply not recorded.
        drop(Layouts::resolve(&recorder));
        recorder.finish()
    }

    fn resolve_core(from: &mut Resolver<'_>) -> Layouts {
        let page = Page::resolve(from);
        Layouts {
            list_head: ListHead::resolve(from),
            super_block: SuperBlock::resolve(from),
            file_system_type: FileSystemType::resolve(from),
            inode: Inode::resolve(from),
            address_space: AddressSpace::resolve(from),
            xarray: Xarray::resolve(from),
            xa_node: XaNode::resolve(from),
            folio_order: folio_order(from, &page),
            page,
            page_flags: PageFlags::resolve(from),
            bh_uptodate: from.flag("bh_state_bits", "BH_Uptodate"),
            buffer_head: BufferHead::resolve(from),
            bdev_inode: BdevInode::resolve(from),
            block_device: BlockDevice::resolve(from),
            partition: Partition::resolve(from),
            gendisk: Gendisk::resolve(from),
            device: Device::resolve(from),
            device_children: Resolver::complete(from.types, DeviceChildren::resolve),
            kobject: Kobject::resolve(from),
            dentry: Dentry::resolve(from),
            qstr: Qstr::resolve(from),
            rb_node: RbNode::resolve(from),
            rb_root: RbRoot::resolve(from),
            locks: Locks::resolve(from),
            btf_modules: Resolver::complete(from.types, BtfModules::resolve),
            ext4: Resolver::complete(from.types, Ext4::resolve),
            xfs: Resolver::complete(from.types, Xfs::resolve),
            btrfs: Resolver::complete(from.types, Btrfs::resolve),
            dm: Resolver::complete(from.types, Dm::resolve),
        }
    }

    /// The optional groups by the names of their modules, and what each lacks.
    pub fn modules(&self) -> [(&'static str, Option<&MissingFields>); 4] {
        [
            ("ext4", self.ext4.as_ref().err()),
            ("xfs", self.xfs.as_ref().err()),
            ("btrfs", self.btrfs.as_ref().err()),
            ("dm_mod", self.dm.as_ref().err()),
        ]
    }
}

impl Partition {
    fn resolve(from: &mut Resolver<'_>) -> Partition {
        let of = |name, members: &[&str]| from.optional(name, members);
        let own = (
            of("block_device", &["bd_start_sect"]),
            of("block_device", &["bd_nr_sectors"]),
            of("block_device", &["bd_device"]),
        );
        let part = (
            of("block_device", &["bd_part"]),
            of("hd_struct", &["start_sect"]),
            of("hd_struct", &["nr_sects"]),
            of("hd_struct", &["__dev"]),
        );
        match (own, part) {
            ((Some(bd_start_sect), Some(bd_nr_sectors), Some(bd_device)), _) => {
                Partition::BlockDevice {
                    bd_start_sect,
                    bd_nr_sectors,
                    bd_device,
                }
            }
            (_, (Some(bd_part), Some(start_sect), Some(nr_sects), Some(device))) => {
                Partition::HdStruct {
                    bd_part,
                    start_sect,
                    nr_sects,
                    device,
                }
            }
            _ => {
                from.missing.push(
                    "block_device.bd_start_sect, .bd_nr_sectors, .bd_device or \
                     block_device.bd_part with hd_struct.start_sect, .nr_sects, .__dev"
                        .into(),
                );
                let none = Field { offset: 0, size: 0 };
                Partition::BlockDevice {
                    bd_start_sect: none,
                    bd_nr_sectors: none,
                    bd_device: none,
                }
            }
        }
    }
}

impl Locks {
    fn resolve(from: &mut Resolver<'_>) -> Locks {
        Locks {
            rw_semaphore_count: from.optional("rw_semaphore", &["count"]),
            qrwlock_wlocked: from.optional("qrwlock", &["wlocked"]),
        }
    }
}

impl PageFlags {
    fn resolve(from: &mut Resolver<'_>) -> PageFlags {
        PageFlags {
            locked: from.flag("pageflags", "PG_locked"),
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
    let behind_head = page.compound_order.map(|order| Field {
        offset: order.offset.saturating_add(page.size),
        ..order
    });
    let in_folio = ["_folio_order", "_flags_1"].map(|member| from.optional("folio", &[member]));
    let field = in_folio.into_iter().flatten().next().or(behind_head);
    if field.is_none() {
        let names = "folio._folio_order|_flags_1, page.compound_order";
        from.missing.push(names.into());
    }
    FolioOrder {
        field: field.unwrap_or(Field { offset: 0, size: 0 }),
        mask: 0xff,
    }
}

#[cfg(test)]
mod tests;
