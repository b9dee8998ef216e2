//! The migration's pure core, each part by itself on 32 MiB, more than caches hold: cargo bench -p migrator --bench
//! core. `memory_copy` is the yardstick: what this machine's memory can do at all. What passes content on without
//! looking at it is faster than that; what takes its digest is about as fast.

mod synthetic;

use bytes::Bytes;
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use migrator::core::assembler::Assembler;
use migrator::core::digest::DigestKey;
use migrator::core::dispatcher::Dispatcher;
use migrator::core::pieces::Pieces;
use migrator::core::plan::{Plan, PlanRun};
use migrator::core::ram::{PAGE_BYTES, RamPage};
use migrator::core::stream::{Item, Parser, RamWriter};
use migrator::core::wire::{
    HEADER_BYTES, Kind, Outcome, PagesFrame, Record, Report, array_frame, parse_array, parse_pages,
};
use synthetic::{Guest, Page, Qemu};

/// Pages that a bench works on.
const PAGES: u32 = 8192;
const BYTES: u64 = PAGES as u64 * PAGE_BYTES as u64;
/// Pages of a frame: 128 KiB, as the source makes them.
const FRAME_PAGES: usize = 32;

/// The 32 MiB, a page after the other; none is like another.
struct Content(Bytes);

impl Content {
    fn new() -> Content {
        let guest = Guest::new(BYTES);
        let mut bytes = vec![0; BYTES as usize];
        let pages = bytes.chunks_exact_mut(PAGE_BYTES);
        for (page, into) in all_pages().zip(pages) {
            guest.fill(page, 0, into);
        }
        Content(bytes.into())
    }

    fn pages(&self) -> impl Iterator<Item = (RamPage, &Page)> {
        all_pages().zip(self.0.as_chunks().0)
    }
}

fn all_pages() -> impl Iterator<Item = RamPage> {
    (0..PAGES).map(RamPage)
}

fn key() -> DigestKey {
    DigestKey::from([7; 32])
}

/// All pages in runs of `run_pages`, neighbours in RAM last on the disk.
fn runs(run_pages: u32) -> Vec<PlanRun> {
    let run = |at| PlanRun {
        page: RamPage(PAGES - (at + 1) * run_pages),
        pages: run_pages,
        disk: 0,
        offset: u64::from(at * run_pages) * PAGE_BYTES as u64,
    };
    (0..PAGES / run_pages).map(run).collect()
}

fn plan(run_pages: u32) -> Plan {
    Plan::new(runs(run_pages), PAGES, &[BYTES]).expect("a plan")
}

/// Bytes of content that a bench goes through.
fn bytes() -> BytesCount {
    BytesCount::new(BYTES)
}

/// Pages that a bench goes through.
fn pages() -> ItemsCount {
    ItemsCount::new(PAGES)
}

#[divan::bench(sample_size = 1)]
fn memory_copy(bencher: Bencher) {
    let content = Content::new();
    let mut copy = vec![0; BYTES as usize];
    bencher.counter(bytes()).counter(pages()).bench_local(|| {
        copy.copy_from_slice(black_box(&content.0));
        black_box(&mut copy);
    });
}

#[divan::bench(sample_size = 1)]
fn digest(bencher: Bencher) {
    let (content, key) = (Content::new(), key());
    bencher.counter(bytes()).counter(pages()).bench_local(|| {
        for (_, bytes) in content.pages() {
            black_box(key.digest(black_box(bytes)));
        }
    });
}

/// QEMU's stream, taken apart.
mod parser {
    use super::*;

    #[divan::bench(sample_size = 1)]
    fn content(bencher: Bencher) {
        let guest = Guest::new(BYTES);
        let mut qemu = Qemu::begin(&guest.table);
        all_pages().for_each(|page| qemu.page(page, |into| guest.fill(page, 0, into)));
        parse(
            bencher.counter(bytes()).counter(pages()),
            &guest,
            &qemu.take(true),
        );
    }

    #[divan::bench(sample_size = 1)]
    fn zero(bencher: Bencher) {
        let guest = Guest::new(BYTES);
        let mut qemu = Qemu::begin(&guest.table);
        all_pages().for_each(|page| qemu.zero(page));
        parse(bencher.counter(pages()), &guest, &qemu.take(true));
    }

    fn parse(bencher: Bencher, guest: &Guest, stream: &[u8]) {
        bencher.bench_local(|| {
            let (mut parser, mut rest, mut seen) = (Parser::new(guest.table.clone()), stream, 0);
            while let Some((taken, item)) = parser.next(rest).expect("a sound stream") {
                rest = &rest[taken..];
                seen += u32::from(matches!(item, Item::Page(..) | Item::Zero(_)));
            }
            assert_eq!(seen, PAGES);
        });
    }
}

