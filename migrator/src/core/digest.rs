//! The digest that joins what storage holds to what QEMU sent: BLAKE3, keyed with a fresh random
//! key per migration, cut to 128 bits. A guest cannot prepare a collision for a key it does not
//! know, so the key must never be derived from anything a guest can see.

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::ram::RamPage;

/// The digest of one page: 16 bytes.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct Digest(pub [u8; 16]);

/// A digest for each page of a guest. Memory is taken as digests are set: a page that never has one costs nothing,
/// and a terabyte's table is there at once.
#[derive(Debug)]
pub(super) struct Digests(Vec<[u8; 16]>);

impl Digests {
    /// Zero for every one of `pages` pages. An array of zeros comes from the allocator as it is, with nothing
    /// written; a struct would be written page by page.
    pub(super) fn new(pages: u32) -> Digests {
        Digests(vec![[0; 16]; pages as usize])
    }

    /// The digest that was set last for `page`.
    pub(super) fn get(&self, page: RamPage) -> Digest {
        Digest(self.0[page.index()])
    }

    /// Sets the digest of `page`.
    pub(super) fn set(&mut self, page: RamPage, digest: Digest) {
        self.0[page.index()] = digest.0;
    }
}

/// The key of one migration: 32 bytes that only the two hosts know.
#[derive(Clone, Serialize, Deserialize)]
pub struct DigestKey([u8; 32]);

impl DigestKey {
    /// A fresh key from the kernel's random numbers.
    pub fn fresh() -> std::io::Result<DigestKey> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(std::io::Error::other)?;
        Ok(DigestKey(key))
    }

    /// A fixed key, for tests that must repeat themselves.
    pub fn from_bytes(key: [u8; 32]) -> DigestKey {
        DigestKey(key)
    }

    /// The digest of `page`.
    pub fn digest(&self, page: &[u8]) -> Digest {
        let hash = blake3::keyed_hash(&self.0, page);
        let (cut, _) = hash
            .as_bytes()
            .split_first_chunk()
            .expect("BLAKE3 gives 32 bytes");
        Digest(*cut)
    }
}

impl std::fmt::Debug for DigestKey {
    // A key in a log would be a key that others know.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DigestKey(..)")
    }
}
