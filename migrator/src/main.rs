//! `pct-vmi`: parses the command line, runs one subcommand, turns its end into an exit code.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use migrator::cmd;

/// Live migration of data-intensive VMs: page cache comes from shared storage, the rest over the
/// LAN, every byte proven.
#[derive(Debug, Parser)]
#[command(name = "pct-vmi", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what a VM's page cache holds and what of it shared storage can restore.
    Scan(cmd::scan::ScanArgs),
    /// Move a running VM to the host where `pct-vmi receive` waits.
    Migrate(cmd::migrate::MigrateArgs),
    /// Wait for a VM and receive it into a QEMU started with -incoming defer.
    Receive(cmd::receive::ReceiveArgs),
    /// Make, show and export what is known of a kernel's types and symbols.
    Profile(cmd::profile::ProfileArgs),
    /// Settle whose the guest is after a handover that ended uncertain (exit code 3).
    Settle(cmd::settle::SettleArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            match cli.command {
                Command::Scan(args) => cmd::scan::run(args).await,
                Command::Migrate(args) => cmd::migrate::run(args).await,
                Command::Receive(args) => cmd::receive::run(args).await,
                Command::Profile(args) => cmd::profile::run(args).await,
                Command::Settle(args) => cmd::settle::run(args).await,
            }
        })
    });
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            migrator::run::warn(&format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
