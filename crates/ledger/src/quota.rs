//! Quotas: what a tenant may hold of a device class at a site, what of it others may borrow, and what is used.
//!
//! All quotas of one class at one site are a cohort. Of each member's nominal a part is lent: the rest is its own part,
//! which nobody else ever uses. What members use beyond their own parts is drawn from the cohort's pool, which is what all
//! of them lend. A member that uses more than its nominal borrows, and may borrow no more than its limit.
//!
//! With u in use, n nominal, b and l the limits of borrowing and lending, and p = max(0, u - (n - l)) for each member:
//! * u <= n + b, and what may not borrow (orders, replicas) is at most n, whatever else the member holds;
//! * the sum of all p is at most the sum of all l.
//!
//! While nobody borrows, p <= l for each, so whoever stays within its nominal can only be kept from it by borrowers. The
//! shape follows the cohorts of Kueue (<https://kueue.sigs.k8s.io/docs/concepts/cohort/>). All amounts are thousandths of
//! devices.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sluice_types::{DeviceClassName, SiteId, TenantId};

/// Which quota: a tenant's, of a class, at a site or over all sites together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QuotaKey {
    /// Whose.
    pub tenant: TenantId,
    /// Where; `None` = over all sites together.
    pub site: Option<SiteId>,
    /// Of what.
    pub class: DeviceClassName,
}

/// Which quotas lend to each other: those of a class at a site. A quota over all sites stands alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CohortKey {
    /// All tenants' at a site.
    Site(SiteId, DeviceClassName),
    /// One tenant's over all sites.
    Tenant(TenantId, DeviceClassName),
}

impl QuotaKey {
    /// The cohort that it belongs to.
    #[must_use]
    pub fn cohort(&self) -> CohortKey {
        match self.site {
            Some(site) => CohortKey::Site(site, self.class.clone()),
            None => CohortKey::Tenant(self.tenant, self.class.clone()),
        }
    }
}

/// What a quota allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QuotaLimits {
    /// What is the tenant's.
    pub nominal: i64,
    /// What it may use beyond.
    pub borrow: i64,
    /// What of its nominal others may use while it does not.
    pub lend: i64,
}

impl QuotaLimits {
    /// The part that nobody else ever uses.
    #[must_use]
    pub const fn own(&self) -> i64 {
        self.nominal - self.lend
    }

    /// The most that it may hold.
    #[must_use]
    pub const fn most(&self) -> i64 {
        self.nominal + self.borrow
    }
}

/// What is held under a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QuotaUse {
    /// All of it.
    pub total: i64,
    /// The part of it that may not borrow.
    pub firm: i64,
}

impl QuotaUse {
    /// Whether nothing is held.
    #[must_use]
    pub const fn is_nothing(&self) -> bool {
        self.total == 0 && self.firm == 0
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self { total: self.total + other.total, firm: self.firm + other.firm }
    }

    /// Without the other.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self { total: self.total - other.total, firm: self.firm - other.firm }
    }

    /// What of it is drawn from the pool.
    #[must_use]
    pub fn pooled(self, limits: &QuotaLimits) -> i64 {
        (self.total - limits.own()).max(0)
    }

    /// What of it is beyond the nominal.
    #[must_use]
    pub fn borrowed(self, limits: &QuotaLimits) -> i64 {
        (self.total - limits.nominal).max(0)
    }
}

/// Which of a quota's bounds keeps work out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuotaLevel {
    /// Its nominal is free, but others have borrowed it. They can be called back.
    Lent,
    /// It would borrow, and nobody lends enough.
    Pool,
    /// Nominal and borrow limit together.
    Limit,
    /// The nominal: where nothing may be borrowed, or for what may not borrow.
    Nominal,
    /// The cohort has no quota of the tenant.
    None,
}

impl QuotaLevel {
    /// The word used through every door.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lent => "lent",
            Self::Pool => "pool",
            Self::Limit => "limit",
            Self::Nominal => "nominal",
            Self::None => "none",
        }
    }

    /// Whether others' work alone is in the way: it passes as they end.
    #[must_use]
    pub const fn is_others(self) -> bool {
        matches!(self, Self::Lent | Self::Pool)
    }
}

/// What a level lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shortage {
    /// Which.
    pub level: QuotaLevel,
    /// How much more it would have to leave.
    pub missing: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Member {
    limits: Option<QuotaLimits>,
    used: QuotaUse,
}

impl Member {
    fn pooled(&self) -> i64 {
        self.used.pooled(&self.limits.unwrap_or_default())
    }
}

/// All quotas of one class at one site, and what is used of them. Members without a quota have used the class before the
/// cohort was there; they count as borrowers of all of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cohort {
    members: BTreeMap<TenantId, Member>,
    lendable: i64,
    pooled: i64,
}

impl Cohort {
    /// Sets or takes away a member's limits.
    pub fn set_limits(&mut self, tenant: TenantId, limits: Option<QuotaLimits>) {
        self.change(tenant, |member| member.limits = limits);
    }

    /// Sets what a member uses.
    pub fn set_used(&mut self, tenant: TenantId, used: QuotaUse) {
        self.change(tenant, |member| member.used = used);
    }

