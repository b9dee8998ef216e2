//! `pct-vmi scan`.

/// Arguments of `pct-vmi scan`.
#[derive(Debug, clap::Args)]
pub struct ScanArgs {
    /// QMP socket path, PID of a QEMU, or dump file.
    pub vm: String,
}

/// Runs `pct-vmi scan`; returns the exit code.
pub async fn run(_args: ScanArgs) -> anyhow::Result<u8> {
    anyhow::bail!("not built yet")
}
