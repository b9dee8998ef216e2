//! Both cores against a model: a guest that writes at random, a QEMU that tracks dirty pages, links that
//! delay, storage that is right, wrong, late or dead. Every run must end with both memories equal.

use std::collections::VecDeque;

use bytes::Bytes;
use proptest::prelude::*;

use super::assembler::Assembler;
use super::digest::DigestKey;
use super::dispatcher::{Dispatcher, Telling};
use super::plan::{Plan, PlanRun, ReadOp};
use super::ram::{PAGE_BYTES, RamPage};
use super::wire::{
    self, HEADER_BYTES, Kind, PagesFrame, Record, Report, parse_array, parse_header, parse_pages,
};

const PAGES: u32 = 24;
const RESERVE: u32 = 4;
/// Model QEMU stops the guest when it has no more than this many dirty pages left.
const FEW: usize = 3;

type Page = [u8; PAGE_BYTES];

fn page(value: u8) -> Page {
    // Pages of one value differ in one byte only, so that a digest which reads less would be found out.
    let mut page = [0; PAGE_BYTES];
    page[PAGE_BYTES - 1] = value;
    page
}

fn shared(value: u8) -> Bytes {
    Bytes::copy_from_slice(&page(value))
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    Right,
    Wrong,
    Failed,
    Never,
}

#[derive(Debug, Clone)]
struct Setup {
    /// For each page: what it holds, and if it is in the plan, how storage answers for it.
    pages: Vec<(u8, Option<Answer>)>,
    may_steal: bool,
    /// What happens, one byte a step.
    steps: Vec<u8>,
}

#[derive(Debug, Clone)]
enum Emitted {
    Page(RamPage, u8),
    End,
}

struct World {
    key: DigestKey,
    // The source host.
    ram: Vec<u8>,
    dirty: Vec<bool>,
    sweep: usize,
    stopped: bool,
    stream: VecDeque<Emitted>,
    dispatcher: Dispatcher,
    held: bool,
    needs: VecDeque<RamPage>,
    to_destination: VecDeque<Vec<u8>>,
    to_source: VecDeque<Vec<u8>>,
    // The destination host.
    plan: Plan,
    assembler: Assembler,
    got: Vec<u8>,
    front: u32,
    back: u32,
    reading: Vec<ReadOp>,
    ram_ended: bool,
    /// QEMU has all pages and gets its devices: it takes no page any more.
    device: bool,
    disk: Vec<u8>,
    answers: Vec<Answer>,
    /// Claims and steals that were seen, so that a run which tested nothing can be told.
    met: u32,
}

impl World {
    fn new(setup: &Setup) -> World {
        let key = DigestKey::from([3; 32]);
        let mut runs = vec![];
        let mut disk = vec![];
        let mut answers = vec![];
        for (at, (value, planned)) in setup.pages.iter().enumerate() {
            let Some(answer) = planned else { continue };
            let offset = (disk.len() * PAGE_BYTES) as u64;
            runs.push(PlanRun {
                page: RamPage(at as u32),
                pages: 1,
                disk: 0,
                offset,
            });
            disk.push(*value);
            answers.push(*answer);
        }
        let plan = Plan::new(runs, PAGES, &[1 << 20]).unwrap();
        let mut assembler = Assembler::new(PAGES, key.clone());
        (0..plan.pages()).for_each(|at| assembler.expect_from_storage(plan.at(at).0));
        let mut dispatcher = Dispatcher::new(PAGES, plan.clone(), key.clone(), setup.may_steal);
        dispatcher.start();
        World {
            dispatcher,
            key,
            ram: setup.pages.iter().map(|(value, _)| *value).collect(),
            dirty: vec![true; PAGES as usize],
            sweep: 0,
            stopped: false,
            stream: VecDeque::new(),
            held: true,
            needs: VecDeque::new(),
            to_destination: VecDeque::new(),
            to_source: VecDeque::new(),
            back: plan.pages(),
            front: 0,
            plan,
            assembler,
            got: vec![0; PAGES as usize],
            reading: vec![],
            ram_ended: false,
            device: false,
            disk,
            answers,
            met: 0,
        }
    }

    fn guest_writes(&mut self, at: usize, value: u8) {
        if !self.stopped {
            self.ram[at] = value;
            self.dirty[at] = true;
        }
    }

