//! Mirrored quotas, what placements in flight hold of them, and what is kept for lenders.
//!
//! Never changes a quota: limits and use come from committed rows and are only read. A promise is what a placement that is
//! not committed yet will hold. A claim keeps what is called back for a lender from borrowers until the lender's job is
//! placed: else they would take it again, and be called back again, for ever.

use std::collections::BTreeMap;
use std::fmt;

use sluice_ledger::{Account, AccountKey, Cohort, CohortKey, QuotaKey, QuotaLevel, QuotaLimits, QuotaUse};
use sluice_types::{JobId, Name, SiteId, TenantId};

use crate::hash::Lookup;
use crate::view::{Purpose, QuotaShortage, QuotaView};
use crate::want::Want;

/// Which limit a question gives more of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum More {
    Nominal,
    Borrow,
}

/// A question of the kind "what if this limit were higher?".
#[derive(Debug, Clone)]
pub(crate) struct Gift {
    pub(crate) key: QuotaKey,
    pub(crate) more: More,
    pub(crate) amount: i64,
    /// The least further amount that turns a refusal seen since into an approval.
    pub(crate) next: Option<i64>,
}

impl Gift {
    fn limits(&self, known: Option<QuotaLimits>, further: i64) -> Option<QuotaLimits> {
        let amount = self.amount.saturating_add(further);
        let mut limits = known.unwrap_or_default();
        match self.more {
            More::Nominal => limits.nominal = limits.nominal.saturating_add(amount),
            More::Borrow => limits.borrow = limits.borrow.saturating_add(amount),
        }
        // A quota that nobody set lends and borrows nothing, also not more.
        if known.is_none() && (amount == 0 || self.more == More::Borrow) { None } else { Some(limits) }
    }
}

/// What is called back for a lender's job.
#[derive(Debug, Clone)]
struct Claim {
    cohort: CohortKey,
    shape: u32,
    amount: i64,
}

/// One cohort: the quotas of a class at a site, or of one tenant over all.
#[derive(Debug, Clone, Default)]
struct Standing {
    /// Limits, and what is held or promised.
    cohort: Cohort,
    /// How many quotas are in it; without any nothing is limited.
    limits: usize,
    held: BTreeMap<TenantId, QuotaUse>,
    promised: BTreeMap<TenantId, QuotaUse>,
    /// Kept from borrowers.
    claimed: i64,
    site_name: Option<Name>,
}

impl Standing {
    fn update(&mut self, tenant: TenantId) {
        let of = |uses: &BTreeMap<TenantId, QuotaUse>| uses.get(&tenant).copied().unwrap_or_default();
        self.cohort.set_used(tenant, of(&self.held).plus(of(&self.promised)));
    }

    fn facts(&self) -> BTreeMap<TenantId, (Option<QuotaLimits>, QuotaUse)> {
        let held = |tenant| self.held.get(&tenant).copied().unwrap_or_default();
        let members = self.cohort.tenants().map(|tenant| (tenant, (self.cohort.limits(tenant), held(tenant))));
        members.filter(|(_, (limits, held))| limits.is_some() || !held.is_nothing()).collect()
    }
}

/// Quotas as last committed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Quotas {
    standings: Lookup<CohortKey, Standing>,
    /// How many quotas there are at all.
    rows: usize,
    claims: BTreeMap<JobId, Claim>,
    pub(crate) gift: Option<Gift>,
}

impl PartialEq for Quotas {
    fn eq(&self, other: &Self) -> bool {
        let facts = |quotas: &'_ Self| -> BTreeMap<CohortKey, _> {
            let facts = quotas.standings.iter().map(|(key, row)| (key.clone(), row.facts()));
            facts.filter(|(_, facts)| !facts.is_empty()).collect()
        };
        facts(self) == facts(other)
    }
}

impl Quotas {
    /// Whether nothing is limited anywhere.
    pub(crate) const fn are_none(&self) -> bool {
        self.rows == 0
    }

