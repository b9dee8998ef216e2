//! Reads of image files on a real file system, with both engines. Must run without root.

mod support;

use std::collections::HashMap;
use std::path::Path;

use san_io::{Disk, DiskError, EngineKind, Options, Read, ReadError, Reader, SubmitError};
use support::{Rig, bytes_at, engines, image, scratch};

#[test]
fn aligned_and_odd_reads_give_exactly_the_asked_bytes() {
    let dir = scratch();
    let path = image(dir.path(), "disk", 1 << 20);
    for options in engines() {
        let rig = Rig::open(&[&path], options);
        for (offset, len) in [
            (0, 4096),
            (8192, 65536),
            (1, 1),
            (4095, 2),
            (513, 70000),
            (1 << 19, 1 << 19),
        ] {
            assert_eq!(
                &*rig.read(offset, len).unwrap(),
                bytes_at(offset, len as usize)
            );
        }
    }
}

#[test]
fn many_reads_at_once_all_complete_with_their_own_bytes() {
    let dir = scratch();
    let paths = ["a", "b"].map(|name| image(dir.path(), name, 4 << 20));
    for options in engines() {
        let options = Options {
            bytes_in_flight_max: 256 << 10,
            ..options
        };
        let rig = Rig::open(&[&paths[0], &paths[1]], options);
        let mut asked = HashMap::new();
        let mut answered = 0;
        for id in 0..2000u64 {
            let read = Read {
                id,
                disk: id as usize % 2,
                offset: (id * 7919 * 512) % (3 << 20),
                len: 1 + (id * 997 % 60000) as u32,
            };
            while let Err(full) = rig.reader.submit(read) {
                assert_eq!(
                    full,
                    SubmitError::Full {
                        capacity: rig.reader.capacity()
                    }
                );
                answered += check_one(&rig, &asked);
            }
            asked.insert(id, read);
        }
        while answered < 2000 {
            answered += check_one(&rig, &asked);
        }
        assert!(rig.completions.try_recv().is_err());
    }
}

fn check_one(rig: &Rig, asked: &HashMap<u64, Read>) -> usize {
    let completed = rig.next();
    let read = asked[&completed.id];
    assert_eq!(
        &*completed.result.unwrap(),
        bytes_at(read.offset, read.len as usize)
    );
    1
}

#[test]
fn the_last_page_is_filled_with_zeros_and_no_page_beyond_it_exists() {
    let dir = scratch();
    let size = 5 * 4096 + 1234;
    let path = image(dir.path(), "odd", size);
    for options in engines() {
        let rig = Rig::open(&[&path], options);
        // Twice, so that the second one gets a buffer that has been used.
        drop(rig.read(0, 5 * 4096).unwrap());
        let mut expected = bytes_at(4 * 4096, 4096 + 1234);
        expected.resize(8192, 0);
        assert_eq!(&*rig.read(4 * 4096, 8192).unwrap(), expected);
        for (offset, len) in [
            (6 * 4096, 4096),
            (5 * 4096, 8192),
            (size as u64, 1),
            (u64::MAX, 1),
            (u64::MAX - 4096, u32::MAX / 2),
        ] {
            let error = rig.read(offset, len).unwrap_err();
            let ok = matches!(
                error,
                ReadError::BeyondEnd { .. } | ReadError::Length { .. }
            );
            assert!(ok, "{offset} {len}: {error}");
        }
    }
}

#[test]
fn impossible_reads_are_answered_with_what_is_wrong() {
    let dir = scratch();
    let path = image(dir.path(), "disk", 1 << 20);
    let rig = Rig::open(
        &[&path],
        Options {
            bytes_in_flight_max: 64 << 10,
            ..Options::default()
        },
    );
    let message = |offset, len| rig.read(offset, len).unwrap_err().to_string();
    let place = |len| format!("{}: {len} bytes at offset 0", path.display());
    let length = "a read is 1 to 32768 bytes, alignment included";
    assert_eq!(message(0, 0), format!("{}: {length}", place(0)));
    assert_eq!(message(0, 32769), format!("{}: {length}", place(32769)));
    rig.reader
        .submit(Read {
            id: 9,
            disk: 1,
            offset: 0,
            len: 4096,
        })
        .unwrap();
    let error = rig.next().result.unwrap_err();
    assert_eq!(error.to_string(), "no disk 1: there are 1");
}

#[test]
fn a_file_that_shrinks_is_an_error_that_says_so() {
    let dir = scratch();
    let path = image(dir.path(), "disk", 1 << 20);
    for options in engines() {
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        let rig = Rig::open(&[&path], options);
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(10_000)
            .unwrap();
        assert!(matches!(
            rig.read(8192, 8192),
            Err(ReadError::Short { got: 1808, .. })
        ));
        assert!(matches!(
            rig.read(65536, 4096),
            Err(ReadError::Short { got: 0, .. })
        ));
    }
}

