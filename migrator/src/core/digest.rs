//! The digest that joins what storage holds to what QEMU sent: AES-128(POLYVAL(page)), two fresh random keys per
//! migration (as in RFC 8452, without its nonce). Two pages that were chosen without the keys have one digest with probability
//! 2^-120 (256 blocks, 2^-128 each); the cipher keeps a digest on the LAN from telling the hash's key. A guest
//! cannot prepare a collision for keys it does not know, so they must never be derived from anything a guest can see.

use aes::Aes128;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use polyval::Polyval;
use polyval::universal_hash::UniversalHash;
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

/// The keys of one migration: 32 bytes that only the two hosts know, the hash's and the cipher's.
#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "[u8; 32]", into = "[u8; 32]")]
pub struct DigestKey {
    bytes: [u8; 32],
    hash: Polyval,
    cipher: Aes128,
}

impl From<[u8; 32]> for DigestKey {
    fn from(bytes: [u8; 32]) -> DigestKey {
        let ([hash, cipher], []) = bytes.as_chunks::<16>() else {
            unreachable!("32 bytes are twice 16")
        };
        DigestKey {
            bytes,
            hash: Polyval::new(hash.into()),
            cipher: Aes128::new(cipher.into()),
        }
    }
}

impl From<DigestKey> for [u8; 32] {
    fn from(key: DigestKey) -> [u8; 32] {
        key.bytes
    }
}

impl DigestKey {
    /// Fresh keys from the kernel's random numbers.
    pub fn fresh() -> std::io::Result<DigestKey> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
        Ok(bytes.into())
    }

    /// The digest of `page`.
    pub fn digest(&self, page: &[u8; PAGE_BYTES]) -> Digest {
        let mut hash = self.hash.clone();
        hash.update_padded(page);
        let mut digest = hash.finalize();
        self.cipher.encrypt_block(&mut digest);
        Digest(digest.into())
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

    /// RFC 8452, appendix A, works with POLYVAL block by block; this is its definition, bit by bit: x^128 + x^127 +
    /// x^126 + x^121 + 1, and x^-128 with each multiplication.
    fn multiplied(a: u128, b: u128) -> u128 {
        let mut product = 0;
        for bit in 0..128 {
            product ^= if a >> bit & 1 == 1 { b } else { 0 };
            let carry = product & 1;
            product >>= 1;
            product ^= carry * (1 << 127 | 1 << 126 | 1 << 125 | 1 << 120);
        }
        product
    }

    #[test]
    fn a_digest_is_the_enciphered_polynomial_of_its_page() {
        let key: [u8; 32] = std::array::from_fn(|at| at as u8 * 7 + 1);
        let page: [u8; PAGE_BYTES] = std::array::from_fn(|at| (at * at / 7) as u8);
        let hash_key = u128::from_le_bytes(*key.first_chunk().unwrap());
        let hash = page.as_chunks().0.iter().fold(0, |hash, block| {
            multiplied(hash ^ u128::from_le_bytes(*block), hash_key)
        });
        let mut block = hash.to_le_bytes().into();
        Aes128::new(key.last_chunk::<16>().unwrap().into()).encrypt_block(&mut block);
        assert_eq!(DigestKey::from(key).digest(&page), Digest(block.into()));
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
