//! An endpoint grows from nothing to two replicas under load and back to nothing; a replica's node is drained and lost under
//! a long stream, which goes on at the other site.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::serves::client::{Asked, Driver, Got, How, Mode, Ready};
use super::serves::{self, client};
use super::watched;
use crate::figure::Figure;
use crate::system::{Options, System};
use crate::wait_for;

/// How long anything may take before it counts as never.
const PATIENCE: Duration = Duration::from_secs(120);
/// A second replica runs so soon behind the step of the load: two seconds of too little room, and a start.
const GROWN: Duration = Duration::from_secs(8);
/// Without requests, beside the idle time.
const SHRUNK: Duration = Duration::from_secs(8);
/// The short form runs on builds without optimisation, beside other tests: so many times as long is soon enough there.
const SHORT: u32 = 3;
/// It has fewer tokens in its stream.
const TOKENS: u32 = 2_000;
/// What is idle for so long is not needed.
const IDLE: Duration = Duration::from_secs(4);

/// What there is to choose.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// Tokens of the stream whose replica is lost.
    #[arg(long, default_value_t = TOKENS)]
    pub tokens: u32,
    /// The model's file.
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Leaves the system's folder to be looked at.
    #[arg(long)]
    pub keep: bool,
}

/// Runs it. To be called once per process.
///
/// # Errors
/// The system does not come up, or something never happens.
pub fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let metric = "an endpoint from nothing to two replicas and back";
    let python = match client::python() {
        Ok(python) => python,
        Err(why) => return Ok(vec![Figure::skipped(metric, &why)]),
    };
    let Some(model) = serves::model(plan.model.as_ref()) else {
        return Ok(vec![Figure::skipped(metric, "there is no model: scripts/setup.sh --tests fetches one")]);
    };
    let system = System::start("scales", Options { sites: 2, nodes: 1, no_restart: true, ..Options::default() })?;
    watched(system, plan.keep, |system| figures(system, plan, &python, &model))
}

fn figures(system: &mut System, plan: &Plan, python: &Path, model: &Path) -> anyhow::Result<Vec<Figure>> {
    let owner = serves::tenant(system, "red")?;
    owner.cli.well(&["model", "import", &model.display().to_string(), "--name", "small", "--requantize", "Q4_0"])?;
    let context = (plan.tokens + 64).to_string();
    let words = ["serve", "small", "--name", "one", "--replicas", "0..2", "--slice", "800m", "--memory", "1GiB"];
    let idle = format!("{}s", IDLE.as_secs());
    owner.cli.well(&[&words[..], &["--context", &context, "--sequences", "2", "--idle", &idle]].concat())?;
    let keys = [("red", owner.secret.clone())];
    let base_url = format!("http://{}/v1", system.gateway());
    let how = How { base_url: &base_url, keys: &keys, workers: 6, retries: None };
    let mut all = vec![Figure::exactly("replicas before any request", replicas(&owner)?.0, 0)];
    let (start, grown) = grows(&owner, plan, python, &how)?;
    all.extend(grown);
    all.extend(moves(system, &owner, plan, python, &how, start)?);
    Ok(all)
}

/// Replicas of the endpoint that have not ended, and those that run, each with its site.
fn replicas(owner: &serves::Tenant) -> anyhow::Result<(i64, Vec<String>)> {
    let value = owner.cli.json(&["endpoint", "get", "one"])?;
    // Left out where there are none.
    let one = value.get("items").and_then(|items| items.get(0)).unwrap_or(&value);
    let current = one["current"].as_array().cloned().unwrap_or_default();
    let runs =
        current.iter().filter(|row| row["state"].as_str().is_some_and(|state| state.eq_ignore_ascii_case("running")));
    let sites = runs.filter_map(|row| Some(row["site"].as_str()?.trim_start_matches("sites/").to_owned()));
    Ok((i64::try_from(current.len())?, sites.collect()))
}

