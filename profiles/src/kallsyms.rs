//! kallsyms, the kernel's own symbol table (scripts/kallsyms.c, kernel/kallsyms.c), out of the
//! kernel's image. Order, alignment and encoding of its tables changed over time: they are chosen
//! by which choice gives known symbols their known addresses, never by version. The type letters
//! are not used: newer kernels get them wrong.

use thiserror::Error;

use crate::image::Image;
use crate::vmcoreinfo::Vmcoreinfo;

/// Symbols in a table. Debian's kernels have 100,000 to 200,000.
const SYMBOLS_MAX: u32 = 1 << 22;
/// Fewer than this is not a kernel; keeps the search from trying every small number it meets.
const SYMBOLS_MIN: u32 = 64;
/// Name lengths walked in one search for the names table: 50 ms.
const SEARCH_STEPS_MAX: usize = 50_000_000;
/// Tokens that expand the compressed names.
const TOKENS: usize = 256;
/// Bytes a token can have. The longest seen is 30.
const TOKEN_BYTES_MAX: usize = 128;
/// KSYM_NAME_LEN of the newest kernels, and the type letter.
const NAME_BYTES_MAX: usize = 513;
/// All names together, expanded. Debian's kernels have 4 MB.
const NAMES_BYTES_MAX: usize = 64 << 20;
/// The token table around the digits, which stand for themselves.
const DIGIT_TOKENS: &[u8] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00";

/// Why no symbols were found.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum KallsymsError {
    #[error("no kallsyms {0} in the kernel's image")]
    NotFound(&'static str),
    #[error("no known encoding of kallsyms gives _stext and swapper_pg_dir their addresses")]
    Calibration,
}

/// Virtual addresses of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tables {
    num_syms: u32,
    names: u64,
    token_table: u64,
    token_index: u64,
}

/// How an entry of the offsets table becomes an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    /// CONFIG_KALLSYMS_ABSOLUTE_PERCPU: not negative is absolute, negative is `base - 1 - offset`.
    AbsolutePercpu { base: u64 },
    /// CONFIG_KALLSYMS_BASE_RELATIVE without it: unsigned, from the base.
    Relative { base: u64 },
    /// Signed, from the entry's own address.
    OwnAddress,
}

/// The symbol table of one kernel.
#[derive(Debug)]
pub struct Kallsyms<'a> {
    names: &'a [u8],
    tokens: Vec<&'a [u8]>,
    num_syms: u32,
    offsets: Offsets<'a>,
}

impl<'a> Kallsyms<'a> {
    /// Finds the tables in an image that begins with `_stext`, and calibrates them by that. What
    /// VMCOREINFO says, where it is known, makes it quicker and is checked too.
    ///
    /// # Errors
    /// When the tables are not there or no known encoding fits.
    pub fn find(
        image: Image<'a>,
        info: Option<&Vmcoreinfo>,
    ) -> Result<Kallsyms<'a>, KallsymsError> {
        let tables = match info.and_then(|info| Tables::from_vmcoreinfo(image, info)) {
            Some(tables) => tables,
            None => Tables::search(image)?,
        };
        let tokens = tokens(image, &tables).ok_or(KallsymsError::NotFound("token table"))?;
        let names = image
            .from(tables.names)
            .ok_or(KallsymsError::NotFound("names"))?;
        let mut candidates = tables.offset_candidates(image, info);
        let first = candidates.pop().ok_or(KallsymsError::NotFound("offsets"))?;
        let mut kallsyms = Kallsyms {
            names,
            tokens,
            num_syms: tables.num_syms,
            offsets: first,
        };
        let [stext, swapper, init_top] =
            kallsyms.indices(["_stext", "swapper_pg_dir", "init_top_pgt"]);
        let known = [
            (stext, Some(image.base)),
            (
                swapper.or(init_top),
                info.and_then(|info| info.symbol("swapper_pg_dir")),
            ),
        ];
        // What is not known on one side cannot contradict, but _stext always is.
        let agrees = |offsets: &Offsets<'_>| {
            stext.is_some()
                && known.iter().all(|(index, address)| match (index, address) {
                    (Some(index), Some(address)) => offsets.address(*index) == Some(*address),
                    _ => true,
                })
        };
        let all = std::iter::once(first).chain(candidates);
        kallsyms.offsets = all
            .into_iter()
            .find(agrees)
            .ok_or(KallsymsError::Calibration)?;
        Ok(kallsyms)
    }

    /// Addresses of the named symbols, in one pass; the first wins where a name occurs twice.
    pub fn lookup<const N: usize>(&self, wanted: [&str; N]) -> [Option<u64>; N] {
        self.indices(wanted)
            .map(|index| self.offsets.address(index?))
    }

    /// Every symbol that has a name and an address, in the table's order.
    pub fn symbols(&self) -> Vec<(String, u64)> {
        let mut symbols = Vec::new();
        let mut bytes_left = NAMES_BYTES_MAX;
        self.for_each_name(|index, name| {
            let (Ok(name), Some(address)) = (str::from_utf8(name), self.offsets.address(index))
            else {
                return;
            };
            if let Some(left) = bytes_left.checked_sub(name.len()) {
                bytes_left = left;
                symbols.push((name.to_owned(), address));
            }
        });
        symbols
    }

    fn indices<const N: usize>(&self, wanted: [&str; N]) -> [Option<usize>; N] {
        let mut found = [None; N];
        self.for_each_name(|index, name| {
            for (slot, wanted) in found.iter_mut().zip(wanted) {
                if slot.is_none() && name == wanted.as_bytes() {
                    *slot = Some(index);
                }
            }
        });
        found
    }

    fn for_each_name(&self, mut visit: impl FnMut(usize, &[u8])) {
        let mut at = 0;
        let mut name = Vec::with_capacity(NAME_BYTES_MAX);
        for index in 0..self.num_syms as usize {
            let Some((start, end)) = name_bounds(self.names, at) else {
                break;
            };
            at = end;
            name.clear();
            for &token in &self.names[start..end] {
                name.extend_from_slice(self.tokens[usize::from(token)]);
            }
            // The first letter is the type.
            if let Some(name) = name.get(1..) {
                visit(index, name);
            }
        }
    }
}

