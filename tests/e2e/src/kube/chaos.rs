//! Line 7: operator, controller and API server are killed while objects change; nothing of it shows in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use sluice_proto::v1;

use super::changes;
use super::cluster::Part;
use super::door::Door;
use super::versions::Versions;
use super::world::World;
use super::{Kubectl, User};
use crate::client::Client;
use crate::figure::Figure;
use crate::system::Options;
use crate::wait_for;

const DEPOSIT: i64 = 1_000_000_000;
/// How long all may take to be as written once nothing changes any more.
const SETTLES: Duration = Duration::from_secs(400);
/// How long a new operator may take to work: the old one's Lease has to run out.
const TAKES_OVER: Duration = Duration::from_secs(60);
/// How long a round of kills takes, about.
const ROUND: Duration = Duration::from_secs(20);

/// What there is to choose.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// How many objects change
    #[arg(long, default_value_t = 500)]
    objects: usize,
    /// How often each of the three is killed
    #[arg(long, default_value_t = 20)]
    kills: u32,
    /// Seed of the order of changes and of the moments of kills
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What is left in the end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    specs: BTreeMap<String, String>,
    quotas: BTreeMap<String, String>,
    phases: BTreeMap<String, String>,
}

/// Runs it twice: undisturbed, and with kills.
///
/// # Errors
/// Something does not come up, or objects do not become as written.
pub fn run(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let (undisturbed, _) = once(plan, 0)?;
    let (disturbed, mut figures) = once(plan, plan.kills)?;
    let objects = undisturbed.specs.len();
    let mut all = Vec::new();
    for (what, a, b) in [
        ("specs", &undisturbed.specs, &disturbed.specs),
        ("quota rows", &undisturbed.quotas, &disturbed.quotas),
        ("terminal phases", &undisturbed.phases, &disturbed.phases),
    ] {
        let differs = difference(a, b);
        for (name, value) in a.iter().filter(|(name, value)| b.get(*name) != Some(*value)).take(5) {
            eprintln!("fault: {what}: {name}: {value} undisturbed, {:?} with kills", b.get(name));
        }
        let metric = format!("{what} that differ from an undisturbed run's {}", a.len());
        let figure = Figure::exactly(&metric, i64::try_from(differs)?, 0);
        // One that is lost, and one that nobody wrote.
        let mut other: BTreeMap<String, String> = b.iter().skip(1).map(|(k, v)| (k.clone(), v.clone())).collect();
        other.insert("nobody's".to_owned(), String::new());
        let noticed = difference(a, &other);
        let figure = figure.control(format!("one lost and one too many: {noticed} noticed"), noticed == differs + 2);
        all.push(figure.peer(&format!("{} kills, {objects} objects left", 3 * plan.kills)));
    }
    all.append(&mut figures);
    Ok(all)
}

