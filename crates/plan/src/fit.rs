//! The search for devices. Reads what is free, changes nothing for good.

use std::sync::Arc;

use sluice_types::{DeviceRef, JobId, SiteId};

use crate::hash::{Lookup, mix, turn_of};
use crate::inventory::{Claim, Inventory, Spot};
use crate::pool::Key;
use crate::room::{host_times, times};
use crate::terms::{Offer, Terms};
use crate::view::Footprint;
use crate::want::Want;

/// How good a device is for a task; less is better, earlier fields first, so the order of the fields is the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Score {
    /// What the tenant would pay: makes the price of a whole gang the least there is.
    cost: i64,
    /// Share left free on the device after placement.
    milli: u32,
    /// Memory left free on the device after placement.
    memory: u64,
    /// Steps on the ring of ties from the job's turn: a hash of job and device.
    ring: u64,
    /// Two devices at one place of the ring.
    device: DeviceRef,
}

/// The score of putting a task on a device: price first, then best-fit fullness. The place for fragmentation descent
/// weighted with fullness.
pub(crate) fn score(offer: &Offer, key: &Key, turn: u64) -> Score {
    Score {
        cost: offer.cost,
        milli: key.milli - offer.need.milli.get(),
        memory: key.memory - offer.need.memory.get(),
        ring: key.ring.wrapping_sub(turn),
        device: key.device,
    }
}

/// One task's device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pick {
    pub(crate) at: Spot,
    pub(crate) offer: Offer,
}

/// All tasks' devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) site: SiteId,
    /// Of all tasks together.
    pub(crate) cost: i64,
    pub(crate) picks: Vec<Pick>,
}

impl Choice {
    /// Thousandths of quota that all tasks take together.
    pub(crate) fn charge(&self) -> i64 {
        self.picks.iter().fold(0i64, |sum, pick| sum.saturating_add(pick.offer.charge))
    }
}

/// The best device for one task among a site's offers, cheapest first.
fn best<'a>(inventory: &Inventory, offers: &'a [Offer], turn: u64) -> Option<(Score, Spot, &'a Offer)> {
    let mut best: Option<(Score, Spot, &Offer)> = None;
    for offer in offers {
        if best.as_ref().is_some_and(|(found, ..)| found.cost < offer.cost) {
            break;
        }
        let hosts = |at: Spot| hosts(inventory, at, &offer.need);
        if let Some((key, at)) = inventory.pool(offer.pool).tightest(&offer.need, turn, hosts) {
            let found = score(offer, &key, turn);
            if best.as_ref().is_none_or(|(known, ..)| found < *known) {
                best = Some((found, at, offer));
            }
        }
    }
    best
}

fn hosts(inventory: &Inventory, at: Spot, need: &Footprint) -> bool {
    let (cores, memory) = (u64::from(need.host_cores.get()), need.host_memory.get());
    if cores == 0 && memory == 0 {
        return true;
    }
    let free = inventory.node(at.node).host_free();
    cores <= free.0 && memory <= free.1
}

/// How many tasks fit on what is free at a site now, counted up to `enough`. Exact, see [`crate::room::rooms`].
pub(crate) fn count(inventory: &Inventory, offers: &[Offer], enough: u64) -> u64 {
    let mut sum = 0u64;
    let mut beside: Lookup<u32, (u64, u64)> = Lookup::default();
    for offer in offers {
        let pool = inventory.pool(offer.pool);
        let asks_host = offer.need.host_cores.get() > 0 || offer.need.host_memory.get() > 0;
        for (key, at) in pool.free.iter().rev() {
            if key.milli < offer.need.milli.get() || sum >= enough {
                break;
            }
            let fit = times(key.milli, key.memory, &offer.need);
            if fit == 0 {
                continue;
            }
            if !asks_host {
                sum = sum.saturating_add(fit);
                continue;
            }
            let node = beside.entry(at.node).or_insert_with(|| {
                let (cores, memory) = inventory.node(at.node).host_free();
                (0, host_times(cores, memory, &offer.need))
            });
            let more = fit.min(node.1 - node.0);
            node.0 += more;
            sum = sum.saturating_add(more);
        }
    }
    sum.min(enough)
}

/// How many tasks fit on what a closed node would have free if it were open.
pub(crate) fn gain(inventory: &Inventory, slot: u32, offers: &[Offer]) -> u64 {
    let node = inventory.node(slot);
    let (mut within, mut beside, mut hosts) = (0u64, 0u64, u64::MAX);
    for device in &node.devices {
        let Some(offer) = offers.iter().find(|offer| offer.pool == device.pool) else { continue };
        let fit = times(device.free_milli(), device.free_memory(), &offer.need);
        if inventory.pool(device.pool).draws_on_host() {
            let (cores, memory) = node.host_free();
            hosts = host_times(cores, memory, &offer.need);
            beside = beside.saturating_add(fit);
        } else {
            within = within.saturating_add(fit);
        }
    }
    within.saturating_add(beside.min(hosts))
}

/// The cheapest way to place the whole want on what is free now, the fullest among equals; `None` where it does not
/// fit. All tasks at one site. Greedy is exact in count and price, because tasks are alike and the limits of devices
/// and hosts form a laminar matroid.
pub(crate) fn cheapest(inventory: &mut Inventory, terms: &Terms, want: &Want, job: JobId) -> Option<Choice> {
    let turn = turn_of(job);
    if want.tasks == 1 {
        let found = terms
            .sites
            .iter()
            .filter_map(|(site, offers)| best(inventory, offers, turn).map(|found| (*site, found)))
            .min_by_key(|(_, (score, ..))| *score);
        return found.map(|(site, (score, at, offer))| Choice {
            site,
            cost: score.cost,
            picks: vec![Pick { at, offer: offer.clone() }],
        });
    }
    let mut chosen: Option<((i64, u64, u64, SiteId), Choice)> = None;
    for (site, offers) in &terms.sites {
        if count(inventory, offers, u64::from(want.tasks)) < u64::from(want.tasks) {
            continue;
        }
        let Some((choice, left)) = gang(inventory, offers, want, job, *site) else { continue };
        let rank = (choice.cost, left, mix(turn ^ site.raw()), *site);
        if chosen.as_ref().is_none_or(|(known, _)| rank < *known) {
            chosen = Some((rank, choice));
        }
    }
    chosen.map(|(_, choice)| choice)
}

/// Places task by task at one site and takes everything back; with the shares left free on the devices used.
fn gang(inventory: &mut Inventory, offers: &[Offer], want: &Want, job: JobId, site: SiteId) -> Option<(Choice, u64)> {
    let (mut picks, mut cost, mut left) = (Vec::new(), 0i64, 0u64);
    for rank in 0..want.tasks {
        let Some((score, at, offer)) = best(inventory, offers, turn_of(job)) else { break };
        inventory.claim(at, Claim::Flight(job, rank), Arc::clone(&want.task));
        cost = cost.saturating_add(score.cost);
        left = left.saturating_add(u64::from(score.milli));
        picks.push(Pick { at, offer: offer.clone() });
    }
    for (rank, pick) in (0u32..).zip(&picks) {
        inventory.release(pick.at.node, Claim::Flight(job, rank));
    }
    inventory.flush();
    let whole = picks.len() == want.tasks as usize;
    whole.then_some((Choice { site, cost, picks }, left))
}