    fn change(&mut self, tenant: TenantId, change: impl FnOnce(&mut Member)) {
        let member = self.members.entry(tenant).or_default();
        self.lendable -= member.limits.unwrap_or_default().lend;
        self.pooled -= member.pooled();
        change(member);
        self.lendable += member.limits.unwrap_or_default().lend;
        self.pooled += member.pooled();
        if *member == Member::default() {
            self.members.remove(&tenant);
        }
    }

    /// A member's limits.
    #[must_use]
    pub fn limits(&self, tenant: TenantId) -> Option<QuotaLimits> {
        self.members.get(&tenant).and_then(|member| member.limits)
    }

    /// What a tenant uses.
    #[must_use]
    pub fn used(&self, tenant: TenantId) -> QuotaUse {
        self.members.get(&tenant).map(|member| member.used).unwrap_or_default()
    }

    /// Whether no tenant has a quota in it.
    #[must_use]
    pub fn has_no_limits(&self) -> bool {
        self.members.values().all(|member| member.limits.is_none())
    }

    /// Everybody with a quota or use in it.
    pub fn tenants(&self) -> impl Iterator<Item = TenantId> {
        self.members.keys().copied()
    }

    /// What all members lend together.
    #[must_use]
    pub const fn lendable(&self) -> i64 {
        self.lendable
    }

    /// What is drawn from it.
    #[must_use]
    pub const fn pooled(&self) -> i64 {
        self.pooled
    }

    /// What is drawn from the pool beyond what it is: only after a limit was lowered below it, or where work was there
    /// before the cohort.
    #[must_use]
    pub fn overdrawn(&self) -> i64 {
        (self.pooled - self.lendable).max(0)
    }

    /// How far a tenant's use is beyond what its quota allows it, whatever the pool has.
    #[must_use]
    pub fn excess(&self, tenant: TenantId) -> i64 {
        (self.used(tenant).total - self.limits(tenant).unwrap_or_default().most()).max(0)
    }

    /// How far a tenant's firm use is beyond its nominal.
    #[must_use]
    pub fn firm_excess(&self, tenant: TenantId) -> i64 {
        (self.used(tenant).firm - self.limits(tenant).unwrap_or_default().nominal).max(0)
    }

    /// Whether a tenant uses more than its nominal.
    #[must_use]
    pub fn borrowed(&self, tenant: TenantId) -> i64 {
        self.used(tenant).borrowed(&self.limits(tenant).unwrap_or_default())
    }

    /// What keeps a tenant from using so much more, if anything does. `reserved` is kept in the pool from borrowers.
    #[must_use]
    pub fn shortage(&self, tenant: TenantId, more: QuotaUse, reserved: i64) -> Option<Shortage> {
        self.shortage_under(tenant, self.limits(tenant), more, reserved)
    }

    /// The same under other limits of this tenant.
    #[must_use]
    pub fn shortage_under(
        &self,
        tenant: TenantId,
        limits: Option<QuotaLimits>,
        more: QuotaUse,
        reserved: i64,
    ) -> Option<Shortage> {
        let lacks = |level, missing| (missing > 0).then_some(Shortage { level, missing });
        let used = self.used(tenant);
        let after = used.plus(more);
        let Some(limits) = limits else { return lacks(QuotaLevel::None, after.total) };
        if more.firm > 0 && after.firm > limits.nominal {
            return lacks(QuotaLevel::Nominal, after.firm - limits.nominal);
        }
        if after.total > limits.most() {
            let level = if limits.borrow == 0 { QuotaLevel::Nominal } else { QuotaLevel::Limit };
            return lacks(level, after.total - limits.most());
        }
        let drawn = after.pooled(&limits) - used.pooled(&limits);
        if drawn == 0 {
            return None;
        }
        let known = self.limits(tenant).unwrap_or_default();
        let others = self.pooled - used.pooled(&known);
        let beyond = others + after.pooled(&limits) - self.lendable;
        if after.total <= limits.nominal {
            return lacks(QuotaLevel::Lent, beyond);
        }
        lacks(QuotaLevel::Pool, beyond + reserved)
    }

    /// What a tenant would draw from the pool for so much more.
    #[must_use]
    pub fn draws(&self, tenant: TenantId, more: QuotaUse) -> i64 {
        let (limits, used) = (self.limits(tenant).unwrap_or_default(), self.used(tenant));
        used.plus(more).pooled(&limits) - used.pooled(&limits)
    }

    /// The most that a tenant could use more, borrowed or not.
    #[must_use]
    pub fn available(&self, tenant: TenantId) -> i64 {
        let (limits, used) = (self.limits(tenant).unwrap_or_default(), self.used(tenant));
        let own = (limits.own() - used.total).max(0);
        let pool = (self.lendable - self.pooled).max(0);
        (own + pool).min(limits.most() - used.total).max(0)
    }

    /// What others have borrowed of what a tenant lends. Lenders are drawn on in the order of their tenants' ids, which is
    /// that of their age.
    #[must_use]
    pub fn lent(&self, tenant: TenantId) -> i64 {
        let mut left: i64 = self.members.keys().map(|member| self.borrowed(*member)).sum();
        for (member, row) in &self.members {
            let limits = row.limits.unwrap_or_default();
            let own_use = row.used.total.min(limits.nominal);
            let idle = limits.lend - (own_use - limits.own()).clamp(0, limits.lend);
            let lent = idle.min(left);
            if *member == tenant {
                return lent;
            }
            left -= lent;
        }
        0
    }
}
