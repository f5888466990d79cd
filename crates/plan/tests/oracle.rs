//! A plan against a naive scheduler that knows only the written policy and tries everything.
//!
//! It walks the jobs in order of service over rows, never over the world: a placement must be whole, at one site, on
//! devices with room, at the least price there is and on the fullest device of that price; a job that was passed over
//! must not have been placeable in any way.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Dice, Rows, quota, small};
use proptest::prelude::*;
use sluice_ledger::{AccountKey, RatingTerms, Unit, quote};
use sluice_plan::{DeviceView, JobView, Limits, NodeView, Placement, TaskPlacement, footprint};
use sluice_types::{Credits, DeviceClassName, DeviceRef, IsolationClass, MilliGpu, Reason, SiteId, TaskResources};

/// What is taken, per device and per host, by leases and by what the plan placed so far; and money spent.
struct Naive<'a> {
    rows: &'a Rows,
    milli: BTreeMap<DeviceRef, u64>,
    memory: BTreeMap<DeviceRef, u64>,
    cores: BTreeMap<u64, u64>,
    host_memory: BTreeMap<u64, u64>,
    spent: BTreeMap<AccountKey, i64>,
    uses: quota::Uses,
    /// Classes of which something is called back for a job in front: what borrowers leave for it is not tried here.
    called_back: BTreeSet<DeviceClassName>,
}

/// A device that could take a task of a job, and the price.
#[derive(Clone)]
struct Way<'a> {
    at: DeviceRef,
    site: SiteId,
    device: &'a DeviceView,
    isolation: IsolationClass,
    cost: i64,
}

impl<'a> Naive<'a> {
    fn new(rows: &'a Rows) -> Self {
        let mut naive = Self {
            rows,
            milli: BTreeMap::new(),
            memory: BTreeMap::new(),
            cores: BTreeMap::new(),
            host_memory: BTreeMap::new(),
            spent: BTreeMap::new(),
            uses: quota::Uses::of(rows),
            called_back: BTreeSet::new(),
        };
        for lease in rows.leases.values() {
            naive.take(lease.device, &lease.resources);
        }
        naive
    }

    fn take(&mut self, at: DeviceRef, task: &TaskResources) {
        let node = at.node.raw();
        let need = match self.rows.device(at) {
            Some(device) => footprint(task, device),
            None if self.rows.nodes.contains_key(&at.node) => {
                *self.cores.entry(node).or_default() += u64::from(task.host_cores.get());
                *self.host_memory.entry(node).or_default() += task.host_memory.get();
                return;
            }
            None => return,
        };
        *self.milli.entry(at).or_default() += u64::from(need.milli.get());
        *self.memory.entry(at).or_default() += need.memory.get();
        *self.cores.entry(node).or_default() += u64::from(need.host_cores.get());
        *self.host_memory.entry(node).or_default() += need.host_memory.get();
    }

    fn left(&self, way: &Way<'_>) -> (i64, i64, i64, i64) {
        let node: &NodeView = &self.rows.nodes[&way.at.node];
        let raw = way.at.node.raw();
        let taken = |map: &BTreeMap<u64, u64>| map.get(&raw).copied().unwrap_or(0) as i64;
        (
            1000 - self.milli.get(&way.at).copied().unwrap_or(0) as i64,
            way.device.memory.get() as i64 - self.memory.get(&way.at).copied().unwrap_or(0) as i64,
            i64::from(node.host_cores.get()) - taken(&self.cores),
            node.host_memory.get() as i64 - taken(&self.host_memory),
        )
    }

    fn fits(&self, way: &Way<'_>, task: &TaskResources) -> bool {
        let need = footprint(task, way.device);
        let left = self.left(way);
        // An oversold pool has nothing left, and nothing may still be taken from it.
        let ok = |left: i64, need: u64| left.max(0) >= need as i64;
        ok(left.0, u64::from(need.milli.get()))
            && ok(left.1, need.memory.get())
            && ok(left.2, u64::from(need.host_cores.get()))
            && ok(left.3, need.host_memory.get())
    }

