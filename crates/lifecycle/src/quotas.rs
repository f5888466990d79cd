//! Quotas in the working set: their rows, what is used of each class by whom and where, and the cohorts that follow.
//!
//! Use is counted for everybody, also where no quota is: the first one that is set finds it. It follows from attempts that
//! have not ended: each counts at its site, and over all sites while it owns its job, so that a move does not count twice
//! there. The ledger's holds follow from here, see `step/quota.rs`.

use std::collections::{BTreeMap, BTreeSet};

use sluice_ledger::{AccountKey, Books, Cohort, CohortKey, QuotaKey, QuotaUse, Unit};
use sluice_plan::QuotaView;
use sluice_types::{AttemptId, DeviceClassName, HoldId, SiteId, TenantId};

use crate::model::{Attempt, AttemptState, Job, Quota, Site};
use crate::state::State;
use crate::table::Table;

/// Rows, use and cohorts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Quotas {
    pub(crate) rows: Table<QuotaKey, Quota>,
    uses: BTreeMap<QuotaKey, QuotaUse>,
    cohorts: BTreeMap<CohortKey, Cohort>,
    live: BTreeMap<(SiteId, DeviceClassName), BTreeSet<AttemptId>>,
    /// The open holds by their accounts, of which each pair has one at most.
    pub(crate) holds: BTreeMap<(AccountKey, AccountKey), HoldId>,
}

impl Quotas {
    /// Takes stored rows and holds; use is counted in later.
    pub(crate) fn load(rows: Vec<Quota>, books: &Books) -> Self {
        let mut quotas = Self::default();
        for row in rows.into_iter().filter(|row| !row.deleted) {
            quotas.admit(&row);
            quotas.rows.load(row.key.clone(), row);
        }
        let open = books.holds().filter(|hold| hold.debit.unit() == Unit::Quota);
        let old = |hold: &&sluice_ledger::Hold| matches!(hold.debit, AccountKey::Quota(..));
        quotas.holds = open.filter(|hold| !old(hold)).map(|h| ((h.debit.clone(), h.credit.clone()), h.id)).collect();
        quotas
    }

    /// Writes a row.
    pub(crate) fn set(&mut self, row: Quota) {
        self.admit(&row);
        self.rows.insert(row.key.clone(), row);
    }

    /// The cohort, as it would be with this row.
    fn admit(&mut self, row: &Quota) {
        let key = row.key.cohort();
        let mut cohort = self.cohorts.remove(&key).unwrap_or_else(|| self.unlimited(&key));
        cohort.set_limits(row.key.tenant, Some(row.limits));
        self.cohorts.insert(key, cohort);
    }

    /// Takes a row's limits away, and its cohort, where it was the last one. Returns whether it was.
    pub(crate) fn dissolve(&mut self, key: &QuotaKey) -> bool {
        let cohort = key.cohort();
        let Some(row) = self.cohorts.get_mut(&cohort) else { return false };
        row.set_limits(key.tenant, None);
        let last = row.has_no_limits();
        if last {
            self.cohorts.remove(&cohort);
        }
        last
    }

    pub(crate) fn cohort(&self, key: &CohortKey) -> Option<&Cohort> {
        self.cohorts.get(key)
    }

    /// What a cohort's use would look like if it had no quota.
    pub(crate) fn unlimited(&self, key: &CohortKey) -> Cohort {
        let mut cohort = Cohort::default();
        for (used, amount) in self.uses.iter().filter(|(used, _)| used.cohort() == *key) {
            cohort.set_used(used.tenant, *amount);
        }
        cohort
    }

    pub(crate) fn used(&self, key: &QuotaKey) -> QuotaUse {
        self.uses.get(key).copied().unwrap_or_default()
    }

    fn count(&mut self, key: QuotaKey, change: impl FnOnce(QuotaUse) -> QuotaUse) {
        let used = change(self.used(&key));
        if let Some(cohort) = self.cohorts.get_mut(&key.cohort()) {
            cohort.set_used(key.tenant, used);
        }
        match used.is_nothing() {
            true => self.uses.remove(&key),
            false => self.uses.insert(key, used),
        };
    }

    /// Counts an attempt in at its site.
    pub(crate) fn begin(&mut self, id: AttemptId, key: QuotaKey, held: QuotaUse) {
        if let Some(site) = key.site {
            self.live.entry((site, key.class.clone())).or_default().insert(id);
        }
        self.count(key, |used| used.plus(held));
    }

    /// Counts an attempt out at its site.
    pub(crate) fn end(&mut self, id: AttemptId, key: QuotaKey, held: QuotaUse) {
        if let Some(site) = key.site
            && let Some(live) = self.live.get_mut(&(site, key.class.clone()))
        {
            live.remove(&id);
        }
        self.count(key, |used| used.minus(held));
    }