/// The offsets table, and one way to read it.
#[derive(Debug, Clone, Copy)]
struct Offsets<'a> {
    /// One signed 32-bit entry a symbol.
    entries: &'a [u8],
    /// Virtual address of the first.
    start: u64,
    encoding: Encoding,
}

impl Offsets<'_> {
    fn address(&self, index: usize) -> Option<u64> {
        let bytes = self.entries.get(4 * index..4 * index + 4)?;
        let offset = i32::from_le_bytes(bytes.try_into().ok()?);
        Some(match self.encoding {
            Encoding::AbsolutePercpu { .. } if offset >= 0 => u64::from(offset.unsigned_abs()),
            Encoding::AbsolutePercpu { base } => {
                base.wrapping_sub(1).wrapping_sub(i64::from(offset) as u64)
            }
            Encoding::Relative { base } => base.wrapping_add(u64::from(offset as u32)),
            Encoding::OwnAddress => self
                .start
                .wrapping_add(4 * index as u64)
                .wrapping_add(i64::from(offset) as u64),
        })
    }
}

impl Tables {
    /// From 6.1 on VMCOREINFO tells.
    fn from_vmcoreinfo(image: Image<'_>, info: &Vmcoreinfo) -> Option<Tables> {
        let num_syms = image.u32(info.symbol("kallsyms_num_syms")?)?;
        Some(Tables {
            num_syms: (num_syms <= SYMBOLS_MAX).then_some(num_syms)?,
            names: info.symbol("kallsyms_names")?,
            token_table: info.symbol("kallsyms_token_table")?,
            token_index: info.symbol("kallsyms_token_index")?,
        })
    }

    /// The token table has a shape of its own; the names lie somewhere before it and prove
    /// themselves by their markers.
    fn search(image: Image<'_>) -> Result<Tables, KallsymsError> {
        let (table, index) =
            search_token_table(image.bytes).ok_or(KallsymsError::NotFound("token table"))?;
        let (num_syms, names) = search_names(&image.bytes[..table])
            .ok_or(KallsymsError::NotFound("names before its token table"))?;
        Ok(Tables {
            num_syms,
            names: image.base.wrapping_add(names as u64),
            token_table: image.base.wrapping_add(table as u64),
            token_index: image.base.wrapping_add(index as u64),
        })
    }

    /// Every place and encoding that the offsets may have, to be calibrated.
    fn offset_candidates<'a>(
        &self,
        image: Image<'a>,
        info: Option<&Vmcoreinfo>,
    ) -> Vec<Offsets<'a>> {
        let length = (4 * u64::from(self.num_syms)).next_multiple_of(8);
        let mut places = Vec::new();
        let symbol = |name| info.and_then(|info| info.symbol(name));
        if let Some(offsets) = symbol("kallsyms_offsets") {
            places.push((offsets, symbol("kallsyms_relative_base")));
        }
        // Behind the token index, with or without a base behind the offsets …
        let behind = self.token_index.saturating_add(2 * TOKENS as u64 + 7) & !7;
        places.push((behind, behind.checked_add(length)));
        // … or before num_syms, which is padded to eight bytes, with a base between.
        let base = self.names.saturating_sub(16);
        places.push((base.saturating_sub(length), Some(base)));

        let mut candidates = Vec::new();
        for (start, base) in places {
            let Some(entries) = image.at(start, 4 * self.num_syms as usize) else {
                continue;
            };
            if let Some(base) = base.and_then(|address| image.u64(address)) {
                for encoding in [
                    Encoding::AbsolutePercpu { base },
                    Encoding::Relative { base },
                ] {
                    candidates.push(Offsets {
                        entries,
                        start,
                        encoding,
                    });
                }
            }
            candidates.push(Offsets {
                entries,
                start,
                encoding: Encoding::OwnAddress,
            });
        }
        candidates
    }
}

