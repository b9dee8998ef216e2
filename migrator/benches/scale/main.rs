//! Both cores at any size of guest, through the wire codec, in one process and without QEMU: `cargo bench -p migrator
//! --bench scale`. Whether time, CPU and memory per GiB stay the same is the question; a network or a disk is not.

#[path = "../synthetic/mod.rs"]
mod synthetic;

mod cached;
mod hosts;
mod meter;

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use migrator::core::digest::DigestKey;
use migrator::core::pieces::Pieces;
use migrator::core::plan::Plan;
use migrator::core::ram::{PAGE_BYTES, RamPage};
use migrator::core::wire::plan_frames;
use serde::{Deserialize, Serialize};

use cached::{CACHED_PAGES, PATTERN_PAGES, PRIVATE_PAGES};
use hosts::{Destination, Source};
use meter::{Meter, Part};
use synthetic::{Guest, Qemu};

/// Pages of QEMU's stream that the source takes at a time: 8 MiB of guest RAM, of which half a MiB is not zero.
const STEP_PAGES: u32 = 2 * PATTERN_PAGES;
/// Pages that storage supplies and the source steals in that time. Together fewer than a step's 96 that are cached,
/// so that claims have to wait, as they do where a network is slow.
const READS: usize = 1;
const STEAL_PAGES: usize = 16;
/// Of so many pages the guest writes to one before the second pass.
const DIRTY_EVERY: usize = 256;
/// Pages of the second pass that the source takes at a time.
const DIRTY_STEP: usize = 128;

/// Time, CPU and memory of both cores for guests of several sizes
#[derive(Parser)]
struct Arguments {
    /// Guest RAM in GiB
    #[arg(default_values_t = [4, 64, 1024])]
    gib: Vec<u32>,
    /// Print JSON, one object a size
    #[arg(long)]
    json: bool,
    /// Measure here, not in a process of its own
    #[arg(long, hide = true)]
    here: bool,
    /// What cargo says to a bench
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a guest of one size took.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    gib: u32,
    plan_pages: u32,
    plan_runs: usize,
    content_pages: u64,
    claimed_pages: u64,
    stolen_pages: u64,
    needed_pages: u64,
    /// Wall clock, the made-up world included.
    total_s: f64,
    source_cpu_ms_per_gib: f64,
    destination_cpu_ms_per_gib: f64,
    world_cpu_ms_per_gib: f64,
    /// Resident at the end, what each core gives back when it goes.
    source_mib_per_gib: f64,
    destination_mib_per_gib: f64,
    /// The process's most.
    peak_mib_per_gib: f64,
}

/// One migration.
struct Run {
    guest: Guest,
    qemu: Qemu,
    source: Source,
    destination: Destination,
    meter: Meter,
}

impl Run {
    fn new(guest: Guest) -> anyhow::Result<Run> {
        let mut meter = Meter::start();
        let runs = guest.cached();
        let (disk_bytes, key) = (guest.disk_bytes(), DigestKey::fresh()?);
        meter.lap(Part::World);
        let plan = Plan::new(runs, guest.pages(), &[disk_bytes])?;
        let source = Source::new(&guest.table, plan.clone(), key.clone());
        meter.lap(Part::Source);
        // The last frame says that the plan is whole.
        let frames = plan_frames(plan.runs()).filter(|frame| frame[0] == 2);
        let destination = Destination::new(&guest.table, frames, disk_bytes, key);
        meter.lap(Part::Destination);
        Ok(Run {
            qemu: Qemu::begin(&guest.table),
            guest,
            source,
            destination,
            meter,
        })
    }

    fn carry(&mut self) {
        for first in (0..self.guest.pages()).step_by(STEP_PAGES as usize) {
            for page in (first..first + STEP_PAGES).map(RamPage) {
                if Guest::is_zero(page) {
                    self.qemu.zero(page);
                } else {
                    self.qemu.page(page, |into| self.guest.fill(page, 0, into));
                }
            }
            self.stream(false);
            self.supply();
        }
        while self.source.dispatcher.open() > 0 {
            self.supply();
        }
        // Settled pages that change, and pages that were zero.
        for (at, page) in (0..self.guest.pages()).step_by(DIRTY_EVERY).enumerate() {
            let page = RamPage(page);
            self.qemu.page(page, |into| self.guest.fill(page, 1, into));
            if at.is_multiple_of(DIRTY_STEP) {
                self.stream(false);
            }
        }
        self.stream(true);
    }

    /// The source tells what QEMU has said.
    fn stream(&mut self, end: bool) {
        let stream = self.qemu.take(end);
        self.meter.lap(Part::World);
        let frames = self.source.tell(stream);
        self.meter.lap(Part::Source);
        frames.iter().for_each(|frame| self.send(frame));
    }

    /// Storage and the source each supply a piece of the plan.
    fn supply(&mut self) {
        for _ in 0..READS {
            let op = self.destination.next_read();
            self.meter.lap(Part::Destination);
            let Some(op) = op else { break };
            let mut read = vec![0; op.bytes as usize];
            for (page, at) in &op.pages {
                let into = &mut read[*at as usize..][..PAGE_BYTES];
                self.guest.fill_from_disk(*page, into);
            }
            let read = Bytes::from(read);
            self.meter.lap(Part::World);
            self.destination.answered(&op, &read);
            self.meter.lap(Part::Destination);
        }
        self.reports();
        let mut stolen = Vec::with_capacity(STEAL_PAGES);
        self.destination.back = self.source.dispatcher.steal(STEAL_PAGES, &mut stolen);
        self.send_ram(&stolen, true);
        self.reports();
    }