fn difference(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> usize {
    a.iter().filter(|(name, value)| b.get(*name) != Some(*value)).count()
        + b.keys().filter(|name| !a.contains_key(*name)).count()
}

fn once(plan: &Plan, kills: u32) -> anyhow::Result<(Outcome, Vec<Figure>)> {
    let options = Options { sites: 1, nodes: 1, no_restart: true, ..Options::default() };
    let mut world = World::start("operator", options)?;
    let result = whole(plan, kills, &mut world);
    if result.is_err() {
        world.keep_folders();
    }
    result
}

fn whole(plan: &Plan, kills: u32, world: &mut World) -> anyhow::Result<(Outcome, Vec<Figure>)> {
    let kubectl = world.kubectl(User::Admin);
    let tenants = changes::tenants(plan.objects);
    kubectl.fed(&["apply", "-f", "-"], &changes::setting(&tenants).to_string())?.well()?;
    kubectl.well(&["wait", "--for=condition=Accepted", "tenants", "--all", "--timeout=120s"])?;
    for tenant in &tenants {
        world.deposit(&format!("tenants/{tenant}"), DEPOSIT)?;
    }
    let script = changes::script(plan.objects, &tenants, plan.seed);
    let pace = ROUND.saturating_mul(kills) / u32::try_from(script.len().max(1))?;
    let begin = Instant::now();
    let versions = Versions::watch(world, &tenants)?;
    let kubeconfig = world.cluster.kubeconfig(User::Admin);
    let changer = std::thread::spawn(move || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let door = Door::open(&kubeconfig).await?;
            changes::apply(&door, script, pace).await
        })
    });
    let mut random = ChaCha8Rng::seed_from_u64(plan.seed);
    for _ in 0..kills {
        round(world, &mut random)?;
    }
    changer.join().map_err(|_| anyhow::anyhow!("the changes ended in a panic"))??;
    let changed = begin.elapsed();
    as_written(&kubectl)?;
    let versions = versions.judged(world)?;
    let outcome = outcome(world, &kubectl, &tenants)?;
    let mut figures = if kills > 0 { judged(world, &tenants)? } else { Vec::new() };
    figures.push(versions);
    figures.push(drained(&kubectl, &tenants)?);
    figures.extend(ended(&kubectl, kills)?);
    eprintln!("{kills} rounds of kills: changed for {} s, {} s in all", changed.as_secs(), begin.elapsed().as_secs());
    Ok((outcome, if kills > 0 { figures } else { Vec::new() }))
}

/// Each of the three is killed once, at a moment of its own.
fn round(world: &mut World, random: &mut ChaCha8Rng) -> anyhow::Result<()> {
    let mut pause = || std::thread::sleep(Duration::from_millis(random.random_range(100..2500)));
    let before = world.holder().unwrap_or_default();
    world.restart_operator()?;
    wait_for("the next operator", TAKES_OVER, || {
        let holder = world.holder().unwrap_or_default();
        Ok((!holder.is_empty() && holder != before).then_some(()))
    })?;
    pause();
    let launch = world.system.kill_part("controller")?;
    world.system.launch("controller", launch)?;
    pause();
    world.cluster.kill(Part::Api)?;
    world.cluster.launch(Part::Api)?;
    world.cluster.ready()?;
    pause();
    Ok(())
}

fn items(kubectl: &Kubectl, kind: &str) -> anyhow::Result<Vec<Value>> {
    let list = kubectl.json(&["get", kind, "-A"])?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

fn holds(object: &Value, kind: &str) -> bool {
    let all = object["status"]["conditions"].as_array();
    all.into_iter().flatten().any(|condition| condition["type"] == kind && condition["status"] == "True")
}

/// What still waits: a quota that is not set at its last generation, a job that may run and has not ended and settled.
fn waiting(kubectl: &Kubectl) -> anyhow::Result<Vec<Value>> {
    let current = |object: &Value| object["status"]["observedGeneration"] == object["metadata"]["generation"];
    let gone = |object: &Value| object["metadata"].get("deletionTimestamp").is_some();
    let mut quotas = items(kubectl, "gpuquotas")?;
    let mut jobs = items(kubectl, "gpujobs")?;
    quotas.retain(|quota| gone(quota) || !current(quota) || !holds(quota, "Accepted"));
    jobs.retain(|job| {
        let suspended = job["spec"]["suspend"] == true && holds(job, "Suspended");
        gone(job) || !current(job) || !(suspended || holds(job, "Settled"))
    });
    quotas.append(&mut jobs);
    Ok(quotas)
}

/// Waits until nothing waits any more; what does is told when the time is over.
fn as_written(kubectl: &Kubectl) -> anyhow::Result<()> {
    let mut left = Vec::new();
    let looked = wait_for("all objects to be as written", SETTLES, || {
        left = waiting(kubectl)?;
        Ok(left.is_empty().then_some(()))
    });
    if looked.is_err() {
        for object in left.iter().take(3) {
            eprintln!("fault: waits: {object}");
        }
    }
    looked.with_context(|| format!("{} objects wait", left.len()))
}

fn outcome(world: &World, kubectl: &Kubectl, tenants: &[String]) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let name = |object: &Value| {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        format!("{}/{}", text("namespace"), text("name"))
    };
    for kind in ["gpuquotas", "gpujobs"] {
        for object in items(kubectl, kind)? {
            outcome.specs.insert(format!("{kind} {}", name(&object)), object["spec"].to_string());
            if kind == "gpujobs" {
                let phase = object["status"]["phase"].as_str().unwrap_or("never submitted");
                outcome.phases.insert(name(&object), phase.to_owned());
            }
        }
    }
    let client = world.client()?;
    for tenant in tenants {
        let request = v1::ListQuotasRequest { tenant: format!("tenants/{tenant}") };
        let rows = world.system.block(async { client.money().list_quotas(request).await })?.into_inner();
        for row in rows.quotas {
            let told = format!("{} {} {} {:?}", row.nominal_milli, row.borrow_milli, row.lend_milli, row.policy());
            outcome.quotas.insert(row.name, told);
        }
    }
    Ok(outcome)
}

