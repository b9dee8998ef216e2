//! `pct-vmi receive`: the destination's side.

use std::path::PathBuf;

use anyhow::bail;
use san_io::Fault;
use serde_json::json;

use crate::core::handover::End;
use crate::disks::image::GivenDisk;
use crate::disks::qemu_nbd::QemuNbdArgs;
use crate::run::destination::Outcome;
use crate::run::receive::{Options, receive};
use crate::run::{journal, note, say, warn};

/// Arguments of `pct-vmi receive`.
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct ReceiveArgs {
    /// Address to listen on. The connection is not encrypted: use a network that only your hosts share.
    #[arg(long, value_name = "HOST:PORT")]
    listen: String,
    /// QMP socket of a QEMU that was started with the source's options and -incoming defer.
    #[arg(long, value_name = "SOCKET")]
    qmp: PathBuf,
    /// Read the disk that the guest calls NAME from IMAGE instead of where QEMU has it: a raw file or
    /// block device, nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, or none, which leaves
    /// it to the LAN. May be given several times.
    #[arg(long, value_name = "NAME=IMAGE")]
    disk: Vec<GivenDisk>,
    #[command(flatten)]
    reading: QemuNbdArgs,
    /// Give up a storage read after this time, in milliseconds; the LAN carries its pages.
    #[arg(long, value_name = "MS", default_value_t = 5000)]
    stall: u64,
    /// Where the journal is kept.
    #[arg(long, value_name = "DIR", default_value_os_t = journal::default_dir())]
    journal_dir: PathBuf,
    /// JSON lines on standard output, the last of type "summary".
    #[arg(long)]
    json: bool,
}

/// For tests only: `fail`, `stall`, `wrong` or `slow=BYTES_PER_S` makes storage misbehave.
const TEST_SAN: &str = "PCT_VMI_TEST_SAN";

fn fault_for_tests() -> anyhow::Result<Option<Fault>> {
    let Ok(fault) = std::env::var(TEST_SAN) else {
        return Ok(None);
    };
    Ok(Some(match fault.as_str() {
        "fail" => Fault::FailEvery(1),
        "stall" => Fault::StallForEver,
        "wrong" => Fault::Wrong,
        other => match other.strip_prefix("slow=").map(str::parse) {
            Some(Ok(bytes_per_s)) => Fault::Slow { bytes_per_s },
            _ => bail!("{TEST_SAN}={other}: expected fail, stall, wrong or slow=BYTES_PER_S"),
        },
    }))
}

/// Runs `pct-vmi receive`; returns the exit code.
pub async fn run(args: ReceiveArgs) -> anyhow::Result<u8> {
    let options = Options {
        listen: args.listen,
        qmp: args.qmp,
        disks: args.disk,
        qemu_nbd: args.reading.qemu_nbd,
        journal_dir: args.journal_dir,
        stall_ms: args.stall,
        fault: fault_for_tests()?,
    };
    let outcome = receive(&options, |address| {
        if args.json {
            say(&json!({ "type": "listening", "address": address.to_string() }));
        } else {
            say(&format_args!("listening on {address}"));
        }
    })
    .await?;
    report(&outcome, args.json);
    Ok(match outcome.end {
        End::Moved => 0,
        End::Stayed => 1,
        End::Uncertain => 3,
    })
}

fn report(outcome: &Outcome, as_json: bool) {
    let why = outcome.why.as_ref().map(|why| format!("{why:#}"));
    if as_json {
        let line = json!({
            "type": "summary", "id": outcome.id, "resumed": outcome.resumed, "error": why,
            "end": match outcome.end { End::Moved => "moved", End::Stayed => "stayed", End::Uncertain => "uncertain" },
            "pages_met": outcome.pages_met, "pages_needed": outcome.pages_needed, "san_bytes": outcome.san_bytes,
        });
        say(&line);
    }
    match outcome.end {
        End::Moved => {
            if !as_json {
                say(&format_args!(
                    "the guest is here{}: {} pages from storage proven, {} asked for again",
                    if outcome.resumed {
                        " and runs"
                    } else {
                        ", paused"
                    },
                    outcome.pages_met,
                    outcome.pages_needed
                ));
            }
            why.inspect(|why| note(&format!("the guest is here, but {why}")));
        }
        End::Stayed => warn(&format_args!(
            "the migration failed, the guest stays at the source and this QEMU was told to quit: {}",
            why.unwrap_or_default()
        )),
        End::Uncertain => warn(&format_args!(
            "it is uncertain whose the guest is: {}\n\
             This side holds still, the guest is paused. On the source host run\n    pct-vmi settle {} --qmp SOCKET\n\
             It says which side the guest belongs to.",
            why.unwrap_or_default(),
            outcome.id
        )),
    }
}
