//! The cores of both hosts with nothing around them but the wire codec: frames go in, frames come out. It decides
//! nothing and keeps no page.

use bytes::{Buf, Bytes};
use migrator::core::assembler::{Assembler, Verdict};
use migrator::core::digest::DigestKey;
use migrator::core::dispatcher::{Counts, Dispatcher, Telling};
use migrator::core::pieces::Pieces;
use migrator::core::plan::{Plan, PlanRun, ReadOp};
use migrator::core::ram::{PAGE_BYTES, RamPage, RamTable};
use migrator::core::stream::{Item, Parser, RamWriter};
use migrator::core::wire::{
    self, HEADER_BYTES, Kind, PagesFrame, Record, Report, WireRun, parse_array, parse_pages,
};

/// As the source closes its batches.
const FRAME_BYTES: usize = 128 << 10;
/// As the destination reads storage.
const READ_BYTES_MAX: u32 = 256 << 10;

/// The source's core, from QEMU's stream to frames.
pub(crate) struct Source {
    parser: Parser,
    pub(crate) dispatcher: Dispatcher,
    ram_pages: u32,
}

impl Source {
    pub(crate) fn new(table: &RamTable, plan: Plan, key: DigestKey) -> Source {
        Source {
            parser: Parser::new(table.clone()),
            dispatcher: Dispatcher::new(table.pages(), plan, key, true),
            ram_pages: table.pages(),
        }
    }

    /// What the destination is told of a part of QEMU's stream.
    pub(crate) fn tell(&mut self, mut stream: Bytes) -> Vec<Pieces> {
        let (mut frames, mut frame) = (vec![], PagesFrame::default());
        while let Some((taken, item)) = self.parser.next(&stream).expect("a sound stream") {
            match item {
                Item::Zero(page) => {
                    self.dispatcher.emit_zero(page);
                    frame.push(&Record::Zero(page, 1), &stream);
                }
                Item::Page(page, content) => match self.dispatcher.emit(page, content) {
                    Telling::Content => frame.push(&Record::Content(page, content), &stream),
                    Telling::Claim(digest) => frame.push(&Record::Claim(page, digest), &stream),
                    Telling::Nothing => {}
                },
                Item::Command(_) | Item::RamStart => drop(self.dispatcher.start()),
                Item::Raw(_) | Item::PartEnd | Item::RamEnd | Item::Device(_) => {}
            }
            if frame.len() >= FRAME_BYTES {
                frames.push(std::mem::take(&mut frame).finish());
            }
            stream.advance(taken);
        }
        frames.extend((!frame.is_empty()).then(|| frame.finish()));
        frames
    }

    /// Takes a frame of reports; the pages that the destination needs.
    pub(crate) fn hear(&mut self, frame: &[u8]) -> Vec<RamPage> {
        let reports = parse_array::<Report>(Kind::Reports, &frame[HEADER_BYTES..]);
        let mut needs = vec![];
        for report in reports.expect("whole reports") {
            let (page, outcome) = report.parse(self.ram_pages).expect("a sound report");
            needs.extend(self.dispatcher.report(page, outcome).then_some(page));
        }
        needs
    }

    /// What the destination is told of `pages` that it needs or, `stolen`, that are taken from storage; `ram` is
    /// what guest RAM holds of them.
    pub(crate) fn supply(&mut self, pages: &[RamPage], ram: &Bytes, stolen: bool) -> Pieces {
        let mut frame = PagesFrame::default();
        for (page, bytes) in pages.iter().zip(ram.as_chunks().0) {
            let record = if stolen {
                self.dispatcher.stolen(*page, bytes)
            } else {
                self.dispatcher.answer(*page, bytes)
            };
            if let Some(record) = record {
                frame.push(&record, ram);
            }
        }
        frame.finish()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.dispatcher.counts()
    }
}

/// The destination's core, from frames and storage to its QEMU's stream.
pub(crate) struct Destination {
    pub(crate) assembler: Assembler,
    writer: RamWriter,
    plan: Plan,
    /// Positions before this one were read.
    front: u32,
    /// Positions from here on are stolen.
    pub(crate) back: u32,
    reports: Vec<Report>,
    ram_pages: u32,
    /// Bytes that QEMU was given.
    pub(crate) qemu_bytes: usize,
}

impl Destination {
    /// A destination with the plan as it came over the wire.
    pub(crate) fn new(
        table: &RamTable,
        plan: impl Iterator<Item = Vec<u8>>,
        disk_bytes: u64,
        key: DigestKey,
    ) -> Destination {
        let mut runs: Vec<PlanRun> = vec![];
        for frame in plan {
            let parsed = parse_array::<WireRun>(Kind::Plan, &frame[HEADER_BYTES..]);
            runs.extend(parsed.expect("whole runs").iter().map(PlanRun::from));
        }
        let plan = Plan::new(runs, table.pages(), &[disk_bytes]).expect("a sound plan");
        let mut assembler = Assembler::new(table.pages(), key);
        for run in plan.runs() {
            let pages = run.page.0..run.page.0 + run.pages;
            pages.for_each(|page| assembler.expect_from_storage(RamPage(page)));
        }
        Destination {
            assembler,
            writer: RamWriter::new(table.clone()),
            front: 0,
            back: plan.pages(),
            plan,
            reports: vec![],
            ram_pages: table.pages(),
            qemu_bytes: 0,
        }
    }

    /// Takes a frame of page records.
    pub(crate) fn hear(&mut self, frame: &Bytes) {
        let body = frame.slice(HEADER_BYTES..);
        for record in parse_pages(&body, self.ram_pages) {
            let record = record.expect("a sound record");
            let verdict = self.assembler.record(&record);
            let page = match record {
                Record::Zero(page, count) => {
                    let pages = page.0..page.0 + u32::from(count);
                    pages.for_each(|page| self.writer.zero(RamPage(page)));
                    page
                }
                Record::Content(page, bytes) | Record::Early(page, bytes) => {
                    if verdict.write {
                        self.writer.page(page, bytes, &body);
                    }
                    page
                }
                Record::Claim(page, _) | Record::Dirtied(page) => page,
            };
            self.report(page, verdict);
        }
        self.feed_qemu();
    }

    /// The next read of storage.
    pub(crate) fn next_read(&mut self) -> Option<ReadOp> {
        let wanted = |page| self.assembler.wants_from_storage(page);
        let op = self
            .plan
            .next_read(self.front, self.back, READ_BYTES_MAX, wanted);
        self.front = op.as_ref().map_or(self.front.max(self.back), |op| op.end);
        op
    }

    /// Takes what storage answered.
    pub(crate) fn answered(&mut self, op: &ReadOp, read: &Bytes) {
        for (page, at) in &op.pages {
            let bytes = read[*at as usize..].first_chunk::<PAGE_BYTES>();
            let bytes = bytes.expect("a read as long as was asked");
            let verdict = self.assembler.from_storage(*page, bytes);
            if verdict.write {
                self.writer.page(*page, bytes, read);
            }
            self.report(*page, verdict);
        }
        self.feed_qemu();
    }

    /// What the source has to know.
    pub(crate) fn take_reports(&mut self) -> Vec<u8> {
        let frame = wire::array_frame(Kind::Reports, &self.reports);
        self.reports.clear();
        frame
    }

    fn feed_qemu(&mut self) {
        let mut out = Pieces::default();
        self.writer.take(&mut out);
        self.qemu_bytes += out.len();
    }

    fn report(&mut self, page: RamPage, verdict: Verdict) {
        let outcome = verdict.report;
        self.reports
            .extend(outcome.map(|outcome| Report::new(page, outcome)));
    }
}
