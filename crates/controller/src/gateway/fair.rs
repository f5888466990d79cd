//! Who is next: first come first served within a tenant, and fair between tenants. Pure.

use std::collections::{BTreeMap, VecDeque};

use sluice_types::TenantId;

/// Requests of one tenant that may wait for one endpoint.
pub(super) const PER_TENANT: usize = 64;
/// Requests that may wait for one endpoint.
pub(super) const IN_ALL: usize = 1024;

/// What waits, by tenant.
#[derive(Debug)]
pub(super) struct Fair<T> {
    waiting: BTreeMap<TenantId, VecDeque<T>>,
    /// When each tenant that waits had its last turn, or came: whoever comes anew comes behind all that wait already,
    /// and so nobody is passed by those that come again and again.
    turns: BTreeMap<TenantId, u64>,
    turn: u64,
    count: usize,
}

impl<T> Default for Fair<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), turns: BTreeMap::new(), turn: 0, count: 0 }
    }
}

impl<T> Fair<T> {
    /// How much waits.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Puts something at the end of its tenant's line, or gives it back where there is no room. Where all are full
    /// together the newest of the longest line goes instead, and is given as `Ok(Some(_))`.
    pub(super) fn push(&mut self, tenant: TenantId, item: T) -> Result<Option<T>, T> {
        let length = self.waiting.get(&tenant).map_or(0, VecDeque::len);
        if length >= PER_TENANT {
            return Err(item);
        }
        let mut gone = None;
        if self.count >= IN_ALL {
            // Never one of a line that would then be the shorter one, so never the last of its line.
            let longest = self.waiting.values_mut().max_by_key(|line| line.len());
            let longest = longest.filter(|line| line.len() > length + 1);
            let Some(newest) = longest.and_then(VecDeque::pop_back) else { return Err(item) };
            gone = Some(newest);
            self.count -= 1;
        }
        if length == 0 {
            self.turn += 1;
            self.turns.entry(tenant).or_insert(self.turn);
        }
        self.waiting.entry(tenant).or_default().push_back(item);
        self.count += 1;
        Ok(gone)
    }

    /// Puts something that had its turn before at the front of its tenant's line.
    pub(super) fn push_front(&mut self, tenant: TenantId, item: T) {
        self.waiting.entry(tenant).or_default().push_front(item);
        self.count += 1;
    }

    /// Takes the next: of the tenants that `may`, the one with the fewest running, then the one whose last turn is
    /// longest ago.
    pub(super) fn pop(
        &mut self,
        may: impl Fn(TenantId) -> bool,
        running: impl Fn(TenantId) -> u32,
    ) -> Option<(TenantId, T)> {
        let turn = |tenant: &TenantId| self.turns.get(tenant).copied().unwrap_or(0);
        let next = self.waiting.keys().filter(|tenant| may(**tenant));
        let next = *next.min_by_key(|tenant| (running(**tenant), turn(tenant), **tenant))?;
        let line = self.waiting.get_mut(&next)?;
        let item = line.pop_front()?;
        self.count -= 1;
        self.turn += 1;
        if line.is_empty() {
            self.waiting.remove(&next);
            self.turns.remove(&next);
        } else {
            self.turns.insert(next, self.turn);
        }
        Some((next, item))
    }

    /// Leaves out what is not wanted any more.
    pub(super) fn retain(&mut self, wanted: impl Fn(&T) -> bool) {
        for line in self.waiting.values_mut() {
            line.retain(&wanted);
        }
        self.waiting.retain(|_, line| !line.is_empty());
        let waiting = &self.waiting;
        self.turns.retain(|tenant, _| waiting.contains_key(tenant));
        self.count = self.waiting.values().map(VecDeque::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(number: u64) -> TenantId {
        TenantId::from_raw(number)
    }

    fn drain(fair: &mut Fair<u32>) -> Vec<u32> {
        std::iter::from_fn(|| fair.pop(|_| true, |_| 0)).map(|(_, item)| item).collect()
    }

    #[test]
    fn within_a_tenant_the_first_is_first_and_tenants_take_turns() {
        let mut fair = Fair::default();
        for item in [10, 11, 12, 13] {
            fair.push(tenant(1), item).unwrap();
        }
        fair.push(tenant(2), 20).unwrap();
        fair.push(tenant(2), 21).unwrap();
        fair.push(tenant(3), 30).unwrap();
        assert_eq!(drain(&mut fair), [10, 20, 30, 11, 21, 12, 13]);
        assert!(fair.turns.is_empty() && fair.len() == 0);
    }

    #[test]
    fn a_late_tenant_is_next_and_one_with_less_running_is_before_one_with_more() {
        let mut fair = Fair::default();
        for item in 0..24 {
            fair.push(tenant(1), item).unwrap();
        }
        assert_eq!(fair.pop(|_| true, |_| 0), Some((tenant(1), 0)));
        fair.push(tenant(2), 100).unwrap();
        fair.push(tenant(2), 101).unwrap();
        let running = |who| if who == tenant(1) { 3 } else { 0 };
        assert_eq!(fair.pop(|_| true, running), Some((tenant(2), 100)));
        assert_eq!(fair.pop(|_| true, running), Some((tenant(2), 101)));
        // Who may not is passed over.
        assert_eq!(fair.pop(|who| who != tenant(1), running), None);
        fair.push_front(tenant(1), 99);
        assert_eq!(fair.pop(|_| true, running), Some((tenant(1), 99)));
    }

    #[test]
    fn a_late_tenant_is_not_passed_by_those_that_come_again_and_again() {
        let mut fair = Fair::default();
        for who in [1, 2] {
            fair.push(tenant(who), 0).unwrap();
        }
        for _ in 0..5 {
            // Each has one place and asks again when it had its turn.
            let (who, item) = fair.pop(|_| true, |_| 0).unwrap();
            fair.push(who, item).unwrap();
        }
        fair.push(tenant(3), 0).unwrap();
        let popped: Vec<_> = (0..3)
            .map(|_| {
                let (who, item) = fair.pop(|_| true, |_| 0).unwrap();
                fair.push(who, item).unwrap();
                who
            })
            .collect();
        assert!(popped.contains(&tenant(3)), "{popped:?}");
    }

    #[test]
    fn where_all_is_full_the_newest_of_the_longest_line_makes_room() {
        let mut fair = Fair::default();
        let lines = u64::try_from(IN_ALL / PER_TENANT).unwrap();
        for who in 0..lines {
            for item in 0..PER_TENANT {
                fair.push(tenant(who), item).unwrap();
            }
        }
        assert_eq!(fair.push(tenant(0), 7), Err(7), "its own line is full");
        assert_eq!(fair.push(tenant(99), 7), Ok(Some(PER_TENANT - 1)));
        assert_eq!(fair.len(), IN_ALL);
        assert_eq!(fair.pop(|who| who == tenant(99), |_| 0), Some((tenant(99), 7)));
    }

    #[test]
    fn lines_are_bounded_and_what_is_gone_leaves_no_trace() {
        let mut fair = Fair::default();
        for item in 0..PER_TENANT {
            fair.push(tenant(1), item).unwrap();
        }
        assert_eq!(fair.push(tenant(1), 7), Err(7));
        fair.push(tenant(2), 1000).unwrap();
        fair.retain(|item| *item >= 1000);
        assert_eq!((fair.len(), fair.waiting.len()), (1, 1));
        for who in 10.. {
            if fair.push(tenant(who), 0).is_err() {
                break;
            }
        }
        assert_eq!((fair.len(), fair.waiting.len()), (IN_ALL, IN_ALL));
    }
}
