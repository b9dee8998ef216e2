//! The desk against an engine that answers in any order, short, wrongly or never. Every accepted
//! read must be answered once, with the disk's bytes or an error, within the bounds.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::io::Errno;

use crate::Read;
use crate::buffer::Block;
use crate::desk::{Action, Desk, Filled};
use crate::engine::{Done, Op};
use crate::error::ReadError;
use crate::share::{DiskInfo, Limits};

const STALL: Duration = Duration::from_millis(100);

fn byte_at(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    Submit {
        disk: usize,
        offset: u64,
        len: u32,
    },
    /// The engine answers one of its reads, chosen by `pick`.
    Answer {
        pick: usize,
        how: Answer,
    },
    /// The caller drops one of its buffers.
    GiveBack {
        pick: usize,
    },
    Pass {
        ms: u64,
    },
}

#[derive(Debug, Clone)]
enum Answer {
    Whole,
    /// Not more than this.
    Short(usize),
    Errno(Errno),
}

const SIZES: [u64; 2] = [256 << 10, (100 << 10) + 1234];
const ALIGNMENTS: [u32; 2] = [512, 4096];
const LIMITS: Limits = Limits {
    depth: 4,
    bytes_max: 64 << 10,
    stall: STALL,
};

fn step() -> impl Strategy<Value = Step> {
    let answer = prop_oneof![
        6 => Just(Answer::Whole),
        2 => (0..20_000usize).prop_map(Answer::Short),
        1 => prop_oneof![Just(Errno::IO), Just(Errno::INTR), Just(Errno::AGAIN), Just(Errno::CANCELED)]
            .prop_map(Answer::Errno),
    ];
    let offset = prop_oneof![20 => 0..270_000u64, 1 => any::<u64>()];
    let len = prop_oneof![20 => 1..33_000u32, 1 => any::<u32>(), 1 => Just(0)];
    prop_oneof![
        8 => (0..3usize, offset, len)
            .prop_map(|(disk, offset, len)| Step::Submit { disk, offset, len }),
        8 => (any::<usize>(), answer).prop_map(|(pick, how)| Step::Answer { pick, how }),
        4 => any::<usize>().prop_map(|pick| Step::GiveBack { pick }),
        2 => (0..80u64).prop_map(|ms| Step::Pass { ms }),
    ]
}

/// The desk with everything around it, which checks each action as it comes.
struct Model {
    desk: Desk,
    now: Instant,
    asked: u64,
    /// By the read's id.
    unanswered: HashMap<u64, Read>,
    at_engine: Vec<Op>,
    /// When a key was first started.
    started: HashMap<u64, Instant>,
    held: Vec<(usize, Block)>,
    completed: usize,
}

impl Model {
    fn new() -> Self {
        let info = |disk| DiskInfo {
            name: "disk".into(),
            size: SIZES[disk],
            alignment: ALIGNMENTS[disk],
        };
        Self {
            desk: Desk::new(vec![info(0), info(1)], LIMITS),
            now: Instant::now(),
            asked: 0,
            unanswered: HashMap::new(),
            at_engine: Vec::new(),
            started: HashMap::new(),
            held: Vec::new(),
            completed: 0,
        }
    }

    fn take(&mut self, step: Step) {
        let mut actions = Vec::new();
        match step {
            Step::Submit { disk, offset, len } => {
                let read = Read {
                    id: self.asked,
                    disk,
                    offset,
                    len,
                };
                self.asked += 1;
                self.unanswered.insert(read.id, read);
                self.desk.submit(read, self.now, &mut actions);
            }
            Step::Answer { pick, how } if !self.at_engine.is_empty() => {
                let op = self.at_engine.swap_remove(pick % self.at_engine.len());
                self.desk.done(answer(op, how), self.now, &mut actions);
            }
            Step::GiveBack { pick } if !self.held.is_empty() => {
                let (disk, block) = self.held.swap_remove(pick % self.held.len());
                self.desk.given_back(disk, block, self.now, &mut actions);
            }
            Step::Answer { .. } | Step::GiveBack { .. } => {}
            Step::Pass { ms } => {
                self.now += Duration::from_millis(ms);
                self.desk.tick(self.now, &mut actions);
                assert!(self.desk.next_deadline().is_none_or(|at| at > self.now));
            }
        }
        for action in actions {
            self.check(action);
        }
        self.check_bounds();
    }

