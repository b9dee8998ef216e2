//! A guest made by hand, for tests: RAM in which tests build the kernel's structs field by field,
//! with layouts of no real kernel, so that nothing can lean on a known offset.

use profiles::layout::Layouts;
use profiles::{Field, Identity, Layers, Profile};

use crate::address::{Gpa, Gva, PAGE_BYTES};
use crate::attach::ProfileOrigin;
use crate::kernel::{Kernel, KernelInfo, Space};
use crate::layout::RamRange;
use crate::memory::{GuestMemory, MemoryError};
use crate::paging::PageTable;

pub(crate) mod block;
pub(crate) mod btrfs;
pub(crate) mod cache;
mod dm;
pub(crate) mod ext4;
mod layouts;
mod module;
mod vfs;
pub(crate) mod xfs;

pub(crate) const RAM_BYTES: u64 = 8 << 20;
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const VMEMMAP: u64 = 1 << 20;
const HEAP: u64 = 2 << 20;
/// Frames from here on are for page cache.
pub(crate) const CACHE_PFN: u64 = (4 << 20) / PAGE_BYTES;

/// RAM from guest physical address 0 on.
#[derive(Debug, Clone)]
pub(crate) struct MockGuest {
    pub(crate) ram: Vec<u8>,
    ranges: Vec<RamRange>,
    heap: u64,
    super_blocks: Gva,
    pub(crate) layouts: Layouts,
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
            layouts: layouts::layouts(),
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

    /// An empty list.
    pub(crate) fn list(&mut self) -> Gva {
        let head = self.alloc(16);
        self.init_list(head);
        head
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
}

const fn field(offset: u32, size: u32) -> Field {
    Field { offset, size }
}
