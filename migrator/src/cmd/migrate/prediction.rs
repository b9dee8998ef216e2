//! What `migrate --dry-run` says: a table for people, a JSON line for machines. It computes nothing.

use serde_json::{Value, json};

use crate::core::prediction::{Measured, Prediction};
use crate::run::rehearsal::source::Rehearsed;
use crate::run::say;

/// Prints it.
pub(super) fn print(rehearsed: &Rehearsed, scan_ms: f64, as_json: bool) {
    match as_json {
        true => say(&to_json(rehearsed, scan_ms)),
        false => say(&to_text(rehearsed).trim_end()),
    }
}

fn to_json(rehearsed: &Rehearsed, scan_ms: f64) -> Value {
    let Rehearsed {
        ram_pages,
        measured,
        predicted,
    } = rehearsed;
    let expected = |of: fn(&Prediction) -> Value| predicted.as_ref().map_or(Value::Null, of);
    json!({
        "type": "prediction",
        "total_ms": expected(|p| p.total_ms.into()),
        "downtime_ms": expected(|p| p.downtime_ms.into()),
        "lan_bytes": expected(|p| p.lan_bytes.into()),
        "san_bytes": expected(|p| p.san_bytes.into()),
        "error": predicted.as_ref().err().map(ToString::to_string),
        "scan_ms": scan_ms,
        "set_up_ms": measured.set_up_s * 1e3,
        "lan_bytes_per_s": measured.lan_rate,
        "san_bytes_per_s": measured.san_rate,
        "san_overread": measured.san_overread,
        "dirtied": measured.dirtied.points().iter().map(|(seconds, bytes)| json!({
            "seconds": seconds, "bytes": bytes,
        })).collect::<Vec<Value>>(),
        "plan_pages": measured.plan_pages,
        "content_pages": measured.content_pages,
        "ram_pages": ram_pages,
        "downtime_limit_ms": measured.downtime_limit_s * 1e3,
    })
}

fn to_text(rehearsed: &Rehearsed) -> String {
    let Rehearsed {
        ram_pages,
        measured,
        predicted,
    } = rehearsed;
    let mut rows = predicted.as_ref().map_or(Vec::new(), expected_rows);
    rows.extend(measured_rows(measured));
    rows.push(("pages of guest RAM", ram_pages.to_string()));
    rows.iter()
        .map(|(name, value)| format!("{name:<40} {value:>14}\n"))
        .collect()
}

fn expected_rows(prediction: &Prediction) -> Vec<(&'static str, String)> {
    vec![
        ("total time", ms(prediction.total_ms)),
        (
            "downtime, QEMU's devices not counted",
            ms(prediction.downtime_ms),
        ),
        ("bytes over the LAN", mib(prediction.lan_bytes as f64)),
        ("bytes from storage", mib(prediction.san_bytes as f64)),
    ]
}

fn measured_rows(measured: &Measured) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        (
            "measured: introspection and greeting",
            ms(measured.set_up_s * 1e3),
        ),
        ("the LAN", mib(measured.lan_rate) + "/s"),
        (
            "storage, in pages of the plan",
            mib(measured.san_rate) + "/s",
        ),
    ];
    let dirtied = measured.dirtied.points().iter();
    rows.extend(dirtied.map(|(seconds, bytes)| match *seconds as u64 {
        1 => ("dirtied by the guest in 1 s", mib(*bytes)),
        _ => ("dirtied by the guest in the first pass", mib(*bytes)),
    }));
    rows.push((
        "pages that storage may hold",
        measured.plan_pages.to_string(),
    ));
    rows.push((
        "pages for the LAN alone",
        measured.content_pages.to_string(),
    ));
    rows
}

fn ms(ms: f64) -> String {
    format!("{ms:.0} ms")
}

fn mib(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rehearsed(lan_rate: f64) -> Rehearsed {
        let mut measured = Measured {
            set_up_s: 0.25,
            lan_rate,
            san_overread: 1.0,
            content_pages: 256,
            downtime_limit_s: 0.3,
            may_steal: true,
            ..Measured::default()
        };
        measured.dirtied.push(1.0, 524_288.0);
        Rehearsed {
            ram_pages: 1000,
            predicted: measured.predict(),
            measured,
        }
    }

    #[test]
    fn people_get_a_table_and_machines_a_line() {
        let rehearsed = rehearsed(f64::from(1 << 20));
        let text = to_text(&rehearsed);
        assert!(text.contains("bytes over the LAN"), "{text}");
        assert!(text.contains("dirtied by the guest in 1 s"), "{text}");
        let width = |line: &str| line.chars().count();
        let widths: Vec<usize> = text.lines().map(width).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
        let line = to_json(&rehearsed, 99.0);
        assert_eq!(line["lan_bytes"], rehearsed.predicted.unwrap().lan_bytes);
        assert_eq!(line["dirtied"][0]["bytes"], 524_288.0);
        assert_eq!(line["error"], Value::Null);
    }

    #[test]
    fn what_does_not_end_has_a_reason_and_no_figure() {
        let endless = rehearsed(0.0);
        assert!(!to_text(&endless).contains("total time"));
        let line = to_json(&endless, 99.0);
        assert_eq!(line["total_ms"], Value::Null);
        assert!(line["error"].as_str().unwrap().contains("the LAN"));
    }
}
