//! Orders: capacity that is bought now, or not at all.
//!
//! A leg is a job of kind rental, so it is placed, held for, metered, moved and billed as every job is. What differs is
//! what may not happen to a purchase: it waits for nothing that it was never given, and it costs no more than was agreed.

use std::sync::Arc;

use sluice_types::{CheckpointId, Credits, Generation, JobId, Name, Nanos, OrderId, ProjectId, Reason, SiteId};

use super::Step;
use super::jobs::new_job;
use crate::command::{Answer, Caller, KeptHome, Refusal};
use crate::model::{Capture, Checkpoint, Job, JobKind, JobSpec, JobState, Order, Purchase};
use crate::state::Happened;

/// Where a request says with whose files it begins.
const FIELD: &str = "spec.home";

/// What is held for the rest of a leg's time at a new place: its price, or what is left of what was agreed where that is less
/// by no more than roundings. What a lease costs is rounded, what is credited of it for its preparation is rounded, and
/// the rest's price is rounded up: less than two units for each place that the leg has had, which are the platform's.
pub(super) fn within_limit(job: &Job, price: Credits) -> Credits {
    let Some(limit) = job.purchase.and_then(|purchase| purchase.limit) else { return price };
    let left = limit.units().saturating_sub(job.net_paid().units());
    let rounded = price.units().saturating_sub(left);
    if left > 0 && (1..=i64::from(job.attempts)).contains(&rounded) { Credits::new(left) } else { price }
}

impl Step<'_> {
    /// Writes down an order with the job of its leg. The next decision places it or ends it.
    pub(super) fn create_order(
        &mut self,
        caller: &Caller,
        (project, name): (ProjectId, Option<Name>),
        legs: &[Arc<JobSpec>],
        limit: Option<Credits>,
        home: Option<KeptHome>,
        begins_at: Option<SiteId>,
    ) -> Result<Answer, Refusal> {
        let [spec] = legs else { return Err(Refusal::field("legs", "an order has one leg, and it begins now")) };
        let tenant = self.check_submit(project, spec, JobKind::Rental)?;
        let begins_with = home.as_ref().map(|home| home.order);
        let kept = home.map(|home| self.kept_home(project, spec, home)).transpose()?;
        let id = OrderId::from_raw(self.id());
        let job = JobId::from_raw(self.id());
        let name = name.unwrap_or_else(|| id.to_string().parse().expect("invariant: an id's text is a name"));
        let mut row = new_job(job, (tenant, project), name.clone(), Arc::clone(spec), caller.key, self.now);
        row.purchase = Some(Purchase { order: id, limit, home: begins_with, begins_at });
        self.state.event(&row, self.now, Happened::new("Ordered", id.to_string(), &caller.key.to_string()));
        let answer = Answer { object: id.to_string(), job: Some(Box::new(row.clone())), ..Answer::default() };
        self.enlist(row);
        if let Some(kept) = kept {
            self.lend(job, kept);
        }
        let order = Order { id, tenant, project, name, legs: vec![job], by: caller.key, created: self.now };
        self.state.out.orders.push(order);
        Ok(answer)
    }

    /// The newest whole capture of another order's home folder that some vault is sure to keep.
    fn kept_home(&self, project: ProjectId, spec: &JobSpec, home: KeptHome) -> Result<Checkpoint, Refusal> {
        let wrong =
            |message: &str| Err(Refusal { field: Some(FIELD.to_owned()), ..Refusal::new(Reason::WrongState, message) });
        let kept = match self.state.jobs.get(&home.job) {
            Some(job) if job.project != project => return Err(Refusal::not_found("order")),
            Some(job) if job.state == JobState::Cancelling => {
                return wrong("that rental is being released, and its last files are not stored yet: try again");
            }
            Some(job) if self.is_nearly_over(job) => {
                return wrong(
                    "the time of that rental is over in a moment, and its last files are stored then: try again",
                );
            }
            Some(job) => self.state.complete_checkpoints(job).next().cloned(),
            None => home.stored.map(|row| self.still_kept(row)),
        };
        let Some(kept) = kept.filter(|row| row.job == home.job && !row.sites().is_empty()) else {
            return wrong("nothing is kept of that rental's files: it has not been captured yet, or too long ago");
        };
        if spec.checkpoint.as_ref().is_none_or(|policy| policy.capture != Capture::Home) {
            return wrong("only what keeps its home folder can begin with one");
        }
        if kept.world != spec.tasks {
            let message = format!("that rental has {} sandboxes: ask for as many", kept.world);
            return Err(Refusal::field(FIELD, message));
        }
        Ok(kept)
    }

    /// What is left of its time may be used up by what is not posted yet.
    fn is_nearly_over(&self, job: &Job) -> bool {
        let margin = self.state.settings.window.plus(self.state.settings.window);
        let left = job.spec.max_run_time.map(|limit| limit.minus(job.run_time));
        job.current.is_some() && left.is_some_and(|left| left <= margin) && job.run_time > Nanos::ZERO
    }

    /// A checkpoint of a job that is over, at the sites whose vaults were not told to forget it by now.
    fn still_kept(&self, mut row: Checkpoint) -> Checkpoint {
        for part in row.parts.values_mut() {
            part.sealed.retain(|site| {
                self.state.discards.get(&(*site, part.manifest)).is_some_and(|row| !row.done && row.due > self.now)
            });
        }
        row
    }

    /// A job begins with what another one has written. It is its oldest checkpoint, and goes the way of any.
    fn lend(&mut self, job: JobId, kept: Checkpoint) {
        let id = CheckpointId::from_raw(self.id());
        let row = Checkpoint {
            id,
            job,
            generation: Generation::ZERO,
            parent: None,
            created: self.now,
            retired: false,
            ..kept
        };
        row.parts.values().for_each(|part| self.state.marks.sealed(part.manifest, id));
        self.state.checkpoints.insert(id, row);
        self.state.checkpoints_of.entry(job).or_default().insert(id);
        if let Some(row) = self.state.jobs.get_mut(&job) {
            row.checkpoint = Some(id);
        }
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
        if job.state == JobState::Migrating {
            // It runs where it is, and goes on there.
            self.abort_migration(job.id, reason);
            return true;
        }
        if !self.refuse_unplaced(job, reason, &message) {
            let what = Happened::new("Suspended", message.clone(), "planner").because(Some(reason));
            self.set_state(job.id, JobState::Suspended, Some(reason), message, what);
        }
        true
    }
}
