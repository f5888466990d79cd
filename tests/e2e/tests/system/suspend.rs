//! A user stops a job at a checkpoint and goes on later.

use anyhow::Context as _;
use sluice_e2e::{Options, Shape, Trainer, wait_for};

use crate::support::{PATIENCE, credits, judged, reach, reach_step, run_of, same_curve, start};

const SHAPE: Shape = Shape { steps: 580, pause: 50, every: 0 };

#[test]
fn a_suspended_job_holds_nothing_and_resumes_bit_for_bit() -> anyhow::Result<()> {
    let Some(own) = start("suspend", Options::default())? else { return Ok(()) };
    let (system, cli) = (&own.system, own.system.cli());
    let trainer = Trainer::new(system.scratch())?;
    let reference = trainer.uninterrupted(SHAPE)?;
    let job = trainer.submit(&cli, SHAPE, &["--checkpoint-every", "30s"])?;
    reach_step(&cli, &job, 50)?;
    cli.well(&["suspend", &job, "--wait", "--timeout", "60s"])?;
    let view = reach(&cli, &job, "SUSPENDED")?;
    assert_eq!(view["reason"], "SUSPENDED_BY_USER");
    let at = view["checkpoint"]["step"].as_u64().context("a checkpoint")?;
    wait_for("the end of its hold", PATIENCE, || Ok((credits(&cli.job(&job)?["held"]) == 0).then_some(())))?;
    let devices = cli.json(&["devices"])?;
    let leased =
        devices["items"].as_array().context("devices")?.iter().map(|row| row["leasedMilli"].as_u64().unwrap_or(1));
    assert_eq!(leased.sum::<u64>(), 0, "{devices:#}");
    cli.well(&["resume", &job])?;
    reach(&cli, &job, "SUCCEEDED")?;
    let run = run_of(system, &job)?;
    same_curve(&run, &reference)?;
    assert_eq!((run.replayed, run.firsts.values().last()), (0, Some(&(at + 1))));
    let verdict = judged(system)?;
    assert_eq!(verdict.figures.credits, 0);
    Ok(())
}
