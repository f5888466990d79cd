//! Bills, again: from the nodes' journal records that reached the controller, by the formula of the design's "Money and
//! quota", in exact arithmetic.
//!
//! amount = wall nanoseconds x (billed milli x class rate + host milli-cores x core rate + host bytes x byte rate), rates
//! per hour of a whole device, core or GiB; the sum over a lease is the floor of the exact sum.

use std::collections::BTreeMap;

use sluice_ledger::{PriceBook, Transfer};
use sluice_lifecycle::model::{Lease, LeaseState};
use sluice_lifecycle::{Rows, TaskKey, WindowReport};
use sluice_types::{BootId, Generation, LeaseId, NodeId, NodeInstant};

use super::Oracle;
use crate::cluster::DEVICE_MEMORY;
use crate::host::Host;

const HOUR_NS: i128 = 3_600_000_000_000;
const GIB: i128 = 1 << 30;

/// One accepted window.
#[derive(Debug, Clone)]
pub(crate) struct Accepted {
    pub(crate) end: NodeInstant,
    /// By the formula.
    pub(crate) due: i128,
    pub(crate) posted: i128,
    pub(crate) credited: i128,
}

/// What a lease must cost.
#[derive(Debug, Clone)]
pub(crate) struct Bill {
    pub(crate) node: NodeId,
    pub(crate) key: TaskKey,
    pub(crate) row: Lease,
    /// Numerator of the price per nanosecond over `HOUR_NS * 1000 * GIB`.
    rate: i128,
    boot: Option<BootId>,
    cursor: u64,
    next: u64,
    /// Exact sum so far.
    parts: i128,
    pub(crate) windows: BTreeMap<u64, Accepted>,
    refused: u64,
    cut: Option<NodeInstant>,
}

/// The price per nanosecond from the price book, by the formula.
fn rate(lease: &Lease, book: &PriceBook, class: &str) -> Option<i128> {
    let memory_share =
        (1000 * i128::from(lease.resources.memory.get()) + i128::from(DEVICE_MEMORY) - 1) / i128::from(DEVICE_MEMORY);
    let billed = i128::from(lease.resources.milli.get()).max(memory_share.min(1000));
    let isolation_known = class == "cpu" || lease.resources.milli.get() == 1000;
    let candidates = book.prices.iter().filter(|price| price.class.as_str() == class);
    let at_site = candidates.clone().find(|price| price.site == Some(lease.site));
    let any = candidates.clone().find(|price| price.site.is_none())?;
    let numerator = |price: &sluice_ledger::Price| {
        (billed * i128::from(price.rate.device_hour.units())
            + i128::from(lease.resources.host_cores.get()) * i128::from(price.rate.core_hour.units()))
            * GIB
            + i128::from(lease.resources.host_memory.get()) * 1000 * i128::from(price.rate.gib_hour.units())
    };
    // A whole device may be sold exclusively or not; both rates are on the book then, and the claim must be one of them.
    let options: Vec<i128> = at_site.into_iter().chain([any]).map(numerator).collect();
    let told = numerator_of(lease);
    let right = if isolation_known { options.contains(&told) } else { options.first() == Some(&told) };
    (right || options.contains(&told)).then_some(told)
}

fn numerator_of(lease: &Lease) -> i128 {
    let terms = &lease.terms;
    (i128::from(terms.billed.get()) * i128::from(terms.rate.device_hour.units())
        + i128::from(terms.host_cores.get()) * i128::from(terms.rate.core_hour.units()))
        * GIB
        + i128::from(terms.host_memory.get()) * 1000 * i128::from(terms.rate.gib_hour.units())
}

impl Bill {
    fn whole(parts: i128) -> i128 {
        parts / (HOUR_NS * 1000 * GIB)
    }
}

