//! `pct-vmi settle`: decides, from the journals, whose the guest of an uncertain migration is.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};
use serde_json::json;

use crate::qmp::Qmp;
use crate::run::journal::{self, Promise, Side};
use crate::run::{qemu, say};

/// Arguments of `pct-vmi settle`.
#[derive(Debug, clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct SettleArgs {
    /// The migration, as the message that sent you here names it.
    id: String,
    /// QMP socket of the guest's QEMU on this host.
    #[arg(long, value_name = "SOCKET")]
    qmp: PathBuf,
    /// On the destination: the source's journal has COMMIT, the guest belongs here.
    #[arg(long)]
    committed: bool,
    /// With --committed: the guest was to stay paused.
    #[arg(long, requires = "committed")]
    suspend: bool,
    /// Where the journal is kept.
    #[arg(long, value_name = "DIR", default_value_os_t = journal::default_dir())]
    journal_dir: PathBuf,
}

/// Runs `pct-vmi settle`; returns the exit code.
pub async fn run(args: SettleArgs) -> anyhow::Result<u8> {
    let dir = &args.journal_dir;
    ensure!(
        args.id.bytes().all(|b| b.is_ascii_hexdigit()),
        "{:?} is not a migration's id",
        args.id
    );
    let source = journal::last(dir, &args.id, Side::Source)?;
    let destination = journal::last(dir, &args.id, Side::Destination)?;
    // On one machine (a test) both are here: the QMP socket says which side is meant.
    let socket = args.qmp.display().to_string();
    let here = [source, destination].into_iter().flatten();
    let mut here: Vec<_> = here.collect();
    if here.len() == 2 {
        here.retain(|line| line.qemu == socket);
    }
    let [line] = here.as_slice() else {
        bail!(
            "no journal of migration {} in {}: either it has ended on this host with nothing uncertain, and the guest \
             runs here or does not as QEMU says, or this is not the host",
            args.id,
            dir.display()
        );
    };
    match (line.side, line.promise) {
        (Side::Source, Promise::Commit) => {
            say(&format_args!(
                "The guest belongs to the destination: it must not run here. On the destination host run\n    {}",
                at_destination(&args.id, line.runs)
            ));
        }
        (Side::Source, _) => {
            let qmp = Qmp::connect(&args.qmp).await?;
            qemu::take_back(&qmp, line.runs).await?;
            say(&format_args!(
                "The guest was never given away: it is here, {}. End the destination's QEMU.",
                qemu::run_state(&qmp).await?
            ));
        }
        (Side::Destination, Promise::Run) => {
            take_over(&args.qmp, line.runs && !args.suspend).await?;
        }
        (Side::Destination, _) if args.committed => take_over(&args.qmp, !args.suspend).await?,
        (Side::Destination, _) => bail!(
            "this host was not told whose the guest is. On the source host run `pct-vmi settle {} --qmp SOCKET`; \
             if it says that the guest belongs to the destination, come back with --committed",
            args.id
        ),
    }
    Ok(0)
}

/// What settles a committed migration, on the destination host.
pub(super) fn at_destination(id: &str, resume: bool) -> String {
    let suspend = if resume { "" } else { " --suspend" };
    format!("pct-vmi settle {id} --qmp SOCKET --committed{suspend}")
}

async fn take_over(socket: &Path, resume: bool) -> anyhow::Result<()> {
    let qmp = Qmp::connect(socket).await?;
    if resume && qemu::run_state(&qmp).await? != "running" {
        qmp.execute("cont", json!({})).await?;
    }
    let state = qemu::run_state(&qmp).await?;
    say(&format_args!("The guest is here, {state}."));
    Ok(())
}
