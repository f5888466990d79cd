//! A judge of quotas that knows nothing of how they are kept: it adds up what the leases of live attempts take of their
//! devices, and holds the accounts and the cohorts' rules against it.

use std::collections::{BTreeMap, BTreeSet};

use sluice_ledger::{Account, AccountKey};
use sluice_lifecycle::State;
use sluice_lifecycle::model::{AttemptState, JobKind};
use sluice_types::{DeviceClassName, SiteId, TenantId};

type Place = (TenantId, Option<SiteId>, DeviceClassName);

/// All that is held, and what of it may not borrow.
pub(crate) fn used(state: &State) -> BTreeMap<Place, (i64, i64)> {
    let mut used: BTreeMap<Place, (i64, i64)> = BTreeMap::new();
    for attempt in state.attempts().filter(|row| row.state != AttemptState::Ended) {
        let job = state.job(attempt.job).unwrap();
        let mut taken = 0;
        for lease in attempt.tasks.iter().map(|task| state.lease(task.lease).unwrap()) {
            let node = state.node(lease.device.node).unwrap();
            let device = &node.devices[usize::from(lease.device.index)].view;
            let asked = &lease.resources;
            let (mut milli, mut bytes) = (u128::from(asked.milli.get()), u128::from(asked.memory.get()));
            if device.cores.get() > 0 {
                milli += (u128::from(asked.host_cores.get()) * 1000).div_ceil(u128::from(device.cores.get()));
                bytes += u128::from(asked.host_memory.get());
            }
            let memory = (bytes * 1000).div_ceil(u128::from(device.memory.get())).min(1000);
            taken += i64::try_from(milli.max(memory)).unwrap();
        }
        let firm = if matches!(job.spec.kind, JobKind::Rental | JobKind::Replica) { taken } else { 0 };
        let class = job.spec.resources.class.clone();
        let places = [Some(Some(attempt.site)), (job.current == Some(attempt.id)).then_some(None)];
        for place in places.into_iter().flatten() {
            let sum = used.entry((job.tenant, place, class.clone())).or_default();
            *sum = (sum.0 + taken, sum.1 + firm);
        }
    }
    used
}

/// Holds every account and every rule against the leases.
pub(crate) fn judge(state: &State) {
    let used = used(state);
    let account = |key: AccountKey| state.books().account(&key);
    let cohorts: BTreeSet<_> = state.quotas().map(|row| (row.key.site, row.key.class.clone())).collect();
    let tenants: BTreeSet<TenantId> = state.tenants().map(|tenant| tenant.id).collect();
    for (site, class) in cohorts {
        let (mut lendable, mut pooled) = (0, 0);
        for tenant in &tenants {
            let row =
                state.quotas().find(|row| (row.key.tenant, row.key.site) == (*tenant, site) && row.key.class == class);
            let limits = row.map(|row| row.limits);
            if site.is_none() && limits.is_none() {
                continue;
            }
            let limits = limits.unwrap_or_default();
            let (total, firm) = used.get(&(*tenant, site, class.clone())).copied().unwrap_or_default();
            let entitled = account(AccountKey::Entitled(*tenant, site, class.clone()));
            check(&entitled, total, limits.nominal + limits.borrow);
            let Some(site) = site else { continue };
            check(&account(AccountKey::Firm(*tenant, site, class.clone())), firm, limits.nominal);
            let drawn = (total - (limits.nominal - limits.lend)).max(0);
            let share = account(AccountKey::PoolShare(*tenant, site, class.clone()));
            assert_eq!(share.credits_pending, drawn, "what a tenant draws from the pool");
            (lendable, pooled) = (lendable + limits.lend, pooled + drawn);
        }
        if let Some(site) = site {
            check(&account(AccountKey::Pool(site, class.clone())), pooled, lendable);
        }
    }
    // Where there is no quota nothing is held.
    for row in state.books().accounts().filter(|row| row.debits_pending > 0 || row.line > 0) {
        let limited = |site: Option<SiteId>, class: &DeviceClassName| {
            state.quotas().any(|quota| quota.key.site == site && quota.key.class == *class)
        };
        match &row.key {
            AccountKey::Entitled(_, site, class) => assert!(limited(*site, class), "{}", row.key),
            AccountKey::Firm(_, site, class) | AccountKey::Pool(site, class) => {
                assert!(limited(Some(*site), class), "{}", row.key);
            }
            _ => {}
        }
    }
}

/// What is held is what is used, and the line is the limit, or what is used where that is more.
fn check(account: &Account, used: i64, limit: i64) {
    assert_eq!((account.debits_pending, account.line), (used, limit.max(used)), "{}", account.key);
    assert!(account.available() >= 0);
}
