//! Models served to the official client: two tenants, three endpoints, cancels and kills; every token counted where it
//! arrives.

pub(super) mod client;
mod judge;
mod node;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use nix::sys::signal::Signal;
use rand::{RngExt as _, SeedableRng as _};
use sluice_proto::v1;

use self::client::{Asked, Driver, Got, How, Mode, python};
pub(super) use self::judge::MARGIN;
use self::judge::{Lone, Verdict, judge};
use super::watched;
use crate::cli::Cli;
use crate::figure::Figure;
use crate::system::{Options, System};
use crate::{groups, processes, wait_for};

/// How long anything may take before it counts as never.
const PATIENCE: Duration = Duration::from_secs(120);
/// Beside the load of a model, an endpoint is back so soon.
const BACK: Duration = Duration::from_secs(5);
/// Answers have so many tokens at most.
const TOKENS: u32 = 64;
/// Of a million tokens, in units of money.
const PRICES: [&str; 4] = ["--price-prompt", "0.5", "--price-completion", "2"];

/// What there is to choose.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// How many requests.
    #[arg(long, default_value_t = 1000)]
    pub requests: usize,
    /// Different prompts among them.
    #[arg(long, default_value_t = 40)]
    pub prompts: usize,
    /// Requests at a time.
    #[arg(long, default_value_t = 12)]
    pub workers: usize,
    /// Seed of what is asked.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The model's file.
    #[arg(long, value_name = "FILE")]
    pub model: Option<std::path::PathBuf>,
    /// Serves the model's file as it is, without making the faster quantisation of it.
    #[arg(long)]
    pub as_it_is: bool,
    /// Leaves the system's folder to be looked at.
    #[arg(long)]
    pub keep: bool,
}

/// Runs it. To be called once per process.
///
/// # Errors
/// The system does not come up, or something never happens.
pub fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let metric = "requests of the official client";
    let python = match python() {
        Ok(python) => python,
        Err(why) => return Ok(vec![Figure::skipped(metric, &why)]),
    };
    let Some(model) = model(plan.model.as_ref()) else {
        return Ok(vec![Figure::skipped(metric, "there is no model: scripts/setup.sh --tests fetches one")]);
    };
    let options = Options { sites: 1, nodes: 2, no_restart: true, ..Options::default() };
    let system = System::start("serves", options)?;
    watched(system, plan.keep, |system| figures(system, plan, &python, &model))
}

/// Fetches the official clients, to be called where there is a network; the proof says why where that failed.
pub fn prepare() {
    for why in [python().err(), node::client().err()].into_iter().flatten() {
        eprintln!("{why}");
    }
}

/// The model that the setup fetches.
pub(super) fn model(chosen: Option<&std::path::PathBuf>) -> Option<std::path::PathBuf> {
    let home = std::env::var_os("HOME").map(std::path::PathBuf::from);
    let cache =
        std::env::var_os("XDG_CACHE_HOME").map(std::path::PathBuf::from).or(home.map(|home| home.join(".cache")));
    let usual = cache.map(|cache| cache.join("sluice/models/SmolLM2-135M-Instruct.Q4_1.gguf"));
    chosen.cloned().or(usual).filter(|path| path.exists())
}

/// A tenant that serves and asks.
pub(super) struct Tenant {
    name: &'static str,
    pub(super) cli: Cli,
    pub(super) secret: String,
}

/// Pairs of answers that are crossed for the control.
const PAIRS: usize = 20;
/// Endpoints as each tenant names them.
const ENDPOINTS: [(&str, &str); 3] = [("red", "one"), ("red", "two"), ("blue", "three")];
const MODELS: [(&str, [&str; 3]); 2] =
    [("red", ["one", "two", "blue/default/three"]), ("blue", ["red/default/one", "red/default/two", "three"])];

