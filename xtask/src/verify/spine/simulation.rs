//! Line 9: simulated days with faults, and bugs planted to see whether the judge would notice.

use std::process::Command;
use std::time::Instant;

use crate::verify::{Row, Setting};
use crate::{place, run};

/// What 500 simulated days may take.
const MOST_SECONDS: f64 = 360.0;

pub(super) fn rows(setting: Setting) -> anyhow::Result<Vec<Row>> {
    let seeds = if setting.quick { "0..10" } else { "0..500" };
    let days = Row::new("seeds of one simulated day without a broken law", "all; 500 of them in 360 s");
    let bugs = Row::new("planted bugs that the judge catches", ">= 18 of 20");
    if !place::has_program("sluice-sim", "sluice-sim")? {
        return Ok(vec![days, bugs]);
    }
    if setting.quick {
        // As the tests have it built, so the day is a small one.
        let mut command = Command::new(place::target().join("debug/sluice-sim"));
        let (fine, _, told) = ran(command.args(["--seeds", seeds, "--small"]))?;
        return Ok(vec![days.measured(told, "", fine), bugs.skipped("the long form only")]);
    }
    let (fine, seconds, told) = ran(simulator().args(["--seeds", seeds]))?;
    let days = days.measured(format!("{told} ({seconds:.0} s)"), "", fine && seconds <= MOST_SECONDS);
    let (fine, _, told) = ran(simulator().arg("bugs"))?;
    Ok(vec![days, bugs.measured(told, "", fine).peer("the unbroken system, which has no broken law")])
}

fn simulator() -> Command {
    let mut command = place::cargo();
    command.args(["run", "--quiet", "--release", "-p", "sluice-sim", "--"]);
    command
}

/// Whether it succeeded, how long it took, and its last line.
fn ran(command: &mut Command) -> anyhow::Result<(bool, f64, String)> {
    let begin = Instant::now();
    let mut last = String::new();
    let fine = run::lines(command, |line| {
        println!("  | {line}");
        last = line.to_owned();
    })?;
    Ok((fine, begin.elapsed().as_secs_f64(), last))
}
