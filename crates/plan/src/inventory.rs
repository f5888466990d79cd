//! Nodes, their devices, and who claims what of them.
//!
//! Owns every thousandth and byte there is to sell: free = capacity − leases − placements in flight. A lease of an
//! unknown node or device is kept and counted as soon as the node or device appears. Devices that can take work are
//! indexed in [`Pool`]s by what is free on them. Never decides anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_types::{
    Bytes, CoreMilli, DeviceClassName, DeviceRef, JobId, LeaseId, MilliGpu, NodeId, SiteId, TaskResources,
};

use crate::hash::{Lookup, ring_of};
use crate::pool::{Key, Model, Pool};
use crate::view::{DeviceView, Footprint, LeaseView, NodeView, footprint};

/// Who holds a part of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Claim {
    /// A committed lease.
    Lease(LeaseId),
    /// A task, by rank, of a placement in flight.
    Flight(JobId, u32),
}

/// A device by its position in the tables; positions never reach a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Spot {
    pub(crate) node: u32,
    pub(crate) device: u16,
}

#[derive(Debug, Clone)]
struct Held {
    index: u16,
    task: Arc<TaskResources>,
}

#[derive(Debug, Clone)]
pub(crate) struct Device {
    pub(crate) index: u16,
    pub(crate) pool: u32,
    pub(crate) memory: u64,
    /// On an open node, healthy, with an isolation class to offer.
    pub(crate) sellable: bool,
    /// Kept for a starving job during this round.
    pub(crate) kept: bool,
    ring: u64,
    used_milli: u64,
    used_memory: u128,
    indexed: Option<(u32, u64)>,
}

impl Device {
    /// Free thousandths; zero where more is claimed than exists.
    pub(crate) fn free_milli(&self) -> u32 {
        u32::try_from(1000u64.saturating_sub(self.used_milli)).unwrap_or(0)
    }

    /// Free bytes; zero where more is claimed than exists.
    pub(crate) fn free_memory(&self) -> u64 {
        u64::try_from(u128::from(self.memory).saturating_sub(self.used_memory)).unwrap_or(0)
    }
}

/// A node, or, without a view, the memory of claims on a node that is not known (yet).
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) view: Option<NodeView>,
    pub(crate) devices: Vec<Device>,
    cores_used: u64,
    memory_used: u128,
    claims: BTreeMap<Claim, Held>,
}

impl Node {
    /// What is free of the host's own pools.
    pub(crate) fn host_free(&self) -> (u64, u64) {
        let Some(view) = &self.view else { return (0, 0) };
        let cores = u64::from(view.host_cores.get()).saturating_sub(self.cores_used);
        let memory = u128::from(view.host_memory.get()).saturating_sub(self.memory_used);
        (cores, u64::try_from(memory).unwrap_or(0))
    }

    fn position(&self, index: u16) -> Option<usize> {
        let guess = usize::from(index);
        match self.devices.get(guess) {
            Some(device) if device.index == index => Some(guess),
            _ => self.devices.iter().position(|device| device.index == index),
        }
    }
}

/// What a node would hold if it were empty, without its name: nodes bought together share one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Profile {
    pub(crate) site: SiteId,
    pub(crate) open: bool,
    pub(crate) host_cores: CoreMilli,
    pub(crate) host_memory: Bytes,
    /// Per pool: healthy and unhealthy devices.
    pub(crate) stock: BTreeMap<u32, (u32, u32)>,
}

/// Everything there is to sell.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inventory {
    nodes: Vec<Node>,
    vacant: Vec<u32>,
    by_id: Lookup<NodeId, u32>,
    homes: Lookup<LeaseId, u32>,
    pools: Vec<Pool>,
    vacant_pools: Vec<u32>,
    by_class: BTreeMap<DeviceClassName, BTreeMap<(SiteId, Model), u32>>,
    profiles: BTreeMap<Profile, u32>,
    dirty: Vec<Spot>,
    layout: u64,
    edition: u64,
}

impl Inventory {
    /// Changes with the set of pools.
    pub(crate) const fn layout(&self) -> u64 {
        self.layout
    }

    /// Changes with every node that appears, differs or goes.
    pub(crate) const fn edition(&self) -> u64 {
        self.edition
    }

    pub(crate) fn pool(&self, pool: u32) -> &Pool {
        &self.pools[pool as usize]
    }

    pub(crate) fn note_placed(&mut self, pool: u32) {
        self.pools[pool as usize].placed += 1;
    }

    pub(crate) fn node(&self, slot: u32) -> &Node {
        &self.nodes[slot as usize]
    }

