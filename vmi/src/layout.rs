//! Where guest RAM is, from the texts of `info mtree -f` and `info ramblock`: QEMU's blocks in
//! QEMU's order, and the guest physical ranges that they back. It never infers a machine's address
//! map: a range that QEMU does not list does not exist.

use thiserror::Error;

/// One of QEMU's RAM blocks, ROMs included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamBlock {
    /// The block's idstr, as in the migration stream.
    pub name: String,
    pub used_bytes: u64,
    /// Host virtual address in the QEMU process. QEMU 7.2 does not list it: `gpa2hva` tells it for
    /// blocks that the guest sees.
    pub hva: Option<u64>,
}

/// A guest physical range backed by a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRange {
    pub gpa: u64,
    pub bytes: u64,
    /// Index into [`RamLayout::blocks`].
    pub block: usize,
    /// Of the range's first byte in its block, in bytes.
    pub offset: u64,
}

/// RAM blocks and the guest's view of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RamLayout {
    /// In QEMU's own order.
    pub blocks: Vec<RamBlock>,
    /// RAM only, sorted by address, not overlapping.
    pub ranges: Vec<RamRange>,
}

/// Why QEMU's answer could not be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LayoutError {
    #[error("`info mtree -f` lists no address space called \"memory\"")]
    NoMemoryView,
    #[error("`info mtree -f` lists no RAM")]
    NoRam,
    #[error("`info ramblock` lists no blocks")]
    NoBlocks,
    #[error("`info ramblock`: cannot read the line {0:?}")]
    Block(String),
    #[error("`info mtree -f`: RAM {0:?} is in no block, or in more than one, of `info ramblock`")]
    Unmatched(String),
    #[error("`info mtree -f`: RAM at {0:#x} overlaps what is before it, or leaves its block")]
    Range(u64),
}

impl RamLayout {
    /// Reads both texts.
    ///
    /// # Errors
    /// When a text has not the form that QEMU 7.2 to 10.0 give it, or the two do not fit together.
    pub fn parse(mtree: &str, ramblock: &str) -> Result<RamLayout, LayoutError> {
        let blocks: Vec<RamBlock> = ramblock
            .lines()
            .skip(1)
            .filter(|line| !line.trim().is_empty())
            .filter_map(|line| parse_block(line).transpose())
            .collect::<Result<_, _>>()?;
        if blocks.is_empty() {
            return Err(LayoutError::NoBlocks);
        }
        let view = memory_view(mtree).ok_or(LayoutError::NoMemoryView)?;
        let ranges = ranges(&view, &blocks)?;
        if ranges.is_empty() {
            return Err(LayoutError::NoRam);
        }
        Ok(RamLayout { blocks, ranges })
    }

    /// Block and offset behind a guest physical address.
    pub fn locate(&self, gpa: u64) -> Option<(usize, u64)> {
        let range = range_at(&self.ranges, gpa)?;
        Some((range.block, range.offset + (gpa - range.gpa)))
    }

    /// Guest RAM in bytes.
    pub fn ram_bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.bytes).sum()
    }
}

/// The range that holds an address.
pub(crate) fn range_at(ranges: &[RamRange], gpa: u64) -> Option<&RamRange> {
    let after = ranges.partition_point(|range| range.gpa <= gpa);
    let range = &ranges[after.checked_sub(1)?];
    (gpa - range.gpa < range.bytes).then_some(range)
}

/// `pc.ram  4 KiB  0x<offset> 0x<used> 0x<total> [0x<hva>] [rw]`. None for a block without a name: a memory backend that
/// is plugged into nothing. The guest does not see it, and QEMU does not migrate it.
fn parse_block(line: &str) -> Result<Option<RamBlock>, LayoutError> {
    let malformed = || LayoutError::Block(line.trim().to_owned());
    let words: Vec<&str> = line.split_whitespace().collect();
    let name = match words.iter().position(|word| word.starts_with("0x")) {
        Some(2) => return Ok(None),
        Some(3) => words[0],
        _ => return Err(malformed()),
    };
    let numbers: Vec<u64> = words
        .iter()
        .filter_map(|word| word.strip_prefix("0x"))
        .map(|digits| u64::from_str_radix(digits, 16))
        .collect::<Result<_, _>>()
        .map_err(|_| malformed())?;
    let [_offset, used_bytes, _total, hva @ ..] = numbers.as_slice() else {
        return Err(malformed());
    };
    Ok(Some(RamBlock {
        name: name.to_owned(),
        used_bytes: *used_bytes,
        hva: hva.first().copied(),
    }))
}

