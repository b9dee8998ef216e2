//! What a migration will cost, from what was measured before it: bytes per network, total time, downtime. Pure
//! arithmetic: both networks end together (the bound T*), then pre-copy goes on until what is left fits the downtime.
//! It must not contain a figure that nobody measured: what is unknown beforehand is left out.

use super::ram::PAGE_BYTES;

const PAGE: f64 = PAGE_BYTES as f64;
/// A page of the wire protocol that goes with its content, and one that goes as a digest.
const CONTENT_RECORD: f64 = 8.0 + PAGE;
const CLAIM_RECORD: f64 = 8.0 + 16.0;
/// A run of the plan.
const PLAN_RUN: f64 = 24.0;
/// Each pass carries what was dirtied during the one before, so they shrink by a factor; if it is so near to one
/// that they are more than this, nobody waits for the end.
const PASSES_MAX: usize = 1000;

/// What was measured. Rates in bytes a second, times in seconds.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// From the command's start to the destination's having the plan: introspection, greeting.
    pub set_up_s: f64,
    /// What the LAN carries.
    pub lan_rate: f64,
    /// What storage gives of the plan's pages.
    pub san_rate: f64,
    /// Bytes read from storage for each byte of a planned page: gaps are read through.
    pub san_overread: f64,
    /// Pages that storage may hold.
    pub plan_pages: u32,
    /// Runs that the plan consists of.
    pub plan_runs: usize,
    /// Pages that only the LAN can carry: not all zero and not in the plan.
    pub content_pages: u64,
    /// What the guest dirties.
    pub dirtied: Dirtied,
    /// What QEMU may leave for the time in which the guest stands still.
    pub downtime_limit_s: f64,
    /// The LAN takes from the plan what it can; otherwise storage alone serves it.
    pub may_steal: bool,
}

/// Bytes of distinct pages that a guest dirties in so many seconds, as points in order of time. They grow ever more
/// slowly, since a page that is written to again is one page, so that one rate does not tell them.
#[derive(Debug, Clone, Default)]
pub struct Dirtied(Vec<(f64, f64)>);

/// What is expected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// From the command's start to the guest's being up at the destination, in milliseconds.
    pub total_ms: f64,
    /// The guest stands still, in milliseconds, without what QEMU takes for its devices.
    pub downtime_ms: f64,
    /// Over the LAN.
    pub lan_bytes: u64,
    /// From storage.
    pub san_bytes: u64,
}

/// Why there would be no end.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Endless {
    /// Of a network nothing arrived, and it has to carry something.
    #[error("{0} carried nothing while it was measured")]
    Stalled(&'static str),
    /// The guest writes to memory faster than the LAN carries it.
    #[error(
        "it does not converge: the guest dirties {:.1} MiB/s of its memory and the LAN carries {:.1} MiB/s; let it write \
         less, use a faster LAN, or allow more downtime (--downtime-limit {downtime_ms})",
        mib(*.dirty_rate), mib(*.lan_rate)
    )]
    Diverges {
        /// Bytes a second of distinct pages.
        dirty_rate: f64,
        /// Bytes a second.
        lan_rate: f64,
        /// The downtime in which the LAN carries all that was dirtied in the first pass.
        downtime_ms: u64,
    },
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

impl Dirtied {
    /// Adds what was dirtied in so many seconds, more than those of the points before. Each point was measured by
    /// itself; but less time cannot have dirtied more.
    pub fn push(&mut self, seconds: f64, bytes: f64) {
        for (_, earlier) in &mut self.0 {
            *earlier = earlier.min(bytes);
        }
        self.0.push((seconds, bytes));
    }

    /// Seconds, and the bytes dirtied in them.
    pub fn points(&self) -> &[(f64, f64)] {
        &self.0
    }

    /// Bytes dirtied in `seconds`: straight lines from point to point, and on as the last one leads.
    pub fn within(&self, seconds: f64) -> f64 {
        let (mut from, mut slope) = ((0.0, 0.0), 0.0);
        for &(at, bytes) in &self.0 {
            slope = (bytes - from.1) / (at - from.0);
            if seconds <= at {
                break;
            }
            from = (at, bytes);
        }
        from.1 + (seconds - from.0) * slope
    }
}

