//! Jobs that end badly say how.

use serde_json::Value;
use sluice_e2e::{Cli, Options};

use crate::support::{judged, reach, receipt, start};

fn fails(cli: &Cli, flags: &[&str], reason: &str) -> anyhow::Result<Value> {
    let job = cli.submit(flags)?;
    let view = reach(cli, &job, "FAILED")?;
    assert_eq!(view["reason"], reason, "{view:#}");
    receipt(cli, &job)?;
    Ok(view)
}

#[test]
fn every_bad_end_is_told_as_what_it_was() -> anyhow::Result<()> {
    let Some(own) = start("failures", Options::default())? else { return Ok(()) };
    let cli = own.system.cli();
    let view = fails(&cli, &["--", "sh", "-c", "exit 3"], "EXIT_STATUS")?;
    assert_eq!(view["tasks"][0]["exitCode"], 3);
    let view = fails(&cli, &["--", "sh", "-c", "kill -SEGV $$"], "SIGNALLED")?;
    assert_eq!(view["tasks"][0]["signal"], 11);
    fails(&cli, &["--max-run-time", "2s", "--", "sleep", "100"], "RUN_LIMIT")?;
    fails(&cli, &["--", "/no/such/program"], "START_FAILED")?;
    let eat = "import sys\nkept = []\nwhile True: kept.append(bytearray(8 << 20))";
    fails(&cli, &["--memory", "48MiB", "--", "python3", "-c", eat], "OUT_OF_MEMORY")?;
    // A retry that the user asked for: both tries are on one bill, nothing is credited.
    let job = cli.submit(&["--retry-on-failure", "1", "--", "sh", "-c", "exit 4"])?;
    let view = reach(&cli, &job, "FAILED")?;
    assert_eq!((view["attempts"].as_u64(), view["losses"].as_u64()), (Some(2), Some(0)), "{view:#}");
    let done = cli.run(&["run", "--", "false"])?;
    assert_eq!(done.code, 7, "{done:?}");
    Ok(())
}

#[test]
fn the_bills_of_failed_jobs_add_up() -> anyhow::Result<()> {
    let Some(own) = start("failed-bills", Options::default())? else { return Ok(()) };
    let cli = own.system.cli();
    fails(&cli, &["--", "sh", "-c", "sleep 1; exit 3"], "EXIT_STATUS")?;
    fails(&cli, &["--max-run-time", "3s", "--", "sleep", "100"], "RUN_LIMIT")?;
    let job = cli.submit(&["--", "sleep", "100"])?;
    reach(&cli, &job, "RUNNING")?;
    cli.well(&["cancel", "-y", &job])?;
    reach(&cli, &job, "CANCELLED")?;
    receipt(&cli, &job)?;
    judged(&own.system)?;
    Ok(())
}
