//! Who was served how much: virtual token counters (VTC, "Fairness in Serving Large Language Models", OSDI'24). Pure.
//!
//! A tenant's counter grows by what it was served over its weight; who has the lowest is served next. A tenant that comes back
//! is lifted to the lowest counter of those that are there: it has no claim to what it did not ask for. Batch work has an
//! account of its own against interactive work: it is owed a floor.

use std::collections::BTreeMap;

/// What work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Somebody waits for each token.
    Interactive,
    /// Somebody waits for the whole.
    Batch,
}

/// Service of a token of a prompt.
pub const READ: u64 = 1;
/// Service of a generated token: it takes two to four times as long as one that is read, by the batch it is in.
pub const DECODE: u64 = 2;
/// Batch work's floor: one in so many parts of all service while both want some.
const BATCH_PART: i64 = 10;
/// What batch work is owed at most, so that a long wait does not become a long preference. Service, in [`BATCH_PART`] less
/// one parts.
const OWED_BOUND: i64 = 512 * (BATCH_PART - 1);
/// A counter's step for one unit of service at weight 1.
const SCALE: u64 = 1_000_000;
/// Counters of tenants that want nothing now are kept while they are above the floor, at most so many.
const IDLE_BOUND: usize = 4_096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Account {
    counter: u64,
    weight: u32,
    wants: bool,
}

/// The counters of all tenants.
#[derive(Debug, Clone, Default)]
pub struct Fair {
    accounts: BTreeMap<String, Account>,
    /// The lowest counter of those that want something; never goes back.
    floor: u64,
    /// What batch work is owed, in parts of a unit of service.
    owed: i64,
}

impl Fair {
    /// These tenants, with their weights, want something now.
    pub fn want<'a>(&mut self, tenants: impl IntoIterator<Item = (&'a str, u32)>) {
        let mut wanting = BTreeMap::new();
        for (tenant, weight) in tenants {
            wanting.insert(tenant, weight.clamp(1, 1_000));
        }
        let staying =
            self.accounts.iter().filter(|(tenant, account)| account.wants && wanting.contains_key(tenant.as_str()));
        self.floor = self.floor.max(staying.map(|(_, account)| account.counter).min().unwrap_or(0));
        for (tenant, weight) in &wanting {
            match self.accounts.get_mut(*tenant) {
                Some(account) => {
                    if !account.wants {
                        account.counter = account.counter.max(self.floor);
                    }
                    (account.weight, account.wants) = (*weight, true);
                }
                None => {
                    let account = Account { counter: self.floor, weight: *weight, wants: true };
                    self.accounts.insert((*tenant).to_owned(), account);
                }
            }
        }
        for (tenant, account) in &mut self.accounts {
            account.wants = wanting.contains_key(tenant.as_str());
        }
        self.forget();
    }

    /// A counter at the floor says no more than no counter.
    fn forget(&mut self) {
        let floor = self.floor;
        self.accounts.retain(|_, account| account.wants || account.counter > floor);
        let idle = self.accounts.values().filter(|account| !account.wants).count();
        if idle <= IDLE_BOUND {
            return;
        }
        let mut counters: Vec<u64> =
            self.accounts.values().filter(|account| !account.wants).map(|account| account.counter).collect();
        counters.sort_unstable();
        let least = counters[idle - IDLE_BOUND - 1];
        self.accounts.retain(|_, account| account.wants || account.counter > least);
    }

    /// A tenant was served so much. `both` says whether interactive and batch work want something at once.
    pub fn charge(&mut self, tenant: &str, class: Class, service: u64, both: bool) {
        if let Some(account) = self.accounts.get_mut(tenant) {
            account.counter = account.counter.saturating_add(step(service, account.weight));
        }
        let parts = i64::try_from(service).unwrap_or(i64::MAX);
        self.owed = match (both, class) {
            (false, _) => 0,
            (true, Class::Interactive) => self.owed.saturating_add(parts),
            (true, Class::Batch) => self.owed.saturating_sub(parts.saturating_mul(BATCH_PART - 1)),
        }
        .clamp(-OWED_BOUND, OWED_BOUND);
    }

    /// A tenant's counter. Of one that was never seen, the floor.
    #[must_use]
    pub fn counter(&self, tenant: &str) -> u64 {
        self.accounts.get(tenant).map_or(self.floor, |account| account.counter)
    }

    /// What a tenant's counter would grow by for so much service.
    #[must_use]
    pub fn growth(&self, tenant: &str, service: u64) -> u64 {
        step(service, self.accounts.get(tenant).map_or(1, |account| account.weight))
    }

    /// Service that batch work is owed, although interactive work wants more.
    #[must_use]
    pub fn owed_to_batch(&self) -> u64 {
        u64::try_from(self.owed / (BATCH_PART - 1)).unwrap_or(0)
    }

    /// How many counters are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.accounts.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }
}