impl Measured {
    /// Bytes that only the LAN can carry: the N of T*. Runs of zero pages are next to nothing.
    fn only_lan(&self) -> f64 {
        self.content_pages as f64 * CONTENT_RECORD
            + f64::from(self.plan_pages) * CLAIM_RECORD
            + self.plan_runs as f64 * PLAN_RUN
    }

    /// Bytes that either network can carry: the C of T*.
    fn either(&self) -> f64 {
        f64::from(self.plan_pages) * PAGE
    }

    /// Seconds until the plan is settled and every page was sent once: max(N / L, (N + C) / (L + S)), where the LAN
    /// may steal, else max(N / L, C / S).
    pub fn first_pass_s(&self) -> Result<f64, Endless> {
        let (n, c) = (self.only_lan(), self.either());
        if self.lan_rate <= 0.0 {
            return Err(Endless::Stalled("the LAN"));
        }
        let together = match self.may_steal {
            true => (n + c) / (self.lan_rate + self.san_rate),
            false if c == 0.0 => 0.0,
            false if self.san_rate <= 0.0 => return Err(Endless::Stalled("storage")),
            false => c / self.san_rate,
        };
        Ok(together.max(n / self.lan_rate))
    }

    /// The whole migration.
    pub fn predict(&self) -> Result<Prediction, Endless> {
        let first_pass_s = self.first_pass_s()?;
        let from_san = self.either().min(self.san_rate * first_pass_s);
        let stolen = (self.either() - from_san) / PAGE * CONTENT_RECORD;
        let further = self.further_passes(first_pass_s)?;
        let downtime_s = further.left / self.lan_rate;
        let total_s = self.set_up_s + first_pass_s + further.seconds + downtime_s;
        Ok(Prediction {
            total_ms: total_s * 1e3,
            downtime_ms: downtime_s * 1e3,
            lan_bytes: (self.only_lan() + stolen + further.bytes + further.left) as u64,
            san_bytes: (from_san * self.san_overread) as u64,
        })
    }

    /// The usual recurrence of pre-copy (Clark et al., NSDI 2005): each pass carries what was dirtied during the one
    /// before. QEMU ends it as soon as no more is left than the LAN carries within the downtime limit, also in
    /// the middle of a pass (migration_iteration_run), so a pass carries what is above that.
    fn further_passes(&self, first_pass_s: f64) -> Result<Further, Endless> {
        let dirtied = self.dirtied.within(first_pass_s) / PAGE * CONTENT_RECORD;
        let left = dirtied.min(self.lan_rate * self.downtime_limit_s);
        let mut further = Further {
            seconds: 0.0,
            bytes: 0.0,
            left,
        };
        let mut above = dirtied - left;
        for _ in 0..PASSES_MAX {
            if above < CONTENT_RECORD {
                return Ok(further);
            }
            let pass_s = above / self.lan_rate;
            further.seconds += pass_s;
            further.bytes += above;
            above = self.dirtied.within(pass_s);
        }
        Err(Endless::Diverges {
            dirty_rate: self.dirtied.within(1.0),
            lan_rate: self.lan_rate,
            downtime_ms: (dirtied / self.lan_rate * 1e3).ceil() as u64,
        })
    }
}

/// What pre-copy carries after its first pass, and what is left when the guest is stopped.
struct Further {
    seconds: f64,
    bytes: f64,
    left: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = 1048576.0;

    /// 100 MiB for the LAN alone, 300 MiB for either, both at 100 MiB/s, and a guest that writes to nothing.
    fn measured() -> Measured {
        Measured {
            set_up_s: 0.5,
            lan_rate: 100.0 * MIB,
            san_rate: 100.0 * MIB,
            san_overread: 1.0,
            plan_pages: 300 << 8,
            plan_runs: 10,
            content_pages: 100 << 8,
            dirtied: Dirtied::default(),
            downtime_limit_s: 0.3,
            may_steal: true,
        }
    }

    /// A guest that writes to `mib` more in each second.
    fn writing(mib: f64) -> Measured {
        Measured {
            dirtied: dirtied(&[(1.0, mib * MIB)]),
            ..measured()
        }
    }

