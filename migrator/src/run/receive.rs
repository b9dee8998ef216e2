//! `receive`, up to the first byte for QEMU: listen, greet, check that both sides fit, take the plan. Until
//! then QEMU is untouched, so whatever fails, the operator can simply try again.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use san_io::Fault;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream, UnixStream};

use super::Interrupts;
use super::destination::{Incoming, Outcome, Transfer};
use super::journal::{Journal, Side};
use super::lan::{self, LanIn, LanOut};
use super::qemu;
use super::rehearsal;
use super::storage::{self, Disks, Storage};
use crate::core::plan::{Plan, PlanRun};
use crate::core::ram::RamTable;
use crate::core::wire::{self, Hello, Kind, Welcome, WireRun};
use crate::disks::image::GivenDisk;
use crate::qmp::Qmp;

/// A peer that connects and says nothing does not hold up the listener for longer.
const HELLO_WAIT: Duration = Duration::from_secs(5);

/// A source that is silent in the middle of its plan does not hold up QEMU for longer: its frames follow one another.
const PLAN_WAIT: Duration = Duration::from_secs(20);

/// A rehearsal takes seconds, also where the plan is long. One that hangs keeps others waiting no longer than this.
const REHEARSAL_MAX: Duration = Duration::from_secs(60);

/// How often disks are tried that cannot be opened after a rehearsal.
const REOPENED_EVERY: Duration = Duration::from_secs(1);

/// What the operator asked for.
#[derive(Debug)]
pub struct Options {
    /// Address to listen on.
    pub listen: String,
    /// QMP socket of a QEMU started with `-incoming defer`.
    pub qmp: PathBuf,
    /// Where disks are, if not where QEMU has them.
    pub disks: Vec<GivenDisk>,
    /// The program that reads what only QEMU can read.
    pub qemu_nbd: PathBuf,
    /// Where the journal is kept.
    pub journal_dir: PathBuf,
    /// A read that has not completed after this time is given up; the LAN carries its pages.
    pub stall_ms: u64,
    /// For tests only.
    pub fault: Option<Fault>,
}

/// Receives one guest into the QEMU behind `options.qmp`. `ready` is called with the address listened on.
pub async fn receive(
    options: &Options,
    ready: impl FnOnce(std::net::SocketAddr),
) -> anyhow::Result<Outcome> {
    let qmp = Qmp::connect(&options.qmp).await?;
    check_destination(&qmp).await?;
    let mut disks = Disks::open(&qmp, &options.disks, &options.qemu_nbd).await?;
    let listener = TcpListener::bind(&options.listen)
        .await
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    ready(listener.local_addr()?);
    let mut interrupts = Interrupts::new()?;
    let come_about = async {
        let (lan, hello) = loop {
            let (lan, hello) = accept(&listener).await?;
            if !hello.dry_run {
                break (lan, hello);
            }
            rehearse(&qmp, lan, &hello, disks, options).await;
            disks = reopen(&qmp, options).await;
        };
        drop(listener);
        let agreed = agree(&qmp, lan, &hello, disks, options).await?;
        anyhow::Ok((hello, agreed))
    };
    let come_about = tokio::select! {
        come_about = come_about => come_about,
        () = interrupts.next() => Err(anyhow!("interrupted")),
    };
    let (hello, agreed) =
        come_about.context("no migration came about; QEMU waits on, receive can be run again")?;
    let Agreed {
        welcome,
        lan: (lan_in, lan_out),
        plan,
        table,
        storage,
    } = agreed;
    let begun = begin(&qmp, &hello, &welcome, options).await;
    let (journal, stream) = match begun {
        Ok(begun) => begun,
        Err(error) => return Err(turn_away(lan_out, &error).await),
    };
    let lan = (lan_in, lan_out);
    let key = hello.key;
    let incoming = Incoming {
        stream,
        lan,
        storage,
        plan,
        table,
        key,
        journal,
        interrupts,
    };
    Ok(Transfer::new(&qmp, incoming).run().await)
}

/// Two sides that know each other. Both have the plan, and QEMU is untouched.
struct Agreed {
    welcome: Welcome,
    lan: (LanIn, LanOut),
    plan: Plan,
    table: RamTable,
    storage: Storage,
}

