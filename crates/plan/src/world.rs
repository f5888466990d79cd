//! What the scheduler knows.
//!
//! Owns committed facts (nodes, leases, waiting jobs, mirrored balances, prices), what is derived from them, and the
//! scheduler's own memory: placements in flight, verdicts told, the round under way. Two worlds are equal when their
//! committed facts are. Called by the one thread that plans; never blocks, never fails.

use std::collections::HashSet;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use sluice_types::{DeviceRef, JobId, SiteId, TaskResources, Timestamp};

use crate::hash::{Lookup, MixHasher};
use crate::inventory::{Claim, Inventory};
use crate::purse::Purse;
use crate::quota::Quotas;
use crate::round::Round;
use crate::terms::Terms;
use crate::view::{Delta, Footprint, JobView};
use crate::want::{Queue, Want};

/// A placement that the writer has not answered yet: reserved, so that it is not decided twice.
#[derive(Debug, Clone)]
pub(crate) struct Flight {
    version: u64,
    want: Arc<Want>,
    /// Slots of the nodes of its tasks, by rank.
    nodes: Vec<u32>,
    hold: i64,
    site: SiteId,
    charge: i64,
}

/// What the scheduler knows, advanced by committed deltas.
///
/// A placement that [`World::decide`] returns is *in flight*: it stays reserved until the job's committed answer
/// arrives ([`Delta::JobGone`], or [`Delta::Job`] with another version) or the writer calls [`World::reject`].
#[derive(Debug, Clone)]
pub struct World {
    pub(crate) inventory: Inventory,
    pub(crate) queue: Queue,
    pub(crate) purse: Purse,
    pub(crate) quotas: Quotas,
    pub(crate) flights: Lookup<JobId, Flight>,
    pub(crate) round: Round,
    pub(crate) patience: u32,
    /// When the last of the committed facts was committed.
    pub(crate) now: Timestamp,
    tasks: Interner,
}

