//! On which devices a job may run and what it would pay there.

use std::collections::BTreeMap;

use sluice_ledger::{RatingTerms, quote};
use sluice_types::{IsolationClass, MilliGpu, SiteId};

use crate::inventory::Inventory;
use crate::purse::Purse;
use crate::view::{Footprint, charge, footprint};
use crate::want::Want;

/// One pool as it looks to one want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) pool: u32,
    pub(crate) need: Footprint,
    pub(crate) isolation: IsolationClass,
    pub(crate) billed: MilliGpu,
    /// The quoted ceiling of one task in credits; `i64::MAX` where it leaves the ledger's range.
    pub(crate) cost: i64,
    /// Thousandths of quota that one task takes.
    pub(crate) charge: i64,
}

/// All priced offers at the sites where a want may run, cheapest first within a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terms {
    layout: u64,
    edition: u64,
    pub(crate) sites: BTreeMap<SiteId, Vec<Offer>>,
}

impl Terms {
    pub(crate) fn of(want: &Want, inventory: &Inventory, purse: &Purse) -> Self {
        let mut sites: BTreeMap<SiteId, Vec<Offer>> = BTreeMap::new();
        for (site, pool) in inventory.pools_of(&want.task.class) {
            if want.allows(site)
                && want.has_state_at(site)
                && let Some(offer) = offer(want, inventory, purse, pool)
            {
                sites.entry(site).or_default().push(offer);
            }
        }
        for offers in sites.values_mut() {
            offers.sort_by_key(|offer| offer.cost);
        }
        Self { layout: inventory.layout(), edition: purse.edition(), sites }
    }

    /// Whether neither pools nor prices changed since.
    pub(crate) fn hold_for(&self, inventory: &Inventory, purse: &Purse) -> bool {
        self.layout == inventory.layout() && self.edition == purse.edition()
    }

    /// Tasks ever placed where this want could be.
    pub(crate) fn placed(&self, inventory: &Inventory) -> u64 {
        self.sites.values().flatten().map(|offer| inventory.pool(offer.pool).placed).sum()
    }
}

/// The offer of a pool, `None` where the pool cannot isolate the task or has no price for it.
fn offer(want: &Want, inventory: &Inventory, purse: &Purse, at: u32) -> Option<Offer> {
    let pool = inventory.pool(at);
    let isolation = pool.isolation_for(&want.task)?;
    let rate = purse.prices()?.rate(&want.task.class, isolation, pool.site)?;
    let billed = pool.device.billed(&want.task);
    let terms = RatingTerms { billed, host_cores: want.task.host_cores, host_memory: want.task.host_memory, rate };
    let cost = quote(&terms, want.hold_time).map_or(i64::MAX, |credits| credits.units());
    let charge = charge(&want.task, &pool.device);
    Some(Offer { pool: at, need: footprint(&want.task, &pool.device), isolation, billed, cost, charge })
}
