//! Line 10: a budget of some windows stops its job at a checkpoint; what is replayed is credited; receipts are recomputed.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use sluice_proto::v1;

use super::watch::bills;
use super::watched;
use crate::checker;
use crate::cli::Cli;
use crate::figure::Figure;
use crate::system::{Options, System};
use crate::trainer::{Shape, Trainer};
use crate::wait_for;

const SHAPE: Shape = Shape { steps: 600, pause: 25, every: 0 };
/// The job that loses its node.
const LOST: Shape = Shape { steps: 300, pause: 25, every: 25 };
/// What a second on 800 milli costs at 36 per hour of a device.
const WINDOW: i64 = 8000;
/// How long money may take to come back to where it belongs.
const SETTLES: Duration = Duration::from_secs(60);

/// What there is to choose.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// Budgets, in windows, one after the other for one job. Six are held ahead, so with less a job does not begin.
    #[arg(long, value_delimiter = ',', default_value = "6,9,7")]
    pub windows: Vec<i64>,
    /// Leaves the system's folder to be looked at.
    #[arg(long)]
    pub keep: bool,
}

/// Runs it. To be called once per process.
///
/// # Errors
/// The system does not come up, or a job does not end.
pub fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let system = System::start("money", Options { no_restart: true, ..Options::default() })?;
    watched(system, plan.keep, |system| figures(system, plan))
}

fn figures(system: &mut System, plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let cli = system.cli();
    let trainer = Trainer::new(system.scratch())?;
    cli.well(&["price", "set", "--class", "cpu", "--device-hour", "36", "--core-hour", "0", "--gib-hour", "0", "-y"])?;
    let mut all = budgets(system, &cli, &trainer, &plan.windows)?;
    all.extend(loss(system, &cli, &trainer)?);
    all.push(bills(system)?);
    Ok(all)
}

/// The job is stopped by each budget in turn, and goes on when it gets the next.
fn budgets(system: &System, cli: &Cli, trainer: &Trainer, windows: &[i64]) -> anyhow::Result<Vec<Figure>> {
    let reference = trainer.uninterrupted(SHAPE)?;
    let (mut all, mut job, mut before): (Vec<Figure>, Option<String>, i64) = (Vec::new(), None, 0);
    let mut exact = true;
    for count in windows {
        let budget = before + count * WINDOW;
        set_budget(cli, budget)?;
        let id = match &job {
            None => trainer.submit(cli, SHAPE, &["--checkpoint-every", "60s"])?,
            Some(id) => {
                cli.well(&["resume", id])?;
                id.clone()
            }
        };
        let stopped = |view: &v1::Job| view.state() == v1::JobState::Suspended && view.spent_credits > before;
        let view = system.watch(&id, "the end of its budget", stopped)?;
        let at = view.checkpoint.as_ref().map_or(0, |row| row.step);
        let last = system.lineage_of(&id)?.steps.last().map_or(0, |step| step.step);
        exact &= view.reason == "SUSPENDED_FOR_MONEY" && at == last && at > 0;
        // Its last windows may come behind its end.
        let spent = wait_for("what was held", SETTLES, || {
            let spent = credits(&cli.job(&id)?["spent"]);
            Ok((remaining(cli)? == budget - spent).then_some(spent))
        })?;
        eprintln!("budget of {count} windows: {spent} of {budget} spent, checkpoint at step {at}, last step {last}");
        let metric = format!("units spent of a budget of {count} windows of {WINDOW}: overdraft");
        let used = format!("{} of {}", spent - before, count * WINDOW);
        all.push(Figure::at_most(&metric, (spent - budget).max(0), 0).peer(&used));
        (job, before) = (Some(id), spent);
    }
    let id = job.context("a budget")?;
    set_budget(cli, before + 1000 * WINDOW)?;
    cli.well(&["resume", &id])?;
    let done = system.success(&id)?;
    let run = system.lineage_of(&id)?;
    let differs = run.differs(&reference);
    all.push(
        Figure::new("each stop is at a checkpoint of the last executed step", exact.to_string(), "true", exact)
            .control(
                format!("without a budget: {}", done.state().as_str_name()),
                done.state() == v1::JobState::Succeeded,
            ),
    );
    all.push(Figure::new(
        "the job that was stopped by each: steps replayed, and its curve",
        differs.clone().unwrap_or_else(|| format!("{} replayed, equal to the bit", run.replayed)),
        "none, that of the uninterrupted run",
        differs.is_none() && run.replayed == 0 && run.firsts.len() == windows.len() + 1,
    ));
    Ok(all)
}

