//! What empty inventory could hold: the part of a verdict that does not depend on who is running.

use std::collections::BTreeMap;

use sluice_types::{SiteId, TaskResources};

use crate::inventory::{Inventory, Profile};
use crate::terms::Offer;
use crate::view::{Footprint, footprint};

/// How many tasks of a kind the empty devices of one site hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Room {
    /// On all nodes and devices, as if all were open and healthy.
    pub(crate) existing: u64,
    /// On open nodes and healthy devices.
    pub(crate) open: u64,
}

/// How many times `need` fits into what is given; `u64::MAX` where it takes nothing.
pub(crate) fn times(milli: u32, memory: u64, need: &Footprint) -> u64 {
    let shares = u64::from(milli).checked_div(u64::from(need.milli.get())).unwrap_or(u64::MAX);
    let memories = memory.checked_div(need.memory.get()).unwrap_or(u64::MAX);
    shares.min(memories)
}

/// How many times the host part of `need` fits beside the slices.
pub(crate) fn host_times(cores: u64, memory: u64, need: &Footprint) -> u64 {
    let cores = cores.checked_div(u64::from(need.host_cores.get())).unwrap_or(u64::MAX);
    let memories = memory.checked_div(need.host_memory.get()).unwrap_or(u64::MAX);
    cores.min(memories)
}

/// Rooms by site, for every site that has the class. Exact: tasks are alike, so what a node holds is what its devices
/// hold one by one, cut to what its host pools hold.
pub(crate) fn rooms(inventory: &Inventory, task: &TaskResources) -> BTreeMap<SiteId, Room> {
    let mut rooms: BTreeMap<SiteId, Room> = BTreeMap::new();
    for (site, _) in inventory.pools_of(&task.class) {
        rooms.entry(site).or_default();
    }
    for (profile, count) in inventory.profiles() {
        let Some(room) = rooms.get_mut(&profile.site) else { continue };
        let all = hold(inventory, profile, task, |(healthy, sick)| healthy + sick);
        room.existing = room.existing.saturating_add(all.saturating_mul(u64::from(count)));
        if profile.open {
            let ready = hold(inventory, profile, task, |(healthy, _)| healthy);
            room.open = room.open.saturating_add(ready.saturating_mul(u64::from(count)));
        }
    }
    rooms
}

fn hold(inventory: &Inventory, profile: &Profile, task: &TaskResources, ready: impl Fn((u32, u32)) -> u32) -> u64 {
    let (mut beside, mut within, mut hosts) = (0u64, 0u64, u64::MAX);
    for (pool, stock) in &profile.stock {
        let pool = inventory.pool(*pool);
        if pool.device.class != task.class || pool.isolation_for(task).is_none() {
            continue;
        }
        let need = footprint(task, &pool.device);
        let sum = times(1000, pool.device.memory.get(), &need).saturating_mul(u64::from(ready(*stock)));
        if pool.draws_on_host() {
            beside = beside.saturating_add(sum);
            hosts = host_times(u64::from(profile.host_cores.get()), profile.host_memory.get(), &need);
        } else {
            within = within.saturating_add(sum);
        }
    }
    within.saturating_add(beside.min(hosts))
}

/// The least that `tasks` tasks could cost on the open devices of a site if they were empty; `None` where the priced
/// ones do not hold them. Taking the cheapest first is exact: device and host limits form a laminar matroid.
pub(crate) fn least_cost(inventory: &Inventory, site: SiteId, offers: &[Offer], tasks: u32) -> Option<i64> {
    let mut left = u64::from(tasks);
    let mut cost = 0i64;
    let open: Vec<(&Profile, u64)> = inventory
        .profiles()
        .filter(|(profile, _)| profile.site == site && profile.open)
        .map(|(profile, count)| (profile, u64::from(count)))
        .collect();
    let mut hosts = vec![None; open.len()];
    for offer in offers {
        let pool = inventory.pool(offer.pool);
        let each = times(1000, pool.device.memory.get(), &offer.need);
        for (at, (profile, count)) in open.iter().enumerate() {
            let Some((healthy, _)) = profile.stock.get(&offer.pool) else { continue };
            let mut fit = each.saturating_mul(u64::from(*healthy)).saturating_mul(*count);
            if pool.draws_on_host() {
                let one = host_times(u64::from(profile.host_cores.get()), profile.host_memory.get(), &offer.need);
                let host = hosts[at].get_or_insert(one.saturating_mul(*count));
                fit = fit.min(*host);
                *host -= fit.min(left);
            }
            let taken = fit.min(left);
            left -= taken;
            cost = cost.saturating_add(offer.cost.saturating_mul(i64::try_from(taken).unwrap_or(i64::MAX)));
        }
        if left == 0 {
            return Some(cost);
        }
    }
    None
}
