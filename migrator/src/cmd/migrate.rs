//! `pct-vmi migrate`: the source's side.

mod prediction;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use serde_json::json;

use super::settle;
use crate::core::handover::End;
use crate::disks::qemu_nbd::QemuNbdArgs;
use crate::run::introspect::{self, Introspected};
use crate::run::migrate::{Options, migrate};
use crate::run::progress::Progress;
use crate::run::rehearsal::source::rehearse;
use crate::run::source::Outcome;
use crate::run::{journal, note, say, warn};
use crate::vm;

/// Arguments of `pct-vmi migrate`.
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct MigrateArgs {
    /// The VM: its QMP socket's path, or the PID of its QEMU.
    vm: String,
    /// Where `pct-vmi receive` listens.
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    /// Leave the guest paused at the destination.
    #[arg(long)]
    suspend: bool,
    /// Fix the part of the restorable pages that storage carries (0 to 1), without stealing. For
    /// comparison only: left out, both networks finish together by themselves.
    #[arg(long, value_name = "PART", value_parser = division)]
    division: Option<f64>,
    /// Move nothing: measure both networks and the guest for some seconds, and say what a migration would take. The
    /// destination's `pct-vmi receive` waits on.
    #[arg(long)]
    dry_run: bool,
    /// How long the guest may stand still, in milliseconds [default: QEMU's downtime-limit].
    #[arg(long, value_name = "MS")]
    downtime_limit: Option<u64>,
    #[command(flatten)]
    reading: QemuNbdArgs,
    #[command(flatten)]
    profile: super::ProfileArgs,
    /// Where the journal is kept.
    #[arg(long, value_name = "DIR", default_value_os_t = journal::default_dir())]
    journal_dir: PathBuf,
    /// JSON lines on standard output, the last of type "summary" ("prediction" with --dry-run).
    #[arg(long)]
    json: bool,
}

fn division(text: &str) -> Result<f64, String> {
    let part: f64 = text
        .parse()
        .map_err(|_| "expected a number from 0 to 1".to_owned())?;
    (0.0..=1.0)
        .contains(&part)
        .then_some(part)
        .ok_or("expected a number from 0 to 1".into())
}

/// For tests only: the page map is wrong in every entry by this many blocks.
const TEST_SHIFT_BLOCKS: &str = "PCT_VMI_TEST_SHIFT_BLOCKS";

/// Runs `pct-vmi migrate`; returns the exit code.
pub async fn run(args: MigrateArgs) -> anyhow::Result<u8> {
    let begun = Instant::now();
    let profiles = args.profile.profiles()?;
    let vm = vm::live(&args.vm).await?;
    let seen = match args.division {
        // Nothing is to come from storage, so nothing is to be known of it.
        Some(0.0) => Introspected::default(),
        _ => introspect::introspect(&vm, &args.reading.qemu_nbd, profiles)
            .await
            .unwrap_or_else(|error| {
                note(&format!(
                    "introspection failed, all pages go over the LAN: {error:#}"
                ));
                Introspected::default()
            }),
    };
    let seen = shifted_for_tests(seen)?;
    let options = Options {
        to: args.to,
        division: args.division,
        suspend: args.suspend,
        downtime_limit_ms: args.downtime_limit,
        journal_dir: args.journal_dir,
    };
    let scan_ms = seen.took.as_secs_f64() * 1e3;
    if args.dry_run {
        let rehearsed = rehearse(&vm, seen, &options, begun).await?;
        prediction::print(&rehearsed, scan_ms, args.json);
        rehearsed.predicted?;
        return Ok(0);
    }
    let outcome = migrate(&vm, seen, &options, begun, Progress::new(args.json)).await?;
    report(&outcome, scan_ms, args.json)?;
    Ok(match outcome.end {
        End::Moved => 0,
        End::Stayed => 1,
        End::Uncertain => 3,
    })
}

fn shifted_for_tests(mut seen: Introspected) -> anyhow::Result<Introspected> {
    if let Ok(blocks) = std::env::var(TEST_SHIFT_BLOCKS) {
        let blocks = blocks
            .parse()
            .with_context(|| format!("{TEST_SHIFT_BLOCKS}={blocks}"))?;
        introspect::shift_blocks(&mut seen, blocks);
    }
    Ok(seen)
}

fn report(outcome: &Outcome, scan_ms: f64, as_json: bool) -> anyhow::Result<()> {
    let summary = &outcome.summary;
    let why = outcome.why.as_ref().map(|why| format!("{why:#}"));
    if as_json {
        let mut line = serde_json::to_value(summary)?;
        let end = match outcome.end {
            End::Moved => "moved",
            End::Stayed => "stayed",
            End::Uncertain => "uncertain",
        };
        let more = json!({
            "type": "summary", "id": outcome.id, "end": end, "error": why, "scan_ms": scan_ms,
        });
        if let (Some(line), serde_json::Value::Object(more)) = (line.as_object_mut(), more) {
            line.extend(more);
        }
        say(&line);
    }
    match outcome.end {
        End::Moved => {
            if !as_json {
                say(&summary.to_text(scan_ms).trim_end());
            }
            why.inspect(|why| note(&format!("the guest has moved, but {why}")));
        }
        End::Stayed => warn(&format_args!(
            "the migration failed, the guest stays at the source: {}",
            why.unwrap_or_default()
        )),
        End::Uncertain => warn(&format_args!(
            "the guest was given to the destination, which did not confirm: {}\n\
             The source holds still. On the destination host run\n    {}",
            why.unwrap_or_default(),
            settle::at_destination(&outcome.id, outcome.resume)
        )),
    }
    Ok(())
}
