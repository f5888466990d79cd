//! Who takes part in the step.

use std::collections::BTreeMap;

use super::{Draft, Key, Order, Stage, View};
use crate::cost::{CostModel, Shape};
use crate::engine::READ_QUANTUM;
use crate::fair::{Class, DECODE, READ};

/// Batch work may make a step of interactive work so much longer.
const BATCH_BESIDE: f64 = 1.25;

/// Service that would be given by this step, over what was given before it.
struct Counters<'a, 'b> {
    draft: &'b Draft<'a>,
    given: BTreeMap<&'a str, u64>,
}

impl<'a> Counters<'a, '_> {
    fn of(&self, tenant: &'a str) -> u64 {
        self.draft.fair.counter(tenant).saturating_add(self.given.get(tenant).copied().unwrap_or(0))
    }

    fn give(&mut self, tenant: &'a str, service: u64) {
        *self.given.entry(tenant).or_insert(0) += self.draft.fair.growth(tenant, service);
    }

    /// The best of some sequences: of the tenant that was served least, the oldest.
    fn first(&self, of: impl Iterator<Item = View<'a>>) -> Option<View<'a>> {
        of.min_by_key(|view| match self.draft.rules.order {
            Order::Fair => (self.of(view.tenant), view.arrived),
            Order::Arrival => (0, view.arrived),
        })
    }
}

impl<'a> Draft<'a> {
    /// Picks who generates: all that may, and where the width binds, token by token who was served least.
    pub(super) fn decode(&mut self, cost: &CostModel) {
        let running = |class| {
            let views = self.views.values().filter(move |view| view.class == class && view.stage == Stage::Running);
            views.copied().collect::<Vec<_>>()
        };
        let (interactive, batch) = (running(Class::Interactive), running(Class::Batch));
        let width = self.rules.width.min(self.room.batch) as usize;
        let beside = self.batch_beside(cost, interactive.len(), batch.len()).min(width);
        // What batch work is owed it gets although interactive work would fill the width.
        let owed =
            usize::try_from(self.fair.owed_to_batch() / DECODE).unwrap_or(usize::MAX).min(batch.len()).min(width);
        let interactive_width = width - owed.min(beside);
        let chosen = self.choose(interactive, interactive_width);
        let left = width - chosen.len();
        let batch = self.choose(batch, beside.min(left));
        self.step.decode = chosen.into_iter().chain(batch).collect();
    }

    /// How many sequences of batch work may take part beside so many of interactive work.
    fn batch_beside(&self, cost: &CostModel, interactive: usize, batch: usize) -> usize {
        let readers = self.views.values().any(|view| view.class == Class::Interactive && is_reading(view));
        if (interactive == 0 && !readers) || self.rules.order == Order::Arrival {
            return batch;
        }
        let owed = usize::try_from(self.fair.owed_to_batch() / DECODE).unwrap_or(usize::MAX);
        let shape = |decodes: usize| Shape {
            decodes: u32::try_from(decodes).unwrap_or(u32::MAX),
            reads: 0,
            cells: self.room.used / u32::try_from(interactive + batch).unwrap_or(u32::MAX).max(1),
        };
        let alone = cost.predict(shape(interactive.max(1))) * BATCH_BESIDE;
        let cheap = (1..=batch).take_while(|more| cost.predict(shape(interactive + more)) <= alone).count();
        cheap.max(owed.min(batch))
    }

    fn choose(&self, mut from: Vec<View<'a>>, width: usize) -> Vec<Key> {
        if from.len() <= width {
            return from.into_iter().map(|view| view.key).collect();
        }
        let mut counters = Counters { draft: self, given: BTreeMap::new() };
        let mut chosen = Vec::with_capacity(width);
        while chosen.len() < width {
            let Some(view) = counters.first(from.iter().copied()) else { break };
            counters.give(view.tenant, DECODE);
            from.retain(|other| other.key != view.key);
            chosen.push(view.key);
        }
        chosen
    }

    /// Gives what is left of the step's time to prompts, a quantum at a time, to who was served least.
    pub(super) fn read(&mut self, cost: &CostModel) {
        let of = |class| self.views.values().filter(move |view| view.class == class && is_reading(view)).copied();
        let interactive: Vec<View<'a>> = of(Class::Interactive).collect();
        let someone_waits = self.decoding(Class::Interactive) || !interactive.is_empty();
        let batch: Vec<View<'a>> = of(Class::Batch).collect();
        let decodes = u32::try_from(self.step.decode.len()).unwrap_or(u32::MAX);
        let most = self.room.batch.saturating_sub(decodes);
        let target = if self.decoding(Class::Interactive) { self.rules.step } else { self.rules.quiet };
        let scanned = interactive.iter().chain(&batch).map(|view| view.cells).max().unwrap_or(0);
        let mut budget = cost.reads_within(decodes, scanned, target, self.rules.floor, most);
        if self.rules.order == Order::Arrival {
            let all = interactive.into_iter().chain(batch).collect();
            self.step.read = self.share_out(all, &mut budget);
            return;
        }
        let owed = u32::try_from(self.fair.owed_to_batch() / READ).unwrap_or(u32::MAX);
        let mut for_batch = if someone_waits { owed.min(budget) } else { budget };
        let batch_wants = batch.iter().fold(0_u32, |sum, view| sum.saturating_add(left(view)));
        for_batch = for_batch.min(batch_wants);
        budget -= for_batch;
        let mut read = self.share_out(interactive, &mut budget);
        read.extend(self.share_out(batch, &mut for_batch));
        self.step.read = read;
    }

    fn decoding(&self, class: Class) -> bool {
        self.step.decode.iter().any(|key| self.views.get(key).is_some_and(|view| view.class == class))
    }

    fn share_out(&self, mut from: Vec<View<'a>>, budget: &mut u32) -> Vec<(Key, u32)> {
        let mut counters = Counters { draft: self, given: BTreeMap::new() };
        let mut shares: BTreeMap<Key, u32> = BTreeMap::new();
        let mut order = Vec::new();
        while *budget > 0 {
            let Some(view) = counters.first(from.iter().copied()) else { break };
            // Whole quanta, or the last of a prompt: how it is computed must not depend on who else is there.
            let share = left(&view).min(READ_QUANTUM);
            let Some(rest) = budget.checked_sub(share) else { break };
            *budget = rest;
            counters.give(view.tenant, u64::from(share) * READ);
            if !shares.contains_key(&view.key) {
                order.push(view.key);
            }
            *shares.entry(view.key).or_insert(0) += share;
            for other in &mut from {
                if let (true, Stage::Reading { left }) = (other.key == view.key, &mut other.stage) {
                    *left -= share;
                }
            }
            from.retain(|other| left(other) > 0);
        }
        order.into_iter().map(|key| (key, shares[&key])).collect()
    }
}

fn is_reading(view: &View<'_>) -> bool {
    matches!(view.stage, Stage::Reading { .. })
}

fn left(view: &View<'_>) -> u32 {
    match view.stage {
        Stage::Reading { left } => left,
        Stage::Waiting { .. } | Stage::Running | Stage::Paused => 0,
    }
}