    pub(crate) fn device(&self, spot: Spot) -> &Device {
        &self.nodes[spot.node as usize].devices[usize::from(spot.device)]
    }

    pub(crate) fn device_ref(&self, spot: Spot) -> DeviceRef {
        let node = &self.nodes[spot.node as usize];
        DeviceRef { node: node.id, index: node.devices[usize::from(spot.device)].index }
    }

    /// The pools of a class, by site and model.
    pub(crate) fn pools_of(&self, class: &DeviceClassName) -> impl Iterator<Item = (SiteId, u32)> {
        self.by_class.get(class).into_iter().flatten().map(|((site, _), pool)| (*site, *pool))
    }

    /// Sites that have a node, open or not.
    pub(crate) fn sites(&self) -> std::collections::BTreeSet<SiteId> {
        self.profiles.keys().map(|profile| profile.site).collect()
    }

    pub(crate) fn profiles(&self) -> impl Iterator<Item = (&Profile, u32)> {
        self.profiles.iter().map(|(profile, count)| (profile, *count))
    }

    /// Known nodes, by slot; the order must not reach a result.
    pub(crate) fn known(&self) -> impl Iterator<Item = (u32, &Node, &NodeView)> {
        self.by_id.values().filter_map(|slot| {
            let node = &self.nodes[*slot as usize];
            node.view.as_ref().map(|view| (*slot, node, view))
        })
    }

    /// What is free on a device and beside it.
    pub(crate) fn free_of(&self, at: DeviceRef) -> Option<Footprint> {
        let node = &self.nodes[*self.by_id.get(&at.node)? as usize];
        let device = &node.devices[node.position(at.index)?];
        let (cores, memory) = node.host_free();
        Some(Footprint {
            milli: MilliGpu::new(device.free_milli()),
            memory: Bytes::new(device.free_memory()),
            host_cores: CoreMilli::new(u32::try_from(cores).unwrap_or(u32::MAX)),
            host_memory: Bytes::new(memory),
        })
    }

    /// Takes a node's new state; its claims stay.
    pub(crate) fn set_node(&mut self, view: &NodeView) {
        let slot = self.slot(view.id);
        if self.nodes[slot as usize].view.as_ref() == Some(view) {
            return;
        }
        self.edition += 1;
        self.clear_view(slot);
        let mut devices: Vec<Device> = Vec::with_capacity(view.devices.len());
        for seen in &view.devices {
            // An inventory that names an index twice counts it once: nothing may be sold twice.
            if devices.len() >= usize::from(u16::MAX) || devices.iter().any(|device| device.index == seen.index) {
                continue;
            }
            devices.push(Device {
                index: seen.index,
                pool: self.pool_for(view.site, seen),
                memory: seen.memory.get(),
                sellable: view.open && seen.healthy && !seen.isolation.is_empty(),
                kept: false,
                ring: ring_of(DeviceRef { node: view.id, index: seen.index }),
                used_milli: 0,
                used_memory: 0,
                indexed: None,
            });
        }
        let node = &mut self.nodes[slot as usize];
        node.devices = devices;
        node.view = Some(view.clone());
        let claims: Vec<Held> = node.claims.values().cloned().collect();
        for held in &claims {
            self.count(slot, held, Sign::Plus);
        }
        *self.profiles.entry(self.profile(slot)).or_default() += 1;
        for device in 0..self.nodes[slot as usize].devices.len() {
            self.reindex(spot(slot, device));
        }
    }

    /// Forgets a node; its claims stay until they end.
    pub(crate) fn remove_node(&mut self, id: NodeId) {
        if let Some(slot) = self.by_id.get(&id).copied() {
            self.edition += 1;
            self.clear_view(slot);
            self.drop_if_empty(slot);
        }
    }

    /// Begins or replaces a lease.
    pub(crate) fn set_lease(&mut self, lease: &LeaseView, task: Arc<TaskResources>) {
        self.remove_lease(lease.id);
        let slot = self.slot(lease.device.node);
        self.homes.insert(lease.id, slot);
        self.insert_claim(slot, Claim::Lease(lease.id), Held { index: lease.device.index, task });
    }

    /// Ends a lease.
    pub(crate) fn remove_lease(&mut self, id: LeaseId) {
        if let Some(slot) = self.homes.remove(&id) {
            self.release(slot, Claim::Lease(id));
        }
    }

