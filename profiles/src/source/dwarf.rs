//! Types from DWARF (versions 2 to 5), as compilers leave it in vmlinux, modules and their separate debug
//! files. Only what is asked for by name is described; a kernel's millions of other entries are
//! passed over. Hostile input: descents are bounded, a unit that is malformed is left out.

use std::collections::BTreeMap;

use gimli::{
    AttributeValue, DebuggingInformationEntry, DwTag, Dwarf, EndianSlice, LittleEndian,
    Reader as _, UnitHeader, UnitOffset, UnitRef, constants as dw,
};
use rayon::prelude::*;

use crate::types::{Field, Names, Recording, Struct};

/// Types behind types: typedefs, qualifiers, elements of arrays.
const INDIRECTIONS_MAX: usize = 32;
/// Anonymous structs nested in each other. struct page, the deepest we meet, has four.
const ANONYMOUS_DEPTH_MAX: usize = 16;
/// Members of one struct, those of anonymous ones in it included.
const MEMBERS_MAX: usize = 1 << 16;
/// An address on x86-64.
const POINTER_BYTES: u32 = 8;

type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Entry<'a> = DebuggingInformationEntry<Slice<'a>>;

/// The sections that are read.
#[derive(Debug, Default)]
pub(crate) struct Sections<'a> {
    pub(crate) by_name: BTreeMap<&'static str, std::borrow::Cow<'a, [u8]>>,
}

impl Sections<'_> {
    /// Their names. Locations and ranges describe code; a line table is only looked at because a unit
    /// that names one is not read without it.
    pub(crate) const NAMES: [&'static str; 6] = [
        ".debug_info",
        ".debug_line",
        ".debug_abbrev",
        ".debug_str",
        ".debug_line_str",
        ".debug_str_offsets",
    ];

    fn dwarf(&self) -> Result<Dwarf<Slice<'_>>, gimli::Error> {
        Dwarf::load(|id| {
            let bytes = self.by_name.get(id.name());
            Ok(EndianSlice::new(
                bytes.map_or(&[], |bytes| bytes),
                LittleEndian,
            ))
        })
    }
}

/// What these sections describe of `names`: structs with all their members, enums with all their
/// constants. Of several of one name the first counts, as in BTF.
///
/// # Errors
/// When no unit can be read; one that is malformed among others is left out.
pub(crate) fn record(sections: &Sections<'_>, names: &Names) -> Result<Recording, gimli::Error> {
    let dwarf = sections.dwarf()?;
    let mut headers = Vec::new();
    let mut units = dwarf.units();
    while let Some(header) = units.next()? {
        headers.push(header);
    }
    let found: Vec<Result<Recording, gimli::Error>> = headers
        .into_par_iter()
        .map(|header| of_unit(&dwarf, header, names))
        .collect();
    if let Some(&Err(error)) = found.first()
        && found.iter().all(Result::is_err)
    {
        return Err(error);
    }
    let mut all = Recording::default();
    for unit in found.into_iter().flatten() {
        for (name, of) in unit.structs {
            all.structs.entry(name).or_insert(of);
        }
        for (name, constants) in unit.enums {
            if name.is_empty() {
                let unnamed = all.enums.entry(name).or_default();
                for (constant, value) in constants {
                    unnamed.entry(constant).or_insert(value);
                }
            } else {
                all.enums.entry(name).or_insert(constants);
            }
        }
    }
    Ok(all)
}

fn of_unit(
    dwarf: &Dwarf<Slice<'_>>,
    header: UnitHeader<Slice<'_>>,
    names: &Names,
) -> Result<Recording, gimli::Error> {
    let unit = dwarf.unit(header)?;
    let reader = Reader {
        unit: unit.unit_ref(dwarf),
    };
    let mut found = Recording::default();
    for (offset, tag) in reader.types_of_unit(names)? {
        let Some(name) = reader.name_at(offset)? else {
            continue;
        };
        // A type that is malformed is as good as absent.
        if tag == dw::DW_TAG_enumeration_type {
            if let Ok(constants) = reader.constants(offset) {
                found.enums.entry(name).or_default().extend(constants);
            }
        } else if let Ok(Some(of)) = reader.composite(offset) {
            found.structs.entry(name).or_insert(of);
        }
    }
    Ok(found)
}

struct Reader<'d, 'a> {
    unit: UnitRef<'d, Slice<'a>>,
}

