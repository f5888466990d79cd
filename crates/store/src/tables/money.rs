//! Windows, prices, budgets, quotas, requests, counters, and the ledger: accounts, holds and transfers.

use serde::Deserialize;
use serde::de::IntoDeserializer;
use sluice_ledger::{Account, AccountKey, Hold, PriceBook, QuotaKey, Transfer, TransferKind};
use sluice_lifecycle::model::{Budget, Counters, Quota, Request, RequestKey, Window};
use sluice_types::{HoldId, LeaseId, PriceVersion, SiteId, TenantId, Timestamp, TransferId};

use super::{OnConflict, Stored, Table};
use crate::value::{Record, Value, body, exact, id, instant, maybe_id};
use crate::{Result, StoreError};

static WINDOWS: Table = Table::new(
    "windows",
    2,
    &["lease", "sequence", "tenant", "project", "job", "at", "amount", "credited", "body"],
    OnConflict::Replace,
);
static PRICES: Table = Table::new("prices", 1, &["version", "body"], OnConflict::Refuse);
static BUDGETS: Table = Table::new("budgets", 1, &["scope", "tenant", "body"], OnConflict::Replace);
static QUOTAS: Table = Table::new("quotas", 3, &["tenant", "site", "class", "live", "body"], OnConflict::Replace);
static ACCOUNTS: Table = Table::new(
    "accounts",
    1,
    &["name", "tenant", "debits_pending", "debits_posted", "credits_pending", "credits_posted", "line"],
    OnConflict::Replace,
);
static HOLDS: Table = Table::new("holds", 1, &["id", "debit", "credit", "remaining", "live"], OnConflict::Replace);
static TRANSFERS: Table =
    Table::new("transfers", 1, &["id", "kind", "debit", "credit", "amount", "hold", "cause", "at"], OnConflict::Refuse);
static REQUESTS: Table = Table::new("requests", 3, &["caller", "id_high", "id_low", "at", "body"], OnConflict::Replace);
static COUNTERS: Table = Table::new("counters", 1, &["id", "body"], OnConflict::Replace);

impl Stored for Window {
    type Key = (LeaseId, u64);

    fn table() -> &'static Table {
        &WINDOWS
    }

    fn key(&self) -> (LeaseId, u64) {
        (self.lease, self.sequence)
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([
            id(self.lease.raw()),
            exact(self.sequence, "the number of a window")?,
            id(self.tenant.raw()),
            id(self.project.raw()),
            id(self.job.raw()),
            instant(self.at),
            self.amount.units().into(),
            self.credited.units().into(),
            body("windows", self)?,
        ]);
        Ok(())
    }
}

impl Stored for PriceBook {
    type Key = PriceVersion;

    fn table() -> &'static Table {
        &PRICES
    }

    fn key(&self) -> PriceVersion {
        self.version
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([id(self.version.raw()), body("prices", self)?]);
        Ok(())
    }
}

impl Stored for Budget {
    type Key = String;

    fn table() -> &'static Table {
        &BUDGETS
    }

    fn key(&self) -> String {
        self.scope.clone()
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([self.scope.as_str().into(), id(self.tenant.raw()), body("budgets", self)?]);
        Ok(())
    }
}

/// The site's number, or 0 for all: no site has it.
pub(crate) fn site(key: &QuotaKey) -> Value {
    id(key.site.map_or(0, SiteId::raw))
}

impl Stored for Quota {
    type Key = QuotaKey;

    fn table() -> &'static Table {
        &QUOTAS
    }

    fn key(&self) -> QuotaKey {
        self.key.clone()
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([
            id(self.key.tenant.raw()),
            site(&self.key),
            self.key.class.as_str().into(),
            (!self.deleted).into(),
            body("quotas", self)?,
        ]);
        Ok(())
    }
}

impl Stored for Account {
    type Key = AccountKey;

    fn table() -> &'static Table {
        &ACCOUNTS
    }

    fn key(&self) -> AccountKey {
        self.key.clone()
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([
            self.key.to_string().into(),
            maybe_id(self.key.tenant().map(TenantId::raw)),
            self.debits_pending.into(),
            self.debits_posted.into(),
            self.credits_pending.into(),
            self.credits_posted.into(),
            self.line.into(),
        ]);
        Ok(())
    }
}