/// Equal worlds know the same committed facts. Placements in flight, verdicts told and rounds under way are the
/// scheduler's own memory and do not count.
impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        self.inventory == other.inventory
            && self.queue == other.queue
            && self.purse == other.purse
            && self.quotas == other.quotas
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// In how many rounds a job is passed by others before devices are kept for it.
    pub const PATIENCE: u32 = 8;

    /// A world without nodes, jobs or money.
    #[must_use]
    pub fn new() -> Self {
        Self::with_patience(Self::PATIENCE)
    }

    /// The same with another patience; `u32::MAX` keeps devices for nobody.
    #[must_use]
    pub fn with_patience(patience: u32) -> Self {
        Self {
            inventory: Inventory::default(),
            queue: Queue::default(),
            purse: Purse::default(),
            quotas: Quotas::default(),
            flights: Lookup::default(),
            round: Round::default(),
            patience,
            now: Timestamp::default(),
            tasks: Interner::default(),
        }
    }

    /// Takes one committed change. Within one commit the order of changes does not matter, and a change may come
    /// before what it refers to: a lease of an unknown node counts as soon as the node appears.
    pub fn apply(&mut self, delta: &Delta) {
        match delta {
            Delta::Node(node) => self.inventory.set_node(node),
            Delta::NodeGone(node) => self.inventory.remove_node(*node),
            Delta::Lease(lease) => {
                let task = self.tasks.intern(&lease.resources);
                self.inventory.set_lease(lease, task);
            }
            Delta::LeaseGone(lease) => self.inventory.remove_lease(*lease),
            Delta::Job(job) => self.set_job(job),
            Delta::JobGone(job) => {
                self.land(*job);
                self.queue.remove(*job);
                self.quotas.unclaim(*job);
            }
            Delta::Account(account) => {
                if !self.quotas.set_account(account) {
                    self.purse.set_account(account);
                }
            }
            Delta::Quota(quota) => self.quotas.set(quota),
            Delta::Prices(prices) => self.purse.set_prices(prices),
            Delta::Now(now) => self.now = self.now.max(*now),
        }
    }

    /// The writer refused a placement: what was reserved for it is free again and the job waits as before. Without
    /// effect where no placement of the job is in flight.
    pub fn reject(&mut self, job: JobId) {
        if self.land(job) {
            self.queue.enqueue(job);
        }
    }

    /// How many jobs wait, those with a placement in flight included.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.jobs.len()
    }

    /// How many placements are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// What is free on a device and in its node's host pools, less leases and placements in flight. `None` where the
    /// device is not in the inventory.
    #[must_use]
    pub fn free_of(&self, device: DeviceRef) -> Option<Footprint> {
        self.inventory.free_of(device)
    }

    /// Changes with every node that appears, differs or goes: for as long as it stays, what [`World::admissible`] said
    /// stays true.
    #[must_use]
    pub const fn inventory_edition(&self) -> u64 {
        self.inventory.edition()
    }

    pub(crate) fn intern(&mut self, task: &TaskResources) -> Arc<TaskResources> {
        self.tasks.intern(task)
    }

    /// The shape's offers, made anew where pools or prices changed.
    pub(crate) fn terms(&mut self, shape: u32) -> Arc<Terms> {
        let known = self.queue.shape_mut(shape);
        if let Some(terms) = known.terms.as_ref().filter(|terms| terms.hold_for(&self.inventory, &self.purse)) {
            return Arc::clone(terms);
        }
        let terms = Arc::new(Terms::of(&known.want, &self.inventory, &self.purse));
        known.terms = Some(Arc::clone(&terms));
        terms
    }

    /// Reserves a placement of a waiting job.
    pub(crate) fn take_off(&mut self, job: JobId, choice: &crate::fit::Choice) {
        let Some(waiting) = self.queue.jobs.get_mut(&job) else { return };
        waiting.flying = true;
        let (version, shape) = (waiting.version, waiting.shape);
        let want = Arc::clone(&self.queue.shape(shape).want);
        self.queue.dequeue(job);
        for (rank, pick) in (0u32..).zip(&choice.picks) {
            self.inventory.claim(pick.at, Claim::Flight(job, rank), Arc::clone(&want.task));
        }
        let charge = choice.charge();
        self.purse.promise(&want, i128::from(choice.cost));
        self.quotas.promise(&want, choice.site, charge, false);
        let nodes = choice.picks.iter().map(|pick| pick.at.node).collect();
        self.flights.insert(job, Flight { version, want, nodes, hold: choice.cost, site: choice.site, charge });
    }

    /// Gives back what a placement in flight reserved; whether there was one.
    pub(crate) fn land(&mut self, job: JobId) -> bool {
        let Some(flight) = self.flights.remove(&job) else { return false };
        for (rank, node) in (0u32..).zip(&flight.nodes) {
            self.inventory.release(*node, Claim::Flight(job, rank));
        }
        self.purse.promise(&flight.want, -i128::from(flight.hold));
        self.quotas.promise(&flight.want, flight.site, flight.charge, true);
        true
    }

    fn set_job(&mut self, job: &JobView) {
        let flying = self.flights.get(&job.id).is_some_and(|flight| flight.version == job.version);
        if !flying {
            self.land(job.id);
        }
        let task = self.intern(&job.resources);
        self.queue.set(job, task);
        if flying {
            self.queue.dequeue(job.id);
            if let Some(waiting) = self.queue.jobs.get_mut(&job.id) {
                waiting.flying = true;
            }
        }
    }
}

/// One copy of each request that anybody makes, swept when it has doubled.
#[derive(Debug, Clone, Default)]
struct Interner {
    known: HashSet<Arc<TaskResources>, BuildHasherDefault<MixHasher>>,
    sweep_at: usize,
}

impl Interner {
    fn intern(&mut self, task: &TaskResources) -> Arc<TaskResources> {
        if let Some(known) = self.known.get(task) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|task| Arc::strong_count(task) > 1);
            self.sweep_at = 1024.max(2 * self.known.len());
        }
        let task = Arc::new(task.clone());
        self.known.insert(Arc::clone(&task));
        task
    }
}

/// Jobs of one tenant that wait in front of an order of service.
pub(crate) fn ahead(queue: &Queue, tenant: sluice_types::TenantId, order: crate::want::Order) -> u32 {
    let mine = queue.shapes().filter(|shape| shape.want.tenant == tenant);
    let count: usize = mine.map(|shape| shape.queue.range(..order).count()).sum();
    u32::try_from(count).unwrap_or(u32::MAX)
}
