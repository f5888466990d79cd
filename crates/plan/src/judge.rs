//! Why a job waits: the first constraint, in a fixed order, that alone keeps it from being placed.
//!
//! The order: UNKNOWN_CLASS, NEVER_FITS, NO_ALLOWED_SITE, CHECKPOINT_UNREACHABLE, NODES_UNAVAILABLE, NO_PRICE,
//! QUOTA_EXCEEDED where the tenant's own limits bind, then BUDGET_EXHAUSTED and INSUFFICIENT_FUNDS against the cheapest
//! devices that are open, then QUOTA_LENT, or QUOTA_EXCEEDED where others' borrowing alone is in the way, then
//! NO_FREE_SHARE, NO_FREE_MEMORY, NO_FREE_CORES or GANG_DOES_NOT_FIT, then money again against the cheapest devices
//! that are free now, then BEHIND_OTHERS. Each question is asked only of sites that passed those before it. What others
//! hold is never named: amounts are the caller's own request and the part of it that is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use sluice_ledger::{AccountKey, QuotaLevel};
use sluice_types::{Bytes, Credits, DeviceClassName, MilliGpu, Reason, SiteId, TaskResources};

use crate::cover::Cover;
use crate::fit::count;
use crate::inventory::Inventory;
use crate::purse::Purse;
use crate::quota::is_lent;
use crate::room::{Room, least_cost, rooms};
use crate::terms::{Offer, Terms};
use crate::view::QuotaShortage;
use crate::want::Want;

/// A constraint that binds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Block {
    UnknownClass(DeviceClassName),
    /// The request is empty: no tasks or no share.
    Empty,
    /// No device holds one task.
    TaskNeverFits(TaskResources),
    /// No site holds all tasks; the best holds so many.
    GangNeverFits {
        tasks: u32,
        most: u64,
    },
    NoAllowedSite,
    CheckpointUnreachable,
    NodesUnavailable,
    NoPrice(DeviceClassName),
    Quota(QuotaShortage),
    Budget {
        key: AccountKey,
        hold: i64,
        missing: i128,
    },
    Funds {
        hold: i64,
        missing: i128,
    },
    NoFreeShare {
        asked: MilliGpu,
        missing: u32,
    },
    NoFreeMemory {
        asked: Bytes,
        missing: u64,
    },
    NoFreeCores,
    GangDoesNotFit {
        tasks: u32,
        fit: u64,
    },
    BehindOthers,
}

impl Block {
    pub(crate) const fn reason(&self) -> Reason {
        match self {
            Self::UnknownClass(_) => Reason::UnknownClass,
            Self::Empty | Self::TaskNeverFits(_) | Self::GangNeverFits { .. } => Reason::NeverFits,
            Self::NoAllowedSite => Reason::NoAllowedSite,
            Self::CheckpointUnreachable => Reason::CheckpointUnreachable,
            Self::NodesUnavailable => Reason::NodesUnavailable,
            Self::NoPrice(_) => Reason::NoPrice,
            Self::Quota(short) => match short.level {
                QuotaLevel::Lent => Reason::QuotaLent,
                QuotaLevel::Pool | QuotaLevel::Limit | QuotaLevel::Nominal | QuotaLevel::None => Reason::QuotaExceeded,
            },
            Self::Budget { .. } => Reason::BudgetExhausted,
            Self::Funds { .. } => Reason::InsufficientFunds,
            Self::NoFreeShare { .. } => Reason::NoFreeShare,
            Self::NoFreeMemory { .. } => Reason::NoFreeMemory,
            Self::NoFreeCores => Reason::NoFreeCores,
            Self::GangDoesNotFit { .. } => Reason::GangDoesNotFit,
            Self::BehindOthers => Reason::BehindOthers,
        }
    }

    /// No empty, open inventory of the allowed sites could hold it.
    pub(crate) const fn is_forever(&self) -> bool {
        matches!(self.reason(), Reason::UnknownClass | Reason::NeverFits | Reason::NoAllowedSite)
    }

