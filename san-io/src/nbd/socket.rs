//! A connected socket, TCP or unix, and one bound on all the time that a handshake takes. Must never
//! wait longer than that bound while connecting.
#![allow(unsafe_code)] // setsockopt for an option that no safe wrapper has.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType,
};

use super::uri::Address;

/// Reads of so many bytes wait for all of them; a packet carries up to 64 KiB.
const GATHERED_BYTES: usize = 64 << 10;

/// And no longer than this, should a kernel not tell that its room for them is full.
const GATHERED: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    pub(super) fn connect(address: &Address, until: Instant) -> io::Result<Self> {
        match address {
            Address::Tcp { host, port } => {
                let mut failure = io::Error::other("the host's name has no address");
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, left(until)?) {
                        Ok(stream) => {
                            // Requests are short and must not wait for each other.
                            stream.set_nodelay(true)?;
                            return Ok(Self(stream.into()));
                        }
                        Err(error) => failure = error,
                    }
                }
                Err(failure)
            }
            Address::Unix(path) => {
                let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
                let fd = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
                let socket = Self(fd);
                // Bounds connect(2) too, which waits where the server's queue is full.
                socket.set_timeout(Some(left(until)?))?;
                rustix::net::connect(&socket.0, &SocketAddrUnix::new(path)?)?;
                Ok(socket)
            }
        }
    }

    #[cfg(test)]
    pub(super) fn of(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Of each single read and write; None waits for ever.
    pub(super) fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&self.0, direction, timeout)?;
        }
        Ok(())
    }

    /// Sends what there is room for now.
    pub(super) fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(rustix::net::send(&self.0, bytes, flags)?)
    }

    /// Waits until `bytes` have come, the connection has ended, or for a while: a long reply comes in
    /// many packets, and each would wake us. Where the kernel does not wait for them all, for want of
    /// room or because the socket is no TCP's, fewer are there.
    fn gather(&self, bytes: usize) -> io::Result<()> {
        self.set_low_water(bytes);
        let mut until = [PollFd::new(&self.0, PollFlags::IN)];
        let waited = poll(&mut until, Some(&GATHERED));
        // The next read wants whatever there is.
        self.set_low_water(1);
        waited?;
        Ok(())
    }

    /// SO_RCVLOWAT, socket(7). A socket that stays as it was only wakes us more often.
    fn set_low_water(&self, bytes: usize) {
        let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        // SAFETY: the kernel reads `len` bytes, which is the size of `bytes`.
        unsafe {
            let (fd, value, len) = (
                self.0.as_raw_fd(),
                (&raw const bytes).cast(),
                size_of_val(&bytes),
            );
            libc::setsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_RCVLOWAT,
                value,
                len as libc::socklen_t,
            );
        }
    }

    /// Whoever waits for this socket is told its end.
    pub(super) fn shut_down(&self) {
        // Fails only if the other side was first.
        let _ = rustix::net::shutdown(&self.0, Shutdown::Both);
    }
}

impl Read for &Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.len() >= GATHERED_BYTES {
            self.gather(buf.len())?;
        }
        let (read, _) = rustix::net::recv(&self.0, buf, RecvFlags::empty())?;
        Ok(read)
    }
}

/// A socket until a point in time.
pub(super) struct Timed<'a> {
    socket: &'a Socket,
    until: Instant,
}

impl<'a> Timed<'a> {
    pub(super) fn new(socket: &'a Socket, until: Instant) -> Self {
        Self { socket, until }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.socket.set_timeout(Some(left(self.until)?))?;
        let mut socket = self.socket;
        socket.read(buf)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_timeout(Some(left(self.until)?))?;
        Ok(rustix::net::send(
            &self.socket.0,
            bytes,
            SendFlags::NOSIGNAL,
        )?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    // Zero would mean for ever.
    if left < Duration::from_millis(1) {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}
