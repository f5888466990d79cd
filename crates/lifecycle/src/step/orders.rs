//! Orders: capacity that is bought now, or not at all.
//!
//! A leg is a job of kind rental, so it is placed, held for, metered, moved and billed as every job is. What differs is
//! what may not happen to a purchase: it waits for nothing that it was never given, and it costs no more than was agreed.

use std::sync::Arc;

use sluice_types::{Credits, JobId, Name, OrderId, ProjectId, Reason};

use super::Step;
use super::jobs::new_job;
use crate::command::{Answer, Caller, Refusal};
use crate::model::{Job, JobKind, JobSpec, JobState, Order, Purchase};
use crate::state::Happened;

impl Step<'_> {
    /// Writes down an order with the job of its leg. The next decision places it or ends it.
    pub(super) fn create_order(
        &mut self,
        caller: &Caller,
        project: ProjectId,
        name: Option<Name>,
        legs: &[Arc<JobSpec>],
        limit: Option<Credits>,
    ) -> Result<Answer, Refusal> {
        let [spec] = legs else { return Err(Refusal::field("legs", "an order has one leg, and it begins now")) };
        let tenant = self.check_submit(project, spec, JobKind::Rental)?;
        let id = OrderId::from_raw(self.id());
        let job = JobId::from_raw(self.id());
        let name = name.unwrap_or_else(|| id.to_string().parse().expect("invariant: an id's text is a name"));
        let mut row = new_job(job, (tenant, project), name.clone(), Arc::clone(spec), caller.key, self.now);
        row.purchase = Some(Purchase { order: id, limit });
        self.state.event(&row, self.now, Happened::new("Ordered", id.to_string(), &caller.key.to_string()));
        let answer = Answer { object: id.to_string(), job: Some(Box::new(row.clone())), ..Answer::default() };
        self.enlist(row);
        let order = Order { id, tenant, project, name, legs: vec![job], by: caller.key, created: self.now };
        self.state.out.orders.push(order);
        Ok(answer)
    }

    /// Ends what is left of an order.
    pub(super) fn release_order(&mut self, caller: &Caller, order: OrderId, legs: &[JobId]) -> Result<Answer, Refusal> {
        for leg in legs {
            // Those that are not in memory, or on their way out, have ended or are about to.
            if self.state.jobs.get(leg).is_some_and(|job| !job.state.is_terminal()) {
                self.cancel(caller, *leg, None)?;
            }
        }
        Ok(Answer { object: order.to_string(), ..Answer::default() })
    }

    /// The scheduler has no place for a leg. One that never had a place is not kept waiting: the order is refused, and
    /// its user may change it. Returns whether it was.
    pub(super) fn refuse_unplaced(&mut self, job: &Job, reason: Reason, message: &str) -> bool {
        let refused = job.purchase.is_some() && job.attempts == 0;
        if refused {
            self.finish_job(job.id, JobState::Failed, Some(reason), message.to_owned(), "planner");
        }
        refused
    }

    /// A placement would make a leg cost more than was agreed: it is refused or, where it had a place before, suspended.
    /// Returns whether it was.
    pub(super) fn refuse_price(&mut self, job: &Job, hold: Credits) -> bool {
        let Some(limit) = job.purchase.and_then(|purchase| purchase.limit) else { return false };
        let whole = job.net_paid().units().saturating_add(hold.units());
        if whole <= limit.units() {
            return false;
        }
        let reason = Reason::PriceAboveLimit;
        let message = format!("it would cost {} in all, and may cost {limit}", Credits::new(whole));
        if !self.refuse_unplaced(job, reason, &message) {
            let what = Happened::new("Suspended", message.clone(), "planner").because(Some(reason));
            self.set_state(job.id, JobState::Suspended, Some(reason), message, what);
        }
        true
    }
}
