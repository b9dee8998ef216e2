//! QEMU's migration stream: a parser for what the source QEMU says, a writer for what the
//! destination QEMU is told. Format: QEMU's docs/devel/migration and migration/ram.c.
//!
//! What is not known is refused by name, never guessed at or skipped.

pub mod return_path;
mod writer;

use super::ram::{PAGE_BYTES, RamPage, RamTable};
pub use writer::RamWriter;

const MAGIC: u32 = 0x5145_564d;
const VERSION: u32 = 3;

const SECTION_START: u8 = 0x01;
const SECTION_PART: u8 = 0x02;
const SECTION_END: u8 = 0x03;
const SUBSECTION: u8 = 0x05;
const CONFIGURATION: u8 = 0x07;
const COMMAND: u8 = 0x08;
const FOOTER: u8 = 0x7e;

const RAM_VERSION: u32 = 4;
/// The low bits of a RAM record's first word; the high ones are an offset (migration/ram.c).
const FLAGS: u64 = PAGE_BYTES as u64 - 1;

bitflags::bitflags! {
    /// RAM_SAVE_FLAG_* of migration/ram.c, as far as a plain stream has them.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct RamFlags: u64 {
        const ZERO = 0x02;
        const MEM_SIZE = 0x04;
        const PAGE = 0x08;
        const EOS = 0x10;
        const CONTINUE = 0x20;
    }
}

/// Bytes that hold the longest single item: a MEM_SIZE record with every block's name at its
/// longest (1,024 × 264 bytes). A reader's buffer must be at least as large, or an item may never be whole.
pub const ITEM_BYTES_MAX: usize = 512 << 10;

/// What the stream said next.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// Structure to be passed on as it is: header and configuration.
    Raw(&'a [u8]),
    /// A command, to be passed on as it is. The first one says that the configuration is whole.
    Command(&'a [u8]),
    /// The start of section "ram", with just the table's blocks. [`RamWriter`] writes its own.
    RamStart,
    /// The page's content is all zero.
    Zero(RamPage),
    /// The page's content.
    Page(RamPage, &'a [u8; PAGE_BYTES]),
    /// A part of section "ram" is over.
    PartEnd,
    /// Section "ram" is over: the guest is stopped, every page has had its last emission.
    RamEnd,
    /// Device state, to be passed on as it is, up to the end of the stream.
    Device(&'a [u8]),
}

/// Why the stream cannot be followed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StreamError {
    /// Not the stream of a migration.
    #[error(
        "QEMU's stream begins with {magic:#010x} version {version}, not QEVM version {VERSION}"
    )]
    Header {
        /// The magic number seen.
        magic: u32,
        /// The version seen.
        version: u32,
    },
    /// A record that a plain precopy stream does not have.
    #[error("QEMU's stream has {what}, which pct-vmi cannot follow; {remedy}")]
    Unknown {
        /// What was seen.
        what: String,
        /// What the operator can do.
        remedy: &'static str,
    },
    /// The stream contradicts itself or the RAM table.
    #[error("QEMU's stream is inconsistent: {0}")]
    Inconsistent(String),
}

const SWITCH_OFF: &str = "switch the option off on both QEMUs and start again";
const NO_DEVICE: &str = "migrate without the device or option that adds it";

enum Stop {
    Short,
    Bad(StreamError),
}

impl From<StreamError> for Stop {
    fn from(error: StreamError) -> Stop {
        Stop::Bad(error)
    }
}

fn inconsistent<T>(what: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Bad(StreamError::Inconsistent(what.into())))
}

fn unknown<T>(what: impl Into<String>, remedy: &'static str) -> Result<T, Stop> {
    Err(Stop::Bad(StreamError::Unknown {
        what: what.into(),
        remedy,
    }))
}

