//! `cargo xtask verify AREA [LINE]`: what an area must show, measured now, with a control that fails.
//!
//! A line of an area is one module beside this one. It returns [`Row`]s: one figure each, with its goal, and a control,
//! which is the same measurement without the mechanism and must miss the goal. A line that is not built says so and does
//! not hold.

mod outside;
mod roads;
mod simulation;
mod spine;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Context as _;
use serde::Serialize;

use crate::lanes::Job;
use crate::place;

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// Which area
    #[arg(value_name = "AREA")]
    area: String,
    /// Only this line
    #[arg(value_name = "LINE")]
    line: Option<u32>,
    /// Write the rows here too, as a JSON array
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The short form that CI runs; lines that are not built do not fail it
    #[arg(long)]
    quick: bool,
    /// Seed of all random moments
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What a line may need to know.
#[derive(Debug, Clone, Copy)]
struct Setting {
    quick: bool,
    seed: u64,
}

impl Setting {
    /// How the programs under test are built.
    const fn profile(self) -> place::Profile {
        if self.quick { place::Profile::Debug } else { place::Profile::Release }
    }
}

/// What came of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Holds,
    Fails,
    NotBuilt,
    Skipped,
    /// A figure without a goal.
    Told,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Holds => "holds",
            Self::Fails => "DOES NOT HOLD",
            Self::NotBuilt => "not built yet",
            Self::Skipped => "SKIPPED",
            Self::Told => "told",
        })
    }
}

/// One figure.
#[derive(Debug, Clone)]
struct Row {
    metric: String,
    value: String,
    unit: &'static str,
    goal: String,
    /// What the same measurement gives without the mechanism.
    control: String,
    /// What it is compared with.
    peer: String,
    verdict: Verdict,
}

impl Row {
    fn new(metric: impl Into<String>, goal: impl Into<String>) -> Self {
        Self {
            metric: metric.into(),
            value: String::new(),
            unit: "",
            goal: goal.into(),
            control: String::new(),
            peer: String::new(),
            verdict: Verdict::NotBuilt,
        }
    }

    fn measured(mut self, value: impl Into<String>, unit: &'static str, holds: bool) -> Self {
        (self.value, self.unit) = (value.into(), unit);
        self.verdict = if holds { Verdict::Holds } else { Verdict::Fails };
        self
    }

    /// The control's figure. A control that meets the goal too shows that the measurement proves nothing.
    fn control(mut self, told: impl Into<String>, missed: bool) -> Self {
        self.control = told.into();
        if !missed && self.verdict == Verdict::Holds {
            self.verdict = Verdict::Fails;
        }
        self
    }

    fn peer(mut self, peer: &str) -> Self {
        self.peer = peer.to_owned();
        self
    }

    fn told(mut self, value: impl Into<String>) -> Self {
        self.value = value.into();
        self.verdict = Verdict::Told;
        self
    }

    fn skipped(mut self, why: &str) -> Self {
        self.value = why.to_owned();
        self.verdict = Verdict::Skipped;
        self
    }
}

/// Measures a line.
type Measure = fn(Setting) -> anyhow::Result<Vec<Row>>;

/// A line of an area.
struct Line {
    number: u32,
    title: &'static str,
    /// Without it: not built yet.
    run: Option<Measure>,
    /// Its short form judges times or shares of a processor too, so nothing may run beside it.
    timed: bool,
}

#[derive(Serialize)]
struct Written<'a> {
    line: u32,
    metric: &'a str,
    value: &'a str,
    unit: &'a str,
    goal: &'a str,
    control: &'a str,
    peer: &'a str,
    holds: bool,
    verdict: String,
    command: String,
}

const AREAS: [&str; 2] = ["spine", "roads"];

fn lines_of(area: &str) -> anyhow::Result<Vec<Line>> {
    match area {
        "spine" => Ok(spine::lines()),
        "roads" => Ok(roads::lines()),
        _ => anyhow::bail!("there is no area {area}; areas: {}", AREAS.join(", ")),
    }
}

/// `cargo xtask verify`
pub(crate) fn command(arguments: &VerifyArgs) -> anyhow::Result<()> {
    let setting = Setting { quick: arguments.quick, seed: arguments.seed };
    let rows = rows_of(&arguments.area, arguments.line, setting)?;
    if let Some(file) = &arguments.json {
        let written: Vec<_> = rows.iter().map(|(line, row)| written(&arguments.area, *line, row)).collect();
        std::fs::write(file, serde_json::to_vec_pretty(&written)?).context("cannot write the JSON file")?;
    }
    let count = |verdict| rows.iter().filter(|(_, row)| row.verdict == verdict).count();
    println!(
        "\n{}: {} rows: {} hold, {} do not, {} skipped, {} not built yet",
        arguments.area,
        rows.len() - count(Verdict::Told),
        count(Verdict::Holds),
        count(Verdict::Fails),
        count(Verdict::Skipped),
        count(Verdict::NotBuilt)
    );
    // Said again at the end: whoever reads only the last lines of a long run finds the cause there.
    for (line, row) in rows.iter().filter(|(_, row)| row.verdict == Verdict::Fails) {
        println!("\nline {line}");
        print(row);
    }
    let bad =
        count(Verdict::Fails) + if setting.quick { 0 } else { count(Verdict::Skipped) + count(Verdict::NotBuilt) };
    anyhow::ensure!(bad == 0, "{bad} rows do not hold");
    Ok(())
}

