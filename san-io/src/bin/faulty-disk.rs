//! A file system with one file, `disk`, that shows an image until it is told to fail or to hang:
//! real storage faults for tests. Speaks FUSE with the kernel and must never write the image.
//!
//! Usage: `faulty-disk IMAGE DIRECTORY`, as root. Says `ready`, then takes `serve`, `fail` or `hang`
//! line by line on standard input and confirms each; ends, and ends all reads, with its input.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::mount::{MountFlags, UnmountFlags};

// Opcodes and layouts: include/uapi/linux/fuse.h
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

const IN_HEADER: usize = 40;
const ROOT: u64 = 1;
const DISK: u64 = 2;
const MAX_WRITE: u32 = 128 << 10;
const FOPEN_DIRECT_IO: u32 = 1;
const FUSE_ASYNC_READ: u32 = 1;

const ENOENT: i32 = 2;
const EINTR: i32 = 4;
const EIO: i32 = 5;
const ENOSYS: i32 = 38;

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Serve,
    Fail,
    Hang,
}

struct ReadRequest {
    unique: u64,
    offset: u64,
    size: u32,
}

struct State {
    mode: Mode,
    held: Vec<ReadRequest>,
}

struct Server {
    device: File,
    image: File,
    size: u64,
    state: Mutex<State>,
}

fn main() -> io::Result<()> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [image, directory] = &args[..] else {
        return Err(io::Error::other("usage: faulty-disk IMAGE DIRECTORY"));
    };
    // Whoever hangs in a read of ours cannot die before we do.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0\0",
        device.as_raw_fd()
    );
    let options =
        std::ffi::CStr::from_bytes_with_nul(options.as_bytes()).map_err(io::Error::other)?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::RDONLY;
    rustix::mount::mount("faulty-disk", directory, "fuse", flags, Some(options))?;
    let image = File::open(image)?;
    let size = image.metadata()?.len();
    let state = Mutex::new(State {
        mode: Mode::Serve,
        held: Vec::new(),
    });
    let server = Arc::new(Server {
        device,
        image,
        size,
        state,
    });
    let kernel_side = server.clone();
    std::thread::spawn(move || kernel_side.serve());
    let told = obey(&server);
    // The tests detach the mount themselves, once they have opened the disk.
    let _ = rustix::mount::unmount(Path::new(directory), UnmountFlags::DETACH);
    told
}

fn obey(server: &Server) -> io::Result<()> {
    println!("ready");
    for line in io::stdin().lock().lines() {
        let line = line?;
        server.change(match line.as_str() {
            "serve" => Mode::Serve,
            "fail" => Mode::Fail,
            "hang" => Mode::Hang,
            _ => return Err(io::Error::other(format!("{line:?}: serve, fail or hang"))),
        });
        println!("{line}");
    }
    Ok(())
}

impl Server {
    /// Answers the kernel until the file system is gone.
    fn serve(&self) {
        let mut request = vec![0; MAX_WRITE as usize + 4096];
        while let Ok(len) = (&self.device).read(&mut request) {
            if let Some(request) = request
                .get(..len)
                .filter(|request| request.len() >= IN_HEADER)
            {
                self.handle(request);
            }
        }
    }

