//! process_vm_readv on a QEMU process: works on any stock VM, at 0.7 to 1 µs a call. A short read
//! is an error here, never a zero-filled success.
#![allow(unsafe_code)] // process_vm_readv.

use std::io;

use crate::memory::MemoryError;

/// What the kernel takes in one call (UIO_MAXIOV).
const IOVECS_MAX: usize = 1024;

/// Fills `out` from addresses of a process, the same number of bytes from each.
pub(super) fn read_each(pid: i32, from: &[u64], out: &mut [u8]) -> Result<(), MemoryError> {
    let each = out.len() / from.len().max(1);
    let mut done = 0;
    while each > 0 && done < out.len() {
        let remote = spans(&from[done / each..], each, done % each);
        let rest = &mut out[done..];
        let local = libc::iovec {
            iov_base: rest.as_mut_ptr().cast(),
            iov_len: rest.len(),
        };
        // SAFETY: `local` describes `rest`, which is writable and outlives the call; the remote
        // addresses are only looked up in the other process, and the kernel checks them.
        let got = unsafe {
            libc::process_vm_readv(
                pid,
                &local,
                1,
                remote.as_ptr(),
                remote.len() as libc::c_ulong,
                0,
            )
        };
        let failed = |source| MemoryError::Process {
            pid,
            address: remote[0].iov_base as u64,
            bytes: rest.len(),
            source,
        };
        match got {
            ..0 => return Err(failed(io::Error::last_os_error())),
            0 => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
            _ => done += got as usize,
        }
    }
    Ok(())
}

/// What one call reads, the first `skip` bytes left out: pieces that follow each other are one, since the kernel looks
/// each up by itself.
fn spans(from: &[u64], each: usize, skip: usize) -> Vec<libc::iovec> {
    let mut spans: Vec<libc::iovec> = Vec::new();
    let pieces = from.iter().enumerate().map(|(i, &at)| match i {
        0 => (at.wrapping_add(skip as u64), each - skip),
        _ => (at, each),
    });
    for (at, bytes) in pieces {
        let is_full = spans.len() == IOVECS_MAX;
        match spans.last_mut() {
            Some(last) if (last.iov_base as u64).wrapping_add(last.iov_len as u64) == at => {
                last.iov_len += bytes;
            }
            _ if is_full => break,
            _ => spans.push(libc::iovec {
                iov_base: at as *mut libc::c_void,
                iov_len: bytes,
            }),
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_pid() -> i32 {
        std::process::id() as i32
    }

    #[test]
    fn reads_scattered_pieces_in_order() {
        let data: Vec<u8> = (0..4096u32 * 3).map(|i| (i % 251) as u8).collect();
        let base = data.as_ptr() as u64;
        let from: Vec<u64> = (0..3000).map(|i| base + (i * 37 % 12000)).collect();
        let mut out = vec![0; from.len() * 16];
        read_each(own_pid(), &from, &mut out).unwrap();
        for (at, got) in from.iter().zip(out.chunks_exact(16)) {
            let start = (at - base) as usize;
            assert_eq!(got, &data[start..start + 16]);
        }
    }

    #[test]
    fn neighbours_are_one_span() {
        let spans = spans(&[100, 110, 90, 100, 300], 10, 4);
        let spans = spans
            .iter()
            .map(|span| (span.iov_base as u64, span.iov_len));
        assert_eq!(spans.collect::<Vec<_>>(), [(104, 16), (90, 20), (300, 10)]);
        let data: Vec<u8> = (0..4096u32 * 3).map(|i| (i % 251) as u8).collect();
        let base = data.as_ptr() as u64;
        let from: Vec<u64> = (0..24).map(|i| base + i / 3 * 1024 + i % 3 * 256).collect();
        let mut out = vec![0; from.len() * 256];
        read_each(own_pid(), &from, &mut out).unwrap();
        for (at, got) in from.iter().zip(out.chunks_exact(256)) {
            let start = (at - base) as usize;
            assert_eq!(got, &data[start..start + 256]);
        }
    }

    #[test]
    fn an_unmapped_piece_fails_the_whole() {
        let data = [7u8; 64];
        let mut out = [0; 48];
        let from = [data.as_ptr() as u64, 0x10, data.as_ptr() as u64];
        let error = read_each(own_pid(), &from, &mut out).unwrap_err();
        assert!(
            matches!(error, MemoryError::Process { address: 0x10, .. }),
            "{error:?}"
        );
    }
}
