//! How much QEMU may leave for the time in which the guest stands still. QEMU goes by its socket's rate, which a digest
//! drains a page at once; what counts is the LAN's.

use std::cell::Cell;
use std::convert::Infallible;

use tokio::sync::Notify;

use super::{TICK, qemu};
use crate::qmp::Qmp;

/// Of the fastest that QEMU saw its socket drain, what still counts a tick later. After a wait QEMU sees a slow socket
/// and then a burst of digests: without a memory of earlier bursts it would stop the guest with far too much left.
const SOCKET_RATE_KEPT: f64 = 0.7;

/// What the downtime governor goes by.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// QEMU may stop the guest.
    pub(super) let_go: Cell<bool>,
    /// What the LAN carries.
    pub(super) lan_bytes_per_s: Cell<f64>,
    /// Rung when `let_go` changes.
    pub(super) woken: Notify,
}

/// Lets QEMU stop the guest, once it may, with as much left as the LAN carries within `limit_ms`. It runs beside the
/// stream's loop, never in it: while QEMU writes its last bytes it answers no command, so a loop that
/// waited for an answer would not read them, and both would wait for each other with the guest stopped.
pub(super) async fn govern_downtime(qmp: &Qmp, pace: &Pace, limit_ms: u64) -> Infallible {
    let mut tick = tokio::time::interval(TICK);
    let mut socket_bytes_per_s: f64 = 0.0;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = pace.woken.notified() => {}
        }
        // A QEMU that is gone or refuses shows in the stream, where it is dealt with.
        let Ok(now) = qemu::socket_bytes_per_s(qmp).await else {
            continue;
        };
        socket_bytes_per_s = now.max(socket_bytes_per_s * SOCKET_RATE_KEPT);
        if pace.let_go.get() {
            let lan = pace.lan_bytes_per_s.get();
            let allowed = qemu::downtime_parameters(qmp, lan, socket_bytes_per_s, limit_ms).await;
            if let Ok(parameters) = allowed {
                let _ = qmp.execute("migrate-set-parameters", parameters).await;
            }
        }
    }
}