impl Oracle {
    /// Leases that begin in this commit.
    pub(crate) fn new_leases(&mut self, now: u64, rows: &Rows, hosts: &[Host]) {
        if let Some(book) = rows.prices.last() {
            self.capacity.prices.insert(book.version, book.clone());
            self.capacity.edition = Some(book.version);
        }
        for row in &rows.leases {
            if self.bills.contains_key(&row.id) {
                continue;
            }
            let class = hosts.iter().find(|host| host.node == row.device.node).map_or("", |host| host.class);
            let rate = self.capacity.prices.get(&row.price).and_then(|book| rate(row, book, class));
            if rate.is_none() || class != row.resources.class.as_str() {
                self.fail(now, format!("{} is not priced by the book: {:?}", row.id, row.terms));
            }
            if !rows.prices.is_empty() || self.capacity.edition != Some(row.price) {
                let same_commit = rows.prices.iter().any(|book| Some(book.version) == self.capacity.edition);
                if !same_commit {
                    self.fail(now, format!("{} is priced by an old edition", row.id));
                }
            }
            let bill = Bill {
                node: row.device.node,
                key: TaskKey { attempt: row.attempt, lease: row.id, generation: row.generation },
                row: row.clone(),
                rate: rate.unwrap_or(0),
                boot: None,
                cursor: 0,
                next: 0,
                parts: 0,
                windows: BTreeMap::new(),
                refused: 0,
                cut: None,
            };
            self.bills.insert(row.id, bill);
        }
    }

    /// The job and all its attempts are settled: the writer has forgotten the lease.
    fn is_forgotten(&self, bill: &Bill) -> bool {
        let attempts = self.attempts.values().filter(|row| row.job == bill.row.job);
        self.over.get(&bill.row.job).copied().unwrap_or(false) && attempts.into_iter().all(|row| row.settled)
    }

    /// A journal record arrives.
    pub(crate) fn window(&mut self, _now: u64, node: NodeId, record: &WindowReport, rows: &Rows) {
        let settled = self.nodes.get(&node).map_or(0, |view| view.settled);
        if record.journal <= settled {
            self.counted.duplicate_windows += 1;
            return;
        }
        if let Some(view) = self.nodes.get_mut(&node) {
            view.settled = record.journal;
        }
        let known = self.bills.get(&record.key.lease);
        let forgotten = known.is_some_and(|bill| self.is_forgotten(bill));
        let Some(bill) = self.bills.get_mut(&record.key.lease).filter(|bill| bill.key == record.key) else { return };
        if forgotten || bill.node != node {
            return;
        }
        if record.sequence < bill.next {
            let same = bill.windows.get(&record.sequence).is_none_or(|window| window.end == record.end);
            self.counted.duplicate_windows += u64::from(same);
            return;
        }
        let other_boot = bill.boot.as_ref().is_some_and(|boot| *boot != record.boot);
        if other_boot || record.end <= record.start || (bill.boot.is_some() && record.start.nanos() < bill.cursor) {
            return;
        }
        // A cut of this very commit may have come before or behind the record: then the rows tell which.
        let cut_now = rows.leases.iter().find(|row| row.id == record.key.lease).and_then(|row| row.cut);
        let past = bill.cut.is_some_and(|cut| record.end > cut);
        let told = || rows.windows.iter().any(|row| row.lease == record.key.lease && row.sequence == record.sequence);
        let between = bill.cut.is_none() && cut_now.is_some_and(|cut| record.end > cut) && !told();
        if past || between {
            bill.refused += 1;
            bill.next = record.sequence + 1;
            self.counted.refused_windows += 1;
            return;
        }
        let wall = i128::from(record.end.nanos() - record.start.nanos());
        let before = Bill::whole(bill.parts);
        bill.parts += wall * bill.rate;
        let due = Bill::whole(bill.parts) - before;
        (bill.boot, bill.cursor, bill.next) = (Some(record.boot.clone()), record.end.nanos(), record.sequence + 1);
        bill.windows.insert(record.sequence, Accepted { end: record.end, due, posted: 0, credited: 0 });
        self.windows += 1;
    }