impl<'a> Reader<'_, 'a> {
    /// Where the wanted types of this unit are defined. C has types at the top level only.
    fn types_of_unit(&self, names: &Names) -> Result<Vec<(UnitOffset, DwTag)>, gimli::Error> {
        let mut found = Vec::new();
        let mut entries = self.unit.entries_raw(None)?;
        while !entries.is_empty() {
            let (offset, depth) = (entries.next_offset(), entries.next_depth());
            let Some(abbreviation) = entries.read_abbreviation()? else {
                continue;
            };
            let tag = abbreviation.tag();
            let is_enum = tag == dw::DW_TAG_enumeration_type;
            let is_type = is_enum || is_composite(tag);
            if depth != 1 || !is_type {
                entries.skip_attributes(abbreviation.attributes())?;
                continue;
            }
            let mut name = None;
            let mut is_declaration = false;
            for &specification in abbreviation.attributes() {
                let attribute = entries.read_attribute(specification)?;
                match attribute.name() {
                    dw::DW_AT_name => name = self.unit.attr_string(attribute.value()).ok(),
                    dw::DW_AT_declaration => is_declaration = true,
                    _ => {}
                }
            }
            let name = name.map_or(Ok(""), |name| str::from_utf8(name.slice()));
            let wanted = |name: &str| match is_enum {
                true => names.enums.contains_key(name),
                false => names.structs.contains_key(name),
            };
            if !is_declaration && name.is_ok_and(wanted) {
                found.push((offset, tag));
            }
        }
        Ok(found)
    }

    /// A type's name, empty where it has none; None where it is no text.
    fn name_at(&self, offset: UnitOffset) -> Result<Option<String>, gimli::Error> {
        let entry = self.unit.entry(offset)?;
        let Some(value) = entry.attr_value(dw::DW_AT_name) else {
            return Ok(Some(String::new()));
        };
        let name = self.unit.attr_string(value)?;
        Ok(str::from_utf8(name.slice()).ok().map(str::to_owned))
    }

    fn constants(&self, offset: UnitOffset) -> Result<BTreeMap<String, i64>, gimli::Error> {
        let bytes = byte_size(&self.unit.entry(offset)?).unwrap_or(POINTER_BYTES);
        let mut constants = BTreeMap::new();
        let mut tree = self.unit.entries_tree(Some(offset))?;
        let mut children = tree.root()?.children();
        while let Some(child) = children.next()? {
            let entry = child.entry();
            if entry.tag() != dw::DW_TAG_enumerator || constants.len() >= MEMBERS_MAX {
                continue;
            }
            let name = entry.attr_value(dw::DW_AT_name);
            let value = entry.attr_value(dw::DW_AT_const_value).and_then(constant);
            if let (Some(name), Some(value)) = (name, value)
                && let Ok(name) = str::from_utf8(self.unit.attr_string(name)?.slice())
            {
                let value = if bytes <= 4 {
                    i64::from(value as i32)
                } else {
                    value
                };
                constants.insert(name.to_owned(), value);
            }
        }
        Ok(constants)
    }

    fn composite(&self, offset: UnitOffset) -> Result<Option<Struct>, gimli::Error> {
        let Some(size) = byte_size(&self.unit.entry(offset)?) else {
            return Ok(None);
        };
        let mut members = BTreeMap::new();
        let mut budget = MEMBERS_MAX;
        self.members(offset, 0, ANONYMOUS_DEPTH_MAX, &mut budget, &mut members)?;
        Ok(Some(Struct { size, members }))
    }

    /// Members, those of anonymous structs and unions included, from `base` bytes on.
    fn members(
        &self,
        offset: UnitOffset,
        base: u32,
        depth: usize,
        budget: &mut usize,
        members: &mut BTreeMap<String, Field>,
    ) -> Result<(), gimli::Error> {
        let mut tree = self.unit.entries_tree(Some(offset))?;
        let mut children = tree.root()?.children();
        while let Some(child) = children.next()? {
            let entry = child.entry();
            if entry.tag() != dw::DW_TAG_member {
                continue;
            }
            let Some(left) = budget.checked_sub(1) else {
                return Ok(());
            };
            *budget = left;
            let place = member_offset(entry).and_then(|at| base.checked_add(at));
            let type_at = entry.attr_value(dw::DW_AT_type).and_then(reference);
            let (Some(place), Some(type_at)) = (place, type_at) else {
                continue;
            };
            match entry.attr_value(dw::DW_AT_name) {
                Some(name) => {
                    let size = self.size_of(type_at, INDIRECTIONS_MAX)?.unwrap_or(0);
                    let field = Field {
                        offset: place,
                        size,
                    };
                    if let Ok(name) = str::from_utf8(self.unit.attr_string(name)?.slice()) {
                        members.entry(name.to_owned()).or_insert(field);
                    }
                }
                None if depth > 0 => {
                    let inner = self.strip(type_at)?;
                    if inner.is_some_and(|(_, tag)| is_composite(tag)) {
                        let inner = inner.map_or(type_at, |(offset, _)| offset);
                        self.members(inner, place, depth - 1, budget, members)?;
                    }
                }
                None => {}
            }
        }
        Ok(())
    }

    /// The type behind typedefs and qualifiers.
    fn strip(&self, mut offset: UnitOffset) -> Result<Option<(UnitOffset, DwTag)>, gimli::Error> {
        for _ in 0..INDIRECTIONS_MAX {
            let entry = self.unit.entry(offset)?;
            match entry.tag() {
                dw::DW_TAG_typedef
                | dw::DW_TAG_const_type
                | dw::DW_TAG_volatile_type
                | dw::DW_TAG_restrict_type
                | dw::DW_TAG_atomic_type => {
                    match entry.attr_value(dw::DW_AT_type).and_then(reference) {
                        Some(behind) => offset = behind,
                        None => return Ok(None),
                    }
                }
                tag => return Ok(Some((offset, tag))),
            }
        }
        Ok(None)
    }

    fn size_of(&self, offset: UnitOffset, depth: usize) -> Result<Option<u32>, gimli::Error> {
        let Some((offset, tag)) = self.strip(offset)? else {
            return Ok(None);
        };
        let entry = self.unit.entry(offset)?;
        match tag {
            dw::DW_TAG_pointer_type => Ok(Some(POINTER_BYTES)),
            dw::DW_TAG_array_type => {
                let element = entry.attr_value(dw::DW_AT_type).and_then(reference);
                let (Some(element), Some(below)) = (element, depth.checked_sub(1)) else {
                    return Ok(None);
                };
                let Some(element) = self.size_of(element, below)? else {
                    return Ok(None);
                };
                let count = self.elements(offset)?;
                Ok(count.and_then(|count| element.checked_mul(count)))
            }
            _ => Ok(byte_size(&entry)),
        }
    }

    /// Elements of an array in all dimensions; 0 where its length is open.
    fn elements(&self, offset: UnitOffset) -> Result<Option<u32>, gimli::Error> {
        let mut count = Some(1u32);
        let mut tree = self.unit.entries_tree(Some(offset))?;
        let mut children = tree.root()?.children();
        while let Some(child) = children.next()? {
            let entry = child.entry();
            if entry.tag() != dw::DW_TAG_subrange_type {
                continue;
            }
            let number = |at| entry.attr_value(at).and_then(constant);
            let length = match (number(dw::DW_AT_count), number(dw::DW_AT_upper_bound)) {
                (Some(length), _) => length,
                (None, Some(last)) => i64::from(last as i32).saturating_add(1),
                (None, None) => 0,
            };
            let length = u32::try_from(length).ok();
            count = count.and_then(|count| count.checked_mul(length?));
        }
        Ok(count)
    }
}

