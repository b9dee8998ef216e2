//! What the kernel knows of a TCP connection (linux/tcp.h, struct tcp_info; tcp(7)). It reads one option and
//! must never set any.
#![allow(unsafe_code)] // getsockopt for an option that no safe wrapper has.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes that the peer has acknowledged and microseconds in which something was unacknowledged: the connection
/// was the one that kept us waiting, whatever our buffers hid.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    /// tcpi_bytes_acked.
    pub bytes: u64,
    /// tcpi_busy_time, in microseconds.
    pub busy_us: u64,
}

/// struct tcp_info in 64-bit words: 104 bytes of older fields come before tcpi_pacing_rate.
const WORDS: usize = 24;
const BYTES_ACKED: usize = 15;
const BUSY_TIME: usize = 21;

/// Asks the kernel; all zero where it does not know (before Linux 4.10).
pub fn sent(socket: BorrowedFd<'_>) -> Sent {
    let mut info = [0_u64; WORDS];
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, which is the size of `info`; any bits are valid u64s.
    let failed = unsafe {
        let (fd, info) = (socket.as_raw_fd(), info.as_mut_ptr().cast());
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, info, &raw mut len)
    };
    if failed != 0 {
        return Sent::default();
    }
    Sent {
        bytes: info[BYTES_ACKED],
        busy_us: info[BUSY_TIME],
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_a_peer_has_read_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        ours.write_all(&[7; 5000]).unwrap();
        theirs.read_exact(&mut [0; 5000]).unwrap();
        theirs.write_all(b"x").unwrap();
        ours.read_exact(&mut [0]).unwrap();
        let sent = sent(ours.as_fd());
        // The kernel counts the SYN as a byte.
        assert!((5000..=5001).contains(&sent.bytes), "{sent:?}");
        assert!(sent.busy_us < 60_000_000, "{sent:?}");
    }
}
