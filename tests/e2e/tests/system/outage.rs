//! `up` dies and comes back; jobs do not notice.

use std::process::Command;

use serde_json::Value;
use sluice_e2e::{Options, Shape, Trainer, quiet_address, wait_for};

use crate::support::{PATIENCE, judged, patient, reach, reach_step, run_of, same_curve, start};

const SHAPE: Shape = Shape { steps: 250, pause: 30, every: 50 };

#[test]
fn a_job_runs_on_while_everything_else_is_dead() -> anyhow::Result<()> {
    let Some(mut own) = start("outage", patient())? else { return Ok(()) };
    let cli = own.system.cli();
    let trainer = Trainer::new(own.system.scratch())?;
    let reference = trainer.uninterrupted(SHAPE)?;
    let job = trainer.submit(&cli, SHAPE, &[])?;
    reach_step(&cli, &job, 40)?;
    own.system.kill_up()?;
    let told = run_of_files(&own.system)?;
    // Nothing is left that could tell it anything, and it makes steps.
    wait_for("steps without a control plane", PATIENCE, || Ok((run_of_files(&own.system)? > told + 20).then_some(())))?;
    own.system.start_up()?;
    let system = &own.system;
    let view = reach(&cli, &job, "SUCCEEDED")?;
    assert_eq!((view["attempts"].as_u64(), view["losses"].as_u64()), (Some(1), Some(0)), "{view:#}");
    let run = run_of(system, &job)?;
    same_curve(&run, &reference)?;
    assert_eq!((run.replayed, run.firsts.len()), (0, 1));
    let verdict = judged(system)?;
    assert_eq!((verdict.figures.gaps, verdict.figures.billed), (0, verdict.figures.journalled), "{verdict}");
    Ok(())
}

/// Steps in the one step log there is, read from its file.
fn run_of_files(system: &sluice_e2e::System) -> anyhow::Result<usize> {
    let folder = system.kept().outputs().into_iter().next();
    folder.map_or(Ok(0), |folder| Ok(sluice_e2e::steps_of(&folder.join("steps.jsonl"))?.len()))
}

#[test]
fn a_site_without_its_vault_gets_no_work_until_the_vault_is_back() -> anyhow::Result<()> {
    let Some(mut own) = start("vault", Options { no_restart: true, ..Options::default() })? else { return Ok(()) };
    let vault = own.system.kill_part("vault-a")?;
    let cli = own.system.cli();
    let command = ["--", "sh", "-c", "sleep 1"];
    // For a while nobody knows. Then what may run at this site only says what it waits for, and the rest runs elsewhere.
    let bound = wait_for("a job that waits", PATIENCE, || {
        let job = cli.submit(&[&["--site", "a"], &command[..]].concat())?;
        let told = |view: &Value| view["reason"] == "NODES_UNAVAILABLE" || view["state"] == "SUCCEEDED";
        let view = wait_for("its word or its end", PATIENCE, || Ok(Some(cli.job(&job)?).filter(told)))?;
        Ok((view["state"] == "PENDING").then_some(job))
    })?;
    let free = cli.submit(&command)?;
    assert_eq!(reach(&cli, &free, "SUCCEEDED")?["site"], "sites/b");
    own.system.launch("vault-a", vault)?;
    assert_eq!(reach(&cli, &bound, "SUCCEEDED")?["site"], "sites/a");
    Ok(())
}

/// Longer than a node may be silent: nobody's answer comes, and nobody is to blame for it.
#[test]
fn a_commit_that_stands_still_loses_no_node() -> anyhow::Result<()> {
    let Some(own) = start("stall", Options { no_restart: true, ..Options::default() })? else { return Ok(()) };
    let cli = own.system.cli();
    let job = cli.submit(&["--", "sleep", "14"])?;
    reach(&cli, &job, "RUNNING")?;
    let hold = "import sqlite3, sys, time\n\
                held = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)\n\
                held.execute('BEGIN IMMEDIATE')\n\
                time.sleep(8)";
    let database = own.system.scratch().join("data/controller/sluice.db");
    let held = Command::new("python3").args(["-c", hold]).arg(database).status()?;
    anyhow::ensure!(held.success(), "the database could not be held");
    let view = reach(&cli, &job, "SUCCEEDED")?;
    assert_eq!((view["attempts"].as_u64(), view["losses"].as_u64()), (Some(1), Some(0)), "{view:#}");
    Ok(())
}

/// A vault that comes back elsewhere, or is first heard of when nodes are there already: they follow it.
#[test]
fn nodes_follow_the_vault_of_their_site() -> anyhow::Result<()> {
    let Some(mut own) = start("moved", Options { no_restart: true, ..Options::default() })? else { return Ok(()) };
    let vault = own.system.kill_part("vault-a")?;
    let free = quiet_address()?.to_string();
    own.system.launch("vault-a", vault.with("--listen", &free)?.with("--advertise", &free)?)?;
    let given = own.system.scratch().join("given");
    std::fs::create_dir_all(&given)?;
    std::fs::write(given.join("word"), "from the vault\n")?;
    let folder = given.display().to_string();
    let cli = own.system.cli();
    let job = cli.submit(&["--site", "a", "--workdir", &folder, "--", "grep", "-q", "from the vault", "word"])?;
    assert_eq!(reach(&cli, &job, "SUCCEEDED")?["site"], "sites/a");
    Ok(())
}

/// Coming up is nothing that may work most of the time.
#[test]
fn a_system_comes_up_every_time() -> anyhow::Result<()> {
    for round in 0..5 {
        let options = Options { sites: 3, nodes: 4, ..Options::default() };
        let Some(own) = start("up", options).map_err(|error| error.context(format!("round {round}")))? else {
            return Ok(());
        };
        drop(own);
    }
    Ok(())
}