fn figures(system: &mut System, plan: &Plan, python: &Path, model: &Path) -> anyhow::Result<Vec<Figure>> {
    // Slices cost nothing here: what moves is the price of tokens.
    let price = ["price", "set", "--class", "cpu", "--device-hour", "0", "--core-hour", "0", "--gib-hour", "0", "-y"];
    system.cli().well(&price)?;
    let tenants = [tenant(system, "red")?, tenant(system, "blue")?];
    let begun = Instant::now();
    for tenant in &tenants {
        tenant.cli.well(&[
            "model",
            "import",
            &model.display().to_string(),
            "--name",
            "small",
            "--requantize",
            "Q4_0",
        ])?;
    }
    let imported = begun.elapsed();
    for (owner, name) in ENDPOINTS {
        let tenant = tenants.iter().find(|tenant| tenant.name == owner).context("a tenant")?;
        let words = ["serve", "small", "--name", name, "--replicas", "1..1", "--slice", "400m", "--memory", "768MiB"];
        let more = ["--context", "1024", "--sequences", "4", "--public"];
        tenant.cli.well(&[&words[..], &more, &PRICES].concat())?;
    }
    let keys: Vec<_> = tenants.iter().map(|tenant| (tenant.name, tenant.secret.clone())).collect();
    let base_url = format!("http://{}/v1", system.gateway());
    let how = How { base_url: &base_url, keys: &keys, workers: plan.workers, retries: None };
    let prompts = prompts(plan);
    let lone = lone(python, &how, &prompts)?;
    let other = other_client(&base_url, &tenants[0].secret)?;
    let before = Before { rows: quiet(system)?, balances: balances(system)? };
    let mut all = vec![Figure::seen("s to import the model, twice", imported.as_secs_f64().round())];
    all.push(other);
    let (asked, got) = load(system, plan, python, &how, &prompts)?;
    all.extend(judged(system, &asked, &got, &lone, &before)?);
    all.extend(gateway_lost(system, plan, python, &how, &prompts)?);
    Ok(all)
}

/// The calls of the official client for Node.
fn other_client(base_url: &str, key: &str) -> anyhow::Result<Figure> {
    let metric = "calls of the official Node client that went wrong";
    let folder = match node::client() {
        Ok(folder) => folder,
        Err(why) => return Ok(Figure::skipped(metric, &why)),
    };
    let (calls, wrong) = node::check(&folder, base_url, key, "one")?;
    wrong.iter().for_each(|text| eprintln!("{text}"));
    let count = i64::try_from(wrong.len()).unwrap_or(i64::MAX);
    Ok(Figure::exactly(metric, count, 0).peer(&format!("{calls} calls")))
}

/// A tenant with money and a key of its own.
pub(super) fn tenant(system: &System, name: &'static str) -> anyhow::Result<Tenant> {
    let admin = system.cli();
    admin.well(&["tenant", "create", name])?;
    admin.well(&["--tenant", name, "project", "create", "default"])?;
    admin.well(&["deposit", name, "1000"])?;
    let file = system.scratch().join(format!("{name}.key"));
    admin.well(&["--tenant", name, "key", "create", "--role", "developer", "--out", &file.display().to_string()])?;
    let secret = std::fs::read_to_string(&file)?.trim().to_owned();
    Ok(Tenant { name, cli: admin.with_key(&file, name), secret })
}

/// Replicas of the endpoint `one` that have not ended.
pub(super) fn replicas(owner: &Tenant) -> anyhow::Result<usize> {
    let value = owner.cli.json(&["endpoint", "get", "one"])?;
    // Left out where there are none.
    let one = value.get("items").and_then(|items| items.get(0)).unwrap_or(&value);
    Ok(one["current"].as_array().map_or(0, Vec::len))
}

fn prompts(plan: &Plan) -> Vec<String> {
    let things = ["a lighthouse", "rain", "the number seven", "a market", "winter", "bread", "a bridge", "tides"];
    let ways =
        ["Tell me about", "Write a short poem about", "List three facts about", "Explain to a child", "Why is there"];
    (0..plan.prompts).map(|at| format!("{} {} ({at}).", ways[at % ways.len()], things[at % things.len()])).collect()
}

/// Each prompt alone, one at a time: what it must be answered with.
fn lone(python: &Path, how: &How<'_>, prompts: &[String]) -> anyhow::Result<BTreeMap<String, Lone>> {
    let ask = |(number, prompt): (usize, &String)| Asked {
        number,
        key: "red",
        model: "one",
        prompt: prompt.clone(),
        max_tokens: TOKENS,
        mode: Mode::Whole,
        cancel_after: 0,
        ignore_end: false,
    };
    let asked: Vec<_> = prompts.iter().enumerate().map(ask).collect();
    let how = How { workers: 1, ..*how };
    let got = Driver::start(python, &how, &asked)?.finish(asked.len(), PATIENCE * 4)?;
    let failed = got.iter().find(|got| got.error.is_some());
    anyhow::ensure!(failed.is_none(), "a lone request failed: {failed:?}");
    Ok(got.into_iter().map(|got| (prompts[got.number].clone(), got.tokens)).collect())
}

fn mixed(plan: &Plan, count: usize, seed: u64, prompts: &[String]) -> Vec<Asked> {
    let mut chance = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|number| {
            let (key, models) = MODELS[number % 2];
            let max_tokens = chance.random_range(plan_tokens(plan)..=TOKENS);
            Asked {
                number,
                key,
                model: models[chance.random_range(0..3)],
                prompt: prompts[chance.random_range(0..prompts.len())].clone(),
                max_tokens,
                mode: match number % 20 {
                    7 => Mode::Cancel,
                    other if other % 2 == 0 => Mode::Stream,
                    _ => Mode::Whole,
                },
                cancel_after: chance.random_range(1..8),
                ignore_end: false,
            }
        })
        .collect()
}

