//! Quotas of small worlds, and their rules once more, from nothing but rows.

use std::collections::BTreeMap;

use sluice_ledger::{Account, AccountKey, QuotaKey, QuotaLimits};
use sluice_plan::{Delta, DeviceView, JobView, Placement, Purpose, QuotaView};
use sluice_types::{DeviceClassName, SiteId, TenantId};

use super::{Dice, Rows, class, site, tenant};

/// A quota of a tenant, at a site or, with site 0, over all.
pub fn quota(raw: u64, at: u64, name: &str, (nominal, borrow, lend): (i64, i64, i64)) -> Delta {
    let key = QuotaKey { tenant: tenant(raw), site: (at > 0).then(|| site(at)), class: class(name) };
    let limits = Some(QuotaLimits { nominal, borrow, lend });
    let site_name = (at > 0).then(|| format!("site-{at}").parse().unwrap());
    Delta::Quota(QuotaView { key, site_name, limits })
}

/// What a tenant holds of a quota.
pub fn held(raw: u64, at: u64, name: &str, (total, firm): (i64, i64)) -> Vec<Delta> {
    let place = (at > 0).then(|| site(at));
    let pending = |key, amount| Delta::Account(Account { debits_pending: amount, ..Account::empty(key) });
    let mut deltas = vec![pending(AccountKey::Entitled(tenant(raw), place, class(name)), total)];
    deltas.extend(place.map(|place| pending(AccountKey::Firm(tenant(raw), place, class(name)), firm)));
    deltas
}

/// Some quotas over all sites and some cohorts of two tenants, with something held of each.
pub fn any_quotas(dice: &mut Dice) -> Vec<Delta> {
    let mut deltas = Vec::new();
    for (raw, name) in [(1, "a"), (1, "cpu"), (2, "a"), (2, "b")] {
        if dice.once_in(6) {
            deltas.push(quota(raw, 0, name, (dice.roll(0, 3000) as i64, 0, 0)));
        }
    }
    for name in ["a", "cpu"] {
        for at in 1..=3 {
            if dice.once_in(2) {
                continue;
            }
            for raw in 1..=2 {
                let nominal = dice.roll(0, 2000) as i64;
                let (borrow, lend) = (dice.pick(&[0, 0, 300, 1500]), dice.pick(&[0, nominal / 2, nominal, nominal]));
                // Now and then one has none, and has used the class before.
                if !dice.once_in(6) {
                    deltas.push(quota(raw, at, name, (nominal, borrow, lend)));
                }
                let total = if dice.once_in(2) { 0 } else { dice.roll(0, 900) as i64 };
                let firm = if dice.once_in(3) { total / 2 } else { 0 };
                deltas.extend(held(raw, at, name, (total, firm)));
            }
        }
    }
    deltas
}

/// What a task takes of a quota on a device, from its definition.
pub fn taken(job: &JobView, device: &DeviceView) -> i64 {
    let asked = &job.resources;
    let (mut milli, mut bytes) = (u128::from(asked.milli.get()), u128::from(asked.memory.get()));
    if device.cores.get() > 0 {
        milli += (u128::from(asked.host_cores.get()) * 1000).div_ceil(u128::from(device.cores.get()));
        bytes += u128::from(asked.host_memory.get());
    }
    let memory = (bytes * 1000).div_ceil(u128::from(device.memory.get())).min(1000);
    milli.max(memory) as i64
}

type Place = (TenantId, Option<SiteId>, DeviceClassName);

/// What is held, by tenant, place and class: all of it, and what may not borrow.
#[derive(Clone, Default)]
pub struct Uses(pub BTreeMap<Place, (i64, i64)>);

impl Uses {
    pub fn of(rows: &Rows) -> Self {
        let mut uses = Self::default();
        for account in rows.accounts.values() {
            match &account.key {
                AccountKey::Entitled(tenant, place, class) => {
                    uses.0.entry((*tenant, *place, class.clone())).or_default().0 = account.debits_pending;
                }
                AccountKey::Firm(tenant, place, class) => {
                    uses.0.entry((*tenant, Some(*place), class.clone())).or_default().1 = account.debits_pending;
                }
                _ => {}
            }
        }
        uses
    }

