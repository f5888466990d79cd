//! Money, prices, budgets and windows.

use sluice_ledger::{Account, Price, PriceBook, Rate, Transfer, TransferKind};
use sluice_lifecycle::Refusal;
use sluice_lifecycle::model::{Budget, BudgetPolicy, Lease, Quota, QuotaPolicy, Window};
use sluice_types::Credits;

use super::{SiteNames, isolation, isolation_back, parse, timestamp};
use crate::v1;

/// A tenant's balance for the wire.
#[must_use]
pub fn balance(tenant: &str, funds: &Account) -> v1::Balance {
    v1::Balance {
        tenant: format!("tenants/{tenant}"),
        balance_credits: funds.balance(),
        held_credits: funds.debits_pending,
        credit_line_credits: funds.line,
        available_credits: funds.available(),
    }
}

/// A price book for the wire.
#[must_use]
pub fn prices(book: &PriceBook, sites: &impl SiteNames) -> v1::PriceBook {
    v1::PriceBook {
        version: book.version.to_string(),
        prices: book.prices.iter().map(|row| price_back(row, sites)).collect(),
        create_time: Some(timestamp(book.at)),
    }
}

/// A price from the wire.
///
/// # Errors
/// A [`Refusal`] that names the field.
pub fn price(row: &v1::Price, sites: &impl SiteNames) -> Result<Price, Refusal> {
    let site = match row.site.strip_prefix("sites/").unwrap_or(&row.site) {
        "" => None,
        name => Some(sites.id(name).ok_or_else(|| Refusal::field("prices.site", "the site does not exist"))?),
    };
    Ok(Price {
        class: parse("prices.device_class", &row.device_class)?,
        isolation: isolation(row.isolation()),
        site,
        rate: Rate {
            device_hour: Credits::new(row.device_hour_credits),
            core_hour: Credits::new(row.core_hour_credits),
            gib_hour: Credits::new(row.gib_hour_credits),
        },
    })
}

/// A price for the wire.
#[must_use]
pub fn price_back(row: &Price, sites: &impl SiteNames) -> v1::Price {
    v1::Price {
        device_class: row.class.to_string(),
        isolation: isolation_back(row.isolation).into(),
        site: row.site.map(|site| format!("sites/{}", sites.name(site))).unwrap_or_default(),
        device_hour_credits: row.rate.device_hour.units(),
        core_hour_credits: row.rate.core_hour.units(),
        gib_hour_credits: row.rate.gib_hour.units(),
    }
}

/// A budget for the wire, with what is left of it.
#[must_use]
pub fn budget(row: &Budget, scope: String, remaining: i64) -> v1::Budget {
    let policy = match row.policy {
        BudgetPolicy::Suspend => v1::BudgetPolicy::Suspend,
        BudgetPolicy::AdmissionOnly => v1::BudgetPolicy::AdmissionOnly,
    };
    v1::Budget {
        scope,
        amount_credits: row.amount.units(),
        period_seconds: row.period_seconds,
        policy: policy.into(),
        remaining_credits: remaining,
    }
}

/// What is used of a quota, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QuotaStanding {
    /// All that its tenant holds.
    pub used: i64,
    /// Of it, what may not borrow.
    pub firm: i64,
    /// Of it, what is beyond the nominal.
    pub borrowed: i64,
    /// What others have borrowed of what it lends.
    pub lent: i64,
    /// What more could be held now.
    pub available: i64,
    /// Of what is used, what was told to stop for want of quota.
    pub stopping: i64,
}

/// A quota for the wire. Its tenant and site are named as resources.
#[must_use]
pub fn quota(row: &Quota, tenant: &str, site: Option<&str>, standing: QuotaStanding) -> v1::Quota {
    let policy = match row.policy {
        QuotaPolicy::Refuse => v1::QuotaPolicy::Refuse,
        QuotaPolicy::Drain => v1::QuotaPolicy::Drain,
    };
    let class = row.key.class.to_string();
    v1::Quota {
        tenant: format!("tenants/{tenant}"),
        name: format!("tenants/{tenant}/quotas/{}/{class}", site.unwrap_or("-")),
        device_class: class,
        site: site.map(|site| format!("sites/{site}")).unwrap_or_default(),
        nominal_milli: row.limits.nominal,
        borrow_milli: row.limits.borrow,
        lend_milli: row.limits.lend,
        policy: policy.into(),
        used_milli: standing.used,
        borrowed_milli: standing.borrowed,
        lent_milli: standing.lent,
        firm_milli: standing.firm,
        available_milli: standing.available,
        stopping_milli: standing.stopping,
        manager: row.manager.clone(),
        etag: row.version.to_string(),
        create_time: Some(timestamp(row.created)),
        update_time: Some(timestamp(row.updated)),
        deleted: row.deleted,
    }
}

/// A ledger entry for the wire.
#[must_use]
pub fn transfer(row: &Transfer) -> v1::LedgerTransfer {
    let kind = match row.kind {
        TransferKind::Single => "single",
        TransferKind::Hold => "hold",
        TransferKind::Extend => "extend",
        TransferKind::Post => "post",
        TransferKind::Reduce => "reduce",
        TransferKind::Void => "void",
        TransferKind::Line => "line",
    };
    v1::LedgerTransfer {
        id: row.id.to_string(),
        kind: kind.to_owned(),
        debit: row.debit.to_string(),
        credit: row.credit.to_string(),
        amount: row.amount,
        hold: row.hold.map(|hold| hold.to_string()).unwrap_or_default(),
        cause: row.cause.clone(),
        time: Some(timestamp(row.at)),
    }
}

/// A metered window for the wire.
#[must_use]
pub fn window(row: &Window, lease: Option<&Lease>, job: String, site: String, node: String) -> v1::Window {
    v1::Window {
        lease: row.lease.to_string(),
        sequence: row.sequence,
        job,
        attempt: row.attempt.to_string(),
        site,
        node,
        start_ns: row.start.nanos(),
        end_ns: row.end.nanos(),
        entitled_milli: lease.map_or(0, |lease| lease.resources.milli.get()),
        billed_milli: lease.map_or(0, |lease| lease.terms.billed.get()),
        used_ns: row.used_ns,
        memory_byte_seconds: row.memory_byte_seconds,
        last_step: row.last_step,
        amount_credits: row.amount.units(),
        credited_credits: row.credited.units(),
        tariff: "reserved".to_owned(),
        gap: row.gap_before,
        advisory: row.advisory,
    }
}
