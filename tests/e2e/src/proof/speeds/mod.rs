//! A served model beside llama.cpp's own server: the same weights, prompts and cores, in turns, over HTTP.
//!
//! Everything but the slice (client, controller, agent, vault) is on another core. The peer is in a group that is set as the
//! slice's is. Rounds alternate, so that what the machine does otherwise meets both.

mod cold;
mod judge;
mod loads;
mod peer;
mod place;
mod stream;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use self::judge::Round;
use self::loads::Numbers;
use self::peer::{Peer, Running};
use self::place::{Cores, Groups};
use self::stream::Target;
use super::{serves, watched};
use crate::figure::Figure;
use crate::system::{Options, System};
use crate::{groups, processes, wait_for};

/// How long anything may take before it counts as never.
const PATIENCE: Duration = Duration::from_secs(120);
/// Tokens of context of each sequence, and sequences at once.
const CONTEXT: u32 = 2_304;
const SEQUENCES: u32 = 8;
/// The only node.
const NODE: &str = "a/a1";
/// Between two loads, so that what was cut off is over.
const CALM: Duration = Duration::from_millis(700);

/// What there is to choose.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// Rounds of all loads; medians count.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Lone streams of each server in a round.
    #[arg(long, default_value_t = 8)]
    pub lone: usize,
    /// Starts from nothing.
    #[arg(long, default_value_t = 5)]
    pub cold: usize,
    /// llama.cpp's server; default: what SLUICE_PEER names.
    #[arg(long, value_name = "FILE")]
    pub peer: Option<PathBuf>,
    /// The model's file.
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Leaves the system's folder to be looked at.
    #[arg(long)]
    pub keep: bool,
}

/// Runs it. To be called once per process, before it has threads.
///
/// # Errors
/// The system does not come up, or something never happens.
pub fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let metric = "speed beside llama.cpp's own server";
    let program = match peer::program(plan.peer.as_ref()) {
        Ok(program) => program,
        Err(why) => return Ok(vec![Figure::skipped(metric, &why)]),
    };
    let Some(model) = serves::model(plan.model.as_ref()) else {
        return Ok(vec![Figure::skipped(metric, "there is no model: scripts/setup.sh --tests fetches one")]);
    };
    let Some(cores) = Cores::find()? else {
        return Ok(vec![Figure::skipped(metric, "it needs two cores: one for the engine, one for everybody else")]);
    };
    // What is started while this is so sells only this core.
    place::pin(0, cores.engine)?;
    let options = Options { sites: 1, nodes: 1, no_restart: true, system_milli: Some(0), ..Options::default() };
    let system = System::start("speeds", options)?;
    place::pin_all(&everybody(&system)?, cores.driver);
    watched(system, plan.keep, |system| figures(system, plan, &model, &program, cores))
}

/// This process, and all of the system that runs now.
fn everybody(system: &System) -> anyhow::Result<Vec<i32>> {
    let mut all = processes::started_in(&system.data);
    all.push(i32::try_from(std::process::id())?);
    Ok(all)
}

fn figures(system: &System, plan: &Plan, model: &Path, program: &Path, cores: Cores) -> anyhow::Result<Vec<Figure>> {
    let (red, blue) = (serves::tenant(system, "red")?, serves::tenant(system, "blue")?);
    red.cli.well(&["model", "import", &model.display().to_string(), "--name", "small", "--requantize", "Q4_0"])?;
    let (context, sequences) = (CONTEXT.to_string(), SEQUENCES.to_string());
    let words =
        ["serve", "small", "--name", "one", "--replicas", "0..1", "--slice", "1", "--memory", "3GiB", "--public"];
    red.cli.well(&[&words[..], &["--context", &context, "--sequences", &sequences, "--idle", "1s"]].concat())?;
    let target = |model: &str, key: &str| Target {
        address: system.gateway(),
        model: model.to_owned(),
        key: Some(key.to_owned()),
    };
    let own = target("one", &red.secret);
    let other = target("red/default/one", &blue.secret);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut numbers = Numbers::default();
    let mut all = vec![Figure::seen("load of the machine before", load_average())];
    let colds = cold::starts(system, &red, plan.cold, &runtime, &own)?;
    let slice = begin(system, &red, cores)?;
    runtime.block_on(loads::lone(&own, &mut numbers)).context("the first answer")?;
    let like = Groups::like(&slice)?;
    let peer = Peer {
        program: program.to_owned(),
        model: weights(system)?,
        log: system.scratch().join("llama-server.log"),
        context: CONTEXT,
        sequences: SEQUENCES,
    };
    let peer_cold = cold::of_peer(&peer, &like, plan.cold, &runtime)?;
    all.push(Figure::seen("the slice and the peer's group", place::told(&slice)));
    all.extend(cold::judge(&colds, &peer_cold));
    let mut rounds = Vec::new();
    for number in 0..plan.rounds {
        // Each with new processes: where the kernel puts their memory makes some of them faster than others.
        end(system, &red)?;
        let slice = begin(system, &red, cores)?;
        let peers = Peers { usual: peer.start(&like, &[])?, small: peer.start(&like, &["--batch-size", "128"])? };
        for target in [&own, &peers.usual.target] {
            runtime.block_on(loads::lone(target, &mut numbers)).context("the first answer")?;
        }
        let round = runtime.block_on(round(plan, (&own, &other), &peers, (&slice, &like), &mut numbers))?;
        eprintln!("round {}: {round:?}", number + 1);
        rounds.push(round);
    }
    all.extend(judge::figures(&rounds));
    Ok(all)
}

