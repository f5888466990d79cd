//! When a task is asked for a checkpoint: orders of the agent and the policy's own rhythm, as a pure state machine.
//!
//! One order is open at a time; a new one replaces an open one, which then counts as cancelled. Policy checkpoints are
//! asked for only while no order is open.
//!
//! A gang's task is ordered twice: first to be held at its next step boundary, then to stop at the first boundary from
//! the gang's step on, which is told once every task is held.

use sluice_types::{Nanos, NodeInstant};

use super::protocol::Action;
use super::records::{OrderState, OrderStatus};

/// The state machine.
#[derive(Debug, Clone)]
pub(crate) struct Orders {
    every_steps: Option<u64>,
    every: Option<Nanos>,
    last_step: u64,
    last_at: NodeInstant,
    next_number: u64,
    open: Option<Open>,
    last: Option<OrderStatus>,
    /// The task was told to end, at a step or by a signal, and nothing showed since that it did not listen. It ends with
    /// its checkpoint even if the order was taken back or replaced in the meantime: what it was told cannot be untold.
    leaving: Option<Option<u64>>,
}

#[derive(Debug, Clone)]
struct Open {
    number: u64,
    exit: bool,
    stop: Stop,
    deadline: Option<NodeInstant>,
    /// `Some` once the task knows; inside, the step at which it was told.
    told: Option<Option<u64>>,
}

/// At which step boundary the task is told of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// At the first one from this step on; 0 = at the next one.
    From(u64),
    /// It is held at the next one, for the order that follows.
    Hold,
}

impl Orders {
    /// Begins at the step that was resumed from (0 for a fresh start).
    pub(crate) fn new(every_steps: Option<u64>, every: Option<Nanos>, step: u64, now: NodeInstant) -> Self {
        let every_steps = every_steps.filter(|steps| *steps > 0);
        let every = every.filter(|span| *span > Nanos::ZERO);
        Self {
            every_steps,
            every,
            last_step: step,
            last_at: now,
            next_number: 1,
            open: None,
            last: None,
            leaving: None,
        }
    }

    /// A new order; returns its number.
    pub(crate) fn order(&mut self, exit: bool, stop: Stop, deadline: Option<NodeInstant>) -> u64 {
        self.close(OrderState::Cancelled);
        let number = self.next_number;
        self.next_number += 1;
        self.open = Some(Open { number, exit, stop, deadline, told: None });
        number
    }

    /// Takes back the open order, if there is one that the task could still act on.
    pub(crate) fn cancel(&mut self) {
        self.close(OrderState::Cancelled);
    }

    /// A step is complete: what to tell the task, or `None` while it is held. Asked again when that may have changed.
    pub(crate) fn on_step(&mut self, step: u64, now: NodeInstant) -> Option<Action> {
        match &self.open {
            Some(Open { stop: Stop::Hold, .. }) => None,
            // The others of its gang have not arrived there either.
            Some(Open { stop: Stop::From(from), told: None, .. }) if step < *from => Some(Action::Continue),
            _ => Some(self.answer(step, now)),
        }
    }

    fn answer(&mut self, step: u64, now: NodeInstant) -> Action {
        if self.leaving.flatten().is_some_and(|told| step > told) {
            self.leaving = None;
        }
        if let Some(open) = &mut self.open {
            if open.told.is_none() {
                open.told = Some(Some(step));
                self.leaving = open.exit.then_some(Some(step)).or(self.leaving);
                return if open.exit { Action::CheckpointAndExit } else { Action::Checkpoint };
            }
            // The next step without the checkpoint that was wanted: the task did not do it.
            let told = open.told.flatten();
            if told.is_some_and(|told| step > told) {
                let why = format!("the task went on to step {step} without the checkpoint it was asked for");
                self.close(OrderState::Failed { why });
            }
            return Action::Continue;
        }
        if self.is_due(Some(step), now) {
            // Asked once; if the task does not write one, the rhythm starts again from here.
            (self.last_step, self.last_at) = (step, now);
            return Action::Checkpoint;
        }
        Action::Continue
    }

    /// For programs that are told by a signal: whether to send it now. `Some(order)` where one is open and untold,
    /// `None` inside for the policy's rhythm. `ends` says that a program ends by this signal.
    pub(crate) fn signal_due(&mut self, now: NodeInstant, ends: bool) -> Option<Option<u64>> {
        if let Some(open) = &mut self.open {
            if open.told.is_some() || open.stop == Stop::Hold {
                return None;
            }
            open.told = Some(None);
            self.leaving = (open.exit && ends).then_some(None);
            return Some(Some(open.number));
        }
        if self.is_due(None, now) {
            self.last_at = now;
            return Some(None);
        }
        None
    }

    fn is_due(&self, step: Option<u64>, now: NodeInstant) -> bool {
        let steps = match (step, self.every_steps) {
            (Some(step), Some(every)) => step.saturating_sub(self.last_step) >= every,
            _ => false,
        };
        steps || self.every.is_some_and(|every| now.since(self.last_at) >= every)
    }