    /// Money that the ledger moved for a window. `left` is what its hold had before.
    pub(crate) fn posted(&mut self, now: u64, lease: LeaseId, sequence: u64, (amount, left): (i128, i128)) {
        let window = self.bills.get_mut(&lease).and_then(|bill| bill.windows.get_mut(&sequence));
        let Some(window) = window else {
            return self.fail(now, format!("window {lease}/{sequence} is billed, and no journal has it"));
        };
        let due = window.due;
        let before = std::mem::replace(&mut window.posted, amount);
        if before != 0 || amount != due.min(left) {
            self.fail(
                now,
                format!("window {lease}/{sequence} costs {due} of {left} held; {amount} billed after {before}"),
            );
        }
    }

    pub(crate) fn credited(&mut self, now: u64, lease: LeaseId, sequence: u64, transfer: &Transfer) {
        let window = self.bills.get_mut(&lease).and_then(|bill| bill.windows.get_mut(&sequence));
        let Some(window) = window else {
            return self.fail(now, format!("window {lease}/{sequence} is credited, and no journal has it"));
        };
        let (posted, amount) = (window.posted, i128::from(transfer.amount));
        window.credited += amount;
        if window.credited != posted {
            let all = window.credited;
            self.fail(now, format!("window {lease}/{sequence} cost {posted}, {all} are credited"));
        }
    }

    /// What a lease's row claims, against its bill.
    pub(crate) fn check_bill(&mut self, now: u64, row: &Lease) {
        let Some(bill) = self.bills.get_mut(&row.id) else { return };
        let due = Bill::whole(bill.parts);
        let posted: i128 = bill.windows.values().map(|window| window.posted).sum();
        let credited: i128 = bill.windows.values().map(|window| window.credited).sum();
        let told = (
            i128::from(row.amount.units()),
            i128::from(row.amount.units()) + i128::from(row.uncollected.units()),
            i128::from(row.credited.units()),
            row.refused,
            row.next_window,
        );
        let mine = (posted, due, credited, bill.refused, bill.next);
        let settled = bill.row.state == LeaseState::Settled;
        bill.row = row.clone();
        if told != mine && !settled {
            self.fail(
                now,
                format!(
                    "{} claims {told:?}, its journal gives {mine:?} (amount, due, credited, refused, next)",
                    row.id
                ),
            );
        }
    }

    /// A cut is the controller's instant on the node's clock, and stays.
    pub(crate) fn check_cut(&mut self, now: u64, row: &Lease) {
        let Some(bill) = self.bills.get_mut(&row.id) else { return };
        let before = std::mem::replace(&mut bill.cut, row.cut);
        let node = bill.node;
        if before.is_some() && before != row.cut {
            return self.fail(now, format!("the cut of {} moved", row.id));
        }
        let (None, Some(cut)) = (before, row.cut) else { return };
        let at = crate::params::EPOCH + now;
        let maps = |pair: Option<(sluice_types::Timestamp, NodeInstant)>| {
            pair.is_some_and(|(controller, instant)| cut.nanos() == instant.nanos() + (at - controller.nanos()))
        };
        let view = self.nodes.get(&node).cloned().unwrap_or_default();
        let kept = view.pairs_before_crash.iter().chain(&view.pairs_of_former).any(|pair| maps(Some(*pair)));
        if !maps(view.pair) && !maps(view.pair_before) && !kept {
            self.fail(now, format!("the cut of {} is not this instant on the clock of {node}", row.id));
        }
    }

    /// Every record that a living node has journalled was taken.
    pub(crate) fn check_delivered(&mut self, now: u64, hosts: &[Host]) {
        for host in hosts.iter().filter(|host| !host.gone && host.power) {
            let settled = self.nodes.get(&host.node).map_or(0, |view| view.settled);
            if let Some(last) = host.journal.last().filter(|last| last.journal > settled + 64) {
                let told = format!("{} has journalled {}, {settled} are taken", host.node, last.journal);
                self.fail(now, told);
            }
        }
    }

    pub(crate) fn generation_of(&self, lease: LeaseId) -> Generation {
        self.bills.get(&lease).map_or(Generation::ZERO, |bill| bill.key.generation)
    }
}
