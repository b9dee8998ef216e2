//! A disk that really fails or hangs: the file system of the binary faulty-disk, or a loop device
//! over it. Leaves nothing behind: what is opened is detached, and goes away with its last user.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::mount::{UnmountFlags, unmount};
use san_io::{Disk, DiskError};

/// What the reader is given to read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// A file of FUSE: the reading thread blocks, also in io_uring_enter(2).
    File,
    /// A block device: the read is submitted, and its end never comes.
    Loop,
}

pub(crate) struct FaultyDisk {
    server: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl FaultyDisk {
    pub(crate) fn start(image: &Path, kind: Kind) -> (Self, Disk) {
        let mountpoint = tempfile::tempdir().unwrap();
        let mut server = Command::new(env!("CARGO_BIN_EXE_faulty-disk"))
            .args([image, mountpoint.path()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = server.stdin.take().unwrap();
        let mut answers = BufReader::new(server.stdout.take().unwrap()).lines();
        let ready = answers
            .next()
            .expect("faulty-disk starts: is this root, is there /dev/fuse?");
        assert_eq!(ready.unwrap(), "ready");
        let file = mountpoint.path().join("disk");
        let disk = match kind {
            Kind::File => Disk::open(&file),
            Kind::Loop => open_loop(&file),
        };
        unmount(mountpoint.path(), UnmountFlags::DETACH).unwrap();
        (
            Self {
                server,
                orders,
                answers,
            },
            disk.unwrap(),
        )
    }

    /// `serve`, `fail` or `hang`; in force on return.
    pub(crate) fn tell(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
        assert_eq!(self.answers.next().unwrap().unwrap(), order);
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        // Its reads end with it, so that the test binary can.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn open_loop(file: &Path) -> Result<Disk, DiskError> {
    let attach = ["--find", "--show", "--read-only", "--direct-io=on"];
    let device = losetup(&attach.map(Path::new), file);
    let disk = Disk::open(Path::new(&device));
    // It stays until its last user closes it.
    losetup(&[Path::new("--detach")], Path::new(&device));
    disk
}

fn losetup(options: &[&Path], of: &Path) -> String {
    let out = Command::new("losetup")
        .args(options)
        .arg(of)
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "losetup: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}
