//! A BTF blob's types one by one, for what describes all of them. Never follows a reference: types
//! may contain themselves.

use super::{
    Btf, INDIRECTIONS_MAX, KIND_ARRAY, KIND_CONST, KIND_ENUM, KIND_ENUM64, KIND_FLOAT,
    KIND_FUNC_PROTO, KIND_FWD, KIND_INT, KIND_PTR, KIND_RESTRICT, KIND_STRUCT, KIND_TYPE_TAG,
    KIND_TYPEDEF, KIND_UNION, KIND_VAR, KIND_VOLATILE, RawArray, RawEnum, RawEnum64, RawMember,
    RawType, U32,
};
use zerocopy::FromBytes;

/// BTF_INT_SIGNED, BTF_INT_CHAR and BTF_INT_BOOL of an int's encoding.
const INT_SIGNED: u32 = 1;
const INT_CHAR: u32 = 2;
const INT_BOOL: u32 = 4;

/// One type. Names are empty where there is none, and other types are ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum View<'a> {
    Int {
        name: &'a str,
        bytes: u32,
        is_signed: bool,
        is_char: bool,
        is_bool: bool,
    },
    Float {
        name: &'a str,
        bytes: u32,
    },
    Pointer(u32),
    Array {
        element: u32,
        count: u32,
    },
    Composite {
        name: &'a str,
        is_union: bool,
        bytes: u32,
        members: Vec<Member<'a>>,
    },
    Enum {
        name: &'a str,
        bytes: u32,
        constants: Vec<(&'a str, i64)>,
    },
    /// A declaration without its members.
    Forward {
        name: &'a str,
        is_union: bool,
    },
    /// A typedef or a qualifier: the type behind it.
    Alias(u32),
    Function,
    Variable {
        name: &'a str,
        type_id: u32,
    },
    /// Nothing that data can have as its type.
    Other,
}

/// A member of a struct or union.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member<'a> {
    pub(crate) name: &'a str,
    pub(crate) type_id: u32,
    pub(crate) bit_offset: u32,
    /// 0 unless it is a bit-field.
    pub(crate) bit_width: u32,
}

impl<'a> Btf<'a> {
    /// The ids of its own types, without those of its base.
    pub(crate) fn ids(&self) -> std::ops::Range<u32> {
        self.first_id..self.first_id.saturating_add(self.offsets.len() as u32)
    }

    /// The type of this id, here or in the base; None for void (0) and what is malformed.
    pub(crate) fn view(&self, id: u32) -> Option<View<'a>> {
        let (raw, rest) = self.raw(id)?;
        let name = self.text(raw.name_off);
        let last = raw.size_or_type.get();
        Some(match raw.kind() {
            KIND_INT => {
                let (encoding, _) = U32::ref_from_prefix(rest).ok()?;
                let encoding = encoding.get() >> 24;
                View::Int {
                    name,
                    bytes: last,
                    is_signed: encoding & INT_SIGNED != 0,
                    is_char: encoding & INT_CHAR != 0,
                    is_bool: encoding & INT_BOOL != 0,
                }
            }
            KIND_FLOAT => View::Float { name, bytes: last },
            KIND_PTR => View::Pointer(last),
            KIND_ARRAY => {
                let (array, _) = RawArray::ref_from_prefix(rest).ok()?;
                View::Array {
                    element: array.elem_type.get(),
                    count: array.nelems.get(),
                }
            }
            kind @ (KIND_STRUCT | KIND_UNION) => View::Composite {
                name,
                is_union: kind == KIND_UNION,
                bytes: last,
                members: self.members(raw, rest)?,
            },
            kind @ (KIND_ENUM | KIND_ENUM64) => View::Enum {
                name,
                bytes: last,
                constants: self.constants(kind, rest, raw.vlen())?,
            },
            KIND_FWD => View::Forward {
                name,
                is_union: raw.kind_flag(),
            },
            KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                View::Alias(last)
            }
            KIND_FUNC_PROTO => View::Function,
            KIND_VAR => View::Variable {
                name,
                type_id: last,
            },
            _ => View::Other,
        })
    }

    fn members(&self, raw: &RawType, rest: &[u8]) -> Option<Vec<Member<'a>>> {
        let (members, _) = <[RawMember]>::ref_from_prefix_with_elems(rest, raw.vlen()).ok()?;
        let member = |member: &RawMember| {
            let (bit_offset, bit_width) = raw.member_offset(member);
            Member {
                name: self.text(member.name_off),
                type_id: member.type_id.get(),
                bit_offset,
                bit_width,
            }
        };
        Some(members.iter().map(member).collect())
    }

    fn constants(&self, kind: u32, rest: &[u8], vlen: usize) -> Option<Vec<(&'a str, i64)>> {
        Some(if kind == KIND_ENUM64 {
            let (values, _) = <[RawEnum64]>::ref_from_prefix_with_elems(rest, vlen).ok()?;
            let constant = |value: &RawEnum64| (self.text(value.name_off), value.get());
            values.iter().map(constant).collect()
        } else {
            let (values, _) = <[RawEnum]>::ref_from_prefix_with_elems(rest, vlen).ok()?;
            let constant = |value: &RawEnum| (self.text(value.name_off), value.get());
            values.iter().map(constant).collect()
        })
    }

    /// Size of a type in bytes; None for what has none.
    pub(crate) fn bytes_of(&self, id: u32) -> Option<u32> {
        self.size_of(id, INDIRECTIONS_MAX)
    }

    fn text(&self, offset: U32) -> &'a str {
        let name = self.string(offset.get()).unwrap_or_default();
        str::from_utf8(name).unwrap_or_default()
    }
}
