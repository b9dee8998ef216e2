//! What kernels and their debug files are compressed with. What comes out is bounded: a few bytes can
//! stand for terabytes.

use std::io::{Read, Write};

use thiserror::Error;

/// A vmlinux with all its debug information has about 700 MB.
const BYTES_MAX: u64 = 2 << 30;
/// As xz -3: ISF repeats itself so much that more effort saves little.
const XZ_PRESET: u32 = 3;
/// The magic number of LZ4's legacy frames, which the kernel uses.
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// Blocks of a legacy frame hold this much, decompressed.
const LZ4_BLOCK_BYTES: usize = 8 << 20;

/// Why something could not be decompressed.
#[derive(Debug, Error)]
pub enum CompressError {
    #[error("not compressed with gzip, xz, lzma, zstd or LZ4: begins {0:02x?}")]
    Unknown(Vec<u8>),
    #[error("{0} compression that is damaged")]
    Damaged(&'static str, #[source] std::io::Error),
    #[error("more than {BYTES_MAX} bytes when decompressed")]
    TooLarge,
}

/// What `bytes` are compressed with.
fn method(bytes: &[u8]) -> Option<&'static str> {
    let magics: [(&[u8], &str); 5] = [
        (b"\x1f\x8b", "gzip"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (&LZ4_LEGACY, "lz4"),
        (b"\x5d\0\0", "lzma"),
    ];
    let known = magics.iter().find(|(magic, _)| bytes.starts_with(magic));
    known.map(|(_, name)| *name)
}

/// Whether this is compressed by a known method.
pub(crate) fn is_compressed(bytes: &[u8]) -> bool {
    method(bytes).is_some()
}

/// Decompresses by the method that the first bytes tell. What follows the compressed data is left.
///
/// # Errors
/// When the method is not known, the data is damaged or too large.
pub(crate) fn decompress(bytes: &[u8]) -> Result<Vec<u8>, CompressError> {
    let unknown = || CompressError::Unknown(bytes.iter().take(4).copied().collect());
    match method(bytes).ok_or_else(unknown)? {
        "gzip" => read("gzip", flate2::read::GzDecoder::new(bytes)),
        "xz" => read("xz", lzma_rust2::XzReader::new(bytes, false)),
        "zstd" => zstd(bytes),
        "lz4" => lz4(&bytes[LZ4_LEGACY.len()..]),
        _ => {
            let decoder = lzma_rust2::LzmaReader::new_mem_limit(bytes, u32::MAX, None);
            let decoder = decoder.map_err(|error| CompressError::Damaged("lzma", error))?;
            read("lzma", decoder)
        }
    }
}

/// Compresses with xz.
///
/// # Errors
/// When the encoder fails, which it does not on memory.
pub fn xz(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let options = lzma_rust2::XzOptions::with_preset(XZ_PRESET);
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options)?;
    writer.write_all(bytes)?;
    writer.finish()
}

/// The zlib of compressed sections.
pub(crate) fn zlib(bytes: &[u8]) -> Result<Vec<u8>, CompressError> {
    read("zlib", flate2::read::ZlibDecoder::new(bytes))
}

pub(crate) fn zstd(bytes: &[u8]) -> Result<Vec<u8>, CompressError> {
    let damaged = |error| CompressError::Damaged("zstd", std::io::Error::other(error));
    let decoder = ruzstd::decoding::StreamingDecoder::new(bytes).map_err(damaged)?;
    read("zstd", decoder)
}

fn read(name: &'static str, reader: impl Read) -> Result<Vec<u8>, CompressError> {
    let mut bytes = Vec::new();
    let read = reader.take(BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| CompressError::Damaged(name, error))?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(CompressError::TooLarge);
    }
    Ok(bytes)
}

/// Blocks, each with its compressed length before it, until the data ends (lib/decompress_unlz4.c).
fn lz4(mut bytes: &[u8]) -> Result<Vec<u8>, CompressError> {
    let damaged =
        |error: &str| CompressError::Damaged("lz4", std::io::Error::other(error.to_owned()));
    let mut out = Vec::new();
    let mut block = vec![0; LZ4_BLOCK_BYTES];
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        if *length == LZ4_LEGACY {
            bytes = rest;
            continue;
        }
        let length = u32::from_le_bytes(*length) as usize;
        // Behind the last block a kernel's build appends the length of all.
        let Some(compressed) = rest.get(..length).filter(|_| length > 0) else {
            break;
        };
        let written = lz4_flex::block::decompress_into(compressed, &mut block)
            .map_err(|error| damaged(&error.to_string()))?;
        out.extend_from_slice(&block[..written]);
        if out.len() as u64 > BYTES_MAX {
            return Err(CompressError::TooLarge);
        }
        bytes = &rest[length..];
    }
    if out.is_empty() {
        return Err(damaged("no whole block"));
    }
    Ok(out)
}