    /// A checkpoint is staged. An order is fulfilled by one that the task wrote after it knew of the order and, where
    /// it was told at a step, of that step or a later one. Returns whether the task is now to end.
    pub(crate) fn on_staged(&mut self, step: u64, sequence: u64, now: NodeInstant) -> bool {
        self.last_step = self.last_step.max(step);
        self.last_at = now;
        let leaves = self.leaving.is_some_and(|told| told.is_none_or(|told| step == told));
        let Some(open) = &self.open else { return leaves };
        let fulfils = match (open.exit, open.told) {
            (_, None) => false,
            (_, Some(None)) => true,
            (true, Some(Some(told))) => step == told,
            (false, Some(Some(told))) => step >= told,
        };
        let exit = open.exit;
        if fulfils {
            self.close(OrderState::Done { sequence });
        }
        leaves || (fulfils && exit)
    }

    /// Whether the open order, of which the task was told, is to end with the checkpoint.
    pub(crate) fn ends(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.exit && open.told.is_some())
    }

    /// The task is about to be ended for such an order, and ends with its next checkpoint whatever becomes of the order.
    /// `false` where the order was taken back before.
    pub(crate) fn leave(&mut self) -> bool {
        if self.ends() {
            self.leaving = Some(None);
        }
        self.ends()
    }

    /// The checkpoint that was asked for cannot be taken.
    pub(crate) fn fail(&mut self, why: &str) {
        if self.open.as_ref().is_some_and(|open| open.told.is_some()) {
            self.close(OrderState::Failed { why: why.to_owned() });
        }
    }

    /// Time passes: an order whose deadline is over has failed.
    pub(crate) fn on_time(&mut self, now: NodeInstant) {
        if self.open.as_ref().and_then(|open| open.deadline).is_some_and(|deadline| now > deadline) {
            self.close(OrderState::Failed { why: "its deadline passed without a checkpoint".to_owned() });
        }
    }

    /// The task is gone.
    pub(crate) fn on_end(&mut self) {
        self.close(OrderState::Failed { why: "the task ended without the checkpoint".to_owned() });
    }

    fn close(&mut self, state: OrderState) {
        if let Some(open) = self.open.take() {
            self.last = Some(OrderStatus { number: open.number, exit: open.exit, state });
        }
    }

    /// The newest order.
    pub(crate) fn status(&self) -> Option<OrderStatus> {
        let open = self.open.as_ref().map(|open| OrderStatus {
            number: open.number,
            exit: open.exit,
            state: open.told.map_or(OrderState::Waiting, |step| OrderState::Told { step }),
        });
        open.or_else(|| self.last.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEXT: Stop = Stop::From(0);

    fn at(secs: u64) -> NodeInstant {
        NodeInstant::from_nanos(secs * 1_000_000_000)
    }

    fn state(orders: &Orders) -> OrderState {
        orders.status().unwrap().state
    }

    #[test]
    fn the_rhythm_counts_from_the_last_checkpoint() {
        let mut orders = Orders::new(Some(3), None, 10, at(0));
        let actions: Vec<_> = (11..=16).map(|step| orders.on_step(step, at(0)).unwrap()).collect();
        use Action::{Checkpoint, Continue};
        assert_eq!(actions, [Continue, Continue, Checkpoint, Continue, Continue, Checkpoint]);
        orders.on_staged(17, 1, at(0));
        assert_eq!(orders.on_step(19, at(0)), Some(Continue));
        let mut timed = Orders::new(None, Some(Nanos::from_secs(10)), 0, at(0));
        assert_eq!(
            (timed.on_step(1, at(9)), timed.on_step(2, at(10)), timed.on_step(3, at(11))),
            (Some(Continue), Some(Checkpoint), Some(Continue))
        );
    }

    #[test]
    fn an_order_is_told_once_and_done_by_the_checkpoint_of_its_step() {
        let mut orders = Orders::new(None, None, 0, at(0));
        orders.order(true, NEXT, Some(at(60)));
        assert_eq!(state(&orders), OrderState::Waiting);
        // A checkpoint announced before the task knew does not count.
        assert!(!orders.on_staged(4, 1, at(1)));
        assert_eq!(orders.on_step(5, at(1)), Some(Action::CheckpointAndExit));
        assert!(!orders.on_staged(4, 2, at(1)), "another step");
        assert!(orders.on_staged(5, 3, at(2)));
        assert_eq!(state(&orders), OrderState::Done { sequence: 3 });
        orders.on_time(at(100));
        assert_eq!(state(&orders), OrderState::Done { sequence: 3 });
    }

    #[test]
    fn orders_fail_by_deadline_by_going_on_and_by_the_end() {
        let fresh = || Orders::new(None, None, 0, at(0));
        let mut late = fresh();
        late.order(true, NEXT, Some(at(5)));
        late.on_time(at(5));
        assert_eq!(state(&late), OrderState::Waiting);
        late.on_time(at(6));
        assert!(matches!(state(&late), OrderState::Failed { .. }));
        let mut deaf = fresh();
        deaf.order(true, NEXT, None);
        deaf.on_step(1, at(0));
        assert_eq!(deaf.on_step(2, at(0)), Some(Action::Continue));
        assert!(matches!(state(&deaf), OrderState::Failed { .. }));
        let mut ended = fresh();
        ended.order(false, NEXT, None);
        ended.on_end();
        assert!(matches!(state(&ended), OrderState::Failed { .. }));
    }

    #[test]
    fn a_cancelled_order_is_not_told_and_a_new_one_replaces_it() {
        let mut orders = Orders::new(None, None, 0, at(0));
        orders.order(true, NEXT, None);
        orders.cancel();
        assert_eq!(orders.on_step(1, at(0)), Some(Action::Continue));
        assert_eq!(state(&orders), OrderState::Cancelled);
        assert_eq!((orders.order(true, NEXT, None), orders.order(false, NEXT, None)), (2, 3));
        assert_eq!(orders.on_step(2, at(0)), Some(Action::Checkpoint));
    }

    #[test]
    fn a_held_task_waits_and_goes_on_to_its_gangs_step() {
        let mut orders = Orders::new(Some(1), None, 0, at(0));
        orders.order(true, Stop::Hold, Some(at(60)));
        assert_eq!((orders.on_step(5, at(1)), orders.on_step(5, at(2))), (None, None));
        orders.order(true, Stop::From(7), Some(at(60)));
        assert_eq!(
            (orders.on_step(5, at(3)), orders.on_step(6, at(3))),
            (Some(Action::Continue), Some(Action::Continue))
        );
        assert_eq!(orders.on_step(7, at(4)), Some(Action::CheckpointAndExit));
        assert!(!orders.on_staged(6, 1, at(5)) && orders.on_staged(7, 2, at(5)));
        // Nobody told the step in time, or the order was taken back: it goes on.
        for end in [|orders: &mut Orders| orders.on_time(at(61)), Orders::cancel] {
            let mut orders = Orders::new(None, None, 0, at(0));
            orders.order(true, Stop::Hold, Some(at(60)));
            assert_eq!(orders.on_step(5, at(1)), None);
            end(&mut orders);
            assert_eq!(orders.on_step(5, at(62)), Some(Action::Continue));
        }
    }

    #[test]
    fn what_was_told_to_end_ends_with_its_checkpoint_whatever_became_of_the_order() {
        let told = |stop| {
            let mut orders = Orders::new(None, None, 0, at(0));
            orders.order(true, stop, Some(at(60)));
            assert_eq!(orders.on_step(5, at(1)), Some(Action::CheckpointAndExit));
            orders
        };
        let replaced = |orders: &mut Orders| {
            orders.order(true, NEXT, Some(at(60)));
        };
        for then in [Orders::cancel, |orders: &mut Orders| orders.on_time(at(61)), replaced] {
            let mut orders = told(NEXT);
            then(&mut orders);
            assert!(!orders.on_staged(4, 1, at(62)) && orders.on_staged(5, 2, at(62)));
            // It did not listen: then it is not taken to leave at a later checkpoint of its own.
            let mut deaf = told(NEXT);
            then(&mut deaf);
            deaf.on_step(6, at(62));
            deaf.cancel();
            assert!(!deaf.on_staged(5, 1, at(63)));
        }
        let mut signalled = Orders::new(None, None, 0, at(0));
        signalled.order(true, NEXT, None);
        assert!(signalled.signal_due(at(1), true).is_some());
        signalled.cancel();
        assert!(signalled.on_staged(1, 1, at(2)));
    }

    #[test]
    fn what_others_end_leaves_only_for_an_order_that_stands_and_one_that_cannot_be_done_fails() {
        let told = |exit| {
            let mut orders = Orders::new(None, None, 0, at(0));
            orders.order(exit, NEXT, None);
            assert!(!orders.ends() && !orders.leave(), "it was not told yet");
            orders.signal_due(at(1), false).unwrap();
            orders
        };
        let mut orders = told(true);
        assert!(orders.ends() && orders.leave());
        orders.cancel();
        assert!(orders.on_staged(1, 1, at(2)), "it was ended for it");
        let mut orders = told(true);
        orders.cancel();
        assert!(!orders.leave() && !orders.on_staged(1, 1, at(2)));
        let mut orders = told(false);
        assert!(!orders.leave() && !orders.on_staged(1, 1, at(2)));
        assert_eq!(state(&orders), OrderState::Done { sequence: 1 });
        let mut orders = told(true);
        orders.fail("the disk is full");
        assert_eq!(state(&orders), OrderState::Failed { why: "the disk is full".to_owned() });
        orders.order(true, NEXT, None);
        orders.fail("of the one before");
        assert_eq!(state(&orders), OrderState::Waiting);
    }

    #[test]
    fn signals_go_out_once_per_order_and_by_the_rhythm() {
        let mut orders = Orders::new(None, Some(Nanos::from_secs(10)), 0, at(0));
        assert_eq!(orders.signal_due(at(9), false), None);
        assert_eq!((orders.signal_due(at(10), false), orders.signal_due(at(11), false)), (Some(None), None));
        let number = orders.order(true, NEXT, None);
        assert_eq!((orders.signal_due(at(12), false), orders.signal_due(at(13), false)), (Some(Some(number)), None));
        assert!(orders.on_staged(1, 1, at(14)));
    }
}