    fn dirtied(points: &[(f64, f64)]) -> Dirtied {
        let mut dirtied = Dirtied::default();
        points
            .iter()
            .for_each(|(at, bytes)| dirtied.push(*at, *bytes));
        dirtied
    }

    fn near(value: f64, expected: f64) {
        assert!((value / expected - 1.0).abs() < 0.02, "{value} {expected}");
    }

    #[test]
    fn both_networks_end_together() {
        let prediction = measured().predict().unwrap();
        near(prediction.total_ms, 500.0 + 2000.0);
        near(prediction.lan_bytes as f64, 200.0 * MIB);
        near(prediction.san_bytes as f64, 200.0 * MIB);
        assert_eq!(prediction.downtime_ms, 0.0);
    }

    #[test]
    fn what_only_the_lan_can_carry_may_take_longer() {
        let fast = Measured {
            san_rate: 1000.0 * MIB,
            san_overread: 1.25,
            ..measured()
        };
        let prediction = fast.predict().unwrap();
        near(prediction.total_ms, 500.0 + 1018.0);
        near(prediction.san_bytes as f64, 375.0 * MIB);
    }

    #[test]
    fn dead_storage_leaves_all_to_the_lan() {
        let dead = Measured {
            san_rate: 0.0,
            ..measured()
        };
        let prediction = dead.predict().unwrap();
        near(prediction.total_ms, 4500.0);
        assert_eq!(prediction.san_bytes, 0);
    }

    #[test]
    fn a_fixed_division_waits_for_the_slower_one() {
        let fixed = Measured {
            may_steal: false,
            ..measured()
        };
        near(fixed.predict().unwrap().total_ms, 3500.0);
        let dead = Measured {
            san_rate: 0.0,
            ..fixed.clone()
        };
        assert_eq!(dead.predict(), Err(Endless::Stalled("storage")));
        let without = Measured {
            plan_pages: 0,
            ..dead
        };
        near(without.predict().unwrap().total_ms, 1500.0);
    }

    #[test]
    fn what_was_written_to_is_sent_again_until_the_rest_fits_the_downtime() {
        // 20 MiB in 2 s are left: they take 0.2 s, less than is allowed.
        let little = writing(10.0).predict().unwrap();
        near(little.downtime_ms, 200.0);
        near(little.total_ms, 2500.0 + 200.0);
        // 100 MiB, of which 30 MiB may be left: 70 MiB, and half of them again and again, take 1.4 s.
        let much = writing(50.0).predict().unwrap();
        near(much.downtime_ms, 300.0);
        near(much.total_ms, 2500.0 + 1400.0 + 300.0);
        near(much.lan_bytes as f64, (200.0 + 140.0 + 30.0) * MIB);
    }

    #[test]
    fn a_guest_that_writes_faster_than_the_lan_is_told_plainly() {
        let error = writing(100.0).predict().unwrap_err();
        let Endless::Diverges { downtime_ms, .. } = error else {
            panic!("{error}")
        };
        near(downtime_ms as f64, 2000.0);
        assert!(error.to_string().contains("100.0 MiB/s"), "{error}");
        let allowed = Measured {
            downtime_limit_s: 2.1,
            ..writing(100.0)
        };
        near(allowed.predict().unwrap().downtime_ms, 2000.0);
        let no_lan = Measured {
            lan_rate: 0.0,
            ..measured()
        };
        assert_eq!(no_lan.predict(), Err(Endless::Stalled("the LAN")));
    }

    #[test]
    fn what_is_written_to_grows_ever_more_slowly() {
        let slowly = dirtied(&[(1.0, 10.0), (5.0, 14.0)]);
        let at = [0.0, 0.5, 1.0, 3.0, 5.0, 7.0].map(|seconds| slowly.within(seconds));
        assert_eq!(at, [0.0, 5.0, 10.0, 12.0, 14.0, 16.0]);
        let less = dirtied(&[(1.0, 10.0), (5.0, 8.0)]);
        assert_eq!(
            [0.5, 1.0, 9.0].map(|seconds| less.within(seconds)),
            [4.0, 8.0, 8.0]
        );
        assert_eq!(Dirtied::default().within(9.0), 0.0);
    }
}
