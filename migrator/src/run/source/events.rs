//! What the destination says and what QEMU does: each becomes news for the core, or an event of the handover.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::Transfer;
use crate::core::handover::SourceEvent;
use crate::core::wire::{self, Kind, Report};
use crate::qmp::Event;
use crate::run::qemu;

impl Transfer<'_> {
    pub(super) async fn on_frame(
        &mut self,
        kind: Kind,
        body: &[u8],
    ) -> anyhow::Result<Option<SourceEvent>> {
        match kind {
            Kind::Reports => {
                for report in wire::parse_array::<Report>(kind, body)? {
                    let (page, outcome) = report.parse(self.table.pages())?;
                    if self.dispatcher.report(page, outcome) {
                        self.needs.push_back(page);
                    }
                }
            }
            Kind::Progress => {
                self.storage = wire::parse_message(kind, body)?;
            }
            Kind::ReturnPath => {
                let mut passed = Vec::new();
                let pushed = self.gate.push(body, &mut passed);
                pushed.map_err(|n| anyhow!("the return path has a message of {n} bytes"))?;
                self.qemu_out
                    .write_all(&passed)
                    .await
                    .context("QEMU closed its return path")?;
            }
            Kind::Loaded => return Ok(Some(SourceEvent::PeerLoaded)),
            Kind::Running => {
                self.up = Some(Instant::now());
                return Ok(Some(SourceEvent::PeerRunning));
            }
            Kind::Abort => {
                let reason = wire::abort_reason(body);
                self.peer_aborted = true;
                self.why
                    .get_or_insert(anyhow!("the destination gave up: {reason}"));
                return Ok(Some(SourceEvent::PeerAborted));
            }
            other => bail!("the destination sent {other:?}, which only a source sends"),
        }
        Ok(None)
    }

    pub(super) async fn on_stream(
        &mut self,
        read: std::io::Result<usize>,
    ) -> anyhow::Result<Option<SourceEvent>> {
        if read.context("reading QEMU's stream failed")? > 0 {
            self.buffer.ripen();
            return Ok(None);
        }
        self.stream_open = false;
        let over = |status: &str| matches!(status, "completed" | "failed" | "cancelled");
        let status = qemu::wait_for_migration(self.qmp, Duration::from_secs(10), over).await;
        let status = status.context("the source QEMU ended its stream")?;
        if status == "completed" && self.parser.is_past_ram() {
            return Ok(Some(SourceEvent::QemuCompleted));
        }
        let details = self.qmp.execute("query-migrate", json!({})).await?;
        let reason = details["error-desc"].as_str().unwrap_or("no reason given");
        bail!("the source QEMU's migration {status}: {reason}");
    }

    pub(super) fn on_qemu_event(&mut self, event: &Event) {
        match event.name.as_str() {
            "MIGRATION_PASS" => self.pass = event.data["pass"].as_u64().unwrap_or(self.pass),
            "STOP" => self.stopped = Some(Instant::now()),
            "SHUTDOWN" => {
                let reason = event.data["reason"]
                    .as_str()
                    .unwrap_or("unknown")
                    .to_owned();
                self.why
                    .get_or_insert(anyhow!("the guest shut down (reason {reason})"));
            }
            _ => {}
        }
    }

    pub(super) fn peer_lost(&mut self, error: anyhow::Error) -> SourceEvent {
        self.why.get_or_insert(error);
        SourceEvent::PeerLost
    }
}
