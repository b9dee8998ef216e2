//! The digest that joins what storage holds to what QEMU sent: AEGIS-128L's MAC of a page, with a fresh random key and
//! nonce per migration. It is a MAC, not a hash: two pages that were chosen without the key have one digest with probability
//! 2^-128 (draft-irtf-cfrg-aegis-aead), with it they are easily made. A guest cannot prepare a collision for a key it does
//! not know, so it must never be derived from anything a guest can see.

use aegis::aegis128l::Aegis128LMac;
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::ram::{PAGE_BYTES, RamPage};

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

type Mac = Aegis128LMac<16>;

/// What the digests of one migration depend on: 32 bytes that only the two hosts know, the MAC's key and its nonce.
#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "[u8; 32]", into = "[u8; 32]")]
pub struct DigestKey {
    bytes: [u8; 32],
    mac: Mac,
}

impl From<[u8; 32]> for DigestKey {
    fn from(bytes: [u8; 32]) -> DigestKey {
        let ([key, nonce], []) = bytes.as_chunks::<16>() else {
            unreachable!("32 bytes are twice 16")
        };
        // Of AEGIS' functions only this one may see many pages with one key and nonce.
        let mac = Mac::new_with_nonce(key, nonce);
        DigestKey { bytes, mac }
    }
}

impl From<DigestKey> for [u8; 32] {
    fn from(key: DigestKey) -> [u8; 32] {
        key.bytes
    }
}

impl DigestKey {
    /// A fresh key from the kernel's random numbers.
    pub fn fresh() -> std::io::Result<DigestKey> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
        Ok(bytes.into())
    }

    /// The digest of `page`.
    pub fn digest(&self, page: &[u8; PAGE_BYTES]) -> Digest {
        let mut mac = self.mac.clone();
        mac.update(page);
        Digest(mac.finalize())
    }
}

impl std::fmt::Debug for DigestKey {
    // A key in a log would be a key that others know.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DigestKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mac_is_the_one_of_the_draft() {
        // draft-irtf-cfrg-aegis-aead, "AEGISMAC-128L Test Vector".
        let mut key = [0; 32];
        key[..2].copy_from_slice(&[0x10, 0x01]);
        key[16..19].copy_from_slice(&[0x10, 0x00, 0x02]);
        let data: [u8; 35] = std::array::from_fn(|at| at as u8);
        let mut mac = DigestKey::from(key).mac;
        mac.update(&data);
        let tag = u128::from_be_bytes(mac.finalize());
        assert_eq!(tag, 0xd3f0_9b28_42ad_3016_87d6_902c_921d_7818);
    }

    #[test]
    fn every_bit_of_a_page_and_of_a_key_counts() {
        let (key, page) = ([5; 32], [3; PAGE_BYTES]);
        let digest = DigestKey::from(key).digest(&page);
        for bit in (0..PAGE_BYTES * 8).step_by(61) {
            let mut other = page;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(DigestKey::from(key).digest(&other), digest, "bit {bit}");
        }
        for bit in 0..256 {
            let mut other = key;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(DigestKey::from(other).digest(&page), digest, "bit {bit}");
        }
    }
}
