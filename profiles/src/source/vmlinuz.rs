//! The kernel inside a vmlinuz (Documentation/arch/x86/boot.rst): its payload is a compressed vmlinux.

use thiserror::Error;
use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32};

use super::compress::{self, CompressError};

const SECTOR_BYTES: usize = 512;
/// Offsets in the setup header.
const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PROTOCOL: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The payload is described from protocol 2.08 on (kernel 2.6.26).
const PROTOCOL_WITH_PAYLOAD: u16 = 0x0208;

/// Why there is no kernel in a vmlinuz.
#[derive(Debug, Error)]
pub enum VmlinuzError {
    #[error("a vmlinuz that is cut short, or older than boot protocol 2.08")]
    Header,
    #[error("cannot decompress the kernel in a vmlinuz")]
    Payload(#[from] CompressError),
}

/// Whether this is a kernel as boot loaders have it.
pub(crate) fn is_vmlinuz(bytes: &[u8]) -> bool {
    bytes.get(HEADER_MAGIC..HEADER_MAGIC + 4) == Some(b"HdrS")
}

/// The vmlinux, an ELF file, that is in a vmlinuz.
///
/// # Errors
/// When the header does not tell where it is, or it cannot be decompressed.
pub(crate) fn vmlinux(bytes: &[u8]) -> Result<Vec<u8>, VmlinuzError> {
    let payload = payload(bytes).ok_or(VmlinuzError::Header)?;
    if payload.starts_with(b"\x7fELF") {
        return Ok(payload.to_vec());
    }
    Ok(compress::decompress(payload)?)
}

fn payload(bytes: &[u8]) -> Option<&[u8]> {
    let u32_at = |at: usize| Some(U32::read_from_prefix(bytes.get(at..)?).ok()?.0.get() as usize);
    let protocol = U16::read_from_prefix(bytes.get(PROTOCOL..)?).ok()?.0;
    if protocol.get() < PROTOCOL_WITH_PAYLOAD {
        return None;
    }
    // 0 stands for 4.
    let setup = match usize::from(*bytes.get(SETUP_SECTS)?) {
        0 => 4,
        sectors => sectors,
    };
    let start = (setup + 1) * SECTOR_BYTES + u32_at(PAYLOAD_OFFSET)?;
    bytes.get(start..start.checked_add(u32_at(PAYLOAD_LENGTH)?)?)
}
