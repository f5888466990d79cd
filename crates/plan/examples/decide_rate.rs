//! Prints how many single-task placements a second one core decides, alone and with the committed deltas applied.
//!
//! `cargo run --release -p sluice-plan --example decide_rate [NODES] [JOBS]`
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::{Duration, Instant};

use sluice_ledger::{Account, AccountKey, Price, PriceBook, QuotaKey, QuotaLimits, Rate};
use sluice_plan::{Delta, DeviceView, JobView, LeaseView, Limits, NodeView, Placement, Purpose, QuotaView, World};
use sluice_types::{
    Bytes, CoreMilli, Credits, DeviceRef, IsolationClass, JobId, LeaseId, MilliGpu, Nanos, NodeId, PriceVersion,
    ProjectId, SiteId, TaskResources, TenantId, Timestamp,
};

const TENANTS: u64 = 64;
const SITES: u64 = 2;

/// Time this thread ran on a core, so that a busy machine does not count; wall time where the kernel does not tell.
fn now(began: Instant) -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|nanos| nanos.parse().ok()).map_or_else(|| began.elapsed(), Duration::from_nanos)
}

fn node(id: u64) -> NodeView {
    let device = |index| DeviceView {
        index,
        class: "h200".parse().unwrap(),
        memory: Bytes::new(140 * Bytes::GIB),
        cores: CoreMilli::ZERO,
        isolation: vec![IsolationClass::Windowed, IsolationClass::Exclusive],
        healthy: true,
    };
    NodeView {
        id: NodeId::from_raw(id),
        site: SiteId::from_raw(1 + id % SITES),
        open: true,
        host_cores: CoreMilli::new(192_000),
        host_memory: Bytes::new(2048 * Bytes::GIB),
        devices: (0..8).map(device).collect(),
    }
}

fn job(id: u64) -> JobView {
    let milli = [125, 250, 333, 500, 80, 1000][usize::try_from(id % 6).unwrap()];
    JobView {
        id: JobId::from_raw(id),
        version: 1,
        tenant: TenantId::from_raw(1 + id % TENANTS),
        project: ProjectId::from_raw(1),
        priority: i32::try_from(id % 3).unwrap(),
        purpose: Purpose::Run,
        tasks: 1,
        resources: TaskResources {
            class: "h200".parse().unwrap(),
            milli: MilliGpu::new(milli),
            memory: Bytes::new(u64::from(milli) * 120 * Bytes::GIB / 1000),
            host_cores: CoreMilli::new(1000),
            host_memory: Bytes::new(8 * Bytes::GIB),
        },
        sites: Vec::new(),
        state_at: Vec::new(),
        hold_time: Nanos::from_secs(3600),
        budgets: Vec::new(),
        firm: false,
    }
}

fn accounts() -> impl Iterator<Item = Account> {
    (1..=TENANTS).flat_map(|raw| {
        let tenant = TenantId::from_raw(raw);
        let keys = [AccountKey::Funds(tenant), AccountKey::Entitled(tenant, None, "h200".parse().unwrap())];
        keys.map(|key| Account { credits_posted: 1 << 50, ..Account::empty(key) })
    })
}

fn quota(tenant: TenantId) -> QuotaView {
    let key = QuotaKey { tenant, site: None, class: "h200".parse().unwrap() };
    let limits = Some(QuotaLimits { nominal: 1 << 40, ..QuotaLimits::default() });
    QuotaView { key, site_name: None, limits }
}

fn prices() -> PriceBook {
    let credits = Credits::new;
    let rate = Rate { device_hour: credits(2_000_000), core_hour: credits(10_000), gib_hour: credits(1_000) };
    let price = Price { class: "h200".parse().unwrap(), isolation: None, site: None, rate };
    PriceBook { version: PriceVersion::from_raw(1), at: Timestamp::default(), prices: vec![price] }
}

fn world(nodes: u64) -> World {
    let mut world = World::new();
    world.apply(&Delta::Prices(prices()));
    accounts().for_each(|account| world.apply(&Delta::Account(account)));
    (1..=TENANTS).for_each(|raw| world.apply(&Delta::Quota(quota(TenantId::from_raw(raw)))));
    (1..=nodes).for_each(|id| world.apply(&Delta::Node(node(id))));
    world
}