/// That lowered quotas stopped what ran, and did not only come and go.
fn drained(kubectl: &Kubectl, tenants: &[String]) -> anyhow::Result<Figure> {
    let (mut borrowers, mut lenders) = (0, 0);
    for job in items(kubectl, "gpujobs")?.iter().filter(|job| job["metadata"]["name"] == changes::LASTS) {
        let own = |tenant: &String| job["metadata"]["namespace"] == format!("ns-{tenant}");
        let number = tenants.iter().position(own).context("its tenant")?;
        let again = i64::from(job["status"]["attempts"].as_i64().unwrap_or(0) > 1);
        *(if changes::lends(number) { &mut lenders } else { &mut borrowers }) += again;
    }
    let figure = Figure::at_least("borrowed jobs that a lowered limit stopped, and that ran again", borrowers, 1);
    Ok(figure.peer(&format!("{lenders} of lenders, whose policy is to refuse")))
}

/// What a tenant paid, and for what.
#[derive(Debug, Clone)]
struct Account {
    tenant: String,
    spent: i64,
    held: i64,
    /// Net, of each of its jobs.
    receipts: Vec<i64>,
}

impl Account {
    fn is_off(&self) -> bool {
        self.spent != self.receipts.iter().sum::<i64>() || self.held != 0
    }
}

/// One job per object, one command of each kind per job, and the money of each tenant.
fn judged(world: &World, tenants: &[String]) -> anyhow::Result<Vec<Figure>> {
    let client = world.client()?;
    let (mut managers, mut commands, mut accounts) = (Vec::new(), Vec::new(), Vec::new());
    for tenant in tenants {
        let full = format!("tenants/{tenant}");
        let mut receipts = Vec::new();
        for job in world.system.block(client.list_jobs_of(&full))? {
            let request = v1::GetReceiptRequest { job: job.name.clone() };
            let receipt = world.system.block(async { client.money().get_receipt(request).await })?.into_inner();
            anyhow::ensure!(receipt.r#final, "the receipt of {} is not final", job.name);
            receipts.push(receipt.net_credits);
            commands.extend(world.system.block(commands_for(&client, &job.name))?);
            managers.push(job.manager);
        }
        let request = v1::GetBalanceRequest { tenant: full };
        let balance = world.system.block(async { client.money().get_balance(request).await })?.into_inner();
        let (spent, held) = (DEPOSIT - balance.balance_credits, balance.held_credits);
        accounts.push(Account { tenant: tenant.clone(), spent, held, receipts });
    }
    Ok(vec![
        once_each("jobs beyond one per object", "jobs", managers)?,
        once_each("commands for jobs that were carried out twice", "commands", commands)?,
        spend(&accounts)?,
    ])
}

/// What was done to a job because somebody with a key asked for it, each with the job's name. Nothing in the script
/// asks for the same twice.
async fn commands_for(client: &Client, job: &str) -> anyhow::Result<Vec<String>> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListEventsRequest { parent: job.to_owned(), page_size: 1000, page_token };
        let page = client.jobs().list_events(request).await?.into_inner();
        let asked = page.events.iter().filter(|event| event.actor.starts_with("key-"));
        all.extend(asked.map(|event| format!("{job} {}", event.kind)));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(all);
        }
    }
}