    fn ways(&self, job: &JobView) -> Vec<Way<'a>> {
        let mut ways = Vec::new();
        for node in self.rows.nodes.values().filter(|node| node.open) {
            let allowed = job.sites.is_empty() || job.sites.contains(&node.site);
            let resumable = job.state_at.is_empty() || job.state_at.contains(&node.site);
            for device in node.devices.iter().filter(|device| device.healthy && device.class == job.resources.class) {
                let whole = job.resources.milli == MilliGpu::WHOLE;
                let usable = |class: &&IsolationClass| **class != IsolationClass::Exclusive || whole;
                let Some(isolation) = device.isolation.iter().find(usable).copied() else { continue };
                let book = self.rows.prices.as_ref().unwrap();
                let Some(rate) = book.rate(&device.class, isolation, node.site) else { continue };
                let terms = RatingTerms {
                    billed: device.billed(&job.resources),
                    host_cores: job.resources.host_cores,
                    host_memory: job.resources.host_memory,
                    rate,
                };
                let cost = quote(&terms, job.hold_time).unwrap().units();
                let at = DeviceRef { node: node.id, index: device.index };
                // Every task on a device that takes as much: what a gang that mixes devices takes at most.
                let milli = i64::from(job.tasks) * quota::taken(job, device);
                let covered = self.uses.allow(self.rows, job, node.site, milli);
                if allowed && resumable && covered {
                    ways.push(Way { at, site: node.site, device, isolation, cost });
                }
            }
        }
        ways
    }

    /// The least price of all tasks, by trying every distribution over the devices of each site.
    fn least(&mut self, job: &JobView) -> Option<i64> {
        let ways = self.ways(job);
        let sites: BTreeSet<SiteId> = ways.iter().map(|way| way.site).collect();
        let mut least = None;
        for site in sites {
            let here: Vec<Way<'_>> = ways.iter().filter(|way| way.site == site).cloned().collect();
            self.distribute(&here, job, job.tasks, 0, &mut least);
        }
        least
    }

    fn distribute(&mut self, ways: &[Way<'_>], job: &JobView, left: u32, cost: i64, least: &mut Option<i64>) {
        if left == 0 {
            *least = Some(least.map_or(cost, |known| known.min(cost)));
            return;
        }
        let Some((first, rest)) = ways.split_first() else { return };
        if self.fits(first, &job.resources) {
            let before = (self.milli.clone(), self.memory.clone(), self.cores.clone(), self.host_memory.clone());
            self.take(first.at, &job.resources);
            self.distribute(ways, job, left - 1, cost + first.cost, least);
            (self.milli, self.memory, self.cores, self.host_memory) = before;
        }
        self.distribute(rest, job, left, cost, least);
    }

    fn available(&self, key: &AccountKey) -> Option<i64> {
        self.rows.available(key).map(|amount| amount - self.spent.get(key).copied().unwrap_or(0))
    }

    fn money_covers(&self, job: &JobView, hold: i64) -> bool {
        let funds = self.available(&AccountKey::Funds(job.tenant)).unwrap_or(0);
        let budgets: Option<Vec<i64>> = job.budgets.iter().map(|key| self.available(key)).collect();
        let Some(budgets) = budgets else { return false };
        hold == 0 || budgets.into_iter().chain([funds]).all(|left| left >= hold)
    }

    fn spend(&mut self, job: &JobView, hold: i64) {
        let budgets: BTreeSet<_> = job.budgets.iter().cloned().collect();
        for key in budgets.into_iter().chain([AccountKey::Funds(job.tenant)]) {
            *self.spent.entry(key).or_default() += hold;
        }
    }

    fn check_placement(&mut self, job: &JobView, placement: &Placement) {
        assert_eq!(placement.version, job.version);
        assert_eq!(placement.tasks.len(), job.tasks as usize, "a gang is whole");
        assert_eq!(Some(placement.price), self.rows.prices.as_ref().map(|book| book.version));
        let least = self.least(job).expect("placed although it does not fit");
        let mut hold = 0;
        for task in &placement.tasks {
            let ways: Vec<Way<'_>> = self.ways(job).into_iter().filter(|way| self.fits(way, &job.resources)).collect();
            let way = ways.iter().find(|way| way.at == task.device).expect("a device with room, allowed and priced");
            assert_eq!(way.site, placement.site, "a gang is at one site");
            assert_eq!((way.isolation, way.device.billed(&job.resources)), (task.isolation, task.billed));
            let rest = |way: &Way<'_>| {
                let (left, need) = (self.left(way), footprint(&job.resources, way.device));
                (way.cost, left.0 - i64::from(need.milli.get()), left.1 - need.memory.get() as i64)
            };
            let anywhere = job.tasks == 1 && !self.called_back.contains(&job.resources.class);
            let same_site = ways.iter().filter(|way| way.site == placement.site || anywhere);
            assert_eq!(same_site.map(rest).min(), Some(rest(way)), "cheapest, then fullest");
            hold += way.cost;
            self.take(task.device, &job.resources);
        }
        assert_eq!(placement.hold, Credits::new(hold));
        if !self.called_back.contains(&job.resources.class) {
            assert_eq!(hold, least, "the least price there is");
        }
        assert!(self.money_covers(job, hold), "money of {}", job.id);
        self.spend(job, hold);
        let taken = |task: &TaskPlacement| quota::taken(job, self.rows.device(task.device).unwrap());
        let milli = placement.tasks.iter().map(taken).sum();
        assert!(self.uses.allow(self.rows, job, placement.site, milli), "quota of {}", job.id);
        self.uses.take(job, placement.site, milli);
    }

    fn placeable(&mut self, job: &JobView) -> bool {
        self.least(job).is_some_and(|cost| self.money_covers(job, cost))
    }

    fn nothing_oversold(&self) {
        for at in self.rows.devices() {
            let leased = self.rows.leases.values().any(|lease| lease.device.node == at.node);
            let device = self.rows.device(at).unwrap();
            let node = &self.rows.nodes[&at.node];
            let raw = at.node.raw();
            let within = self.milli.get(&at).copied().unwrap_or(0) <= 1000
                && self.memory.get(&at).copied().unwrap_or(0) <= device.memory.get()
                && self.cores.get(&raw).copied().unwrap_or(0) <= u64::from(node.host_cores.get())
                && self.host_memory.get(&raw).copied().unwrap_or(0) <= node.host_memory.get();
            // Random leases may oversell a node from the start; the plan may not.
            assert!(within || leased, "{at:?} oversold");
        }
        for (key, spent) in &self.spent {
            if let Some(available) = self.rows.available(key) {
                assert!(*spent <= available.max(0), "{key} overdrawn");
            }
        }
    }
}

