//! The starvation rule: devices kept for a job that others pass again and again.
//!
//! A job that waits for room is passed in a round when, behind it in the same round, a task is placed in a pool that
//! it could use. After [`World::with_patience`] such rounds (counted for the shape, from zero again when a job of the
//! shape is placed) the job's best plan is made at its turn in every round: the devices of one site that need to give
//! back least to hold all of its tasks. Until the round ends nobody behind it, who by the order of service has the
//! same or a lower priority, is placed on them; those who would be are BEHIND_OTHERS. Kept devices only get emptier
//! (but for jobs of higher priority), so what the best plan lacks never grows, and once the leases on them end the
//! job is placed. Where its tasks take host cores or memory, every device on the same host pools is kept.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use sluice_types::{DeviceRef, Nanos, SiteId};

use crate::hash::ring_of;
use crate::inventory::{Inventory, Spot};
use crate::room::{host_times, times};
use crate::terms::{Offer, Terms};
use crate::want::{Kept, Shape, Want};
use crate::world::World;

/// For how many jobs devices are kept in one round, one of each tenant; the rest wait for their turn.
const KEPT_FOR: u32 = 16;
/// For how long devices are kept while nothing that is in the way of the plan ends, and for how long they are not after
/// that: what is kept is paid by nobody, and what is in the way may never end.
const KEPT_WITHOUT_GAIN: Nanos = Nanos::from_secs(12 * 3600);

/// One more task on a device: what the device lacks for it, in thousandths of share and of memory.
type Step = Reverse<(u64, u64, DeviceRef, u64)>;

impl World {
    /// Whether devices may be kept for a shape: others have passed it too often, and it does not rest.
    pub(crate) fn starves(&self, shape: &Shape) -> bool {
        shape.passed >= self.patience && shape.rests_until.is_none_or(|until| self.now >= until)
    }

    /// Keeps the devices of the want's best plan, where empty devices that are not kept yet could hold it at all. Returns
    /// what the plan lacks.
    pub(crate) fn keep_for(&mut self, want: &Want, terms: &Terms) -> Option<u64> {
        if self.round.kept_for >= KEPT_FOR || self.round.kept_tenants.contains(&want.tenant) {
            return None;
        }
        // Also where no plan is found: looking for one reads every node.
        self.round.kept_for += 1;
        let plans = terms.sites.iter().filter_map(|(site, offers)| best_plan(&self.inventory, *site, offers, want));
        let (lacks, _, devices) = plans.min_by_key(|(lacks, site, _)| (*lacks, *site))?;
        self.keep(&devices, true);
        self.round.kept.extend(devices);
        self.round.kept_tenants.insert(want.tenant);
        Some(lacks)
    }

    /// Keeps devices for a shape that starves, or lets it rest where that has led nowhere for too long.
    pub(crate) fn keep_or_rest(&mut self, at: u32, want: &Want, terms: &Terms) {
        if !self.starves(self.queue.shape(at)) {
            return;
        }
        let Some(lacks) = self.keep_for(want, terms) else { return };
        let now = self.now;
        let shape = self.queue.shape_mut(at);
        match shape.kept {
            Some(kept) if lacks >= kept.lacks => {
                if now >= kept.since.after(KEPT_WITHOUT_GAIN) {
                    shape.rests_until = Some(now.after(KEPT_WITHOUT_GAIN));
                    (shape.kept, shape.passed) = (None, 0);
                }
            }
            _ => shape.kept = Some(Kept { since: now, lacks }),
        }
    }
}

struct Candidate<'a> {
    at: Spot,
    offer: &'a Offer,
    most: u64,
    beside: bool,
}

/// What the devices of the best plan at a site lack, and which they are.
fn best_plan(inventory: &Inventory, site: SiteId, offers: &[Offer], want: &Want) -> Option<(u64, SiteId, Vec<Spot>)> {
    let candidates = candidates(inventory, site, offers);
    let mut steps: BinaryHeap<Step> = candidates
        .iter()
        .map(|(device, one)| Reverse((step(inventory, one, 1), ring_of(*device), *device, 1)))
        .collect();
    let mut hosted: BTreeMap<u32, u64> = BTreeMap::new();
    let (mut left, mut lacks, mut devices) = (want.tasks, 0u64, BTreeSet::new());
    while left > 0 {
        let Reverse((cost, ring, device, number)) = steps.pop()?;
        let one = &candidates[&device];
        if one.beside {
            let tasks = hosted.entry(one.at.node).or_default();
            if *tasks >= host_capacity(inventory, one) {
                continue;
            }
            *tasks += 1;
        }
        (left, lacks) = (left - 1, lacks.saturating_add(cost));
        devices.insert(device);
        if number < one.most {
            steps.push(Reverse((step(inventory, one, number + 1), ring, device, number + 1)));
        }
    }
    let needs_host = want.task.host_cores.get() > 0 || want.task.host_memory.get() > 0;
    let nodes: BTreeSet<u32> =
        devices.iter().map(|device| &candidates[device]).filter(|one| one.beside).map(|one| one.at.node).collect();
    let mut kept: Vec<Spot> = devices.iter().map(|device| candidates[device].at).collect();
    if needs_host {
        kept.extend(nodes.iter().flat_map(|node| beside(inventory, *node)));
        kept.sort_unstable();
        kept.dedup();
    }
    Some((lacks, site, kept))
}

/// Devices at the site that could hold a task if they were empty and are not kept for anybody.
fn candidates<'a>(inventory: &Inventory, site: SiteId, offers: &'a [Offer]) -> BTreeMap<DeviceRef, Candidate<'a>> {
    let mut found = BTreeMap::new();
    for (slot, node, view) in inventory.known() {
        if view.site != site || !view.open {
            continue;
        }
        for (position, device) in (0u16..).zip(&node.devices) {
            let Some(offer) = offers.iter().find(|offer| offer.pool == device.pool) else { continue };
            let most = times(1000, device.memory, &offer.need);
            if device.sellable && !device.kept && most > 0 {
                let at = Spot { node: slot, device: position };
                let beside = inventory.pool(device.pool).draws_on_host();
                found.insert(inventory.device_ref(at), Candidate { at, offer, most, beside });
            }
        }
    }
    found
}

/// What the device lacks more for `number` tasks than for one fewer.
fn step(inventory: &Inventory, one: &Candidate<'_>, number: u64) -> u64 {
    let device = inventory.device(one.at);
    let lacks = |tasks: u64| {
        let milli = tasks.saturating_mul(u64::from(one.offer.need.milli.get()));
        let memory = u128::from(tasks) * u128::from(one.offer.need.memory.get());
        let short = memory.saturating_sub(u128::from(device.free_memory()));
        let share = (1000 * short).div_ceil(u128::from(device.memory.max(1)));
        let milli = milli.saturating_sub(u64::from(device.free_milli()));
        milli.saturating_add(u64::try_from(share).unwrap_or(u64::MAX))
    };
    lacks(number) - lacks(number - 1)
}

fn host_capacity(inventory: &Inventory, one: &Candidate<'_>) -> u64 {
    inventory
        .node(one.at.node)
        .view
        .as_ref()
        .map_or(0, |view| host_times(u64::from(view.host_cores.get()), view.host_memory.get(), &one.offer.need))
}

/// The devices of a node that draw on its host pools.
fn beside(inventory: &Inventory, slot: u32) -> impl Iterator<Item = Spot> {
    let devices = (0u16..).zip(&inventory.node(slot).devices);
    devices
        .filter(|(_, device)| device.sellable && !device.kept && inventory.pool(device.pool).draws_on_host())
        .map(move |(position, _)| Spot { node: slot, device: position })
}
