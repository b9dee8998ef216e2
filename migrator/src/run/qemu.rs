//! What both sides ask of their QEMU: checks before a migration, settings during it, its guest after it.

use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::net::UnixStream;

use crate::qmp::{Qmp, QmpError};

/// How much longer than asked for calc-dirty-rate may take.
const DIRTY_RATE_WAIT: Duration = Duration::from_secs(10);
/// Bytes that the kernel holds between the source QEMU and us. QEMU takes them for sent, so they count against
/// its downtime; the kernel doubles the value for its own bookkeeping.
pub const SOURCE_SOCKET_BYTES: usize = 256 << 10;
/// Bytes between us and the destination QEMU: enough that neither waits for the other's turn on a CPU.
pub const DESTINATION_SOCKET_BYTES: usize = 1 << 20;

/// Capabilities whose streams the parser does not know, and what is behind them.
const REFUSED: [(&str, &str); 12] = [
    ("multifd", "pages go over channels of their own"),
    ("postcopy-ram", "pages are sent on request"),
    ("xbzrle", "pages are sent as differences"),
    ("compress", "pages are sent compressed"),
    ("rdma-pin-all", "pages do not pass through the stream"),
    ("x-colo", "the guest runs on both sides"),
    ("block", "disks are sent along"),
    ("dirty-bitmaps", "bitmaps are sent along"),
    ("x-ignore-shared", "shared RAM is left out"),
    ("background-snapshot", "the stream is a snapshot"),
    ("mapped-ram", "the stream is a file layout"),
    ("zero-copy-send", "it needs multifd"),
];

/// Fails if a migration capability is on that the stream parser does not know, naming it.
pub async fn refuse_unknown_capabilities(qmp: &Qmp, side: &str) -> anyhow::Result<()> {
    let capabilities = qmp.execute("query-migrate-capabilities", json!({})).await?;
    for (name, why) in REFUSED {
        if is_on(&capabilities, name) {
            bail!(
                "the {side} QEMU has migration capability {name} on ({why}); switch it off: \
                 migrate-set-capabilities {name}=off"
            );
        }
    }
    let parameters = qmp.execute("query-migrate-parameters", json!({})).await?;
    if parameters["tls-creds"]
        .as_str()
        .is_some_and(|creds| !creds.is_empty())
    {
        bail!(
            "the {side} QEMU has migration parameter tls-creds set; TLS inside QEMU hides the stream: \
             migrate-set-parameters tls-creds=\"\""
        );
    }
    Ok(())
}

/// Fails if QEMU itself, or a device that sends state in passes of its own, stands in the way.
pub async fn refuse_blockers(qmp: &Qmp) -> anyhow::Result<()> {
    let migrate = qmp.execute("query-migrate", json!({})).await?;
    if let Some(reasons) = migrate["blocked-reasons"]
        .as_array()
        .filter(|list| !list.is_empty())
    {
        let reasons: Vec<&str> = reasons.iter().filter_map(Value::as_str).collect();
        bail!(
            "the source QEMU cannot migrate this guest: {}",
            reasons.join("; ")
        );
    }
    let tree = qmp.hmp("info qtree").await?;
    for device in ["vfio-pci", "virtio-mem"] {
        if tree.contains(&format!("dev: {device}")) {
            bail!(
                "the guest has a {device} device, whose migration stream pct-vmi cannot follow; unplug it first"
            );
        }
    }
    // QEMU then leaves pages out of its first pass, by whose end the switchover is held back.
    if tree.contains("free-page-hint = true") {
        bail!(
            "the guest's balloon has free-page-hint on, whose migration stream pct-vmi cannot follow; start QEMU with \
             free-page-hint=off"
        );
    }
    Ok(())
}

/// The names of all capabilities that are on.
pub async fn capabilities_on(qmp: &Qmp) -> anyhow::Result<Vec<String>> {
    let capabilities = qmp.execute("query-migrate-capabilities", json!({})).await?;
    let list = capabilities.as_array().into_iter().flatten();
    let on = list.filter(|entry| entry["state"] == true);
    Ok(on
        .filter_map(|entry| Some(entry["capability"].as_str()?.to_owned()))
        .collect())
}

