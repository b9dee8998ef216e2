//! What people see while a migration runs: a bar on a terminal, JSON lines for machines.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use super::summary::Use;

/// A migration at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Since the command's start.
    pub elapsed: Duration,
    /// Pages of guest RAM.
    pub ram_pages: u32,
    /// Of those, pages that QEMU has not emitted once.
    pub unseen: u32,
    /// Pages of the plan for which nobody has supplied the bytes: the backlog.
    pub open: u32,
    /// Bytes over the LAN.
    pub lan_bytes: u64,
    /// Bytes from storage.
    pub san_bytes: u64,
    /// The pass of QEMU's over guest RAM, from 1.
    pub pass: u64,
    /// The guest is stopped.
    pub stopped: bool,
}

/// Shows snapshots.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    json: bool,
    last: Snapshot,
}

const JSON_EVERY: Duration = Duration::from_secs(1);

impl Progress {
    /// A bar on standard error if that is a terminal, or JSON lines on standard output.
    pub fn new(json: bool) -> Progress {
        let style = "{spinner} {elapsed:>4} [{wide_bar}] {percent:>3}%  {msg}";
        let style = ProgressStyle::with_template(style).expect("the template is fixed");
        let bar = (!json).then(|| ProgressBar::new(0).with_style(style.progress_chars("=> ")));
        Progress {
            bar,
            json,
            last: Snapshot::default(),
        }
    }

    /// Shows where the migration is.
    pub fn show(&mut self, now: &Snapshot) {
        if self.json && now.elapsed < self.last.elapsed + JSON_EVERY {
            return;
        }
        let seconds = now.elapsed.saturating_sub(self.last.elapsed).as_secs_f64();
        let rate = |now: u64, last: u64| {
            Use {
                // The peer says what it has read, and may say less than before.
                bytes: now.saturating_sub(last) as f64,
                seconds,
            }
            .rate()
        };
        let lan = rate(now.lan_bytes, self.last.lan_bytes);
        let san = rate(now.san_bytes, self.last.san_bytes);
        // A page of the first pass that is open as well is waited for only once more.
        let left = u64::from(now.unseen.max(now.open));
        let done = u64::from(now.ram_pages) - left.min(now.ram_pages.into());
        let seconds_left = match done {
            0 => None,
            done => Some(now.elapsed.as_secs_f64() * left as f64 / done as f64),
        };
        if self.json && stdout_has_room() {
            super::say(&json!({
                "type": "progress", "elapsed_ms": now.elapsed.as_millis() as u64,
                "lan_bytes": now.lan_bytes, "san_bytes": now.san_bytes,
                "lan_bytes_per_s": lan as u64, "san_bytes_per_s": san as u64,
                "ram_pages": now.ram_pages, "pages_unseen": now.unseen, "pages_open": now.open,
                "pass": now.pass, "stopped": now.stopped, "seconds_left": seconds_left,
            }));
        }
        if let Some(bar) = &self.bar {
            bar.set_length(now.ram_pages.into());
            bar.set_position(done);
            let mib = |bytes: f64| bytes / f64::from(1 << 20);
            let left = seconds_left.map_or("?".into(), |left| format!("{left:.0} s"));
            bar.set_message(format!(
                "LAN {:6.1} MiB/s  SAN {:6.1} MiB/s  backlog {:6} pages  pass {}  left {left}{}",
                mib(lan),
                mib(san),
                now.open,
                now.pass,
                if now.stopped { "  guest stopped" } else { "" },
            ));
        }
        self.last = now.clone();
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Whether standard output takes a line without waiting: a reader that hangs must not hang the migration. Room in a pipe
/// is for 4096 bytes at least.
fn stdout_has_room() -> bool {
    let stdout = std::io::stdout();
    let mut fds = [PollFd::new(&stdout, PollFlags::OUT)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_takes_back_what_it_has_read_ends_nothing() {
        let mut progress = Progress::new(false);
        for san_bytes in [100, 0] {
            progress.show(&Snapshot {
                san_bytes,
                ..Snapshot::default()
            });
        }
        assert_eq!(progress.last.san_bytes, 0);
    }
}