fn tokens<'a>(image: Image<'a>, tables: &Tables) -> Option<Vec<&'a [u8]>> {
    let index = image.at(tables.token_index, 2 * TOKENS)?;
    let table = image.from(tables.token_table)?;
    let token = |entry: &[u8]| {
        let tail = table.get(usize::from(u16::from_le_bytes([entry[0], entry[1]]))..)?;
        let length = tail.iter().take(TOKEN_BYTES_MAX).position(|&b| b == 0)?;
        Some(&tail[..length])
    };
    index.chunks_exact(2).map(token).collect()
}

/// Bounds of the compressed name at `at`: its length is one byte, or two from 128 on.
fn name_bounds(names: &[u8], at: usize) -> Option<(usize, usize)> {
    let first = usize::from(*names.get(at)?);
    let (length, start) = if first & 0x80 == 0 {
        (first, at + 1)
    } else {
        (first & 0x7f | usize::from(*names.get(at + 1)?) << 7, at + 2)
    };
    (length > 0 && start + length <= names.len()).then_some((start, start + length))
}

/// Offsets of a token table and of the index that proves it.
fn search_token_table(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut at = 0;
    while let Some(found) = find_digit_tokens(&bytes[at..]) {
        let digits = at + found;
        if let Some(place) = token_table_at(bytes, digits) {
            return Some(place);
        }
        at = digits + 1;
    }
    None
}

/// Goes back from the token "0" over the 48 tokens before it, then forward over all 256.
fn token_table_at(bytes: &[u8], digits: usize) -> Option<(usize, usize)> {
    let mut start = digits;
    for _ in 0..b'0' {
        let before = bytes[..start.checked_sub(1)?]
            .iter()
            .rev()
            .take(TOKEN_BYTES_MAX);
        start -= 1 + before.take_while(|&&b| b != 0).count();
    }
    let mut expected = Vec::with_capacity(2 * TOKENS);
    let mut at = start;
    for _ in 0..TOKENS {
        expected.extend_from_slice(&u16::try_from(at - start).ok()?.to_le_bytes());
        at += 1 + bytes
            .get(at..)?
            .iter()
            .take(TOKEN_BYTES_MAX)
            .position(|&b| b == 0)?;
    }
    let index = [4, 8].map(|align| at.next_multiple_of(align));
    index
        .into_iter()
        .find(|&index| bytes.get(index..index + 2 * TOKENS) == Some(&expected))
        .map(|index| (start, index))
}

/// Symbol count and offset of the names: a count, then that many names, then markers that tell the
/// offset of every 256th name.
fn search_names(bytes: &[u8]) -> Option<(u32, usize)> {
    let mut budget = SEARCH_STEPS_MAX;
    for at in (0..bytes.len().saturating_sub(8)).step_by(4).rev() {
        let count = u32::from_le_bytes(bytes[at..at + 4].try_into().ok()?);
        let room = bytes.len() - at;
        if !(SYMBOLS_MIN..=SYMBOLS_MAX).contains(&count) || 2 * count as usize > room {
            continue;
        }
        // Padded to eight bytes, or not.
        for names in [at + 8, at + 4] {
            if names_match_markers(bytes, names, count, &mut budget)? {
                return Some((count, names));
            }
        }
    }
    None
}

/// None when the search has cost too much.
fn names_match_markers(bytes: &[u8], names: usize, count: u32, budget: &mut usize) -> Option<bool> {
    let mut markers = Vec::new();
    let mut at = names;
    for index in 0..count {
        *budget = budget.checked_sub(1)?;
        if index % 256 == 0 {
            markers.extend_from_slice(&((at - names) as u32).to_le_bytes());
        }
        match name_bounds(bytes, at) {
            Some((_, end)) => at = end,
            None => return Some(false),
        }
    }
    let found = [4, 8].map(|align| at.next_multiple_of(align));
    Some(
        found
            .into_iter()
            .any(|at| bytes.get(at..at + markers.len()) == Some(&markers)),
    )
}

/// The first place of the digits' tokens. Of two bytes next to each other in them one is a digit,
/// and tells where they begin: it is enough to look at two bytes in 18.
fn find_digit_tokens(bytes: &[u8]) -> Option<usize> {
    const STRIDE: usize = DIGIT_TOKENS.len() - 2;
    let starts = |at: usize| {
        let digit = bytes.get(at).filter(|byte| byte.is_ascii_digit())?;
        let start = at.checked_sub(2 * usize::from(digit - b'0'))?;
        bytes[start..].starts_with(DIGIT_TOKENS).then_some(start)
    };
    (0..bytes.len())
        .step_by(STRIDE)
        .find_map(|at| starts(at).or_else(|| starts(at + 1)))
}

#[cfg(test)]
#[path = "kallsyms_tests.rs"]
mod tests;