fn is_composite(tag: DwTag) -> bool {
    matches!(tag, dw::DW_TAG_structure_type | dw::DW_TAG_union_type)
}

fn byte_size(entry: &Entry<'_>) -> Option<u32> {
    u32::try_from(entry.attr_value(dw::DW_AT_byte_size)?.udata_value()?).ok()
}

/// Byte offset of a member; None for a bit-field.
fn member_offset(entry: &Entry<'_>) -> Option<u32> {
    let is_bit_field = [dw::DW_AT_bit_size, dw::DW_AT_data_bit_offset]
        .iter()
        .any(|&name| entry.attr_value(name).is_some());
    if is_bit_field {
        return None;
    }
    match entry.attr_value(dw::DW_AT_data_member_location) {
        // A union's members are all at its start.
        None => Some(0),
        // DWARF 2 has an expression: DW_OP_plus_uconst.
        Some(AttributeValue::Exprloc(expression)) => {
            let mut operations = expression.0;
            let operation = operations.read_u8().ok()?;
            let offset = operations.read_uleb128().ok()?;
            (operation == dw::DW_OP_plus_uconst.0)
                .then(|| u32::try_from(offset).ok())
                .flatten()
        }
        Some(value) => u32::try_from(value.udata_value()?).ok(),
    }
}

/// A reference within the unit; compilers make others only when they link whole programs.
fn reference(value: AttributeValue<Slice<'_>>) -> Option<UnitOffset> {
    match value {
        AttributeValue::UnitRef(offset) => Some(offset),
        _ => None,
    }
}

/// A number as its form has it: unsigned where it has no sign.
fn constant(value: AttributeValue<Slice<'_>>) -> Option<i64> {
    match value {
        AttributeValue::Sdata(value) => Some(value),
        AttributeValue::Udata(value) | AttributeValue::Data8(value) => Some(value as i64),
        AttributeValue::Data1(value) => Some(value.into()),
        AttributeValue::Data2(value) => Some(value.into()),
        AttributeValue::Data4(value) => Some(value.into()),
        _ => None,
    }
}