fn asked(number: usize, prompt: &str, max_tokens: u32, mode: Mode) -> Asked {
    let (key, model) = ("red", "one");
    Asked { number, key, model, prompt: prompt.to_owned(), max_tokens, mode, cancel_after: 0, ignore_end: true }
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// From nothing, under a step of load, and back; with the time from nothing to a first token.
fn grows(owner: &serves::Tenant, plan: &Plan, python: &Path, how: &How<'_>) -> anyhow::Result<(Duration, Vec<Figure>)> {
    let times = if plan.tokens < TOKENS { SHORT } else { 1 };
    let cold = Driver::start(python, how, &[asked(0, "Say hello.", 2, Mode::Stream)])?.finish(1, PATIENCE)?;
    anyhow::ensure!(cold[0].error.is_none(), "the cold request failed: {:?}", cold[0]);
    let first = Duration::from_secs_f64(cold[0].first.context("the cold request had no token")?);
    let load: Vec<_> = (0..24).map(|number| asked(number, "Tell a long story.", 160, Mode::Stream)).collect();
    let client = Ready::begin(python)?;
    let begun = Instant::now();
    let driver = client.ask(how, &load)?;
    let grown = wait_for("two replicas", PATIENCE, || Ok((replicas(owner)?.1.len() == 2).then(|| begun.elapsed())))?;
    let got = driver.finish(load.len(), PATIENCE * 4)?;
    let ended = Instant::now();
    let none = || Ok((replicas(owner)?.0 == 0).then(|| ended.elapsed()));
    let shrunk = wait_for("no replica", PATIENCE, none)?;
    let failed = got.iter().filter(|got| got.error.is_some()).count();
    let goal = millis(SHRUNK * times + IDLE);
    let figures = vec![
        Figure::seen("ms from nothing to a first token", millis(first)),
        Figure::at_most("ms from the step of the load to two running replicas", millis(grown), millis(GROWN * times)),
        Figure::exactly("requests that failed under it", i64::try_from(failed)?, 0),
        Figure::at_most("ms from the last request to no replica", millis(shrunk), goal),
        Figure::at_least("ms of the idle time that were waited for", millis(shrunk), millis(IDLE / 2)),
    ];
    Ok((first, figures))
}

/// How long a replica with nothing else to do reads as much as there was of a stream when it stood still longest.
fn read_again(python: &Path, how: &How<'_>, prompt: &str, got: &Got) -> anyhow::Result<Duration> {
    let tokens = got.tokens.iter().take(got.gap_at.unwrap_or_default());
    let bytes = tokens.map(|(token, _)| hex::decode(token)).collect::<Result<Vec<_>, _>>()?.concat();
    let so_far = format!("{prompt}{}", String::from_utf8_lossy(&bytes));
    let read = Driver::start(python, how, &[asked(0, &so_far, 1, Mode::Stream)])?.finish(1, PATIENCE)?;
    let first = read[0].first.with_context(|| format!("it was not read again: {:?}", read[0].error))?;
    Ok(Duration::from_secs_f64(first))
}

/// How long a drained node's replica may serve on while another begins.
const DEADLINE: Duration = Duration::from_secs(1);
/// A stream that moves stands still for the start of the other replica, for its tokens so far to be read again, and for its
/// way there, at most so long; a kill that nobody announced takes the loss timeout beside it.
const WAY: Duration = Duration::from_secs(2);
/// What was generated is read again a few tokens at a time, so that what follows is the same bit for bit: that takes so many
/// times as long as to read as much of a prompt.
const AGAIN: u32 = 2;
/// However slow both are.
const LONGEST: Duration = Duration::from_secs(15);

/// The node of the only replica is drained and, when the deadline is over, lost, under a long stream.
fn moves(
    system: &mut System,
    owner: &serves::Tenant,
    plan: &Plan,
    python: &Path,
    how: &How<'_>,
    start: Duration,
) -> anyhow::Result<Vec<Figure>> {
    owner.cli.well(&["endpoint", "update", "one", "--replicas", "1..1"])?;
    let prompt = "Count as far as you can.";
    // It is there before anything is measured.
    Driver::start(python, how, &[asked(0, prompt, 1, Mode::Stream)])?.finish(1, PATIENCE)?;
    let lone = Driver::start(python, how, &[asked(0, prompt, plan.tokens, Mode::Stream)])?.finish(1, PATIENCE * 4)?;
    let (_, sites) = replicas(owner)?;
    let site = sites.first().context("a running replica")?.clone();
    let client = Ready::begin(python)?;
    let mut driver = client.ask(how, &[asked(0, prompt, plan.tokens, Mode::Stream)])?;
    // A part of it is there.
    std::thread::sleep(Duration::from_secs_f64(lone[0].took / 3.0));
    let node = format!("{site}/{site}1");
    let served = serves::workers_of(system, &node)?.len();
    let deadline = format!("{}ms", DEADLINE.as_millis());
    let drained = Instant::now();
    system.cli().well(&["nodes", "drain", &node, "--deadline", &deadline, "-y"])?;
    let other = wait_for("a replica at the other site", PATIENCE, || {
        let others = replicas(owner)?.1.iter().any(|other| *other != site);
        // The node is lost at its moment, also where nothing has begun elsewhere by then.
        Ok((others || drained.elapsed() >= DEADLINE).then_some(others))
    })?;
    let before = serves::workers_of(system, &node)?.len();
    std::thread::sleep(DEADLINE.saturating_sub(drained.elapsed()));
    system.kill_node(&node)?;
    driver.until(1, PATIENCE * 4)?;
    let got = driver.finish(1, PATIENCE)?;
    let same = got[0].tokens.iter().zip(&lone[0].tokens).take_while(|((one, _), (other, _))| one == other).count();
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let (_, sites) = replicas(owner)?;
    let margin = lone[0].tokens.get(same).and_then(|(_, margin)| *margin);
    let even = margin.is_some_and(|margin| margin < serves::MARGIN);
    let gap = (got[0].gap.unwrap_or(0.0) * 1000.0).round() as i64;
    let read = match got[0].error {
        None => read_again(python, how, prompt, &got[0])?,
        Some(_) => Duration::ZERO,
    };
    let most = millis((start + read * AGAIN + WAY).min(LONGEST));
    Ok(vec![
        Figure::exactly("streams that failed with their replica's node", i64::from(got[0].error.is_some()), 0),
        Figure::exactly("tokens of the stream", count(got[0].tokens.len()), i64::from(plan.tokens)),
        Figure::new(
            "tokens of the stream that are the lone run's, up to a choice that was nearly even",
            count(same),
            format!("= {}, or where the margin is below {}", plan.tokens, serves::MARGIN),
            same == got[0].tokens.len() || even,
        ),
        Figure::exactly("replicas at the lost site", count(sites.iter().filter(|other| **other == site).count()), 0),
        // Where there is none, the stream was over before its node was.
        Figure::new("ms of the longest gap in it", gap, format!("100 to {most}"), (100..=most).contains(&gap))
            .peer(&format!("a start takes {} ms, as many tokens are read in {} ms", millis(start), millis(read))),
        Figure::exactly("workers at the node when it was drained", count(served), 1),
        Figure::seen("replicas that ran at the other site before the drained node was lost", i64::from(other)),
        Figure::seen("workers that the drained node still had when they did", count(before)),
    ])
}