/// That nothing is there twice; one thing more of those that are there would be noticed.
fn once_each(metric: &str, what: &str, all: Vec<String>) -> anyhow::Result<Figure> {
    let (found, count) = (repeated(&all), all.len());
    let again: Vec<String> = all.first().cloned().into_iter().chain(all).collect();
    let noticed = repeated(&again);
    let figure = Figure::exactly(metric, i64::try_from(found)?, 0);
    let figure = figure.control(format!("one told twice: {noticed} noticed"), noticed == found + 1);
    Ok(figure.peer(&format!("{count} {what}")))
}

fn repeated(all: &[String]) -> usize {
    all.len() - all.iter().collect::<BTreeSet<_>>().len()
}

/// That every tenant's spend is the sum of its receipts; without the dearest one it would not be.
fn spend(accounts: &[Account]) -> anyhow::Result<Figure> {
    let off = |accounts: &[Account]| accounts.iter().filter(|account| account.is_off()).count();
    for account in accounts.iter().filter(|account| account.is_off()) {
        let Account { tenant, spent, held, receipts } = account;
        eprintln!("fault: {tenant} spent {spent}, its receipts say {}; held {held}", receipts.iter().sum::<i64>());
    }
    let receipts = accounts.iter().map(|account| account.receipts.len()).sum::<usize>();
    let (without, dearest) = without_dearest(accounts);
    let (found, noticed) = (off(accounts), off(&without));
    let metric = "tenants whose spend is not the sum of their receipts";
    let figure = Figure::exactly(metric, i64::try_from(found)?, 0);
    let told = format!("without the dearest receipt, of {dearest}: {noticed}");
    Ok(figure.control(told, noticed > found).peer(&format!("{receipts} receipts of {} tenants", accounts.len())))
}

/// The same accounts without the dearest receipt of all, and what it was.
fn without_dearest(accounts: &[Account]) -> (Vec<Account>, i64) {
    let mut without = accounts.to_vec();
    let dearest = without.iter().flat_map(|account| &account.receipts).max().copied().unwrap_or(0);
    for account in &mut without {
        if let Some(place) = account.receipts.iter().position(|receipt| *receipt == dearest) {
            account.receipts.remove(place);
            break;
        }
    }
    (without, dearest)
}

/// Everything is deleted, and goes.
fn ended(kubectl: &Kubectl, kills: u32) -> anyhow::Result<Vec<Figure>> {
    for kind in ["gpujobs", "gpuquotas"] {
        kubectl.well(&["delete", kind, "-A", "--all", "--wait=false"])?;
    }
    let mut left = usize::MAX;
    let looked = wait_for("the end of all objects", SETTLES, || {
        left = items(kubectl, "gpujobs")?.len() + items(kubectl, "gpuquotas")?.len();
        Ok((left == 0).then_some(()))
    });
    kubectl.well(&["delete", "tenants", "--all", "--wait=false"])?;
    let tenants =
        wait_for("the end of all tenants", SETTLES, || Ok(items(kubectl, "tenants")?.is_empty().then_some(())));
    let stuck = left + usize::from(tenants.is_err());
    looked.and(tenants).with_context(|| format!("{stuck} objects are left"))?;
    Ok(vec![Figure::exactly("objects with a finalizer that stays", 0, 0).peer(&format!("after {kills} rounds"))])
}
