//! Line 8: the law of `explain`, by brute force over random small worlds; the test itself is the scheduler's own.

use std::collections::BTreeMap;

use anyhow::Context as _;

use crate::place;
use crate::run;
use crate::verify::{Row, Setting};

/// The line by which the test tells its figures.
const FIGURES: &str = "explained: ";

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
    let fine = run::lines(&mut command, |line| {
        println!("  | {line}");
        told.push(line.to_owned());
    })?;
    // The test stops at the first exception, so figures are there only where there is none.
    let fine = fine && told.iter().any(|line| line.starts_with("test result: ok. 1 passed"));
    let Some(figures) = told.iter().find_map(|line| line.strip_prefix(FIGURES)).filter(|_| fine) else {
        let why = told.iter().find(|line| line.contains("seed ")).cloned().unwrap_or_default();
        return Ok(vec![
            Row::new("what `why` names is enough and the smallest", "no exception").measured(why, "", false),
        ]);
    };
    let figures: BTreeMap<_, _> = figures.split(' ').filter_map(|pair| pair.split_once('=')).collect();
    let figure = |name: &str| {
        let text = figures.get(name).with_context(|| format!("the test does not tell {name}"))?;
        text.parse::<u64>().with_context(|| format!("{name} is {text}"))
    };
    let (jobs, named) = (figure("jobs")?, figure("named")?);
    let (one_less, smaller) = (figure("one_less")?, figure("smaller")?);
    let enough = Row::new(
        format!("{worlds} random worlds, {jobs} waiting jobs: changes named that admit the job at the next decision"),
        format!("all of {named}"),
    );
    let least = Row::new(
        format!("changes that admit the job and are smaller than the named one, of {smaller} tried"),
        "0".to_owned(),
    );
    let without =
        Row::new("of these jobs, those that could run some day and that no single change admits", "told, no goal");
    Ok(vec![
        enough
            .measured(named.to_string(), "changes", named > 0)
            .control(format!("with one unit less 0 of {one_less} admit the job"), one_less > 0),
        least.measured("0", "changes", smaller > 0).peer("brute force over every smaller amount"),
        without.measured(figure("unchanged")?.to_string(), "jobs", true).peer("brute force finds none either"),
    ])
}
