//! The migration as it runs: thin I/O around the core. Each side reads as a list of phases.

mod batch;
pub mod destination;
mod downtime;
pub mod introspect;
pub mod journal;
pub mod lan;
pub mod migrate;
pub mod progress;
pub mod qemu;
pub mod receive;
pub mod rehearsal;
pub mod source;
pub mod storage;
pub mod summary;
pub mod tcp_info;

use std::fmt::Display;
use std::io::{IoSlice, Write};
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

use crate::core::pieces::Pieces;

/// How often a loop looks at what nothing wakes it for.
const TICK: Duration = Duration::from_millis(200);

/// One that was missed does not come later.
fn ticks() -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The operator's Ctrl-C, or a service manager's SIGTERM.
#[derive(Debug)]
pub struct Interrupts {
    int: Signal,
    term: Signal,
}

impl Interrupts {
    /// Takes both signals over from their default, which is to die.
    pub fn new() -> std::io::Result<Interrupts> {
        let [int, term] = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
        Ok(Interrupts {
            int: int?,
            term: term?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}

/// Pieces that a single system call is given at most (IOV_MAX).
const SLICES_MAX: usize = 1024;

/// Writes all of `pieces`, many in a call.
async fn write_pieces(out: &mut (impl AsyncWrite + Unpin), pieces: &Pieces) -> std::io::Result<()> {
    let mut slices = pieces.slices();
    let mut left = &mut slices[..];
    while !left.is_empty() {
        let some = left.len().min(SLICES_MAX);
        match out.write_vectored(&left[..some]).await? {
            0 => return Err(std::io::ErrorKind::WriteZero.into()),
            n => IoSlice::advance_slices(&mut left, n),
        }
    }
    Ok(())
}

/// Writes a line to standard output. Whoever read it may be gone, and a guest must not be lost for that.
pub fn say(line: &dyn Display) {
    let _ = writeln!(anstream::stdout(), "{line}");
}

/// Writes a line to standard error, as [`say`] does.
pub fn warn(line: &dyn Display) {
    let _ = writeln!(anstream::stderr(), "pct-vmi: {line}");
}

/// Tells the operator something that is neither progress nor an error.
pub fn note(text: &str) {
    warn(&format_args!("note: {text}"));
}