/// The source's decisions.
mod dispatcher {
    use super::*;

    fn new(run_pages: Option<u32>) -> Dispatcher {
        let plan = run_pages.map(plan).unwrap_or_default();
        let mut dispatcher = Dispatcher::new(PAGES, plan, key(), true);
        dispatcher.start();
        dispatcher
    }

    fn emit(dispatcher: &mut Dispatcher, content: &Content) {
        for (page, bytes) in content.pages() {
            black_box(dispatcher.emit(page, bytes));
        }
    }

    #[divan::bench(sample_size = 1)]
    fn emit_content(bencher: Bencher) {
        let content = Content::new();
        let bencher = bencher.counter(pages()).with_inputs(|| new(None));
        bencher.bench_local_refs(|dispatcher| emit(dispatcher, &content));
    }

    #[divan::bench(sample_size = 1)]
    fn emit_zero(bencher: Bencher) {
        let bencher = bencher.counter(pages()).with_inputs(|| new(None));
        bencher.bench_local_refs(|dispatcher| {
            all_pages().for_each(|page| dispatcher.emit_zero(page));
        });
    }

    /// With the digest that a claim is.
    #[divan::bench(sample_size = 1)]
    fn emit_claim(bencher: Bencher) {
        let content = Content::new();
        let bencher = bencher.counter(bytes()).counter(pages());
        let bencher = bencher.with_inputs(|| new(Some(16)));
        bencher.bench_local_refs(|dispatcher| emit(dispatcher, &content));
    }

    #[divan::bench(sample_size = 1)]
    fn report(bencher: Bencher) {
        let have = Outcome::Have(key().digest(&[1; PAGE_BYTES]));
        let bencher = bencher.counter(pages()).with_inputs(|| new(Some(16)));
        bencher.bench_local_refs(|dispatcher| {
            for page in all_pages() {
                black_box(dispatcher.report(page, have));
            }
        });
    }

    #[divan::bench(sample_size = 1, args = [1, 16, 512])]
    fn steal(bencher: Bencher, run_pages: u32) {
        let bencher = bencher.counter(pages());
        let bencher = bencher.with_inputs(|| new(Some(run_pages)));
        bencher.bench_local_refs(|dispatcher| {
            let mut stolen = Vec::with_capacity(PAGES as usize);
            dispatcher.steal(PAGES as usize, &mut stolen);
            assert_eq!(stolen.len(), PAGES as usize);
        });
    }
}

/// The destination's decisions.
mod assembler {
    use super::*;

    fn expecting() -> Assembler {
        let mut assembler = Assembler::new(PAGES, key());
        all_pages().for_each(|page| assembler.expect_from_storage(page));
        assembler
    }

    #[divan::bench(sample_size = 1)]
    fn content(bencher: Bencher) {
        let content = Content::new();
        let bencher = bencher.counter(pages()).with_inputs(expecting);
        bencher.bench_local_refs(|assembler| {
            for (page, bytes) in content.pages() {
                black_box(assembler.record(&Record::Content(page, bytes)));
            }
        });
    }

    #[divan::bench(sample_size = 1)]
    fn zero(bencher: Bencher) {
        let bencher = bencher.counter(pages()).with_inputs(expecting);
        bencher.bench_local_refs(|assembler| {
            black_box(assembler.record(&Record::Zero(RamPage(0), PAGES as u16)))
        });
    }

    #[divan::bench(sample_size = 1)]
    fn claim(bencher: Bencher) {
        let digest = key().digest(&[1; PAGE_BYTES]);
        let bencher = bencher.counter(pages()).with_inputs(expecting);
        bencher.bench_local_refs(|assembler| {
            for page in all_pages() {
                black_box(assembler.record(&Record::Claim(page, digest)));
            }
        });
    }

    /// With the digest that tells whether what was read is what was claimed.
    #[divan::bench(sample_size = 1)]
    fn from_storage(bencher: Bencher) {
        let content = Content::new();
        let bencher = bencher.counter(bytes()).counter(pages());
        bencher
            .with_inputs(expecting)
            .bench_local_refs(|assembler| {
                for (page, bytes) in content.pages() {
                    black_box(assembler.from_storage(page, bytes));
                }
            });
    }
}

/// The plan, checked and cut into reads.
mod planner {
    use super::*;

