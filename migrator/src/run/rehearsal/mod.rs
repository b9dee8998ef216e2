//! A rehearsal: both sides greet, the source sends the plan, and both networks are measured at the same time, as a
//! migration would use them. Neither QEMU's migration is touched, and no journal is begun.

pub mod destination;
mod look;
pub mod source;

use std::time::Duration;

/// What comes first is not measured: a connection starts slowly, and a shaper lets a burst pass.
const WARM_UP: Duration = Duration::from_millis(250);
/// How long each network is measured.
const MEASURED: Duration = Duration::from_secs(1);
/// Bytes that each network carries at most, for a second at 8 Gbit/s. Faster ones are measured for less long.
const BYTES_MAX: u64 = 1 << 30;
