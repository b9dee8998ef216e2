//! Resolves `<vm>`: a QMP socket, the PID of a QEMU, a dump file, or memflow-kvm:PID. A live VM's memory is opened
//! only after QEMU has told where it is, and nothing here changes anything in the VM.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use vmi::{Dump, GuestMemory, LiveMemory, QemuRam, RamLayout, ScanOptions, VcpuRegisters};

use crate::disks::reader::DiskReader;
use crate::disks::{self, HostDisk};
use crate::qmp::Qmp;

/// Page tables die with their process, so one of a running guest may be gone when it is used; one
/// of several is not.
const REGISTER_SAMPLES: usize = 3;

/// What the name of a KVM guest that is read through memflow's kernel module begins with.
const MEMFLOW_KVM: &str = "memflow-kvm:";

/// A VM that runs, or could, on this host.
pub struct LiveVm {
    /// As the operator named it.
    pub name: String,
    pub qmp: Qmp,
    pub pid: i32,
    pub layout: RamLayout,
    pub memory: Arc<dyn LiveMemory>,
    /// RAM that is mapped, so that small reads cost next to nothing; the rest is read through the
    /// process.
    pub mapped_bytes: u64,
}

/// What an operator can point at.
pub enum Vm {
    Live(Box<LiveVm>),
    Dump(Arc<Dump>),
    /// Memory alone, through a memflow connector.
    Connector(Arc<dyn GuestMemory>),
}

impl Vm {
    /// Its memory, whatever it is.
    pub fn memory(&self) -> Arc<dyn GuestMemory> {
        match self {
            Vm::Live(vm) => vm.memory.clone(),
            Vm::Dump(dump) => dump.clone(),
            Vm::Connector(memory) => memory.clone(),
        }
    }
}

/// Resolves a name.
///
/// # Errors
/// When it names nothing, or what it names cannot be reached; the message says what to do.
pub async fn resolve(name: &str) -> anyhow::Result<Vm> {
    if let Ok(pid) = name.parse::<i32>() {
        return Ok(Vm::Live(Box::new(from_pid(name, pid).await?)));
    }
    if let Some(pid) = name.strip_prefix(MEMFLOW_KVM) {
        let pid = pid
            .parse()
            .with_context(|| format!("{name}: {pid:?} is no PID"))?;
        return Ok(Vm::Connector(vmi::memflow_kvm(pid)?));
    }
    let path = Path::new(name);
    let kind = std::fs::metadata(path)
        .with_context(|| format!("{name} is no QMP socket, no PID and no dump file"))?
        .file_type();
    if kind.is_socket() {
        return Ok(Vm::Live(Box::new(
            LiveVm::open(name, Qmp::connect(path).await?).await?,
        )));
    }
    if !kind.is_file() {
        bail!("{name} is no QMP socket, no PID and no dump file");
    }
    Ok(Vm::Dump(Arc::new(Dump::open(path)?)))
}

/// Resolves a name that must be a live VM's.
///
/// # Errors
/// As [`resolve`], and for a dump.
pub async fn live(name: &str) -> anyhow::Result<LiveVm> {
    match resolve(name).await? {
        Vm::Live(vm) => Ok(*vm),
        Vm::Dump(_) => bail!("{name} is a dump file; name the QMP socket or the PID of a QEMU"),
        Vm::Connector(_) => {
            bail!("{name} is memory alone; name the QMP socket or the PID of the QEMU")
        }
    }
}

