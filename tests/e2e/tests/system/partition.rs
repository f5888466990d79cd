//! A site that nobody hears of for a while.

use anyhow::Context as _;
use nix::sys::signal::Signal;
use sluice_e2e::{Options, Shape, Trainer, wait_for};

use crate::support::{PATIENCE, judged, reach, reach_step, run_of, same_curve, start};

const SHAPE: Shape = Shape { steps: 580, pause: 50, every: 25 };

#[test]
fn after_a_partition_what_the_old_attempt_did_behind_the_cut_is_refused_and_what_came_before_is_paid()
-> anyhow::Result<()> {
    let Some(own) = start("partition", Options::default())? else { return Ok(()) };
    let (system, cli) = (&own.system, own.system.cli());
    let trainer = Trainer::new(system.scratch())?;
    let reference = trainer.uninterrupted(SHAPE)?;
    let job = trainer.submit(&cli, SHAPE, &[])?;
    wait_for("a checkpoint at both sites", PATIENCE, || Ok(cli.outlives_its_site(&job)?.then_some(())))?;
    let view = reach_step(&cli, &job, 110)?;
    let site = view["site"].as_str().context("a site")?.replace("sites/", "");
    let lease = view["tasks"][0]["lease"].as_str().context("a lease")?.to_owned();
    system.signal_site(&site, Signal::SIGSTOP)?;
    let moved = wait_for("the job at the other site", PATIENCE, || {
        let view = cli.job(&job)?;
        let other = view["site"].as_str().is_some_and(|now| now != format!("sites/{site}"));
        Ok((other && view["state"] == "RUNNING").then_some(view))
    });
    system.signal_site(&site, Signal::SIGCONT)?;
    let moved = moved?;
    assert_eq!(moved["losses"], 1);
    // The old attempt is released, and its late windows arrive and are counted.
    let refused = wait_for("refused windows of the old attempt", PATIENCE, || {
        let receipt = cli.json(&["receipt", &job])?;
        let leases = receipt["leases"].as_array().context("leases")?.clone();
        let old = leases.into_iter().find(|row| row["lease"] == lease.as_str()).context("the old lease")?;
        Ok((old["refusedWindows"].as_u64() > Some(0)).then_some(old))
    })?;
    assert!(refused["windows"].as_u64() > Some(0), "windows before the cut are paid: {refused:#}");
    reach(&cli, &job, "SUCCEEDED")?;
    let run = run_of(system, &job)?;
    same_curve(&run, &reference)?;
    let verdict = judged(system)?;
    assert!(verdict.figures.refused > 0 && verdict.figures.credits > 0, "{verdict}");
    Ok(())
}
