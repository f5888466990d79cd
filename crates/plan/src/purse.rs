//! Mirrored balances, what placements in flight have promised of them, and the prices.
//!
//! Never changes a balance: rows come from the ledger and are only read. A promise is what a placement that is not
//! committed yet will hold.

use sluice_ledger::{Account, AccountKey, PriceBook};

use crate::hash::Lookup;
use crate::view::Purpose;
use crate::want::Want;

/// A question of the kind "what if this account had more?".
#[derive(Debug, Clone)]
pub(crate) struct Gift {
    pub(crate) account: AccountKey,
    pub(crate) amount: i128,
    /// The least further amount that turns a refusal seen since into an approval.
    pub(crate) next: Option<i128>,
}

/// Accounts and prices as last committed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Purse {
    accounts: Lookup<AccountKey, Account>,
    promised: Lookup<AccountKey, i128>,
    prices: Option<PriceBook>,
    edition: u64,
    pub(crate) gift: Option<Gift>,
}

impl PartialEq for Purse {
    fn eq(&self, other: &Self) -> bool {
        self.accounts == other.accounts && self.prices == other.prices
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
        self.accounts.insert(account.key.clone(), account.clone());
    }

    pub(crate) fn set_prices(&mut self, prices: &PriceBook) {
        if self.prices.as_ref() != Some(prices) {
            self.prices = Some(prices.clone());
            self.edition += 1;
        }
    }

    /// Whether the account exists.
    pub(crate) fn knows(&self, key: &AccountKey) -> bool {
        self.accounts.contains_key(key)
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

    /// Promises (or, with a negative amount, takes back) what a placement of `want` holds.
    pub(crate) fn promise(&mut self, want: &Want, hold: i128, quota: i128) {
        self.add(AccountKey::Funds(want.tenant), hold);
        for key in want.budgets() {
            self.add(key.clone(), hold);
        }
        if want.purpose == Purpose::Run {
            self.add(want.quota_key(), quota);
        }
    }

    fn add(&mut self, key: AccountKey, amount: i128) {
        if amount == 0 {
            return;
        }
        let promised = self.promised.entry(key.clone()).or_default();
        *promised += amount;
        if *promised == 0 {
            self.promised.remove(&key);
        }
    }

    fn lacking(&self, key: &AccountKey, amount: i64) -> i128 {
        if amount <= 0 {
            return 0;
        }
        let gift = self.gift.as_ref().filter(|gift| gift.account == *key).map_or(0, |gift| gift.amount);
        let available = self.accounts.get(key).map_or(0, |account| i128::from(account.available())) + gift
            - self.promised.get(key).copied().unwrap_or(0);
        (i128::from(amount) - available).max(0)
    }
}
