//! Rows of small worlds, a seeded die to make them, and the writer's side of the conversation.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

pub mod quota;

use std::collections::BTreeMap;

use sluice_ledger::{Account, AccountKey, BudgetScope, Price, PriceBook, QuotaKey, Rate};
use sluice_plan::{Delta, DeviceView, JobView, LeaseView, NodeView, Placement, Purpose, QuotaView, World};
use sluice_types::{
    Bytes, CoreMilli, Credits, DeviceClassName, DeviceRef, IsolationClass, JobId, LeaseId, MilliGpu, Nanos, NodeId,
    PriceVersion, ProjectId, SiteId, TaskResources, TenantId, Timestamp,
};

/// A seeded die (xorshift64*).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    /// A number of `low..=high`.
    pub fn roll(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    pub fn once_in(&mut self, times: u64) -> bool {
        self.next().is_multiple_of(times)
    }

    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.next() as usize % of.len()].clone()
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.next() as usize % (at + 1));
        }
    }
}

/// All rows, as the store would hold them.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    pub nodes: BTreeMap<NodeId, NodeView>,
    pub leases: BTreeMap<LeaseId, LeaseView>,
    pub jobs: BTreeMap<JobId, JobView>,
    pub accounts: BTreeMap<AccountKey, Account>,
    pub prices: Option<PriceBook>,
    pub quotas: BTreeMap<QuotaKey, QuotaView>,
}

impl Rows {
    pub fn apply(&mut self, delta: &Delta) {
        match delta.clone() {
            Delta::Node(node) => drop(self.nodes.insert(node.id, node)),
            Delta::NodeGone(node) => drop(self.nodes.remove(&node)),
            Delta::Lease(lease) => drop(self.leases.insert(lease.id, lease)),
            Delta::LeaseGone(lease) => drop(self.leases.remove(&lease)),
            Delta::Job(job) => drop(self.jobs.insert(job.id, job)),
            Delta::JobGone(job) => drop(self.jobs.remove(&job)),
            Delta::Account(account) => drop(self.accounts.insert(account.key.clone(), account)),
            Delta::Prices(prices) => self.prices = Some(prices),
            Delta::Quota(quota) if quota.limits.is_none() => drop(self.quotas.remove(&quota.key)),
            Delta::Quota(quota) => drop(self.quotas.insert(quota.key.clone(), quota)),
            // Not a fact that worlds are compared by.
            Delta::Now(_) => {}
        }
    }

    pub fn deltas(&self) -> Vec<Delta> {
        let mut deltas: Vec<Delta> = self.nodes.values().cloned().map(Delta::Node).collect();
        deltas.extend(self.leases.values().cloned().map(Delta::Lease));
        deltas.extend(self.jobs.values().cloned().map(Delta::Job));
        deltas.extend(self.accounts.values().cloned().map(Delta::Account));
        deltas.extend(self.quotas.values().cloned().map(Delta::Quota));
        deltas.extend(self.prices.clone().map(Delta::Prices));
        deltas
    }

    pub fn world(&self, patience: u32) -> World {
        build(&self.deltas(), patience)
    }

    pub fn devices(&self) -> Vec<DeviceRef> {
        let of = |node: &NodeView| {
            let id = node.id;
            node.devices.iter().map(move |device| DeviceRef { node: id, index: device.index }).collect::<Vec<_>>()
        };
        self.nodes.values().flat_map(of).collect()
    }

    pub fn device(&self, at: DeviceRef) -> Option<&DeviceView> {
        self.nodes.get(&at.node)?.devices.iter().find(|device| device.index == at.index)
    }

    pub fn available(&self, key: &AccountKey) -> Option<i64> {
        self.accounts.get(key).map(Account::available)
    }

    pub fn credit(&mut self, key: AccountKey, amount: i64) -> Delta {
        let account = self.accounts.entry(key.clone()).or_insert_with(|| Account::empty(key));
        account.credits_posted += amount;
        Delta::Account(account.clone())
    }

    /// What the writer commits for a placement.
    pub fn commit(&mut self, placement: &Placement, next_lease: &mut u64) -> Vec<Delta> {
        let job = self.jobs.remove(&placement.job).unwrap();
        let mut deltas = vec![Delta::JobGone(job.id)];
        for task in &placement.tasks {
            *next_lease += 1;
            let id = LeaseId::from_raw(*next_lease);
            let lease = LeaseView { id, device: task.device, resources: job.resources.clone() };
            self.leases.insert(id, lease.clone());
            deltas.push(Delta::Lease(lease));
        }
        let mut budgets = job.budgets.clone();
        budgets.dedup();
        let mut debits = vec![(AccountKey::Funds(job.tenant), placement.hold.units())];
        debits.extend(budgets.into_iter().map(|key| (key, placement.hold.units())));
        deltas.extend(self.hold_quota(&job, placement));
        for (key, amount) in debits {
            if let Some(account) = self.accounts.get_mut(&key) {
                account.debits_pending += amount;
                deltas.push(Delta::Account(account.clone()));
            }
        }
        deltas
    }
}