    /// Whether it waits for others to make room.
    pub(crate) const fn waits_for_room(&self) -> bool {
        matches!(
            self.reason(),
            Reason::NoFreeShare
                | Reason::NoFreeMemory
                | Reason::NoFreeCores
                | Reason::GangDoesNotFit
                | Reason::BehindOthers
        )
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let money = |units: i128| Credits::new(i64::try_from(units).unwrap_or(i64::MAX));
        match self {
            Self::UnknownClass(class) => write!(f, "no site has a device of class `{class}`"),
            Self::Empty => f.write_str("it asks for no tasks or for no share of a device"),
            Self::TaskNeverFits(task) => write!(
                f,
                "no device of class `{}` could hold a task of {} and {} beside {} cores and {} of host memory",
                task.class, task.milli, task.memory, task.host_cores, task.host_memory
            ),
            Self::GangNeverFits { tasks, most } => {
                write!(f, "{tasks} tasks at one site, and no site could hold more than {most} of them even if empty")
            }
            Self::NoAllowedSite => f.write_str("none of the sites it may run at could hold it"),
            Self::CheckpointUnreachable => {
                f.write_str("its newest checkpoint is at none of the sites that it may run at and that could hold it")
            }
            Self::NodesUnavailable => f.write_str("the nodes that could hold it are closed or their devices unhealthy"),
            Self::NoPrice(class) => write!(f, "class `{class}` has no price where it could run"),
            Self::Quota(short) => short.fmt(f),
            Self::Budget { key, hold, missing } => {
                write!(f, "it holds {}, and ", Credits::new(*hold))?;
                match key {
                    // Without the period: it must not be news whenever one begins.
                    AccountKey::Budget(scope, _) => write!(f, "the budget of {scope}")?,
                    other => other.fmt(f)?,
                }
                write!(f, " lacks {}", money(*missing))
            }
            Self::Funds { hold, missing } => {
                write!(f, "it holds {}, and the funds lack {}", Credits::new(*hold), money(*missing))
            }
            Self::NoFreeShare { asked, missing } => {
                write!(f, "a task asks for {asked} of one device, {missing}m more than is free on any")
            }
            Self::NoFreeMemory { asked, missing } => {
                let missing = Bytes::new(*missing);
                write!(
                    f,
                    "a task asks for {asked} of one device's memory, {missing} more than is free beside its share"
                )
            }
            Self::NoFreeCores => {
                f.write_str("no device with enough free share and memory has the host cores and host memory beside it")
            }
            Self::GangDoesNotFit { tasks, fit } => write!(f, "{fit} of {tasks} tasks fit at one site now"),
            Self::BehindOthers => f.write_str("the devices it fits on are kept for jobs that wait in front of it"),
        }
    }
}

/// Judges what does not depend on balances or on who is running.
///
/// # Errors
/// The constraint that binds whatever is free.
pub(crate) fn ever(inventory: &Inventory, want: &Want) -> Result<BTreeMap<SiteId, Room>, Block> {
    if want.tasks == 0 || want.task.milli == MilliGpu::ZERO {
        return Err(Block::Empty);
    }
    let mut sites = rooms(inventory, &want.task);
    if sites.is_empty() {
        return Err(Block::UnknownClass(want.task.class.clone()));
    }
    let most = sites.values().map(|room| room.existing).max().unwrap_or(0);
    if most == 0 {
        return Err(Block::TaskNeverFits((*want.task).clone()));
    }
    let tasks = u64::from(want.tasks);
    sites.retain(|_, room| room.existing >= tasks);
    if sites.is_empty() {
        return Err(Block::GangNeverFits { tasks: want.tasks, most });
    }
    sites.retain(|site, _| want.allows(*site));
    if sites.is_empty() {
        return Err(Block::NoAllowedSite);
    }
    Ok(sites)
}

