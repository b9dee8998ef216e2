//! Compares restorable pages with their blocks on disk, read with O_DIRECT. Pages that are zero are
//! counted apart: that a zero page equals a zero block proves nothing.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use san_io::{Completed, Options, Read, Reader};
use vmi::{Gpa, GuestMemory, PAGE_BYTES, Run};

use crate::disks::Image;

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

/// Compares every page of the runs; `images` are the disks that they number, `qemu_nbd` is the program
/// for those that only QEMU can read.
///
/// # Errors
/// When a disk cannot be opened. A block that cannot be read is counted.
pub(crate) fn verify(
    runs: &[Run],
    images: &[Option<Image>],
    qemu_nbd: &Path,
    memory: &dyn GuestMemory,
) -> anyhow::Result<Verified> {
    // Ends after the reader.
    let mut servers = Vec::new();
    let mut disks = Vec::new();
    let mut number_of = vec![usize::MAX; images.len()];
    for (number, image) in number_of.iter_mut().zip(images) {
        if let Some(image) = image {
            *number = disks.len();
            let opened = image.open(qemu_nbd)?;
            disks.push(opened.disk);
            servers.extend(opened.server);
        }
    }
    let (sender, completions) = channel();
    let sink = move |completed: Completed| drop(sender.send(completed));
    let reader = Reader::start(disks, Options::default(), sink)?;

    let mut verified = Verified::default();
    let mut pending: HashMap<u64, &[Run]> = HashMap::new();
    let pieces = pieces(runs);
    let mut reads = (0..).zip(reads(&pieces));
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

/// The runs, cut to what one read takes.
fn pieces(runs: &[Run]) -> Vec<Run> {
    let cut = |run: &Run| {
        let run = *run;
        (0..run.pages)
            .step_by(READ_PAGES_MAX as usize)
            .map(move |at| Run {
                offset: run.offset + at * PAGE_BYTES,
                pfn: run.pfn + at,
                pages: READ_PAGES_MAX.min(run.pages - at),
                ..run
            })
    };
    runs.iter().flat_map(cut).collect()
}

/// Groups of pieces that are adjacent on disk, each short enough for one read.
fn reads(pieces: &[Run]) -> impl Iterator<Item = &[Run]> {
    let mut rest = pieces;
    std::iter::from_fn(move || {
        let mut sum = rest.first()?.pages;
        let adjacent = rest.windows(2).take_while(|pair| {
            sum += pair[1].pages;
            let ends_at = pair[0].offset + pair[0].pages * PAGE_BYTES;
            (pair[1].disk, pair[1].offset) == (pair[0].disk, ends_at) && sum <= READ_PAGES_MAX
        });
        let (group, left) = rest.split_at(1 + adjacent.count());
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
    fn adjacent_pieces_are_read_together() {
        let runs = [
            run(0, 0, 1),
            run(0, 1, 2),
            run(0, 4, 1),
            run(0, 5, 2 * READ_PAGES_MAX + 3),
            run(1, 8 + 2 * READ_PAGES_MAX, 1),
        ];
        let pieces = pieces(&runs);
        let groups: Vec<&[Run]> = reads(&pieces).collect();
        let lengths: Vec<u64> = groups.iter().map(|group| pages(group)).collect();
        assert_eq!(lengths, [3, 1, READ_PAGES_MAX, READ_PAGES_MAX, 3, 1]);
        assert_eq!(groups[4][0].pfn, 2 * READ_PAGES_MAX);
        assert_eq!(groups[4][0].offset, (5 + 2 * READ_PAGES_MAX) * PAGE_BYTES);
    }
}