/// Answers the source's Hello, and takes its plan. A source that is refused is told why.
async fn agree(
    qmp: &Qmp,
    (mut lan_in, lan_out): (LanIn, LanOut),
    hello: &Hello,
    disks: Disks,
    options: &Options,
) -> anyhow::Result<Agreed> {
    let agree = async {
        let (table, storage, welcome) = prepare(qmp, hello, disks, options).await?;
        let frame = wire::message_frame(Kind::Welcome, &welcome);
        lan_out.send(frame).await?;
        let plan = receive_plan(&mut lan_in, &table, &storage.disk_bytes(&hello.disks)).await?;
        anyhow::Ok((table, storage, welcome, plan))
    };
    match agree.await {
        Ok((table, storage, welcome, plan)) => Ok(Agreed {
            welcome,
            lan: (lan_in, lan_out),
            plan,
            table,
            storage,
        }),
        Err(error) => Err(turn_away(lan_out, &error).await),
    }
}

/// Tells the source why nothing comes of it, and returns that, made fit for a terminal: it may repeat what the source said.
async fn turn_away(lan_out: LanOut, error: &anyhow::Error) -> anyhow::Error {
    let reason = wire::abort_reason(format!("{error:#}").as_bytes());
    // A source that is gone does not hear it.
    let _ = lan_out.send(wire::abort_frame(&reason)).await;
    lan_out.finish().await;
    anyhow!(reason)
}

/// The first that is changed: the journal begins, and QEMU waits for its stream.
async fn begin(
    qmp: &Qmp,
    hello: &Hello,
    welcome: &Welcome,
    options: &Options,
) -> anyhow::Result<(Journal, UnixStream)> {
    let qmp_name = options.qmp.display().to_string();
    // Whether the guest is to run is said with Run.
    let (dir, side) = (&options.journal_dir, Side::Destination);
    let journal = Journal::begin(dir, hello.id, side, &qmp_name, false)?;
    match start_incoming(qmp, welcome.switchover_ack).await {
        Ok(stream) => Ok((journal, stream)),
        Err(error) => {
            journal
                .end()
                .unwrap_or_else(|error| super::note(&format!("{error:#}")));
            Err(error)
        }
    }
}

/// Serves one rehearsal. However it ends, the next source is waited for.
async fn rehearse(qmp: &Qmp, lan: (LanIn, LanOut), hello: &Hello, disks: Disks, options: &Options) {
    let serve = async {
        let Agreed {
            lan, plan, storage, ..
        } = agree(qmp, lan, hello, disks, options).await?;
        rehearsal::destination::serve(lan, &plan, storage).await
    };
    match tokio::time::timeout(REHEARSAL_MAX, serve).await {
        Ok(Ok(carried)) => super::note(&format!(
            "a rehearsal: {} MiB came over the LAN and {} MiB from storage; waiting on",
            carried.lan_bytes >> 20,
            carried.san_bytes >> 20
        )),
        Ok(Err(error)) => super::note(&format!("a rehearsal failed, waiting on: {error:#}")),
        Err(_) => super::note("a rehearsal took too long, waiting on"),
    }
}

/// The disks once more, after a rehearsal has used them up. Storage that is away for a while ends nothing.
async fn reopen(qmp: &Qmp, options: &Options) -> Disks {
    let mut noted = false;
    loop {
        let opened = Disks::open(qmp, &options.disks, &options.qemu_nbd).await;
        match opened {
            Ok(disks) => return disks,
            Err(error) if !std::mem::replace(&mut noted, true) => super::note(&format!(
                "after the rehearsal the disks cannot be opened, trying on: {error:#}"
            )),
            Err(_) => {}
        }
        tokio::time::sleep(REOPENED_EVERY).await;
    }
}

/// Refuses a QEMU that cannot receive.
async fn check_destination(qmp: &Qmp) -> anyhow::Result<()> {
    let state = qemu::run_state(qmp).await?;
    ensure!(
        state == "inmigrate",
        "the destination QEMU is in state {state}; start it with the source's options and -incoming defer"
    );
    let status = qemu::migration_status(qmp).await?;
    ensure!(
        matches!(status.as_str(), "" | "none"),
        "the destination QEMU receives a migration already (state {status}); start it with -incoming defer"
    );
    qemu::refuse_unknown_capabilities(qmp, "destination").await
}