/// Judges everything up to the first question about what is free: the least hold that open devices would cost.
///
/// # Errors
/// The constraint that binds. Where none does, what is lent to others of the tenant's quota at one of the sites.
pub(crate) fn afford(
    inventory: &Inventory,
    purse: &mut Purse,
    want: &Want,
    terms: &Terms,
    cover: &Cover,
) -> Result<Option<QuotaShortage>, Block> {
    let mut sites = ever(inventory, want)?;
    sites.retain(|site, _| want.has_state_at(*site));
    if sites.is_empty() {
        return Err(Block::CheckpointUnreachable);
    }
    sites.retain(|_, room| room.open >= u64::from(want.tasks));
    if sites.is_empty() {
        return Err(Block::NodesUnavailable);
    }
    let cost = |(site, _): (&SiteId, _)| least_cost(inventory, *site, terms.sites.get(site)?, want.tasks);
    let Some(least) = sites.iter().filter_map(cost).min() else {
        return Err(Block::NoPrice(want.task.class.clone()));
    };
    let priced = || sites.keys().filter(|site| terms.sites.contains_key(site));
    let short = cover.least(|site| sites.contains_key(&site)).cloned();
    let binds = short.clone().filter(|_| priced().all(|site| cover.short.contains_key(site)));
    if let Some(short) = binds.clone().filter(|short| !short.level.is_others()) {
        return Err(Block::Quota(short));
    }
    covers(purse, want, least)?;
    // Nobody is stopped for a job that could then not pay for what it finds: what is lent is called back where its tenant
    // covers the dearest device.
    let dearest = |site: &SiteId| {
        let offer = terms.sites.get(site).and_then(|offers| offers.last());
        offer.map_or(i64::MAX, |offer| offer.cost.saturating_mul(i64::from(want.tasks)))
    };
    let mut of_use: BTreeSet<SiteId> = cover.short.keys().filter(|site| sites.contains_key(site)).copied().collect();
    let lent = |site: &SiteId| cover.short.get(site).is_some_and(is_lent);
    of_use.retain(|site| !lent(site) || covers(purse, want, dearest(site)).is_ok());
    match (binds, cover.least(|site| of_use.contains(&site)).cloned()) {
        (Some(_), Some(short)) => Err(Block::Quota(short)),
        (Some(short), None) => {
            let least = cover.short.keys().filter(|site| sites.contains_key(site)).map(dearest).min();
            covers(purse, want, least.unwrap_or(i64::MAX))?;
            Err(Block::Quota(short))
        }
        (None, short) => Ok(short.filter(is_lent)),
    }
}

/// Whether budgets and funds cover a hold.
pub(crate) fn covers(purse: &mut Purse, want: &Want, hold: i64) -> Result<(), Block> {
    for key in want.budgets() {
        // A period that has no account yet is granted nothing yet.
        let missing = if purse.knows(key) { purse.lacks(key, hold) } else { i128::from(hold) };
        if missing > 0 || !purse.knows(key) {
            return Err(Block::Budget { key: key.clone(), hold, missing });
        }
    }
    match purse.lacks(&AccountKey::Funds(want.tenant), hold) {
        0 => Ok(()),
        missing => Err(Block::Funds { hold, missing }),
    }
}

/// Which kind of room is missing, for a want that does not fit on what is free.
pub(crate) fn room(inventory: &Inventory, want: &Want, terms: &Terms) -> Block {
    let most = terms.sites.values().map(|offers| count(inventory, offers, u64::from(want.tasks))).max().unwrap_or(0);
    if most > 0 {
        return Block::GangDoesNotFit { tasks: want.tasks, fit: most };
    }
    let offers = || terms.sites.values().flatten();
    let free = |offer: &Offer| inventory.pool(offer.pool).most_free(offer.need.milli.get());
    let share = |offer: &Offer| offer.need.milli.get().saturating_sub(free(offer).0);
    let missing = offers().map(share).min().unwrap_or(0);
    if missing > 0 {
        return Block::NoFreeShare { asked: want.task.milli, missing };
    }
    let memory = |offer: &Offer| free(offer).1.map(|most| offer.need.memory.get().saturating_sub(most));
    match offers().filter_map(memory).min() {
        Some(0) | None => Block::NoFreeCores,
        Some(missing) => Block::NoFreeMemory { asked: want.task.memory, missing },
    }
}