    fn reports(&mut self) {
        let reports = self.destination.take_reports();
        self.meter.lap(Part::Destination);
        let needs = self.source.hear(&reports);
        self.send_ram(&needs, false);
    }

    /// The source sends `pages` out of guest RAM.
    fn send_ram(&mut self, pages: &[RamPage], stolen: bool) {
        self.meter.lap(Part::Source);
        let mut ram = vec![0; pages.len() * PAGE_BYTES];
        for (page, into) in pages.iter().zip(ram.chunks_exact_mut(PAGE_BYTES)) {
            self.guest.fill(*page, 0, into);
        }
        self.meter.lap(Part::World);
        let frame = self.source.supply(pages, &ram.into(), stolen);
        self.meter.lap(Part::Source);
        self.send(&frame);
    }

    fn send(&mut self, frame: &Pieces) {
        let received = Bytes::from(frame.concat());
        self.meter.lap(Part::World);
        self.destination.hear(&received);
        self.meter.lap(Part::Destination);
    }
}

fn measure(gib: u32) -> anyhow::Result<Row> {
    let begun = Instant::now();
    let guest = Guest::new(u64::from(gib) << 30);
    let mut run = Run::new(guest)?;
    run.carry();
    let Run {
        source,
        destination,
        meter,
        guest,
        ..
    } = run;
    let total_s = begun.elapsed().as_secs_f64();
    ensure!(
        destination.assembler.is_settled() && source.dispatcher.open() == 0,
        "the migration did not end"
    );
    let per_pattern = (PRIVATE_PAGES + CACHED_PAGES) as usize * PAGE_BYTES;
    let data = (guest.pages() / PATTERN_PAGES) as usize * per_pattern;
    ensure!(destination.qemu_bytes > data, "pages are missing");

    let (plan, counts) = (guest.cached(), source.counts());
    let plan_pages = plan.iter().map(|run| run.pages).sum();
    let plan_runs = plan.len();
    drop(plan);
    let both = status_mib("VmRSS")?;
    drop(source);
    let one = status_mib("VmRSS")?;
    drop(destination);
    let none = status_mib("VmRSS")?;
    let per_gib = |value: f64| value / f64::from(gib);
    Ok(Row {
        gib,
        plan_pages,
        plan_runs,
        content_pages: counts.content,
        claimed_pages: counts.claimed,
        stolen_pages: counts.stolen,
        needed_pages: counts.needed,
        total_s,
        source_cpu_ms_per_gib: per_gib(meter.ms(Part::Source)),
        destination_cpu_ms_per_gib: per_gib(meter.ms(Part::Destination)),
        world_cpu_ms_per_gib: per_gib(meter.ms(Part::World)),
        source_mib_per_gib: per_gib(both - one),
        destination_mib_per_gib: per_gib(one - none),
        peak_mib_per_gib: per_gib(status_mib("VmHWM")?),
    })
}

/// A figure of /proc/self/status.
fn status_mib(name: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    let kib: f64 = kib.with_context(|| format!("no {name}"))?.parse()?;
    Ok(kib / 1024.0)
}

/// Measures in a process of its own, where no other size has left anything. The C library gives large blocks back
/// to the kernel as soon as they are freed, so that what a core held can be seen.
fn measure_apart(gib: u32) -> anyhow::Result<Row> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--here", "--json", &gib.to_string()])
        .env("MALLOC_MMAP_THRESHOLD_", "131072")
        .stderr(std::process::Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "{gib} GiB: {}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "guest",
        "plan",
        "runs",
        "time",
        "source",
        "destination",
        "source",
        "destination",
        "peak",
    ]);
    table.add_row([
        "GiB",
        "pages",
        "",
        "s/GiB",
        "CPU ms/GiB",
        "CPU ms/GiB",
        "MiB/GiB",
        "MiB/GiB",
        "MiB/GiB",
    ]);
    for row in rows {
        table.add_row([
            row.gib.to_string(),
            row.plan_pages.to_string(),
            row.plan_runs.to_string(),
            format!("{:.3}", row.total_s / f64::from(row.gib)),
            format!("{:.1}", row.source_cpu_ms_per_gib),
            format!("{:.1}", row.destination_cpu_ms_per_gib),
            format!("{:.2}", row.source_mib_per_gib),
            format!("{:.2}", row.destination_mib_per_gib),
            format!("{:.2}", row.peak_mib_per_gib),
        ]);
    }
    let columns = table.column_iter_mut();
    columns.for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut rows = vec![];
    for gib in arguments.gib {
        let row = if arguments.here {
            measure(gib)?
        } else {
            measure_apart(gib)?
        };
        if arguments.json {
            println!("{}", serde_json::to_string(&row)?);
        }
        rows.push(row);
    }
    if !arguments.json {
        println!("{}", table(&rows));
    }
    Ok(())
}
