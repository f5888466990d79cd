//! Simulated days with faults, seeds that replay, and bugs planted to see whether the judge would notice: line 9 of the
//! spine, and that of the other roads, which are in the same days.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::Context as _;

use super::{Row, Setting};
use crate::{place, run};

/// What 500 simulated days may take.
const MOST_SECONDS: f64 = 360.0;
/// What a day must have at least.
const LEAST_JOBS: f64 = 200.0;
const LEAST_FAULTS: f64 = 50.0;
/// Of 20 planted bugs 18.
const LEAST_CAUGHT: f64 = 18.0 / 20.0;
/// What the days of the other roads must have, somewhat below what they had when this was written: days that stop doing
/// something judge nothing. In each day: rentals that begin, replicas, requests that are settled, and tokens that clients
/// receive. Of the last two the quietest of a hundred days has a tenth of what is usual, by chance; what all have together
/// says more.
const LEAST_RENTS: f64 = 10.0;
const LEAST_REPLICAS: f64 = 8.0;
const LEAST_SETTLED: f64 = 5.0;
const LEAST_TOKENS: f64 = 100.0;
/// In all of the hundred: the same two, rentals that have their time, requests that are cut, attempts that are stopped for
/// want of quota, jobs that resume by themselves after it, answers that go on at another replica, and sequences that are
/// read again because they gave up their places.
const ALL_SETTLED: f64 = 11_000.0;
const ALL_TOKENS: f64 = 240_000.0;
const LEAST_EXPIRED: f64 = 900.0;
const LEAST_VOIDED: f64 = 3000.0;
const LEAST_DRAINED: f64 = 600.0;
const LEAST_RESUMED: f64 = 450.0;
const LEAST_MOVED: f64 = 700.0;
const LEAST_PUT_OUT: f64 = 350.0;
/// The line by which the simulator tells its figures.
const FIGURES: &str = "figures: ";

pub(super) fn days(setting: Setting) -> anyhow::Result<Vec<Row>> {
    if setting.quick {
        // As the tests have it built, so the days are small ones.
        let small = || Command::new(place::target().join("debug/sluice-sim"));
        let days = ran(small().args(["--small", "--seeds", "0..6"]))?;
        let twice = ran(small().args(["--small", "--twice", "--seeds", "0..2"]))?;
        return Ok(vec![days_row(&days), replay_row(&twice)]);
    }
    let days = ran(simulator().args(["--seeds", "0..500"]))?;
    let twice = ran(simulator().args(["--twice", "--seeds", "0..4"]))?;
    let bugs = ran(simulator().arg("bugs"))?;
    let cores = days.figure("threads").max(1.0);
    let seconds = days.figure("seconds");
    let time = Row::new(
        format!("500 seeds on {cores} cores; {:.0} CPU s of {:.0} s", days.figure("cpu_seconds"), seconds * cores),
        format!("<= {MOST_SECONDS} s"),
    );
    let caught = bugs.figure("caught");
    let (planted, least_caught) = (bugs.figure("bugs"), (bugs.figure("bugs") * LEAST_CAUGHT).ceil());
    let judged =
        Row::new("planted bugs that the judge catches", format!(">= {least_caught} of {planted}, as 18 of 20"));
    Ok(vec![
        days_row(&days).control(format!("with a planted bug {caught} of {planted} fail"), caught > 0.0),
        least(&days, "least_jobs", "jobs that a seed submits, least", LEAST_JOBS),
        least(&days, "least_faults", "faults that strike in a seed, least", LEAST_FAULTS),
        least(&days, "least_hours", "simulated time of a seed, least", 24.0),
        time.measured(format!("{seconds:.0}"), "s", seconds <= MOST_SECONDS),
        replay_row(&twice),
        judged
            .measured(caught.to_string(), "bugs", bugs.fine && planted >= 20.0 && caught >= least_caught)
            .control("without a patch the same seeds break no law", bugs.fine)
            .peer("the unbroken system"),
    ])
}