/// Reads `name, debits_pending, debits_posted, credits_pending, credits_posted, line`.
pub(crate) fn account(record: &Record) -> Result<Account> {
    const TABLE: &str = "accounts";
    Ok(Account {
        key: record.parse(TABLE, 0)?,
        debits_pending: record.int(TABLE, 1)?,
        debits_posted: record.int(TABLE, 2)?,
        credits_pending: record.int(TABLE, 3)?,
        credits_posted: record.int(TABLE, 4)?,
        line: record.int(TABLE, 5)?,
    })
}

impl Stored for Hold {
    type Key = HoldId;

    fn table() -> &'static Table {
        &HOLDS
    }

    fn key(&self) -> HoldId {
        self.id
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([
            id(self.id.raw()),
            self.debit.to_string().into(),
            self.credit.to_string().into(),
            self.remaining.into(),
            (!self.closed).into(),
        ]);
        Ok(())
    }
}

/// Reads `id, debit, credit, remaining, live`.
pub(crate) fn hold(record: &Record) -> Result<Hold> {
    const TABLE: &str = "holds";
    Ok(Hold {
        id: HoldId::from_raw(record.unsigned(TABLE, 0)?),
        debit: record.parse(TABLE, 1)?,
        credit: record.parse(TABLE, 2)?,
        remaining: record.int(TABLE, 3)?,
        closed: record.int(TABLE, 4)? == 0,
    })
}

/// The word that the kind has in JSON, without its quotes.
fn kind_word(kind: TransferKind) -> Result<Value> {
    let word = serde_json::to_string(&kind).map_err(|source| StoreError::Encode { table: "transfers", source })?;
    Ok(word.trim_matches('"').into())
}

fn kind(word: &str) -> Result<TransferKind> {
    TransferKind::deserialize(word.into_deserializer())
        .map_err(|error: serde::de::value::Error| StoreError::Corrupt { table: "transfers", detail: error.to_string() })
}

impl Stored for Transfer {
    type Key = TransferId;

    fn table() -> &'static Table {
        &TRANSFERS
    }

    fn key(&self) -> TransferId {
        self.id
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([
            id(self.id.raw()),
            kind_word(self.kind)?,
            self.debit.to_string().into(),
            self.credit.to_string().into(),
            self.amount.into(),
            maybe_id(self.hold.map(HoldId::raw)),
            self.cause.as_str().into(),
            exact(self.at.nanos(), "the time of a transfer")?,
        ]);
        Ok(())
    }
}

/// Reads `id, kind, debit, credit, amount, hold, cause, at`.
pub(crate) fn transfer(record: &Record) -> Result<Transfer> {
    const TABLE: &str = "transfers";
    Ok(Transfer {
        id: TransferId::from_raw(record.unsigned(TABLE, 0)?),
        kind: kind(record.text(TABLE, 1)?)?,
        debit: record.parse(TABLE, 2)?,
        credit: record.parse(TABLE, 3)?,
        amount: record.int(TABLE, 4)?,
        hold: record.maybe_int(5).map(|raw| HoldId::from_raw(raw.cast_unsigned())),
        cause: record.text(TABLE, 6)?.to_owned(),
        at: Timestamp::from_nanos(record.unsigned(TABLE, 7)?),
    })
}

/// A request's UUID as two integers.
pub(crate) fn halves(key: &RequestKey) -> [Value; 2] {
    let uuid = u128::from_be_bytes(key.id);
    // The halves are only compared, so their signs do not matter.
    [(uuid >> 64) as u64, uuid as u64].map(|half| Value::from(half.cast_signed()))
}

impl Stored for Request {
    type Key = RequestKey;

    fn table() -> &'static Table {
        &REQUESTS
    }

    fn key(&self) -> RequestKey {
        self.key
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        let [high, low] = halves(&self.key);
        values.extend([id(self.key.by.raw()), high, low, instant(self.at), body("requests", self)?]);
        Ok(())
    }
}

impl Stored for Counters {
    type Key = ();

    fn table() -> &'static Table {
        &COUNTERS
    }

    fn key(&self) {}

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([Value::from(1_i64), body("counters", self)?]);
        Ok(())
    }
}
