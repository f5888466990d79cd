//! Accounts: who holds how much of what.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sluice_types::{Credits, DeviceClassName, ProjectId, SiteId, TenantId};

/// What an account counts. Transfers never cross units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Unit {
    /// Money that exists: deposits, bills, credits.
    Money,
    /// Permission to spend money within a period.
    Budget,
    /// Permission to hold thousandths of devices of one class.
    Quota,
}

/// Whose budget it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BudgetScope {
    /// All projects of a tenant together.
    Tenant(TenantId),
    /// One project.
    Project(ProjectId),
}

/// The name of an account, derived from what it stands for, so that nobody mints or mixes account numbers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AccountKey {
    /// The world that deposits come from and payouts go to.
    Outside,
    /// A tenant's prepaid money. Limited: it may be overdrawn only up to its credit line.
    Funds(TenantId),
    /// What a site has earned.
    Revenue(SiteId),
    /// What the platform pays for its own faults.
    Platform,
    /// What is left of a budget in one period. Limited.
    Budget(BudgetScope, u64),
    /// What has been spent of a budget in one period.
    Spent(BudgetScope, u64),
    /// Where the budget of one period is granted from. One for each, so that nobody's grants, however large and often,
    /// use up a sum that others' need.
    Grants(BudgetScope, u64),
    /// What a tenant may hold of one class, at a site or over all. Limited: its line is the quota, nominal and borrow limit,
    /// and what is held is promised from it.
    Entitled(TenantId, Option<SiteId>, DeviceClassName),
    /// What a tenant may hold of one class at a site for what may not borrow. Limited: its line is the nominal.
    Firm(TenantId, SiteId, DeviceClassName),
    /// What the tenants of a site lend of one class. Limited: its line is the sum of what they lend, and what each uses
    /// beyond its own part is promised from it.
    Pool(SiteId, DeviceClassName),
    /// What a tenant uses of a pool.
    PoolShare(TenantId, SiteId, DeviceClassName),
    /// What is held of quotas.
    Capacity,
    /// A tenant's quota of one class as it was kept before quotas had sites. Limited.
    Quota(TenantId, DeviceClassName),
    /// What was held of such a quota.
    InUse(TenantId, DeviceClassName),
}

impl AccountKey {
    /// What the account counts.
    #[must_use]
    pub const fn unit(&self) -> Unit {
        match self {
            Self::Outside | Self::Funds(_) | Self::Revenue(_) | Self::Platform => Unit::Money,
            Self::Budget(..) | Self::Spent(..) | Self::Grants(..) => Unit::Budget,
            Self::Entitled(..)
            | Self::Firm(..)
            | Self::Pool(..)
            | Self::PoolShare(..)
            | Self::Capacity
            | Self::Quota(..)
            | Self::InUse(..) => Unit::Quota,
        }
    }

    /// Whether its debits are bounded by its credits and its line.
    #[must_use]
    pub const fn is_limited(&self) -> bool {
        match self {
            Self::Funds(_) | Self::Budget(..) | Self::Entitled(..) | Self::Firm(..) | Self::Pool(..) => true,
            Self::Quota(..) => true,
            Self::Outside | Self::Revenue(_) | Self::Platform | Self::Spent(..) | Self::Grants(..) => false,
            Self::PoolShare(..) | Self::Capacity | Self::InUse(..) => false,
        }
    }

    /// The tenant that may read it, where there is one.
    #[must_use]
    pub const fn tenant(&self) -> Option<TenantId> {
        match self {
            Self::Funds(tenant)
            | Self::Entitled(tenant, ..)
            | Self::Firm(tenant, ..)
            | Self::PoolShare(tenant, ..)
            | Self::Quota(tenant, _)
            | Self::InUse(tenant, _)
            | Self::Budget(BudgetScope::Tenant(tenant), _)
            | Self::Spent(BudgetScope::Tenant(tenant), _) => Some(*tenant),
            _ => None,
        }
    }
}

impl fmt::Display for BudgetScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tenant(id) => id.fmt(f),
            Self::Project(id) => id.fmt(f),
        }
    }
}

impl FromStr for BudgetScope {
    type Err = AccountKeyError;

    fn from_str(text: &str) -> Result<Self, AccountKeyError> {
        text.parse().map(Self::Tenant).or_else(|_| text.parse().map(Self::Project)).map_err(|_| AccountKeyError)
    }
}

