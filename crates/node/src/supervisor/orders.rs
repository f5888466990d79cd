//! When a task is asked for a checkpoint: orders of the agent and the policy's own rhythm, as a pure state machine.
//!
//! One order is open at a time; a new one replaces an open one, which then counts as cancelled. Policy checkpoints are
//! asked for only while no order is open.

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
}

#[derive(Debug, Clone)]
struct Open {
    number: u64,
    exit: bool,
    deadline: Option<NodeInstant>,
    /// `Some` once the task knows; inside, the step at which it was told.
    told: Option<Option<u64>>,
}

impl Orders {
    /// Begins at the step that was resumed from (0 for a fresh start).
    pub(crate) fn new(every_steps: Option<u64>, every: Option<Nanos>, step: u64, now: NodeInstant) -> Self {
        let every_steps = every_steps.filter(|steps| *steps > 0);
        let every = every.filter(|span| *span > Nanos::ZERO);
        Self { every_steps, every, last_step: step, last_at: now, next_number: 1, open: None, last: None }
    }

    /// A new order; returns its number.
    pub(crate) fn order(&mut self, exit: bool, deadline: Option<NodeInstant>) -> u64 {
        self.close(OrderState::Cancelled);
        let number = self.next_number;
        self.next_number += 1;
        self.open = Some(Open { number, exit, deadline, told: None });
        number
    }

    /// Takes back the open order, if there is one that the task could still act on.
    pub(crate) fn cancel(&mut self) {
        self.close(OrderState::Cancelled);
    }

    /// A step is complete: what to tell the task.
    pub(crate) fn on_step(&mut self, step: u64, now: NodeInstant) -> Action {
        if let Some(open) = &mut self.open {
            if open.told.is_none() {
                open.told = Some(Some(step));
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
    /// `None` inside for the policy's rhythm.
    pub(crate) fn signal_due(&mut self, now: NodeInstant) -> Option<Option<u64>> {
        if let Some(open) = &mut self.open {
            if open.told.is_some() {
                return None;
            }
            open.told = Some(None);
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
        let Some(open) = &self.open else { return false };
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
        fulfils && exit
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

    fn at(secs: u64) -> NodeInstant {
        NodeInstant::from_nanos(secs * 1_000_000_000)
    }

    fn state(orders: &Orders) -> OrderState {
        orders.status().unwrap().state
    }

    #[test]
    fn the_rhythm_counts_from_the_last_checkpoint() {
        let mut orders = Orders::new(Some(3), None, 10, at(0));
        let actions: Vec<_> = (11..=16).map(|step| orders.on_step(step, at(0))).collect();
        use Action::{Checkpoint, Continue};
        assert_eq!(actions, [Continue, Continue, Checkpoint, Continue, Continue, Checkpoint]);
        orders.on_staged(17, 1, at(0));
        assert_eq!(orders.on_step(19, at(0)), Continue);
        let mut timed = Orders::new(None, Some(Nanos::from_secs(10)), 0, at(0));
        assert_eq!(
            (timed.on_step(1, at(9)), timed.on_step(2, at(10)), timed.on_step(3, at(11))),
            (Continue, Checkpoint, Continue)
        );
    }

    #[test]
    fn an_order_is_told_once_and_done_by_the_checkpoint_of_its_step() {
        let mut orders = Orders::new(None, None, 0, at(0));
        orders.order(true, Some(at(60)));
        assert_eq!(state(&orders), OrderState::Waiting);
        // A checkpoint announced before the task knew does not count.
        assert!(!orders.on_staged(4, 1, at(1)));
        assert_eq!(orders.on_step(5, at(1)), Action::CheckpointAndExit);
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
        late.order(true, Some(at(5)));
        late.on_time(at(5));
        assert_eq!(state(&late), OrderState::Waiting);
        late.on_time(at(6));
        assert!(matches!(state(&late), OrderState::Failed { .. }));
        let mut deaf = fresh();
        deaf.order(true, None);
        deaf.on_step(1, at(0));
        assert_eq!(deaf.on_step(2, at(0)), Action::Continue);
        assert!(matches!(state(&deaf), OrderState::Failed { .. }));
        let mut ended = fresh();
        ended.order(false, None);
        ended.on_end();
        assert!(matches!(state(&ended), OrderState::Failed { .. }));
    }

    #[test]
    fn a_cancelled_order_is_not_told_and_a_new_one_replaces_it() {
        let mut orders = Orders::new(None, None, 0, at(0));
        orders.order(true, None);
        orders.cancel();
        assert_eq!(orders.on_step(1, at(0)), Action::Continue);
        assert_eq!(state(&orders), OrderState::Cancelled);
        assert_eq!((orders.order(true, None), orders.order(false, None)), (2, 3));
        assert_eq!(orders.on_step(2, at(0)), Action::Checkpoint);
    }

    #[test]
    fn signals_go_out_once_per_order_and_by_the_rhythm() {
        let mut orders = Orders::new(None, Some(Nanos::from_secs(10)), 0, at(0));
        assert_eq!(orders.signal_due(at(9)), None);
        assert_eq!((orders.signal_due(at(10)), orders.signal_due(at(11))), (Some(None), None));
        let number = orders.order(true, None);
        assert_eq!((orders.signal_due(at(12)), orders.signal_due(at(13))), (Some(Some(number)), None));
        assert!(orders.on_staged(1, 1, at(14)));
    }
}