    fn check(&mut self, action: Action) {
        match action {
            Action::Start(op) => {
                let align = u64::from(ALIGNMENTS[op.disk]);
                assert_eq!((op.offset % align, op.want as u64 % align), (0, 0));
                assert_eq!(op.filled as u64 % align, 0);
                assert!(op.filled < op.want && op.want <= op.block.capacity());
                self.started.entry(op.key).or_insert(self.now);
                self.at_engine.push(op);
            }
            Action::Cancel { key, .. } => assert!(self.at_engine.iter().any(|op| op.key == key)),
            Action::Complete {
                read,
                result,
                elapsed,
            } => {
                assert_eq!(
                    self.unanswered.remove(&read.id),
                    Some(read),
                    "answered twice"
                );
                self.check_result(&read, result, elapsed);
            }
        }
    }

    fn check_result(&mut self, read: &Read, result: Result<Filled, ReadError>, elapsed: Duration) {
        let size = SIZES.get(read.disk).copied().unwrap_or(0);
        let end = read.offset.saturating_add(read.len.into());
        let in_bounds = read.offset < size && end < size + 4096;
        match result {
            Ok(Filled { block, start }) => {
                self.completed += 1;
                assert!(in_bounds && read.len > 0);
                for (at, &byte) in (read.offset..end).zip(&block[start..]) {
                    assert_eq!(byte, if at < size { byte_at(at) } else { 0 }, "at {at}");
                }
                self.held.push((read.disk, block));
            }
            Err(ReadError::Stalled { .. }) => assert!(elapsed >= STALL),
            Err(ReadError::Dead { stalled, .. }) => assert!(stalled > 0 && in_bounds),
            Err(ReadError::BeyondEnd { .. }) => assert!(!in_bounds),
            Err(ReadError::Length { .. }) => assert!(read.len == 0 || read.len > 24 << 10),
            Err(ReadError::NoSuchDisk { .. }) => assert_eq!(read.disk, 2),
            Err(ReadError::Io { .. } | ReadError::Short { .. }) => assert!(in_bounds),
        }
    }

    fn check_bounds(&self) {
        for disk in 0..SIZES.len() {
            let at_engine = || self.at_engine.iter().filter(|op| op.disk == disk);
            assert!(at_engine().count() <= LIMITS.depth);
            let held = self
                .held
                .iter()
                .filter(|(of, _)| *of == disk)
                .map(|(_, block)| block);
            let blocks = held.chain(at_engine().map(|op| &op.block));
            assert!(blocks.map(|block| block.capacity()).sum::<usize>() <= LIMITS.bytes_max);
        }
    }

    /// Answers and gives back until nothing moves: then nothing may be left waiting.
    fn settle(&mut self) {
        while !self.at_engine.is_empty() || !self.held.is_empty() {
            self.take(Step::GiveBack { pick: 0 });
            self.take(Step::Answer {
                pick: 0,
                how: Answer::Whole,
            });
        }
        assert!(
            self.unanswered.is_empty(),
            "never answered: {:?}",
            self.unanswered
        );
    }

    /// The engine has fallen silent: time alone must answer everything.
    fn fall_silent(&mut self) {
        for _ in 0..=self.unanswered.len() {
            while !self.held.is_empty() {
                self.take(Step::GiveBack { pick: 0 });
            }
            self.take(Step::Pass { ms: 100 });
        }
        assert!(
            self.unanswered.is_empty(),
            "never answered: {:?}",
            self.unanswered
        );
    }
}

