use super::*;
use crate::layout::RamRange;
use crate::memory::MemoryError;

const RAM_BYTES: u64 = 64 << 20;
const STEXT: u64 = START_KERNEL_MAP + 0x1bc0_0000;

/// RAM with the notes and page tables that a test puts there.
struct Ram {
    bytes: Vec<u8>,
    ranges: [RamRange; 1],
    /// Frames whose read fails, as hwpoisoned ones do.
    unreadable: Vec<u64>,
}

impl GuestMemory for Ram {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        let (at, bytes) = (gpa.0 as usize, buf.len());
        let good = !self.unreadable.contains(&(gpa.0 / PAGE_BYTES));
        let piece = self
            .bytes
            .get(at..)
            .and_then(|tail| tail.get(..bytes))
            .filter(|_| good);
        buf.copy_from_slice(piece.ok_or(MemoryError::NotRam { gpa, bytes })?);
        Ok(())
    }

    fn ranges(&self) -> &[RamRange] {
        &self.ranges
    }
}

impl Ram {
    fn new() -> Ram {
        let ranges = [RamRange {
            gpa: 0,
            bytes: RAM_BYTES,
            block: 0,
            offset: 0,
        }];
        Ram {
            bytes: vec![0; RAM_BYTES as usize],
            ranges,
            unreadable: Vec::new(),
        }
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.bytes[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    fn put_note(&mut self, at: u64, text: &str) {
        let lengths = [11, text.len() as u32, 0];
        let header: Vec<u8> = lengths.into_iter().flat_map(u32::to_le_bytes).collect();
        self.put(at, &[&header, NOTE_NAME, text.as_bytes()].concat());
    }

    /// A kernel at `gpa`, its page tables at `tables`, its note at `note`.
    fn put_kernel(&mut self, release: &str, gpa: u64, tables: u64, note: u64) {
        // The table's address as a symbol of the image.
        let phys_base = gpa as i64 - (STEXT - START_KERNEL_MAP) as i64;
        let swapper = START_KERNEL_MAP.wrapping_add_signed(tables as i64 - phys_base);
        self.put_tables(tables, gpa);
        let text = format!(
            "OSRELEASE={release}\nSYMBOL(_stext)={STEXT:x}\nSYMBOL(swapper_pg_dir)={swapper:x}\n\
             NUMBER(phys_base)={phys_base}\nNUMBER(pgtable_l5_enabled)=0\n"
        );
        self.put_note(note, &text);
    }

    /// Page tables with the image that is at `gpa`.
    fn put_tables(&mut self, tables: u64, gpa: u64) {
        let entry = |level: u32| 8 * (STEXT >> (12 + 9 * level) & 511);
        self.put(tables + entry(3), &((tables + 0x1000) | 1).to_le_bytes());
        self.put(
            tables + 0x1000 + entry(2),
            &((tables + 0x2000) | 1).to_le_bytes(),
        );
        self.put(
            tables + 0x2000 + entry(1),
            &(gpa | 1 << 7 | 1).to_le_bytes(),
        );
    }
}

fn vcpu(cr3: u64) -> VcpuRegisters {
    VcpuRegisters { cr3, cr4: 0 }
}

fn by_registers(ram: &Ram, vcpus: &[VcpuRegisters]) -> Result<Found, AttachError> {
    by_note(ram, Some(&mapped_images(ram, vcpus)))
}

fn release(found: Result<Found, AttachError>) -> String {
    found.unwrap().info.text("OSRELEASE").unwrap().to_owned()
}

#[test]
fn a_note_is_believed_when_its_page_tables_lead_to_it() {
    let mut ram = Ram::new();
    ram.put_kernel("6.1", 8 << 20, 1 << 20, 40 << 20);
    let found = by_note(&ram, None).unwrap();
    assert_eq!(found.stext, Gva(STEXT));
    assert_eq!(
        found.table,
        PageTable {
            root: Gpa(1 << 20),
            levels: 4
        }
    );
    assert_eq!(release(by_registers(&ram, &[vcpu(1 << 20)])), "6.1");
    // A vCPU in user mode with PTI: the user half's table is the next page, and empty here.
    assert_eq!(
        release(by_registers(&ram, &[vcpu(1 << 20 | PTI_USER_TABLE)])),
        "6.1"
    );
    // One that runs firmware.
    assert!(matches!(
        by_registers(&ram, &[vcpu(50 << 20)]),
        Err(AttachError::Stale(_))
    ));
    // Its page tables were written over.
    ram.put(1 << 20, &[0; 4096]);
    assert!(matches!(by_note(&ram, None), Err(AttachError::Stale(text)) if text == "6.1"));
}

#[test]
fn of_several_kernels_the_one_that_a_vcpu_runs_on_is_it() {
    let mut ram = Ram::new();
    ram.put_kernel("old", 8 << 20, 1 << 20, 40 << 20);
    ram.put_kernel("new", 16 << 20, 2 << 20, 30 << 20);
    assert_eq!(release(by_registers(&ram, &[vcpu(1 << 20)])), "old");
    assert_eq!(
        release(by_registers(&ram, &[vcpu(50 << 20), vcpu(2 << 20)])),
        "new"
    );
    let ambiguous = by_note(&ram, None).unwrap_err().to_string();
    assert!(ambiguous.contains("new, old"), "{ambiguous}");
    // The same note twice is one kernel.
    let mut ram = Ram::new();
    ram.put_kernel("6.1", 8 << 20, 1 << 20, 40 << 20);
    ram.put_kernel("6.1", 8 << 20, 1 << 20, 50 << 20);
    assert_eq!(release(by_note(&ram, None)), "6.1");
}

/// The process that a vCPU ran ends while the note is looked for.
#[test]
fn page_tables_are_asked_once() {
    let mut ram = Ram::new();
    ram.put_kernel("6.1", 8 << 20, 1 << 20, 40 << 20);
    ram.put_tables(2 << 20, 8 << 20);
    let mapped = mapped_images(&ram, &[vcpu(2 << 20)]);
    ram.put(2 << 20, &[0; 4096]);
    assert_eq!(release(by_note(&ram, Some(&mapped))), "6.1");
}

#[test]
fn notes_are_found_beside_pages_that_cannot_be_read() {
    let mut ram = Ram::new();
    ram.put_kernel("6.1", 8 << 20, 1 << 20, 40 << 20);
    ram.unreadable = vec![0, (40 << 20) / PAGE_BYTES - 1];
    assert_eq!(release(by_note(&ram, None)), "6.1");
}

#[test]
fn what_is_no_linux_is_told_so() {
    let mut ram = Ram::new();
    assert!(matches!(
        by_note(&ram, None),
        Err(AttachError::NoVmcoreinfo)
    ));
    ram.put_note(4 << 20, "OSRELEASE=6.1\nSYMBOL(_stext)=ffffffff81000000\n");
    assert!(matches!(
        by_note(&ram, None),
        Err(AttachError::Vmcoreinfo("phys_base"))
    ));
    // A length that is a lie, at the end of RAM.
    ram.put(
        RAM_BYTES - 4096,
        &[
            &[11, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
            NOTE_NAME,
            NOTE_TEXT_START,
        ]
        .concat(),
    );
    assert!(by_note(&ram, None).is_err());
}

#[test]
fn an_image_ends_where_its_mapping_does() {
    let mut ram = Ram::new();
    ram.put_kernel("6.1", 8 << 20, 1 << 20, 40 << 20);
    let found = by_note(&ram, None).unwrap();
    let space = Space::new(&ram, found.table);
    let image = MappedImage::at(&space, found.stext).unwrap();
    assert_eq!(image.read(&ram).unwrap().len() as u64, IMAGE_STEP);
    assert_eq!(MappedImage::at(&space, Gva(0x1000)), None);
}