/// Has a replica started, and keeps everything else off its core.
fn begin(system: &System, owner: &serves::Tenant, cores: Cores) -> anyhow::Result<Vec<PathBuf>> {
    owner.cli.well(&["endpoint", "update", "one", "--replicas", "1..1"])?;
    let slice = wait_for("a slice", PATIENCE, || {
        let found = groups::tasks_of(&system.group_of(NODE)?);
        Ok((!found.is_empty()).then_some(found))
    })?;
    // What was started since the system was.
    place::pin_all(&outside(system, &slice)?, cores.driver);
    Ok(slice)
}

/// Lets the replica go.
fn end(system: &System, owner: &serves::Tenant) -> anyhow::Result<()> {
    owner.cli.well(&["endpoint", "update", "one", "--replicas", "0..1"])?;
    nothing_left(system, owner)
}

fn nothing_left(system: &System, owner: &serves::Tenant) -> anyhow::Result<()> {
    wait_for("an endpoint without replicas", PATIENCE, || {
        let none = serves::replicas(owner)? == 0 && groups::tasks_of(&system.group_of(NODE)?).is_empty();
        Ok(none.then_some(()))
    })
}

/// The peer as it comes, and with pieces of prompts as small as helps it.
struct Peers {
    usual: Running,
    small: Running,
}

/// All loads once, in turns.
async fn round(
    plan: &Plan,
    (own, other): (&Target, &Target),
    peers: &Peers,
    (slice, like): (&[PathBuf], &Groups),
    numbers: &mut Numbers,
) -> anyhow::Result<Round> {
    let (usual, small) = (&peers.usual.target, &peers.small.target);
    let mut round = Round::default();
    for _ in 0..plan.lone {
        let before = place::cpu_nanos(slice);
        let seen = loads::lone(own, numbers).await.context("a lone stream")?;
        round.own.lone(&seen, before, place::cpu_nanos(slice))?;
        let before = like.cpu_nanos();
        let seen = loads::lone(usual, numbers).await.context("a lone stream of the peer")?;
        round.peer.lone(&seen, before, like.cpu_nanos())?;
    }
    round.disturbed = loads::disturbed(own, numbers).await.context("a stream beside another")?.rate()?;
    tokio::time::sleep(CALM).await;
    for (target, late, into) in
        [(own, other, &mut round.own.mixed), (usual, usual, &mut round.peer.mixed), (small, small, &mut round.small)]
    {
        *into = Some(loads::mixed(target, late, numbers).await.context("streams and a long prompt")?);
        tokio::time::sleep(CALM).await;
    }
    for (target, late, into) in [
        (own, other, &mut round.own.queue),
        // By arrival: within a tenant the first is the first.
        (own, own, &mut round.arrival),
        (usual, usual, &mut round.peer.queue),
    ] {
        *into = Some(loads::queue(target, late, numbers).await.context("a queue")?);
        tokio::time::sleep(CALM).await;
    }
    Ok(round)
}

/// Processes of the system that are not in the slice.
fn outside(system: &System, slice: &[PathBuf]) -> anyhow::Result<Vec<i32>> {
    let text = slice.iter().map(|folder| std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default());
    let inside: std::collections::BTreeSet<i32> =
        text.flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>()).collect();
    Ok(everybody(system)?.into_iter().filter(|pid| !inside.contains(pid)).collect())
}

/// The file that the slice serves.
fn weights(system: &System) -> anyhow::Result<PathBuf> {
    let folder = system.node_folder(NODE).join("agent/models");
    let files = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut files: Vec<_> = files.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    // The import read another one there.
    files.sort_by_key(|path| std::fs::metadata(path).and_then(|data| data.modified()).ok());
    files.pop().context("the node has no model")
}

fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(f64::NAN)
}
