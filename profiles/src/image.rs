//! The kernel's image as it lies in memory: bytes with the virtual address of the first. It never
//! reads outside of them: an address that is not in the image is None.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// A slice of the kernel's mapping, contiguous from `base`.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    /// Virtual address of `bytes[0]`.
    pub base: u64,
    pub bytes: &'a [u8],
}

impl<'a> Image<'a> {
    /// `length` bytes at a virtual address.
    pub fn at(&self, address: u64, length: usize) -> Option<&'a [u8]> {
        self.from(address)?.get(..length)
    }

    /// Everything from a virtual address to the end of the image.
    pub fn from(&self, address: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(address.checked_sub(self.base)?).ok()?;
        self.bytes.get(start..)
    }

    /// The u32 at a virtual address.
    pub fn u32(&self, address: u64) -> Option<u32> {
        self.value::<U32>(address).map(|v| v.get())
    }

    /// The u64 at a virtual address.
    pub fn u64(&self, address: u64) -> Option<u64> {
        self.value::<U64>(address).map(|v| v.get())
    }

    fn value<T: FromBytes + KnownLayout + Immutable>(&self, address: u64) -> Option<T> {
        T::read_from_prefix(self.from(address)?)
            .ok()
            .map(|(value, _)| value)
    }
}
