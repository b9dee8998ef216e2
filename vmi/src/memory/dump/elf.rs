//! ELF cores as QEMU's dump-guest-memory writes them: PT_LOAD segments carry the guest physical
//! address in p_paddr. Only the program headers are read.

use std::fs::File;
use std::os::unix::fs::FileExt;

use goblin::container::{Container, Ctx, Endian};
use goblin::elf::header::{EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, EM_386, EM_X86_64, ET_CORE};
use goblin::elf::program_header::{PT_LOAD, ProgramHeader};
use goblin::elf64::header::{Header, SIZEOF_EHDR};

use crate::layout::RamRange;

/// e_phnum says that the count is elsewhere (elf(5), PN_XNUM).
const PN_XNUM: u16 = 0xffff;
const SIZEOF_PHDR: usize = 56;

/// The segments that hold memory, in the file's order.
pub(super) fn ranges(file: &File, head: &[u8; SIZEOF_EHDR]) -> Result<Vec<RamRange>, String> {
    let header = Header::from_bytes(head);
    if head[EI_DATA] != ELFDATA2LSB
        || header.e_type != ET_CORE
        || !matches!(header.e_machine, EM_X86_64 | EM_386)
    {
        return Err("this ELF file is not the core of an x86 guest; use dump-guest-memory".into());
    }
    // QEMU goes by its first vCPU's mode and by the RAM's size.
    if head[EI_CLASS] != ELFCLASS64 {
        return Err(
            "this ELF core is 32-bit: the guest was in its firmware or boot loader when it was dumped"
                .into(),
        );
    }
    if header.e_phnum == PN_XNUM || usize::from(header.e_phentsize) != SIZEOF_PHDR {
        return Err("this ELF core has a program header table of an unusual form".into());
    }
    let count = usize::from(header.e_phnum);
    let mut table = vec![0; count * SIZEOF_PHDR];
    file.read_exact_at(&mut table, header.e_phoff)
        .map_err(|error| format!("cannot read the program headers: {error}"))?;
    let context = Ctx::new(Container::Big, Endian::Little);
    let segments = ProgramHeader::parse(&table, 0, count, context)
        .map_err(|error| format!("cannot read the program headers: {error}"))?;
    let loads = segments
        .iter()
        .filter(|segment| segment.p_type == PT_LOAD && segment.p_filesz > 0);
    Ok(loads
        .map(|segment| RamRange {
            gpa: segment.p_paddr,
            bytes: segment.p_filesz,
            block: 0,
            offset: segment.p_offset,
        })
        .collect())
}
