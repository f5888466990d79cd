//! The books: all accounts and open holds, and the only code that changes them.

use std::collections::{BTreeMap, BTreeSet};

use sluice_types::{HoldId, Timestamp, TransferId};

use crate::{Account, AccountKey, Hold, Transfer, TransferKind};

/// Why the books refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// A limited account cannot give that much.
    #[error("{account} lacks {missing} of {amount}")]
    Insufficient {
        /// The account.
        account: AccountKey,
        /// What was asked.
        amount: i64,
        /// How much more it would have to have.
        missing: i64,
    },
    /// The hold is closed or was never opened.
    #[error("hold {0} is not open")]
    NoSuchHold(HoldId),
    /// The amount is more than what is left of the hold.
    #[error("hold {hold} has {remaining} left, {amount} asked")]
    BeyondHold {
        /// The hold.
        hold: HoldId,
        /// What is left of it.
        remaining: i64,
        /// What was asked.
        amount: i64,
    },
    /// A negative amount, a transfer within one account or between units, or a sum outside the range.
    #[error("invariant of a transfer broken: {0}")]
    Malformed(&'static str),
}

/// Accounts and open holds, with what changed since [`Books::take_touched`].
#[derive(Debug, Clone, Default)]
pub struct Books {
    accounts: BTreeMap<AccountKey, Account>,
    holds: BTreeMap<HoldId, Hold>,
    touched_accounts: BTreeSet<AccountKey>,
    touched_holds: BTreeSet<HoldId>,
    closed_holds: BTreeMap<HoldId, Hold>,
}

/// Equal books hold the same balances and promises; what was touched since the last commit does not count.
impl PartialEq for Books {
    fn eq(&self, other: &Self) -> bool {
        self.accounts == other.accounts && self.holds == other.holds
    }
}

impl Eq for Books {}

impl Books {
    /// Books from stored rows. Closed holds are left out.
    #[must_use]
    pub fn from_rows(accounts: impl IntoIterator<Item = Account>, holds: impl IntoIterator<Item = Hold>) -> Self {
        Self {
            accounts: accounts.into_iter().map(|account| (account.key.clone(), account)).collect(),
            holds: holds.into_iter().filter(|hold| !hold.closed).map(|hold| (hold.id, hold)).collect(),
            ..Self::default()
        }
    }

    /// An account as it stands; empty where it has no history.
    #[must_use]
    pub fn account(&self, key: &AccountKey) -> Account {
        self.accounts.get(key).cloned().unwrap_or_else(|| Account::empty(key.clone()))
    }

    /// Whether the account has ever been used.
    #[must_use]
    pub fn knows(&self, key: &AccountKey) -> bool {
        self.accounts.contains_key(key)
    }

    /// What a limited account can still promise.
    #[must_use]
    pub fn available(&self, key: &AccountKey) -> i64 {
        self.accounts.get(key).map_or(0, Account::available)
    }

    /// An open hold.
    #[must_use]
    pub fn hold(&self, id: HoldId) -> Option<&Hold> {
        self.holds.get(&id)
    }

