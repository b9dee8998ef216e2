//! `migrate --dry-run`: measures both networks, the guest's RAM and what the guest dirties of it, and says what a
//! migration would take. It reads, asks and predicts; it must change nothing on either side.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::sync::mpsc;

use super::look::Look;
use super::{BYTES_MAX, MEASURED, WARM_UP};
use crate::core::digest::DigestKey;
use crate::core::pieces::Pieces;
use crate::core::prediction::{Dirtied, Endless, Measured, Prediction};
use crate::core::ram::PAGE_BYTES;
use crate::core::wire::{self, Kind, Sampled};
use crate::run::introspect::Introspected;
use crate::run::lan::{LanIn, LanOut};
use crate::run::migrate::{Options, agree, random};
use crate::run::summary::Use;
use crate::run::{note, qemu};
use crate::vm::LiveVm;

/// Bytes sent at a time: as the LAN is only looked at between them, a hundredth of a second at 50 Mbit/s.
const PROBE_BYTES: usize = 64 << 10;
/// How long the destination may take for its sample.
const ANSWER_WAIT: Duration = Duration::from_secs(20);
/// The least for which QEMU measures the dirty rate. It says whole MiB/s, which for a longer time is too coarse.
const SECOND: f64 = 1.0;
/// What the guest dirties is looked at for as long as the first pass takes, but nobody waits longer than this for a
/// prediction.
const DIRTIED_SECONDS_MAX: f64 = 10.0;

/// What was measured and what it lets expect.
#[derive(Debug)]
pub struct Rehearsed {
    /// Pages of guest RAM.
    pub ram_pages: u32,
    /// What was measured.
    pub measured: Measured,
    /// What is expected.
    pub predicted: Result<Prediction, Endless>,
}

/// Measures all that a prediction needs, and predicts.
pub async fn rehearse(
    vm: &LiveVm,
    seen: Introspected,
    options: &Options,
    begun: Instant,
) -> anyhow::Result<Rehearsed> {
    let agreed = agree(vm, seen, options, true).await?;
    let set_up_s = begun.elapsed().as_secs_f64();
    let (plan, table) = (agreed.plan, agreed.table);
    let limit_ms = match options.downtime_limit_ms {
        Some(ms) => ms,
        None => qemu::downtime_limit_ms(&vm.qmp).await?,
    };
    let running = agreed.was_running.then_some(vm);
    let (networks, dirty_rate) = tokio::join!(networks(agreed.lan), dirty_rate(running));
    let (lan, san) = networks.context("the rehearsal failed")?;
    let look = Look::new(vm.memory.as_ref(), &table, DigestKey::fresh()?);
    let looked = Instant::now();
    let san_bytes = san.pages as f64 * PAGE_BYTES as f64;
    let mut measured = Measured {
        set_up_s,
        lan_rate: lan.rate(),
        san_rate: Use {
            bytes: san_bytes,
            seconds: san.busy_us as f64 / 1e6,
        }
        .rate(),
        san_overread: match san.pages {
            0 => 1.0,
            _ => san.bytes as f64 / san_bytes,
        },
        plan_pages: plan.pages(),
        plan_runs: plan.runs().len(),
        content_pages: look.content_pages(&plan),
        dirtied: Dirtied::default(),
        downtime_limit_s: limit_ms as f64 / 1e3,
        may_steal: options.division.is_none(),
    };
    if let Some(rate) = dirty_rate {
        measured.dirtied.push(SECOND, rate * SECOND);
    }
    let first_pass_s = measured.first_pass_s().unwrap_or_default();
    if running.is_some() && first_pass_s > SECOND {
        let seconds = first_pass_s.min(DIRTIED_SECONDS_MAX);
        let what = format!("measuring for {seconds:.0} s what the guest dirties");
        note(&what);
        tokio::time::sleep_until((looked + Duration::from_secs_f64(seconds)).into()).await;
        let seconds = looked.elapsed().as_secs_f64();
        measured.dirtied.push(seconds, look.dirtied_bytes());
    }
    Ok(Rehearsed {
        ram_pages: table.pages(),
        predicted: measured.predict(),
        measured,
    })
}

/// Bytes of distinct pages that a guest that runs dirties in a second, as QEMU tells; none where it does not.
async fn dirty_rate(running: Option<&LiveVm>) -> Option<f64> {
    let vm = running?;
    let ram_bytes = vm.layout.blocks.iter().map(|block| block.used_bytes).sum();
    let rate = qemu::dirty_rate(&vm.qmp, SECOND as u64, ram_bytes).await;
    let note_error = |error: &_| note(&format!("QEMU does not tell the dirty rate: {error:#}"));
    rate.inspect_err(note_error).ok()
}

/// What the LAN carried, and what storage gave meanwhile.
async fn networks((lan_in, lan_out): (LanIn, LanOut)) -> anyhow::Result<(Use, Sampled)> {
    let mut frames = lan_in.into_channel();
    let answer = async {
        let answer = tokio::time::timeout(ANSWER_WAIT, answer(&mut frames)).await;
        answer.context("the destination does not tell in time how fast storage is")?
    };
    let measured = tokio::try_join!(probe(&lan_out), answer)?;
    lan_out.finish().await;
    ensure!(
        measured.0.bytes > 0.0,
        "the kernel does not tell how fast the LAN is: it needs Linux 4.10"
    );
    Ok(measured)
}

async fn answer(
    frames: &mut mpsc::Receiver<anyhow::Result<(Kind, bytes::Bytes)>>,
) -> anyhow::Result<Sampled> {
    let frame = frames.recv().await;
    match frame.context("the destination closed the connection in the rehearsal")?? {
        (Kind::Sampled, body) => Ok(wire::parse_message(Kind::Sampled, &body)?),
        (Kind::Abort, body) => bail!("the destination gave up: {}", wire::abort_reason(&body)),
        (kind, _) => bail!("the destination sent {kind:?} in a rehearsal"),
    }
}

/// Keeps the LAN busy for a while; what it carried once it had got going.
async fn probe(lan_out: &LanOut) -> anyhow::Result<Use> {
    // What no link on the way can compress.
    let body: [u8; PROBE_BYTES] = random()?;
    let frame = bytes::Bytes::from(wire::frame(Kind::Probe, &body));
    let begun = Instant::now();
    let (mut sent, mut early) = (0, None);
    while begun.elapsed() < WARM_UP + MEASURED && sent < BYTES_MAX {
        let mut pieces = Pieces::default();
        pieces.share(frame.clone());
        lan_out.send(pieces).await?;
        sent += PROBE_BYTES as u64;
        if early.is_none() && begun.elapsed() >= WARM_UP {
            early = Some(lan_out.network_use());
        }
    }
    let (all, early) = (lan_out.network_use(), early.unwrap_or_default());
    let measured = Use {
        bytes: all.bytes - early.bytes,
        seconds: all.seconds - early.seconds,
    };
    // A network that is done with all of it sooner is told by all of it.
    Ok(match measured.seconds < WARM_UP.as_secs_f64() {
        true => all,
        false => measured,
    })
}
