//! The taking of replies against servers that answer in any order, in pieces, wrongly or not to the
//! end. Every read must be answered once, and with bytes only if all of them came.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::buffer::Pool;

const SIZE: u64 = 1 << 20;

/// A handle whose server is the other end of a socket pair.
fn handle(structured: bool, block_max: u32) -> (Handle, Receiver<Event>, OwnedFd) {
    let (family, kind) = (
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
    );
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let (ours, theirs) = rustix::net::socketpair(family, kind, flags, None).unwrap();
    let (handle, events) = handle_over(ours, structured, block_max);
    (handle, events, theirs)
}

fn handle_over(ours: OwnedFd, structured: bool, block_max: u32) -> (Handle, Receiver<Event>) {
    let agreed = Agreed {
        size: SIZE,
        structured,
        can_multi_conn: false,
        block_min: 1,
        block_max,
    };
    let export = Export {
        connections: vec![Socket::of(ours)],
        agreed,
    };
    let (sender, events) = channel();
    (start(export, &sender).unwrap(), events)
}

fn op(key: u64, offset: u64, want: usize) -> Op {
    Op {
        key,
        disk: 0,
        offset,
        want,
        filled: 0,
        block: Pool::new(1 << 20, 512).take(want).unwrap(),
    }
}

fn next(events: &Receiver<Event>) -> Done {
    match events.recv_timeout(Duration::from_secs(10)) {
        Ok(Event::Done(done)) => done,
        _ => panic!("no answer"),
    }
}

fn say(server: &OwnedFd, bytes: &[u8]) {
    let mut rest = bytes;
    while !rest.is_empty() {
        // The client may have had enough of it.
        let flags = rustix::net::SendFlags::NOSIGNAL;
        let Ok(sent) = rustix::net::send(server, rest, flags) else {
            return;
        };
        rest = &rest[sent..];
    }
}

fn hear(server: &OwnedFd, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut heard = 0;
    while heard < len {
        let (read, _) =
            rustix::net::recv(server, &mut bytes[heard..], rustix::net::RecvFlags::empty())
                .unwrap();
        assert_ne!(read, 0);
        heard += read;
    }
    bytes
}