/// Fewer where there are fewer requests: the short form is short.
fn plan_tokens(plan: &Plan) -> u32 {
    if plan.requests < 200 { 12 } else { 24 }
}

/// All requests, while an agent and a worker are killed.
fn load(
    system: &mut System,
    plan: &Plan,
    python: &Path,
    how: &How<'_>,
    prompts: &[String],
) -> anyhow::Result<(Vec<Asked>, Vec<Got>)> {
    let asked = mixed(plan, plan.requests, plan.seed, prompts);
    let mut driver = Driver::start(python, how, &asked)?;
    let long = PATIENCE * 10;
    driver.until(asked.len() / 5, long)?;
    for node in ["node-a1", "node-a2"] {
        let launch = system.kill_part(node)?;
        std::thread::sleep(Duration::from_millis(300));
        system.launch(node, launch)?;
    }
    driver.until(asked.len() / 2, long)?;
    let workers = workers(system)?;
    anyhow::ensure!(!workers.is_empty(), "no engine worker runs");
    processes::signal(workers[0], Signal::SIGKILL);
    let got = driver.finish(asked.len(), long)?;
    Ok((asked, got))
}

/// Processes of engines in this system's sandboxes.
fn workers(system: &System) -> anyhow::Result<Vec<i32>> {
    let mut all = Vec::new();
    for node in ["a/a1", "a/a2"] {
        all.extend(groups::processes_of(&system.group_of(node)?));
    }
    all.retain(|pid| {
        let words = processes::arguments_of(*pid).unwrap_or_default();
        words.iter().any(|word| word == "engine-worker") && !words.iter().any(|word| word.contains("bwrap"))
    });
    Ok(all)
}

type Rows = BTreeMap<String, v1::InferenceRequest>;

/// All rows of both tenants, by id.
fn rows(system: &System) -> anyhow::Result<Rows> {
    let client = system.client()?;
    let mut all = BTreeMap::new();
    for (tenant, _) in MODELS {
        let rows = system.block(client.list_requests(&format!("tenants/{tenant}/projects/default")))?;
        all.extend(rows.into_iter().map(|row| (row.id.clone(), row)));
    }
    Ok(all)
}

/// All rows, once none is open.
fn quiet(system: &System) -> anyhow::Result<Rows> {
    wait_for("the last bill", PATIENCE, || {
        let rows = rows(system)?;
        let open = rows.values().any(|row| row.state() == v1::InferenceRequestState::Open);
        Ok((!open).then_some(rows))
    })
}

/// What there was before the load.
struct Before {
    rows: Rows,
    balances: BTreeMap<&'static str, i64>,
}

/// What both tenants have, in units.
fn balances(system: &System) -> anyhow::Result<BTreeMap<&'static str, i64>> {
    let client = system.client()?;
    let mut all = BTreeMap::new();
    for (tenant, _) in MODELS {
        let request = v1::GetBalanceRequest { tenant: format!("tenants/{tenant}") };
        let balance = system.block(async { client.money().get_balance(request).await })?.into_inner();
        all.insert(tenant, balance.balance_credits);
    }
    Ok(all)
}

/// Waits until nothing is open, and judges.
fn judged(
    system: &System,
    asked: &[Asked],
    got: &[Got],
    lone: &BTreeMap<String, Lone>,
    before: &Before,
) -> anyhow::Result<Vec<Figure>> {
    let mut loaded = quiet(system)?;
    // Those before were no clients of this load.
    loaded.retain(|id, _| !before.rows.contains_key(id));
    let verdict = judge(asked, got, &loaded, lone);
    verdict.told.iter().for_each(|text| eprintln!("{text}"));
    let mut all = told(&verdict, asked, got);
    // The control: two answers change places. A pair whose answers part where the margin is small is told as such.
    let plain = |at: &usize| got[*at].error.is_none() && !got[*at].cancelled;
    let places: Vec<usize> = (0..got.len()).filter(plain).collect();
    let prompt = |at: usize| &asked[got[at].number].prompt;
    let others = places.iter().copied().filter(|at| prompt(*at) != prompt(places[0])).take(PAIRS);
    let (mut tried, mut noticed) = (0, 0);
    for other in others {
        let mut crossed = got.to_vec();
        let (one, two) = (crossed[places[0]].tokens.clone(), crossed[other].tokens.clone());
        (crossed[places[0]].tokens, crossed[other].tokens) = (two, one);
        tried += 1;
        noticed += usize::from(judge(asked, &crossed, &loaded, lone).crossed > verdict.crossed);
    }
    if let Some(figure) = all.iter_mut().find(|figure| figure.metric.starts_with("answers that are not")) {
        let text = format!("{noticed} of {tried} pairs of answers that change places are noticed");
        *figure = figure.clone().control(text, noticed * 2 > tried);
    }
    let after = balances(system)?;
    let mut wrong = 0;
    for (tenant, _) in MODELS {
        let paid: i64 = loaded.values().filter(|row| row.caller == tenant).map(|row| row.credits).sum();
        let earned: i64 = loaded.values().filter(|row| row.owner == tenant).map(|row| row.credits).sum();
        wrong += i64::from(after[tenant] - before.balances[tenant] != earned - paid);
    }
    all.push(Figure::exactly("tenants whose balance is not what their requests say", wrong, 0));
    Ok(all)
}

