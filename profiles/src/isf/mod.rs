//! ISF, the JSON in which Volatility 3 keeps a kernel's types and symbols (its schema 6.2.0).
//! Reading knows what other producers write too (dwarf2json) and trusts none of it; descents are
//! bounded.

mod write;

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::types::{Field, Types};

/// Types nested in each other, such as arrays of arrays, and anonymous members.
const DEPTH_MAX: usize = 16;
/// Members looked at in one search.
const MEMBERS_MAX: usize = 1 << 16;
/// How types without a name are called.
const UNNAMED: &str = "unnamed_";
/// The text that a kernel prints first.
const BANNER: &str = "linux_banner";

/// Why text is no ISF.
#[derive(Debug, Error)]
#[error("not ISF, Volatility 3's JSON of types and symbols")]
pub struct IsfError(#[from] serde_json::Error);

/// A kernel's types and symbols.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Isf<'a> {
    #[serde(default)]
    metadata: serde_json::Value,
    #[serde(borrow)]
    base_types: BTreeMap<Cow<'a, str>, BaseType>,
    #[serde(borrow)]
    user_types: BTreeMap<Cow<'a, str>, UserType<'a>>,
    #[serde(borrow)]
    enums: BTreeMap<Cow<'a, str>, EnumType<'a>>,
    #[serde(borrow)]
    symbols: BTreeMap<Cow<'a, str>, Symbol<'a>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct BaseType {
    size: u32,
    signed: bool,
    kind: Cow<'static, str>,
    endian: Cow<'static, str>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct UserType<'a> {
    kind: Cow<'a, str>,
    size: u32,
    #[serde(borrow)]
    fields: BTreeMap<Cow<'a, str>, Member<'a>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Member<'a> {
    #[serde(rename = "type", borrow)]
    descriptor: Descriptor<'a>,
    offset: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    anonymous: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct EnumType<'a> {
    size: u32,
    base: Cow<'a, str>,
    #[serde(borrow)]
    constants: BTreeMap<Cow<'a, str>, i64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Symbol<'a> {
    #[serde(
        rename = "type",
        default,
        borrow,
        skip_serializing_if = "Option::is_none"
    )]
    descriptor: Option<Descriptor<'a>>,
    address: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    constant_data: Option<Cow<'a, str>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Descriptor<'a> {
    Base {
        #[serde(borrow)]
        name: Cow<'a, str>,
    },
    Pointer {
        #[serde(borrow)]
        subtype: Box<Descriptor<'a>>,
    },
    Array {
        count: u32,
        #[serde(borrow)]
        subtype: Box<Descriptor<'a>>,
    },
    Struct {
        #[serde(borrow)]
        name: Cow<'a, str>,
    },
    Union {
        #[serde(borrow)]
        name: Cow<'a, str>,
    },
    Class {
        #[serde(borrow)]
        name: Cow<'a, str>,
    },
    Enum {
        #[serde(borrow)]
        name: Cow<'a, str>,
    },
    Bitfield {
        bit_position: u32,
        bit_length: u32,
        #[serde(rename = "type", borrow)]
        of: Box<Descriptor<'a>>,
    },
    Function,
}

impl<'a> Isf<'a> {
    /// Reads ISF as it is, without compression.
    ///
    /// # Errors
    /// When it is not ISF.
    pub fn parse(json: &'a [u8]) -> Result<Isf<'a>, IsfError> {
        Ok(serde_json::from_slice(json)?)
    }

    /// Its JSON.
    pub fn to_json(&self) -> String {
        // Maps of strings and numbers always have a JSON.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// A symbol's address as linked.
    pub fn symbol(&self, name: &str) -> Option<u64> {
        Some(self.symbols.get(name)?.address)
    }

    /// The kernel's banner, "Linux version …".
    pub fn banner(&self) -> Option<String> {
        let data = self.symbols.get(BANNER)?.constant_data.as_deref()?;
        let bytes = BASE64_STANDARD.decode(data).ok()?;
        let text = bytes.split(|&byte| byte == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    fn member(
        &self,
        of: &UserType<'a>,
        wanted: &str,
        depth: usize,
        budget: &mut usize,
    ) -> Option<Field> {
        if let Some(member) = of.fields.get(wanted) {
            let size = match &member.descriptor {
                Descriptor::Bitfield { .. } => return None,
                descriptor => self.size(descriptor, DEPTH_MAX).unwrap_or(0),
            };
            return Some(Field {
                offset: member.offset,
                size,
            });
        }
        for member in of.fields.values().filter(|member| member.anonymous) {
            *budget = budget.checked_sub(1)?;
            let (Descriptor::Struct { name } | Descriptor::Union { name }) = &member.descriptor
            else {
                continue;
            };
            let inner = self.user_types.get(name)?;
            let found = self.member(inner, wanted, depth.checked_sub(1)?, budget);
            if let Some(field) = found {
                let offset = member.offset.checked_add(field.offset)?;
                return Some(Field { offset, ..field });
            }
        }
        None
    }

    fn size(&self, of: &Descriptor<'a>, depth: usize) -> Option<u32> {
        match of {
            Descriptor::Base { name } => Some(self.base_types.get(name)?.size),
            Descriptor::Pointer { .. } => Some(self.base_types.get("pointer")?.size),
            Descriptor::Array { count, subtype } => {
                count.checked_mul(self.size(subtype, depth.checked_sub(1)?)?)
            }
            Descriptor::Struct { name }
            | Descriptor::Union { name }
            | Descriptor::Class { name } => Some(self.user_types.get(name)?.size),
            Descriptor::Enum { name } => Some(self.enums.get(name)?.size),
            Descriptor::Bitfield { .. } | Descriptor::Function => None,
        }
    }
}

impl EnumType<'_> {
    fn value(&self, constant: &str) -> Option<i64> {
        let value = *self.constants.get(constant)?;
        // Some producers have constants of 32 bits unsigned.
        Some(if self.size == 4 {
            i64::from(value as i32)
        } else {
            value
        })
    }
}

impl Types for Isf<'_> {
    fn struct_size(&self, name: &str) -> Option<u32> {
        // A declaration without members is no description.
        let of = self.user_types.get(name)?;
        (of.size > 0).then_some(of.size)
    }

    fn field(&self, name: &str, member: &str) -> Option<Field> {
        let mut budget = MEMBERS_MAX;
        self.member(self.user_types.get(name)?, member, DEPTH_MAX, &mut budget)
    }

    fn enumerator(&self, name: &str, constant: &str) -> Option<i64> {
        if !name.is_empty() {
            return self.enums.get(name)?.value(constant);
        }
        let unnamed = self.enums.range(Cow::Borrowed(UNNAMED)..);
        unnamed
            .take_while(|(name, _)| name.starts_with(UNNAMED))
            .find_map(|(_, of)| of.value(constant))
    }
}

#[cfg(test)]
mod tests;