/// The first of the process's QMP sockets that answers.
async fn from_pid(name: &str, pid: i32) -> anyhow::Result<LiveVm> {
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline"));
    let arguments = arguments.with_context(|| format!("there is no process {pid}"))?;
    let arguments: Vec<String> = arguments
        .split(|&byte| byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect();
    let folder = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
    let mut failure = None;
    for path in qmp_sockets(&arguments) {
        match Qmp::connect(&folder.join(path)).await {
            Ok(qmp) => return LiveVm::open(name, qmp).await,
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) => {
            Err(error).with_context(|| format!("no QMP socket of process {pid} answers"))
        }
        None => bail!(
            "process {pid} has no QMP socket on its command line (is it a QEMU?); start it with \
             -qmp unix:PATH,server=on,wait=off or name the socket"
        ),
    }
}

/// Paths of the QMP sockets that a QEMU's command line names.
fn qmp_sockets(arguments: &[String]) -> Vec<PathBuf> {
    let value_of = |option: &str| {
        let long = format!("-{option}");
        let values = arguments.windows(2).filter(move |pair| {
            let given = pair[0].strip_prefix('-').map_or("", |rest| rest);
            pair[0].starts_with('-') && (given == option || given == long)
        });
        values.map(|pair| pair[1].as_str()).collect::<Vec<&str>>()
    };
    let direct = ["qmp", "qmp-pretty"].into_iter().flat_map(&value_of);
    let direct = direct.filter_map(|value| value.strip_prefix("unix:"));
    let direct = direct.filter_map(|value| suboptions(value).into_iter().next());
    let monitors = value_of("mon").into_iter().map(suboptions);
    let monitors = monitors.filter(|options| options.iter().any(|o| o == "mode=control"));
    let chardevs: Vec<String> = monitors
        .flatten()
        .map(|option| {
            option
                .strip_prefix("chardev=")
                .unwrap_or(&option)
                .to_owned()
        })
        .collect();
    let sockets = value_of("chardev")
        .into_iter()
        .map(suboptions)
        .filter_map(|options| {
            let of = |key: &str| options.iter().find_map(|option| option.strip_prefix(key));
            let is_monitor = of("id=").is_some_and(|id| chardevs.iter().any(|name| name == id));
            of("path=").filter(|_| is_monitor).map(str::to_owned)
        });
    direct.chain(sockets).map(PathBuf::from).collect()
}

/// The parts of `a,b=c,d`; a doubled comma is one comma.
fn suboptions(value: &str) -> Vec<String> {
    let parts = value.replace(",,", "\0");
    parts
        .split(',')
        .map(|part| part.replace('\0', ","))
        .collect()
}

impl LiveVm {
    async fn open(name: &str, qmp: Qmp) -> anyhow::Result<LiveVm> {
        let pid = qmp.peer_pid().filter(|&pid| pid > 0).with_context(|| {
            format!("{name}: the process behind the socket is in another PID namespace")
        })?;
        let layout = layout(&qmp)
            .await
            .with_context(|| format!("{name}: RAM layout"))?;
        let ram = QemuRam::open(pid, layout.clone()).map_err(|error| explain(error, pid))?;
        let mapped_bytes = ram.mapped_bytes();
        let (name, memory) = (name.to_owned(), Arc::new(ram));
        Ok(LiveVm {
            name,
            qmp,
            pid,
            layout,
            memory,
            mapped_bytes,
        })
    }

    /// What a scan of this VM can be told: the vCPUs' page tables, and how to read its disks (with
    /// the program `qemu_nbd`, where only QEMU can).
    /// Neither is needed: what QEMU does not tell is left out.
    pub async fn scan_options(&self, qemu_nbd: &Path) -> ScanOptions {
        let host = disks::host_disks(&self.qmp).await.unwrap_or_default();
        ScanOptions {
            read_disk: Some(read_disk(host, qemu_nbd)),
            // Last: the page tables of a process that ends are no longer there for the scan.
            vcpus: self.registers().await,
            ..ScanOptions::default()
        }
    }

    /// What the vCPUs' registers say about their address spaces, in a few looks.
    pub async fn registers(&self) -> Vec<VcpuRegisters> {
        let mut vcpus = Vec::new();
        for _ in 0..REGISTER_SAMPLES {
            let registers = self.qmp.hmp("info registers -a").await;
            vcpus.extend(vcpu_registers(&registers.unwrap_or_default()));
        }
        vcpus
    }
}

/// Reads the host's disks, opened when they are first asked for.
fn read_disk(host: Vec<HostDisk>, qemu_nbd: &Path) -> vmi::ReadDisk {
    let reader = DiskReader::new(host, qemu_nbd.to_owned());
    Box::new(move |disk, offset, buf| reader.read(disk, offset, buf))
}

/// RAM blocks with their addresses: QEMU 7.2 lists them without, but tells where an address of the
/// guest is.
async fn layout(qmp: &Qmp) -> anyhow::Result<RamLayout> {
    let mtree = qmp.hmp("info mtree -f").await?;
    let ramblock = qmp.hmp("info ramblock").await?;
    let mut layout = RamLayout::parse(&mtree, &ramblock)?;
    for index in 0..layout.ranges.len() {
        let range = layout.ranges[index];
        if layout.blocks[range.block].hva.is_none() {
            let answer = qmp.hmp(&format!("gpa2hva {:#x}", range.gpa)).await?;
            let hva = parse_hva(&answer)
                .with_context(|| format!("QEMU answers gpa2hva with {:?}", answer.trim()))?;
            layout.blocks[range.block].hva = hva.checked_sub(range.offset);
        }
    }
    Ok(layout)
}

/// `Host virtual address for 0x0 (pc.ram) is 0x7f0123456000`
fn parse_hva(answer: &str) -> Option<u64> {
    let digits = answer.trim().rsplit_once(" is 0x")?.1;
    u64::from_str_radix(digits, 16).ok()
}

/// `CR0=80050033 CR2=00000000004f0215 CR3=0000000002846000 CR4=00751eb0`, once a vCPU.
fn vcpu_registers(text: &str) -> Vec<VcpuRegisters> {
    let hex = |line: &str, register: &str| {
        let digits = line.split_once(register)?.1.split_whitespace().next()?;
        u64::from_str_radix(digits, 16).ok()
    };
    let of_line = |line| {
        Some(VcpuRegisters {
            cr3: hex(line, "CR3=")?,
            cr4: hex(line, "CR4=")?,
        })
    };
    text.lines().filter_map(of_line).collect()
}

fn explain(error: vmi::MemoryError, pid: i32) -> anyhow::Error {
    let remedy = match &error {
        vmi::MemoryError::Process { source, .. } if denied(source) => {
            "; run as root, or as QEMU's user with CAP_SYS_PTRACE"
        }
        vmi::MemoryError::File { source, .. } if denied(source) => {
            "; run as root, or as QEMU's user with CAP_SYS_PTRACE"
        }
        // A socket made by another process (libvirt) and given to QEMU names its maker.
        vmi::MemoryError::Process { .. } | vmi::MemoryError::Block { .. } => {
            "; is it the QEMU, or did another process make its QMP socket?"
        }
        _ => "",
    };
    anyhow::Error::new(error).context(format!(
        "cannot read the guest's RAM in process {pid}{remedy}"
    ))
}

fn denied(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(line: &str) -> Vec<PathBuf> {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        qmp_sockets(&arguments)
    }

    #[test]
    fn qmp_sockets_are_found_in_every_form() {
        let direct = sockets("qemu -m 1G -qmp unix:/run/a,,b.sock,server=on,wait=off -M q35");
        assert_eq!(direct, [PathBuf::from("/run/a,b.sock")]);
        let chardev = sockets(
            "qemu -chardev socket,id=c,path=/run/c,server=on -chardev socket,id=s,path=/run/s \
             -mon chardev=c,mode=control --qmp-pretty unix:/run/p",
        );
        assert_eq!(chardev, [PathBuf::from("/run/p"), PathBuf::from("/run/c")]);
        let inherited = sockets("qemu -chardev socket,id=m,fd=27 -mon chardev=m,mode=control");
        assert!(inherited.is_empty(), "{inherited:?}");
    }

    #[tokio::test]
    async fn memflow_kvm_says_what_it_lacks() {
        let refusal = |name| async move { format!("{:#}", resolve(name).await.err().unwrap()) };
        assert!(refusal("memflow-kvm:x").await.contains("no PID"));
        let lacks = vmi::memflow_kvm(1).err().unwrap();
        assert_eq!(refusal("memflow-kvm:1").await, format!("{lacks:#}"));
    }

    #[test]
    fn qemus_answers_are_read() {
        let hva = "Host virtual address for 0x0 (pc.ram) is 0x7f3d90000000\r\n";
        assert_eq!(parse_hva(hva), Some(0x7f3d_9000_0000));
        assert_eq!(parse_hva("No memory is mapped at address 0x0"), None);
        let registers = "CPU#0\nRAX=0\nCR0=80050033 CR2=0 CR3=0000000002846000 CR4=00751eb0\n\
                         CPU#1\nCR0=80050033 CR2=0 CR3=0000000002847001 CR4=00751eb0\n";
        let cr3: Vec<u64> = vcpu_registers(registers)
            .iter()
            .map(|vcpu| vcpu.cr3)
            .collect();
        assert_eq!(cr3, [0x284_6000, 0x284_7001]);
    }
}
