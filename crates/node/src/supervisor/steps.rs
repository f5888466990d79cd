//! When steps were finished: the evidence that a window names.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use sluice_types::{Nanos, NodeInstant};

/// How many are kept: of the fastest task those of some five seconds, longer than between two looks at it.
const KEPT: usize = 256;
/// Of steps closer together than this only some are kept, and always the newest.
const APART: Nanos = Nanos::from_millis(20);

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepMark {
    /// When it was finished, on the node's clock.
    pub at: NodeInstant,
    /// Its number.
    pub step: u64,
}

/// The last steps in order, bounded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StepMarks(VecDeque<StepMark>);

impl StepMarks {
    /// A step was finished.
    pub(crate) fn mark(&mut self, at: NodeInstant, step: u64) {
        let mut newest = self.0.iter().rev();
        if let (Some(last), Some(before)) = (newest.next(), newest.next())
            && last.at < before.at.after(APART)
        {
            self.0.pop_back();
        }
        self.push(StepMark { at, step });
    }

    /// Takes over what another, as of later, has more.
    pub(crate) fn extend(&mut self, later: &Self) {
        let known = self.0.back().map(|last| last.at);
        later.0.iter().filter(|mark| known.is_none_or(|known| mark.at > known)).for_each(|mark| self.push(*mark));
    }

    /// The last step that was finished by then, as far as it is known: never one that came later.
    pub(crate) fn last_by(&self, at: NodeInstant) -> Option<u64> {
        self.0.iter().rev().find(|mark| mark.at <= at).map(|mark| mark.step)
    }

    fn push(&mut self, mark: StepMark) {
        if self.0.len() >= KEPT {
            self.0.pop_front();
        }
        self.0.push_back(mark);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> NodeInstant {
        NodeInstant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_step_counts_from_when_it_was_finished() {
        let mut marks = StepMarks::default();
        (1..=10).for_each(|step| marks.mark(at(step * 100), step));
        assert_eq!(marks.last_by(at(99)), None);
        assert_eq!(marks.last_by(at(100)), Some(1));
        assert_eq!(marks.last_by(at(999)), Some(9));
        assert_eq!(marks.last_by(at(5000)), Some(10));
    }

    #[test]
    fn fast_steps_are_bounded_and_never_named_early() {
        let mut marks = StepMarks::default();
        (1..=100_000).for_each(|step| marks.mark(at(step), step));
        assert_eq!(marks.0.len(), KEPT);
        for window in [96_000, 98_765, 100_000] {
            let told = marks.last_by(at(window)).unwrap();
            assert!(told <= window && window - told <= 20, "{told} at {window}");
        }
        assert_eq!(marks.last_by(at(100_000)), Some(100_000));
        // Older than what is kept.
        assert_eq!(marks.last_by(at(50_000)), None);
    }

    #[test]
    fn what_is_told_again_is_taken_once() {
        let (mut all, mut own) = (StepMarks::default(), StepMarks::default());
        for step in 1..=6 {
            all.mark(at(step * 100), step);
            if step % 2 == 0 {
                own.extend(&all);
            }
        }
        own.extend(&all);
        assert_eq!(own, all);
    }
}
