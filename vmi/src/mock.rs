//! A guest made by hand, for tests: RAM in which tests build the kernel's structs field by field,
//! with layouts of no real kernel, so that nothing can lean on a known offset.

use profiles::layout::{
    AddressSpace, BdevInode, BlockDevice, BtfBlob, BtfModule, BtfModules, BufferHead, Dentry,
    Device, DeviceChildren, DevicePrivate, Dm, DmDev, DmTable, DmTarget, Ext4, Ext4InodeInfo,
    Ext4SbInfo, FileSystemType, FolioOrder, Gendisk, Inode, Klist, KlistNode, Kobject, Layouts,
    LinearC, ListHead, Locks, MappedDevice, Page, PageFlags, Partition, Qstr, RbNode, RbRoot,
    SuperBlock, TargetType, XaNode, Xarray,
};
use profiles::{Field, Identity, Layers, Profile};

use crate::address::{Gpa, Gva, PAGE_BYTES};
use crate::attach::ProfileOrigin;
use crate::kernel::{Kernel, KernelInfo, Space};
use crate::layout::RamRange;
use crate::memory::{GuestMemory, MemoryError};
use crate::paging::PageTable;

pub(crate) mod btrfs;
pub(crate) mod xfs;

pub(crate) const RAM_BYTES: u64 = 8 << 20;
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const VMEMMAP: u64 = 1 << 20;
const HEAP: u64 = 2 << 20;
/// Frames from here on are for page cache.
pub(crate) const CACHE_PFN: u64 = (4 << 20) / PAGE_BYTES;

pub(crate) const LOCKED: u64 = 1 << 0;
pub(crate) const UPTODATE: u64 = 1 << 3;
pub(crate) const DIRTY: u64 = 1 << 4;
pub(crate) const WRITEBACK: u64 = 1 << 1;
const HEAD: u64 = 1 << 6;
pub(crate) const PRIVATE: u64 = 1 << 9;
const ERROR: u64 = 1 << 11;
const HWPOISON: u64 = 1 << 20;

pub(crate) const S_IFREG: u64 = 0o100_644;
pub(crate) const S_IFBLK: u64 = 0o060_600;
pub(crate) const EXTENTS_FL: u64 = 0x8_0000;

/// RAM from guest physical address 0 on.
#[derive(Debug, Clone)]
pub(crate) struct MockGuest {
    pub(crate) ram: Vec<u8>,
    ranges: Vec<RamRange>,
    heap: u64,
    super_blocks: Gva,
    pub(crate) layouts: Layouts,
}

/// A target of a mapped device: kind, bytes, and for a linear one the device and the offset there.
pub(crate) type MockTarget<'t> = (&'t str, u64, Option<(Gva, u64)>);

/// A folio to put into a mapping.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MockFolio {
    pub(crate) index: u64,
    pub(crate) order: u32,
    pub(crate) pfn: u64,
    pub(crate) flags: u64,
}

impl GuestMemory for MockGuest {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        let bytes = buf.len();
        let piece = usize::try_from(gpa.0)
            .ok()
            .and_then(|at| self.ram.get(at..)?.get(..bytes));
        buf.copy_from_slice(piece.ok_or(MemoryError::NotRam { gpa, bytes })?);
        Ok(())
    }

    fn ranges(&self) -> &[RamRange] {
        &self.ranges
    }
}

impl MockGuest {
    pub(crate) fn new() -> MockGuest {
        let ranges = vec![RamRange {
            gpa: 0,
            bytes: RAM_BYTES,
            block: 0,
            offset: 0,
        }];
        let mut guest = MockGuest {
            ram: vec![0; RAM_BYTES as usize],
            ranges,
            heap: HEAP,
            super_blocks: Gva(0),
            layouts: layouts(),
        };
        // The direct mapping, as one page of 1 GiB.
        guest.write(
            PML4 + 8 * (DIRECT_MAP >> 39 & 511),
            &(PDPT | 1).to_le_bytes(),
        );
        guest.write(PDPT, &(1u64 | 1 << 7).to_le_bytes());
        guest.super_blocks = guest.alloc(16);
        guest.init_list(guest.super_blocks);
        guest
    }