fn told(verdict: &Verdict, asked: &[Asked], got: &[Got]) -> Vec<Figure> {
    let count = i64::try_from(asked.len()).unwrap_or(i64::MAX);
    let mut firsts: Vec<f64> = got.iter().filter_map(|got| got.first).collect();
    firsts.sort_by(f64::total_cmp);
    let millis = |secs: Option<&f64>| secs.map_or(0, |secs| (secs * 1000.0).round() as i64);
    vec![
        Figure::exactly("requests that failed, with an agent and a worker killed", verdict.failed, 0),
        Figure::exactly("answers that are not those of the lone run", verdict.crossed, 0),
        close(verdict.close, count),
        Figure::exactly("answers billed otherwise than received", verdict.misbilled, 0),
        Figure::at_least("requests that were cancelled", verdict.cancelled, count / 40),
        Figure::exactly("cancels billed less, or more than a token more, than received", verdict.misbilled_cancels, 0),
        Figure::exactly("rows that are paid or open and that no client knows", verdict.unknown, 0),
        Figure::exactly("rows whose amount is not that of their tokens", verdict.misrated, 0),
        Figure::seen("ms to the first token, the median", millis(firsts.get(firsts.len() / 2))),
        Figure::seen("ms to the first token, the slowest", millis(firsts.last())),
    ]
}

/// One in a hundred says something only of hundreds.
fn close(found: i64, of: i64) -> Figure {
    let metric = "answers that differ first where the margin is small";
    if of < 500 { Figure::seen(metric, found) } else { Figure::at_most(metric, found, of / 100) }
}

/// The controller, and the gateway in it, is killed under load: what was in flight fails, retryably, and is credited.
fn gateway_lost(
    system: &mut System,
    plan: &Plan,
    python: &Path,
    how: &How<'_>,
    prompts: &[String],
) -> anyhow::Result<Vec<Figure>> {
    let count = (plan.requests / 10).max(12);
    let asked = mixed(plan, count, plan.seed + 1, prompts);
    let how = How { retries: Some(0), ..*how };
    let mut driver = Driver::start(python, &how, &asked)?;
    driver.until(count / 3, PATIENCE)?;
    let killed = now();
    let launch = system.kill_part("controller")?;
    let begun = Instant::now();
    system.launch("controller", launch)?;
    // The others come while it is away.
    let got = driver.finish(count, PATIENCE * 4)?;
    let up = wait_for("an answer after the restart", PATIENCE, || {
        let one = mixed(plan, 1, plan.seed + 2, prompts);
        let got = Driver::start(python, &how, &one)?.finish(1, PATIENCE)?;
        Ok(got[0].error.is_none().then(|| begun.elapsed()))
    })?;
    let failed: Vec<&Got> = got.iter().filter(|got| got.error.is_some()).collect();
    let retryable = |got: &&&Got| {
        let plain =
            matches!(got.error.as_deref(), Some("APIConnectionError" | "APITimeoutError" | "RemoteProtocolError"));
        let broken = got.error.as_deref().is_some_and(|error| error.contains("Error")) && got.status.is_none();
        plain || broken || got.status.is_some_and(|status| matches!(status, 408 | 409 | 429 | 500..))
    };
    let kept = failed.iter().filter(|got| !retryable(got)).count();
    let before = failed.iter().filter(|got| got.at + got.took + 0.2 < killed).count();
    let rows = quiet(system)?;
    let lost = rows.values().filter(|row| row.reason == "GATEWAY_LOST");
    let paid = lost.clone().filter(|row| row.credits != 0).count();
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    Ok(vec![
        Figure::seen("requests in flight when the gateway was killed", count(lost.count())),
        Figure::exactly("requests that the gateway's death failed and that may not be tried again", count(kept), 0),
        Figure::exactly("requests that failed before it", count(before), 0),
        Figure::exactly("requests lost with the gateway that are paid", count(paid), 0),
        Figure::at_most(
            "ms from the restart to an answer, a client's start included",
            i64::try_from(up.as_millis()).unwrap_or(i64::MAX),
            i64::try_from((BACK * 2).as_millis()).unwrap_or(i64::MAX),
        ),
    ])
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
