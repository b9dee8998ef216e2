//! From a running guest to a plan: scans its memory, matches its disks to QEMU's. All of it is a hint, so
//! nothing here fails a migration: without a plan it is a plain one.

use std::path::Path;
use std::time::{Duration, Instant};

use vmi::RamLayout;

use crate::core::plan::PlanRun;
use crate::core::ram::{PAGE_BYTES, RamBlock, RamPage, RamTable};
use crate::core::wire::DiskIdentity;
use crate::disks;
use crate::vm::LiveVm;

/// What introspection found for a migration.
#[derive(Debug, Default)]
pub struct Introspected {
    /// Pages that storage can supply, in disk order.
    pub runs: Vec<PlanRun>,
    /// The disks that the runs number.
    pub disks: Vec<DiskIdentity>,
    /// How long it took.
    pub took: Duration,
}

/// QEMU's RAM blocks as the stream names them.
pub fn ram_blocks(layout: &RamLayout) -> Vec<RamBlock> {
    let block = |block: &vmi::RamBlock| RamBlock {
        idstr: block.name.clone(),
        bytes: block.used_bytes,
    };
    layout.blocks.iter().map(block).collect()
}

/// Scans `vm`; `qemu_nbd` is the program for disks that only QEMU can read. The error says why the migration has to be a plain one.
pub async fn introspect(
    vm: &LiveVm,
    qemu_nbd: &Path,
    profiles: vmi::Profiles,
) -> anyhow::Result<Introspected> {
    let begun = Instant::now();
    let memory = vm.memory.clone();
    let options = vmi::ScanOptions {
        profiles,
        ..vm.scan_options(qemu_nbd).await
    };
    let scan = tokio::task::spawn_blocking(move || vmi::scan(memory.as_ref(), &options)).await??;
    let table = RamTable::new(ram_blocks(&vm.layout))?;
    let host = disks::host_disks(&vm.qmp).await?;
    let matched = disks::match_disks(&scan.disks, &host);
    let mut found = Introspected::default();
    let mut number_of = vec![None; scan.disks.len()];
    for (at, host) in matched.into_iter().enumerate() {
        let guest = &scan.disks[at];
        if let (Ok(host), Some(path)) = (host, &guest.path) {
            number_of[at] = u32::try_from(found.disks.len()).ok();
            let (name, path) = (guest.name.clone(), path.to_string());
            found.disks.push(DiskIdentity {
                name,
                path,
                bytes: host.bytes,
            });
        }
    }
    for run in &scan.page_map {
        if let Some(disk) = number_of[run.disk] {
            let disk_bytes = found.disks[disk as usize].bytes;
            place(run, disk, disk_bytes, &vm.layout, &table, &mut found.runs);
        }
    }
    found
        .runs
        .sort_unstable_by_key(|run| (run.disk, run.offset));
    found.took = begun.elapsed();
    Ok(found)
}

/// Adds `run`, page frames of guest physical memory, as pages of RAM blocks.
fn place(
    run: &vmi::Run,
    disk: u32,
    disk_bytes: u64,
    layout: &RamLayout,
    table: &RamTable,
    runs: &mut Vec<PlanRun>,
) {
    let page_bytes = PAGE_BYTES as u64;
    for at in 0..run.pages {
        let offset = run.offset + at * page_bytes;
        let gpa = (run.pfn + at).checked_mul(page_bytes);
        let place = gpa.and_then(|gpa| layout.locate(gpa));
        let Some(page) = place.and_then(|(block, offset)| table.page(block, offset)) else {
            continue;
        };
        if offset + page_bytes > disk_bytes.next_multiple_of(page_bytes) {
            continue;
        }
        match runs.last_mut() {
            Some(last)
                if last.disk == disk
                    && last.page.0 + last.pages == page.0
                    && last.offset + u64::from(last.pages) * page_bytes == offset =>
            {
                last.pages += 1;
            }
            _ => runs.push(PlanRun {
                page,
                pages: 1,
                disk,
                offset,
            }),
        }
    }
}

/// For tests only: makes every entry wrong by reading each page's bytes `blocks` pages further on its disk.
pub fn shift_blocks(found: &mut Introspected, blocks: u64) {
    let page_bytes = PAGE_BYTES as u64;
    let mut shifted = Vec::new();
    for run in &found.runs {
        let disk_pages = found.disks[run.disk as usize].bytes / page_bytes;
        for at in 0..run.pages {
            let block = (run.offset / page_bytes + u64::from(at) + blocks) % disk_pages;
            let page = RamPage(run.page.0 + at);
            shifted.push(PlanRun {
                page,
                pages: 1,
                disk: run.disk,
                offset: block * page_bytes,
            });
        }
    }
    shifted.sort_unstable_by_key(|run| (run.disk, run.offset));
    found.runs = shifted;
}