/// The counter's step for so much service.
#[must_use]
pub fn step(service: u64, weight: u32) -> u64 {
    service.saturating_mul(SCALE) / u64::from(weight.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_that_comes_back_is_lifted_to_the_lowest_that_is_there() {
        let mut fair = Fair::default();
        fair.want([("a", 1), ("b", 1)]);
        fair.charge("a", Class::Interactive, 100, false);
        fair.charge("b", Class::Interactive, 40, false);
        fair.want([("a", 1), ("b", 1), ("c", 1)]);
        assert_eq!([fair.counter("a"), fair.counter("b"), fair.counter("c")], [100, 40, 40].map(|units| units * SCALE));
        // b leaves; what a owes stays where it is, and b has no claim to the time that it was away.
        fair.want([("a", 1)]);
        fair.charge("a", Class::Interactive, 100, false);
        fair.want([("a", 1)]);
        fair.want([("a", 1), ("b", 1)]);
        assert_eq!(fair.counter("b"), 200 * SCALE);
    }

    #[test]
    fn who_leaves_and_comes_back_keeps_what_it_was_served() {
        let mut fair = Fair::default();
        fair.want([("a", 1), ("b", 1)]);
        fair.charge("a", Class::Interactive, 500, false);
        fair.want([("b", 1)]);
        fair.want([("a", 1), ("b", 1)]);
        assert_eq!([fair.counter("a"), fair.counter("b")], [500 * SCALE, 0]);
    }

    #[test]
    fn weights_divide_what_is_counted() {
        let mut fair = Fair::default();
        fair.want([("a", 3), ("b", 1), ("c", 0)]);
        for tenant in ["a", "b", "c"] {
            fair.charge(tenant, Class::Interactive, 30, false);
        }
        assert_eq!([fair.counter("a"), fair.counter("b"), fair.counter("c")], [10, 30, 30].map(|units| units * SCALE));
    }

    #[test]
    fn batch_work_is_owed_a_tenth_while_both_want_some() {
        let mut fair = Fair::default();
        fair.want([("a", 1)]);
        fair.charge("a", Class::Interactive, 90, true);
        assert_eq!(fair.owed_to_batch(), 10);
        fair.charge("a", Class::Batch, 10, true);
        assert_eq!(fair.owed_to_batch(), 0);
        fair.charge("a", Class::Interactive, 90_000, true);
        assert_eq!(fair.owed_to_batch(), 512);
        fair.charge("a", Class::Interactive, 1, false);
        assert_eq!(fair.owed_to_batch(), 0);
    }

    #[test]
    fn counters_of_the_absent_are_bounded() {
        let mut fair = Fair::default();
        for number in 0..10_000_u64 {
            let tenant = number.to_string();
            fair.want([("base", 1), (&tenant, 1)]);
            fair.charge(&tenant, Class::Interactive, number + 1, false);
        }
        fair.want([("base", 1)]);
        assert_eq!(fair.len(), IDLE_BOUND + 1);
        // Those that were served most are remembered.
        assert_eq!(fair.counter("9999"), 10_000 * SCALE);
        fair.charge("base", Class::Interactive, 20_000, false);
        fair.want([("base", 1)]);
        assert_eq!(fair.len(), 1);
    }
}
