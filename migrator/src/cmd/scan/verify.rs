//! Compares restorable pages with their blocks on disk, read with O_DIRECT. Pages that are zero are
//! counted apart: that a zero page equals a zero block proves nothing.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use san_io::{Completed, Disk, Options, Read, Reader};
use vmi::{Gpa, GuestMemory, PAGE_BYTES, Run};

/// Pages read at once: large reads cost a tenth of the CPU time of single pages.
const READ_PAGES_MAX: u64 = 64;

/// How many pages were what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Verified {
    /// Equal and not zero.
    pub(crate) equal: u64,
    pub(crate) different: u64,
    /// Zero in memory and on disk.
    pub(crate) zero: u64,
    /// Whose block, or frame, could not be read.
    pub(crate) unread: u64,
}

/// Compares every page of the runs; `paths` are the disks that they number.
///
/// # Errors
/// When a disk cannot be opened. A block that cannot be read is counted.
pub(crate) fn verify(
    runs: &[Run],
    paths: &[Option<PathBuf>],
    memory: &dyn GuestMemory,
) -> anyhow::Result<Verified> {
    let mut disks = Vec::new();
    let mut number_of = vec![usize::MAX; paths.len()];
    for (disk, path) in paths.iter().enumerate() {
        if let Some(path) = path
            .as_ref()
            .filter(|_| runs.iter().any(|run| run.disk == disk))
        {
            number_of[disk] = disks.len();
            disks.push(Disk::open(path)?);
        }
    }
    let (sender, completions) = channel();
    let sink = move |completed: Completed| drop(sender.send(completed));
    let reader = Reader::start(disks, Options::default(), sink)?;

    let mut verified = Verified::default();
    let mut pending: HashMap<u64, &[Run]> = HashMap::new();
    let mut reads = (0..).zip(reads(runs));
    let bar = progress(runs);
    loop {
        while pending.len() < reader.capacity()
            && let Some((id, group)) = reads.next()
        {
            let disk = number_of[group[0].disk];
            let len = u32::try_from(pages(group) * PAGE_BYTES).context("a read is too long")?;
            reader.submit(Read {
                id,
                disk,
                offset: group[0].offset,
                len,
            })?;
            pending.insert(id, group);
        }
        if pending.is_empty() {
            bar.finish_and_clear();
            return Ok(verified);
        }
        let completed = completions.recv()?;
        let group = pending
            .remove(&completed.id)
            .context("a read was answered twice")?;
        bar.inc(pages(group));
        match completed.result {
            Ok(bytes) => compare(group, &bytes, memory, &mut verified),
            Err(_) => verified.unread += pages(group),
        }
    }
}

fn progress(runs: &[Run]) -> ProgressBar {
    let style = ProgressStyle::with_template("verify {wide_bar} {percent}% {eta}");
    let bar = ProgressBar::new(pages(runs));
    bar.enable_steady_tick(Duration::from_millis(200));
    style.map_or(bar.clone(), |style| bar.with_style(style))
}

fn pages(runs: &[Run]) -> u64 {
    runs.iter().map(|run| run.pages).sum()
}

/// Groups of runs that are adjacent on disk, each short enough for one read. A run longer than that
/// is a group of its own.
fn reads(runs: &[Run]) -> impl Iterator<Item = &[Run]> {
    let mut rest = runs;
    std::iter::from_fn(move || {
        let mut taken = usize::from(!rest.is_empty());
        let mut sum = rest.first()?.pages;
        while let Some(next) = rest.get(taken) {
            let last = &rest[taken - 1];
            let adjacent = next.disk == last.disk
                && next.offset == last.offset + last.pages * PAGE_BYTES
                && sum + next.pages <= READ_PAGES_MAX;
            if !adjacent {
                break;
            }
            sum += next.pages;
            taken += 1;
        }
        let (group, left) = rest.split_at(taken);
        rest = left;
        Some(group)
    })
}

fn compare(group: &[Run], blocks: &[u8], memory: &dyn GuestMemory, verified: &mut Verified) {
    let frames = group.iter().flat_map(|run| run.pfn..run.pfn + run.pages);
    let mut page = [0; PAGE_BYTES as usize];
    for (pfn, block) in frames.zip(blocks.chunks_exact(page.len())) {
        let counter = if memory.read(Gpa(pfn * PAGE_BYTES), &mut page).is_err() {
            &mut verified.unread
        } else if page != *block {
            &mut verified.different
        } else if page.iter().all(|&byte| byte == 0) {
            &mut verified.zero
        } else {
            &mut verified.equal
        };
        *counter += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(disk: usize, page: u64, pages: u64) -> Run {
        Run {
            disk,
            offset: page * PAGE_BYTES,
            pfn: 0,
            pages,
        }
    }

    #[test]
    fn adjacent_runs_are_read_together() {
        let runs = [
            run(0, 0, 1),
            run(0, 1, 2),
            run(0, 4, 1),
            run(0, 5, READ_PAGES_MAX),
            run(1, 5 + READ_PAGES_MAX, 1),
        ];
        let lengths: Vec<usize> = reads(&runs).map(<[Run]>::len).collect();
        assert_eq!(lengths, [2, 1, 1, 1]);
    }
}
