//! Capacity: at no commit is a device sold twice, and a slice is free only when its task is gone.

use std::collections::{BTreeMap, BTreeSet};

use sluice_ledger::PriceBook;
use sluice_lifecycle::Rows;
use sluice_lifecycle::model::{AttemptState, Goal, Lease, LeaseState};
use sluice_types::{DeviceRef, LeaseId, NodeId, PriceVersion, Reason};

use super::Oracle;
use crate::cluster::DEVICE_MEMORY;
use crate::host::{Assignment, Host};
use crate::params::{EPOCH, settings};

/// What is leased where, from the rows of each commit.
#[derive(Debug, Default)]
pub(crate) struct Capacity {
    held: BTreeMap<NodeId, BTreeMap<LeaseId, Lease>>,
    /// How often a slice of the node was taken or given back.
    changes: BTreeMap<NodeId, u64>,
    pub(crate) prices: BTreeMap<PriceVersion, PriceBook>,
    pub(crate) edition: Option<PriceVersion>,
}

impl Capacity {
    pub(crate) fn changes(&self, node: NodeId) -> u64 {
        self.changes.get(&node).copied().unwrap_or(0)
    }

    /// What is leased of each device of a node in thousandths and bytes; host cores; host bytes.
    pub(crate) fn used(&self, node: NodeId, cpu: bool) -> (BTreeMap<DeviceRef, (u64, u64)>, u64, u64) {
        let mut sums: BTreeMap<DeviceRef, (u64, u64)> = BTreeMap::new();
        let (mut cores, mut memory) = (0u64, 0u64);
        for lease in self.held.get(&node).into_iter().flat_map(BTreeMap::values) {
            let wanted = &lease.resources;
            let (host_cores, host_memory) = (u64::from(wanted.host_cores.get()), wanted.host_memory.get());
            let sum = sums.entry(lease.device).or_default();
            sum.0 += u64::from(wanted.milli.get()) + if cpu { host_cores } else { 0 };
            sum.1 += wanted.memory.get() + if cpu { host_memory } else { 0 };
            if !cpu {
                cores += host_cores;
                memory += host_memory;
            }
        }
        (sums, cores, memory)
    }
}

impl Oracle {
    pub(crate) fn check_leases(&mut self, now: u64, rows: &Rows, hosts: &[Host]) {
        let mut touched: BTreeSet<NodeId> = BTreeSet::new();
        for row in &rows.leases {
            let before = self.bills.get(&row.id).map_or(LeaseState::Held, |bill| bill.row.state);
            self.check_release(now, before, row, rows, hosts);
            self.check_cut(now, row);
            self.check_bill(now, row);
            let on = self.capacity.held.entry(row.device.node).or_default();
            let changed = match matches!(row.state, LeaseState::Held | LeaseState::Ending) {
                true => on.insert(row.id, row.clone()).is_none(),
                false => on.remove(&row.id).is_some(),
            };
            *self.capacity.changes.entry(row.device.node).or_default() += u64::from(changed);
            touched.insert(row.device.node);
        }
        for node in touched {
            self.check_node(now, node, hosts);
        }
    }

    /// A slice that becomes free: nothing of its task may be left.
    fn check_release(&mut self, now: u64, before: LeaseState, row: &Lease, rows: &Rows, hosts: &[Host]) {
        let freed = matches!(row.state, LeaseState::Freed | LeaseState::Settled);
        if !freed || !matches!(before, LeaseState::Held | LeaseState::Ending) {
            return;
        }
        let attempt = rows.attempts.iter().find(|other| other.id == row.attempt).or(self.attempts.get(&row.attempt));
        let waited = attempt
            .and_then(|attempt| attempt.ended)
            .is_some_and(|ended| EPOCH + now > ended.nanos() + settings().late_windows.get());
        if waited {
            return;
        }
        let host = hosts.iter().find(|host| host.node == row.device.node);
        let task = host.and_then(|host| host.tasks.get(&row.id));
        let lives = host.is_some_and(|host| host.power) && task.is_some_and(|task| task.process);
        // A host that is off has nobody who could prove anything, unless it said so before.
        let proven = row.windows.is_some();
        if lives || !proven {
            self.fail(now, format!("the slice of {} is free without proof (its task lives: {lives})", row.id));
        }
    }