    #[divan::bench(sample_size = 1, args = [1, 16, 512])]
    fn check(bencher: Bencher, run_pages: u32) {
        let bencher = bencher.counter(pages()).with_inputs(|| runs(run_pages));
        bencher.bench_local_values(|runs| Plan::new(runs, PAGES, &[BYTES]).expect("a plan"));
    }

    #[divan::bench(sample_size = 1, args = [1, 16, 512])]
    fn next_read(bencher: Bencher, run_pages: u32) {
        let plan = plan(run_pages);
        bencher.counter(pages()).bench_local(|| {
            let (mut front, mut read) = (0, 0);
            while let Some(op) = plan.next_read(front, PAGES, 256 << 10, |_| true) {
                front = op.end;
                read += op.pages.len();
            }
            assert_eq!(read, PAGES as usize);
        });
    }
}

/// What goes over the network, put together and taken apart.
mod codec {
    use super::*;

    fn frames(records: &[(Record<'_>, Bytes)]) -> Vec<Pieces> {
        let frame = |records: &[(Record<'_>, Bytes)]| {
            let mut frame = PagesFrame::default();
            for (record, owner) in records {
                frame.push(record, owner);
            }
            frame.finish()
        };
        records.chunks(FRAME_PAGES).map(frame).collect()
    }

    fn contents(content: &Content) -> Vec<(Record<'_>, Bytes)> {
        let record = |(page, bytes)| (Record::Content(page, bytes), content.0.clone());
        content.pages().map(record).collect()
    }

    fn claims() -> Vec<(Record<'static>, Bytes)> {
        let digest = key().digest(&[1; PAGE_BYTES]);
        let record = |page| (Record::Claim(page, digest), Bytes::new());
        all_pages().map(record).collect()
    }

    fn zeros() -> Vec<(Record<'static>, Bytes)> {
        let record = |page| (Record::Zero(page, 1), Bytes::new());
        all_pages().map(record).collect()
    }

    fn parse(bencher: Bencher, records: &[(Record<'_>, Bytes)]) {
        let frames: Vec<Vec<u8>> = frames(records).iter().map(Pieces::concat).collect();
        bencher.bench_local(|| {
            for frame in &frames {
                for record in parse_pages(&frame[HEADER_BYTES..], PAGES) {
                    black_box(record.expect("a sound record"));
                }
            }
        });
    }

    #[divan::bench(sample_size = 1)]
    fn frame_content(bencher: Bencher) {
        let content = Content::new();
        let records = contents(&content);
        let bencher = bencher.counter(bytes()).counter(pages());
        bencher.bench_local(|| frames(&records));
    }

    #[divan::bench(sample_size = 1)]
    fn frame_claims(bencher: Bencher) {
        let records = claims();
        bencher.counter(pages()).bench_local(|| frames(&records));
    }

    #[divan::bench(sample_size = 1)]
    fn frame_zeros(bencher: Bencher) {
        let records = zeros();
        bencher.counter(pages()).bench_local(|| frames(&records));
    }

    #[divan::bench(sample_size = 1)]
    fn parse_content(bencher: Bencher) {
        let content = Content::new();
        let bencher = bencher.counter(bytes()).counter(pages());
        parse(bencher, &contents(&content));
    }

    #[divan::bench(sample_size = 1)]
    fn parse_claims(bencher: Bencher) {
        parse(bencher.counter(pages()), &claims());
    }

    #[divan::bench(sample_size = 1)]
    fn parse_reports(bencher: Bencher) {
        let have = Outcome::Have(key().digest(&[1; PAGE_BYTES]));
        let reports: Vec<Report> = all_pages().map(|page| Report::new(page, have)).collect();
        let frame = array_frame(Kind::Reports, &reports);
        bencher.counter(pages()).bench_local(|| {
            let reports = parse_array::<Report>(Kind::Reports, &frame[HEADER_BYTES..]);
            for report in reports.expect("whole reports") {
                black_box(report.parse(PAGES).expect("a sound report"));
            }
        });
    }

    /// What the destination's QEMU is told.
    #[divan::bench(sample_size = 1)]
    fn write_ram(bencher: Bencher) {
        let content = Content::new();
        let table = Guest::new(BYTES).table;
        let bencher = bencher.counter(bytes()).counter(pages());
        bencher.bench_local(|| {
            let mut writer = RamWriter::new(table.clone());
            for (page, bytes) in content.pages() {
                writer.page(page, bytes, &content.0);
            }
            let mut out = Pieces::default();
            writer.take(&mut out);
            out
        });
    }
}

fn main() {
    divan::main();
}
