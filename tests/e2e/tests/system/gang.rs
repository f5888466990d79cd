//! A gang whose tasks wait for each other in every step: it can only stop as a whole.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sluice_e2e::Options;

use crate::support::{judged, patient, reach, reach_step, start};

const STEPS: u64 = 400;

/// What the program computes: the sum of what two ranks bring to a step, folded into a state.
fn expected() -> Vec<String> {
    let fold = |state: &mut u64, step: u64| {
        *state = (*state * 31 + 3 * step) % (1 << 31);
        Some(format!("step {step} state {state}"))
    };
    (1..=STEPS).scan(0u64, fold).collect()
}

#[test]
fn a_gang_is_suspended_and_moved_as_one_and_repeats_no_step() -> anyhow::Result<()> {
    let python = "/usr/bin/python3";
    if !std::path::Path::new(python).exists() {
        println!("SKIPPED: {python} is missing");
        return Ok(());
    }
    let Some(own) = start("gang", Options { nodes: 2, ..patient() })? else { return Ok(()) };
    let (system, cli) = (&own.system, own.system.cli());
    cli.well(&["project", "update", "default", "--allow-network", "gang"])?;
    let folder = system.scratch().join("gang");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("gang.py"), include_str!("gang.py"))?;
    fs::write(folder.join("sluice_checkpoint.py"), include_str!("../../../../clients/python/sluice_checkpoint.py"))?;
    let (folder, steps) = (folder.display().to_string(), STEPS.to_string());
    // More than half of a device each, so that each has a node of its own.
    let flags = ["--tasks", "2", "--network", "gang", "--share", "600m", "--memory", "64MiB", "--workdir", &folder];
    // Never by itself, so that only what was told to stop can be carried over.
    let policy = ["--checkpoint-every-steps", "100000", "--", python, "gang.py", &steps];
    let job = cli.submit(&[&flags[..], &policy].concat())?;

    // One node hears of the order a second later, when the other's task could long have stopped.
    let view = reach_step(&cli, &job, 20)?;
    let late = view["tasks"][1]["node"].as_str().and_then(|name| name.rsplit('/').next()).context("a node")?;
    assert_ne!(view["tasks"][0]["node"], view["tasks"][1]["node"]);
    let agent = Pid::from_raw(system.pid_of(&format!("node-{late}"))?);
    kill(agent, Signal::SIGSTOP)?;
    let told = cli.run(&["suspend", &job]);
    sleep(Duration::from_secs(1));
    kill(agent, Signal::SIGCONT)?;
    told?.well()?;
    let view = reach(&cli, &job, "SUSPENDED")?;
    let at = view["checkpoint"]["step"].as_u64().filter(|step| *step >= 20).with_context(|| format!("{view:#}"))?;
    cli.well(&["resume", &job])?;
    let before = reach_step(&cli, &job, at + 20)?;
    let to = if before["site"] == "sites/a" { "b" } else { "a" };
    cli.well(&["migrate", &job, "--to", to, "--wait", "--timeout", "60s"])?;
    let view = reach(&cli, &job, "SUCCEEDED")?;
    assert_eq!((&view["migration"]["phase"], view["attempts"].as_u64()), (&"done".into(), Some(3)), "{view:#}");

    let log = cli.well(&["logs", &job])?.stdout;
    let told: Vec<_> = log.lines().filter_map(|line| line.find("step ").map(|at| line[at..].to_owned())).collect();
    let different = expected().into_iter().zip(&told).find(|(wanted, told)| wanted != *told);
    assert_eq!((different, told.len()), (None, expected().len()), "{log}");
    judged(system).context("its bills")?;
    Ok(())
}
