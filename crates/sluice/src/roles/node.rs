//! The node agent's process.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use sluice_cli::Global;
use sluice_device::{CoreShare, CpuBackend, CpuConfig, LimitMode};
use sluice_identity::{Host, HostKind};
use sluice_node::supervisor::SandboxMode;
use sluice_node::{NodeConfig, vault_depots};
use sluice_types::{Bytes, CoreMilli, Name};
use tokio::sync::watch;

use super::host;
use crate::command::NodeArgs;
use crate::metrics::{self, Figures};
use crate::{process, telemetry};

/// User ids of one node's jobs.
const UIDS: u32 = 10_000;

/// Runs until a signal. Jobs run on; the next start takes them up again.
pub(crate) async fn node(arguments: NodeArgs, global: &Global) -> anyhow::Result<()> {
    telemetry::start();
    process::end_with_parent(arguments.process.with_parent)?;
    let folder = match &arguments.folder {
        Some(folder) => folder.clone(),
        None => global.data_dir().context("cannot tell where the data folder is")?.join("node"),
    };
    sluice_identity::private_folder(&folder).context("cannot make the folder")?;
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname().context("the machine's name")?.to_string_lossy().into_owned(),
    };
    let name: Name = name.parse().context("the node's name")?;
    let host = host::identity(&folder, &arguments.join, HostKind::Node(name.to_string())).await?;
    let stop = process::stop_signal()?;
    let (config, backend) = config(&arguments, &folder, name, &host)?;
    let figures = Arc::clone(&config.metrics);
    let figures: Figures = Arc::new(move || {
        figures.figures().into_iter().map(|(name, _, value)| (format!("sluice_node_{name}"), value)).collect()
    });
    metrics::serve(arguments.process.metrics, &folder, figures, stop.clone()).await?;
    let (renewed, _) = watch::channel(0);
    tokio::spawn(host::keep_renewed(host, stop.clone(), renewed));
    sluice_node::run(config, stop).await.context("the node agent ended")?;
    backend.retire();
    Ok(())
}

fn config(
    arguments: &NodeArgs,
    folder: &Path,
    name: Name,
    host: &Host,
) -> anyhow::Result<(NodeConfig, Arc<CpuBackend>)> {
    let cores = match &arguments.cores {
        Some(list) => CoreShare::parse_list(list)?,
        None => all_cores(arguments.system_milli)?,
    };
    let memory = match arguments.memory {
        Some(memory) => memory,
        None => half_of_memory()?,
    };
    let backend = Arc::new(CpuBackend::open(CpuConfig {
        // Several systems may share a host: the site's id keeps their control groups apart.
        node: format!("{name}-{}", &host.id()[5..]).parse().context("the node's name")?,
        class: "cpu".parse().context("the class of processors")?,
        cores,
        memory,
        mode: if arguments.advisory { LimitMode::Advisory } else { LimitMode::Enforce },
        parent: "sluice".to_owned(),
        state: folder.join("device"),
    })?);
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let mut config = NodeConfig::new(folder.join("agent"), name, backend.clone(), program);
    config.controllers = host::controllers(host, &arguments.join);
    config.advertise.clone_from(&arguments.advertise);
    let (up, vault) = (host.clone(), host.clone());
    config.tls = Arc::new(move || Some(up.controller_tls()));
    config.depots = vault_depots(Arc::new(move || Some(vault.vault_tls())));
    config.uids = arguments.first_uid..arguments.first_uid.saturating_add(UIDS);
    if arguments.advisory {
        config.sandbox.mode = SandboxMode::Advisory;
    }
    Ok((config, backend))
}

fn all_cores(system_milli: u32) -> anyhow::Result<Vec<CoreShare>> {
    let count = std::thread::available_parallelism().context("cannot count the cores")?.get();
    let share = CoreMilli::new(1000u32.saturating_sub(system_milli).max(1));
    (0..u32::try_from(count)?).map(|core| Ok(CoreShare { core, share })).collect()
}

/// Half of the machine's memory: the rest is the system's and the page cache's. Rounded, because hosts that were bought
/// together differ by some pages, and the scheduler looks once at all devices that are alike.
pub(crate) fn half_of_memory() -> anyhow::Result<Bytes> {
    let text = std::fs::read_to_string("/proc/meminfo").context("cannot read the memory's size")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).context("no MemTotal in /proc/meminfo")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("MemTotal is not a number")?;
    let half = Bytes::new(kib * 1024 / 2);
    let round = Bytes::mib(256);
    Ok(if half < round { half } else { Bytes::new(half.get() / round.get() * round.get()) })
}