pub fn build(deltas: &[Delta], patience: u32) -> World {
    let mut world = World::with_patience(patience);
    for delta in deltas {
        world.apply(delta);
    }
    world
}

pub fn class(name: &str) -> DeviceClassName {
    name.parse().unwrap()
}

pub fn site(raw: u64) -> SiteId {
    SiteId::from_raw(raw)
}

pub fn tenant(raw: u64) -> TenantId {
    TenantId::from_raw(raw)
}

pub fn budget(raw: u64) -> AccountKey {
    AccountKey::Budget(BudgetScope::Tenant(tenant(raw)), 7)
}

pub fn project_budget(raw: u64) -> AccountKey {
    AccountKey::Budget(BudgetScope::Project(ProjectId::from_raw(raw)), 7)
}

pub fn funds(raw: u64, amount: i64) -> Account {
    Account { credits_posted: amount, ..Account::empty(AccountKey::Funds(tenant(raw))) }
}

pub fn gpu(index: u16, name: &str, memory: u64) -> DeviceView {
    DeviceView {
        index,
        class: class(name),
        memory: Bytes::new(memory),
        cores: CoreMilli::ZERO,
        isolation: vec![IsolationClass::Windowed, IsolationClass::Exclusive],
        healthy: true,
    }
}

pub fn core(index: u16, memory: u64) -> DeviceView {
    DeviceView {
        class: class("cpu"),
        cores: CoreMilli::new(1000),
        isolation: vec![IsolationClass::Cpu],
        ..gpu(index, "cpu", memory)
    }
}

pub fn node(id: u64, at: u64, devices: Vec<DeviceView>) -> NodeView {
    NodeView {
        id: NodeId::from_raw(id),
        site: site(at),
        open: true,
        host_cores: CoreMilli::new(64_000),
        host_memory: Bytes::new(1 << 20),
        devices,
    }
}

pub fn job(id: u64, name: &str, tasks: u32, milli: u32) -> JobView {
    JobView {
        id: JobId::from_raw(id),
        version: 1,
        tenant: tenant(1),
        project: ProjectId::from_raw(1),
        priority: 0,
        purpose: Purpose::Run,
        tasks,
        resources: TaskResources {
            class: class(name),
            milli: MilliGpu::new(milli),
            memory: Bytes::ZERO,
            host_cores: CoreMilli::ZERO,
            host_memory: Bytes::ZERO,
        },
        sites: Vec::new(),
        state_at: Vec::new(),
        hold_time: Nanos::from_secs(3600),
        budgets: Vec::new(),
        firm: false,
    }
}

pub fn lease(id: u64, node: u64, index: u16, resources: &TaskResources) -> LeaseView {
    let device = DeviceRef { node: NodeId::from_raw(node), index };
    LeaseView { id: LeaseId::from_raw(id), device, resources: resources.clone() }
}

pub fn price(name: &str, device_hour: i64) -> Price {
    Price {
        class: class(name),
        isolation: None,
        site: None,
        rate: Rate { device_hour: Credits::new(device_hour), core_hour: Credits::new(100), gib_hour: Credits::new(1) },
    }
}

pub fn book(version: u64, prices: Vec<Price>) -> PriceBook {
    PriceBook { version: PriceVersion::from_raw(version), at: Timestamp::default(), prices }
}

/// Rows of a small random world: up to 3 sites, 6 nodes, 12 devices of 3 classes, and so many jobs.
pub fn small(dice: &mut Dice, jobs: u64) -> Rows {
    let mut rows = Rows::default();
    for id in 1..=dice.roll(1, 6) {
        let node = any_node(dice, id);
        rows.apply(&Delta::Node(node));
    }
    for id in 1..=dice.roll(0, 9) {
        let lease = any_lease(dice, id);
        rows.apply(&Delta::Lease(lease));
    }
    rows.apply(&Delta::Prices(any_prices(dice, 1)));
    for raw in 1..=2 {
        rows.apply(&Delta::Account(funds(raw, dice.roll(0, 60) as i64)));
    }
    for key in [budget(1), budget(2), project_budget(1)] {
        if dice.once_in(3) {
            rows.credit(key, dice.roll(0, 40) as i64);
        }
    }
    for delta in quota::any_quotas(dice) {
        rows.apply(&delta);
    }
    for id in 1..=jobs {
        let job = any_job(dice, id);
        rows.apply(&Delta::Job(job));
    }
    rows
}