    /// The kernel, as attach would find it.
    pub(crate) fn kernel(&self) -> Kernel<'_> {
        let mut space = Space::new(
            self,
            PageTable {
                root: Gpa(PML4),
                levels: 4,
            },
        );
        space.use_direct_map(DIRECT_MAP);
        let info = KernelInfo {
            release: "mock".into(),
            build_id: None,
            stext: 0,
            phys_base: 0,
            page_table_levels: 4,
        };
        let identity = Identity {
            release: "mock".into(),
            build_id: None,
        };
        Kernel {
            info,
            space,
            layouts: self.layouts.clone(),
            super_blocks: self.super_blocks,
            vmemmap: Gva(DIRECT_MAP + VMEMMAP),
            btf_modules: None,
            profile: Profile::new(identity, &Layers(Vec::new()), 0, |_| None),
            origin: ProfileOrigin::Given,
            profile_problem: None,
        }
    }

    pub(crate) fn write(&mut self, gpa: u64, bytes: &[u8]) {
        self.ram[gpa as usize..gpa as usize + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn alloc(&mut self, bytes: u32) -> Gva {
        let at = self.heap;
        self.heap += u64::from(bytes).next_multiple_of(64);
        assert!(
            self.heap <= CACHE_PFN * PAGE_BYTES,
            "the mock's heap is full"
        );
        Gva(DIRECT_MAP + at)
    }

    pub(crate) fn gpa(at: Gva) -> u64 {
        at.0 - DIRECT_MAP
    }

    pub(crate) fn put(&mut self, base: Gva, field: Field, value: u64) {
        let at = Self::gpa(base.offset(field.offset.into()));
        self.write(at, &value.to_le_bytes()[..(field.size as usize).min(8)]);
    }

    pub(crate) fn get(&self, base: Gva, field: Field) -> u64 {
        let at = Self::gpa(base.offset(field.offset.into())) as usize;
        u64::from_le_bytes(self.ram[at..at + 8].try_into().unwrap())
    }

    fn text(&mut self, text: &str) -> u64 {
        let at = self.alloc(text.len() as u32 + 1);
        self.write(Self::gpa(at), text.as_bytes());
        at.0
    }

    fn init_list(&mut self, head: Gva) {
        self.put(head, self.layouts.list_head.next, head.0);
        self.put(head, self.layouts.list_head.prev, head.0);
    }

    /// list_add_tail
    fn list_add(&mut self, link: Gva, head: Gva) {
        let list = self.layouts.list_head;
        let last = Gva(self.get(head, list.prev));
        self.put(last, list.next, link.0);
        self.put(link, list.prev, last.0);
        self.put(link, list.next, head.0);
        self.put(head, list.prev, link.0);
    }

    pub(crate) fn super_block(&mut self, fs: &str, id: &str, block_bytes: u64, bdev: Gva) -> Gva {
        let layout = self.layouts.super_block;
        let kind = self.alloc(self.layouts.file_system_type.size);
        let name = self.text(fs);
        self.put(kind, self.layouts.file_system_type.name, name);
        let sb = self.alloc(layout.size);
        self.put(sb, layout.s_type, kind.0);
        self.put(sb, layout.s_blocksize, block_bytes);
        self.put(sb, layout.s_bdev, bdev.0);
        self.write(
            Self::gpa(sb.offset(layout.s_id.offset.into())),
            id.as_bytes(),
        );
        if fs.starts_with("ext") {
            let sb_info = self.layouts.ext4.as_ref().unwrap().sb_info;
            let info = self.alloc(sb_info.size);
            self.put(info, sb_info.s_sb, sb.0);
            self.put(sb, layout.s_fs_info, info.0);
        }
        self.init_list(sb.offset(layout.s_inodes.offset.into()));
        self.list_add(sb.offset(layout.s_list.offset.into()), self.super_blocks);
        sb
    }

    /// An inode at `inode` with a mapping of its own.
    fn inode_at(&mut self, inode: Gva, sb: Gva, mode: u64, size_bytes: u64) {
        let layout = self.layouts.inode;
        let mapping = self.alloc(self.layouts.address_space.size);
        self.put(mapping, self.layouts.address_space.host, inode.0);
        self.put(inode, layout.i_mapping, mapping.0);
        self.put(inode, layout.i_mode, mode);
        self.put(inode, layout.i_size, size_bytes);
        self.put(inode, layout.i_ino, inode.0 & 0xffff);
        let head = sb.offset(self.layouts.super_block.s_inodes.offset.into());
        self.list_add(inode.offset(layout.i_sb_list.offset.into()), head);
    }

    /// A regular file of ext4 with these i_data.
    pub(crate) fn ext4_file(&mut self, sb: Gva, size_bytes: u64, i_data: &[u8; 60]) -> Gva {
        let layout = self.layouts.ext4.as_ref().unwrap().inode_info;
        let info = self.alloc(layout.size);
        let inode = info.offset(layout.vfs_inode.offset.into());
        self.inode_at(inode, sb, S_IFREG, size_bytes);
        self.put(info, layout.i_flags, EXTENTS_FL);
        self.write(Self::gpa(info.offset(layout.i_data.offset.into())), i_data);
        inode
    }

    pub(crate) fn set_ext4_flags(&mut self, inode: Gva, flags: u64) {
        let layout = self.layouts.ext4.as_ref().unwrap().inode_info;
        self.put(
            inode.container(layout.vfs_inode.offset),
            layout.i_flags,
            flags,
        );
    }

    pub(crate) fn set_mode(&mut self, inode: Gva, mode: u64) {
        self.put(inode, self.layouts.inode.i_mode, mode);
    }

    /// A virtio disk behind a PCI function, and its whole block device; in the super block "bdev".
    pub(crate) fn disk(&mut self, bdev_sb: Gva, name: &str, pci: &str, bytes: u64) -> Gva {
        self.disk_below(bdev_sb, &[name, "virtio0", pci, "pci0000:00"], bytes)
    }

    /// A disk with these names of its device and the parents.
    pub(crate) fn disk_below(&mut self, bdev_sb: Gva, names: &[&str], bytes: u64) -> Gva {
        let disk = self.alloc(self.layouts.gendisk.size);
        let at = Self::gpa(disk.offset(self.layouts.gendisk.disk_name.offset.into()));
        self.write(at, names[0].as_bytes());
        let bdev = self.block_device(bdev_sb, disk, 0, bytes);
        self.put(disk, self.layouts.gendisk.part0, bdev.0);
        let mut device = bdev.offset(BD_DEVICE.offset.into());
        self.name_device(device, names[0]);
        for name in &names[1..] {
            let parent = self.device(name);
            self.put(device, self.layouts.device.parent, parent.0);
            device = parent;
        }
        bdev
    }

    pub(crate) fn device(&mut self, name: &str) -> Gva {
        let device = self.alloc(self.layouts.device.size);
        self.name_device(device, name);
        let private = self.alloc(self.children().private.size);
        let layout = self.children();
        self.put(device, layout.p, private.0);
        self.put(private, layout.private.device, device.0);
        self.init_list(self.klist_children(private));
        device
    }

    fn name_device(&mut self, device: Gva, name: &str) {
        let name = self.text(name);
        let kobj = device.offset(self.layouts.device.kobj.offset.into());
        self.put(kobj, self.layouts.kobject.name, name);
    }

    fn klist_children(&self, private: Gva) -> Gva {
        let layout = self.children();
        private.offset((layout.private.klist_children.offset + layout.klist.k_list.offset).into())
    }

    fn children(&self) -> DeviceChildren {
        self.layouts.device_children.clone().unwrap()
    }

    /// klist_add_tail of one device to the children of another.
    pub(crate) fn add_child(&mut self, parent: Gva, child: Gva) {
        let layout = self.children();
        let private = |device| Gva(self.get(device, layout.p));
        let (parent, child) = (private(parent), private(child));
        let node = layout.private.knode_parent.offset + layout.klist_node.n_node.offset;
        self.list_add(child.offset(node.into()), self.klist_children(parent));
    }

    /// The struct that the file system keeps of its own for a mount.
    pub(crate) fn fs_info(&self, sb: Gva) -> Gva {
        Gva(self.get(sb, self.layouts.super_block.s_fs_info))
    }

    /// The device so many levels above a disk's own.
    pub(crate) fn device_above(&self, bdev: Gva, levels: usize) -> Gva {
        let mut device = bdev.offset(BD_DEVICE.offset.into());
        for _ in 0..levels {
            device = Gva(self.get(device, self.layouts.device.parent));
        }
        device
    }

    /// A mapped device of these targets.
    pub(crate) fn mapped(&mut self, bdev_sb: Gva, name: &str, targets: &[MockTarget<'_>]) -> Gva {
        let layout = self.layouts.dm.clone().unwrap();
        let bytes = targets.iter().map(|target| target.1).sum();
        let bdev = self.disk_below(bdev_sb, &[name], bytes);
        let gendisk = self.gendisk_of(bdev);
        let md = self.alloc(layout.mapped_device.size);
        let table = self.alloc(layout.table.size);
        let array = self.alloc(layout.target.size * targets.len() as u32);
        self.put(gendisk, self.layouts.gendisk.private_data, md.0);
        self.put(md, layout.mapped_device.disk, gendisk.0);
        self.put(md, layout.mapped_device.map, table.0);
        self.put(table, layout.table.md, md.0);
        self.put(table, layout.table.num_targets, targets.len() as u64);
        self.put(table, layout.table.targets, array.0);
        let mut begin = 0;
        for (at, (kind, bytes, linear)) in (0..).zip(targets) {
            let target = array.offset(at * u64::from(layout.target.size));
            let (kind, text) = (self.alloc(layout.target_type.size), self.text(kind));
            self.put(kind, layout.target_type.name, text);
            self.put(target, layout.target.table, table.0);
            self.put(target, layout.target.r#type, kind.0);
            self.put(target, layout.target.begin, begin / 512);
            self.put(target, layout.target.len, bytes / 512);
            begin += bytes;
            if let Some((below, start)) = linear {
                let (private, dev) = (self.alloc(layout.linear.size), self.alloc(layout.dev.size));
                self.put(target, layout.target.private, private.0);
                self.put(private, layout.linear.dev, dev.0);
                self.put(private, layout.linear.start, start / 512);
                self.put(dev, layout.dev.bdev, below.0);
            }
        }
        bdev
    }

    /// The struct dm_dev of a mapped device's first target.
    pub(crate) fn dm_dev_of(&self, bdev: Gva) -> Gva {
        let layout = self.layouts.dm.as_ref().unwrap();
        let private = self.layouts.gendisk.private_data;
        let md = Gva(self.get(self.gendisk_of(bdev), private));
        let table = Gva(self.get(md, layout.mapped_device.map));
        let target = Gva(self.get(table, layout.table.targets));
        let linear = Gva(self.get(target, layout.target.private));
        Gva(self.get(linear, layout.linear.dev))
    }

    /// A block device from `start` on, with an inode.
    pub(crate) fn block_device(&mut self, sb: Gva, disk: Gva, start: u64, bytes: u64) -> Gva {
        let layout = self.layouts.bdev_inode;
        let both = self.alloc(layout.size);
        self.inode_at(
            both.offset(layout.vfs_inode.offset.into()),
            sb,
            S_IFBLK,
            bytes,
        );
        let bdev = both.offset(layout.bdev.offset.into());
        let layout = self.layouts.block_device;
        self.put(bdev, layout.bd_disk, disk.0);
        self.put(bdev, BD_START_SECT, start / 512);
        self.put(bdev, BD_NR_SECTORS, bytes / 512);
        bdev
    }

    pub(crate) fn gendisk_of(&self, bdev: Gva) -> Gva {
        Gva(self.get(bdev, self.layouts.block_device.bd_disk))
    }

    pub(crate) fn part0_of(&self, bdev: Gva) -> Gva {
        Gva(self.get(self.gendisk_of(bdev), self.layouts.gendisk.part0))
    }

    pub(crate) fn inode_of(&self, bdev: Gva) -> Gva {
        let layout = self.layouts.bdev_inode;
        bdev.container(layout.bdev.offset)
            .offset(layout.vfs_inode.offset.into())
    }

    pub(crate) fn mapping(&self, inode: Gva) -> Gva {
        Gva(self.get(inode, self.layouts.inode.i_mapping))
    }

    /// An empty list.
    pub(crate) fn list(&mut self) -> Gva {
        let head = self.alloc(16);
        self.init_list(head);
        head
    }

    /// A module of this name in the list of those that have BTF.
    pub(crate) fn btf_module(&mut self, head: Gva, name: &str, data: &[u8], data_size: u64) {
        let layout = self.layouts.btf_modules.clone().unwrap();
        let (module, btf) = (
            self.alloc(layout.btf_module.size),
            self.alloc(layout.btf.size),
        );
        let at = self.alloc(data.len() as u32);
        self.write(Self::gpa(at), data);
        self.write(
            Self::gpa(btf.offset(layout.btf.name.offset.into())),
            name.as_bytes(),
        );
        self.put(btf, layout.btf.data, at.0);
        self.put(btf, layout.btf.data_size, data_size);
        self.put(module, layout.btf_module.btf, btf.0);
        self.list_add(module.offset(layout.btf_module.list.offset.into()), head);
    }

    /// A dentry, its own parent where none is given.
    pub(crate) fn dentry(&mut self, parent: Option<Gva>, name: &str) -> Gva {
        let layout = self.layouts.dentry;
        let dentry = self.alloc(layout.size);
        self.put(dentry, layout.d_parent, parent.unwrap_or(dentry).0);
        let text = self.text(name);
        let qstr = dentry.offset(layout.d_name.offset.into());
        self.put(qstr, self.layouts.qstr.len, name.len() as u64);
        self.put(qstr, self.layouts.qstr.name, text);
        dentry
    }

    /// Address of a frame's struct page.
    pub(crate) fn page(pfn: u64) -> Gva {
        Gva(DIRECT_MAP + VMEMMAP + 64 * pfn)
    }

    /// Fills an inode's page cache.
    pub(crate) fn cache(&mut self, inode: Gva, folios: &[MockFolio]) {
        let mapping = self.mapping(inode);
        let layout = self.layouts.page;
        let mut pages = 0;
        for folio in folios {
            let page = Self::page(folio.pfn);
            let head = if folio.order > 0 { HEAD } else { 0 };
            self.put(page, layout.flags, folio.flags | head);
            self.put(page, layout.mapping, mapping.0);
            self.put(page, layout.index, folio.index);
            if folio.order > 0 {
                self.put(page, self.layouts.folio_order.field, u64::from(folio.order));
            }
            pages += 1 << folio.order;
        }
        self.put(mapping, self.layouts.address_space.nrpages, pages);
        let entries: Vec<(u64, u32, u64)> = folios
            .iter()
            .map(|f| (f.index, f.order, Self::page(f.pfn).0))
            .collect();
        let xarray = mapping.offset(self.layouts.address_space.i_pages.offset.into());
        self.xarray(xarray, &entries);
    }

    /// Stores (index, order, entry), as xas_store lays them out.
    pub(crate) fn xarray(&mut self, xarray: Gva, entries: &[(u64, u32, u64)]) {
        let last = entries
            .iter()
            .map(|e| e.0 + (1 << e.1) - 1)
            .max()
            .unwrap_or(0);
        let head = match entries {
            [] => 0,
            [(0, 0, entry)] => *entry,
            _ => {
                let mut shift = 0;
                while last >> shift > 63 {
                    shift += 6;
                }
                self.xa_node(shift, 0, entries)
            }
        };
        self.put(xarray, self.layouts.xarray.xa_head, head);
    }

    fn xa_node(&mut self, shift: u32, base: u64, entries: &[(u64, u32, u64)]) -> u64 {
        let layout = self.layouts.xa_node;
        let node = self.alloc(layout.size);
        self.put(node, layout.shift, shift.into());
        let mut slots = [0u64; 64];
        for slot in 0..64u64 {
            let start = base + (slot << shift);
            let below: Vec<(u64, u32, u64)> = entries
                .iter()
                .copied()
                .filter(|e| e.1 < shift && e.0 >> shift == start >> shift)
                .collect();
            if !below.is_empty() {
                slots[slot as usize] = self.xa_node(shift - 6, start, &below);
            }
            if let Some(own) = entries.iter().find(|e| e.1 >= shift && e.0 == start) {
                slots[slot as usize] = own.2;
                for sibling in 1..1u64 << (own.1 - shift) {
                    slots[(slot + sibling) as usize] = slot << 2 | 2;
                }
            }
        }
        let at = Self::gpa(node.offset(layout.slots.offset.into()));
        for (slot, value) in slots.into_iter().enumerate() {
            self.write(at + 8 * slot as u64, &value.to_le_bytes());
        }
        node.0 | 2
    }
}

/// i_data of an inode whose tree has one level: (logical, blocks, physical, unwritten).
pub(crate) fn leaf(extents: &[(u32, u16, u64, bool)]) -> [u8; 60] {
    let mut bytes = [0; 60];
    let leaf = leaf_bytes(extents, 4);
    bytes[..leaf.len()].copy_from_slice(&leaf);
    bytes
}

pub(crate) fn leaf_bytes(extents: &[(u32, u16, u64, bool)], max: u16) -> Vec<u8> {
    let mut bytes = header(extents.len() as u16, max, 0);
    for &(logical, blocks, physical, unwritten) in extents {
        bytes.extend(logical.to_le_bytes());
        bytes.extend((blocks + if unwritten { 1 << 15 } else { 0 }).to_le_bytes());
        bytes.extend(((physical >> 32) as u16).to_le_bytes());
        bytes.extend((physical as u32).to_le_bytes());
    }
    bytes
}

pub(crate) fn header(entries: u16, max: u16, depth: u16) -> Vec<u8> {
    let words = [0xf30a, entries, max, depth, 0, 0];
    words.into_iter().flat_map(u16::to_le_bytes).collect()
}

pub(crate) fn index_bytes(entries: &[(u32, u64)], max: u16, depth: u16) -> Vec<u8> {
    let mut bytes = header(entries.len() as u16, max, depth);
    for &(logical, block) in entries {
        bytes.extend(logical.to_le_bytes());
        bytes.extend((block as u32).to_le_bytes());
        bytes.extend(((block >> 32) as u16).to_le_bytes());
        bytes.extend([0, 0]);
    }
    bytes
}

// Members of block_device that older kernels keep elsewhere.
const BD_START_SECT: Field = field(16, 8);
pub(crate) const BD_NR_SECTORS: Field = field(24, 8);
const BD_DEVICE: Field = field(64, 128);

const fn field(offset: u32, size: u32) -> Field {
    Field { offset, size }
}

fn layouts() -> Layouts {
    let order = field(64 + 40, 1);
    Layouts {
        list_head: ListHead {
            size: 16,
            next: field(0, 8),
            prev: field(8, 8),
        },
        super_block: SuperBlock {
            size: 256,
            s_list: field(32, 16),
            s_blocksize: field(56, 8),
            s_type: field(64, 8),
            s_bdev: field(88, 8),
            s_inodes: field(104, 16),
            s_id: field(128, 32),
            s_fs_info: field(168, 8),
        },
        file_system_type: FileSystemType {
            size: 64,
            name: field(16, 8),
        },
        inode: Inode {
            size: 256,
            i_mode: field(8, 2),
            i_flags: field(12, 4),
            i_mapping: field(24, 8),
            i_ino: field(40, 8),
            i_size: field(56, 8),
            i_sb_list: field(72, 16),
            i_dentry: field(96, 8),
        },
        address_space: AddressSpace {
            size: 128,
            host: field(8, 8),
            i_pages: field(24, 16),
            nrpages: field(80, 8),
            wb_err: field(96, 4),
        },
        xarray: Xarray {
            size: 16,
            xa_head: field(8, 8),
        },
        xa_node: XaNode {
            size: 576,
            shift: field(3, 1),
            slots: field(40, 512),
        },
        page: Page {
            size: 64,
            flags: field(8, 8),
            mapping: field(24, 8),
            private: field(40, 8),
            index: field(48, 8),
            compound_order: None,
        },
        folio_order: FolioOrder {
            field: order,
            mask: 0xff,
        },
        page_flags: PageFlags {
            locked: LOCKED,
            uptodate: UPTODATE,
            dirty: DIRTY,
            writeback: WRITEBACK,
            head: HEAD,
            private: PRIVATE,
            error: ERROR,
            hwpoison: HWPOISON,
        },
        bh_uptodate: 1,
        buffer_head: BufferHead {
            size: 64,
            b_state: field(16, 8),
            b_this_page: field(24, 8),
        },
        bdev_inode: BdevInode {
            size: 512,
            bdev: field(0, 200),
            vfs_inode: field(208, 256),
        },
        block_device: BlockDevice {
            size: 200,
            bd_disk: field(8, 8),
            bd_holders: Some(field(40, 4)),
            bd_holder: None,
        },
        partition: Partition::BlockDevice {
            bd_start_sect: BD_START_SECT,
            bd_nr_sectors: BD_NR_SECTORS,
            bd_device: BD_DEVICE,
        },
        gendisk: Gendisk {
            size: 128,
            disk_name: field(16, 32),
            part0: field(64, 8),
            private_data: field(80, 8),
        },
        device: Device {
            size: 128,
            kobj: field(8, 64),
            parent: field(96, 8),
        },
        device_children: Ok(DeviceChildren {
            p: field(104, 8),
            private: DevicePrivate {
                size: 256,
                klist_children: field(16, 32),
                knode_parent: field(64, 40),
                device: field(200, 8),
            },
            klist: Klist {
                size: 32,
                k_list: field(8, 16),
            },
            klist_node: KlistNode {
                size: 40,
                n_node: field(16, 16),
            },
        }),
        kobject: Kobject {
            size: 64,
            name: field(24, 8),
        },
        dentry: Dentry {
            size: 192,
            d_parent: field(24, 8),
            d_name: field(32, 16),
            d_u: field(128, 16),
        },
        qstr: Qstr {
            size: 16,
            name: field(8, 8),
            len: field(4, 4),
        },
        rb_node: RbNode {
            size: 24,
            rb_left: field(16, 8),
            rb_right: field(8, 8),
        },
        rb_root: RbRoot {
            size: 8,
            rb_node: field(0, 8),
        },
        locks: Locks {
            rw_semaphore_count: Some(field(8, 8)),
            qrwlock_wlocked: Some(field(4, 1)),
        },
        btf_modules: Ok(BtfModules {
            btf_module: BtfModule {
                size: 64,
                list: field(8, 16),
                btf: field(40, 8),
            },
            btf: BtfBlob {
                size: 256,
                data: field(16, 8),
                data_size: field(32, 4),
                name: field(64, 56),
            },
        }),
        ext4: Ok(Ext4 {
            inode_info: Ext4InodeInfo {
                size: 512,
                i_data: field(0, 60),
                i_flags: field(72, 8),
                i_data_sem: field(84, 40),
                vfs_inode: field(128, 256),
            },
            sb_info: Ext4SbInfo {
                size: 256,
                s_mount_opt: field(104, 4),
                s_sb: field(144, 8),
            },
        }),
        xfs: Ok(xfs::layout()),
        btrfs: Ok(btrfs::layout()),
        dm: Ok(Dm {
            mapped_device: MappedDevice {
                size: 256,
                map: field(40, 8),
                disk: field(120, 8),
            },
            table: DmTable {
                size: 128,
                md: field(16, 8),
                num_targets: field(72, 4),
                targets: field(96, 8),
            },
            target: DmTarget {
                size: 80,
                table: field(8, 8),
                r#type: field(16, 8),
                begin: field(24, 8),
                len: field(40, 8),
                private: field(56, 8),
            },
            target_type: TargetType {
                size: 64,
                name: field(24, 8),
            },
            dev: DmDev {
                size: 32,
                bdev: field(8, 8),
            },
            linear: LinearC {
                size: 16,
                dev: field(8, 8),
                start: field(0, 8),
            },
        }),
    }
}