    /// QEMU emits its next dirty page; when few are left and all it said was read, it stops the guest.
    fn qemu_emits(&mut self) {
        let left = self.dirty.iter().filter(|dirty| **dirty).count();
        if self.stopped {
            return;
        }
        let first_pass_over = self.sweep >= PAGES as usize;
        if first_pass_over && left <= FEW && self.stream.is_empty() {
            assert_eq!(
                self.dispatcher.open(),
                0,
                "QEMU stops the guest while claims are open"
            );
            self.stopped = true;
            for at in 0..PAGES as usize {
                if std::mem::take(&mut self.dirty[at]) {
                    self.stream
                        .push_back(Emitted::Page(RamPage(at as u32), self.ram[at]));
                }
            }
            self.stream.push_back(Emitted::End);
            return;
        }
        for _ in 0..PAGES {
            let at = self.sweep % PAGES as usize;
            self.sweep += 1;
            if std::mem::take(&mut self.dirty[at]) {
                self.stream
                    .push_back(Emitted::Page(RamPage(at as u32), self.ram[at]));
                return;
            }
        }
    }

    fn source_reads_stream(&mut self) {
        self.held &= self.dispatcher.open() > 0;
        if self.held && self.dispatcher.unseen() <= RESERVE {
            return;
        }
        let mut frame = PagesFrame::default();
        let mut owner = Bytes::new();
        match self.stream.pop_front() {
            None => return,
            Some(Emitted::End) => {
                return self
                    .to_destination
                    .push_back(wire::frame(Kind::RamEnd, &[]));
            }
            Some(Emitted::Page(at, 0)) => {
                self.dispatcher.emit_zero(at);
                frame.push(&Record::Zero(at, 1), &owner);
            }
            Some(Emitted::Page(at, value)) => {
                owner = shared(value);
                let content = owner.first_chunk().unwrap();
                let record = match self.dispatcher.emit(at, content) {
                    Telling::Content => Record::Content(at, content),
                    Telling::Claim(digest) => Record::Claim(at, digest),
                    Telling::Nothing => return,
                };
                frame.push(&record, &owner);
            }
        }
        self.to_destination.push_back(frame.finish().concat());
    }

    fn source_answers(&mut self) {
        if let Some(at) = self.needs.pop_front() {
            let bytes = shared(self.ram[at.index()]);
            if let Some(record) = self.dispatcher.answer(at, bytes.first_chunk().unwrap()) {
                let mut frame = PagesFrame::default();
                frame.push(&record, &bytes);
                self.to_destination.push_back(frame.finish().concat());
            }
        }
    }

    fn source_goes_ahead(&mut self) {
        let mut pages = vec![];
        self.dispatcher.look_ahead(2, &mut pages);
        for at in pages {
            let bytes = shared(self.ram[at.index()]);
            let record = self.dispatcher.ahead(at, bytes.first_chunk().unwrap());
            let mut frame = PagesFrame::default();
            if let Some(record) = record {
                frame.push(&record, &bytes);
                self.to_destination.push_back(frame.finish().concat());
            }
        }
    }

    fn source_steals(&mut self) {
        let mut pages = vec![];
        let back = self.dispatcher.steal(2, &mut pages);
        if pages.is_empty() {
            return;
        }
        self.to_destination
            .push_back(wire::frame(Kind::Stolen, &back.to_le_bytes()));
        let mut frame = PagesFrame::default();
        for at in pages {
            let bytes = shared(self.ram[at.index()]);
            let record = self.dispatcher.stolen(at, bytes.first_chunk().unwrap());
            if let Some(record) = record {
                frame.push(&record, &bytes);
            }
        }
        self.to_destination.push_back(frame.finish().concat());
    }

    fn source_hears(&mut self) {
        let Some(frame) = self.to_source.pop_front() else {
            return;
        };
        let (head, body) = frame.split_first_chunk::<HEADER_BYTES>().unwrap();
        let (kind, _) = parse_header(head).unwrap();
        for report in parse_array::<Report>(kind, body).unwrap() {
            let (at, outcome) = report.parse(PAGES).unwrap();
            if self.dispatcher.report(at, outcome) {
                self.needs.push_back(at);
            }
        }
    }

    fn report(&mut self, at: RamPage, outcome: Option<wire::Outcome>) {
        if let Some(outcome) = outcome {
            self.met += u32::from(outcome == wire::Outcome::Met);
            let report = [Report::new(at, outcome)];
            self.to_source
                .push_back(wire::array_frame(Kind::Reports, &report));
        }
    }

    fn destination_hears(&mut self) {
        let Some(frame) = self.to_destination.pop_front() else {
            return;
        };
        let (head, body) = frame.split_first_chunk::<HEADER_BYTES>().unwrap();
        match parse_header(head).unwrap().0 {
            Kind::RamEnd => self.ram_ended = true,
            Kind::Stolen => {
                self.back = self.back.min(u32::from_le_bytes(body.try_into().unwrap()));
            }
            _ => {
                for record in parse_pages(body, PAGES) {
                    assert!(!self.device, "a page behind the end of RAM");
                    self.destination_takes(&record.unwrap());
                }
            }
        }
        self.destination_may_end();
    }

    fn destination_may_end(&mut self) {
        self.device |= self.ram_ended && self.assembler.is_settled();
    }