/// What the writer would commit for a placement: the job waits no more, leases begin, two balances change.
fn committed(placement: &Placement, balances: &mut [Account], next_lease: &mut u64) -> Vec<Delta> {
    let job = job(placement.job.raw());
    let at = 2 * usize::try_from(job.tenant.raw() - 1).unwrap();
    balances[at].debits_pending += placement.hold.units();
    balances[at + 1].debits_pending += placement.tasks.iter().map(|task| i64::from(task.billed.get())).sum::<i64>();
    let mut deltas = vec![Delta::JobGone(placement.job)];
    for task in &placement.tasks {
        *next_lease += 1;
        let id = LeaseId::from_raw(*next_lease);
        deltas.push(Delta::Lease(LeaseView { id, device: task.device, resources: job.resources.clone() }));
    }
    deltas.extend(balances[at..at + 2].iter().cloned().map(Delta::Account));
    deltas
}

/// Submits in batches, decides, commits; the oldest leases end when the cluster is three quarters full.
fn steady(nodes: u64, jobs: u64, batch: u64) {
    let mut world = world(nodes);
    let mut balances: Vec<Account> = accounts().collect();
    let (mut next_lease, mut ended, mut placed) = (0u64, 0u64, 0u64);
    let (mut deciding, mut applying, began) = (Duration::ZERO, Duration::ZERO, Instant::now());
    let keep = nodes * 8 * 3 / 2;
    for first in (1..=jobs).step_by(usize::try_from(batch).unwrap()) {
        let arrivals: Vec<Delta> = (first..first + batch).map(|id| Delta::Job(job(id))).collect();
        let start = now(began);
        arrivals.iter().for_each(|delta| world.apply(delta));
        applying += now(began) - start;
        let start = now(began);
        let plan = world.decide(Limits::default());
        deciding += now(began) - start;
        placed += plan.placements.len() as u64;
        let mut answers: Vec<Delta> =
            plan.placements.iter().flat_map(|placement| committed(placement, &mut balances, &mut next_lease)).collect();
        while next_lease - ended > keep {
            ended += 1;
            answers.push(Delta::LeaseGone(LeaseId::from_raw(ended)));
        }
        let start = now(began);
        answers.iter().for_each(|delta| world.apply(delta));
        applying += now(began) - start;
    }
    let rate = |time: Duration| placed as f64 / time.as_secs_f64();
    println!(
        "steady: {placed} of {jobs} placed on {nodes} nodes x 8; per core second: decide alone {:.0}, with every delta applied {:.0}",
        rate(deciding),
        rate(deciding + applying)
    );
}

/// 100,000 identical jobs and as many identical gangs on a full cluster: the cost of a decision, the first that tells
/// them and the next ones, and of an explanation.
fn blocked(nodes: u64) {
    let mut world = world(nodes);
    let mut next = 0;
    for node in 1..=nodes {
        for index in 0..8 {
            next += 1;
            let device = DeviceRef { node: NodeId::from_raw(node), index };
            let resources = job(if index == 0 { 3 } else { 5 }).resources;
            world.apply(&Delta::Lease(LeaseView { id: LeaseId::from_raw(next), device, resources }));
        }
    }
    for id in 1..=100_000 {
        let single = JobView { tenant: TenantId::from_raw(1), resources: job(5).resources, ..job(id * 3) };
        let gang = JobView { id: JobId::from_raw(1_000_000 + id), tasks: 512, ..single.clone() };
        world.apply(&Delta::Job(single));
        world.apply(&Delta::Job(gang));
    }
    let start = Instant::now();
    let told = world.decide(Limits::NONE).verdicts.len();
    let first = start.elapsed();
    let start = Instant::now();
    (0..5).for_each(|_| drop(world.decide(Limits::NONE)));
    println!("blocked: {told} told in {first:.1?}, then {:.1?} a decision", start.elapsed() / 5);
    for id in [150_000, 1_050_000] {
        let start = Instant::now();
        let why = world.explain(JobId::from_raw(id));
        println!("explain: {:.1?}: {}", start.elapsed(), why.map_or(String::new(), |why| why.message));
    }
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|text| text.parse().ok());
    let (nodes, jobs) = (numbers.next().unwrap_or(5_000), numbers.next().unwrap_or(300_000));
    let start = Instant::now();
    drop(world(nodes));
    println!("build: {nodes} nodes in {:.1?}", start.elapsed());
    steady(nodes, jobs, 256);
    blocked(nodes);
}
