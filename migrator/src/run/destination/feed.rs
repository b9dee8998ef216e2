//! What the destination's QEMU is given: section "ram", made of the pages that the core lets through, around it what
//! the source passes on, and device state once every page is settled. It does no I/O.

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use san_io::Buffer;

use crate::core::assembler::{Assembler, Counts, Verdict};
use crate::core::digest::DigestKey;
use crate::core::pieces::Pieces;
use crate::core::plan::{Plan, ReadOp};
use crate::core::ram::{PAGE_BYTES, RamPage, RamTable};
use crate::core::stream::RamWriter;
use crate::core::wire::{self, Record, Report};

/// Device state that is kept until the last page is settled. Real guests have some hundred KiB.
const DEVICE_BYTES_MAX: usize = 64 << 20;

/// What QEMU has been given so far.
enum Stage {
    /// Section "ram" has not started: no page can be written.
    BeforeRam,
    /// Pages may be written.
    Ram(RamWriter),
    /// Every page is settled; the device state follows.
    Device,
}

/// QEMU's stream as it is put together.
pub(super) struct Feed {
    table: RamTable,
    assembler: Assembler,
    stage: Stage,
    /// Every page has had its last emission.
    ram_ended: bool,
    /// Device state that waits for the last page.
    device: Vec<u8>,
    /// Bytes for QEMU.
    out: Pieces,
    /// What the source has to know.
    pub(super) reports: Vec<Report>,
}

impl Feed {
    pub(super) fn new(table: RamTable, plan: &Plan, key: DigestKey) -> Feed {
        let mut assembler = Assembler::new(table.pages(), key);
        for run in plan.runs() {
            for page in run.page.0..run.page.0 + run.pages {
                assembler.expect_from_storage(RamPage(page));
            }
        }
        Feed {
            table,
            assembler,
            stage: Stage::BeforeRam,
            ram_ended: false,
            device: Vec::new(),
            out: Pieces::default(),
            reports: Vec::new(),
        }
    }

    /// Whether QEMU can be given pages now.
    pub(super) fn takes_pages(&self) -> bool {
        matches!(self.stage, Stage::Ram(_))
    }

    /// Whether QEMU has all pages, and gets its devices' state.
    pub(super) fn has_all_pages(&self) -> bool {
        matches!(self.stage, Stage::Device)
    }

    pub(super) fn wants_from_storage(&self, page: RamPage) -> bool {
        self.assembler.wants_from_storage(page)
    }

    pub(super) fn counts(&self) -> Counts {
        self.assembler.counts()
    }

    /// The source has said all that comes before section "ram".
    pub(super) fn start_ram(&mut self) -> anyhow::Result<()> {
        ensure!(matches!(self.stage, Stage::BeforeRam), "RAM starts twice");
        self.stage = Stage::Ram(RamWriter::new(self.table.clone()));
        Ok(())
    }

    /// Every page has had its last emission.
    pub(super) fn end_ram(&mut self) -> anyhow::Result<()> {
        ensure!(
            self.takes_pages() && !self.ram_ended,
            "RAM ends before it starts"
        );
        self.ram_ended = true;
        Ok(())
    }

    /// Bytes of QEMU's stream that are not pages: structure goes on at once, device state when all is settled.
    pub(super) fn raw(&mut self, raw: &[u8]) -> anyhow::Result<()> {
        if self.ram_ended && !self.has_all_pages() {
            ensure!(
                self.device.len() + raw.len() <= DEVICE_BYTES_MAX,
                "more than {DEVICE_BYTES_MAX} bytes of device state"
            );
            self.device.extend_from_slice(raw);
            return Ok(());
        }
        if let Stage::Ram(writer) = &mut self.stage {
            writer.take(&mut self.out);
        }
        self.out.copy(raw);
        Ok(())
    }

    /// Records of pages, as the source sent them.
    pub(super) fn pages(&mut self, body: &Bytes) -> anyhow::Result<()> {
        let mut zero_left = wire::ZERO_PAGES_MAX;
        for record in wire::parse_pages(body, self.table.pages()) {
            let record = record?;
            let Stage::Ram(writer) = &mut self.stage else {
                bail!("pages outside of RAM")
            };
            let verdict = self.assembler.record(&record);
            let page = match record {
                Record::Zero(page, count) => {
                    // Nine bytes for QEMU each, from eight for any number of them.
                    let left = zero_left.checked_sub(count.into());
                    zero_left = left.context("a frame of too many zero pages")?;
                    (page.0..page.0 + u32::from(count)).for_each(|page| writer.zero(RamPage(page)));
                    continue;
                }
                Record::Content(page, bytes) | Record::Early(page, bytes) => {
                    if verdict.write {
                        writer.page(page, bytes, body);
                    }
                    page
                }
                Record::Claim(page, _) | Record::Dirtied(page) => page,
            };
            self.report(page, verdict);
        }
        Ok(())
    }

    /// What storage holds of the pages of a read; None where it failed.
    pub(super) fn storage_answered(&mut self, op: ReadOp, result: Option<Buffer>) {
        let result = result.map(Bytes::from_owner);
        for (page, at) in op.pages {
            let bytes = result.as_ref().and_then(|buffer| {
                let bytes = buffer.get(at as usize..)?;
                Some((buffer, bytes.first_chunk::<PAGE_BYTES>()?))
            });
            match bytes {
                Some((buffer, bytes)) => {
                    let verdict = self.assembler.from_storage(page, bytes);
                    // Once QEMU has all pages, what storage still answers is for pages that never were emitted.
                    if let (Stage::Ram(writer), true) = (&mut self.stage, verdict.write) {
                        writer.page(page, bytes, buffer);
                    }
                    self.report(page, verdict);
                }
                None => {
                    let verdict = self.assembler.storage_failed(page);
                    self.report(page, verdict);
                }
            }
        }
    }

    /// All bytes that QEMU has to get now. Where every emission was made and every page is settled, they end RAM
    /// and go on with the device state.
    pub(super) fn for_qemu(&mut self) -> anyhow::Result<&mut Pieces> {
        ensure!(
            !(self.ram_ended && self.assembler.has_stale()),
            "QEMU did not emit a page again that the guest had written to"
        );
        if let Stage::Ram(writer) = &mut self.stage {
            if self.ram_ended && self.assembler.is_settled() {
                writer.end(&mut self.out);
                self.out.share(std::mem::take(&mut self.device).into());
                self.stage = Stage::Device;
            } else if !writer.is_empty() {
                writer.take(&mut self.out);
            }
        }
        Ok(&mut self.out)
    }

    fn report(&mut self, page: RamPage, verdict: Verdict) {
        let outcome = verdict.report;
        self.reports
            .extend(outcome.map(|outcome| Report::new(page, outcome)));
    }
}
