//! `pct-vmi profile`: makes, shows and exports what is known of a kernel's types and symbols. It reads
//! a VM or files and writes nothing but the file that it is told to.

mod show;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Subcommand;
use profiles::source::Files;
use profiles::{Profile, store};

use crate::cmd::EXIT_CODES;
use crate::run::{say, warn};
use crate::vm::{self, Vm};

/// Kernels with all their debug information have 0.7 GB.
const FILE_BYTES_MAX: u64 = 4 << 30;

/// Arguments of `pct-vmi profile`.
#[derive(Debug, clap::Args)]
pub struct ProfileArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a profile from files of a kernel.
    ///
    /// A VM needs none: what it tells of itself is enough on kernels that have BTF of their modules.
    /// The kind of each file is recognised by its content: vmlinux or a module (.ko) with debug
    /// information or BTF, or the separate debug file of either; vmlinuz; BTF as in /sys/kernel/btf;
    /// System.map; Volatility 3's ISF; a profile to be completed. Each may be compressed.
    #[command(after_help = EXIT_CODES)]
    Generate(GenerateArgs),
    /// Show what is known of a kernel: of a VM from its own memory, or from files.
    #[command(after_help = EXIT_CODES)]
    Show(ShowArgs),
    /// Write what a VM's kernel, or files of one, say of all its types and symbols in another form.
    #[command(after_help = EXIT_CODES)]
    Export(ExportArgs),
}

#[derive(Debug, Default, clap::Args)]
struct FilesArgs {
    /// The kernel's System.map, where no other file has its symbols.
    #[arg(long, value_name = "FILE")]
    system_map: Option<PathBuf>,
    /// The kernel's release (uname -r), where the files do not tell.
    #[arg(long)]
    release: Option<String>,
    /// The kernel's build id in hexadecimal, where the files do not tell.
    #[arg(long, value_name = "HEX", value_parser = parse_build_id)]
    build_id: Option<String>,
}

#[derive(Debug, clap::Args)]
struct GenerateArgs {
    /// Files of one kernel.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    more: FilesArgs,
    /// Where to write the profile [default: standard output].
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// QMP socket path, PID of a QEMU or dump file; or files of one kernel, as `generate` takes them.
    #[arg(required = true)]
    from: Vec<PathBuf>,
    #[command(flatten)]
    more: FilesArgs,
    /// Print the profile's JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct ExportArgs {
    /// As ISF, the JSON that Volatility 3 reads.
    #[arg(long, required = true)]
    isf: bool,
    /// QMP socket path, PID of a QEMU or dump file; or files of one kernel: its vmlinux or vmlinuz,
    /// modules with BTF.
    #[arg(required = true)]
    from: Vec<PathBuf>,
    /// Where to write; a name that ends in .xz is compressed [default: standard output].
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs `pct-vmi profile`; returns the exit code.
///
/// # Errors
/// When what is named cannot be read, or lacks what a profile has to have.
pub async fn run(args: ProfileArgs) -> anyhow::Result<u8> {
    match args.command {
        Command::Generate(args) => {
            let profile = load(&args.files, &args.more)?.profile()?;
            for problem in show::problems(&profile) {
                warn(&problem);
            }
            write(args.output.as_deref(), profile.to_json().as_bytes())?;
        }
        Command::Show(args) => {
            let profile = match vm_of(&args.from).await? {
                Some(vm) => profile_of(&vm).await?,
                None => load(&args.from, &args.more)?.profile()?,
            };
            if args.json {
                write(None, profile.to_json().as_bytes())?;
            } else {
                say(&show::text(&profile).trim_end());
            }
        }
        Command::Export(args) => {
            let isf = match vm_of(&args.from).await? {
                Some(vm) => isf_of(&vm).await?,
                None => load(&args.from, &FilesArgs::default())?.isf()?,
            };
            let is_xz =
                |path: &PathBuf| path.extension().is_some_and(|extension| extension == "xz");
            if args.output.as_ref().is_some_and(is_xz) {
                write(
                    args.output.as_deref(),
                    &profiles::source::xz(isf.as_bytes())?,
                )?;
            } else {
                write(args.output.as_deref(), isf.as_bytes())?;
            }
        }
    }
    Ok(0)
}

/// The VM or dump that is named; None where files of a kernel are.
async fn vm_of(from: &[PathBuf]) -> anyhow::Result<Option<Vm>> {
    let [name] = from else {
        return Ok(None);
    };
    let mut start = Vec::new();
    if name.is_file() {
        let file = std::fs::File::open(name)?;
        file.take(profiles::source::KIND_BYTES)
            .read_to_end(&mut start)?;
    }
    if profiles::source::is_of_kernel(&start) {
        return Ok(None);
    }
    let name = name.to_str().context("the name is not UTF-8")?;
    vm::resolve(name).await.map(Some)
}

async fn registers(vm: &Vm) -> Vec<vmi::VcpuRegisters> {
    match vm {
        Vm::Live(vm) => vm.registers().await,
        Vm::Dump(_) | Vm::Connector(_) => Vec::new(),
    }
}

/// What a guest tells of itself, and what comes with pct-vmi of its kernel; nothing that is kept.
async fn profile_of(vm: &Vm) -> anyhow::Result<Profile> {
    let (memory, vcpus) = (vm.memory(), registers(vm).await);
    let attach = move || {
        let kernel = vmi::attach(memory.as_ref(), &vcpus, &vmi::Profiles::default())?;
        Ok(kernel.profile().clone())
    };
    tokio::task::spawn_blocking(attach).await?
}

async fn isf_of(vm: &Vm) -> anyhow::Result<String> {
    let (memory, vcpus) = (vm.memory(), registers(vm).await);
    Ok(tokio::task::spawn_blocking(move || vmi::isf(memory.as_ref(), &vcpus)).await??)
}

fn load(paths: &[PathBuf], more: &FilesArgs) -> anyhow::Result<Files<'static>> {
    let mut files = Files::default();
    files.release = more.release.clone();
    files.build_id = more.build_id.clone();
    for path in paths.iter().chain(&more.system_map) {
        files.add(path, read(path)?.into())?;
    }
    Ok(files)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let failed = || format!("cannot read {}", path.display());
    let bytes = std::fs::metadata(path).with_context(failed)?.len();
    if bytes > FILE_BYTES_MAX {
        bail!("{} has {bytes} bytes: no file of a kernel", path.display());
    }
    std::fs::read(path).with_context(failed)
}

/// Writes a whole file or none, or to standard output.
fn write(path: Option<&Path>, bytes: &[u8]) -> anyhow::Result<()> {
    let Some(path) = path else {
        let mut out = std::io::stdout().lock();
        return out
            .write_all(bytes)
            .and_then(|()| out.flush())
            .context("cannot write");
    };
    store::write_whole(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn parse_build_id(text: &str) -> Result<String, String> {
    let is_hex = text.len().is_multiple_of(2) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if text.is_empty() || !is_hex {
        return Err("expected hexadecimal digits, as `file vmlinux` prints them".into());
    }
    Ok(text.to_ascii_lowercase())
}