    pub(crate) fn set(&mut self, view: &QuotaView) {
        let standing = self.standings.entry(view.key.cohort()).or_default();
        let known = standing.cohort.limits(view.key.tenant).is_some();
        standing.cohort.set_limits(view.key.tenant, view.limits);
        standing.site_name.clone_from(&view.site_name);
        let (gone, come) = (usize::from(known), usize::from(view.limits.is_some()));
        standing.limits = standing.limits + come - gone;
        self.rows = self.rows + come - gone;
    }

    /// Takes what an account says is held; false where it is no account of a quota.
    pub(crate) fn set_account(&mut self, account: &Account) -> bool {
        let pending = account.debits_pending;
        match &account.key {
            AccountKey::Entitled(tenant, site, class) => {
                let key = QuotaKey { tenant: *tenant, site: *site, class: class.clone() };
                self.hold(&key.cohort(), *tenant, |held| held.total = pending);
            }
            AccountKey::Firm(tenant, site, class) => {
                self.hold(&CohortKey::Site(*site, class.clone()), *tenant, |held| held.firm = pending);
            }
            AccountKey::Pool(..) | AccountKey::Quota(..) => {}
            _ => return false,
        }
        true
    }

    fn hold(&mut self, cohort: &CohortKey, tenant: TenantId, change: impl FnOnce(&mut QuotaUse)) {
        let standing = self.standings.entry(cohort.clone()).or_default();
        change(standing.held.entry(tenant).or_default());
        standing.update(tenant);
    }

    /// Promises what a placement of `want` holds at a site, or takes it back.
    pub(crate) fn promise(&mut self, want: &Want, site: SiteId, charge: i64, back: bool) {
        let more = ask(want, charge);
        let over_all = (want.purpose == Purpose::Run).then_some(None);
        for place in std::iter::once(Some(site)).chain(over_all) {
            let standing = self.standings.entry(key(want, place).cohort()).or_default();
            let promised = standing.promised.entry(want.tenant).or_default();
            *promised = if back { promised.minus(more) } else { promised.plus(more) };
            if promised.is_nothing() {
                standing.promised.remove(&want.tenant);
            }
            standing.update(want.tenant);
        }
    }

    /// What of a quota a job lacks at a site where it takes `charge`, if it lacks any.
    pub(crate) fn shortage(&mut self, want: &Want, site: SiteId, charge: i64, job: JobId) -> Option<QuotaShortage> {
        let over_all = (want.purpose == Purpose::Run).then_some(None);
        let places = std::iter::once(Some(site)).chain(over_all);
        let short: Vec<_> = places.filter_map(|place| self.short_at(key(want, place), want, charge, job)).collect();
        // Where both lack, what an admin has to change first.
        short.into_iter().max_by_key(|short| (short.level, short.missing))
    }

    fn short_at(&mut self, key: QuotaKey, want: &Want, charge: i64, job: JobId) -> Option<QuotaShortage> {
        let cohort = key.cohort();
        let standing = self.standings.get(&cohort)?;
        if standing.limits == 0 {
            return None;
        }
        let gift = self.gift.clone().filter(|gift| gift.key == key);
        let own = self.claims.get(&job).filter(|claim| claim.cohort == cohort).map_or(0, |claim| claim.amount);
        let reserved = standing.claimed - own;
        let (known, more) = (standing.cohort.limits(key.tenant), ask(want, charge));
        let under = |limits| standing.cohort.shortage_under(key.tenant, limits, more, reserved);
        let short = under(gift.as_ref().map_or(known, |gift| gift.limits(known, 0)))?;
        if let Some(gift) = &gift {
            let used = standing.cohort.used(key.tenant).plus(more);
            let limits = gift.limits(known, 0).unwrap_or_default();
            // Each of these is where one of the bounds gives way; one of them is where all have.
            let firm = used.firm - limits.nominal;
            let steps = [firm, used.total - limits.most(), used.total - limits.nominal, used.total - limits.own()];
            let steps = steps.into_iter().chain([short.missing, short.missing - reserved]).filter(|step| *step > 0);
            let enough = |step: &i64| under(gift.limits(known, *step)).is_none();
            let next = steps.filter(enough).min();
            if let (Some(next), Some(gift)) = (next, self.gift.as_mut()) {
                gift.next = Some(gift.next.map_or(next, |known| known.min(next)));
            }
        }
        let site_name = self.standings.get(&cohort).and_then(|standing| standing.site_name.clone());
        Some(QuotaShortage { key, site_name, level: short.level, asked: charge, missing: short.missing })
    }