#[test]
fn held_buffers_hold_up_reads_and_dropped_ones_let_them_go_on() {
    let dir = scratch();
    let path = image(dir.path(), "disk", 1 << 20);
    for options in engines() {
        let rig = Rig::open(
            &[&path],
            Options {
                bytes_in_flight_max: 64 << 10,
                ..options
            },
        );
        for id in 0..3 {
            rig.reader
                .submit(Read {
                    id,
                    disk: 0,
                    offset: id << 15,
                    len: 32 << 10,
                })
                .unwrap();
        }
        let held = [rig.next(), rig.next()];
        let wait = std::time::Duration::from_millis(100);
        assert!(
            rig.completions.recv_timeout(wait).is_err(),
            "started without room"
        );
        drop(held);
        assert_eq!(&*rig.next().result.unwrap(), bytes_at(2 << 15, 32 << 10));
    }
}

#[test]
fn buffers_outlive_their_reader() {
    let dir = scratch();
    let path = image(dir.path(), "disk", 1 << 20);
    for options in engines() {
        let rig = Rig::open(&[&path], options);
        let buffer = rig.read(4096, 4096).unwrap();
        drop(rig);
        assert_eq!(&*buffer, bytes_at(4096, 4096));
    }
}

/// The page cache of this host may be stale: a read must see what is on the device, and must not
/// leave anything in the cache. mincore(2) tells what is there.
#[test]
fn reads_leave_no_page_in_the_page_cache() {
    let dir = scratch();
    let path = image(dir.path(), "disk", 1 << 20);
    drop_cache(&path);
    assert_eq!(resident(&path), 0, "the test could not empty the cache");
    for options in engines() {
        let rig = Rig::open(&[&path], options);
        drop(rig.read(0, 1 << 20).unwrap());
        assert_eq!(resident(&path), 0);
    }
    std::fs::read(&path).unwrap();
    assert!(resident(&path) > 0, "the test cannot see the cache");
}

fn drop_cache(path: &Path) {
    let file = std::fs::File::open(path).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// Pages of the file in the page cache, as fincore(1) of util-linux counts them.
fn resident(path: &Path) -> u64 {
    let out = std::process::Command::new("fincore")
        .args(["--bytes", "--noheadings", "--raw", "--output", "PAGES"])
        .arg(path)
        .output()
        .expect("fincore of util-linux");
    String::from_utf8(out.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let dir = scratch();
    let message = |path: &Path| {
        let error = Disk::open(path).unwrap_err();
        match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        }
    };
    let missing = dir.path().join("missing");
    let expected = format!(
        "cannot open disk {}: No such file or directory (os error 2)",
        missing.display()
    );
    assert_eq!(message(&missing), expected);
    let fifo = dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
    for path in [dir.path(), &fifo, Path::new("/dev/null")] {
        assert!(message(path).contains("is neither a regular file nor a block device"));
    }
}

#[test]
fn a_file_system_without_direct_reads_is_refused_with_the_remedy() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        return;
    };
    let path = image(dir.path(), "disk", 4096);
    let error = Disk::open(&path).unwrap_err();
    assert!(matches!(error, DiskError::NoDirectIo { .. }));
    assert!(
        error
            .to_string()
            .contains("put the image on a file system with O_DIRECT")
    );
}

#[test]
fn bad_options_are_refused_by_name() {
    let dir = scratch();
    let path = image(dir.path(), "disk", 4096);
    let good = Options::default();
    for (bad, name) in [
        (
            Options {
                depth: 0,
                ..good.clone()
            },
            "depth",
        ),
        (
            Options {
                depth: 1025,
                ..good.clone()
            },
            "depth",
        ),
        (
            Options {
                bytes_in_flight_max: 8192,
                ..good.clone()
            },
            "bytes_in_flight_max",
        ),
        (
            Options {
                bytes_in_flight_max: usize::MAX,
                ..good.clone()
            },
            "bytes_in_flight_max",
        ),
        (
            Options {
                stall_ms: 0,
                ..good.clone()
            },
            "stall_ms",
        ),
        (
            Options {
                stall_ms: u64::MAX,
                ..good.clone()
            },
            "stall_ms",
        ),
    ] {
        let disks = vec![Disk::open(&path).unwrap()];
        let error = Reader::start(disks, bad, |_| {}).unwrap_err().to_string();
        assert!(error.starts_with(&format!("option {name} = ")), "{error}");
    }
}

#[test]
fn the_engine_that_was_asked_for_reads() {
    let dir = scratch();
    let path = image(dir.path(), "disk", 4096);
    let [ring, threads] = engines().map(|options| Rig::open(&[&path], options));
    assert!(matches!(
        threads.reader.engine(),
        EngineKind::Threads { why: None }
    ));
    match ring.reader.engine() {
        EngineKind::IoUring => {}
        // Containers often forbid io_uring: then the reader must say why.
        EngineKind::Threads { why } => assert!(why.is_some()),
    }
}
