//! Guests that lie.

use proptest::prelude::*;

use super::ext4::with_extent_block;
use super::filesystems::add_files;
use super::*;
use crate::mock::cache::{DIRTY, UPTODATE};
use crate::mock::ext4::leaf;

/// A guest with some of everything.
fn busy() -> Sample {
    let (mut sample, _) = with_extent_block(UPTODATE);
    for at in 0..12 {
        let tree = leaf(&[(0, 40, 100 + 50 * at, false), (50, 9, 5000 + 50 * at, true)]);
        let file = sample.guest.ext4_file(sample.ext4, 60 * 4096, &tree);
        let folios = [
            (0, 0, UPTODATE),
            (8, 3, UPTODATE),
            (16, 4, UPTODATE),
            (50, 0, UPTODATE),
        ];
        sample.cache(file, &folios);
    }
    let spare = sample.guest.inode_of(sample.spare);
    sample.cache(
        spare,
        &[(0, 0, UPTODATE), (70, 0, UPTODATE), (5000, 0, DIRTY)],
    );
    add_files(&mut sample);
    sample
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Bytes, pointers and numbers changed anywhere in the kernel's structs: a scan ends, does not
    /// panic, and what it says holds together.
    #[test]
    fn hostile_memory_never_panics_or_loops(
        bytes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..60),
        words in prop::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0u8..5), 0..30),
    ) {
        let mut sample = busy();
        let words_used: Vec<usize> = (0..sample.guest.ram.len() / 8)
            .filter(|at| sample.guest.ram[8 * at..8 * at + 8] != [0; 8])
            .collect();
        for (at, byte) in bytes {
            let word = words_used[at.index(words_used.len())];
            sample.guest.ram[8 * word + usize::from(byte % 8)] = byte;
        }
        for (at, other, kind) in words {
            let at = 8 * words_used[at.index(words_used.len())];
            let other = 8 * words_used[other.index(words_used.len())];
            let value: [u8; 8] = match kind {
                0 => [0xff; 8],
                1 => [0; 8],
                // Another pointer, so that structs are taken for each other and lists for rings.
                2 | 3 => sample.guest.ram[other..other + 8].try_into().unwrap(),
                _ => (other as u64).to_le_bytes(),
            };
            sample.guest.ram[at..at + 8].copy_from_slice(&value);
        }
        let options = ScanOptions { files_max: 5, ..ScanOptions::default() };
        assert_sane(&scan_kernel(&sample.guest.kernel(), &options));
    }
}
