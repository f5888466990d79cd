//! The change that an explanation names admits the job at the next decision, and nothing smaller of its kind does.
//!
//! Brute force applies every smaller amount to a copy of the world as a committed change and decides.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Dice, Rows, book, funds, gpu, job, lease, node, price, small};
use sluice_ledger::{AccountKey, QuotaKey, QuotaLimits};
use sluice_plan::{ChangeKind, Delta, Explanation, JobView, Limits, NodeView, Purpose, QuotaView, World};
use sluice_types::{Bytes, CoreMilli, JobId, MilliGpu, Reason, SiteId};

const PATIENCE: u32 = 2;
/// More than all jobs of a world this small can cost or take together, so brute force tries everything below.
const MOST_MONEY: i64 = 200;
const MOST_QUOTA: i64 = 50_000;

struct Case {
    rows: Rows,
    world: World,
}

impl Case {
    /// A small world some rounds into its life, so that some shapes are starving; with nothing in flight.
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let mut rows = small(&mut dice, 5);
        let (mut world, mut next) = (rows.world(PATIENCE), 1000);
        for round in 0..dice.roll(0, 5) {
            let plan = world.decide(Limits::NONE);
            let mut deltas = Vec::new();
            for placement in &plan.placements {
                deltas.extend(rows.commit(placement, &mut next));
            }
            let ended = rows.leases.keys().nth(dice.roll(0, 5) as usize).copied();
            deltas.extend(ended.map(Delta::LeaseGone));
            deltas.push(Delta::Job(common::any_job(&mut dice, 100 + round)));
            deltas.push(Delta::Job(tiny(&mut dice, 200 + round)));
            for delta in deltas {
                rows.apply(&delta);
                world.apply(&delta);
            }
        }
        Self { rows, world }
    }

    fn admits(&self, job: JobId, deltas: &[Delta]) -> bool {
        let mut world = self.world.clone();
        for delta in deltas {
            world.apply(delta);
        }
        world.decide(Limits::NONE).placements.iter().any(|placement| placement.job == job)
    }

    fn with_job(&self, job: &JobView, change: impl FnOnce(&mut JobView)) -> bool {
        let mut changed = job.clone();
        changed.version += 1;
        change(&mut changed);
        self.admits(job.id, &[Delta::Job(changed)])
    }

    fn with_money(&self, job: JobId, key: &AccountKey, amount: i64) -> bool {
        let delta = self.rows.clone().credit(key.clone(), amount);
        self.admits(job, &[delta])
    }

    /// The job's quotas where there are some: its own, and where its cohort has only others', the one that it lacks.
    fn quotas_of(&self, job: &JobView) -> Vec<QuotaView> {
        let class = &job.resources.class;
        let mut views = BTreeMap::new();
        for view in self.rows.quotas.values().filter(|view| view.key.class == *class) {
            let of = view.key.site.is_some() || job.purpose == Purpose::Run;
            let shared = view.key.site.is_some() || view.key.tenant == job.tenant;
            if of && shared {
                let key = QuotaKey { tenant: job.tenant, ..view.key.clone() };
                let own = self.rows.quotas.get(&key).cloned();
                views.insert(key.clone(), own.unwrap_or(QuotaView { key, limits: None, ..view.clone() }));
            }
        }
        views.into_values().collect()
    }

    fn with_quota(&self, job: JobId, view: QuotaView, limits: QuotaLimits) -> bool {
        self.admits(job, &[Delta::Quota(QuotaView { limits: Some(limits), ..view })])
    }

    /// Whether so much of a kind, alone, admits the job.
    fn enough(&self, job: &JobView, kind: ChangeKind, amount: i64) -> bool {
        let small = u32::try_from(amount).unwrap_or(0);
        match kind {
            ChangeKind::LessMilli => self.with_job(job, |job| {
                job.resources.milli = MilliGpu::new(job.resources.milli.get() - small);
            }),
            ChangeKind::LessMemory => self.with_job(job, |job| {
                job.resources.memory = Bytes::new(job.resources.memory.get() - amount as u64);
            }),
            ChangeKind::LessHostCores => self.with_job(job, |job| {
                job.resources.host_cores = CoreMilli::new(job.resources.host_cores.get() - small);
            }),
            ChangeKind::LessHostMemory => self.with_job(job, |job| {
                job.resources.host_memory = Bytes::new(job.resources.host_memory.get() - amount as u64);
            }),
            ChangeKind::FewerTasks => self.with_job(job, |job| job.tasks -= small),
            ChangeKind::MoreFunds => self.with_money(job.id, &AccountKey::Funds(job.tenant), amount),
            ChangeKind::MoreBudget => {
                let known = job.budgets.iter().filter(|key| self.rows.accounts.contains_key(key));
                known.into_iter().any(|key| self.with_money(job.id, key, amount))
            }
            ChangeKind::MoreQuota => self.quotas_of(job).into_iter().any(|view| {
                let limits = view.limits.unwrap_or_default();
                self.with_quota(job.id, view, QuotaLimits { nominal: limits.nominal + amount, ..limits })
            }),
            ChangeKind::MoreBorrowing => {
                let known = |view: &QuotaView| view.limits.is_some() && view.key.site.is_some();
                self.quotas_of(job).into_iter().filter(known).any(|view| {
                    let limits = view.limits.unwrap_or_default();
                    self.with_quota(job.id, view, QuotaLimits { borrow: limits.borrow + amount, ..limits })
                })
            }
            ChangeKind::OtherSite => {
                let site = SiteId::from_raw(amount as u64);
                let exists = self.rows.nodes.values().any(|node| node.site == site);
                let new = !job.sites.is_empty() && !job.sites.contains(&site);
                exists && new && self.with_job(job, |job| job.sites.push(site))
            }
            ChangeKind::OpenNodes => self.opened(job.id, amount as usize),
        }
    }

    fn opened(&self, job: JobId, count: usize) -> bool {
        let closed: Vec<_> = self.rows.nodes.values().filter(|node| !node.open).cloned().collect();
        (0u32..1 << closed.len()).filter(|set| set.count_ones() as usize == count).any(|set| {
            let chosen = closed.iter().enumerate().filter(|(at, _)| set & (1 << at) != 0);
            let deltas: Vec<Delta> = chosen
                .map(|(_, node)| {
                    let mut open = node.clone();
                    open.open = true;
                    Delta::Node(open)
                })
                .collect();
            self.admits(job, &deltas)
        })
    }

    fn most(&self, job: &JobView, kind: ChangeKind) -> i64 {
        let task = &job.resources;
        match kind {
            ChangeKind::LessMilli => i64::from(task.milli.get()) - 1,
            ChangeKind::LessMemory => task.memory.get() as i64,
            ChangeKind::LessHostCores => i64::from(task.host_cores.get()),
            ChangeKind::LessHostMemory => task.host_memory.get() as i64,
            ChangeKind::FewerTasks => i64::from(job.tasks) - 1,
            ChangeKind::MoreFunds | ChangeKind::MoreBudget => MOST_MONEY,
            ChangeKind::MoreQuota | ChangeKind::MoreBorrowing => MOST_QUOTA,
            ChangeKind::OtherSite => 3,
            ChangeKind::OpenNodes => self.rows.nodes.values().filter(|node| !node.open).count() as i64,
        }
    }

    /// Amounts worth trying: all of them, or, for quota in thousandths, a sample and what is just too little.
    fn amounts(&self, kind: ChangeKind, below: i64) -> Vec<i64> {
        if !matches!(kind, ChangeKind::MoreQuota | ChangeKind::MoreBorrowing) {
            return (1..below).collect();
        }
        let mut amounts: BTreeSet<i64> = (1..=24).map(|part| below * part / 25).collect();
        amounts.extend([1, below - 2, below - 1]);
        amounts.into_iter().filter(|amount| (1..below).contains(amount)).collect()
    }
}

