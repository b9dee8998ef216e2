//! The reader at disks that really fail and really hang: a FUSE file and a loop device over it.
//! Must run as root with /dev/fuse; what the reader's own injected faults do is in faults.rs.

#[path = "support/faulty.rs"]
mod faulty;
mod support;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use faulty::{FaultyDisk, Kind};
use san_io::{Options, Read, ReadError};
use support::{Rig, bytes_at, engines, image, scratch};

/// One test at a time: they count the process's threads.
static ALONE: Mutex<()> = Mutex::new(());

fn reader_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("san-")).count()
}

/// Every engine at every kind of disk.
fn cases() -> impl Iterator<Item = (Options, Kind)> {
    engines().into_iter().flat_map(|options| {
        [Kind::File, Kind::Loop].map(|kind| {
            (
                Options {
                    stall_ms: 1000,
                    ..options.clone()
                },
                kind,
            )
        })
    })
}

#[test]
#[ignore = "needs root and /dev/fuse: cargo lab test"]
fn a_failing_disk_gives_its_errno_and_then_reads_again() {
    let _alone = ALONE.lock();
    let dir = scratch();
    let path = image(dir.path(), "disk", 1 << 20);
    for (options, kind) in cases() {
        let (mut faulty, disk) = FaultyDisk::start(&path, kind);
        let rig = Rig::start(vec![disk], options);
        assert_eq!(
            &*rig.read(1000, 300_000).unwrap(),
            bytes_at(1000, 300_000),
            "{kind:?}"
        );
        faulty.tell("fail");
        match rig.read(4096, 4096) {
            Err(ReadError::Io { source, .. }) => assert_eq!(source.raw_os_error(), Some(5)),
            other => panic!("{kind:?}: {other:?}"),
        }
        faulty.tell("serve");
        assert_eq!(
            &*rig.read(4096, 4096).unwrap(),
            bytes_at(4096, 4096),
            "{kind:?}"
        );
    }
}

#[test]
#[ignore = "needs root and /dev/fuse: cargo lab test"]
fn a_hanging_disk_is_given_up_in_time_and_holds_up_no_other() {
    let _alone = ALONE.lock();
    let dir = scratch();
    let path = image(dir.path(), "disk", 1 << 20);
    for (options, kind) in cases() {
        let (mut faulty, hanging) = FaultyDisk::start(&path, kind);
        let (_serving, healthy) = FaultyDisk::start(&path, kind);
        let rig = Rig::start(vec![hanging, healthy], options);
        faulty.tell("hang");
        let started = Instant::now();
        let submit = |id, disk| {
            let offset = id * 4096;
            let len = 4096;
            rig.reader
                .submit(Read {
                    id,
                    disk,
                    offset,
                    len,
                })
                .unwrap();
        };
        (0..12).for_each(|id| submit(id, 0));
        (100..112).for_each(|id| submit(id, 1));
        for _ in 100..112 {
            let answered = rig.next();
            assert_eq!(
                &*answered.result.unwrap(),
                bytes_at(answered.id * 4096, 4096)
            );
        }
        assert!(started.elapsed() < Duration::from_millis(900), "{kind:?}");
        for _ in 0..12 {
            let result = rig.next().result;
            assert!(
                matches!(result, Err(ReadError::Stalled { .. })),
                "{kind:?}: {result:?}"
            );
        }
        let took = started.elapsed().as_millis();
        assert!((1000..2000).contains(&took), "{kind:?}: {took} ms");
        // At most one read more is tried.
        let again = Instant::now();
        (12..14).for_each(|id| submit(id, 0));
        assert!(
            matches!(rig.next().result, Err(ReadError::Dead { .. })),
            "{kind:?}"
        );
        drop(rig);
        assert!(again.elapsed() < Duration::from_millis(900), "{kind:?}");
        // What was abandoned is still owned by someone, who goes when the kernel has answered.
        assert!(reader_threads() > 0, "{kind:?}");
        faulty.tell("serve");
        let patience = Instant::now() + Duration::from_secs(5);
        while reader_threads() > 0 {
            assert!(
                Instant::now() < patience,
                "{kind:?}: {} threads",
                reader_threads()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
#[ignore = "needs root and /dev/fuse: cargo lab test"]
fn a_disk_that_answers_after_all_is_read_again() {
    let _alone = ALONE.lock();
    let dir = scratch();
    let path = image(dir.path(), "disk", 1 << 20);
    for (options, kind) in cases() {
        let (mut faulty, disk) = FaultyDisk::start(&path, kind);
        let rig = Rig::start(vec![disk], options);
        faulty.tell("hang");
        for id in 0..12 {
            rig.reader
                .submit(Read {
                    id,
                    disk: 0,
                    offset: id << 15,
                    len: 32 << 10,
                })
                .unwrap();
        }
        for _ in 0..12 {
            assert!(
                matches!(rig.next().result, Err(ReadError::Stalled { .. })),
                "{kind:?}"
            );
        }
        faulty.tell("serve");
        // The abandoned reads now come back from the kernel, some time.
        let patience = Instant::now() + Duration::from_secs(5);
        let again = loop {
            match rig.read(65536, 65536) {
                Err(ReadError::Dead { .. }) if Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                result => break result.unwrap(),
            }
        };
        assert_eq!(&*again, bytes_at(65536, 65536), "{kind:?}");
    }
}
