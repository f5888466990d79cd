//! The trainer moves, or is thrown out, and goes on bit for bit.

use anyhow::Context as _;
use sluice_e2e::{Options, Shape, Trainer};

use crate::support::{credits, judged, node_of, reach, reach_step, receipt, run_of, same_curve, start};

const SHAPE: Shape = Shape { steps: 300, pause: 20, every: 25 };
/// Long enough that it does not end before it moves, and short enough that no sample comes twice: the text has 588 steps.
const LONG: Shape = Shape { steps: 580, ..SHAPE };

#[test]
fn a_planned_migration_changes_no_bit_of_the_curve() -> anyhow::Result<()> {
    let Some(own) = start("migrate", Options::default())? else { return Ok(()) };
    let (system, cli) = (&own.system, own.system.cli());
    let trainer = Trainer::new(system.scratch())?;
    let reference = trainer.uninterrupted(LONG)?;
    let job = trainer.submit(&cli, LONG, &[])?;
    let before = reach_step(&cli, &job, 60)?;
    let from = before["site"].as_str().context("a site")?.to_owned();
    let to = if from == "sites/a" { "b" } else { "a" };
    cli.well(&["migrate", &job, "--to", to, "--wait", "--timeout", "60s"])?;
    let view = reach(&cli, &job, "SUCCEEDED")?;
    assert_eq!(view["migration"]["phase"], "done", "{view:#}");
    assert_eq!(view["attempts"], 2);
    let run = run_of(system, &job)?;
    same_curve(&run, &reference)?;
    assert_eq!(run.replayed, 0, "a planned move repeats nothing");
    // The first step at the other site is the checkpoint's step + 1.
    let carried = view["migration"]["step"].as_u64().context("the carried step")?;
    assert_eq!(run.firsts.values().last(), Some(&(carried + 1)));
    let receipt = receipt(&cli, &job)?;
    assert_eq!((receipt["migrations"].as_u64(), credits(&receipt["credited"])), (Some(1), 0));
    judged(system)?;
    Ok(())
}

#[test]
fn a_node_killed_whole_costs_only_what_was_not_checkpointed_and_that_is_credited() -> anyhow::Result<()> {
    let options = Options { no_restart: true, ..Options::default() };
    let Some(mut own) = start("node", options)? else { return Ok(()) };
    let cli = own.system.cli();
    let trainer = Trainer::new(own.system.scratch())?;
    let reference = trainer.uninterrupted(SHAPE)?;
    let job = trainer.submit(&cli, SHAPE, &[])?;
    let view = reach_step(&cli, &job, 110)?;
    let node = node_of(&view)?;
    own.system.kill_node(&node)?;
    let system = &own.system;
    let view = reach(&cli, &job, "SUCCEEDED")?;
    assert_eq!(view["losses"], 1, "{view:#}");
    assert_ne!(view["site"].as_str().map(|site| site.replace("sites/", "")).as_deref(), node.split('/').next());
    let run = run_of(system, &job)?;
    same_curve(&run, &reference)?;
    assert!(run.replayed >= 1, "it died between two checkpoints");
    let receipt = cli.json(&["receipt", &job])?;
    // It was the only node of its site.
    assert_eq!(receipt["credits"][0]["reason"], "SITE_LOST", "{receipt:#}");
    let verdict = judged(system)?;
    assert!(verdict.figures.credits > 0);
    Ok(())
}

/// The bill's evidence: a window names the last step that was finished in it, not one that came later.
#[test]
fn a_window_names_the_last_step_finished_in_it() -> anyhow::Result<()> {
    let Some(own) = start("evidence", Options::default())? else { return Ok(()) };
    let (system, cli) = (&own.system, own.system.cli());
    let trainer = Trainer::new(system.scratch())?;
    let job = trainer.submit(&cli, SHAPE, &[])?;
    reach(&cli, &job, "SUCCEEDED")?;
    receipt(&cli, &job)?;
    let windows = cli.json(&["usage", &job])?;
    let windows = windows["items"].as_array().context("windows")?;
    let lease = windows[0]["lease"].as_str().context("a lease")?;
    let times = sluice_e2e::checker::step_times(&system.kept(), lease);
    for window in windows {
        let (end, step) = (window["endNs"].as_u64().context("an end")?, window["lastStep"].as_u64().unwrap_or(0));
        // A line is on the log a moment after its step.
        let told = step == 0 || times.get(&step).is_some_and(|at| *at <= end + 300_000_000);
        assert!(told, "step {step} ended at {:?}, behind the window's end {end}: {window:#}", times.get(&step));
        let missed = times.range(step + 1..).find(|(_, at)| **at + 300_000_000 <= end);
        assert!(missed.is_none(), "step {missed:?} was finished before the window's end {end}: {window:#}");
    }
    Ok(())
}