/// Waits for a source. Whatever else connects is told off and forgotten.
async fn accept(listener: &TcpListener) -> anyhow::Result<((LanIn, LanOut), Hello)> {
    loop {
        let (stream, peer) = listener
            .accept()
            .await
            .context("cannot accept a connection")?;
        match hello(stream).await {
            Ok(accepted) => return Ok(accepted),
            Err(error) => super::note(&format!("{peer} is turned away: {error:#}")),
        }
    }
}

async fn hello(stream: TcpStream) -> anyhow::Result<((LanIn, LanOut), Hello)> {
    let (mut lan_in, lan_out) = lan::open(stream).await?;
    let first = tokio::time::timeout(HELLO_WAIT, lan_in.receive()).await;
    match first.context("no Hello in time")?? {
        Some((Kind::Hello, body)) => {
            let hello = wire::parse_message(Kind::Hello, &body)?;
            Ok(((lan_in, lan_out), hello))
        }
        Some((kind, _)) => bail!("{kind:?} instead of Hello"),
        None => bail!("closed without a Hello"),
    }
}

/// Checks that this QEMU fits the source's, and opens the disks that the plan will name.
async fn prepare(
    qmp: &Qmp,
    hello: &Hello,
    disks: Disks,
    options: &Options,
) -> anyhow::Result<(RamTable, Storage, Welcome)> {
    let table = RamTable::new(hello.ram.clone())?;
    storage::check_ram(qmp, &hello.ram).await?;
    let storage = Storage::start(disks, &hello.disks, options.stall_ms, options.fault)?;
    let switchover_ack =
        hello.switchover_ack && qemu::knows_capability(qmp, "switchover-ack").await?;
    let readable = storage.readable();
    let welcome = Welcome {
        qemu_version: qmp.qemu_version(),
        switchover_ack,
        readable,
    };
    Ok((table, storage, welcome))
}

async fn receive_plan(
    lan_in: &mut LanIn,
    table: &RamTable,
    disk_bytes: &[u64],
) -> anyhow::Result<Plan> {
    let mut runs: Vec<PlanRun> = Vec::new();
    loop {
        let frame = tokio::time::timeout(PLAN_WAIT, lan_in.receive()).await;
        let frame = frame.context("the source says nothing more before its plan is whole")??;
        let frame = frame.context("the source closed the connection before the plan was whole")?;
        match frame {
            (Kind::Plan, body) => {
                let more = wire::parse_array::<WireRun>(Kind::Plan, &body)?;
                // Checked here as well, so that memory is bounded before the whole plan is.
                ensure!(
                    runs.len() + more.len() <= table.pages() as usize,
                    "the plan has more runs than guest RAM has pages"
                );
                runs.extend(more.iter().map(PlanRun::from));
            }
            (Kind::PlanEnd, _) => return Ok(Plan::new(runs, table.pages(), disk_bytes)?),
            (Kind::Abort, body) => bail!("the source gave up: {}", wire::abort_reason(&body)),
            (kind, _) => bail!("the source sent {kind:?} instead of the plan"),
        }
    }
}

/// Makes QEMU wait for the stream on a socket of ours, and stay paused once it has it.
async fn start_incoming(qmp: &Qmp, switchover_ack: bool) -> anyhow::Result<UnixStream> {
    let mut capabilities = vec![
        ("return-path", true),
        ("events", true),
        ("late-block-activate", true),
    ];
    if switchover_ack {
        capabilities.push(("switchover-ack", true));
    }
    qemu::set_capabilities(qmp, &capabilities).await?;
    // Clears autostart: a loaded guest stays paused until the handover says otherwise.
    qmp.execute("stop", json!({})).await?;
    let stream = qemu::socket_for_qemu(qmp, "pct-vmi", qemu::DESTINATION_SOCKET_BYTES).await?;
    qmp.execute("migrate-incoming", json!({ "uri": "fd:pct-vmi" }))
        .await?;
    Ok(stream)
}