/// A node dies under a job, comes back, and delivers what it had metered: what was done again is credited.
fn loss(system: &mut System, cli: &Cli, trainer: &Trainer) -> anyhow::Result<Vec<Figure>> {
    let reference = trainer.uninterrupted(LOST)?;
    let job = trainer.submit(cli, LOST, &[])?;
    let moment = |view: &v1::Job| view.state() == v1::JobState::Running && view.step >= 110;
    let view = system.watch(&job, "the moment of the kill", moment)?;
    let name = view.tasks.first().context("a task")?.node.clone();
    let words: Vec<&str> = name.split('/').collect();
    let [_, site, _, node] = words.as_slice() else { anyhow::bail!("{name} is no node") };
    let launch = system.cut_power(&format!("{site}/{node}"))?;
    let done = system.success(&job)?;
    system.launch(&format!("node-{node}"), launch)?;
    system.wait_node(site, node)?;
    let receipt = wait_for("the final receipt", SETTLES, || {
        let receipt = cli.json(&["receipt", &job])?;
        Ok((receipt["final"] == true).then_some(receipt))
    })?;
    let run = system.lineage_of(&job)?;
    let differs = run.differs(&reference);
    let credited = credits(&receipt["credited"]);
    let replayed = replayed(system, &done.name, &run)?;
    Ok(vec![
        Figure::exactly(
            "units credited after a loss, against the windows behind the checkpoint",
            credited - replayed,
            0,
        )
        .peer(&format!("{credited} credited for {} steps done again", run.replayed)),
        Figure::at_least("units credited after a loss", credited, 1),
        Figure::new(
            "the curve of the job that lost its node",
            differs.clone().unwrap_or_else(|| "equal to the bit".to_owned()),
            "that of the uninterrupted run",
            differs.is_none(),
        ),
    ])
}

/// What the windows behind the checkpoint cost: those of the first attempt that end behind the moment at which the step
/// behind the checkpoint was done, by the task's own log. A window ends where the checkpoint was captured.
fn replayed(system: &System, job: &str, run: &checker::Lineage) -> anyhow::Result<i64> {
    let first = *run.firsts.values().nth(1).context("a second attempt")?;
    let mut windows = system.block(system.client()?.list_usage(job))?;
    windows.sort_by_key(|window| window.start_ns);
    let lease = windows.first().context("a window")?.lease.clone();
    let done = checker::step_times(&system.kept(), &lease).get(&first).copied().context("the step done again")?;
    let own = windows.iter().filter(|window| window.lease == lease && window.end_ns > done);
    Ok(own.map(|window| window.amount_credits).sum())
}

fn credits(value: &Value) -> i64 {
    value["credits"].as_i64().unwrap_or(i64::MIN)
}

fn set_budget(cli: &Cli, units: i64) -> anyhow::Result<()> {
    let money = format!("{}.{:06}", units / 1_000_000, units % 1_000_000);
    cli.well(&["budget", "set", "default/default", &money]).map(drop)
}

fn remaining(cli: &Cli) -> anyhow::Result<i64> {
    let value: Value = cli.json(&["budget", "list"])?;
    Ok(credits(&value["items"][0]["remaining"]))
}