struct Cursor<'a> {
    buf: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn bytes(&mut self, n: usize) -> Result<&'a [u8], Stop> {
        let slice = self.buf.get(self.at..self.at + n).ok_or(Stop::Short)?;
        self.at += n;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Stop> {
        Ok(self.bytes(N)?.try_into().expect("the length asked for"))
    }

    fn u8(&mut self) -> Result<u8, Stop> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, Stop> {
        Ok(u16::from_be_bytes(*self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Stop> {
        Ok(u32::from_be_bytes(*self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Stop> {
        Ok(u64::from_be_bytes(*self.array()?))
    }

    /// A string behind its length in one byte.
    fn counted(&mut self) -> Result<&'a [u8], Stop> {
        let n = self.u8()?;
        self.bytes(n.into())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    /// Between records, before section "ram" has ended.
    Records,
    /// Inside section "ram".
    Ram {
        end: bool,
    },
    Device,
}

/// Follows one QEMU's stream. It keeps no bytes: the caller offers what it has and drops what was consumed.
#[derive(Debug)]
pub struct Parser {
    table: RamTable,
    state: State,
    section_id: Option<u32>,
    /// The block of the record before, which a record with CONTINUE means.
    block: Option<usize>,
}

impl Parser {
    /// A parser for the stream of a VM with these RAM blocks.
    pub fn new(table: RamTable) -> Parser {
        Parser {
            table,
            state: State::Header,
            section_id: None,
            block: None,
        }
    }

    /// Whether section "ram" has ended.
    pub fn is_past_ram(&self) -> bool {
        self.state == State::Device
    }

    /// The next item at the start of `buf` and how many bytes it took; none when `buf` holds no
    /// whole item. After an error the parser must not be used again.
    pub fn next<'a>(&mut self, buf: &'a [u8]) -> Result<Option<(usize, Item<'a>)>, StreamError> {
        let mut cursor = Cursor { buf, at: 0 };
        let item = match self.state {
            State::Header => self.header(&mut cursor),
            State::Records => self.record(&mut cursor),
            State::Ram { end } => self.ram_record(&mut cursor, end),
            State::Device if buf.is_empty() => Err(Stop::Short),
            State::Device => cursor.bytes(buf.len()).map(Item::Device),
        };
        match item {
            // RAM records open with their section's header, which is ours to write anew: it has no item.
            Ok(item) => Ok(Some((cursor.at, item))),
            Err(Stop::Short) if buf.len() >= ITEM_BYTES_MAX => {
                let what = format!("an item longer than {ITEM_BYTES_MAX} bytes");
                Err(StreamError::Inconsistent(what))
            }
            Err(Stop::Short) => Ok(None),
            Err(Stop::Bad(error)) => Err(error),
        }
    }

    fn header<'a>(&mut self, c: &mut Cursor<'a>) -> Result<Item<'a>, Stop> {
        let (magic, version) = (c.u32()?, c.u32()?);
        if (magic, version) != (MAGIC, VERSION) {
            return Err(StreamError::Header { magic, version }.into());
        }
        self.state = State::Records;
        Ok(Item::Raw(&c.buf[..c.at]))
    }

    fn record<'a>(&mut self, c: &mut Cursor<'a>) -> Result<Item<'a>, Stop> {
        match c.u8()? {
            CONFIGURATION => {
                let n = c.u32()?;
                if n > 255 {
                    return inconsistent(format!("a machine type of {n} bytes"));
                }
                c.bytes(n as usize)?;
                Ok(Item::Raw(&c.buf[..c.at]))
            }
            SUBSECTION => configuration_subsection(c),
            COMMAND => {
                let (_command, n) = (c.u16()?, c.u16()?);
                c.bytes(n.into())?;
                Ok(Item::Command(&c.buf[..c.at]))
            }
            SECTION_START => self.section_start(c),
            kind @ (SECTION_PART | SECTION_END) => {
                let id = c.u32()?;
                if self.section_id != Some(id) {
                    return inconsistent(format!("a part of section {id}, which never started"));
                }
                // The next record decides how much is consumed, so the state changes only once it
                // is whole: otherwise this header would be read twice.
                let end = kind == SECTION_END;
                let item = self.ram_record(c, end)?;
                if matches!(item, Item::Zero(_) | Item::Page(..)) {
                    self.state = State::Ram { end };
                }
                Ok(item)
            }
            kind => unknown(
                format!("a record of type {kind:#04x} before the end of RAM"),
                NO_DEVICE,
            ),
        }
    }

    fn section_start<'a>(&mut self, c: &mut Cursor<'a>) -> Result<Item<'a>, Stop> {
        let section_id = c.u32()?;
        let idstr = c.counted()?;
        let (_instance, version) = (c.u32()?, c.u32()?);
        if idstr != b"ram" || version != RAM_VERSION || self.section_id.is_some() {
            let name = String::from_utf8_lossy(idstr);
            return unknown(format!("section {name:?} version {version}"), NO_DEVICE);
        }
        let head = c.u64()?;
        if head & FLAGS != RamFlags::MEM_SIZE.bits() {
            return inconsistent(format!(
                "section \"ram\" begins with {head:#x}, not MEM_SIZE"
            ));
        }
        self.mem_size(c, head & !FLAGS)?;
        let eos = c.u64()?;
        if eos != RamFlags::EOS.bits() {
            return unknown(format!("RAM set-up record {eos:#x}"), SWITCH_OFF);
        }
        footer(c, section_id)?;
        self.section_id = Some(section_id);
        Ok(Item::RamStart)
    }

    /// Reads MEM_SIZE's list of blocks, which must be the table's: the destination QEMU was told of those.
    fn mem_size(&self, c: &mut Cursor<'_>, total_bytes: u64) -> Result<(), Stop> {
        let mut left = total_bytes;
        let mut seen = vec![false; self.table.blocks().len()];
        while left > 0 {
            let idstr = c.counted()?;
            let bytes = c.u64()?;
            let known = self.table.block_of(idstr).filter(|block| !seen[*block]);
            let Some(block) = known.filter(|block| self.table.blocks()[*block].bytes == bytes)
            else {
                let name = String::from_utf8_lossy(idstr);
                return inconsistent(format!(
                    "RAM block {name:?} of {bytes} bytes is not as `info ramblock` has it"
                ));
            };
            seen[block] = true;
            // An empty block would let the list go on for ever; every other one is seen but once.
            left = match left.checked_sub(bytes) {
                Some(left) => left,
                None => return inconsistent("MEM_SIZE's blocks are more than its total"),
            };
        }
        let mut blocks = seen.iter().zip(self.table.blocks());
        match blocks.find(|(seen, block)| !**seen && block.bytes > 0) {
            Some((_, block)) => unknown(format!("no RAM block {:?}", block.idstr), NO_DEVICE),
            None => Ok(()),
        }
    }

    fn ram_record<'a>(&mut self, c: &mut Cursor<'a>, end: bool) -> Result<Item<'a>, Stop> {
        let head = c.u64()?;
        let flags = RamFlags::from_bits_retain(head & FLAGS);
        match flags.difference(RamFlags::CONTINUE) {
            RamFlags::EOS => {
                footer(c, self.section_id.unwrap_or_default())?;
                self.state = if end { State::Device } else { State::Records };
                Ok(if end { Item::RamEnd } else { Item::PartEnd })
            }
            kind @ (RamFlags::ZERO | RamFlags::PAGE) => {
                let (block, page) = self.page(c, flags, head & !FLAGS)?;
                let item = if kind == RamFlags::PAGE {
                    Item::Page(page, c.array()?)
                } else if c.u8()? == 0 {
                    Item::Zero(page)
                } else {
                    return unknown("a page filled with a byte other than zero", SWITCH_OFF);
                };
                self.block = Some(block);
                Ok(item)
            }
            _ => unknown(
                format!(
                    "RAM record flags {:#x} (multifd, xbzrle, compression or RDMA)",
                    flags.bits()
                ),
                SWITCH_OFF,
            ),
        }
    }

    fn page(&self, c: &mut Cursor<'_>, flags: RamFlags, at: u64) -> Result<(usize, RamPage), Stop> {
        let block = if flags.contains(RamFlags::CONTINUE) {
            self.block
        } else {
            let idstr = c.counted()?;
            self.table.block_of(idstr)
        };
        let page = block.and_then(|block| Some((block, self.table.page(block, at)?)));
        match page {
            Some(page) => Ok(page),
            None => inconsistent(format!(
                "a page at {at:#x} of a RAM block that does not reach so far"
            )),
        }
    }
}

fn configuration_subsection<'a>(c: &mut Cursor<'a>) -> Result<Item<'a>, Stop> {
    let idstr = c.counted()?;
    let _version = c.u32()?;
    match idstr {
        b"configuration/target-page-bits" => drop(c.u32()?),
        b"configuration/uuid" => drop(c.bytes(16)?),
        b"configuration/capabilities" => {
            let n = c.u32()?;
            if n > 256 {
                return inconsistent(format!("{n} capabilities"));
            }
            for _ in 0..n {
                c.counted()?;
            }
        }
        other => {
            let name = String::from_utf8_lossy(other);
            return unknown(
                format!("subsection {name:?} of the configuration"),
                NO_DEVICE,
            );
        }
    }
    Ok(Item::Raw(&c.buf[..c.at]))
}

fn footer(c: &mut Cursor<'_>, section_id: u32) -> Result<(), Stop> {
    let (mark, id) = (c.u8()?, c.u32()?);
    if (mark, id) != (FOOTER, section_id) {
        return inconsistent(format!("section {section_id} ends with {mark:#04x} {id}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
