//! Interchangeable devices of one site, ordered by what is free on them.

use std::collections::BTreeMap;

use sluice_types::{Bytes, CoreMilli, DeviceRef, IsolationClass, MilliGpu, NodeId, SiteId, TaskResources};

use crate::inventory::Spot;
use crate::view::{DeviceView, Footprint};

/// What makes two devices of one class and site interchangeable: a task takes, costs and gets the same on both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Model {
    memory: Bytes,
    cores: CoreMilli,
    isolation: Vec<IsolationClass>,
}

impl Model {
    pub(crate) fn of(device: &DeviceView) -> Self {
        Self { memory: device.memory, cores: device.cores, isolation: device.isolation.clone() }
    }
}

/// The place of a device in the index; the order is the order of search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) milli: u32,
    pub(crate) memory: u64,
    pub(crate) ring: u64,
    pub(crate) device: DeviceRef,
}

impl Key {
    const fn first(milli: u32, memory: u64, ring: u64) -> Self {
        Self { milli, memory, ring, device: DeviceRef { node: NodeId::from_raw(0), index: 0 } }
    }

    const fn last(milli: u32, memory: u64) -> Self {
        Self { milli, memory, ring: u64::MAX, device: DeviceRef { node: NodeId::from_raw(u64::MAX), index: u16::MAX } }
    }
}

/// One kind of device at one site.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    pub(crate) site: SiteId,
    /// A device of this kind; its index and health mean nothing.
    pub(crate) device: DeviceView,
    pub(crate) members: u32,
    /// Devices that can take work and have a share free.
    pub(crate) free: BTreeMap<Key, Spot>,
    /// How many tasks were ever placed here: tells whether others passed a job that waits.
    pub(crate) placed: u64,
}

impl Pool {
    pub(crate) fn new(site: SiteId, device: &DeviceView) -> Self {
        Self { site, device: device.clone(), members: 1, free: BTreeMap::new(), placed: 0 }
    }

    /// The first listed isolation class that can hold the task; `exclusive` holds whole devices only.
    pub(crate) fn isolation_for(&self, task: &TaskResources) -> Option<IsolationClass> {
        let holds = |class: &IsolationClass| *class != IsolationClass::Exclusive || task.milli == MilliGpu::WHOLE;
        self.device.isolation.iter().copied().find(holds)
    }

    /// Whether host pools of the node are drawn on beside the device.
    pub(crate) fn draws_on_host(&self) -> bool {
        self.device.cores == CoreMilli::ZERO
    }

    /// The device with the least free share, then the least free memory, then the next on the ring from `turn`, that
    /// has room for `need` and whose node `hosts` it. O(log n) where hosts are not short; otherwise one step more
    /// for each device that has room on a host that has none.
    pub(crate) fn tightest(&self, need: &Footprint, turn: u64, hosts: impl Fn(Spot) -> bool) -> Option<(Key, Spot)> {
        let least = need.memory.get();
        let (mut milli, mut floor) = (need.milli.get(), least);
        loop {
            let (next, _) = self.free.range(Key::first(milli, floor, 0)..).next()?;
            if next.milli != milli {
                (milli, floor) = (next.milli, least.max(next.memory));
                continue;
            }
            let memory = next.memory;
            let ahead = self.free.range(Key::first(milli, memory, turn)..=Key::last(milli, memory));
            let around = self.free.range(Key::first(milli, memory, 0)..Key::first(milli, memory, turn));
            if let Some((key, at)) = ahead.chain(around).find(|(_, at)| hosts(**at)) {
                return Some((*key, *at));
            }
            (milli, floor) = memory.checked_add(1).map_or((milli + 1, least), |above| (milli, above));
        }
    }

    /// The most share that is free on one device, and the most memory on one that has `milli` free.
    pub(crate) fn most_free(&self, milli: u32) -> (u32, Option<u64>) {
        let most = self.free.last_key_value().map_or(0, |(key, _)| key.milli);
        let (mut level, mut memory) = (milli, None);
        while let Some((next, _)) = self.free.range(Key::first(level, 0, 0)..).next() {
            let top = self.free.range(..=Key::last(next.milli, u64::MAX)).next_back().map(|(key, _)| key.memory);
            memory = memory.max(top);
            level = next.milli + 1;
        }
        (most, memory)
    }
}
