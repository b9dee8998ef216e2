//! `migrate`, up to the first byte of QEMU's stream: check, greet the destination, send the plan, set QEMU up. Until
//! then nothing is changed, and afterwards every setting is put back.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use serde_json::json;
use tokio::net::{TcpStream, UnixStream};

use super::Interrupts;
use super::introspect::{Introspected, ram_blocks};
use super::journal::{Journal, Side};
use super::lan::{self, LanIn, LanOut};
use super::progress::Progress;
use super::qemu;
use super::source::{Guest, Outcome, Outgoing, Transfer};
use crate::core::digest::DigestKey;
use crate::core::dispatcher::Dispatcher;
use crate::core::plan::{Plan, PlanRun};
use crate::core::ram::RamTable;
use crate::core::wire::{self, Hello, Kind, Run, Welcome};
use crate::qmp::Qmp;
use crate::vm::LiveVm;

/// While held, QEMU must find too much left to stop the guest, whatever bandwidth it believes in.
const HELD_DOWNTIME_LIMIT_MS: u64 = 1;
/// A host that answers takes milliseconds.
const CONNECT_WAIT: Duration = Duration::from_secs(10);

/// What the operator asked for.
#[derive(Debug)]
pub struct Options {
    /// The destination's address.
    pub to: String,
    /// The part of the plan that storage serves alone; none steals freely.
    pub division: Option<f64>,
    /// The guest stays paused at the destination.
    pub suspend: bool,
    /// QEMU's downtime-limit for this migration, in milliseconds.
    pub downtime_limit_ms: Option<u64>,
    /// Where the journal is kept.
    pub journal_dir: PathBuf,
}

/// Moves `vm` to the destination.
pub async fn migrate(
    vm: &LiveVm,
    seen: Introspected,
    options: &Options,
    begun: Instant,
    progress: Progress,
) -> anyhow::Result<Outcome> {
    let Agreed {
        hello,
        welcome,
        lan,
        plan,
        table,
        was_running,
    } = agree(vm, seen, options, false).await?;
    let settings = Settings::read(&vm.qmp, options).await?;
    // From here on a Ctrl-C is an event: what was changed is put back.
    let interrupts = Interrupts::new()?;
    let (dir, side) = (&options.journal_dir, Side::Source);
    let journal = Journal::begin(dir, hello.id, side, &vm.name, was_running)?;
    let start = async {
        settings.apply(&vm.qmp, welcome.switchover_ack).await?;
        start_stream(&vm.qmp).await
    };
    let stream = match start.await {
        Ok(stream) => stream,
        Err(error) => {
            settings.put_back(&vm.qmp).await;
            journal
                .end()
                .unwrap_or_else(|error| super::note(&format!("{error:#}")));
            return Err(error);
        }
    };
    let guest = Guest {
        was_running,
        run: Run {
            resume: was_running && !options.suspend,
        },
        downtime_limit_ms: settings.downtime_limit_ms,
    };
    let may_steal = options.division.is_none();
    let outgoing = Outgoing {
        stream,
        lan,
        dispatcher: Dispatcher::new(table.pages(), plan, hello.key, may_steal),
        table,
        journal,
        guest,
        begun,
        progress,
        interrupts,
    };
    let outcome = Transfer::new(vm, outgoing).run().await;
    settings.put_back(&vm.qmp).await;
    Ok(outcome)
}

/// Two sides that know each other. Both have the plan, and nothing is changed yet.
pub(super) struct Agreed {
    hello: Hello,
    welcome: Welcome,
    pub(super) lan: (LanIn, LanOut),
    pub(super) plan: Plan,
    pub(super) table: RamTable,
    pub(super) was_running: bool,
}