fn chunk(cookie: u64, done: bool, kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = 0x668e_33efu32.to_be_bytes().to_vec();
    bytes.extend(u16::from(done).to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend((body.len() as u32).to_be_bytes());
    bytes.extend(body);
    bytes
}

fn data(cookie: u64, done: bool, offset: u64, bytes: &[u8]) -> Vec<u8> {
    chunk(cookie, done, 1, &[&offset.to_be_bytes(), bytes].concat())
}

fn hole(cookie: u64, done: bool, offset: u64, len: u32) -> Vec<u8> {
    let body = [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat();
    chunk(cookie, done, 2, &body)
}

fn error(cookie: u64, done: bool, errno: u32) -> Vec<u8> {
    chunk(
        cookie,
        done,
        0x8001,
        &[&errno.to_be_bytes()[..], &[0, 2], b"no"].concat(),
    )
}

fn simple(cookie: u64, errno: u32, bytes: &[u8]) -> Vec<u8> {
    let mut reply = 0x6744_6698u32.to_be_bytes().to_vec();
    reply.extend(errno.to_be_bytes());
    reply.extend(cookie.to_be_bytes());
    reply.extend(bytes);
    reply
}

#[test]
fn a_request_is_28_bytes_that_ask_for_a_read() {
    let (mut handle, _events, server) = handle(true, 4096);
    handle.read(op(5, 8192, 512));
    handle.wake();
    let expected = b"\x25\x60\x95\x13\0\0\0\0\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\x20\0\0\0\x02\0";
    assert_eq!(hear(&server, 28), expected);
    drop(handle);
    // NBD_CMD_DISC, and the end.
    assert_eq!(hear(&server, 28)[..8], *b"\x25\x60\x95\x13\0\0\0\x02");
}

#[test]
fn replies_of_two_reads_come_mixed_in_pieces_and_out_of_order() {
    let (mut handle, events, server) = handle(true, 4096);
    handle.read(op(1, 0, 1024));
    handle.read(op(2, 4096, 512));
    handle.wake();
    let said = [
        data(1, false, 512, &[7; 512]),
        data(2, true, 4096, &[8; 512]),
        hole(1, false, 0, 512),
        chunk(1, true, 0, &[]),
    ];
    say(&server, &said.concat());
    let done = next(&events);
    assert_eq!((done.op.key, done.result.unwrap()), (2, 512));
    assert_eq!(done.op.block[..512], [8; 512]);
    let done = next(&events);
    assert_eq!((done.op.key, done.result.unwrap()), (1, 1024));
    assert_eq!(done.op.block[..512], [0; 512]);
    assert_eq!(done.op.block[512..1024], [7; 512]);
}

/// Only TCP waits for all bytes of a long reply; what follows must not wait for as many.
#[test]
fn long_replies_over_tcp_come_whole_and_those_that_break_off_fail() {
    const LONG: usize = 512 << 10;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = OwnedFd::from(listener.accept().unwrap().0);
    let (mut handle, events) = handle_over(ours.into(), true, 1 << 20);
    handle.read(op(1, 0, LONG));
    handle.read(op(2, 4096, 512));
    handle.read(op(3, 0, LONG));
    handle.wake();
    let bytes: Vec<u8> = (0..LONG).map(|i| (i >> 9) as u8).collect();
    let whole = data(1, true, 0, &bytes);
    for part in whole.chunks(200_001) {
        say(&server, part);
        std::thread::sleep(Duration::from_millis(5));
    }
    let done = next(&events);
    assert_eq!((done.op.key, done.result.unwrap()), (1, LONG));
    assert!(done.op.block[..LONG] == bytes);
    say(&server, &data(2, true, 4096, &[8; 512]));
    let done = next(&events);
    assert_eq!((done.op.key, done.result.unwrap()), (2, 512));
    assert_eq!(done.op.block[..512], [8; 512]);
    say(&server, &data(3, true, 0, &bytes)[..LONG / 2]);
    drop(server);
    let done = next(&events);
    assert_eq!(done.op.key, 3);
    assert!(done.result.unwrap_err().to_string().contains("is lost"));
}

#[test]
fn simple_replies_are_understood() {
    let (mut handle, events, server) = handle(false, 4096);
    handle.read(op(1, 0, 512));
    handle.read(op(2, 512, 512));
    handle.wake();
    say(
        &server,
        &[simple(2, 5, &[]), simple(1, 0, &[9; 512])].concat(),
    );
    let failed = next(&events);
    assert_eq!(
        (failed.op.key, failed.result.unwrap_err().raw_os_error()),
        (2, Some(5))
    );
    let done = next(&events);
    assert_eq!((done.op.key, done.result.unwrap()), (1, 512));
    assert_eq!(done.op.block[..512], [9; 512]);
}

#[test]
fn an_error_fails_its_read_alone() {
    let (mut handle, events, server) = handle(true, 4096);
    handle.read(op(1, 0, 1024));
    handle.read(op(2, 0, 512));
    handle.wake();
    let said = [
        data(1, false, 0, &[7; 512]),
        error(1, true, 5),
        error(2, true, 4),
    ];
    say(&server, &said.concat());
    assert_eq!(next(&events).result.unwrap_err().raw_os_error(), Some(5));
    // EINTR is none of NBD's numbers: nobody shall try again because of it.
    assert_eq!(next(&events).result.unwrap_err().raw_os_error(), Some(22));
}

#[test]
fn what_is_longer_than_the_server_takes_or_the_disk_is_asked_in_part() {
    let (mut handle, _events, server) = handle(true, 4096);
    handle.read(op(1, 0, 16384));
    handle.read(op(2, SIZE - 512, 4096));
    handle.wake();
    let asked = hear(&server, 56);
    assert_eq!(asked[24..28], 4096u32.to_be_bytes());
    assert_eq!(asked[52..56], 512u32.to_be_bytes());
}

#[test]
fn a_server_that_breaks_the_rules_loses_the_connection_and_every_read_is_answered() {
    for said in [
        data(3, true, 0, &[7; 512]),
        data(1, true, 1, &[7; 512]),
        data(1, true, u64::MAX, &[7; 512]),
        hole(1, true, 0, u32::MAX),
        [data(1, false, 0, &[7; 512]), data(1, true, 0, &[7; 512])].concat(),
        chunk(1, true, 1, &[0; 8]),
        chunk(1, true, 5, &[0; 16]),
        chunk(1, true, 0x8001, &[0; 8192]),
        simple(1, 0, &[7; 512]),
        b"garbage of at least this length".to_vec(),
        vec![],
    ] {
        let (mut handle, events, server) = handle(true, 4096);
        handle.read(op(1, 0, 512));
        handle.read(op(2, 512, 512));
        handle.wake();
        say(&server, &said);
        if said.is_empty() {
            drop(server);
        }
        let mut keys = [next(&events), next(&events)].map(|done| {
            let why = done.result.unwrap_err().to_string();
            assert!(why.contains("is lost"), "{why}");
            done.op.key
        });
        keys.sort_unstable();
        assert_eq!(keys, [1, 2], "{said:?}");
        // And so is whatever comes later.
        handle.read(op(4, 0, 512));
        assert_eq!(next(&events).op.key, 4);
    }
}

#[test]
fn bytes_left_out_fail_the_read() {
    let (mut handle, events, server) = handle(true, 4096);
    handle.read(op(1, 0, 1024));
    handle.wake();
    let said = [data(1, false, 0, &[7; 512]), chunk(1, true, 0, &[])];
    say(&server, &said.concat());
    let why = next(&events).result.unwrap_err().to_string();
    assert!(why.contains("leaves out"), "{why}");
}

#[derive(Debug, Clone)]
enum Piece {
    Data(u64, bool, u64, usize),
    Hole(u64, bool, u64, u32),
    Error(u64, bool, u32),
    Simple(u64, u32, usize),
    Noise(Vec<u8>),
}

fn piece() -> impl Strategy<Value = Piece> {
    let offset = prop_oneof![9 => (0..5u64).prop_map(|n| n * 512), 1 => any::<u64>()];
    let len = (1..4usize).prop_map(|n| n * 512);
    prop_oneof![
        6 => (0..4u64, any::<bool>(), offset.clone(), len.clone())
            .prop_map(|(cookie, done, at, len)| Piece::Data(cookie, done, at, len)),
        2 => (0..4u64, any::<bool>(), offset, 0..2048u32)
            .prop_map(|(cookie, done, at, len)| Piece::Hole(cookie, done, at, len)),
        1 => (0..4u64, any::<bool>(), any::<u32>()).prop_map(|(c, d, e)| Piece::Error(c, d, e)),
        1 => (0..4u64, 0..2u32, len).prop_map(|(c, e, len)| Piece::Simple(c, e, len)),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Piece::Noise),
    ]
}

proptest! {
    /// Three reads of 1 KiB at 0, 512 and 1024; the server says what it likes and hangs up.
    #[test]
    fn every_read_is_answered_once_whatever_the_server_says(
        pieces in prop::collection::vec(piece(), 0..12),
        structured in any::<bool>(),
    ) {
        let (mut handle, events, server) = handle(structured, 4096);
        for key in 1..4 {
            handle.read(op(key, (key - 1) * 512, 1024));
        }
        handle.wake();
        for piece in pieces {
            say(&server, &match piece {
                Piece::Data(cookie, done, at, len) => data(cookie, done, at, &vec![7; len]),
                Piece::Hole(cookie, done, at, len) => hole(cookie, done, at, len),
                Piece::Error(cookie, done, errno) => error(cookie, done, errno),
                Piece::Simple(cookie, errno, len) => simple(cookie, errno, &vec![7; len]),
                Piece::Noise(noise) => noise,
            });
        }
        drop(server);
        let mut keys: Vec<u64> = (1..4).map(|_| {
            let done = next(&events);
            if let Ok(bytes) = done.result {
                assert_eq!(bytes, 1024);
                // A simple reply has no length: there the server's next words may be taken for bytes.
                let said = done.op.block[..1024].iter().all(|&byte| byte == 7 || byte == 0);
                assert!(said || !structured);
            }
            done.op.key
        }).collect();
        keys.sort_unstable();
        prop_assert_eq!(keys, [1, 2, 3]);
        drop(handle);
        prop_assert!(events.recv_timeout(Duration::from_secs(10)).is_err());
    }
}