    /// Takes a part of a device for a placement in flight and updates the index at once.
    pub(crate) fn claim(&mut self, at: Spot, claim: Claim, task: Arc<TaskResources>) {
        let index = self.device(at).index;
        self.insert_claim(at.node, claim, Held { index, task });
        self.flush();
    }

    /// Gives a claim back.
    pub(crate) fn release(&mut self, slot: u32, claim: Claim) {
        if let Some(held) = self.nodes[slot as usize].claims.remove(&claim) {
            self.count(slot, &held, Sign::Minus);
            self.drop_if_empty(slot);
        }
    }

    /// Brings the index up to date with everything that was counted since the last call.
    pub(crate) fn flush(&mut self) {
        while let Some(at) = self.dirty.pop() {
            self.reindex(at);
        }
    }

    /// Keeps a device from everybody, or gives it back.
    pub(crate) fn keep(&mut self, at: Spot, kept: bool) {
        // Nodes may have changed since the position was noted.
        if let Some(device) =
            self.nodes.get_mut(at.node as usize).and_then(|node| node.devices.get_mut(usize::from(at.device)))
        {
            device.kept = kept;
            self.reindex(at);
        }
    }

    /// Opens or closes a node, for what-if questions.
    pub(crate) fn set_open(&mut self, slot: u32, open: bool) {
        if self.nodes[slot as usize].view.as_ref().is_none_or(|view| view.open == open) {
            return;
        }
        self.forget_profile(slot);
        let node = &mut self.nodes[slot as usize];
        let Some(view) = node.view.as_mut() else { return };
        view.open = open;
        for device in &mut node.devices {
            let seen = view.devices.iter().find(|seen| seen.index == device.index);
            device.sellable = open && seen.is_some_and(|seen| seen.healthy && !seen.isolation.is_empty());
        }
        *self.profiles.entry(self.profile(slot)).or_default() += 1;
        for device in 0..self.nodes[slot as usize].devices.len() {
            self.reindex(spot(slot, device));
        }
    }