fn conforms(seed: u64) {
    let mut dice = Dice::new(seed);
    let rows = small(&mut dice, 10);
    let plan = rows.world(u32::MAX).decide(Limits::NONE);
    let mut naive = Naive::new(&rows);
    let placements: BTreeMap<_, _> = plan.placements.iter().map(|placement| (placement.job, placement)).collect();
    let verdicts: BTreeMap<_, _> = plan.verdicts.iter().map(|verdict| (verdict.job, verdict)).collect();
    let mut order: Vec<&JobView> = rows.jobs.values().collect();
    order.sort_by_key(|job| (-i64::from(job.priority), job.id));
    let placed_in_order: Vec<_> = order.iter().map(|job| job.id).filter(|id| placements.contains_key(id)).collect();
    assert_eq!(placed_in_order, plan.placements.iter().map(|placement| placement.job).collect::<Vec<_>>());
    for job in order {
        match placements.get(&job.id) {
            Some(placement) => naive.check_placement(job, placement),
            None => {
                let verdict = verdicts.get(&job.id).expect("who is not placed is told why");
                let class = &job.resources.class;
                assert!(
                    naive.called_back.contains(class) || !naive.placeable(job),
                    "{} could have been placed",
                    job.id
                );
                if verdict.reason == Reason::QuotaLent {
                    naive.called_back.insert(class.clone());
                }
                assert_eq!(verdict.version, job.version);
                assert_ne!(verdict.reason, Reason::BehindOthers, "nothing is kept in a first round");
            }
        }
    }
    naive.nothing_oversold();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plans_follow_the_policy_and_never_oversell(seed: u64) {
        conforms(seed);
    }

    #[test]
    fn committed_plans_never_oversell_over_many_decisions(seed: u64) {
        let mut dice = Dice::new(seed);
        let mut rows = small(&mut dice, 0);
        rows.leases.clear();
        let (mut world, mut next) = (rows.world(1), 0);
        let mut flying: Vec<Placement> = Vec::new();
        for step in 1..40u64 {
            let job = common::any_job(&mut dice, step);
            let delta = sluice_plan::Delta::Job(job);
            rows.apply(&delta);
            world.apply(&delta);
            flying.extend(world.decide(Limits { placements: 2, examined: 20 }).placements);
            // Some placements are committed late, some refused, some jobs end.
            while flying.len() > dice.roll(0, 3) as usize {
                let placement = flying.remove(0);
                if dice.once_in(4) {
                    world.reject(placement.job);
                    continue;
                }
                let job = rows.jobs[&placement.job].clone();
                let taken = placement.tasks.iter().map(|task| quota::taken(&job, rows.device(task.device).unwrap()));
                let covered = quota::Uses::of(&rows).allow(&rows, &job, placement.site, taken.sum());
                prop_assert!(covered, "quota of {}", job.id);
                for delta in rows.commit(&placement, &mut next) {
                    world.apply(&delta);
                }
                Naive::new(&rows).nothing_oversold_by_leases();
            }
            let ended = rows.leases.keys().next().copied().filter(|_| dice.once_in(3));
            if let Some(id) = ended {
                let delta = sluice_plan::Delta::LeaseGone(id);
                rows.apply(&delta);
                world.apply(&delta);
            }
        }
        prop_assert_eq!(world.in_flight(), flying.len());
    }
}

impl Naive<'_> {
    fn nothing_oversold_by_leases(&self) {
        for at in self.rows.devices() {
            let (device, node) = (self.rows.device(at).unwrap(), &self.rows.nodes[&at.node]);
            let raw = at.node.raw();
            assert!(self.milli.get(&at).copied().unwrap_or(0) <= 1000);
            assert!(self.memory.get(&at).copied().unwrap_or(0) <= device.memory.get());
            assert!(self.cores.get(&raw).copied().unwrap_or(0) <= u64::from(node.host_cores.get()));
            assert!(self.host_memory.get(&raw).copied().unwrap_or(0) <= node.host_memory.get());
        }
        for account in self.rows.accounts.values().filter(|account| account.key.unit() != Unit::Quota) {
            assert!(account.available() >= 0, "{} overdrawn", account.key);
        }
    }
}