/// One line of a flat view.
struct FlatRange<'a> {
    start: u64,
    end: u64,
    kind: &'a str,
    name: &'a str,
    offset: u64,
}

/// The lines of the flat view that the address space "memory" shows.
fn memory_view(mtree: &str) -> Option<Vec<FlatRange<'_>>> {
    let lines = mtree.lines().map(str::trim);
    let mut lines = lines.skip_while(|line| !line.starts_with("AS \"memory\","));
    lines.next()?;
    let view = lines.take_while(|line| !line.is_empty() && !line.starts_with("FlatView"));
    Some(view.filter_map(parse_flat_range).collect())
}

/// `0000000000000000-00000000000c2fff (prio 0, ram): pc.ram @0000000000000000 KVM`
fn parse_flat_range(line: &str) -> Option<FlatRange<'_>> {
    let (addresses, rest) = line.split_once(" (prio ")?;
    let (start, end) = addresses.split_once('-')?;
    let (kind, rest) = rest.split_once(", ")?.1.split_once("): ")?;
    let (name, tail) = rest.split_once(' ').unwrap_or((rest, ""));
    let offset = tail
        .split_whitespace()
        .find_map(|word| word.strip_prefix('@'))
        .unwrap_or("0");
    Some(FlatRange {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        kind,
        name,
        offset: u64::from_str_radix(offset, 16).ok()?,
    })
}

/// Writable RAM, and the shadowed parts of it that the guest made read-only ("rom" ranges of a
/// block that is RAM elsewhere).
fn ranges(view: &[FlatRange<'_>], blocks: &[RamBlock]) -> Result<Vec<RamRange>, LayoutError> {
    let is_ram = |name: &str| {
        view.iter()
            .any(|flat| flat.kind == "ram" && flat.name == name)
    };
    let mut ranges: Vec<RamRange> = Vec::new();
    let mut free_from = 0;
    for flat in view
        .iter()
        .filter(|f| matches!(f.kind, "ram" | "rom") && is_ram(f.name))
    {
        let block = block_named(blocks, flat.name)
            .ok_or_else(|| LayoutError::Unmatched(flat.name.to_owned()))?;
        let malformed = LayoutError::Range(flat.start);
        let bytes = flat
            .end
            .checked_sub(flat.start)
            .and_then(|bytes| bytes.checked_add(1));
        let range = bytes.and_then(|bytes| {
            let end = flat.offset.checked_add(bytes)?;
            flat.start.checked_add(bytes)?;
            (flat.start >= free_from && end <= blocks[block].used_bytes).then_some(RamRange {
                gpa: flat.start,
                bytes,
                block,
                offset: flat.offset,
            })
        });
        let range = range.ok_or(malformed)?;
        free_from = range.gpa + range.bytes;
        match ranges.last_mut() {
            Some(last)
                if last.block == block
                    && last.gpa + last.bytes == range.gpa
                    && last.offset + last.bytes == range.offset =>
            {
                last.bytes += range.bytes;
            }
            _ => ranges.push(range),
        }
    }
    Ok(ranges)
}

/// A block's idstr is the memory region's name, behind its device's path where it has one.
fn block_named(blocks: &[RamBlock], name: &str) -> Option<usize> {
    if let Some(exact) = blocks.iter().position(|block| block.name == name) {
        return Some(exact);
    }
    let behind = |block: &RamBlock| {
        block
            .name
            .strip_suffix(name)
            .is_some_and(|device| device.ends_with('/'))
    };
    let mut matches = (0..blocks.len()).filter(|&index| behind(&blocks[index]));
    let first = matches.next()?;
    matches.next().is_none().then_some(first)
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