/// What the other roads add to the days.
pub(super) fn roads(setting: Setting) -> anyhow::Result<Vec<Row>> {
    if setting.quick {
        let mut small = Command::new(place::target().join("debug/sluice-sim"));
        let days = ran(small.args(["--small", "--seeds", "6..10"]))?;
        return Ok(vec![
            days_row(&days),
            least(&days, "expired", "rentals that had their time", 1.0),
            least(&days, "least_settled", "requests to endpoints that are settled in a seed, least", 1.0),
            least(&days, "drained", "attempts stopped for want of quota", 1.0),
            least(&days, "moved", "answers that went on at another replica", 1.0),
        ]);
    }
    let days = ran(simulator().args(["--seeds", "500..600"]))?;
    let rents = ran(simulator().args(["bugs", "--only", "-rent-"]))?;
    let endpoints = ran(simulator().args(["bugs", "--only", "-serve-"]))?;
    let engines = ran(simulator().args(["bugs", "--only", "-engine-"]))?;
    let quotas = ran(simulator().args(["bugs", "--only", "-quota-"]))?;
    let (caught, planted) = (rents.figure("caught"), rents.figure("bugs"));
    Ok(vec![
        days_row(&days).control(format!("with a planted bug {caught} of {planted} fail"), caught > 0.0),
        least(&days, "least_rents", "rentals that begin in a seed, least", LEAST_RENTS),
        least(&days, "expired", "rentals that had their time, in all seeds", LEAST_EXPIRED),
        least(&days, "least_replicas", "replicas of endpoints in a seed, least", LEAST_REPLICAS),
        least(&days, "least_settled", "requests to endpoints that are settled in a seed, least", LEAST_SETTLED),
        least(&days, "settled", "the same in all seeds", ALL_SETTLED),
        least(&days, "voided", "requests that the platform cut, in all seeds", LEAST_VOIDED),
        least(&days, "least_tokens", "tokens that clients receive in a seed, least", LEAST_TOKENS),
        least(&days, "tokens", "the same in all seeds", ALL_TOKENS),
        least(&days, "moved", "answers that went on at another replica, in all seeds", LEAST_MOVED),
        least(&days, "put_out", "sequences read again after they gave up their places, in all seeds", LEAST_PUT_OUT),
        least(&days, "drained", "attempts stopped for want of quota, in all seeds", LEAST_DRAINED),
        least(&days, "resumed", "of their jobs those that resumed by themselves", LEAST_RESUMED),
        judged("rentals", &rents, 4.0),
        judged("endpoints", &endpoints, 10.0),
        judged("engines", &engines, 11.0),
        judged("quotas", &quotas, 11.0),
    ])
}

/// All planted bugs of a kind are caught.
fn judged(of: &str, bugs: &Told, least: f64) -> Row {
    let (caught, planted) = (bugs.figure("caught"), bugs.figure("bugs"));
    Row::new(format!("planted bugs of {of} that the judge catches"), format!("all of {planted}"))
        .measured(caught.to_string(), "bugs", bugs.fine && planted >= least && caught == planted)
        .control("without a patch the same seeds break no law", bugs.fine)
        .peer("the unbroken system")
}

fn days_row(days: &Told) -> Row {
    let (seeds, failed) = (days.figure("seeds"), days.figure("failed"));
    let row = Row::new("seeds of a simulated day in which no law is broken", format!("all of {seeds}"));
    row.measured((seeds - failed).to_string(), "seeds", days.fine && failed == 0.0)
}

/// Seeds run twice; the control is that different seeds have different traces, so a trace tells something.
fn replay_row(twice: &Told) -> Row {
    let (seeds, differ, traces) = (twice.figure("seeds"), twice.figure("differ"), twice.figure("traces"));
    let row = Row::new("seeds whose trace is the same when they are run again", format!("all of {seeds}"));
    row.measured((seeds - differ).to_string(), "seeds", twice.fine && differ == 0.0)
        .control(format!("{seeds} seeds have {traces} different traces"), traces == seeds && seeds > 1.0)
}

fn least(days: &Told, figure: &str, metric: &str, goal: f64) -> Row {
    let value = days.figure(figure);
    Row::new(metric, format!(">= {goal}")).measured(value.to_string(), "", value >= goal)
}

fn simulator() -> Command {
    let mut command = place::cargo();
    command.args(["run", "--quiet", "--release", "-p", "sluice-sim", "--"]);
    command
}

/// What a run told.
struct Told {
    fine: bool,
    figures: BTreeMap<String, f64>,
}

impl Told {
    /// A figure; one that was not told meets no goal and equals nothing.
    fn figure(&self, name: &str) -> f64 {
        self.figures.get(name).copied().unwrap_or(f64::NAN)
    }
}

fn ran(command: &mut Command) -> anyhow::Result<Told> {
    let mut figures = None;
    let fine = run::lines(command, |line| {
        println!("  | {line}");
        figures = line.strip_prefix(FIGURES).map(str::to_owned).or(figures.take());
    })?;
    let figures = figures.context("the simulator told no figures")?;
    let pairs = figures.split(' ').filter_map(|pair| pair.split_once('='));
    let figures = pairs.map(|(name, value)| Ok((name.to_owned(), value.parse::<f64>().context("a figure")?)));
    Ok(Told { fine, figures: figures.collect::<anyhow::Result<_>>()? })
}
