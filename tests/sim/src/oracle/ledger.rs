//! Double entry, again: accounts and holds rebuilt from nothing but transfers.

use std::collections::{BTreeMap, BTreeSet};

use sluice_ledger::{AccountKey, Transfer, TransferKind};
use sluice_lifecycle::Rows;
use sluice_types::{HoldId, LeaseId};

use super::Oracle;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sums {
    debits_pending: i128,
    debits: i128,
    credits_pending: i128,
    credits: i128,
    line: i128,
}

/// All accounts, and what is left of open holds.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    accounts: BTreeMap<AccountKey, Sums>,
    holds: BTreeMap<HoldId, (AccountKey, AccountKey, i128)>,
}

impl Ledger {
    /// A hold that promises something; those of quotas stay open with nothing.
    pub(crate) fn open_hold(&self) -> Option<HoldId> {
        let quota = |debit: &AccountKey| debit.unit() == sluice_ledger::Unit::Quota;
        self.holds.iter().find(|(_, (debit, _, left))| *left > 0 || !quota(debit)).map(|(id, _)| *id)
    }

    pub(crate) fn remaining(&self, hold: HoldId) -> i128 {
        self.holds.get(&hold).map_or(0, |hold| hold.2)
    }

    /// What an account may still promise; nothing where it is not known.
    pub(crate) fn available(&self, key: &AccountKey) -> i128 {
        let sums = self.accounts.get(key).copied().unwrap_or_default();
        sums.credits + sums.line - sums.debits - sums.debits_pending
    }

    /// What is promised of an account, and its line.
    pub(crate) fn standing(&self, key: &AccountKey) -> (i128, i128) {
        let sums = self.accounts.get(key).copied().unwrap_or_default();
        (sums.debits_pending, sums.line)
    }

    pub(crate) fn is_open(&self, hold: HoldId) -> bool {
        self.holds.contains_key(&hold)
    }

    fn sums(&mut self, key: &AccountKey) -> &mut Sums {
        self.accounts.entry(key.clone()).or_default()
    }

    fn promise(&mut self, debit: &AccountKey, credit: &AccountKey, amount: i128) {
        self.sums(debit).debits_pending += amount;
        self.sums(credit).credits_pending += amount;
    }

    fn give(&mut self, debit: &AccountKey, credit: &AccountKey, amount: i128) {
        self.sums(debit).debits += amount;
        self.sums(credit).credits += amount;
    }

    /// Applies one transfer.
    fn apply(&mut self, transfer: &Transfer) -> Result<(), String> {
        let amount = i128::from(transfer.amount);
        let (debit, credit) = (&transfer.debit, &transfer.credit);
        if transfer.kind == TransferKind::Line {
            self.sums(debit).line += amount;
            return Ok(());
        }
        if amount < 0 || debit == credit || debit.unit() != credit.unit() {
            return Err("is malformed".to_owned());
        }
        let known = transfer.hold.and_then(|hold| self.holds.get(&hold).cloned());
        let (left, id) = (known.as_ref().map_or(0, |hold| hold.2), transfer.hold);
        match (transfer.kind, id) {
            (TransferKind::Single, _) => self.give(debit, credit, amount),
            (TransferKind::Hold, Some(id)) if known.is_none() => {
                self.promise(debit, credit, amount);
                self.holds.insert(id, (debit.clone(), credit.clone(), amount));
            }
            (_, Some(id)) => {
                let Some((from, to, _)) = known else { return Err("names a hold that is not open".to_owned()) };
                if (&from, &to) != (debit, credit) {
                    return Err("names other accounts than its hold".to_owned());
                }
                let rest = if transfer.kind == TransferKind::Extend { left + amount } else { left - amount };
                if rest < 0 || (transfer.kind == TransferKind::Void && rest != 0) {
                    return Err(format!("leaves {rest} of its hold"));
                }
                self.promise(debit, credit, if transfer.kind == TransferKind::Extend { amount } else { -amount });
                if transfer.kind == TransferKind::Post {
                    self.give(debit, credit, amount);
                }
                match transfer.kind {
                    TransferKind::Void => drop(self.holds.remove(&id)),
                    _ => drop(self.holds.insert(id, (from, to, rest))),
                }
            }
            _ => return Err("opens a hold twice, or none".to_owned()),
        }
        let promises = matches!(transfer.kind, TransferKind::Single | TransferKind::Hold | TransferKind::Extend);
        let sums = *self.sums(debit);
        let over = sums.debits + sums.debits_pending > sums.credits + sums.line;
        if promises && amount > 0 && debit.is_limited() && over {
            return Err(format!("overdraws {debit}: {sums:?}"));
        }
        Ok(())
    }
}

/// What a cause says of a window: its lease and number, where it is one.
fn window_of<'a>(cause: &'a str, kind: &str) -> Option<(LeaseId, u64, Option<&'a str>)> {
    let mut parts = cause.split('/');
    if parts.next()? != kind {
        return None;
    }
    let lease = parts.next()?.parse().ok()?;
    let sequence = parts.next()?.parse().ok()?;
    Some((lease, sequence, parts.next()))
}

impl Oracle {
    /// Every transfer of a commit; then the accounts that it claims.
    pub(crate) fn check_ledger(&mut self, now: u64, rows: &Rows) {
        let mut touched: BTreeSet<&AccountKey> = BTreeSet::new();
        for transfer in &rows.transfers {
            touched.insert(&transfer.debit);
            touched.insert(&transfer.credit);
            let left = transfer.hold.map_or(0, |hold| self.ledger.remaining(hold));
            if let Err(broken) = self.ledger.apply(transfer) {
                self.fail(now, format!("transfer {} ({:?}) {broken}", transfer.cause, transfer.kind));
            }
            if let Some((lease, sequence, None)) = window_of(&transfer.cause, "window") {
                self.posted(now, lease, sequence, (i128::from(transfer.amount), left));
            }
            if let Some((lease, sequence, None)) = window_of(&transfer.cause, "credit") {
                self.credited(now, lease, sequence, transfer);
            }
        }
        for key in touched {
            if !rows.accounts.iter().any(|row| row.key == *key) {
                self.fail(now, format!("the row of {key} is not written with its transfer"));
            }
        }
        for row in &rows.accounts {
            let told = Sums {
                debits_pending: row.debits_pending.into(),
                debits: row.debits_posted.into(),
                credits_pending: row.credits_pending.into(),
                credits: row.credits_posted.into(),
                line: row.line.into(),
            };
            let mine = *self.ledger.sums(&row.key);
            if told != mine {
                self.fail(now, format!("{} claims {told:?}, its transfers give {mine:?}", row.key));
            }
        }
        for row in &rows.holds {
            let mine = self.ledger.remaining(row.id);
            if i128::from(row.remaining) != mine || row.closed == self.ledger.is_open(row.id) {
                self.fail(now, format!("hold {} claims {}, its transfers give {mine}", row.id, row.remaining));
            }
        }
    }
}
