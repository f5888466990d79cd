//! Line 8: the law of `explain`, by brute force over random small worlds; the test itself is the scheduler's own.

use crate::place;
use crate::run;
use crate::verify::{Row, Setting};

pub(super) fn rows(setting: Setting) -> anyhow::Result<Vec<Row>> {
    let worlds = if setting.quick { 200 } else { 1000 };
    let name = format!("named_changes_are_enough_and_smallest_in_{worlds}_worlds");
    let mut command = place::cargo();
    command.args(["test", "--quiet"]);
    if setting.quick {
        // As the tests have it built.
        command.args(place::ALL);
    } else {
        command.args(["--release", "-p", "sluice-plan"]);
    }
    command.args(["--test", "explain", "--", "--exact", &name, "--include-ignored", "--nocapture"]);
    let mut told = Vec::new();
    let fine = run::lines(&mut command, |line| told.push(line.to_owned()))?;
    let ran = told.iter().any(|line| line.starts_with("test result: ok. 1 passed"));
    let checked = told.iter().find(|line| line.starts_with("changes checked")).cloned().unwrap_or_default();
    let row = Row::new(
        format!("{worlds} random worlds: the named change admits the job, and brute force finds none smaller"),
        "no exception",
    );
    Ok(vec![row.measured(checked, "", fine && ran).peer("brute force")])
}