/// A job that fits nearly everywhere and so passes those that wait.
fn tiny(dice: &mut Dice, id: u64) -> JobView {
    let mut tiny = common::job(id, "a", 1, 20);
    tiny.tenant = common::tenant(dice.roll(1, 2));
    tiny
}

const KINDS: [ChangeKind; 11] = [
    ChangeKind::LessMilli,
    ChangeKind::LessMemory,
    ChangeKind::LessHostCores,
    ChangeKind::LessHostMemory,
    ChangeKind::FewerTasks,
    ChangeKind::MoreFunds,
    ChangeKind::MoreBudget,
    ChangeKind::MoreQuota,
    ChangeKind::MoreBorrowing,
    ChangeKind::OtherSite,
    ChangeKind::OpenNodes,
];

/// What was seen over all worlds.
#[derive(Default)]
struct Seen {
    found: BTreeMap<ChangeKind, u32>,
    reasons: BTreeMap<Reason, u32>,
    /// Waiting jobs whose explanation was checked.
    jobs: u32,
    /// Of them those that could run some day and that no single change admits.
    unchanged: u32,
    /// Smaller changes that brute force tried in vain.
    smaller: u64,
    /// Named changes that were tried with one unit less, in vain.
    one_less: u32,
}

fn check(seed: u64, every: u64, seen: &mut Seen) {
    let mut case = Case::new(seed);
    let jobs: Vec<JobView> = case.rows.jobs.values().cloned().collect();
    for job in jobs {
        let why: Explanation = case.world.explain(job.id).unwrap();
        let admitted = case.admits(job.id, &[]);
        assert_eq!(admitted, why.reason.is_none(), "seed {seed} {}: {why:?}", job.id);
        check_verdict(&case, &job, &why, seed);
        let Some(reason) = why.reason else {
            assert!(why.changes.is_empty());
            continue;
        };
        // Brute force is dear: one in `every` jobs, and of those that can never run, which are many and alike, fewer.
        if !(seed + job.id.raw()).is_multiple_of(if why.never { 4 * every } else { every }) {
            continue;
        }
        *seen.reasons.entry(reason).or_default() += 1;
        seen.jobs += 1;
        seen.unchanged += u32::from(why.changes.is_empty() && !why.never);
        assert!(why.changes.is_sorted_by(|left, right| left.kind < right.kind));
        let named: BTreeMap<_, _> = why.changes.iter().map(|change| (change.kind, change.amount)).collect();
        for kind in KINDS {
            let below = match named.get(&kind) {
                Some(amount) => {
                    *seen.found.entry(kind).or_default() += 1;
                    assert!(
                        case.enough(&job, kind, *amount),
                        "seed {seed} {}: {kind:?} {amount} is not enough",
                        job.id
                    );
                    // The control: with a unit less the job goes on waiting. A site has no size.
                    if kind != ChangeKind::OtherSite {
                        assert!(
                            *amount == 1 || !case.enough(&job, kind, *amount - 1),
                            "seed {seed} {}: {kind:?} {amount} is one more than is needed",
                            job.id
                        );
                        seen.one_less += 1;
                    }
                    *amount
                }
                None => case.most(&job, kind) + 1,
            };
            // What can never run on empty, open devices gets no room from money or nodes.
            let hopeless = why.never && kind >= ChangeKind::MoreFunds && kind != ChangeKind::OtherSite;
            for amount in case.amounts(kind, if hopeless { below.min(2) } else { below }) {
                seen.smaller += 1;
                assert!(
                    !case.enough(&job, kind, amount),
                    "seed {seed} {}: {kind:?} {amount} is enough, named {:?}",
                    job.id,
                    named.get(&kind)
                );
            }
        }
    }
}

