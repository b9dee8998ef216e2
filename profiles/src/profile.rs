//! A kernel's profile: the little that has to be known of a kernel build to read its memory, as a
//! small JSON file (profiles/README.md). Made from any source of types; holds only what
//! [`Layouts`] asks for. Files may be hostile: sizes are bounded, unknown fields refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use crate::layout::Layouts;
use crate::types::{Field, Recording, Types};

/// The form of the file. Another number is another form.
const VERSION: u32 = 1;
/// A profile has about 10 KiB.
pub(crate) const PROFILE_BYTES_MAX: usize = 1 << 20;
/// What tells where the kernel was linked to run.
const RELOCATED_BY: &str = "_stext";

/// Every symbol that is used. The kernel moves all of them by one distance (KASLR).
pub const SYMBOLS: [&str; 10] = [
    "_text",
    "_stext",
    "__start_BTF",
    "__stop_BTF",
    "btf_modules",
    "linux_banner",
    "page_offset_base",
    "super_blocks",
    "vmcoreinfo_note",
    "vmemmap_base",
];

/// Why text is no profile.
#[derive(Debug, Error)]
pub enum ProfileError {
    #[error("a profile of {0} bytes: expected at most {PROFILE_BYTES_MAX}")]
    TooLarge(usize),
    #[error("not a profile of pct-vmi")]
    NotAProfile(#[source] serde_json::Error),
    #[error("profile version {0} is not known, expected {VERSION}; another pct-vmi made it")]
    Version(u32),
    #[error("cannot read the profile")]
    Json(#[from] serde_json::Error),
}

/// What identifies a kernel build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// uname -r.
    pub release: String,
    /// The GNU build id of vmlinux, in lower-case hexadecimal, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
}

/// A kernel's types and symbols, as far as they are used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    #[serde(rename = "pct-vmi-profile")]
    version: u32,
    pub kernel: Identity,
    /// [`crate::types::Names::digest`] of what was asked for: what another release asks for may be missing.
    asked: String,
    /// Virtual addresses as linked, without KASLR.
    symbols: BTreeMap<String, Address>,
    types: Recording,
}

impl Profile {
    /// The profile of a kernel whose symbols lie `moved` bytes above where they were linked
    /// (VMCOREINFO's KERNELOFFSET; 0 for System.map and vmlinux).
    pub fn new(
        kernel: Identity,
        types: &dyn Types,
        moved: u64,
        symbol: impl Fn(&str) -> Option<u64>,
    ) -> Profile {
        let linked =
            |name: &str| Some((name.to_owned(), Address(symbol(name)?.wrapping_sub(moved))));
        Profile {
            version: VERSION,
            kernel,
            asked: Layouts::names().digest(),
            symbols: SYMBOLS.into_iter().filter_map(linked).collect(),
            types: Layouts::record(types),
        }
    }

    /// Reads a profile's JSON.
    ///
    /// # Errors
    /// When it is too large, no profile, of another version, or has fields that are not known.
    pub fn parse(json: &[u8]) -> Result<Profile, ProfileError> {
        #[derive(Deserialize)]
        struct Version {
            #[serde(rename = "pct-vmi-profile")]
            version: u32,
        }
        if json.len() > PROFILE_BYTES_MAX {
            return Err(ProfileError::TooLarge(json.len()));
        }
        let Version { version } =
            serde_json::from_slice(json).map_err(ProfileError::NotAProfile)?;
        if version != VERSION {
            return Err(ProfileError::Version(version));
        }
        Ok(serde_json::from_slice(json)?)
    }

    /// The profile's JSON: the same bytes for the same profile.
    pub fn to_json(&self) -> String {
        // Maps of strings and numbers always have a JSON.
        let mut json = serde_json::to_string_pretty(self).unwrap_or_default();
        json.push('\n');
        json
    }

    /// Where a symbol is as linked.
    pub fn link_address(&self, symbol: &str) -> Option<u64> {
        self.symbols.get(symbol).map(|address| address.0)
    }

    /// Where a symbol is in a kernel whose `_stext` is at `stext`.
    pub fn address(&self, symbol: &str, stext: u64) -> Option<u64> {
        let moved = stext.wrapping_sub(self.link_address(RELOCATED_BY)?);
        Some(self.link_address(symbol)?.wrapping_add(moved))
    }

    /// The types and constants that it holds.
    pub fn recording(&self) -> &Recording {
        &self.types
    }

    /// Whether all was asked for that is used today: if not, what is missing may only be unasked.
    pub fn is_current(&self) -> bool {
        self.asked == Layouts::names().digest()
    }

    /// Takes from `other`, a profile of the same kernel, what this one has no types of.
    pub fn complete_from(&mut self, other: &Profile) {
        let merged = Layouts::record(&crate::types::Layers(vec![&self.types, &other.types]));
        self.types = merged;
        if other.is_current() {
            self.asked.clone_from(&other.asked);
        }
        for (name, address) in &other.symbols {
            self.symbols.entry(name.clone()).or_insert(*address);
        }
    }
}

impl Types for Profile {
    fn struct_size(&self, name: &str) -> Option<u32> {
        self.types.struct_size(name)
    }

    fn field(&self, name: &str, member: &str) -> Option<Field> {
        self.types.field(name, member)
    }

    fn enumerator(&self, name: &str, constant: &str) -> Option<i64> {
        self.types.enumerator(name, constant)
    }
}

/// A virtual address, `"0x…"` in JSON: not every reader of JSON has integers of 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Address(u64);

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let digits = text.strip_prefix("0x").unwrap_or_default();
        u64::from_str_radix(digits, 16).map(Address).map_err(|_| {
            de::Error::invalid_value(de::Unexpected::Str(&text), &"0x and hexadecimal digits")
        })
    }
}

#[cfg(test)]
#[path = "profile_tests.rs"]
pub(crate) mod tests;
