//! The source's part in the handover: does what the state machine says. What it says, and why, is the core's.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::anyhow;

use super::Transfer;
use crate::core::handover::{End, SourceAction, SourceEvent};
use crate::core::wire::{self, Kind};
use crate::run::journal::Promise;
use crate::run::qemu;

/// How long a destination that was told to give up may take to end its QEMU.
const RETREAT_WAIT: Duration = Duration::from_secs(10);
/// How long a committed handover may take: the destination's QEMU takes the disks and continues.
const RUN_WAIT: Duration = Duration::from_secs(30);

impl Transfer<'_> {
    /// Lets the handover take `event` and does what it says, until it is over or has to wait.
    pub(super) async fn drive(&mut self, event: SourceEvent) -> Option<End> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.handover.on(event) {
                match action {
                    SourceAction::WriteCommit => events.push_back(self.commit()),
                    SourceAction::SendRun => {
                        self.control
                            .push_back(wire::message_frame(Kind::Run, &self.guest.run));
                        self.deadline = Some(Instant::now() + RUN_WAIT);
                    }
                    SourceAction::SendAbort => {
                        let reason = self.why.as_ref().map(|why| format!("{why:#}"));
                        let reason = reason.unwrap_or_default();
                        self.control.push_back(wire::abort_frame(&reason));
                        self.deadline = Some(Instant::now() + RETREAT_WAIT);
                    }
                    SourceAction::ResumeGuest => {
                        // QEMU may be writing with its main loop locked: it answers only once that fails.
                        let stream = socket2::SockRef::from(self.qemu_out.as_ref());
                        let _ = stream.shutdown(std::net::Shutdown::Both);
                        if let Err(error) = qemu::take_back(self.qmp, self.guest.was_running).await
                        {
                            let why = self.why.take().unwrap_or_else(|| anyhow!("unknown cause"));
                            self.why = Some(why.context(format!("{error:#}")));
                        }
                    }
                    SourceAction::End(end) => return Some(end),
                }
            }
        }
        None
    }

    fn commit(&mut self) -> SourceEvent {
        let runs = self.guest.run.resume;
        match self.journal.write(Promise::Commit, runs) {
            Ok(()) => SourceEvent::CommitWritten,
            Err(error) => {
                self.why.get_or_insert(error);
                SourceEvent::Failed
            }
        }
    }
}