    fn slot(&mut self, id: NodeId) -> u32 {
        if let Some(slot) = self.by_id.get(&id) {
            return *slot;
        }
        let node = Node { id, view: None, devices: Vec::new(), cores_used: 0, memory_used: 0, claims: BTreeMap::new() };
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.nodes.push(node.clone());
            u32::try_from(self.nodes.len() - 1).expect("invariant: fewer than 2^32 nodes fit in memory")
        });
        self.nodes[slot as usize] = node;
        self.by_id.insert(id, slot);
        slot
    }

    fn drop_if_empty(&mut self, slot: u32) {
        let node = &self.nodes[slot as usize];
        if node.view.is_none() && node.claims.is_empty() && self.by_id.remove(&node.id).is_some() {
            self.vacant.push(slot);
        }
    }

    fn clear_view(&mut self, slot: u32) {
        if self.nodes[slot as usize].view.is_none() {
            return;
        }
        self.forget_profile(slot);
        for device in 0..self.nodes[slot as usize].devices.len() {
            let at = spot(slot, device);
            self.nodes[slot as usize].devices[device].sellable = false;
            self.reindex(at);
            self.leave_pool(self.device(at).pool);
        }
        let node = &mut self.nodes[slot as usize];
        node.devices.clear();
        node.view = None;
        (node.cores_used, node.memory_used) = (0, 0);
    }

    fn forget_profile(&mut self, slot: u32) {
        let profile = self.profile(slot);
        if let Some(count) = self.profiles.get_mut(&profile) {
            *count -= 1;
            if *count == 0 {
                self.profiles.remove(&profile);
            }
        }
    }

    fn profile(&self, slot: u32) -> Profile {
        let node = &self.nodes[slot as usize];
        let view = node.view.as_ref().expect("invariant: only known nodes have a profile");
        let mut stock: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
        for device in &node.devices {
            let seen = view.devices.iter().find(|seen| seen.index == device.index);
            let count = stock.entry(device.pool).or_default();
            if seen.is_some_and(|seen| seen.healthy) {
                count.0 += 1;
            } else {
                count.1 += 1;
            }
        }
        Profile { site: view.site, open: view.open, host_cores: view.host_cores, host_memory: view.host_memory, stock }
    }

    fn pool_for(&mut self, site: SiteId, device: &DeviceView) -> u32 {
        let model = Model::of(device);
        let known = self.by_class.entry(device.class.clone()).or_default();
        if let Some(pool) = known.get(&(site, model.clone())) {
            self.pools[*pool as usize].members += 1;
            return *pool;
        }
        let pool = Pool::new(site, device);
        let place = self.vacant_pools.pop().unwrap_or_else(|| {
            self.pools.push(pool.clone());
            u32::try_from(self.pools.len() - 1).expect("invariant: fewer than 2^32 pools fit in memory")
        });
        self.pools[place as usize] = pool;
        known.insert((site, model), place);
        self.layout += 1;
        place
    }

    fn leave_pool(&mut self, place: u32) {
        let pool = &mut self.pools[place as usize];
        pool.members -= 1;
        if pool.members > 0 {
            return;
        }
        let (class, key) = (pool.device.class.clone(), (pool.site, Model::of(&pool.device)));
        if let Some(known) = self.by_class.get_mut(&class) {
            known.remove(&key);
            if known.is_empty() {
                self.by_class.remove(&class);
            }
        }
        self.vacant_pools.push(place);
        self.layout += 1;
    }

    fn insert_claim(&mut self, slot: u32, claim: Claim, held: Held) {
        self.count(slot, &held, Sign::Plus);
        let before = self.nodes[slot as usize].claims.insert(claim, held);
        debug_assert!(before.is_none(), "a claim is made once");
    }

    fn count(&mut self, slot: u32, held: &Held, sign: Sign) {
        let node = &mut self.nodes[slot as usize];
        if node.view.is_none() {
            return;
        }
        let Some(position) = node.position(held.index) else {
            // The device is not in the inventory now; what its task takes of the host is still taken.
            sign.apply(&mut node.cores_used, u64::from(held.task.host_cores.get()));
            sign.apply_wide(&mut node.memory_used, held.task.host_memory);
            return;
        };
        let device = &mut node.devices[position];
        let need = footprint(&held.task, &self.pools[device.pool as usize].device);
        sign.apply(&mut device.used_milli, u64::from(need.milli.get()));
        sign.apply_wide(&mut device.used_memory, need.memory);
        sign.apply(&mut node.cores_used, u64::from(need.host_cores.get()));
        sign.apply_wide(&mut node.memory_used, need.host_memory);
        self.dirty.push(spot(slot, position));
    }

    fn reindex(&mut self, at: Spot) {
        let node = &mut self.nodes[at.node as usize];
        let id = node.id;
        let Some(device) = node.devices.get_mut(usize::from(at.device)) else { return };
        let free = (device.free_milli(), device.free_memory());
        let wanted = (device.sellable && !device.kept && free.0 > 0).then_some(free);
        if wanted == device.indexed {
            return;
        }
        let key = |(milli, memory): (u32, u64)| Key {
            milli,
            memory,
            ring: device.ring,
            device: DeviceRef { node: id, index: device.index },
        };
        let pool = &mut self.pools[device.pool as usize];
        if let Some(old) = device.indexed {
            pool.free.remove(&key(old));
        }
        if let Some(new) = wanted {
            pool.free.insert(key(new), at);
        }
        device.indexed = wanted;
    }

    /// The committed facts of every node: what two worlds must share to be equal.
    fn facts(&self) -> BTreeMap<NodeId, NodeFacts<'_>> {
        let mut facts = BTreeMap::new();
        for slot in self.by_id.values() {
            let node = &self.nodes[*slot as usize];
            let leases: BTreeMap<_, _> = node
                .claims
                .iter()
                .filter_map(|(claim, held)| match claim {
                    Claim::Lease(id) => Some((*id, (held.index, &*held.task))),
                    Claim::Flight(..) => None,
                })
                .collect();
            if node.view.is_some() || !leases.is_empty() {
                facts.insert(node.id, (node.view.as_ref(), leases));
            }
        }
        facts
    }
}

/// A node's row and the leases on it, by device index.
type NodeFacts<'a> = (Option<&'a NodeView>, BTreeMap<LeaseId, (u16, &'a TaskResources)>);

impl PartialEq for Inventory {
    fn eq(&self, other: &Self) -> bool {
        self.facts() == other.facts()
    }
}

#[derive(Clone, Copy)]
enum Sign {
    Plus,
    Minus,
}

impl Sign {
    fn apply(self, total: &mut u64, part: u64) {
        match self {
            Self::Plus => *total += part,
            Self::Minus => *total -= part,
        }
    }

    fn apply_wide(self, total: &mut u128, part: Bytes) {
        match self {
            Self::Plus => *total += u128::from(part.get()),
            Self::Minus => *total -= u128::from(part.get()),
        }
    }
}

fn spot(node: u32, device: usize) -> Spot {
    Spot { node, device: u16::try_from(device).expect("invariant: a node counts at most u16::MAX devices") }
}
