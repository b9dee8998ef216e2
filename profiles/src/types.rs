//! What every source of types answers: BTF, DWARF, ISF, a saved profile. Asked by the kernel's
//! names only, never for a version. What was asked and found can be recorded: that is all a profile
//! has to keep.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Where a member is in its struct, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")]
pub struct Field {
    pub offset: u32,
    pub size: u32,
}

impl From<(u32, u32)> for Field {
    fn from((offset, size): (u32, u32)) -> Field {
        Field { offset, size }
    }
}

impl From<Field> for (u32, u32) {
    fn from(field: Field) -> (u32, u32) {
        (field.offset, field.size)
    }
}

/// A description of a kernel's types.
pub trait Types {
    /// Size of a struct or union in bytes; None where it is not described.
    fn struct_size(&self, name: &str) -> Option<u32>;

    /// A member of a struct or union, also one that sits in anonymous structs or unions of it. A
    /// member without a size of its own (a flexible array) has size 0; a bit-field is none.
    fn field(&self, name: &str, member: &str) -> Option<Field>;

    /// Value of a constant of a named enum, or of any enum without a name where `name` is empty. One
    /// of 32 bits is sign-extended: not every source tells whether it is signed.
    fn enumerator(&self, name: &str, constant: &str) -> Option<i64>;
}

/// Several sources as one: a struct or constant comes from the first that describes it. A
/// module's types go before those of the kernel proper.
pub struct Layers<'a>(pub Vec<&'a dyn Types>);

impl Types for Layers<'_> {
    fn struct_size(&self, name: &str) -> Option<u32> {
        self.0.iter().find_map(|types| types.struct_size(name))
    }

    fn field(&self, name: &str, member: &str) -> Option<Field> {
        // All members of a struct come from one source: two never make one layout.
        let describes = |types: &&&dyn Types| types.struct_size(name).is_some();
        self.0.iter().find(describes)?.field(name, member)
    }

    fn enumerator(&self, name: &str, constant: &str) -> Option<i64> {
        self.0
            .iter()
            .find_map(|types| types.enumerator(name, constant))
    }
}

/// A struct as far as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Struct {
    pub size: u32,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub members: BTreeMap<String, Field>,
}

/// The types that were asked for and found. Sorted, so that equal kernels give equal bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recording {
    pub structs: BTreeMap<String, Struct>,
    /// Constants by enum; those of enums without a name under the empty name.
    pub enums: BTreeMap<String, BTreeMap<String, i64>>,
}

impl Types for Recording {
    fn struct_size(&self, name: &str) -> Option<u32> {
        Some(self.structs.get(name)?.size)
    }

    fn field(&self, name: &str, member: &str) -> Option<Field> {
        self.structs.get(name)?.members.get(member).copied()
    }

    fn enumerator(&self, name: &str, constant: &str) -> Option<i64> {
        self.enums.get(name)?.get(constant).copied()
    }
}

/// Names of types.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Members by struct.
    pub structs: BTreeMap<String, BTreeSet<String>>,
    /// Constants by enum, as in a [`Recording`].
    pub enums: BTreeMap<String, BTreeSet<String>>,
}

/// Passes questions on and keeps a record of them.
pub struct Recorder<'a> {
    types: &'a dyn Types,
    found: RefCell<Recording>,
    asked: RefCell<Names>,
}

impl Names {
    /// Tells these names from any others: 16 hexadecimal digits.
    pub fn digest(&self) -> String {
        let text = format!("{:?} {:?}", self.structs, self.enums);
        let digest = blake3::hash(text.as_bytes()).to_hex();
        digest[..16].to_owned()
    }
}

impl<'a> Recorder<'a> {
    /// Records what is asked of `types`.
    pub fn new(types: &'a dyn Types) -> Recorder<'a> {
        Recorder {
            types,
            found: RefCell::default(),
            asked: RefCell::default(),
        }
    }

    /// What was found, and all that was asked for.
    pub fn finish(self) -> (Recording, Names) {
        (self.found.into_inner(), self.asked.into_inner())
    }
}

impl Types for Recorder<'_> {
    fn struct_size(&self, name: &str) -> Option<u32> {
        let mut asked = self.asked.borrow_mut();
        asked.structs.entry(name.to_owned()).or_default();
        let size = self.types.struct_size(name)?;
        let mut found = self.found.borrow_mut();
        found.structs.entry(name.to_owned()).or_insert(Struct {
            size,
            members: BTreeMap::new(),
        });
        Some(size)
    }

    fn field(&self, name: &str, member: &str) -> Option<Field> {
        let size = self.struct_size(name);
        if let Some(asked) = self.asked.borrow_mut().structs.get_mut(name) {
            asked.insert(member.to_owned());
        }
        size?;
        let field = self.types.field(name, member)?;
        let mut found = self.found.borrow_mut();
        let found = found.structs.get_mut(name)?;
        found.members.insert(member.to_owned(), field);
        Some(field)
    }

    fn enumerator(&self, name: &str, constant: &str) -> Option<i64> {
        let mut asked = self.asked.borrow_mut();
        let constants = asked.enums.entry(name.to_owned()).or_default();
        constants.insert(constant.to_owned());
        let value = self.types.enumerator(name, constant)?;
        let mut found = self.found.borrow_mut();
        let constants = found.enums.entry(name.to_owned()).or_default();
        constants.insert(constant.to_owned(), value);
        Some(value)
    }
}
