//! What a migration did and how close it came to the bound: computed from what was seen, not from settings.

use serde::Serialize;

/// The end of a migration in figures. Times in milliseconds, sizes in bytes.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    /// From the command's start to the guest being the destination's.
    pub total_ms: f64,
    /// From the guest's stop at the source to its being up at the destination; none when it did not run.
    pub downtime_ms: Option<f64>,
    /// Bytes that this side sent over the LAN.
    pub lan_bytes: u64,
    /// Bytes that the destination read from shared storage.
    pub san_bytes: u64,
    /// Emissions that went with their content.
    pub pages_content: u64,
    /// Emissions that went as a digest, of pages that storage could supply.
    pub pages_claimed: u64,
    /// Emissions of zero pages.
    pub pages_zero: u64,
    /// Pages that only the LAN can carry, sent before QEMU emitted them; the emission of those that the guest did not
    /// write to in between then went as a digest.
    pub pages_ahead: u64,
    /// Of these, the ones that it did write to, which were carried in vain.
    pub pages_ahead_in_vain: u64,
    /// Pages that the LAN took over from storage.
    pub pages_stolen: u64,
    /// Pages that the destination had to ask for.
    pub pages_needed: u64,
    /// Emissions that repeated what the destination had.
    pub pages_unchanged: u64,
    /// The fluid bound T* for the rates seen; none when a network was too little used to have a rate.
    pub bound_ms: Option<f64>,
    /// `total_ms / bound_ms`.
    pub bound_ratio: Option<f64>,
}

impl Summary {
    /// The summary for people: where the pages came from, and how close it came to the bound.
    pub fn to_text(&self, scan_ms: f64) -> String {
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let optional = |ms: Option<f64>| ms.map_or("-".into(), |ms| format!("{ms:.0} ms"));
        let ratio = self
            .bound_ratio
            .map_or("-".into(), |ratio| format!("{ratio:.2}"));
        let rows = [
            ("total time", format!("{:.0} ms", self.total_ms)),
            ("of that, introspection", format!("{scan_ms:.0} ms")),
            ("downtime", optional(self.downtime_ms)),
            ("bytes over the LAN", mib(self.lan_bytes)),
            ("bytes from storage", mib(self.san_bytes)),
            ("pages sent with content", self.pages_content.to_string()),
            ("pages sent as digest", self.pages_claimed.to_string()),
            ("zero pages", self.pages_zero.to_string()),
            ("pages sent ahead of QEMU", self.pages_ahead.to_string()),
            ("of those, in vain", self.pages_ahead_in_vain.to_string()),
            ("pages stolen from storage", self.pages_stolen.to_string()),
            ("pages needed again", self.pages_needed.to_string()),
            (
                "emissions left out, unchanged",
                self.pages_unchanged.to_string(),
            ),
            ("bound T* for the rates seen", optional(self.bound_ms)),
            ("total time / bound", ratio),
        ];
        rows.iter()
            .map(|(name, value)| format!("{name:<32} {value:>14}\n"))
            .collect()
    }
}

/// Seconds in which a network was in use, and what it carried.
#[derive(Debug, Clone, Copy, Default)]
pub struct Use {
    /// Bytes carried.
    pub bytes: f64,
    /// Seconds in use.
    pub seconds: f64,
}

impl Use {
    /// Bytes a second; zero when it was never in use.
    pub fn rate(self) -> f64 {
        if self.seconds > 0.0 {
            self.bytes / self.seconds
        } else {
            0.0
        }
    }
}

/// The fluid bound in milliseconds: T* = max(N / L, (N + C) / (L + S)), with N the bytes that only the
/// LAN can carry and C those that either can.
pub fn bound_ms(only_lan: f64, either: f64, lan: Use, san: Use) -> Option<f64> {
    let (lan, san) = (lan.rate(), san.rate());
    let bound = (only_lan / lan).max((only_lan + either) / (lan + san)) * 1e3;
    bound.is_finite().then_some(bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_the_lan_alone_or_both_together() {
        let lan = Use {
            bytes: 100.0,
            seconds: 1.0,
        };
        let san = Use {
            bytes: 300.0,
            seconds: 1.0,
        };
        assert_eq!(bound_ms(100.0, 300.0, lan, san), Some(1000.0));
        assert_eq!(bound_ms(200.0, 200.0, lan, san), Some(2000.0));
        assert_eq!(bound_ms(0.0, 400.0, lan, Use::default()), Some(4000.0));
        assert_eq!(bound_ms(100.0, 0.0, Use::default(), Use::default()), None);
    }
}
