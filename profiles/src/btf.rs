//! BTF, the kernel's own description of its types (Documentation/bpf/btf.rst,
//! include/uapi/linux/btf.h). Read only, over bytes that may be hostile: every offset is checked
//! and every descent is bounded. A kind that is not known ends the parse with an error, since its
//! length is not known either.

use std::collections::HashMap;

use thiserror::Error;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

const BTF_MAGIC: u16 = 0xeb9f;

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_FLOAT: u32 = 16;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Typedefs and qualifiers followed before a type is given up. Real chains are under ten long.
const INDIRECTIONS_MAX: usize = 32;
/// Anonymous structs nested in each other. struct page, the deepest we meet, has four.
const ANONYMOUS_DEPTH_MAX: usize = 16;
/// Members looked at in one search. The largest kernel structs have a few thousand.
const MEMBERS_MAX: usize = 1 << 16;

/// Why BTF could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    #[error("not little-endian BTF: magic is {0:#06x}, expected 0xeb9f")]
    Magic(u16),
    #[error("BTF version {0} is not known, expected 1")]
    Version(u8),
    #[error("BTF is cut short: {0} does not fit into {1} bytes")]
    Truncated(&'static str, usize),
    #[error("BTF type {id} has kind {kind}, which is not known; a newer pct-vmi may know it")]
    UnknownKind { id: u32, kind: u32 },
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: U16,
    version: u8,
    flags: u8,
    hdr_len: U32,
    type_off: U32,
    type_len: U32,
    str_off: U32,
    str_len: U32,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawType {
    name_off: U32,
    info: U32,
    size_or_type: U32,
}

impl RawType {
    fn kind(&self) -> u32 {
        self.info.get() >> 24 & 0x1f
    }

    fn vlen(&self) -> usize {
        (self.info.get() & 0xffff) as usize
    }

    /// Bytes that follow the common part.
    fn trailing(&self) -> Option<usize> {
        Some(match self.kind() {
            KIND_PTR | 7..=12 | KIND_FLOAT | KIND_TYPE_TAG => 0,
            KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
            KIND_ARRAY => 12,
            KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * self.vlen(),
            KIND_ENUM | KIND_FUNC_PROTO => 8 * self.vlen(),
            _ => return None,
        })
    }
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawMember {
    name_off: U32,
    type_id: U32,
    offset: U32,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawArray {
    elem_type: U32,
    index_type: U32,
    nelems: U32,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEnum {
    name_off: U32,
    value: U32,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEnum64 {
    name_off: U32,
    low: U32,
    high: U32,
}

/// Where a member is in its struct, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    pub offset: u32,
    pub size: u32,
}

/// An index over one BTF blob.
#[derive(Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Byte offset of type `id` in `types`, at `id - 1`: type 0 is void.
    offsets: Vec<u32>,
    structs: HashMap<&'a [u8], u32>,
    enums: HashMap<&'a [u8], u32>,
}

impl<'a> Btf<'a> {
    /// Indexes a blob as it lies between `__start_BTF` and `__stop_BTF`.
    ///
    /// # Errors
    /// When it is not BTF, is cut short, or holds a kind whose length is not known.
    pub fn parse(data: &'a [u8]) -> Result<Btf<'a>, BtfError> {
        let truncated = |what| BtfError::Truncated(what, data.len());
        let (header, _) = Header::ref_from_prefix(data).map_err(|_| truncated("the header"))?;
        if header.magic.get() != BTF_MAGIC {
            return Err(BtfError::Magic(header.magic.get()));
        }
        if header.version != 1 {
            return Err(BtfError::Version(header.version));
        }
        let section = |offset: U32, length: U32| {
            let start = (header.hdr_len.get() as usize).checked_add(offset.get() as usize)?;
            data.get(start..start.checked_add(length.get() as usize)?)
        };
        let mut btf = Btf {
            types: section(header.type_off, header.type_len).ok_or(truncated("the types"))?,
            strings: section(header.str_off, header.str_len).ok_or(truncated("the strings"))?,
            offsets: Vec::new(),
            structs: HashMap::new(),
            enums: HashMap::new(),
        };
        btf.index()?;
        Ok(btf)
    }

    fn index(&mut self) -> Result<(), BtfError> {
        let truncated = BtfError::Truncated("a type", self.types.len());
        let mut at = 0;
        while at < self.types.len() {
            let Ok((raw, rest)) = RawType::ref_from_prefix(&self.types[at..]) else {
                return Err(truncated);
            };
            let id = self.offsets.len() as u32 + 1;
            let trailing = raw.trailing().ok_or(BtfError::UnknownKind {
                id,
                kind: raw.kind(),
            })?;
            if trailing > rest.len() {
                return Err(truncated);
            }
            self.offsets.push(at as u32);
            let names = match raw.kind() {
                KIND_STRUCT | KIND_UNION => Some(&mut self.structs),
                KIND_ENUM | KIND_ENUM64 => Some(&mut self.enums),
                _ => None,
            };
            let name = string(self.strings, raw.name_off.get());
            if let (Some(names), Some(name)) = (names, name)
                && !name.is_empty()
            {
                names.entry(name).or_insert(id);
            }
            at += size_of::<RawType>() + trailing;
        }
        Ok(())
    }

    /// Whether a struct or union of this name is described.
    pub fn has_struct(&self, name: &str) -> bool {
        self.structs.contains_key(name.as_bytes())
    }

    /// Size of a struct or union in bytes.
    pub fn struct_size(&self, name: &str) -> Option<u32> {
        let (raw, _) = self.raw(*self.structs.get(name.as_bytes())?)?;
        Some(raw.size_or_type.get())
    }

    /// A member of a struct or union, also one that sits in anonymous structs or unions of it.
    /// Bit fields and members without a size of their own (flexible arrays) have size 0.
    pub fn field(&self, name: &str, member: &str) -> Option<Field> {
        let id = *self.structs.get(name.as_bytes())?;
        let mut budget = MEMBERS_MAX;
        let (bits, type_id) =
            self.find_member(id, member.as_bytes(), ANONYMOUS_DEPTH_MAX, &mut budget)?;
        let size = self.size_of(type_id, INDIRECTIONS_MAX).unwrap_or(0);
        (bits % 8 == 0).then_some(Field {
            offset: bits / 8,
            size,
        })
    }

    /// Value of a constant in a named enum.
    pub fn enumerator(&self, name: &str, constant: &str) -> Option<i64> {
        let (raw, rest) = self.raw(*self.enums.get(name.as_bytes())?)?;
        let named = |name_off: U32| {
            string(self.strings, name_off.get()).is_some_and(|n| n == constant.as_bytes())
        };
        if raw.kind() == KIND_ENUM64 {
            let (values, _) = <[RawEnum64]>::ref_from_prefix_with_elems(rest, raw.vlen()).ok()?;
            let value = values.iter().find(|v| named(v.name_off))?;
            Some((u64::from(value.high.get()) << 32 | u64::from(value.low.get())) as i64)
        } else {
            let (values, _) = <[RawEnum]>::ref_from_prefix_with_elems(rest, raw.vlen()).ok()?;
            let value = values.iter().find(|v| named(v.name_off))?;
            Some(i64::from(value.value.get() as i32))
        }
    }

    fn raw(&self, id: u32) -> Option<(&'a RawType, &'a [u8])> {
        let offset = *self.offsets.get((id as usize).checked_sub(1)?)?;
        RawType::ref_from_prefix(self.types.get(offset as usize..)?).ok()
    }

    /// Bit offset and type of a member.
    fn find_member(
        &self,
        id: u32,
        wanted: &[u8],
        depth: usize,
        budget: &mut usize,
    ) -> Option<(u32, u32)> {
        let (raw, rest) = self.raw(self.strip(id)?)?;
        if !matches!(raw.kind(), KIND_STRUCT | KIND_UNION) {
            return None;
        }
        let has_bit_fields = raw.info.get() >> 31 == 1;
        let (members, _) = <[RawMember]>::ref_from_prefix_with_elems(rest, raw.vlen()).ok()?;
        for member in members {
            *budget = budget.checked_sub(1)?;
            let offset = member.offset.get();
            let offset = if has_bit_fields {
                offset & 0xff_ffff
            } else {
                offset
            };
            let name = string(self.strings, member.name_off.get())?;
            if name == wanted {
                return Some((offset, member.type_id.get()));
            }
            if name.is_empty() && depth > 0 {
                let found = self.find_member(member.type_id.get(), wanted, depth - 1, budget);
                if let Some((inner, type_id)) = found {
                    return Some((offset.checked_add(inner)?, type_id));
                }
            }
        }
        None
    }

    /// The type behind typedefs and qualifiers.
    fn strip(&self, mut id: u32) -> Option<u32> {
        for _ in 0..INDIRECTIONS_MAX {
            let (raw, _) = self.raw(id)?;
            match raw.kind() {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = raw.size_or_type.get();
                }
                _ => return Some(id),
            }
        }
        None
    }

    fn size_of(&self, id: u32, depth: usize) -> Option<u32> {
        let (raw, rest) = self.raw(self.strip(id)?)?;
        match raw.kind() {
            KIND_PTR => Some(8),
            KIND_INT | KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_FLOAT | KIND_ENUM64 => {
                Some(raw.size_or_type.get())
            }
            KIND_ARRAY => {
                let (array, _) = RawArray::ref_from_prefix(rest).ok()?;
                let element = self.size_of(array.elem_type.get(), depth.checked_sub(1)?)?;
                element.checked_mul(array.nelems.get())
            }
            _ => None,
        }
    }
}

/// The string at `offset`, without its NUL.
fn string(strings: &[u8], offset: u32) -> Option<&[u8]> {
    let tail = strings.get(offset as usize..)?;
    Some(&tail[..tail.iter().position(|&b| b == 0)?])
}

#[cfg(test)]
#[path = "btf_tests.rs"]
pub(crate) mod tests;