/// What an engine gives: bytes up to the end of the disk, at most.
fn answer(mut op: Op, how: Answer) -> Done {
    let at = op.offset + op.filled as u64;
    let there = SIZES[op.disk]
        .saturating_sub(at)
        .min((op.want - op.filled) as u64) as usize;
    let bytes = match how {
        Answer::Whole => there,
        Answer::Short(bytes) => there.min(bytes),
        Answer::Errno(errno) => {
            return Done {
                op,
                result: Err(errno.into()),
            };
        }
    };
    for (offset, byte) in (at..).zip(&mut op.block[op.filled..op.filled + bytes]) {
        *byte = byte_at(offset);
    }
    Done {
        op,
        result: Ok(bytes),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn each_read_is_answered_once_with_its_bytes_or_an_error(
        steps in prop::collection::vec(step(), 0..120),
        silent: bool,
    ) {
        let mut model = Model::new();
        for step in steps {
            model.take(step);
        }
        if silent {
            model.fall_silent();
        } else {
            model.settle();
        }
    }
}

fn submit(model: &mut Model, reads: u64) {
    for page in 0..reads {
        model.take(Step::Submit {
            disk: 0,
            offset: page * 4096,
            len: 4096,
        });
    }
}

#[test]
fn a_healthy_disk_answers_every_read() {
    let mut model = Model::new();
    submit(&mut model, 50);
    model.settle();
    assert_eq!(model.completed, 50);
}

#[test]
fn a_failing_disk_answers_every_read() {
    let mut model = Model::new();
    submit(&mut model, 50);
    while !model.at_engine.is_empty() {
        let how = Answer::Errno(Errno::IO);
        model.take(Step::Answer { pick: 0, how });
    }
    assert!(model.unanswered.is_empty());
}

#[test]
fn a_dead_disk_whose_reads_can_be_cancelled_is_tried_with_one_at_a_time() {
    let mut model = Model::new();
    submit(&mut model, 2);
    model.take(Step::Pass { ms: 100 });
    for _ in 0..2 {
        let how = Answer::Errno(Errno::CANCELED);
        model.take(Step::Answer { pick: 0, how });
    }
    submit(&mut model, 5);
    assert_eq!((model.at_engine.len(), model.unanswered.len()), (1, 1));
    model.settle();
    submit(&mut model, 5);
    model.settle();
    assert_eq!(model.completed, 6);
}

#[test]
fn a_late_answer_brings_a_dead_disk_back() {
    let mut model = Model::new();
    submit(&mut model, 2);
    model.take(Step::Pass { ms: 100 });
    submit(&mut model, 1);
    assert!(model.unanswered.is_empty());
    model.take(Step::Answer {
        pick: 0,
        how: Answer::Whole,
    });
    submit(&mut model, 1);
    model.settle();
    assert_eq!(model.completed, 1);
}

#[test]
fn one_stall_among_answers_does_not_kill_a_disk() {
    let mut model = Model::new();
    submit(&mut model, 1);
    model.take(Step::Pass { ms: 100 });
    for _ in 0..20 {
        submit(&mut model, 1);
        let newest = model.at_engine.len() - 1;
        model.take(Step::Answer {
            pick: newest,
            how: Answer::Whole,
        });
        model.take(Step::GiveBack { pick: 0 });
    }
    assert_eq!(model.completed, 20);
}

#[test]
fn large_stalled_reads_kill_a_disk_before_they_take_all_its_memory() {
    let mut model = Model::new();
    model.take(Step::Submit {
        disk: 0,
        offset: 0,
        len: 32 << 10,
    });
    model.take(Step::Pass { ms: 100 });
    submit(&mut model, 1);
    assert!(model.unanswered.is_empty());
}

#[test]
fn interruptions_are_tried_again_but_not_for_ever() {
    let mut model = Model::new();
    submit(&mut model, 1);
    let mut tries = 0;
    while !model.at_engine.is_empty() {
        model.take(Step::Answer {
            pick: 0,
            how: Answer::Errno(Errno::INTR),
        });
        tries += 1;
    }
    assert_eq!(tries, 8);
}