fn is_on(capabilities: &Value, name: &str) -> bool {
    let list = capabilities.as_array().into_iter().flatten();
    list.filter(|entry| entry["capability"] == name)
        .any(|entry| entry["state"] == true)
}

/// Whether this QEMU has a capability at all.
pub async fn knows_capability(qmp: &Qmp, name: &str) -> anyhow::Result<bool> {
    let capabilities = qmp.execute("query-migrate-capabilities", json!({})).await?;
    Ok(capabilities
        .as_array()
        .into_iter()
        .flatten()
        .any(|entry| entry["capability"] == name))
}

/// Switches capabilities on or off.
pub async fn set_capabilities(qmp: &Qmp, names: &[(&str, bool)]) -> Result<(), QmpError> {
    let list: Vec<Value> = names
        .iter()
        .map(|(name, on)| json!({"capability": name, "state": on}))
        .collect();
    qmp.execute("migrate-set-capabilities", json!({ "capabilities": list }))
        .await
        .map(drop)
}

/// The parameters with which QEMU stops the guest when no more is left than the LAN carries in `limit_ms`.
///
/// QEMU multiplies its limit with the bandwidth at which its socket drains, and that is not the LAN's: a page
/// that goes as a digest drains at once. QEMU ≥ 8.2 can be told the bandwidth; for others the limit is scaled.
pub async fn downtime_parameters(
    qmp: &Qmp,
    lan_bytes_per_s: f64,
    socket_bytes_per_s: f64,
    limit_ms: u64,
) -> Result<Value, QmpError> {
    let parameters = qmp.execute("query-migrate-parameters", json!({})).await?;
    if parameters.get("avail-switchover-bandwidth").is_some() && lan_bytes_per_s >= 1.0 {
        let bandwidth = lan_bytes_per_s as u64;
        return Ok(json!({ "downtime-limit": limit_ms, "avail-switchover-bandwidth": bandwidth }));
    }
    let part = (lan_bytes_per_s / socket_bytes_per_s).min(1.0);
    // Before either rate is known the part is no number, and the limit stays as it is asked for.
    let scaled = if part.is_nan() {
        limit_ms
    } else {
        (limit_ms as f64 * part) as u64
    };
    Ok(json!({ "downtime-limit": scaled.max(1) }))
}

/// Bytes a second at which QEMU found its socket to drain when it last looked.
pub async fn socket_bytes_per_s(qmp: &Qmp) -> Result<f64, QmpError> {
    let migrate = qmp.execute("query-migrate", json!({})).await?;
    Ok(migrate["ram"]["mbps"].as_f64().unwrap_or_default() * 1e6 / 8.0)
}

/// How long the guest may stand still, unless the operator says otherwise.
pub async fn downtime_limit_ms(qmp: &Qmp) -> Result<u64, QmpError> {
    let parameters = qmp.execute("query-migrate-parameters", json!({})).await?;
    Ok(parameters["downtime-limit"].as_u64().unwrap_or(300))
}

/// Pages that calc-dirty-rate hashes in all: of a guest of a GiB each stands for 16, of one of 64 GiB for 1,024.
const DIRTY_RATE_SAMPLES: u64 = 16 << 10;
/// What QEMU takes for each GiB (migration/dirtyrate.h).
const DIRTY_RATE_SAMPLES_PER_GIB: RangeInclusive<u64> = 128..=16384;

