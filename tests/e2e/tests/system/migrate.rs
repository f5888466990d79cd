//! The trainer moves, or is thrown out, and goes on bit for bit.

use anyhow::Context as _;
use sluice_e2e::{Options, Shape, Trainer};

use crate::support::{
    credits, judged, judged_in_the_end, node_of, reach, reach_step, receipt, run_of, same_curve, start,
};

/// Long enough that it does not end before it moves, and short enough that no sample comes twice: the text has 588 steps.
const SHAPE: Shape = Shape { steps: 580, pause: 50, every: 25 };

#[test]
fn a_planned_migration_changes_no_bit_of_the_curve() -> anyhow::Result<()> {
    let Some(own) = start("migrate", Options::default())? else { return Ok(()) };
    let (system, cli) = (&own.system, own.system.cli());
    let trainer = Trainer::new(system.scratch())?;
    let reference = trainer.uninterrupted(SHAPE)?;
    let job = trainer.submit(&cli, SHAPE, &[])?;
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
    // The lost one's is never final: its node tells nothing any more.
    let receipt = cli.json(&["receipt", &job])?;
    // It was the only node of its site.
    assert_eq!(receipt["credits"][0]["reason"], "SITE_LOST", "{receipt:#}");
    let verdict = judged_in_the_end(system)?;
    assert!(verdict.figures.credits > 0);
    Ok(())
}

/// Tells 120 steps and, of each, the node's clock before and after.
const TELLS: &str = r#"
import json, os, socket, time
door = socket.socket(socket.AF_UNIX)
door.connect(os.environ["SLUICE_SOCKET"])
line = door.makefile("rw")
def ask(**message):
    line.write(json.dumps(message) + "\n")
    line.flush()
    return json.loads(line.readline())
now = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME)
ask(op="hello", protocol=1)
for step in range(1, 121):
    time.sleep(0.05)
    before = now()
    ask(op="step", step=step, metrics={})
    print("mark", step, before, now(), flush=True)
"#;

/// The bill's evidence: a window names the last step finished in it, not one that came before or later.
#[test]
fn a_window_names_the_last_step_finished_in_it() -> anyhow::Result<()> {
    if !std::path::Path::new("/usr/bin/python3").exists() {
        println!("SKIPPED: /usr/bin/python3 is missing");
        return Ok(());
    }
    let Some(own) = start("evidence", Options::default())? else { return Ok(()) };
    let cli = own.system.cli();
    let job = cli.submit(&["--", "/usr/bin/python3", "-c", TELLS])?;
    reach(&cli, &job, "SUCCEEDED")?;
    receipt(&cli, &job)?;
    let log = cli.well(&["logs", &job])?.stdout;
    let marks: Vec<[u64; 3]> = log
        .lines()
        .filter_map(|line| line.split_once("mark ")?.1.split(' ').map(|word| word.parse().ok()).collect())
        .filter_map(|numbers: Vec<u64>| numbers.try_into().ok())
        .collect();
    assert_eq!(marks.len(), 120, "{log}");
    let windows = cli.json(&["usage", &job])?;
    let windows = windows["items"].as_array().context("windows")?;
    let named: Vec<_> = windows.iter().map(|window| window["lastStep"].as_u64().unwrap_or(0)).collect();
    assert!(windows.len() > 2 && named.contains(&120), "{named:?}");
    for (window, named) in windows.iter().zip(named) {
        let end = window["endNs"].as_u64().context("an end")?;
        let early = marks.iter().find(|[step, before, _]| *step == named && *before > end);
        assert!(early.is_none(), "{early:?} came behind the window's end: {window:#}");
        let missed = marks.iter().find(|[step, _, after]| *step > named && *after <= end);
        assert!(missed.is_none(), "{missed:?} was finished before the window's end: {window:#}");
    }
    Ok(())
}