    fn handle(&self, request: &[u8]) {
        let (opcode, unique, node) = (u32_at(request, 4), u64_at(request, 8), u64_at(request, 16));
        let body = &request[IN_HEADER..];
        match opcode {
            INIT => self.reply(unique, &init_out()),
            LOOKUP if node == ROOT && body == b"disk\0" => {
                let mut entry = [DISK, 0, 0, 0, 0].map(u64::to_ne_bytes).concat();
                entry.extend(self.attributes(DISK));
                self.reply(unique, &entry);
            }
            LOOKUP => self.error(unique, ENOENT),
            GETATTR => {
                let mut out = [0; 16].to_vec();
                out.extend(self.attributes(node));
                self.reply(unique, &out);
            }
            OPEN => self.reply(
                unique,
                &[0, u64::from(FOPEN_DIRECT_IO)]
                    .map(u64::to_ne_bytes)
                    .concat(),
            ),
            READ => {
                let (offset, size) = (u64_at(body, 8), u32_at(body, 16));
                let state = &mut self.state.lock().unwrap();
                self.read(
                    state,
                    ReadRequest {
                        unique,
                        offset,
                        size,
                    },
                );
            }
            RELEASE | FLUSH => self.reply(unique, &[]),
            INTERRUPT => self.interrupt(u64_at(body, 0)),
            FORGET | BATCH_FORGET => {} // want no answer
            _ => self.error(unique, ENOSYS),
        }
    }

    fn change(&self, mode: Mode) {
        let mut state = self.state.lock().unwrap();
        state.mode = mode;
        for held in std::mem::take(&mut state.held) {
            self.read(&mut state, held);
        }
    }

    fn read(&self, state: &mut State, request: ReadRequest) {
        match state.mode {
            Mode::Serve => {
                let mut bytes = vec![0; request.size.min(MAX_WRITE) as usize];
                match self.image.read_at(&mut bytes, request.offset) {
                    Ok(len) => self.reply(request.unique, &bytes[..len]),
                    Err(_) => self.error(request.unique, EIO),
                }
            }
            Mode::Fail => self.error(request.unique, EIO),
            Mode::Hang => state.held.push(request),
        }
    }

    /// Lets go of a held read that its reader has given up.
    fn interrupt(&self, unique: u64) {
        let mut state = self.state.lock().unwrap();
        let len = state.held.len();
        state.held.retain(|held| held.unique != unique);
        if state.held.len() < len {
            self.error(unique, EINTR);
        }
    }

    /// struct fuse_attr
    fn attributes(&self, node: u64) -> Vec<u8> {
        let (size, mode, links) = match node {
            ROOT => (0, 0o040_755, 2),
            _ => (self.size, 0o100_444, 1),
        };
        let mut out = [node, size, size.div_ceil(512), 0, 0, 0]
            .map(u64::to_ne_bytes)
            .concat();
        let block_size = 4096;
        out.extend(
            [0, 0, 0, mode, links, 0, 0, 0, block_size, 0]
                .map(u32::to_ne_bytes)
                .concat(),
        );
        out
    }

    fn reply(&self, unique: u64, body: &[u8]) {
        self.send(unique, 0, body);
    }

    fn error(&self, unique: u64, errno: i32) {
        self.send(unique, -errno, &[]);
    }

    fn send(&self, unique: u64, error: i32, body: &[u8]) {
        let len = (16 + body.len()) as u32;
        let mut message = [len.to_ne_bytes(), error.to_ne_bytes()].concat();
        message.extend(unique.to_ne_bytes());
        message.extend(body);
        // Fails when the kernel gave the request up meanwhile: then nobody waits for it.
        let _ = (&self.device).write(&message);
    }
}

/// struct fuse_init_out of protocol 7.31. Without FUSE_ASYNC_DIO: a reader then blocks until its
/// answer, which is the harder case for it.
fn init_out() -> Vec<u8> {
    let mut out = [7, 31, 0, FUSE_ASYNC_READ].map(u32::to_ne_bytes).concat();
    let (max_background, congestion_threshold) = (64u16, 48u16);
    out.extend(
        [max_background, congestion_threshold]
            .map(u16::to_ne_bytes)
            .concat(),
    );
    let time_gran = 1;
    out.extend(
        [MAX_WRITE, time_gran, 0, 0, 0, 0, 0, 0, 0, 0]
            .map(u32::to_ne_bytes)
            .concat(),
    );
    out
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .map_or(0, |b| u32::from_ne_bytes(b.try_into().unwrap()))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .map_or(0, |b| u64::from_ne_bytes(b.try_into().unwrap()))
}
