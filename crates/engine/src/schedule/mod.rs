//! What the next step computes. Pure: sequences, counters and a cost model go in, one step comes out.
//!
//! In this order: sequences are put out of their places where cells run out or fairness asks for it; waiting ones are admitted;
//! running ones take part, all that the width allows; what is left of the time goes to prompts, in quanta, tenant by tenant.

mod admit;
mod share;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::cost::CostModel;
use crate::engine::READ_QUANTUM;
use crate::fair::{Class, Fair};

/// The number of a sequence.
pub type Key = u64;

/// How far a sequence is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It has no place; so many tokens will be read when it has.
    Waiting {
        /// Tokens to be read, at least 1.
        tokens: u32,
    },
    /// Its prompt is being read.
    Reading {
        /// Tokens still to be read, at least 1.
        left: u32,
    },
    /// It generates.
    Running,
    /// It generates, but is as far ahead of its reader as it may be.
    Paused,
}

/// A sequence, as the schedule sees it.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Its number.
    pub key: Key,
    /// Whose it is.
    pub tenant: &'a str,
    /// The tenant's weight.
    pub weight: u32,
    /// What it is.
    pub class: Class,
    /// When it came: a number that grows.
    pub arrived: u64,
    /// How far it is.
    pub stage: Stage,
    /// Cells that it has.
    pub cells: u32,
}

/// What there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Places that are free.
    pub slots: u32,
    /// How many of the places are kept for tenants that have none.
    pub spare: u32,
    /// Cells that are free.
    pub cells: u32,
    /// Cells that are used.
    pub used: u32,
    /// Tokens that one step may have.
    pub batch: u32,
}

/// Who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By the counters of tenants.
    Fair,
    /// By arrival alone: what other engines do, and the control of ours.
    Arrival,
}

/// How steps are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// Who goes first.
    pub order: Order,
    /// Sequences that generate in one step at most.
    pub width: u32,
    /// How long a step may take while somebody reads along, nanoseconds.
    pub step: f64,
    /// How long it may take while nobody does: newcomers wait for its end.
    pub quiet: f64,
    /// Tokens of prompts that a step has at least, if any: smaller batches compute badly.
    pub floor: u32,
}

impl Default for Rules {
    fn default() -> Self {
        Self { order: Order::Fair, width: 64, step: 350e6, quiet: 700e6, floor: READ_QUANTUM }
    }
}

/// What the next step does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// These give up their places first: they wait again, with what they have generated.
    pub put_out: Vec<Key>,
    /// These get places.
    pub admit: Vec<Key>,
    /// These generate a token each.
    pub decode: Vec<Key>,
    /// Of these so many tokens are read.
    pub read: Vec<(Key, u32)>,
}

impl Step {
    /// Whether nothing is computed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.decode.is_empty() && self.read.is_empty()
    }
}

/// Decides the next step.
#[must_use]
pub fn plan(fair: &Fair, views: &[View<'_>], room: Room, cost: &CostModel, rules: &Rules) -> Step {
    let mut draft = Draft::new(fair, views, room, rules);
    draft.make_room();
    draft.admit();
    draft.decode(cost);
    draft.read(cost);
    draft.step
}

/// Whether interactive and batch work both want something: only then is one owed anything by the other.
#[must_use]
pub fn both_classes(views: &[View<'_>]) -> bool {
    let wants = |class| views.iter().any(|view| view.class == class && !matches!(view.stage, Stage::Paused));
    wants(Class::Interactive) && wants(Class::Batch)
}

/// A step in the making. Stages and room change as decisions are taken.
struct Draft<'a> {
    fair: &'a Fair,
    rules: &'a Rules,
    views: BTreeMap<Key, View<'a>>,
    /// Sequences in places, by tenant.
    placed: BTreeMap<&'a str, u32>,
    room: Room,
    step: Step,
}

impl<'a> Draft<'a> {
    fn new(fair: &'a Fair, views: &[View<'a>], room: Room, rules: &'a Rules) -> Self {
        let mut placed = BTreeMap::new();
        for view in views.iter().filter(|view| has_place(view)) {
            *placed.entry(view.tenant).or_insert(0) += 1;
        }
        let views = views.iter().map(|view| (view.key, *view)).collect();
        Self { fair, rules, views, placed, room, step: Step::default() }
    }

    /// Cells that those in places will take for sure: a token each, and the rest of the prompts.
    fn promised(&self) -> u32 {
        let of = |view: &View<'_>| match view.stage {
            Stage::Waiting { .. } | Stage::Paused => 0,
            Stage::Reading { left } => left + 1,
            Stage::Running => 1,
        };
        self.views.values().map(of).fold(0, u32::saturating_add)
    }
}

/// Whether it has a place.
fn has_place(view: &View<'_>) -> bool {
    !matches!(view.stage, Stage::Waiting { .. })
}
