//! Kinds of addresses as types, so that one cannot be taken for another.

use std::fmt;

/// Bytes of a page frame on x86-64.
pub const PAGE_BYTES: u64 = 4096;

/// Guest physical address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

/// Guest virtual address, in the kernel's half.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gva(pub u64);

/// Page frame number: guest physical address divided by the page size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pfn(pub u64);

impl Gpa {
    /// The frame this address is in.
    pub fn pfn(self) -> Pfn {
        Pfn(self.0 / PAGE_BYTES)
    }
}

impl Gva {
    /// The address `bytes` further on; a hostile sum wraps and is found unreadable.
    pub fn offset(self, bytes: u64) -> Gva {
        Gva(self.0.wrapping_add(bytes))
    }

    /// The struct whose member at `offset` is here (container_of).
    pub fn container(self, offset: u32) -> Gva {
        Gva(self.0.wrapping_sub(u64::from(offset)))
    }

    /// Whether this is a null pointer.
    pub fn is_null(self) -> bool {
        self.0 == 0
    }
}

impl Pfn {
    /// The frame's first byte; None beyond the 52 bits that x86-64 has.
    pub fn gpa(self) -> Option<Gpa> {
        (self.0 < 1 << 40).then(|| Gpa(self.0 * PAGE_BYTES))
    }
}

impl fmt::Debug for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpa({:#x})", self.0)
    }
}

impl fmt::Debug for Gva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gva({:#x})", self.0)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Gva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