/// Bytes a second of distinct pages that the guest writes to within so many seconds (1 to 60), by QEMU's
/// calc-dirty-rate. It hashes a sample of the pages before and after, which the guest does not notice; its other
/// modes (dirty-ring, dirty-bitmap) would switch the logging of all writes on. It cuts what it finds down to whole
/// MiB/s, so half of one more is what is to be expected.
pub async fn dirty_rate(qmp: &Qmp, seconds: u64, ram_bytes: u64) -> anyhow::Result<f64> {
    let per_gib = (DIRTY_RATE_SAMPLES << 30) / ram_bytes.max(1);
    let (least, most) = DIRTY_RATE_SAMPLES_PER_GIB.into_inner();
    let sample = json!({ "calc-time": seconds, "sample-pages": per_gib.clamp(least, most) });
    qmp.execute("calc-dirty-rate", sample).await?;
    let deadline = Instant::now() + Duration::from_secs(seconds) + DIRTY_RATE_WAIT;
    while Instant::now() < deadline {
        let answer = qmp.execute("query-dirty-rate", json!({})).await?;
        if answer["status"] == "measured" {
            let mib = answer["dirty-rate"].as_f64();
            let mib = mib.context("QEMU tells no dirty-rate")? + 0.5;
            return Ok(mib * f64::from(1 << 20));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("QEMU did not measure the dirty rate in time")
}

/// The guest's run state, such as `running`, `paused`, `inmigrate`, `postmigrate`.
pub async fn run_state(qmp: &Qmp) -> Result<String, QmpError> {
    let status = qmp.execute("query-status", json!({})).await?;
    Ok(status["status"].as_str().unwrap_or_default().to_owned())
}

/// The state of the migration, such as `active`, `completed`, `failed`; empty before any.
pub async fn migration_status(qmp: &Qmp) -> Result<String, QmpError> {
    let status = qmp.execute("query-migrate", json!({})).await?;
    Ok(status["status"].as_str().unwrap_or_default().to_owned())
}

/// A connected pair: our end, and the one for QEMU under `name` (migrate uri `fd:NAME`). A pair has no
/// path that others could open, and its buffers are ours to bound.
pub async fn socket_for_qemu(qmp: &Qmp, name: &str, bytes: usize) -> anyhow::Result<UnixStream> {
    let (ours, theirs) =
        std::os::unix::net::UnixStream::pair().context("cannot make a socket pair")?;
    for end in [&ours, &theirs] {
        socket2::SockRef::from(end).set_send_buffer_size(bytes)?;
    }
    let theirs: OwnedFd = theirs.into();
    let named = json!({ "fdname": name });
    let passed = qmp.execute_with_fd("getfd", named, theirs.as_fd()).await;
    passed.context("cannot pass a socket to QEMU; is its QMP a unix socket on this host?")?;
    ours.set_nonblocking(true)?;
    Ok(UnixStream::from_std(ours)?)
}

/// Waits until `done` says so of the migration's state; fails on `failed` or after `wait`.
pub async fn wait_for_migration(
    qmp: &Qmp,
    wait: Duration,
    done: impl Fn(&str) -> bool,
) -> anyhow::Result<String> {
    let deadline = Instant::now() + wait;
    loop {
        let status = migration_status(qmp).await?;
        if done(&status) {
            return Ok(status);
        }
        if Instant::now() > deadline {
            bail!(
                "QEMU's migration is still {status:?} after {} s",
                wait.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Lets the source's guest run on after a migration that did not happen: cancels what is under way, continues
/// what was stopped for it. A guest that was paused before stays so.
pub async fn take_back(qmp: &Qmp, was_running: bool) -> anyhow::Result<()> {
    let over = |status: &str| {
        !matches!(
            status,
            "setup" | "active" | "device" | "cancelling" | "pre-switchover" | "wait-unplug"
        )
    };
    if !over(&migration_status(qmp).await?) {
        // Refused where the migration has just ended by itself; the wait tells which it was.
        let _ = qmp.execute("migrate_cancel", json!({})).await;
        wait_for_migration(qmp, Duration::from_secs(10), over).await?;
    }
    // After a cancel QEMU continues the guest by itself, a moment later.
    for _ in 0..50 {
        match run_state(qmp).await?.as_str() {
            "finish-migrate" => tokio::time::sleep(Duration::from_millis(20)).await,
            "paused" | "postmigrate" if was_running => {
                qmp.execute("cont", json!({})).await?;
                return Ok(());
            }
            _ => return Ok(()),
        }
    }
    bail!("the source QEMU does not leave state finish-migrate; continue it with QMP cont")
}