/// One line in its long form, as `cargo xtask bench` runs it.
pub(crate) fn line(area: &str, line: u32, json: Option<PathBuf>) -> anyhow::Result<()> {
    command(&VerifyArgs { area: area.to_owned(), line: Some(line), json, quick: false, seed: 1 })
}

/// The short form of each line of every area, on the programs that the tests have built. Each writes its rows into
/// `folder`, where [`counted`] counts them.
pub(crate) fn quick(folder: &Path) -> anyhow::Result<Vec<Job>> {
    let mut jobs = Vec::new();
    for area in AREAS {
        for line in lines_of(area)? {
            let mut command = Command::new(place::this_program()?);
            command.args(["verify", area, &line.number.to_string(), "--quick", "--json"]);
            command.arg(folder.join(format!("{area}-{}.json", line.number)));
            jobs.push(Job { name: format!("verify {area} {} --quick", line.number), command, alone: line.timed });
        }
    }
    Ok(jobs)
}

/// Of the rows in a folder: how many hold, how many do not, how many were skipped or are not built.
pub(crate) fn counted(folder: &Path) -> anyhow::Result<(usize, usize, usize)> {
    #[derive(serde::Deserialize)]
    struct Told {
        verdict: String,
    }
    let mut told: Vec<Told> = Vec::new();
    for file in folder.read_dir().context("the rows' folder")? {
        told.append(&mut serde_json::from_slice(&std::fs::read(file?.path())?).context("rows of a line")?);
    }
    let count = |verdict: Verdict| told.iter().filter(|row| row.verdict == verdict.to_string()).count();
    let skipped = count(Verdict::Skipped) + count(Verdict::NotBuilt);
    Ok((count(Verdict::Holds), count(Verdict::Fails), skipped))
}

fn rows_of(area: &str, only: Option<u32>, setting: Setting) -> anyhow::Result<Vec<(u32, Row)>> {
    let lines = lines_of(area)?;
    anyhow::ensure!(
        only.is_none_or(|number| lines.iter().any(|line| line.number == number)),
        "{area} has lines {}",
        lines.iter().map(|line| line.number.to_string()).collect::<Vec<_>>().join(", ")
    );
    let mut all = Vec::new();
    for line in lines.iter().filter(|line| only.is_none_or(|number| number == line.number)) {
        let begin = Instant::now();
        println!("\n{area} {}: {}", line.number, line.title);
        println!("  command: {}", command_of(area, line.number, setting));
        let rows = match line.run {
            None => vec![Row::new(line.title, "")],
            // A line that cannot be measured does not hold; the others are measured all the same.
            Some(run) => run(setting)
                .unwrap_or_else(|error| vec![Row::new(line.title, "").measured(format!("{error:#}"), "", false)]),
        };
        for row in &rows {
            print(row);
        }
        if line.run.is_some() {
            println!("  took {:.1} s", begin.elapsed().as_secs_f64());
        }
        all.extend(rows.into_iter().map(|row| (line.number, row)));
    }
    Ok(all)
}

fn command_of(area: &str, line: u32, setting: Setting) -> String {
    let quick = if setting.quick { " --quick" } else { "" };
    format!("cargo xtask verify {area} {line}{quick} --seed {}", setting.seed)
}

fn print(row: &Row) {
    let Row { metric, value, unit, goal, control, peer, verdict } = row;
    println!("  {verdict}: {metric}: {value}{}{unit}", if unit.is_empty() { "" } else { " " });
    for (name, text) in [("goal", goal.as_str()), ("control", control), ("compared with", peer.as_str())] {
        if !text.is_empty() {
            println!("      {name}: {text}");
        }
    }
}

fn written<'a>(area: &str, line: u32, row: &'a Row) -> Written<'a> {
    let Row { metric, value, unit, goal, control, peer, verdict } = row;
    Written {
        line,
        metric,
        value,
        unit,
        goal,
        control,
        peer,
        // What has no goal misses none.
        holds: matches!(verdict, Verdict::Holds | Verdict::Told),
        verdict: verdict.to_string(),
        command: format!("cargo xtask verify {area} {line}"),
    }
}
