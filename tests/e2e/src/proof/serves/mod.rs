//! Models served to the official client: two tenants, three endpoints, cancels and kills; every token counted where it
//! arrives.

pub(super) mod client;
mod gateway;
mod judge;
mod kills;
mod meter;
mod node;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
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
/// What is promised, in times.
#[derive(Debug, Clone, Copy)]
struct Terms {
    /// Beside the load of a model, an endpoint is back so soon.
    back: Duration,
    /// Seconds behind its last byte by which an answer's bill is committed, where nobody keeps the disk busy.
    billed: f64,
    /// How often clients of the gateway's second kill try again. As they come that is twice, after pauses of 0.5 and 1 s
    /// that are a quarter shorter at most, then twice as long each (`openai._base_client`).
    tries: Option<u32>,
    /// They give up later than so many seconds behind the kill.
    gives_up: f64,
}

impl Terms {
    const PROMISED: Self = Self { back: Duration::from_secs(5), billed: 0.5, tries: None, gives_up: 1.0 };
    /// The short form runs on builds without optimisation, beside other tests: it shows that all comes back, not how soon.
    const SHORT: Self = Self { back: Duration::from_secs(15), billed: 5.0, tries: Some(5), gives_up: 10.0 };

    fn of(plan: &Plan) -> Self {
        if is_short(plan) { Self::SHORT } else { Self::PROMISED }
    }
}
/// Nodes that endpoints are placed on.
const NODES: [&str; 2] = ["a/a1", "a/a2"];
/// Answers have so many tokens at most.
const TOKENS: u32 = 64;
/// One request in so many is cancelled.
const CANCELS: usize = 20;
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
    let mut loads = Vec::new();
    for (owner, name) in ENDPOINTS {
        let tenant = tenants.iter().find(|tenant| tenant.name == owner).context("a tenant")?;
        loads.push(serve(system, tenant, name)?);
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
    // A client that tries again would hide what kills fail.
    let once = How { retries: Some(0), ..how };
    let (asked, got, kills) = kills::load(system, plan, python, &once, &prompts)?;
    let mut loaded = quiet(system)?;
    // Those before were no clients of this load.
    loaded.retain(|id, _| !before.rows.contains_key(id));
    all.extend(judged(system, &asked, &got, &lone, &before, &loaded)?);
    all.extend(kills.figures(&got, &loaded, loads.into_iter().min().unwrap_or_default()));
    all.extend(gateway::lost(system, plan, python, &once, &prompts)?);
    Ok(all)
}

/// Serves an endpoint of one replica; returns how long its worker took from its start to where it serves, while nothing else
/// is done.
fn serve(system: &System, owner: &Tenant, name: &str) -> anyhow::Result<Duration> {
    let before = workers(system)?;
    let words = ["serve", "small", "--name", name, "--replicas", "1..1", "--slice", "400m", "--memory", "768MiB"];
    let more = ["--context", "1024", "--sequences", "4", "--public"];
    owner.cli.well(&[&words[..], &more, &PRICES].concat())?;
    let begun = wait_for("a worker", PATIENCE, || {
        let new = workers(system)?.iter().any(|pid| !before.contains(pid));
        Ok(new.then(Instant::now))
    })?;
    wait_for("a replica that runs", PATIENCE, || {
        let runs = |row: &Value| row["state"].as_str().is_some_and(|state| state.eq_ignore_ascii_case("running"));
        Ok(current(owner, name)?.iter().any(runs).then(|| begun.elapsed()))
    })
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
    Ok(current(owner, "one")?.len())
}

/// Replicas of an endpoint that have not ended, as the command line has them.
fn current(owner: &Tenant, name: &str) -> anyhow::Result<Vec<Value>> {
    let value = owner.cli.json(&["endpoint", "get", name])?;
    // Left out where there are none.
    let one = value.get("items").and_then(|items| items.get(0)).unwrap_or(&value);
    Ok(one["current"].as_array().cloned().unwrap_or_default())
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
    let modes = modes(count, &mut chance);
    let ask = |(number, mode): (usize, Mode)| {
        let (key, models) = MODELS[number % MODELS.len()];
        let (max_tokens, cancel_after) = match mode {
            // Much is to come yet when its client wants no more.
            Mode::Cancel => (TOKENS, chance.random_range(1..8)),
            Mode::Whole | Mode::Stream => (chance.random_range(plan_tokens(plan)..=TOKENS), 0),
        };
        Asked {
            number,
            key,
            model: models[chance.random_range(0..models.len())],
            prompt: prompts[chance.random_range(0..prompts.len())].clone(),
            max_tokens,
            mode,
            cancel_after,
            ignore_end: false,
        }
    };
    modes.into_iter().enumerate().map(ask).collect()
}

/// How each request is made: exactly one in [`CANCELS`] is cancelled, of the others every second is streamed. Tenants
/// take turns by number; which of its requests is made how is chance, and each has its part of all.
fn modes(count: usize, chance: &mut impl rand::Rng) -> Vec<Mode> {
    let (tenants, cancels) = (MODELS.len(), count / CANCELS);
    let mut modes = vec![Mode::Whole; count];
    for tenant in 0..tenants {
        let mut places: Vec<usize> = (tenant..count).step_by(tenants).collect();
        places.shuffle(chance);
        for (rank, place) in places.into_iter().enumerate() {
            // Dealt out as cards are: to the tenants in turn, until there are no more.
            modes[place] = match rank * tenants + tenant {
                dealt if dealt < cancels => Mode::Cancel,
                _ if rank % 2 == 0 => Mode::Stream,
                _ => Mode::Whole,
            };
        }
    }
    modes
}

