//! BTF, the kernel's own description of its types (Documentation/bpf/btf.rst,
//! include/uapi/linux/btf.h). Read only, over bytes that may be hostile: every offset is checked
//! and every descent is bounded. A kind that is not known ends the parse with an error, since its
//! length is not known either.

pub(crate) mod view;

use std::collections::HashMap;

use thiserror::Error;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::types::{Field, Types};

const BTF_MAGIC: u16 = 0xeb9f;

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FWD: u32 = 7;
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

    /// Of a struct: its members' offsets tell bit-fields.
    fn kind_flag(&self) -> bool {
        self.info.get() >> 31 == 1
    }

    /// Bit offset of a member, and its width where it is a bit-field.
    fn member_offset(&self, member: &RawMember) -> (u32, u32) {
        let offset = member.offset.get();
        if self.kind_flag() {
            (offset & 0xff_ffff, offset >> 24)
        } else {
            (offset, 0)
        }
    }

    fn vlen(&self) -> usize {
        (self.info.get() & 0xffff) as usize
    }

    /// Bytes that follow the common part.
    fn trailing(&self) -> Option<usize> {
        Some(match self.kind() {
            KIND_PTR | KIND_FWD..=12 | KIND_FLOAT | KIND_TYPE_TAG => 0,
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

impl RawEnum {
    fn get(&self) -> i64 {
        i64::from(self.value.get() as i32)
    }
}

impl RawEnum64 {
    fn get(&self) -> i64 {
        (u64::from(self.high.get()) << 32 | u64::from(self.low.get())) as i64
    }
}

/// An index over one BTF blob: a kernel's, or a module's, which continues its kernel's type ids and
/// strings (split BTF). A module's answers for its own types only.
#[derive(Debug)]
pub struct Btf<'a> {
    base: Option<&'a Btf<'a>>,
    types: &'a [u8],
    strings: &'a [u8],
    /// The first type's id, and where in all strings `strings` begin: what the base has is below.
    first_id: u32,
    first_string: u32,
    /// Byte offset of type `first_id + i` in `types`.
    offsets: Vec<u32>,
    structs: HashMap<&'a [u8], u32>,
    enums: HashMap<&'a [u8], u32>,
    unnamed_enums: Vec<u32>,
}

impl<'a> Btf<'a> {
    /// Indexes a blob as it lies between `__start_BTF` and `__stop_BTF`, or in the section .BTF.
    ///
    /// # Errors
    /// When it is not BTF, is cut short, or holds a kind whose length is not known.
    pub fn parse(data: &'a [u8]) -> Result<Btf<'a>, BtfError> {
        Btf::new(data, None)
    }

    /// Indexes the BTF of a module of the kernel that `base` describes.
    ///
    /// # Errors
    /// As for [`Btf::parse`].
    pub fn parse_split(data: &'a [u8], base: &'a Btf<'a>) -> Result<Btf<'a>, BtfError> {
        Btf::new(data, Some(base))
    }

    /// Whether a blob is a module's: its strings do not begin with the empty one, its kernel's do.
    pub fn is_split(data: &[u8]) -> bool {
        let Ok((header, _)) = Header::ref_from_prefix(data) else {
            return false;
        };
        let strings = header.hdr_len.get().checked_add(header.str_off.get());
        let first = strings.and_then(|at| data.get(at as usize));
        first.is_some_and(|&first| first != 0)
    }

    fn new(data: &'a [u8], base: Option<&'a Btf<'a>>) -> Result<Btf<'a>, BtfError> {
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
        let end = |base: &Btf<'_>| {
            let id = base.first_id.checked_add(base.offsets.len() as u32)?;
            let string = base.first_string.checked_add(base.strings.len() as u32)?;
            Some((id, string))
        };
        // Type 0 is void.
        let (first_id, first_string) = base
            .map_or(Some((1, 0)), end)
            .ok_or(truncated("a split of this size"))?;
        let mut btf = Btf {
            base,
            first_id,
            first_string,
            types: section(header.type_off, header.type_len).ok_or(truncated("the types"))?,
            strings: section(header.str_off, header.str_len).ok_or(truncated("the strings"))?,
            offsets: Vec::new(),
            structs: HashMap::new(),
            enums: HashMap::new(),
            unnamed_enums: Vec::new(),
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
            let id = self.first_id.saturating_add(self.offsets.len() as u32);
            let trailing = raw.trailing().ok_or(BtfError::UnknownKind {
                id,
                kind: raw.kind(),
            })?;
            if trailing > rest.len() {
                return Err(truncated);
            }
            self.offsets.push(at as u32);
            let name = self.string(raw.name_off.get());
            let names = match raw.kind() {
                KIND_STRUCT | KIND_UNION => Some(&mut self.structs),
                KIND_ENUM | KIND_ENUM64 => Some(&mut self.enums),
                _ => None,
            };
            if let (Some(names), Some(name)) = (names, name) {
                match (name.is_empty(), raw.kind()) {
                    (false, _) => _ = names.entry(name).or_insert(id),
                    (true, KIND_ENUM | KIND_ENUM64) => self.unnamed_enums.push(id),
                    (true, _) => {}
                }
            }
            at += size_of::<RawType>() + trailing;
        }
        Ok(())
    }

    fn constant(&self, id: u32, constant: &str) -> Option<i64> {
        let (raw, rest) = self.raw(id)?;
        let named = |name_off: U32| self.string(name_off.get()) == Some(constant.as_bytes());
        if raw.kind() == KIND_ENUM64 {
            let (values, _) = <[RawEnum64]>::ref_from_prefix_with_elems(rest, raw.vlen()).ok()?;
            Some(values.iter().find(|value| named(value.name_off))?.get())
        } else {
            let (values, _) = <[RawEnum]>::ref_from_prefix_with_elems(rest, raw.vlen()).ok()?;
            Some(values.iter().find(|value| named(value.name_off))?.get())
        }
    }

    fn raw(&self, id: u32) -> Option<(&'a RawType, &'a [u8])> {
        let Some(own) = id.checked_sub(self.first_id) else {
            return self.base?.raw(id);
        };
        let offset = *self.offsets.get(own as usize)?;
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
        let (members, _) = <[RawMember]>::ref_from_prefix_with_elems(rest, raw.vlen()).ok()?;
        for member in members {
            *budget = budget.checked_sub(1)?;
            let (offset, bit_field) = raw.member_offset(member);
            let name = self.string(member.name_off.get())?;
            if name == wanted {
                return (bit_field == 0).then_some((offset, member.type_id.get()));
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

    /// The string at `offset`, without its NUL.
    fn string(&self, offset: u32) -> Option<&'a [u8]> {
        let Some(own) = offset.checked_sub(self.first_string) else {
            return self.base?.string(offset);
        };
        let tail = self.strings.get(own as usize..)?;
        Some(&tail[..tail.iter().position(|&b| b == 0)?])
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

impl Types for Btf<'_> {
    fn struct_size(&self, name: &str) -> Option<u32> {
        let (raw, _) = self.raw(*self.structs.get(name.as_bytes())?)?;
        Some(raw.size_or_type.get())
    }

    fn field(&self, name: &str, member: &str) -> Option<Field> {
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

    fn enumerator(&self, name: &str, constant: &str) -> Option<i64> {
        if name.is_empty() {
            let mut unnamed = self.unnamed_enums.iter();
            return unnamed.find_map(|&id| self.constant(id, constant));
        }
        self.constant(*self.enums.get(name.as_bytes())?, constant)
    }
}

#[cfg(test)]
pub(crate) mod tests;
