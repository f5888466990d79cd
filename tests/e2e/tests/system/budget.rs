//! Money ends before the job does.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use sluice_e2e::{Cli, Options, Shape, Trainer, wait_for};

use crate::support::{PATIENCE, credits, judged, reach, run_of, same_curve, start};

const SHAPE: Shape = Shape { steps: 580, pause: 35, every: 0 };
/// Windows that the budget covers: more than it takes to begin, and fewer than its steps take.
const WINDOWS: i64 = 14;

#[test]
fn a_budget_of_some_windows_stops_its_job_at_a_checkpoint_without_overdraft() -> anyhow::Result<()> {
    let Some(own) = start("budget", Options::default())? else { return Ok(()) };
    let (system, cli) = (&own.system, own.system.cli());
    let trainer = Trainer::new(system.scratch())?;
    let reference = trainer.uninterrupted(SHAPE)?;
    // A window of 1 s on 800 milli costs 8000 units at 36 per hour.
    cli.well(&["price", "set", "--class", "cpu", "--device-hour", "36", "--core-hour", "0", "--gib-hour", "0", "-y"])?;
    let budget = WINDOWS * 8000;
    set_budget(&cli, budget)?;
    let job = trainer.submit(&cli, SHAPE, &["--checkpoint-every", "30s"])?;
    reach(&cli, &job, "SUSPENDED")?;
    let view = unheld(&cli, &job)?;
    assert_eq!(view["reason"], "SUSPENDED_FOR_MONEY", "{view:#}");
    let step = view["step"].as_u64().context("a step")?;
    let at = view["checkpoint"]["step"].as_u64().context("a checkpoint")?;
    assert_eq!(step, at, "it stopped at its checkpoint: {view:#}");
    let spent = credits(&view["spent"]);
    assert!(spent > 0 && spent <= budget, "{spent} of {budget}");
    let remaining = remaining(&cli)?;
    assert!(remaining >= 0, "overdraft: {remaining}");
    assert_eq!(spent + remaining, budget, "what is not spent is left");
    judged(system)?;

    set_budget(&cli, budget * 10)?;
    cli.well(&["resume", &job])?;
    reach(&cli, &job, "SUCCEEDED")?;
    let run = run_of(system, &job)?;
    same_curve(&run, &reference)?;
    assert_eq!((run.replayed, run.firsts.values().last()), (0, Some(&(at + 1))));
    judged(system)?;
    Ok(())
}

#[test]
fn funds_that_end_suspend_a_job_that_cannot_be_checkpointed_too() -> anyhow::Result<()> {
    let options = Options { window: Duration::from_millis(500), ..Options::default() };
    let Some(own) = start("funds", options)? else { return Ok(()) };
    let (system, cli) = (&own.system, own.system.cli());
    cli.well(&["price", "set", "--class", "cpu", "--device-hour", "36", "--core-hour", "0", "--gib-hour", "0", "-y"])?;
    set_budget(&cli, 30_000)?;
    let job = cli.submit(&["--share", "500m", "--", "sleep", "600"])?;
    let view = reach(&cli, &job, "SUSPENDED")?;
    assert_eq!(view["reason"], "SUSPENDED_FOR_MONEY", "{view:#}");
    assert!(credits(&view["spent"]) <= 30_000 && remaining(&cli)? >= 0, "{view:#}");
    judged(system)?;
    Ok(())
}

/// The job once nothing is held for it: what it did has all been told.
fn unheld(cli: &Cli, job: &str) -> anyhow::Result<Value> {
    wait_for("the end of its hold", PATIENCE, || Ok(Some(cli.job(job)?).filter(|view| credits(&view["held"]) == 0)))
}

fn set_budget(cli: &Cli, units: i64) -> anyhow::Result<()> {
    let money = format!("{}.{:06}", units / 1_000_000, units % 1_000_000);
    cli.well(&["budget", "set", "default/default", &money]).map(drop)
}

fn remaining(cli: &Cli) -> anyhow::Result<i64> {
    let value: Value = cli.json(&["budget", "list"])?;
    Ok(credits(&value["items"][0]["remaining"]))
}
