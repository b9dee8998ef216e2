//! The reader's injected faults, as the migration's tests use them. Real faults: real_faults.rs.

mod support;

use std::time::{Duration, Instant};

use san_io::{Fault, Options, Read, ReadError};
use support::{Rig, bytes_at, engines, image, scratch};

fn with(fault: Fault, options: Options) -> Options {
    Options {
        fault: Some(fault),
        stall_ms: 100,
        ..options
    }
}

#[test]
fn every_third_read_fails_with_the_place_and_eio() {
    let dir = scratch();
    let path = image(dir.path(), "disk", 1 << 20);
    for options in engines() {
        let rig = Rig::open(&[&path], with(Fault::FailEvery(3), options));
        for number in 1..=9u64 {
            match rig.read(number * 4096, 4096) {
                Ok(bytes) if number % 3 != 0 => assert_eq!(&*bytes, bytes_at(number * 4096, 4096)),
                Err(ReadError::Io { place, source }) if number % 3 == 0 => {
                    assert_eq!(
                        (&*place.disk, place.offset, place.len),
                        (path.to_str().unwrap(), number * 4096, 4096)
                    );
                    assert_eq!(source.raw_os_error(), Some(5));
                }
                other => panic!("read {number}: {other:?}"),
            }
        }
    }
}

#[test]
fn wrong_bytes_are_wrong_everywhere() {
    let dir = scratch();
    let path = image(dir.path(), "disk", 1 << 20);
    for options in engines() {
        let rig = Rig::open(&[&path], with(Fault::Wrong, options));
        let got = rig.read(4096, 8192).unwrap();
        let right = bytes_at(4096, 8192);
        assert!(got.iter().zip(&right).all(|(got, right)| got != right));
    }
}

#[test]
fn a_slow_disk_takes_its_time() {
    let dir = scratch();
    let path = image(dir.path(), "disk", 1 << 20);
    for options in engines() {
        let fault = Fault::Slow {
            bytes_per_s: 1 << 20,
        };
        let rig = Rig::open(
            &[&path],
            Options {
                stall_ms: 5000,
                ..with(fault, options)
            },
        );
        let started = Instant::now();
        for id in 0..4 {
            rig.reader
                .submit(Read {
                    id,
                    disk: 0,
                    offset: id << 16,
                    len: 64 << 10,
                })
                .unwrap();
        }
        for _ in 0..4 {
            rig.next().result.unwrap();
        }
        let took = started.elapsed();
        assert!(
            took >= Duration::from_millis(250) && took < Duration::from_secs(2),
            "{took:?}"
        );
    }
}

#[test]
fn stalled_reads_are_abandoned_and_then_the_disk_is_dead() {
    let dir = scratch();
    let path = image(dir.path(), "disk", 1 << 20);
    for options in engines() {
        let rig = Rig::open(&[&path], with(Fault::StallForEver, options));
        let started = Instant::now();
        for id in 0..20 {
            rig.reader
                .submit(Read {
                    id,
                    disk: 0,
                    offset: id * 4096,
                    len: 4096,
                })
                .unwrap();
        }
        let mut stalled = 0;
        for _ in 0..20 {
            match rig.next().result {
                Err(ReadError::Stalled { after_ms: 100, .. }) => stalled += 1,
                Err(ReadError::Dead { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(stalled >= 8);
        assert!(started.elapsed() >= Duration::from_millis(100));
        assert!(matches!(rig.read(0, 4096), Err(ReadError::Dead { .. })));
        let dropping = Instant::now();
        drop(rig);
        assert!(dropping.elapsed() < Duration::from_secs(1));
    }
}