/// Checks the guest, greets the destination and sends it the plan.
pub(super) async fn agree(
    vm: &LiveVm,
    seen: Introspected,
    options: &Options,
    dry_run: bool,
) -> anyhow::Result<Agreed> {
    let was_running = check_source(&vm.qmp).await?;
    let table = RamTable::new(ram_blocks(&vm.layout))?;
    let disk_bytes: Vec<u64> = seen.disks.iter().map(|disk| disk.bytes).collect();
    let hello = Hello {
        id: u128::from_le_bytes(random()?),
        key: DigestKey::fresh()?,
        ram: table.blocks().to_vec(),
        disks: seen.disks,
        qemu_version: vm.qmp.qemu_version(),
        switchover_ack: qemu::knows_capability(&vm.qmp, "switchover-ack").await?,
        dry_run,
    };
    let (mut lan_in, lan_out, welcome) = greet(&options.to, &hello).await?;
    let mut runs = seen.runs;
    runs.retain(|run| welcome.readable.get(run.disk as usize) == Some(&true));
    let plan = plan(runs, table.pages(), &disk_bytes, options.division);
    for frame in wire::plan_frames(plan.runs()) {
        if let Err(error) = lan_out.send(frame).await {
            return Err(refusal(&mut lan_in).await.unwrap_or(error));
        }
    }
    Ok(Agreed {
        hello,
        welcome,
        lan: (lan_in, lan_out),
        plan,
        table,
        was_running,
    })
}

/// Why the destination ended the connection, if it has said so.
async fn refusal(lan_in: &mut LanIn) -> Option<anyhow::Error> {
    let frame = lan_in.receive().await.ok()??;
    matches!(frame.0, Kind::Abort)
        .then(|| anyhow!("the destination refuses: {}", wire::abort_reason(&frame.1)))
}

/// The plan of these runs, or the part of it that storage shall serve alone.
fn plan(runs: Vec<PlanRun>, pages: u32, disk_bytes: &[u64], division: Option<f64>) -> Plan {
    // A page map that cannot be is one more way for a hint to be wrong.
    let plan = Plan::new(runs, pages, disk_bytes).unwrap_or_else(|error| {
        super::note(&format!(
            "the page map is not used, all pages go over the LAN: {error}"
        ));
        Plan::default()
    });
    match division {
        Some(part) => plan.truncated((f64::from(plan.pages()) * part).round() as u32),
        None => plan,
    }
}

pub(super) fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| anyhow!("no random numbers: {error}"))?;
    Ok(bytes)
}

/// Refuses what cannot be migrated, before anything is touched. Whether the guest runs.
async fn check_source(qmp: &Qmp) -> anyhow::Result<bool> {
    let state = qemu::run_state(qmp).await?;
    let was_running = match state.as_str() {
        "running" => true,
        "paused" | "prelaunch" | "suspended" => false,
        "postmigrate" => bail!(
            "the guest was migrated away before (state postmigrate); if it is to run here again, continue it with QMP cont first"
        ),
        other => {
            bail!("the guest is in state {other}; only a running or paused one can be migrated")
        }
    };
    match qemu::migration_status(qmp).await?.as_str() {
        "" | "none" | "completed" | "failed" | "cancelled" => {}
        other => bail!(
            "a migration of this guest is under way already (state {other}); let it end or migrate_cancel it"
        ),
    }
    qemu::refuse_unknown_capabilities(qmp, "source").await?;
    qemu::refuse_blockers(qmp).await?;
    Ok(was_running)
}

async fn greet(to: &str, hello: &Hello) -> anyhow::Result<(LanIn, LanOut, Welcome)> {
    let connect = tokio::time::timeout(CONNECT_WAIT, TcpStream::connect(to)).await;
    let stream = connect.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).with_context(|| {
        format!("cannot connect to {to}; is `pct-vmi receive --listen {to}` running on the destination host?")
    })?;
    let (mut lan_in, lan_out) = lan::open(stream)
        .await
        .with_context(|| format!("{to} is no destination"))?;
    lan_out
        .send(wire::message_frame(Kind::Hello, hello))
        .await?;
    let answer = lan_in
        .receive()
        .await?
        .context("the destination closed the connection instead of a welcome")?;
    match answer {
        (Kind::Welcome, body) => {
            let welcome = wire::parse_message(Kind::Welcome, &body)?;
            Ok((lan_in, lan_out, welcome))
        }
        (Kind::Abort, body) => bail!("the destination refuses: {}", wire::abort_reason(&body)),
        (kind, _) => bail!("the destination answered with {kind:?} instead of a welcome"),
    }
}