/// The verdict of the next decision gives the reason of the explanation, and `never` means what it says.
fn check_verdict(case: &Case, job: &JobView, why: &Explanation, seed: u64) {
    let mut open = case.rows.clone();
    open.leases.clear();
    open.jobs.retain(|id, _| *id == job.id);
    for node in open.nodes.values_mut() {
        node.open = true;
        node.devices.iter_mut().for_each(|device| device.healthy = true);
    }
    // One price for all, and none to pay: only room is left to refuse it.
    open.prices = Some(common::book(9, ["a", "b", "cpu"].map(|name| common::price(name, 0)).to_vec()));
    for price in &mut open.prices.as_mut().unwrap().prices {
        price.rate.core_hour = sluice_types::Credits::ZERO;
        price.rate.gib_hour = sluice_types::Credits::ZERO;
    }
    open.accounts.clear();
    open.quotas.clear();
    let stateless = JobView { state_at: Vec::new(), budgets: Vec::new(), ..job.clone() };
    open.jobs.insert(job.id, stateless.clone());
    let possible = !open.world(PATIENCE).decide(Limits::NONE).placements.is_empty();
    assert_eq!(why.never, !possible, "seed {seed} {}: {why:?}", job.id);
    assert_eq!(case.world.admissible(job).is_ok(), possible, "seed {seed} {}", job.id);
}

