//! Reports: what became of pages at the destination, an array of them to a frame. It judges nothing but their form.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{WireError, bad, checked};
use crate::core::digest::Digest;
use crate::core::ram::RamPage;

/// What became of a page at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Read before any emission; the digest of what was read.
    Have(Digest),
    /// The claim is met.
    Met,
    /// The claim cannot be met: send the page.
    Need,
    /// Storage failed before any emission.
    Lost,
}

/// A page's outcome on the wire.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Report {
    page: U32,
    kind: u8,
    zero: [u8; 3],
    digest: Digest,
}

impl Report {
    /// The report that `page` had this outcome.
    pub fn new(page: RamPage, outcome: Outcome) -> Report {
        let (kind, digest) = match outcome {
            Outcome::Have(digest) => (1, digest),
            Outcome::Met => (2, Digest::default()),
            Outcome::Need => (3, Digest::default()),
            Outcome::Lost => (4, Digest::default()),
        };
        Report {
            page: page.0.into(),
            kind,
            zero: [0; 3],
            digest,
        }
    }

    /// Page and outcome; the page must be below `ram_pages`.
    pub fn parse(&self, ram_pages: u32) -> Result<(RamPage, Outcome), WireError> {
        let page = checked(self.page.get(), ram_pages)?;
        let outcome = match self.kind {
            1 => Outcome::Have(self.digest),
            2 => Outcome::Met,
            3 => Outcome::Need,
            4 => Outcome::Lost,
            kind => return bad(format!("report kind {kind}")),
        };
        Ok((page, outcome))
    }
}