async fn start_stream(qmp: &Qmp) -> anyhow::Result<UnixStream> {
    let stream = qemu::socket_for_qemu(qmp, "pct-vmi", qemu::SOURCE_SOCKET_BYTES).await?;
    qmp.execute("migrate", json!({ "uri": "fd:pct-vmi" }))
        .await?;
    Ok(stream)
}

/// QEMU's migration settings as they were, and as this migration needs them.
struct Settings {
    return_path: bool,
    switchover_ack: Option<bool>,
    events: bool,
    max_bandwidth: u64,
    /// What the operator wants to hold once QEMU is let go.
    downtime_limit_ms: u64,
    old_downtime_limit_ms: u64,
    /// None where QEMU does not have it.
    avail_switchover_bandwidth: Option<u64>,
}

impl Settings {
    async fn read(qmp: &Qmp, options: &Options) -> anyhow::Result<Settings> {
        let on = qemu::capabilities_on(qmp).await?;
        let parameters = qmp.execute("query-migrate-parameters", json!({})).await?;
        let old_downtime_limit_ms = qemu::downtime_limit_ms(qmp).await?;
        let knows_ack = qemu::knows_capability(qmp, "switchover-ack").await?;
        let was_on = |name: &str| on.iter().any(|on| on == name);
        Ok(Settings {
            return_path: was_on("return-path"),
            switchover_ack: knows_ack.then(|| was_on("switchover-ack")),
            events: was_on("events"),
            max_bandwidth: parameters["max-bandwidth"].as_u64().unwrap_or(0),
            downtime_limit_ms: options.downtime_limit_ms.unwrap_or(old_downtime_limit_ms),
            old_downtime_limit_ms,
            avail_switchover_bandwidth: parameters["avail-switchover-bandwidth"].as_u64(),
        })
    }

    async fn apply(&self, qmp: &Qmp, switchover_ack: bool) -> anyhow::Result<()> {
        let mut wanted = vec![("return-path", true), ("events", true)];
        let ack = self.switchover_ack.map(|_| switchover_ack);
        wanted.extend(ack.map(|on| ("switchover-ack", on)));
        qemu::set_capabilities(qmp, &wanted).await?;
        // QEMU's own limit is for its socket, and that leads to us: the network behind limits itself.
        let held = json!({ "max-bandwidth": 0, "downtime-limit": HELD_DOWNTIME_LIMIT_MS });
        qmp.execute("migrate-set-parameters", held).await?;
        Ok(())
    }

    /// Restores them. QEMU may be gone by now; how the migration ended is what the operator must hear.
    async fn put_back(&self, qmp: &Qmp) {
        if let Err(error) = self.restore(qmp).await {
            super::note(&format!(
                "the source QEMU's migration settings were not restored: {error:#}"
            ));
        }
    }

    async fn restore(&self, qmp: &Qmp) -> anyhow::Result<()> {
        let mut old = json!({
            "max-bandwidth": self.max_bandwidth,
            "downtime-limit": self.old_downtime_limit_ms,
        });
        if let Some(bandwidth) = self.avail_switchover_bandwidth {
            old["avail-switchover-bandwidth"] = bandwidth.into();
        }
        qmp.execute("migrate-set-parameters", old).await?;
        let mut list = vec![("return-path", self.return_path), ("events", self.events)];
        list.extend(self.switchover_ack.map(|on| ("switchover-ack", on)));
        qemu::set_capabilities(qmp, &list).await?;
        Ok(())
    }
}
