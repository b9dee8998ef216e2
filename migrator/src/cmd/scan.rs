//! `pct-vmi scan`: what a VM's page cache holds, and what of it shared storage can restore. It
//! reads the guest and its disks and changes neither.

mod report;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use vmi::{GuestMemory, Scan, ScanOptions};

use crate::disks::image::{GivenDisk, Image};
use crate::disks::qemu_nbd::QemuNbdArgs;
use crate::disks::{self, HostDisk, match_disks};
use crate::run::say;
use crate::vm::{self, Vm};
use report::Report;
use verify::Verified;

/// Exit code when --verify found pages that differ from their blocks.
const DIFFERENT: u8 = 4;

/// Arguments of `pct-vmi scan`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes:
  0  done
  1  failed: no such VM, no Linux guest, or nothing to verify against; the message says why
  2  the command line is wrong
  4  --verify found pages that differ from their blocks (a running guest may write meanwhile)")]
pub struct ScanArgs {
    /// QMP socket path, PID of a QEMU, dump file (raw RAM, ELF from dump-guest-memory, LiME), or
    /// memflow-kvm:PID to read through memflow's kernel module.
    pub vm: String,
    /// List the files with the most cached pages; 20 of them, or as many as given.
    #[arg(long, value_name = "COUNT", num_args = 0..=1, default_missing_value = "20")]
    pub files: Option<usize>,
    /// Read the block of every restorable page from the disk, with O_DIRECT and so past the host's
    /// page cache, and compare.
    #[arg(long)]
    pub verify: bool,
    /// Where a disk of the guest is, as for a dump, or in place of what QEMU says: a raw file or block
    /// device, nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, or none; may be repeated.
    #[arg(long, value_name = "NAME=IMAGE")]
    pub disk: Vec<GivenDisk>,
    #[command(flatten)]
    pub reading: QemuNbdArgs,
    #[command(flatten)]
    pub profile: super::ProfileArgs,
    /// Print JSON lines, the last of them a summary.
    #[arg(long)]
    pub json: bool,
}

/// Runs `pct-vmi scan`; returns the exit code.
///
/// # Errors
/// When the VM or its kernel cannot be read.
pub async fn run(args: ScanArgs) -> anyhow::Result<u8> {
    let vm = vm::resolve(&args.vm).await?;
    let (host, mut options) = match &vm {
        Vm::Live(live) => (
            disks::host_disks(&live.qmp).await?,
            live.scan_options(&args.reading.qemu_nbd).await,
        ),
        Vm::Dump(_) | Vm::Connector(_) => (Vec::new(), ScanOptions::default()),
    };
    options.profiles = args.profile.profiles()?;
    options.files_max = args.files.unwrap_or(0);
    let memory = vm.memory();
    let scan = {
        let memory = memory.clone();
        tokio::task::spawn_blocking(move || vmi::scan(memory.as_ref(), &options)).await??
    };
    let backings = backings(&scan, &host, &args.disk)?;
    let verified = match args.verify {
        true => Some(verify(&scan, &backings, args.reading.qemu_nbd, memory).await?),
        false => None,
    };
    let report = Report {
        vm: &vm,
        scan: &scan,
        backings: &backings,
        verified: verified.as_ref(),
    };
    if args.json {
        report.json(&mut std::io::stdout().lock())?;
    } else {
        say(&report.text().trim_end());
    }
    Ok(if verified.is_some_and(|verified| verified.different > 0) {
        DIFFERENT
    } else {
        0
    })
}

/// What holds a disk of the guest on this host, or why that is not known.
pub(crate) type Backing = Result<Image, String>;

fn backings(scan: &Scan, host: &[HostDisk], given: &[GivenDisk]) -> anyhow::Result<Vec<Backing>> {
    let in_guest = |given: &GivenDisk| scan.disks.iter().any(|disk| disk.name == given.name);
    if let Some(GivenDisk { name, .. }) = given.iter().find(|given| !in_guest(given)) {
        let names: Vec<&str> = scan.disks.iter().map(|disk| disk.name.as_str()).collect();
        bail!(
            "--disk {name}: the guest has no such disk; it has {}",
            names.join(", ")
        );
    }
    let matched = match_disks(&scan.disks, host);
    let backing = |(disk, matched): (&vmi::GuestDisk, Result<&HostDisk, disks::Unmatched>)| match (
        given.iter().find(|given| given.name == disk.name),
        matched,
    ) {
        (Some(given), _) => given.image.clone().ok_or("left out by --disk".into()),
        (None, Ok(host)) => Ok(host.image.clone()),
        (None, Err(_)) if host.is_empty() => Err("not known without QMP".into()),
        (None, Err(why)) => Err(why.to_string()),
    };
    Ok(scan.disks.iter().zip(matched).map(backing).collect())
}

async fn verify(
    scan: &Scan,
    backings: &[Backing],
    qemu_nbd: PathBuf,
    memory: Arc<dyn GuestMemory>,
) -> anyhow::Result<Verified> {
    let mut images = vec![None; backings.len()];
    for run in &scan.page_map {
        match (&mut images[run.disk], &backings[run.disk]) {
            (image @ None, Ok(backing)) => *image = Some(backing.clone()),
            (_, Err(why)) => {
                let name = &scan.disks[run.disk].name;
                bail!(
                    "--verify: disk {name} holds pages, but {why}; name it with --disk {name}=IMAGE"
                );
            }
            _ => {}
        }
    }
    let runs = scan.page_map.clone();
    tokio::task::spawn_blocking(move || verify::verify(&runs, &images, &qemu_nbd, memory.as_ref()))
        .await?
        .context("--verify")
}
