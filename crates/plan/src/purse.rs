//! Mirrored balances, what placements in flight have promised of them, and the prices.
//!
//! Never changes a balance: rows come from the ledger and are only read. A promise is what a placement that is not
//! committed yet will hold.

use std::collections::BTreeMap;

use sluice_ledger::{Account, AccountKey, PriceBook};

use crate::hash::Lookup;
use crate::want::Want;

/// A question of the kind "what if this account had more?".
#[derive(Debug, Clone)]
pub(crate) struct Gift {
    pub(crate) account: AccountKey,
    pub(crate) amount: i128,
    /// The least further amount that turns a refusal seen since into an approval.
    pub(crate) next: Option<i128>,
}

/// An account as far as it is known.
#[derive(Debug, Clone, Default)]
struct Entry {
    /// The committed row; `None` where only promises name the account.
    row: Option<Account>,
    /// What placements in flight will hold.
    promised: i128,
}

/// Accounts and prices as last committed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Purse {
    accounts: Lookup<AccountKey, Entry>,
    prices: Option<PriceBook>,
    edition: u64,
    pub(crate) gift: Option<Gift>,
}

impl PartialEq for Purse {
    fn eq(&self, other: &Self) -> bool {
        let rows = |purse: &'_ Self| -> BTreeMap<AccountKey, Account> {
            let row = |(key, entry): (&AccountKey, &Entry)| Some((key.clone(), entry.row.clone()?));
            purse.accounts.iter().filter_map(row).collect()
        };
        rows(self) == rows(other) && self.prices == other.prices
    }
}

impl Purse {
    /// Changes with the price book.
    pub(crate) const fn edition(&self) -> u64 {
        self.edition
    }

    pub(crate) const fn prices(&self) -> Option<&PriceBook> {
        self.prices.as_ref()
    }

    pub(crate) fn set_account(&mut self, account: &Account) {
        match self.accounts.get_mut(&account.key) {
            Some(entry) => entry.row = Some(account.clone()),
            None => {
                let entry = Entry { row: Some(account.clone()), promised: 0 };
                self.accounts.insert(account.key.clone(), entry);
            }
        }
    }

    pub(crate) fn set_prices(&mut self, prices: &PriceBook) {
        if self.prices.as_ref() != Some(prices) {
            self.prices = Some(prices.clone());
            self.edition += 1;
        }
    }

    /// Whether the account exists.
    pub(crate) fn knows(&self, key: &AccountKey) -> bool {
        self.accounts.get(key).is_some_and(|entry| entry.row.is_some())
    }

    /// How much of `amount` the account lacks, zero where it covers it. An amount of nothing is always covered, as
    /// in the ledger.
    pub(crate) fn lacks(&mut self, key: &AccountKey, amount: i64) -> i128 {
        let lacking = self.lacking(key, amount);
        if lacking > 0
            && let Some(gift) = &mut self.gift
            && gift.account == *key
        {
            gift.next = Some(gift.next.map_or(lacking, |next| next.min(lacking)));
        }
        lacking
    }

    /// Promises (or, with a negative amount, takes back) the money that a placement of `want` holds.
    pub(crate) fn promise(&mut self, want: &Want, hold: i128) {
        self.add(&AccountKey::Funds(want.tenant), hold);
        for key in want.budgets() {
            self.add(key, hold);
        }
    }

    fn add(&mut self, key: &AccountKey, amount: i128) {
        if amount == 0 {
            return;
        }
        match self.accounts.get_mut(key) {
            Some(entry) => {
                entry.promised += amount;
                if entry.promised == 0 && entry.row.is_none() {
                    self.accounts.remove(key);
                }
            }
            None => {
                self.accounts.insert(key.clone(), Entry { row: None, promised: amount });
            }
        }
    }

    fn lacking(&self, key: &AccountKey, amount: i64) -> i128 {
        if amount <= 0 {
            return 0;
        }
        let gift = self.gift.as_ref().filter(|gift| gift.account == *key).map_or(0, |gift| gift.amount);
        let available = self.accounts.get(key).map_or(0, |entry| {
            entry.row.as_ref().map_or(0, |account| i128::from(account.available())) - entry.promised
        });
        (i128::from(amount) - available - gift).max(0)
    }
}