    /// All accounts, by key.
    pub fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.accounts.values()
    }

    /// All open holds, by id.
    pub fn holds(&self) -> impl Iterator<Item = &Hold> {
        self.holds.values()
    }

    /// Moves `amount` at once.
    ///
    /// # Errors
    /// [`LedgerError::Insufficient`] where the debit account is limited and lacks it; [`LedgerError::Malformed`].
    pub fn transfer(
        &mut self,
        id: TransferId,
        (debit, credit): (AccountKey, AccountKey),
        amount: i64,
        cause: String,
        at: Timestamp,
    ) -> Result<Transfer, LedgerError> {
        self.check(&debit, &credit, amount)?;
        self.entry(&debit).debits_posted += amount;
        self.entry(&credit).credits_posted += amount;
        Ok(Transfer { id, kind: TransferKind::Single, debit, credit, amount, hold: None, cause, at })
    }

    /// Promises `amount` and opens a hold.
    ///
    /// # Errors
    /// As [`Books::transfer`].
    pub fn open_hold(
        &mut self,
        id: TransferId,
        hold: HoldId,
        (debit, credit): (AccountKey, AccountKey),
        amount: i64,
        cause: String,
        at: Timestamp,
    ) -> Result<Transfer, LedgerError> {
        if self.holds.contains_key(&hold) {
            return Err(LedgerError::Malformed("a hold is opened once"));
        }
        self.check(&debit, &credit, amount)?;
        self.entry(&debit).debits_pending += amount;
        self.entry(&credit).credits_pending += amount;
        let row = Hold { id: hold, debit: debit.clone(), credit: credit.clone(), remaining: amount, closed: false };
        self.holds.insert(hold, row);
        self.touched_holds.insert(hold);
        Ok(Transfer { id, kind: TransferKind::Hold, debit, credit, amount, hold: Some(hold), cause, at })
    }

    /// Promises `amount` more under an open hold.
    ///
    /// # Errors
    /// [`LedgerError::NoSuchHold`], and as [`Books::transfer`].
    pub fn extend(
        &mut self,
        id: TransferId,
        hold: HoldId,
        amount: i64,
        cause: String,
        at: Timestamp,
    ) -> Result<Transfer, LedgerError> {
        let row = self.holds.get(&hold).ok_or(LedgerError::NoSuchHold(hold))?;
        let (debit, credit) = (row.debit.clone(), row.credit.clone());
        self.check(&debit, &credit, amount)?;
        self.move_pending(hold, &debit, &credit, amount);
        Ok(Transfer { id, kind: TransferKind::Extend, debit, credit, amount, hold: Some(hold), cause, at })
    }

    /// Gives back a part of what is left of a hold, which stays open.
    ///
    /// # Errors
    /// [`LedgerError::NoSuchHold`], [`LedgerError::BeyondHold`], [`LedgerError::Malformed`].
    pub fn reduce(
        &mut self,
        id: TransferId,
        hold: HoldId,
        amount: i64,
        cause: String,
        at: Timestamp,
    ) -> Result<Transfer, LedgerError> {
        if amount < 0 {
            return Err(LedgerError::Malformed("an amount is not negative"));
        }
        let row = self.holds.get(&hold).ok_or(LedgerError::NoSuchHold(hold))?;
        if amount > row.remaining {
            return Err(LedgerError::BeyondHold { hold, remaining: row.remaining, amount });
        }
        let (debit, credit) = (row.debit.clone(), row.credit.clone());
        self.move_pending(hold, &debit, &credit, -amount);
        Ok(Transfer { id, kind: TransferKind::Reduce, debit, credit, amount, hold: Some(hold), cause, at })
    }

    /// Moves a part of a hold.
    ///
    /// # Errors
    /// [`LedgerError::NoSuchHold`], [`LedgerError::BeyondHold`], [`LedgerError::Malformed`].
    pub fn post(
        &mut self,
        id: TransferId,
        hold: HoldId,
        amount: i64,
        cause: String,
        at: Timestamp,
    ) -> Result<Transfer, LedgerError> {
        if amount < 0 {
            return Err(LedgerError::Malformed("an amount is not negative"));
        }
        let row = self.holds.get_mut(&hold).ok_or(LedgerError::NoSuchHold(hold))?;
        if amount > row.remaining {
            return Err(LedgerError::BeyondHold { hold, remaining: row.remaining, amount });
        }
        row.remaining -= amount;
        let (debit, credit) = (row.debit.clone(), row.credit.clone());
        self.touched_holds.insert(hold);
        let giver = self.entry(&debit);
        giver.debits_pending -= amount;
        giver.debits_posted += amount;
        let taker = self.entry(&credit);
        taker.credits_pending -= amount;
        taker.credits_posted += amount;
        Ok(Transfer { id, kind: TransferKind::Post, debit, credit, amount, hold: Some(hold), cause, at })
    }

    /// Gives back what is left of a hold and closes it.
    ///
    /// # Errors
    /// [`LedgerError::NoSuchHold`].
    pub fn void(
        &mut self,
        id: TransferId,
        hold: HoldId,
        cause: String,
        at: Timestamp,
    ) -> Result<Transfer, LedgerError> {
        let mut row = self.holds.remove(&hold).ok_or(LedgerError::NoSuchHold(hold))?;
        let amount = row.remaining;
        let (debit, credit) = (row.debit.clone(), row.credit.clone());
        self.entry(&debit).debits_pending -= amount;
        self.entry(&credit).credits_pending -= amount;
        (row.remaining, row.closed) = (0, true);
        self.closed_holds.insert(hold, row);
        self.touched_holds.insert(hold);
        Ok(Transfer { id, kind: TransferKind::Void, debit, credit, amount, hold: Some(hold), cause, at })
    }

    /// Moves the line of a limited account by `change`; a line below what is already used only stops new promises.
    ///
    /// # Errors
    /// [`LedgerError::Malformed`] where the account is not limited or the line would be negative.
    pub fn move_line(
        &mut self,
        id: TransferId,
        account: AccountKey,
        change: i64,
        cause: String,
        at: Timestamp,
    ) -> Result<Transfer, LedgerError> {
        if !account.is_limited() {
            return Err(LedgerError::Malformed("only a limited account has a line"));
        }
        let line = self.account(&account).line.checked_add(change).filter(|line| *line >= 0);
        let line = line.ok_or(LedgerError::Malformed("a line is not negative and fits 63 bits"))?;
        self.entry(&account).line = line;
        let credit = account.clone();
        Ok(Transfer { id, kind: TransferKind::Line, debit: account, credit, amount: change, hold: None, cause, at })
    }

    /// The rows that changed since the last call: to be written in the transaction that writes the transfers.
    pub fn take_touched(&mut self) -> (Vec<Account>, Vec<Hold>) {
        let accounts = std::mem::take(&mut self.touched_accounts);
        let accounts = accounts.iter().filter_map(|key| self.accounts.get(key).cloned()).collect();
        let closed = std::mem::take(&mut self.closed_holds);
        let holds = std::mem::take(&mut self.touched_holds);
        let holds = holds.iter().filter_map(|id| self.holds.get(id).or_else(|| closed.get(id)).cloned()).collect();
        (accounts, holds)
    }

    /// Replays one stored transfer. Used to check that accounts are the sum of their transfers.
    ///
    /// # Errors
    /// As the operation that the transfer's kind names.
    pub fn replay(&mut self, transfer: &Transfer) -> Result<(), LedgerError> {
        let (id, at, cause) = (transfer.id, transfer.at, transfer.cause.clone());
        let sides = (transfer.debit.clone(), transfer.credit.clone());
        let hold = || transfer.hold.ok_or(LedgerError::Malformed("this kind of transfer names a hold"));
        let again = match transfer.kind {
            TransferKind::Single => self.transfer(id, sides, transfer.amount, cause, at)?,
            TransferKind::Hold => self.open_hold(id, hold()?, sides, transfer.amount, cause, at)?,
            TransferKind::Extend => self.extend(id, hold()?, transfer.amount, cause, at)?,
            TransferKind::Reduce => self.reduce(id, hold()?, transfer.amount, cause, at)?,
            TransferKind::Post => self.post(id, hold()?, transfer.amount, cause, at)?,
            TransferKind::Void => self.void(id, hold()?, cause, at)?,
            TransferKind::Line => self.move_line(id, sides.0, transfer.amount, cause, at)?,
        };
        if again == *transfer { Ok(()) } else { Err(LedgerError::Malformed("a replayed transfer differs")) }
    }

    /// Checks double entry and every limit; cheap enough to run after each commit of a test and once at start.
    ///
    /// # Errors
    /// [`LedgerError::Malformed`] names the broken law.
    pub fn audit(&self) -> Result<(), LedgerError> {
        let mut sums: BTreeMap<crate::Unit, (i128, i128)> = BTreeMap::new();
        for account in self.accounts.values() {
            let sum = sums.entry(account.key.unit()).or_default();
            sum.0 += i128::from(account.debits_posted) - i128::from(account.credits_posted);
            sum.1 += i128::from(account.debits_pending) - i128::from(account.credits_pending);
            let parts =
                [account.debits_pending, account.debits_posted, account.credits_pending, account.credits_posted];
            if parts.iter().any(|part| *part < 0) {
                return Err(LedgerError::Malformed("a running sum is negative"));
            }
        }
        if sums.values().any(|sum| *sum != (0, 0)) {
            return Err(LedgerError::Malformed("debits and credits differ"));
        }
        let mut promised: BTreeMap<&AccountKey, i64> = BTreeMap::new();
        for hold in self.holds.values() {
            *promised.entry(&hold.debit).or_default() += hold.remaining;
        }
        let pending = |account: &Account| promised.get(&account.key).copied().unwrap_or(0) == account.debits_pending;
        if !self.accounts.values().all(pending) {
            return Err(LedgerError::Malformed("pending debits are not the sum of open holds"));
        }
        Ok(())
    }

    /// Changes what an open hold promises on both of its sides.
    fn move_pending(&mut self, hold: HoldId, debit: &AccountKey, credit: &AccountKey, change: i64) {
        self.entry(debit).debits_pending += change;
        self.entry(credit).credits_pending += change;
        if let Some(row) = self.holds.get_mut(&hold) {
            row.remaining += change;
        }
        self.touched_holds.insert(hold);
    }

    fn entry(&mut self, key: &AccountKey) -> &mut Account {
        self.touched_accounts.insert(key.clone());
        self.accounts.entry(key.clone()).or_insert_with(|| Account::empty(key.clone()))
    }

    fn check(&self, debit: &AccountKey, credit: &AccountKey, amount: i64) -> Result<(), LedgerError> {
        if amount < 0 {
            return Err(LedgerError::Malformed("an amount is not negative"));
        }
        if debit == credit || debit.unit() != credit.unit() {
            return Err(LedgerError::Malformed("a transfer joins two accounts of one unit"));
        }
        // A quarter of the range is 4.6e12 of the currency: room for any sum of a pending and a posted side.
        const BOUND: i64 = i64::MAX / 4;
        for key in [debit, credit] {
            let account = self.account(key);
            let most = account.debits_posted.max(account.credits_posted).saturating_add(account.debits_pending);
            if most.saturating_add(account.credits_pending).saturating_add(amount) > BOUND {
                return Err(LedgerError::Malformed("a sum leaves the range"));
            }
        }
        if debit.is_limited() {
            let available = self.available(debit);
            if amount > available.max(0) {
                let missing = amount.saturating_sub(available);
                return Err(LedgerError::Insufficient { account: debit.clone(), amount, missing });
            }
        }
        Ok(())
    }
}