    /// Keeps what is lent of a tenant's nominal for its jobs of a shape, of which so many wait, `job` first.
    pub(crate) fn claim(&mut self, short: &QuotaShortage, job: JobId, shape: u32, waiting: usize) {
        self.claims.retain(|other, claim| {
            let again = claim.shape == shape || *other == job;
            if again && let Some(standing) = self.standings.get_mut(&claim.cohort) {
                standing.claimed -= claim.amount;
            }
            !again
        });
        let cohort = short.key.cohort();
        let Some(standing) = self.standings.get_mut(&cohort) else { return };
        let tenant = short.key.tenant;
        let free = standing.cohort.limits(tenant).unwrap_or_default().nominal - standing.cohort.used(tenant).total;
        let jobs = (free / short.asked.max(1)).min(i64::try_from(waiting).unwrap_or(i64::MAX)).max(1);
        let amount = standing.cohort.draws(tenant, QuotaUse { total: jobs * short.asked, firm: 0 });
        standing.claimed += amount;
        self.claims.insert(job, Claim { cohort, shape, amount });
    }

    /// Keeps nothing for a job any more; whether something was.
    pub(crate) fn unclaim(&mut self, job: JobId) -> bool {
        let Some(claim) = self.claims.remove(&job) else { return false };
        if let Some(standing) = self.standings.get_mut(&claim.cohort) {
            standing.claimed -= claim.amount;
        }
        true
    }

    /// The quotas that could keep a want out: those of its tenant where it may run, and over all sites.
    pub(crate) fn keys(&self, want: &Want, sites: impl Iterator<Item = SiteId>) -> Vec<QuotaKey> {
        let keys = sites.map(Some).chain((want.purpose == Purpose::Run).then_some(None)).map(|place| key(want, place));
        keys.filter(|key| self.standings.get(&key.cohort()).is_some_and(|standing| standing.limits > 0)).collect()
    }
}

fn key(want: &Want, site: Option<SiteId>) -> QuotaKey {
    QuotaKey { tenant: want.tenant, site, class: want.task.class.clone() }
}

fn ask(want: &Want, charge: i64) -> QuotaUse {
    QuotaUse { total: charge, firm: if want.firm { charge } else { 0 } }
}

impl fmt::Display for QuotaShortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, asked, missing, .. } = self;
        let quota = |f: &mut fmt::Formatter<'_>| {
            write!(f, "class `{}` ", key.class)?;
            match (&self.site_name, key.site) {
                (Some(name), _) => write!(f, "at site `{name}`"),
                (None, Some(site)) => write!(f, "at {site}"),
                (None, None) => f.write_str("over all sites"),
            }
        };
        match self.level {
            QuotaLevel::None => {
                f.write_str("its tenant has no quota of ")?;
                quota(f)?;
                write!(f, ", which is shared out by quotas: it lacks {missing}m, and platform admins may set one")
            }
            QuotaLevel::Nominal => {
                write!(f, "it takes {asked}m of its tenant's quota of ")?;
                quota(f)?;
                write!(f, ", whose own part lacks {missing}m: platform admins may raise it")
            }
            QuotaLevel::Limit => {
                write!(f, "it takes {asked}m of its tenant's quota of ")?;
                quota(f)?;
                write!(f, ", which with all that it may borrow lacks {missing}m: platform admins may raise it")
            }
            QuotaLevel::Pool => {
                write!(f, "it takes {asked}m and would borrow, and of ")?;
                quota(f)?;
                write!(f, " others lend {missing}m too little: it waits for them, or platform admins raise its quota")
            }
            QuotaLevel::Lent => {
                write!(f, "it takes {asked}m of its tenant's own quota of ")?;
                quota(f)?;
                write!(f, ", of which {missing}m are lent to others and are being called back")
            }
        }
    }
}

/// Whether a shortage is one that calling back ends.
pub(crate) fn is_lent(short: &QuotaShortage) -> bool {
    short.level == QuotaLevel::Lent
}
