//! A borrowed job is called back when its quota is lowered, and goes on by itself when it is raised again.

use anyhow::Context as _;
use sluice_e2e::{Options, Shape, Trainer, wait_for};

use crate::support::{PATIENCE, credits, judged, reach, reach_step, run_of, same_curve, start};

const SHAPE: Shape = Shape { steps: 580, pause: 50, every: 0 };

#[test]
fn a_drained_job_resumes_by_itself_from_its_checkpoint() -> anyhow::Result<()> {
    let Some(own) = start("quota", Options::default())? else { return Ok(()) };
    let (system, cli) = (&own.system, own.system.cli());
    let trainer = Trainer::new(system.scratch())?;
    let reference = trainer.uninterrupted(SHAPE)?;
    cli.well(&["tenant", "create", "lender"])?;
    cli.well(&["quota", "set", "lender", "cpu", "1", "--site", "a", "--lend", "1"])?;
    // The lender's quota alone shuts everybody else out.
    let job = trainer.submit(&cli, SHAPE, &["--checkpoint-every", "30s", "--site", "a"])?;
    let view = wait_for("why it waits", PATIENCE, || {
        let view = cli.job(&job)?;
        Ok((view["reason"] == "QUOTA_EXCEEDED").then_some(view))
    })?;
    assert_eq!(view["state"], "PENDING");
    let why = cli.json(&["why", &job])?;
    assert_eq!(
        (&why["quota"]["quota"], &why["quota"]["level"]),
        (&"tenants/default/quotas/a/cpu".into(), &"none".into())
    );

    let set = |borrow: &str, policy: &str| {
        cli.run(&[
            "quota", "set", "default", "cpu", "0m", "--site", "a", "--borrow", borrow, "--policy", policy, "-o", "json",
        ])
    };
    assert_eq!(set("1", "refuse")?.code, 0);
    reach_step(&cli, &job, 50)?;
    let quotas = |of: &str| -> anyhow::Result<(i64, i64, i64)> {
        let list = cli.json(&["quota", "list", of])?;
        let row = list["items"].as_array().and_then(|rows| rows.first()).context("a quota")?;
        let of = |name: &str| row[name].as_i64().unwrap_or(-1);
        Ok((of("usedMilli"), of("borrowedMilli"), of("lentMilli")))
    };
    let (used, borrowed, _) = quotas("default")?;
    assert!(used > 0 && used == borrowed, "{used} in use, {borrowed} borrowed");
    assert_eq!(quotas("lender")?, (0, 0, used), "what is borrowed is lent, to the unit");

    let refused = set("0m", "refuse")?;
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("QUOTA_IN_USE") && refused.stderr.contains("drain"), "{refused:?}");
    assert_eq!(set("0m", "drain")?.code, 0);
    let view = reach(&cli, &job, "SUSPENDED")?;
    assert_eq!(view["reason"], "QUOTA_RECLAIMED");
    let at = view["checkpoint"]["step"].as_u64().context("a checkpoint")?;
    wait_for("the end of its hold", PATIENCE, || Ok((credits(&cli.job(&job)?["held"]) == 0).then_some(())))?;
    assert_eq!((quotas("default")?, quotas("lender")?), ((0, 0, 0), (0, 0, 0)));

    assert_eq!(set("1", "drain")?.code, 0);
    reach(&cli, &job, "SUCCEEDED")?;
    let run = run_of(system, &job)?;
    same_curve(&run, &reference)?;
    assert_eq!((run.replayed, run.firsts.values().last()), (0, Some(&(at + 1))));
    judged(system)?;
    Ok(())
}