    /// Counts what owns its job in over all sites.
    pub(crate) fn own(&mut self, key: QuotaKey, held: QuotaUse) {
        self.count(key, |used| used.plus(held));
    }

    /// Counts it out again.
    pub(crate) fn disown(&mut self, key: QuotaKey, held: QuotaUse) {
        self.count(key, |used| used.minus(held));
    }

    /// Attempts that may be in a cohort, newest first.
    pub(crate) fn live(&self, key: &CohortKey) -> Vec<AttemptId> {
        let at = |site: SiteId, class: &DeviceClassName| self.live.get(&(site, class.clone())).into_iter().flatten();
        let mut live: Vec<_> = match key {
            CohortKey::Site(site, class) => at(*site, class).copied().collect(),
            CohortKey::Tenant(_, class) => {
                self.live.iter().filter(|((_, known), _)| known == class).flat_map(|(_, live)| live).copied().collect()
            }
        };
        live.sort_by_key(|id| std::cmp::Reverse(*id));
        live
    }
}

impl State {
    /// What an attempt holds of which quota at its site. Of one that has ended, what it held.
    pub(crate) fn held(&self, attempt: &Attempt) -> Option<(QuotaKey, QuotaUse)> {
        let job = self.jobs.get(&attempt.job)?;
        let class = job.spec.resources.class.clone();
        let key = QuotaKey { tenant: job.tenant, site: Some(attempt.site), class };
        Some((key, ask(job, attempt.charge)))
    }

    /// A quota.
    #[must_use]
    pub fn quota(&self, key: &QuotaKey) -> Option<&Quota> {
        self.quotas.rows.get(key)
    }

    /// All quotas, by tenant.
    pub fn quotas(&self) -> impl Iterator<Item = &Quota> {
        self.quotas.rows.values()
    }

    /// The cohort of a key, where one of its tenants has a quota.
    #[must_use]
    pub fn cohort(&self, key: &CohortKey) -> Option<&Cohort> {
        self.quotas.cohort(key)
    }

    /// Counts a loaded attempt in.
    pub(crate) fn count_loaded(&mut self, attempt: &mut Attempt) {
        let Some(job) = self.jobs.get(&attempt.job) else { return };
        if attempt.charge == 0 {
            // Placed before attempts noted it; then it was the share alone.
            attempt.charge = i64::from(job.spec.tasks) * i64::from(job.spec.resources.milli.get());
        }
        let owns = job.current == Some(attempt.id);
        if attempt.state == AttemptState::Ended {
            return;
        }
        let Some((key, held)) = self.held(attempt) else { return };
        if owns {
            self.quotas.own(QuotaKey { site: None, ..key.clone() }, held);
        }
        self.quotas.begin(attempt.id, key, held);
    }

    /// What the scheduler sees of a quota.
    pub(crate) fn quota_view(&self, row: &Quota) -> QuotaView {
        let name = |site: &SiteId| self.sites.get(site).map(|row: &Site| row.name.clone());
        QuotaView {
            key: row.key.clone(),
            site_name: row.key.site.as_ref().and_then(name),
            limits: (!row.deleted).then_some(row.limits),
        }
    }

    /// The thousandths of quota that a job takes at a site: on the device that takes least of it. `None` where the site has
    /// no device of the class.
    pub(crate) fn least_charge(&self, job: &Job, site: SiteId) -> Option<i64> {
        let wanted = &job.spec.resources;
        let nodes = self.nodes.values().filter(|node| node.site == site);
        let devices = nodes.flat_map(|node| &node.devices).filter(|device| device.view.class == wanted.class);
        let least = devices.map(|device| sluice_plan::charge(wanted, &device.view)).min()?;
        Some(least.saturating_mul(i64::from(job.spec.tasks)))
    }

    /// The resource name of a quota.
    pub(crate) fn quota_name(&self, key: &QuotaKey) -> String {
        let tenant = self.tenants.get(&key.tenant).map(|row| row.name.to_string()).unwrap_or_default();
        let site = key.site.and_then(|site| self.sites.get(&site)).map(|row| row.name.to_string());
        format!("tenants/{tenant}/quotas/{}/{}", site.as_deref().unwrap_or("-"), key.class)
    }

    /// How many quotas a tenant has.
    pub(crate) fn quotas_of(&self, tenant: TenantId) -> usize {
        self.quotas.rows.values().filter(|row| row.key.tenant == tenant).count()
    }
}

/// What a job asks of a quota that takes `charge` of it.
pub(crate) fn ask(job: &Job, charge: i64) -> QuotaUse {
    QuotaUse { total: charge, firm: if job.spec.kind.is_firm() { charge } else { 0 } }
}
