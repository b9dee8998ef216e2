//! Page records: many to a frame, since one message a page would cost more than the page is worth.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use bytes::Bytes;

use super::{BODY_BYTES_MAX, HEADER_BYTES, Header, Kind, WireError, bad, checked};
use crate::core::digest::Digest;
use crate::core::pieces::Pieces;
use crate::core::ram::{PAGE_BYTES, RamPage};

/// Zero pages that a [`Kind::Pages`] frame may tell of: eight bytes are any number of them, and the destination QEMU is
/// told of each in nine.
pub const ZERO_PAGES_MAX: u32 = 1 << 20;

/// What the source tells of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    /// Emitted: this many pages from here on are all zero.
    Zero(RamPage, u16),
    /// Emitted: the content.
    Content(RamPage, &'a [u8; PAGE_BYTES]),
    /// Emitted: only the content's digest.
    Claim(RamPage, Digest),
    /// Not emitted yet: provisional bytes.
    Early(RamPage, &'a [u8; PAGE_BYTES]),
    /// The claim no longer holds: QEMU will emit the page again.
    Dirtied(RamPage),
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RecordHead {
    page: U32,
    count: U16,
    kind: u8,
    zero: u8,
}

/// Builds a [`Kind::Pages`] frame record by record.
#[derive(Debug)]
pub struct PagesFrame {
    frame: Pieces,
    /// Where the last record's head is when it is a run of zero pages that may grow.
    zeros: Option<usize>,
    zero_pages: u32,
}

impl Default for PagesFrame {
    fn default() -> PagesFrame {
        let mut frame = Pieces::default();
        frame.copy(Header::new(Kind::Pages, 0).as_bytes());
        PagesFrame {
            frame,
            zeros: None,
            zero_pages: 0,
        }
    }
}

impl PagesFrame {
    /// Bytes of the body so far.
    pub fn len(&self) -> usize {
        self.frame.len() - HEADER_BYTES
    }

    /// Whether there is no record yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether one more record of any kind fits.
    pub fn has_room(&self) -> bool {
        let longest = size_of::<RecordHead>() + PAGE_BYTES;
        self.len() + longest <= BODY_BYTES_MAX
            && self.zero_pages <= ZERO_PAGES_MAX - u32::from(u16::MAX)
    }

    /// Adds a record, whose content is a part of `owner`; zero pages that are neighbours become one.
    ///
    /// # Panics
    /// When it has content that is no part of `owner`.
    pub fn push(&mut self, record: &Record<'_>, owner: &Bytes) {
        if let Record::Zero(_, count) = record {
            self.zero_pages += u32::from(*count);
        }
        let (page, count, kind) = match record {
            Record::Zero(page, count) if self.grow_zeros(*page, *count) => return,
            Record::Zero(page, count) => (page, *count, 1),
            Record::Content(page, _) => (page, 1, 2),
            Record::Claim(page, _) => (page, 1, 3),
            Record::Early(page, _) => (page, 1, 4),
            Record::Dirtied(page) => (page, 1, 5),
        };
        self.zeros = matches!(record, Record::Zero(..)).then(|| self.frame.mark());
        let head = RecordHead {
            page: page.0.into(),
            count: count.into(),
            kind,
            zero: 0,
        };
        self.frame.copy(head.as_bytes());
        match record {
            Record::Content(_, content) | Record::Early(_, content) => {
                self.frame.share(owner.slice_ref(content.as_slice()));
            }
            Record::Claim(_, digest) => self.frame.copy(digest.as_bytes()),
            Record::Zero(..) | Record::Dirtied(_) => {}
        }
    }

    fn grow_zeros(&mut self, page: RamPage, count: u16) -> bool {
        let Some(mark) = self.zeros else { return false };
        let head = RecordHead::mut_from_prefix(self.frame.copied(mark));
        let (head, _) = head.expect("a record head");
        let follows = head.page.get() + u32::from(head.count.get()) == page.0;
        match head.count.get().checked_add(count) {
            Some(sum) if follows => head.count = sum.into(),
            _ => return false,
        }
        true
    }

    /// The frame.
    ///
    /// # Panics
    /// When the peer would refuse its length.
    pub fn finish(mut self) -> Pieces {
        let len = self.len();
        assert!(
            len <= BODY_BYTES_MAX,
            "a frame of {len} bytes would be refused by the peer"
        );
        let header = Header::new(Kind::Pages, len as u32);
        self.frame.copied(0)[..HEADER_BYTES].copy_from_slice(header.as_bytes());
        self.frame
    }
}

/// The records of a [`Kind::Pages`] body. Ends at the first error; all pages are below `ram_pages`.
pub fn parse_pages(
    body: &[u8],
    ram_pages: u32,
) -> impl Iterator<Item = Result<Record<'_>, WireError>> {
    let mut rest = Some(body);
    std::iter::from_fn(move || {
        let body = rest.take().filter(|body| !body.is_empty())?;
        Some(parse_record(body, ram_pages).map(|(record, behind)| {
            rest = Some(behind);
            record
        }))
    })
}

fn parse_record(body: &[u8], ram_pages: u32) -> Result<(Record<'_>, &[u8]), WireError> {
    let Ok((head, payload)) = RecordHead::ref_from_prefix(body) else {
        return bad("a page record cut short");
    };
    let page = checked(head.page.get(), ram_pages)?;
    let count = head.count.get();
    if count == 0 || (count != 1 && head.kind != 1) || head.zero != 0 {
        return bad(format!(
            "a page record of kind {} for {count} pages",
            head.kind
        ));
    }
    match head.kind {
        1 => {
            checked(page.0.saturating_add(u32::from(count) - 1), ram_pages)?;
            Ok((Record::Zero(page, count), payload))
        }
        2 => content(payload).map(|(content, rest)| (Record::Content(page, content), rest)),
        3 => match Digest::read_from_prefix(payload) {
            Ok((digest, rest)) => Ok((Record::Claim(page, digest), rest)),
            Err(_) => bad("a claim cut short"),
        },
        4 => content(payload).map(|(content, rest)| (Record::Early(page, content), rest)),
        5 => Ok((Record::Dirtied(page), payload)),
        kind => bad(format!("a page record of kind {kind}")),
    }
}

fn content(payload: &[u8]) -> Result<(&[u8; PAGE_BYTES], &[u8]), WireError> {
    payload
        .split_first_chunk()
        .ok_or_else(|| WireError::Frame("a page cut short".into()))
}