    pub fn get(&self, tenant: TenantId, place: Option<SiteId>, class: &DeviceClassName) -> (i64, i64) {
        self.0.get(&(tenant, place, class.clone())).copied().unwrap_or_default()
    }

    /// A placement of a job takes so much at a site.
    pub fn take(&mut self, job: &JobView, at: SiteId, milli: i64) {
        let places = [Some(Some(at)), (job.purpose == Purpose::Run).then_some(None)];
        for place in places.into_iter().flatten() {
            let sum = self.0.entry((job.tenant, place, job.resources.class.clone())).or_default();
            *sum = (sum.0 + milli, sum.1 + if job.firm { milli } else { 0 });
        }
    }

    /// Whether the quotas let a job take so much more at a site.
    pub fn allow(&self, rows: &Rows, job: &JobView, at: SiteId, milli: i64) -> bool {
        let class = &job.resources.class;
        let row = |tenant, place| {
            let key = QuotaKey { tenant, site: place, class: class.clone() };
            rows.quotas.get(&key).and_then(|view| view.limits)
        };
        if job.purpose == Purpose::Run
            && let Some(limits) = row(job.tenant, None)
            && self.get(job.tenant, None, class).0 + milli > limits.nominal
        {
            return false;
        }
        let members = || rows.quotas.keys().filter(|key| key.site == Some(at) && key.class == *class);
        if members().next().is_none() {
            return true;
        }
        let Some(limits) = row(job.tenant, Some(at)) else { return false };
        let (total, firm) = self.get(job.tenant, Some(at), class);
        let within = total + milli <= limits.nominal + limits.borrow && (!job.firm || firm + milli <= limits.nominal);
        let own = limits.nominal - limits.lend;
        let drawn = |total: i64| (total - own).max(0);
        if !within || drawn(total + milli) == drawn(total) {
            return within;
        }
        let lendable: i64 = members().filter_map(|key| rows.quotas[key].limits).map(|limits| limits.lend).sum();
        let tenants = self.0.keys().filter(|(_, place, known)| *place == Some(at) && known == class).map(|key| key.0);
        let others = tenants.filter(|other| *other != job.tenant).map(|other| {
            let limits = row(other, Some(at)).unwrap_or_default();
            (self.get(other, Some(at), class).0 - (limits.nominal - limits.lend)).max(0)
        });
        others.sum::<i64>() + drawn(total + milli) <= lendable
    }

    /// Whether a job that takes so much more at a site would hold more than its nominal.
    pub fn borrows(&self, rows: &Rows, job: &JobView, at: SiteId, milli: i64) -> bool {
        let key = QuotaKey { tenant: job.tenant, site: Some(at), class: job.resources.class.clone() };
        let nominal = rows.quotas.get(&key).and_then(|view| view.limits).unwrap_or_default().nominal;
        self.get(job.tenant, Some(at), &job.resources.class).0 + milli > nominal
    }
}

impl Rows {
    /// Holds what a placement takes of quotas.
    pub fn hold_quota(&mut self, job: &JobView, placement: &Placement) -> Vec<Delta> {
        let taken = placement.tasks.iter().map(|task| taken(job, self.device(task.device).unwrap())).sum();
        let mut uses = Uses::of(self);
        uses.take(job, placement.site, taken);
        let mut deltas = Vec::new();
        for place in [Some(placement.site), None] {
            let class = job.resources.class.clone();
            let (total, firm) = uses.get(job.tenant, place, &class);
            let entitled = AccountKey::Entitled(job.tenant, place, class.clone());
            let firm = place.map(|place| (AccountKey::Firm(job.tenant, place, class), firm));
            for (key, held) in [(entitled, total)].into_iter().chain(firm) {
                let account = Account { debits_pending: held, ..Account::empty(key) };
                self.accounts.insert(account.key.clone(), account.clone());
                deltas.push(Delta::Account(account));
            }
        }
        deltas
    }
}
