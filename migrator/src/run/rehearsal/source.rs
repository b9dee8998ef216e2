//! `migrate --dry-run`: measures both networks, the guest's RAM and what the guest dirties of it, and says what a
//! migration would take. It reads, asks and predicts; it must change nothing on either side.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::sync::mpsc;

use super::{BYTES_MAX, MEASURED, WARM_UP, content};
use crate::core::pieces::Pieces;
use crate::core::prediction::{Dirtied, Endless, Measured, Prediction};
use crate::core::ram::PAGE_BYTES;
use crate::core::wire::{self, Kind, Sampled};
use crate::run::introspect::Introspected;
use crate::run::lan::{LanIn, LanOut, abort_reason};
use crate::run::migrate::{Options, agree, random};
use crate::run::summary::Use;
use crate::run::{note, qemu};
use crate::vm::LiveVm;

/// Bytes sent at a time: as the LAN is only looked at between them, a hundredth of a second at 50 Mbit/s.
const PROBE_BYTES: usize = 64 << 10;
/// How long the destination may take for its sample.
const ANSWER_WAIT: Duration = Duration::from_secs(20);
/// QEMU measures whole seconds. What the guest dirties is measured for as long as the first pass takes, but nobody
/// waits longer than this for a prediction.
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
    let dirtying = agreed.was_running.then_some(vm);
    let (networks, first) = tokio::join!(networks(agreed.lan), dirtied(dirtying, 1.0));
    let (lan, sampled) = networks?;
    let planned_bytes = sampled.pages as f64 * PAGE_BYTES as f64;
    let mut measured = Measured {
        set_up_s,
        lan_rate: lan.rate(),
        san_rate: Use {
            bytes: planned_bytes,
            seconds: sampled.busy_us as f64 / 1e6,
        }
        .rate(),
        san_overread: match sampled.pages {
            0 => 1.0,
            _ => sampled.bytes as f64 / planned_bytes,
        },
        plan_pages: plan.pages(),
        plan_runs: plan.runs().len(),
        content_pages: content::content_pages(vm.memory.as_ref(), &table, &plan),
        dirtied: Dirtied(Vec::from_iter(first)),
        downtime_limit_s: limit_ms as f64 / 1e3,
        may_steal: options.division.is_none(),
    };
    let first_pass_s = measured.first_pass_s().unwrap_or_default().round();
    if first.is_some() && first_pass_s > 1.0 {
        let seconds = first_pass_s.min(DIRTIED_SECONDS_MAX);
        note(&format!("measuring for {seconds} s what the guest dirties"));
        measured.dirtied.0.extend(dirtied(dirtying, seconds).await);
    }
    Ok(Rehearsed {
        ram_pages: table.pages(),
        predicted: measured.predict(),
        measured,
    })
}

/// Bytes of distinct pages that a running guest dirties in so many seconds; none where QEMU does not tell.
async fn dirtied(running: Option<&LiveVm>, seconds: f64) -> Option<(f64, f64)> {
    let vm = running?;
    let ram_bytes = vm.layout.blocks.iter().map(|block| block.used_bytes).sum();
    match qemu::dirty_rate(&vm.qmp, seconds as u64, ram_bytes).await {
        Ok(rate) => Some((seconds, rate * seconds)),
        Err(error) => {
            note(&format!(
                "what the guest dirties is not in the prediction: {error:#}"
            ));
            None
        }
    }
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
        (Kind::Abort, body) => bail!("the destination gave up: {}", abort_reason(&body)),
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