/// So few requests that chance may leave out what many surely have.
fn is_short(plan: &Plan) -> bool {
    plan.requests < 200
}

/// Fewer where there are fewer requests: the short form is short.
fn plan_tokens(plan: &Plan) -> u32 {
    if is_short(plan) { 12 } else { 24 }
}

/// Processes of engines in this system's sandboxes.
fn workers(system: &System) -> anyhow::Result<Vec<i32>> {
    let all: Vec<_> = NODES.iter().map(|node| workers_of(system, node)).collect::<Result<_, _>>()?;
    Ok(all.concat())
}

/// Those of a node.
pub(super) fn workers_of(system: &System, node: &str) -> anyhow::Result<Vec<i32>> {
    let mut all = groups::processes_of(&system.group_of(node)?);
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

/// Judges the load by its rows.
fn judged(
    system: &System,
    asked: &[Asked],
    got: &[Got],
    lone: &BTreeMap<String, Lone>,
    before: &Before,
    loaded: &Rows,
) -> anyhow::Result<Vec<Figure>> {
    let verdict = judge(asked, got, loaded, lone);
    verdict.told.iter().for_each(|text| eprintln!("{text}"));
    let mut all = told(&verdict, asked, got);
    // A client as it comes tries again, and says nothing of it.
    let hidden = before.rows.values().filter(|row| row.state() == v1::InferenceRequestState::Voided).count();
    all.push(Figure::exactly("rows before the load that are credited, under clients that try again", count(hidden), 0));
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
        noticed += usize::from(judge(asked, &crossed, loaded, lone).crossed > verdict.crossed);
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
    let cancels = asked.iter().filter(|asked| asked.mode == Mode::Cancel).count();
    let (most, least) = (count(cancels), count(cancels - cancels.div_ceil(5)));
    let count = count(asked.len());
    let mut firsts: Vec<f64> = got.iter().filter_map(|got| got.first).collect();
    firsts.sort_by(f64::total_cmp);
    let millis = |secs: Option<&f64>| secs.map_or(0, |secs| (secs * 1000.0).round() as i64);
    vec![
        Figure::exactly("requests, tried once, that failed with agents and a worker killed", verdict.failed, 0),
        Figure::exactly("rows that are credited though their client did not leave", verdict.voided, 0),
        Figure::exactly("answers that are not those of the lone run", verdict.crossed, 0),
        close(verdict.close, count),
        Figure::exactly("answers billed otherwise than received", verdict.misbilled, 0),
        // One in five may come too late, when its answer has just ended.
        Figure::at_least("requests that were cancelled in mid-answer", verdict.cancelled, least)
            .peer(&format!("{most} of {count} were to be")),
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

fn count(of: usize) -> i64 {
    i64::try_from(of).unwrap_or(i64::MAX)
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(requests: usize) -> Plan {
        Plan { requests, prompts: 2, workers: 6, seed: 1, model: None, as_it_is: false, keep: false }
    }

    fn asked(requests: usize, seed: u64) -> Vec<Asked> {
        mixed(&plan(requests), requests, seed, &["a".to_owned(), "b".to_owned()])
    }

    #[test]
    fn one_in_twenty_is_cancelled_and_either_tenant_does_all_there_is() {
        for (requests, cancels) in [(1, 0), (12, 0), (60, 3), (1000, 50)] {
            let asked = asked(requests, 1);
            let of =
                |key: &str, mode: Mode| asked.iter().filter(|asked| asked.key == key && asked.mode == mode).count();
            let each = |mode: Mode| MODELS.map(|(key, _)| of(key, mode));
            assert_eq!((asked.len(), each(Mode::Cancel).iter().sum::<usize>()), (requests, cancels));
            if requests >= 2 * CANCELS {
                for mode in [Mode::Cancel, Mode::Stream, Mode::Whole] {
                    let [one, other] = each(mode);
                    assert!(one > 0 && one.abs_diff(other) <= 1, "{mode:?}: {one} and {other} of {requests}");
                }
            }
        }
    }

    #[test]
    fn a_cancel_comes_long_before_the_end_of_its_answer() {
        let asked = asked(1000, 1);
        let mut cancels = asked.iter().filter(|asked| asked.mode == Mode::Cancel);
        assert!(cancels.all(|asked| (1..8).contains(&asked.cancel_after) && asked.max_tokens == TOKENS));
    }

    #[test]
    fn the_seed_says_which_request_is_made_how() {
        let modes = |seed| asked(60, seed).into_iter().map(|asked| asked.mode).collect::<Vec<_>>();
        assert_eq!(modes(1), modes(1));
        assert_ne!(modes(1), modes(2));
        let turns = |mode: Mode| modes(1).into_iter().step_by(2).all(|found| found == mode);
        assert!(!turns(Mode::Stream) && !turns(Mode::Whole), "a tenant's are of all kinds");
    }
}
