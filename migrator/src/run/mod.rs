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
pub mod source;
pub mod storage;
pub mod summary;
pub mod tcp_info;

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often a loop looks at what nothing wakes it for.
const TICK: Duration = Duration::from_millis(200);

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

/// Tells the operator something that is neither progress nor an error.
pub fn note(text: &str) {
    anstream::eprintln!("pct-vmi: note: {text}");
}
