//! Line 4: a site is cut off while it runs a job, and healed when the job has long gone on elsewhere.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sluice_proto::v1;

use super::sites::{Sites, other};
use super::watch::{bills, site_of};
use super::watched;
use crate::checker;
use crate::figure::Figure;
use crate::trainer::{Shape, Trainer};
use crate::wait_for;

const SHAPE: Shape = Shape { steps: 360, pause: 60, every: 20 };
const CUT_AT: u64 = 70;
/// How long the old attempt, and then the news of it, may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// The promise for a lost node's job.
const RESTART: f64 = 45.0;

/// What there is to choose.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// Leaves the system's folder to be looked at.
    #[arg(long)]
    pub keep: bool,
}

/// What the controller refused so far.
#[derive(Debug, Clone, Copy, Default)]
struct Refused {
    checkpoints: u64,
    results: u64,
    windows: u64,
}

/// Runs it. To be called once per process, in the hub.
///
/// # Errors
/// The system does not come up, or a job does not end.
pub fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let sites = Sites::start("partition")?;
    watched(sites, plan.keep, |sites| figures(sites))
}

fn refused(sites: &Sites) -> anyhow::Result<Refused> {
    let all: BTreeMap<String, u64> = sites.system.metrics("controller")?;
    let get = |name: &str| all.get(name).copied().with_context(|| format!("the controller serves no {name}"));
    Ok(Refused {
        checkpoints: get("sluice_stale_checkpoints_total")?,
        results: get("sluice_stale_results_total")?,
        windows: get("sluice_refused_windows_total")?,
    })
}

fn figures(sites: &Sites) -> anyhow::Result<Vec<Figure>> {
    let (system, cli) = (&sites.system, sites.system.cli());
    let trainer = Trainer::new(system.scratch())?;
    let reference = trainer.uninterrupted(SHAPE)?;
    let job = trainer.submit(&cli, SHAPE, &[])?;
    let runs = |job: &v1::Job| job.state() == v1::JobState::Running;
    wait_for("a checkpoint at both sites", PATIENCE, || Ok(cli.outlives_its_site(&job)?.then_some(())))?;
    let view = system.watch(&job, "the moment of the cut", |view| runs(view) && view.step >= CUT_AT)?;
    let (from, lease) = (site_of(&view).to_owned(), view.tasks.first().context("a task")?.lease.clone());
    let before = refused(sites)?;
    sites.wan.cut(&from)?;
    let begin = Instant::now();
    let elsewhere = |view: &v1::Job| runs(view) && site_of(view) == other(&from);
    let moved = system.watch(&job, "the job at the other site", elsewhere)?;
    let restart = begin.elapsed().as_secs_f64();
    eprintln!("cut off at step {}, runs again after {restart:.1} s under generation {}", view.step, moved.generation);
    // Nobody can tell the old attempt that it is over: it goes on to its end, and has a result.
    wait_for("the end of the old attempt", PATIENCE, || {
        let logs = checker::read_steps(&system.kept(), std::slice::from_ref(&lease))?;
        let last = logs.get(&lease).and_then(|steps| steps.last()).map_or(0, |step| step.step);
        Ok((last == SHAPE.steps).then_some(()))
    })?;
    // Its supervisor seals what it has, and its agent tries to tell.
    std::thread::sleep(Duration::from_secs(2));
    let at_healing = system.watch(&job, "a look", |_| true)?;
    sites.wan.heal(&from)?;
    let late = wait_for("all that the old attempt has to tell", PATIENCE, || {
        let now = refused(sites)?;
        let all = now.checkpoints > 0 && now.results > 0 && now.windows > 0;
        let over = system.watch(&job, "a look", |_| true)?.state() == v1::JobState::Succeeded;
        Ok((all || over && begin.elapsed() > PATIENCE / 2).then_some(now))
    })?;
    system.success(&job)?;
    let landed =
        system.block(system.client()?.output(&moved.name, "steps.jsonl"))?.context("a step log that landed")?;
    let strangers = checker::parse_steps(&landed)?.iter().filter(|step| step.generation != moved.generation).count();
    let run = system.lineage_of(&job)?;
    let differs = run.differs(&reference);
    let (paid, behind) = windows(sites, &moved.name, &lease)?;
    let late_heads = heads(sites, &moved.name, view.generation, view.step)?;
    let whole = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let count = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
    let told = format!("before the cut: {}, {}, {}", before.checkpoints, before.results, before.windows);
    let quiet = before.checkpoints + before.results + before.windows == 0;
    let some = |metric: &str, value: u64| Figure::at_least(metric, whole(value), 1).control(told.clone(), quiet);
    let equal = differs.clone().unwrap_or_else(|| format!("{} steps, {} replayed", run.steps.len(), run.replayed));
    Ok(vec![
        Figure::new(
            "seconds from the cut to the job's running at the other site",
            restart,
            "<= 45",
            restart <= RESTART,
        ),
        Figure::new(
            "state of the job when the old attempt's result arrived",
            at_healing.state().as_str_name(),
            "JOB_STATE_RUNNING",
            runs(&at_healing),
        ),
        some("checkpoints that the old attempt sealed behind the cut: refused", late.checkpoints),
        some("its result: refused", late.results),
        some("its windows behind the cut: refused", late.windows),
        Figure::exactly("checkpoints of the old attempt behind the cut that the job has", count(late_heads), 0),
        Figure::exactly("steps in the result that landed that are not the new attempt's", count(strangers), 0),
        Figure::at_least("windows of the old attempt before the cut: paid", whole(paid), 1),
        Figure::exactly("windows of the old attempt billed behind its last refused one", whole(behind), 0),
        Figure::new("the curve, to the bit", equal, "that of the uninterrupted run", differs.is_none()),
        bills(system)?,
    ])
}

/// Windows of a lease that are billed, and those of them that are behind a journalled one that is not.
fn windows(sites: &Sites, job: &str, lease: &str) -> anyhow::Result<(u64, u64)> {
    let system = &sites.system;
    let billed = system.block(system.client()?.list_usage(job))?;
    let billed: Vec<u64> = billed.iter().filter(|row| row.lease == lease).map(|row| row.sequence).collect();
    let journals = checker::read_journals(&system.kept(), &mut checker::Verdict::default())?;
    let measured = journals.get(lease).context("the old attempt's journal")?.iter().map(|row| row.window.sequence);
    let first = measured.filter(|sequence| !billed.contains(sequence)).min().unwrap_or(u64::MAX);
    let behind = billed.iter().filter(|sequence| **sequence > first).count();
    Ok((u64::try_from(billed.len())?, u64::try_from(behind)?))
}

/// Checkpoints that the job has of a generation, behind a step by more than what was under way.
fn heads(sites: &Sites, job: &str, generation: u64, step: u64) -> anyhow::Result<usize> {
    let rows = sites.system.cli().json(&["checkpoints", job])?;
    let rows = rows["items"].as_array().context("checkpoints")?.clone();
    let late = rows.iter().filter(|row| {
        row["generation"].as_u64() == Some(generation) && row["step"].as_u64() > Some(step + 2 * SHAPE.every)
    });
    Ok(late.count())
}
