//! The destination's part in the handover: does what the state machine says. What it says, and why, is the core's.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;

use super::Transfer;
use crate::core::handover::{DestinationAction, DestinationEvent, End};
use crate::core::wire::{self, Kind};
use crate::run::journal::Promise;
use crate::run::qemu;

/// How long QEMU may take to end.
const QUIT_WAIT: Duration = Duration::from_secs(5);

impl Transfer<'_> {
    pub(super) async fn on_migration(
        &mut self,
        status: &str,
    ) -> anyhow::Result<Option<DestinationEvent>> {
        match status {
            "completed" if self.feed.has_all_pages() => {
                // `completed` may be said a moment before the run state leaves inmigrate.
                for _ in 0..500 {
                    if qemu::run_state(self.qmp).await? != "inmigrate" {
                        return Ok(Some(DestinationEvent::Loaded));
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                bail!("the destination QEMU has loaded everything and stays in state inmigrate");
            }
            "completed" => bail!("the destination QEMU calls the migration completed before it is"),
            "failed" => {
                bail!("the destination QEMU could not load the guest; its own messages say why")
            }
            _ => Ok(None),
        }
    }

    /// Lets the handover take `event` and does what it says, until it is over or has to wait.
    pub(super) async fn drive(&mut self, event: DestinationEvent) -> Option<End> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.handover.on(event) {
                match action {
                    DestinationAction::SendLoaded => {
                        self.tell_progress();
                        self.tell(Kind::Loaded, b"");
                    }
                    DestinationAction::WriteRun => {
                        let resume = self.run.is_some_and(|run| run.resume);
                        let written = self.journal.write(Promise::Run, resume);
                        events.push_back(self.or_failed(written, DestinationEvent::RunWritten));
                    }
                    DestinationAction::StartGuest => {
                        let started = self.start_guest().await;
                        events.push_back(self.or_failed(started, DestinationEvent::GuestUp));
                    }
                    DestinationAction::SendRunning => self.tell(Kind::Running, b""),
                    DestinationAction::QuitQemu => {
                        // Gone already, or it hangs: without Run its guest stays paused either way, and the source waits.
                        let quit = self.qmp.execute("quit", json!({}));
                        let _ = tokio::time::timeout(QUIT_WAIT, quit).await;
                    }
                    DestinationAction::SendAborted => {
                        let reason = self.why.as_ref().map(|why| format!("{why:#}"));
                        let frame = wire::abort_frame(&reason.unwrap_or_default());
                        self.control.push_back(frame);
                    }
                    DestinationAction::End(end) => return Some(end),
                }
            }
        }
        None
    }

    fn tell(&mut self, kind: Kind, body: &[u8]) {
        self.control.push_back(wire::frame(kind, body));
    }

    fn or_failed(&mut self, done: anyhow::Result<()>, event: DestinationEvent) -> DestinationEvent {
        match done {
            Ok(()) => event,
            Err(error) => {
                self.why.get_or_insert(error);
                DestinationEvent::Failed
            }
        }
    }

    async fn start_guest(&mut self) -> anyhow::Result<()> {
        if self.run.is_some_and(|run| run.resume) {
            self.qmp
                .execute("cont", json!({}))
                .await
                .context("the guest is ours but does not continue")?;
        }
        Ok(())
    }
}