    fn check_node(&mut self, now: u64, node: NodeId, hosts: &[Host]) {
        let Some(host) = hosts.iter().find(|host| host.node == node) else { return };
        let (sums, cores, memory) = self.capacity.used(node, host.class == "cpu");
        // Tenants and idle make up the whole exactly when tenants are at most the whole.
        let oversold = sums.values().any(|(milli, bytes)| *milli > 1000 || *bytes > DEVICE_MEMORY)
            || cores > u64::from(host.host_cores)
            || memory > 256 << 30;
        if oversold {
            self.fail(now, format!("{node} is oversold: {sums:?}, {cores} cores, {memory} bytes"));
        }
    }

    /// Two processes that both count never share more than a device.
    pub(crate) fn check_physical(&mut self, now: u64, host: usize, wanted: &Assignment, hosts: &[Host]) {
        let counts = |lease: &LeaseId| {
            let attempt = self.bills.get(lease).and_then(|bill| self.attempts.get(&bill.key.attempt));
            attempt.is_some_and(|attempt| attempt.state != AttemptState::Ended)
        };
        let running = hosts[host].tasks.values().filter(|task| task.process && task.wanted.device == wanted.device);
        let milli: u32 = running.filter(|task| counts(&task.wanted.key.lease)).map(|task| task.wanted.milli).sum();
        if milli > 1000 {
            self.fail(now, format!("{milli} thousandths run on device {} of {}", wanted.device, hosts[host].node));
        }
    }

    /// Every placement holds money and budgets.
    pub(crate) fn check_placements(&mut self, now: u64, rows: &Rows) {
        let placed = rows.attempts.iter().filter(|row| !self.attempts.contains_key(&row.id)).cloned();
        for attempt in placed.collect::<Vec<_>>() {
            let leases = || rows.leases.iter().filter(|lease| lease.attempt == attempt.id);
            let Some(tenant) = leases().next().map(|lease| lease.tenant) else { continue };
            if attempt.state != AttemptState::Ended && !attempt.settled && !self.ledger.is_open(attempt.funds) {
                self.fail(now, format!("{} holds no money", attempt.id));
            }
            let held = rows.transfers.iter().filter(|transfer| {
                transfer.cause.strip_prefix("hold/").is_some_and(|rest| rest.starts_with(&attempt.id.to_string()))
            });
            let amounts: Vec<_> =
                held.filter(|transfer| !transfer.cause.ends_with("/quota")).map(|row| row.amount).collect();
            let wanted = 1 + usize::from(self.budgets.contains(&tenant));
            if amounts.len() != wanted || amounts.iter().any(|amount| Some(amount) != amounts.first()) {
                self.fail(now, format!("{} holds {amounts:?} in {wanted} accounts", attempt.id));
            }
            if attempt.goal != Goal::Prepare {
                self.placed_to_run.insert(attempt.id);
            }
        }
    }

    /// An attempt that ended without proof is fenced: its windows have a cut.
    pub(crate) fn check_fences(&mut self, now: u64, rows: &Rows) {
        for attempt in rows.attempts.iter().filter(|row| row.state == AttemptState::Ended) {
            for task in &attempt.tasks {
                let Some(bill) = self.bills.get(&task.lease) else { continue };
                let unproven = matches!(bill.row.state, LeaseState::Held | LeaseState::Ending);
                let clock = self.nodes.get(&bill.node).is_some_and(|view| view.pair.is_some());
                if unproven && clock && bill.row.cut.is_none() {
                    self.fail(now, format!("{} ended without proof, and {} has no cut", attempt.id, task.lease));
                }
            }
        }
    }

    /// The platform lost it while it ran.
    pub(crate) fn was_fenced(&self, attempt: sluice_types::AttemptId) -> bool {
        let reason = self.attempts.get(&attempt).and_then(|row| row.reason);
        matches!(reason, Some(Reason::NodeLost | Reason::SiteLost))
    }

    /// It was lost, or what it left behind may have been.
    pub(crate) fn was_lost(&self, attempt: sluice_types::AttemptId) -> bool {
        let well = self.attempts.get(&attempt).is_some_and(|row| row.reason.is_none());
        self.was_fenced(attempt) || (well && self.parts.values().any(|part| part.attempt == attempt))
    }
}