pub fn any_node(dice: &mut Dice, id: u64) -> NodeView {
    let devices = (0..dice.roll(1, 3) as u16).map(|index| any_device(dice, index)).collect();
    NodeView {
        open: !dice.once_in(4),
        host_cores: CoreMilli::new(dice.roll(10, 60) as u32),
        host_memory: Bytes::new(dice.roll(3, 14)),
        ..node(id, dice.roll(1, 3), devices)
    }
}

fn any_device(dice: &mut Dice, index: u16) -> DeviceView {
    use IsolationClass::{Exclusive, Mps, Windowed};
    let memory = dice.pick(&[5, 8, 8, 12]);
    let mut device = match dice.roll(0, 5) {
        0 | 1 => core(index, memory),
        2 => gpu(index, "b", memory),
        _ => gpu(index, "a", memory),
    };
    if device.class == class("cpu") {
        device.cores = CoreMilli::new(dice.pick(&[40, 80]));
    } else {
        device.isolation = dice.pick(&[
            vec![Windowed, Exclusive],
            vec![Mps, Exclusive],
            vec![Windowed],
            vec![Exclusive],
            vec![Mps],
            vec![],
        ]);
    }
    device.healthy = !dice.once_in(8);
    device
}

pub fn any_lease(dice: &mut Dice, id: u64) -> LeaseView {
    let task = any_task(dice);
    let (node, index) = (dice.roll(1, 6), dice.roll(0, 2) as u16);
    lease(id, node, index, &task)
}

pub fn any_prices(dice: &mut Dice, version: u64) -> PriceBook {
    let mut prices = Vec::new();
    for name in ["a", "b", "cpu"] {
        if !dice.once_in(12) {
            prices.push(price(name, dice.roll(0, 12) as i64));
        }
        if dice.once_in(2) {
            prices.push(Price { site: Some(site(dice.roll(1, 3))), ..price(name, dice.roll(0, 16) as i64) });
        }
        if dice.once_in(3) {
            let isolation = Some(IsolationClass::Exclusive);
            prices.push(Price { isolation, ..price(name, dice.roll(0, 16) as i64) });
        }
    }
    book(version, prices)
}

fn any_task(dice: &mut Dice) -> TaskResources {
    TaskResources {
        class: class(dice.pick(&["a", "a", "a", "a", "a", "a", "b", "cpu", "cpu", "cpu"])),
        milli: MilliGpu::new(match dice.roll(0, 3) {
            0 => dice.pick(&[1000, 900]),
            1 => dice.roll(1, 700) as u32,
            2 => dice.pick(&[250, 500]),
            _ => dice.roll(1, 300) as u32,
        }),
        memory: Bytes::new(if dice.once_in(2) { 0 } else { dice.roll(0, 5) }),
        host_cores: CoreMilli::new(if dice.once_in(2) { 0 } else { dice.roll(0, 20) as u32 }),
        host_memory: Bytes::new(if dice.once_in(2) { 0 } else { dice.roll(0, 4) }),
    }
}

pub fn any_job(dice: &mut Dice, id: u64) -> JobView {
    let raw = dice.roll(1, 2);
    let mut view = job(id, "a", if dice.once_in(2) { 1 } else { dice.roll(2, 4) as u32 }, 1);
    view.resources = any_task(dice);
    view.version = dice.roll(1, 3);
    view.tenant = tenant(raw);
    view.project = ProjectId::from_raw(raw);
    view.priority = dice.pick(&[0, 0, 0, 5, -5]);
    if dice.once_in(4) {
        view.sites = (1..=3).filter(|_| dice.once_in(2)).map(site).collect();
    }
    if dice.once_in(8) {
        view.state_at = vec![site(dice.roll(1, 3))];
    }
    if dice.once_in(8) {
        view.purpose = Purpose::Migrate;
        view.sites = vec![site(dice.roll(1, 3))];
    }
    if dice.once_in(2) {
        view.budgets.push(budget(raw));
    }
    if dice.once_in(3) {
        view.budgets.push(project_budget(raw));
    }
    view.firm = view.purpose == Purpose::Run && dice.once_in(6);
    view
}