    fn destination_takes(&mut self, record: &Record<'_>) {
        let verdict = self.assembler.record(record);
        let at = match record {
            Record::Zero(at, count) => {
                (at.0..at.0 + u32::from(*count)).for_each(|at| self.got[at as usize] = 0);
                *at
            }
            Record::Content(at, bytes) | Record::Early(at, bytes) => {
                if verdict.write {
                    self.got[at.index()] = bytes[PAGE_BYTES - 1];
                }
                *at
            }
            Record::Claim(at, _) | Record::Dirtied(at) => *at,
        };
        self.report(at, verdict.report);
    }

    fn destination_reads(&mut self) {
        let assembler = &self.assembler;
        let wanted = |at| assembler.wants_from_storage(at);
        if let Some(op) = self
            .plan
            .next_read(self.front, self.back, 2 * PAGE_BYTES as u32, wanted)
        {
            self.front = op.end;
            self.reading.push(op);
        }
    }

    fn storage_answers(&mut self, which: usize, give_up: bool) {
        if self.reading.is_empty() {
            return;
        }
        let op = self.reading.remove(which % self.reading.len());
        let block_of = |into: u32| (op.offset as usize + into as usize) / PAGE_BYTES;
        let answers: Vec<Answer> = op
            .pages
            .iter()
            .map(|(_, at)| self.answers[block_of(*at)])
            .collect();
        if answers.contains(&Answer::Never) && !give_up {
            self.reading.push(op);
            return;
        }
        let failed = answers
            .iter()
            .any(|answer| matches!(answer, Answer::Failed | Answer::Never));
        for ((at, into), answer) in op.pages.iter().zip(answers) {
            let verdict = if failed {
                self.assembler.storage_failed(*at)
            } else {
                let right = self.disk[block_of(*into)];
                let value = if answer == Answer::Wrong {
                    right.wrapping_add(101)
                } else {
                    right
                };
                let verdict = self.assembler.from_storage(*at, &page(value));
                if verdict.write {
                    self.got[at.index()] = value;
                }
                verdict
            };
            self.report(*at, verdict.report);
        }
        self.destination_may_end();
    }

    fn step(&mut self, step: u8, argument: u8) {
        match step % 17 {
            0 => self.guest_writes(usize::from(argument) % PAGES as usize, argument % 5),
            1..=4 => self.qemu_emits(),
            5..=7 => self.source_reads_stream(),
            8 => self.source_answers(),
            9 => self.source_steals(),
            10 => self.source_hears(),
            11..=12 => self.destination_hears(),
            13 => self.destination_reads(),
            14 => self.source_goes_ahead(),
            _ => self.storage_answers(argument.into(), false),
        }
    }

    /// Lets everything happen until nothing more can; the guest is quiet, so QEMU converges.
    fn drain(&mut self) {
        for round in 0..400 {
            self.qemu_emits();
            self.source_reads_stream();
            self.source_steals();
            self.source_answers();
            self.source_hears();
            self.destination_hears();
            self.destination_reads();
            self.storage_answers(0, round > 200);
        }
    }
}

fn setup() -> impl Strategy<Value = Setup> {
    let answer = prop_oneof![
        4 => Just(Answer::Right), 1 => Just(Answer::Wrong),
        1 => Just(Answer::Failed), 1 => Just(Answer::Never),
    ];
    let pages = prop::collection::vec((0..5_u8, prop::option::of(answer)), PAGES as usize);
    let steps = prop::collection::vec(any::<u8>(), 0..1200);
    (pages, any::<bool>(), steps).prop_map(|(pages, may_steal, steps)| Setup {
        pages,
        may_steal,
        steps,
    })
}

fn run(setup: &Setup) -> World {
    let mut world = World::new(setup);
    for step in setup.steps.chunks(2) {
        world.step(step[0], *step.last().unwrap());
    }
    world.drain();
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn every_run_ends_with_both_memories_equal(setup in setup()) {
        let world = run(&setup);
        prop_assert!(world.stopped && world.ram_ended, "the migration does not end");
        prop_assert!(world.assembler.is_settled() && !world.assembler.has_stale());
        prop_assert_eq!(&world.got, &world.ram);
    }
}

#[test]
fn right_storage_serves_the_whole_plan_and_dead_storage_none_of_it() {
    let all = |answer, may_steal| {
        let pages = (0..PAGES)
            .map(|at| (1 + (at % 4) as u8, Some(answer)))
            .collect();
        run(&Setup {
            pages,
            may_steal,
            steps: [13, 0].repeat(30),
        })
    };
    let right = all(Answer::Right, false);
    assert_eq!((right.met, right.dispatcher.counts().content), (PAGES, 0));
    let dead = all(Answer::Never, true);
    assert_eq!(
        (dead.got == dead.ram, dead.dispatcher.counts().needed),
        (true, 0)
    );
    assert_eq!(dead.key.digest(&page(1)), right.key.digest(&page(1)));
}