fn check_all(seeds: std::ops::Range<u64>, every: u64) {
    let mut seen = Seen::default();
    seeds.for_each(|seed| check(seed, every, &mut seen));
    let Seen { found, reasons, jobs, unchanged, smaller, one_less } = seen;
    println!("changes checked: {found:?}\nreasons seen: {reasons:?}");
    let named: u32 = found.values().sum();
    println!("explained: jobs={jobs} named={named} one_less={one_less} smaller={smaller} unchanged={unchanged}");
    assert_eq!(found.len(), KINDS.len(), "some kind was never named: {found:?}");
}

#[test]
fn named_changes_are_enough_and_smallest_in_200_worlds() {
    check_all(0..200, 2);
}

/// The long form of the same: `cargo test -p sluice-plan --release -- --ignored`.
#[test]
#[ignore = "minutes in a debug build"]
fn named_changes_are_enough_and_smallest_in_1000_worlds() {
    check_all(0..1000, 1);
}

/// Forty closed nodes of one device each, and a job that one of them would hold.
fn behind_closed_nodes(money: i64) -> World {
    let mut world = World::new();
    for id in 1..=40 {
        let closed = NodeView { open: false, ..node(id, 1, vec![gpu(0, "a", 8)]) };
        world.apply(&Delta::Node(closed));
    }
    world.apply(&Delta::Node(node(41, 1, vec![gpu(0, "a", 8)])));
    world.apply(&Delta::Lease(lease(1, 41, 0, &job(1, "a", 1, 1000).resources)));
    world.apply(&Delta::Prices(book(1, vec![price("a", 1000)])));
    world.apply(&Delta::Account(funds(1, money)));
    world.apply(&Delta::Job(job(2, "a", 1, 1000)));
    world
}

#[test]
fn sets_of_closed_nodes_are_not_tried_where_money_binds() {
    // All sets of forty nodes are more than anybody can wait for.
    let why = behind_closed_nodes(1).explain(JobId::from_raw(2)).unwrap();
    assert_eq!(why.reason, Some(Reason::InsufficientFunds));
    assert!(!why.changes.iter().any(|change| change.kind == ChangeKind::OpenNodes), "{:?}", why.changes);
}

#[test]
fn sets_of_closed_nodes_are_tried_within_the_bound_on_work() {
    let mut world = behind_closed_nodes(i64::MAX / 8);
    // Whatever is opened, the job in front takes the money of both.
    let mut front = job(1, "a", 1, 1000);
    front.priority = 1;
    world.apply(&Delta::Job(front));
    let one = world.explain(JobId::from_raw(2)).unwrap();
    assert!(one.changes.iter().any(|change| (change.kind, change.amount) == (ChangeKind::OpenNodes, 2)), "{one:?}");
    // What one of them holds.
    let mut opened = world.clone();
    opened.apply(&Delta::Node(node(1, 1, vec![gpu(0, "a", 8)])));
    let hold = opened.decide(Limits::NONE).placements[0].hold.units();
    world.apply(&Delta::Account(funds(1, hold)));
    let why = world.explain(JobId::from_raw(2)).unwrap();
    assert!(!why.changes.iter().any(|change| change.kind == ChangeKind::OpenNodes), "{:?}", why.changes);
}