impl fmt::Display for AccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outside => f.write_str("outside"),
            Self::Funds(tenant) => write!(f, "funds/{tenant}"),
            Self::Revenue(site) => write!(f, "revenue/{site}"),
            Self::Platform => f.write_str("platform"),
            Self::Budget(scope, period) => write!(f, "budget/{scope}/{period}"),
            Self::Spent(scope, period) => write!(f, "spent/{scope}/{period}"),
            Self::Grants(scope, period) => write!(f, "grants/{scope}/{period}"),
            Self::Entitled(tenant, Some(site), class) => write!(f, "entitled/{tenant}/{site}/{class}"),
            Self::Entitled(tenant, None, class) => write!(f, "entitled/{tenant}/-/{class}"),
            Self::Firm(tenant, site, class) => write!(f, "firm/{tenant}/{site}/{class}"),
            Self::Pool(site, class) => write!(f, "pool/{site}/{class}"),
            Self::PoolShare(tenant, site, class) => write!(f, "pool-share/{tenant}/{site}/{class}"),
            Self::Quota(tenant, class) => write!(f, "quota/{tenant}/{class}"),
            Self::InUse(tenant, class) => write!(f, "in-use/{tenant}/{class}"),
            Self::Capacity => f.write_str("capacity"),
        }
    }
}

/// A text that names no account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the name of an account")]
pub struct AccountKeyError;

impl FromStr for AccountKey {
    type Err = AccountKeyError;

    fn from_str(text: &str) -> Result<Self, AccountKeyError> {
        fn part<T: FromStr>(text: Option<&str>) -> Result<T, AccountKeyError> {
            text.and_then(|t| t.parse().ok()).ok_or(AccountKeyError)
        }
        let mut parts = text.split('/');
        let kind = parts.next().unwrap_or_default();
        let (first, second, third) = (parts.next(), parts.next(), parts.next());
        let key = match kind {
            "outside" => Self::Outside,
            "funds" => Self::Funds(part(first)?),
            "revenue" => Self::Revenue(part(first)?),
            "platform" => Self::Platform,
            "budget" => Self::Budget(part(first)?, part(second)?),
            "spent" => Self::Spent(part(first)?, part(second)?),
            "grants" => Self::Grants(part(first)?, part(second)?),
            "entitled" if second == Some("-") => Self::Entitled(part(first)?, None, part(third)?),
            "entitled" => Self::Entitled(part(first)?, Some(part(second)?), part(third)?),
            "firm" => Self::Firm(part(first)?, part(second)?, part(third)?),
            "pool" => Self::Pool(part(first)?, part(second)?),
            "pool-share" => Self::PoolShare(part(first)?, part(second)?, part(third)?),
            "quota" => Self::Quota(part(first)?, part(second)?),
            "in-use" => Self::InUse(part(first)?, part(second)?),
            "capacity" => Self::Capacity,
            _ => return Err(AccountKeyError),
        };
        // Printing again catches parts too many or too few.
        if key.to_string() == text { Ok(key) } else { Err(AccountKeyError) }
    }
}

impl Serialize for AccountKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AccountKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Four running sums and a line. Amounts are whole units (credits, or thousandths of a device).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Which account.
    pub key: AccountKey,
    /// Promised away but not yet taken.
    pub debits_pending: i64,
    /// Taken.
    pub debits_posted: i64,
    /// Promised to it but not yet given.
    pub credits_pending: i64,
    /// Given.
    pub credits_posted: i64,
    /// How far a limited account may go below zero.
    pub line: i64,
}

impl Account {
    /// An account without history.
    #[must_use]
    pub const fn empty(key: AccountKey) -> Self {
        Self { key, debits_pending: 0, debits_posted: 0, credits_pending: 0, credits_posted: 0, line: 0 }
    }

    /// What a limited account can still promise: credits posted + line − debits posted − debits pending.
    #[must_use]
    pub const fn available(&self) -> i64 {
        self.credits_posted
            .saturating_add(self.line)
            .saturating_sub(self.debits_posted)
            .saturating_sub(self.debits_pending)
    }

    /// Credits posted less debits posted.
    #[must_use]
    pub const fn balance(&self) -> i64 {
        self.credits_posted.saturating_sub(self.debits_posted)
    }

    /// The same in money.
    #[must_use]
    pub const fn balance_credits(&self) -> Credits {
        Credits::new(self.balance())
    }
}
