//! A job from submit to receipt.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use sluice_e2e::{Kept, Options, checker};

use crate::support::{credits, judged, reach, receipt, start};

#[test]
fn a_job_runs_its_outputs_come_back_and_its_receipt_can_be_recomputed() -> anyhow::Result<()> {
    let Some(own) = start("job", Options::default())? else { return Ok(()) };
    let cli = own.system.cli();
    let script =
        "echo hello; echo warn >&2; mkdir $SLUICE_OUTPUTS/sub; echo result > $SLUICE_OUTPUTS/sub/file; sleep 3";
    let flags = ["--share", "300m", "--host-memory", "64MiB", "--memory", "600MiB", "--", "sh", "-c", script];
    let job = cli.submit(&flags)?;
    let view = reach(&cli, &job, "SUCCEEDED")?;
    assert_eq!(view["tasks"][0]["exitCode"], 0);
    let log = cli.well(&["logs", &job])?.stdout;
    assert!(log.contains("hello") && log.contains("warn"), "{log}");

    let to = own.system.scratch().join("outputs");
    cli.well(&["cp", &job, &to.display().to_string()])?;
    assert_eq!(fs::read_to_string(to.join("sub/file"))?, "result\n");
    let one = own.system.scratch().join("one");
    cli.well(&["cp", &format!("{job}:sub/file"), &one.display().to_string()])?;
    assert_eq!(fs::read_to_string(one)?, "result\n");

    let receipt = receipt(&cli, &job)?;
    assert!(credits(&receipt["gross"]) > 0, "{receipt:#}");
    let windows = cli.json(&["usage", &job])?;
    let windows = windows["items"].as_array().context("windows")?;
    assert!(windows.len() >= 3, "3 s in windows of 1 s: {windows:#?}");
    assert_eq!(windows.iter().map(|window| credits(&window["amount"])).sum::<i64>(), credits(&receipt["gross"]));
    let verdict = judged(&own.system)?;
    assert_eq!(verdict.figures.billed, verdict.figures.journalled);

    // The control: a judge without the nodes' journals cannot be content.
    let nothing = Kept::at(&own.system.scratch().join("nothing"));
    let blind = own.system.block(checker::judge(&own.system.client()?, &nothing))?;
    assert!(blind.findings.iter().any(|finding| finding.contains("no journal has it so")), "{blind}");
    Ok(())
}

#[test]
fn prices_of_host_cores_and_memory_are_on_the_bill() -> anyhow::Result<()> {
    let options = Options { window: Duration::from_millis(500), ..Options::default() };
    let Some(own) = start("prices", options)? else { return Ok(()) };
    let cli = own.system.cli();
    // Dear enough that every window costs thousands of units.
    let flags = [
        "price",
        "set",
        "--class",
        "cpu",
        "--device-hour",
        "3600.01",
        "--core-hour",
        "77.7",
        "--gib-hour",
        "31.3",
        "-y",
    ];
    cli.well(&flags)?;
    let flags = ["--share", "200m", "--memory", "900MiB", "--host-memory", "300MiB", "--max-run-time", "20s", "--"];
    let job = cli.submit(&[&flags[..], &["sleep", "2"]].concat())?;
    reach(&cli, &job, "SUCCEEDED")?;
    let receipt = receipt(&cli, &job)?;
    assert!(credits(&receipt["gross"]) > 100_000, "{receipt:#}");
    assert_eq!(credits(&receipt["held"]), 0);
    judged(&own.system)?;
    Ok(())
}

/// Lines are on their way for some time after the end is told: whoever reads then gets them all.
#[test]
fn a_log_that_is_read_at_once_after_the_end_has_its_last_line() -> anyhow::Result<()> {
    let Some(own) = start("tail", Options::default())? else { return Ok(()) };
    let cli = own.system.cli();
    for round in 0..12 {
        let script = format!("sleep 0.0{round:02}; seq 500; echo last-{round}");
        let job = cli.submit(&["--wait", "--", "/bin/sh", "-c", &script])?;
        let log = cli.well(&["logs", &job])?.stdout;
        anyhow::ensure!(log.trim_end().ends_with(&format!("last-{round}")), "round {round}: {log}");
    }
    Ok(())
}
