//! Who has a place.

use super::{Draft, Key, Order, Stage, View, has_place};
use crate::fair::{Class, READ};

/// How much more a tenant must have been served than one without a place before it gives one of several up, in tokens read:
/// reading a sequence again is not free.
const PUT_OUT_AHEAD: u64 = 256;
/// The same before it gives up its only one, or as much as must be read again where that is more: tenants take turns, but not
/// every moment.
const TURN_AHEAD: u64 = 1_024;

impl<'a> Draft<'a> {
    /// Frees cells until those that are in places can go on.
    pub(super) fn make_room(&mut self) {
        while self.promised() > self.room.cells {
            let placed = self.views.values().filter(|view| has_place(view)).count();
            let Some(victim) = self.victim(|_| true).filter(|_| placed > 1) else { return };
            self.put_out(victim);
        }
    }

    /// Gives places to those that wait, best first.
    pub(super) fn admit(&mut self) {
        loop {
            let Some(next) = self.next_waiting() else { return };
            if self.fits(&next) {
                self.place(&next);
                continue;
            }
            // One at a time: what was put out for it is seen by the next step.
            let Some(victim) = self.victim_for(&next).filter(|_| self.step.put_out.is_empty()) else { return };
            self.put_out(victim);
            if self.fits(&next) {
                self.place(&next);
            }
            return;
        }
    }

    /// The best of those that wait and that some place is for.
    fn next_waiting(&self) -> Option<View<'a>> {
        let waiting = self.views.values().filter(|view| !has_place(view) && !self.step.put_out.contains(&view.key));
        let ordinary = self.room.slots > self.room.spare;
        let batch_first = self.fair.owed_to_batch() > 0;
        let rank = |view: &View<'a>| {
            let behind = (view.class == Class::Batch) != batch_first;
            match self.rules.order {
                Order::Fair => {
                    // A place that is kept for tenants that have none is for them first.
                    let kept = !ordinary && self.has_places(view.tenant);
                    (kept, behind, self.expected(view.tenant), view.arrived)
                }
                Order::Arrival => (false, false, 0, view.arrived),
            }
        };
        waiting.min_by_key(|view| rank(view)).copied()
    }

    fn has_places(&self, tenant: &str) -> bool {
        self.placed.get(tenant).is_some_and(|count| *count > 0)
    }

    /// A tenant's counter once the prompts that it has places for are read.
    fn expected(&self, tenant: &str) -> u64 {
        let left = self.views.values().filter(|view| view.tenant == tenant).map(|view| match view.stage {
            Stage::Reading { left } => u64::from(left),
            _ => 0,
        });
        self.fair.counter(tenant).saturating_add(self.fair.growth(tenant, left.sum::<u64>() * READ))
    }

    fn fits(&self, view: &View<'a>) -> bool {
        // By arrival nobody has a place kept: the control computes as wide as one tenant alone does.
        let kept = match self.rules.order {
            Order::Fair if !self.has_places(view.tenant) => 0,
            Order::Fair | Order::Arrival => self.room.spare,
        };
        let Stage::Waiting { tokens } = view.stage else { return false };
        self.room.slots > kept && self.promised().saturating_add(tokens).saturating_add(1) <= self.room.cells
    }

    fn place(&mut self, view: &View<'a>) {
        let Stage::Waiting { tokens } = view.stage else { return };
        self.views.insert(view.key, View { stage: Stage::Reading { left: tokens }, ..*view });
        *self.placed.entry(view.tenant).or_insert(0) += 1;
        self.room.slots -= 1;
        self.step.admit.push(view.key);
    }

    /// Who gives up a place for `next`: one whose reader is away; batch work for interactive work; or a sequence of a tenant
    /// that was served much more, for one that has no place at all.
    fn victim_for(&self, next: &View<'a>) -> Option<Key> {
        if self.rules.order == Order::Arrival {
            return None;
        }
        let homeless = !self.has_places(next.tenant);
        let counter = self.fair.counter(next.tenant);
        let owed = self.fair.owed_to_batch() > 0;
        self.victim(|view| {
            let several = self.placed.get(view.tenant).is_some_and(|count| *count > 1);
            let ahead = if several { PUT_OUT_AHEAD } else { TURN_AHEAD.max(view.cells.into()) };
            let ahead = counter.saturating_add(self.fair.growth(next.tenant, ahead * READ));
            let served_more = view.class >= next.class && self.fair.counter(view.tenant) > ahead;
            view.stage == Stage::Paused || (view.class > next.class && !owed) || (homeless && served_more)
        })
    }

    /// The first to go of those that `may`: paused ones, then batch work, then of the tenant that was served most, the newest.
    fn victim(&self, may: impl Fn(&View<'a>) -> bool) -> Option<Key> {
        let placed = self.views.values().filter(|view| has_place(view) && !self.step.admit.contains(&view.key));
        let rank =
            |view: &&View<'a>| (view.stage == Stage::Paused, view.class, self.fair.counter(view.tenant), view.arrived);
        placed.filter(|view| may(view)).max_by_key(rank).map(|view| view.key)
    }

    /// Takes a place away, with all that is in it.
    fn put_out(&mut self, key: Key) {
        let Some(view) = self.views.get_mut(&key) else { return };
        if let Some(count) = self.placed.get_mut(view.tenant) {
            *count -= 1;
        }
        self.room.slots += 1;
        self.room.cells += view.cells;
        self.room.used = self.room.used.saturating_sub(view.cells);
        *view = View { stage: Stage::Waiting { tokens: view.cells.max(1) }, cells: 0, ..*view };
        self.step.put_out.push(key);
    }
}
