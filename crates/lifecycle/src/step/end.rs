//! How attempts and jobs end: by themselves, by order, or by the loss of what they ran on.

use sluice_ledger::quote;
use sluice_types::{AttemptId, Credits, JobId, LeaseId, Reason};

use super::Step;
use crate::command::TaskKey;
use crate::model::{
    Attempt, AttemptState, Goal, Job, JobKind, JobState, LeaseState, MigrationPhase, StopCause, TaskEnd, TaskState,
};
use crate::state::{Happened, State};

/// A node on which so many tasks in a row failed for a reason of the host is cordoned; an admin opens it again.
const FAILED_STARTS: u32 = 3;

impl Step<'_> {
    /// A task ended and nothing is left of it on its node: its slice is free, whoever owns the job by now.
    pub(super) fn ended(&mut self, key: TaskKey, end: TaskEnd, windows: u64, number: u64) {
        let now = self.now;
        if let Some(row) = self.state.leases.get_mut(&key.lease) {
            row.windows = Some(windows);
            if matches!(row.state, LeaseState::Held | LeaseState::Ending) {
                row.state = LeaseState::Freed;
                row.freed = Some(now);
            }
        }
        if end.reason.is_some_and(Reason::is_host_fault) {
            self.host_failed(key.lease, &end.message);
        }
        let live = self.state.attempts.get(&key.attempt).is_some_and(|row| row.state != AttemptState::Ended);
        let rank = self.state.leases.get(&key.lease).map_or(0, |row| row.rank);
        if self.advance_task(key, TaskState::Ended)
            && let Some(row) = self.state.attempts.get_mut(&key.attempt)
            && let Some(task) = usize::try_from(rank).ok().and_then(|rank| row.tasks.get_mut(rank))
        {
            task.end = Some(end);
            if live {
                self.last_step(key.attempt, rank, number);
                self.advance_end(key.attempt);
            } else {
                // The proof that the slice is free counts; the result does not.
                self.state.count(|counters| &mut counters.stale_results);
            }
        }
        self.settle_lease(key.lease);
    }

    /// A node that fails its tasks one after the other would draw all that wait, one after the other.
    fn host_failed(&mut self, lease: LeaseId, message: &str) {
        let node = self.state.leases.get(&lease).map(|row| row.device.node);
        let Some(row) = node.and_then(|node| self.state.nodes.get_mut(&node)) else { return };
        row.failed_starts = row.failed_starts.saturating_add(1);
        if row.failed_starts >= FAILED_STARTS && !row.cordoned {
            row.cordoned = true;
            row.reason = format!("{} tasks in a row failed for want of the host: {message}", row.failed_starts);
        }
    }

    fn last_step(&mut self, attempt: AttemptId, rank: u32, number: u64) {
        let job = self.state.attempts.get(&attempt).map(|row| row.job);
        if let Some(row) = job.and_then(|id| self.state.jobs.get_mut(&id))
            && row.current == Some(attempt)
            && rank == 0
        {
            row.step = row.step.max(number);
        }
    }

    /// One task of a gang ended: when it failed the others are stopped; when all ended the attempt is over.
    fn advance_end(&mut self, id: AttemptId) {
        let Some(row) = self.state.attempts.get(&id).cloned() else { return };
        if State::has_live_tasks(&row) {
            let left = row.tasks.iter().filter_map(|task| task.end.as_ref()).any(|end| end.at_checkpoint);
            if failure(&row).is_some() && row.goal != Goal::Stop {
                self.set_goal(id, Goal::Stop, row.order);
            } else if left && row.goal == Goal::Run {
                // It was told to stop before the order was taken back.
                self.take_back_order(id);
            } else {
                if row.goal == Goal::Run {
                    self.attempt_running(id);
                }
                self.agree_on_step(id);
            }
            return;
        }
        let Some(job) = self.state.jobs.get(&row.job).cloned() else { return };
        if job.current != Some(id) {
            // A migration's target ended before the hand-over.
            self.end_attempt(id, failure(&row).and_then(|end| end.reason));
            let reason = failure(&row).and_then(|end| end.reason).unwrap_or(Reason::StartFailed);
            self.abort_migration(job.id, reason);
            return;
        }
        self.over(&job, &row);
    }

    /// The owner's tasks have all ended: what becomes of the job?
    fn over(&mut self, job: &Job, row: &Attempt) {
        let ends = || row.tasks.iter().filter_map(|task| task.end.as_ref());
        let at_checkpoint = ends().any(|end| end.at_checkpoint) && failure(row).is_none();
        let failed = failure(row).cloned();
        self.end_attempt(row.id, failed.as_ref().and_then(|end| end.reason));
        if job.state == JobState::Cancelling {
            self.finish_job(job.id, JobState::Cancelled, None, String::new(), "node");
        } else if at_checkpoint {
            let kind = row.order.map(|order| order.kind);
            // Tasks that stopped behind different steps left nothing whole to carry over: the job goes on from its last
            // whole checkpoint, and what it does again is its own.
            let carried = kind != Some(StopCause::Migrate) || self.is_head_of(job, row);
            self.stopped(job, if carried { kind } else { Some(StopCause::Requeue) });
        } else if row.order.is_some_and(|order| order.kind == StopCause::Requeue) && row.goal == Goal::Stop {
            self.drop_migration(job.id, Reason::Unavailable);
            self.queue_again(job.id, None, "stopped by the system");
        } else if row.goal == Goal::Stop && job.state == JobState::Suspending {
            // Stopped hard because money or the deadline was over; whatever status it left with, it is not done.
            self.disown(job.id);
            let what = Happened::new("Suspended", "", "node").because(job.reason);
            self.set_state(job.id, JobState::Suspended, job.reason, String::new(), what);
        } else if let Some(end) = failed {
            self.drop_migration(job.id, Reason::WrongState);
            self.failed(job, &end);
        } else {
            self.drop_migration(job.id, Reason::WrongState);
            if job.spec.kind == JobKind::Replica {
                return self.replica_ended(job, Reason::ExitStatus, "it ended without being told");
            }
            self.finish_job(job.id, JobState::Succeeded, None, String::new(), "node");
        }
    }

    /// The job's newest whole checkpoint is one of this attempt.
    fn is_head_of(&self, job: &Job, row: &Attempt) -> bool {
        let head = job.checkpoint.and_then(|id| self.state.checkpoints.get(&id));
        head.is_some_and(|head| head.attempt == row.id)
    }

    /// It stopped at a checkpoint as it was told.
    fn stopped(&mut self, job: &Job, kind: Option<StopCause>) {
        self.disown(job.id);
        if kind != Some(StopCause::Migrate) {
            self.drop_migration(job.id, Reason::WrongState);
        }
        let suspend = |reason| (JobState::Suspended, Some(reason), Happened::new("Suspended", "", "node"));
        let (state, reason, what) = match kind {
            Some(StopCause::Suspend) => suspend(Reason::SuspendedByUser),
            Some(StopCause::SuspendForMoney) => suspend(Reason::SuspendedForMoney),
            Some(StopCause::SuspendForQuota) => suspend(Reason::QuotaReclaimed),
            Some(StopCause::Migrate) => return self.ship(job.id),
            Some(StopCause::Requeue) | None => return self.queue_again(job.id, None, "stopped at a checkpoint"),
        };
        // Which quota it was, and what it lacked, was said when it was told to stop.
        let said = Some(&job.message)
            .filter(|text| reason == Some(Reason::QuotaReclaimed) && job.reason == reason && !text.is_empty());
        let message = said.cloned().unwrap_or_else(|| reason.map_or("", |reason| reason.remedy()).to_owned());
        self.set_state(job.id, state, reason, message, what.because(reason));
    }

    /// It failed by itself: retried or ended.
    fn failed(&mut self, job: &Job, end: &TaskEnd) {
        let reason = end.reason.unwrap_or(Reason::ExitStatus);
        if reason.is_infrastructure() {
            return self.lost(job.id, reason);
        }
        if job.state == JobState::Suspending {
            // The deadline for a checkpoint had passed, so it was stopped hard: the last checkpoint stands.
            self.disown(job.id);
            let what = Happened::new("Suspended", end.message.clone(), "node").because(job.reason);
            self.set_state(job.id, JobState::Suspended, job.reason, end.message.clone(), what);
            return;
        }
        if job.spec.kind == JobKind::Rental && reason == Reason::RunLimit {
            let message = "its time is over".to_owned();
            return self.finish_job(job.id, JobState::Succeeded, Some(reason), message, "node");
        }
        if job.spec.kind == JobKind::Replica {
            return self.replica_ended(job, reason, &end.message);
        }
        let failures = job.failures + 1;
        if let Some(row) = self.state.jobs.get_mut(&job.id) {
            row.failures = failures;
        }
        if reason != Reason::RunLimit && failures <= job.spec.retry.on_failure {
            return self.queue_again(job.id, Some(reason), &end.message);
        }
        self.finish_job(job.id, JobState::Failed, Some(reason), end.message.clone(), "node");
    }

    /// Fences an attempt because what it ran on is lost. Its job queues again, if this attempt owned it.
    pub(super) fn lose_attempt(&mut self, id: AttemptId, reason: Reason) {
        let Some(row) = self.state.attempts.get(&id).filter(|row| row.state != AttemptState::Ended) else { return };
        let job = row.job;
        let owner = self.state.jobs.get(&job).is_some_and(|job| job.current == Some(id));
        self.end_attempt(id, Some(reason));
        self.cut_leases(id);
        if owner {
            self.lost(job, reason);
        } else {
            self.abort_migration(job, reason);
        }
    }

    fn lost(&mut self, id: JobId, reason: Reason) {
        self.drop_migration(id, reason);
        self.credit_losses(id);
        let Some(row) = self.state.jobs.get_mut(&id) else { return };
        row.losses += 1;
        let job = row.clone();
        self.disown(id);
        match job.state {
            JobState::Cancelling => self.finish_job(id, JobState::Cancelled, None, String::new(), "controller"),
            JobState::Suspending => {
                let what = Happened::new("Suspended", "", "controller").because(job.reason);
                self.set_state(id, JobState::Suspended, job.reason, String::new(), what);
            }
            _ if job.losses > job.spec.retry.on_loss => {
                let message = format!("lost {} times", job.losses);
                self.finish_job(id, JobState::Failed, Some(Reason::RetriesExhausted), message, "controller");
            }
            _ => self.queue_again(id, Some(reason), "resumes from its newest checkpoint"),
        }
    }

    /// Nobody owns the job for now.
    fn disown(&mut self, id: JobId) {
        if let Some(row) = self.state.jobs.get_mut(&id) {
            row.current = None;
        }
    }

    pub(super) fn queue_again(&mut self, id: JobId, reason: Option<Reason>, message: &str) {
        self.disown(id);
        let what = Happened::new("Queued", message, "controller").because(reason);
        self.set_state(id, JobState::Pending, reason, message.to_owned(), what);
    }

    pub(super) fn finish_job(
        &mut self,
        id: JobId,
        state: JobState,
        reason: Option<Reason>,
        message: String,
        actor: &str,
    ) {
        let kind = match state {
            JobState::Succeeded => "Succeeded",
            JobState::Cancelled => "Cancelled",
            _ => "Failed",
        };
        let what = Happened::new(kind, message.clone(), actor).because(reason);
        self.set_state(id, state, reason, message, what);
    }

    /// Marks an attempt as ended: from here on its reports count for its slices and windows only.
    pub(super) fn end_attempt(&mut self, id: AttemptId, reason: Option<Reason>) {
        let now = self.now;
        let Some(row) = self.state.attempts.get_mut(&id) else { return };
        if row.state == AttemptState::Ended {
            return;
        }
        row.state = AttemptState::Ended;
        row.revision += 1;
        (row.ended, row.reason) = (Some(now), reason);
        let leases: Vec<_> = row.tasks.iter().map(|task| task.lease).collect();
        let (quota, lost) = (row.quota, reason.filter(|reason| reason.is_infrastructure()));
        for lease in &leases {
            if self.state.leases.get(lease).is_some_and(|row| row.state == LeaseState::Held)
                && let Some(row) = self.state.leases.get_mut(lease)
            {
                row.state = LeaseState::Ending;
            }
        }
        if let Some(reason) = lost {
            self.credit_target(id, reason);
        }
        // Quota is a right to hold; a fenced attempt holds nothing that its tenant could use.
        self.give_back_quota(id);
        if let Some(hold) = quota {
            self.void_hold(hold, format!("end/{id}/quota"));
        }
        self.settle_attempt(id);
    }

    /// Windows past this instant of each node's clock will be refused, and the hold shrinks to what they can cost.
    fn cut_leases(&mut self, id: AttemptId) {
        let now = self.now;
        let Some(row) = self.state.attempts.get(&id).cloned() else { return };
        let mut keep = Credits::ZERO;
        for task in &row.tasks {
            let clock = self.state.nodes.get(&task.device.node).and_then(|node| node.clock);
            let Some(lease) = self.state.leases.get_mut(&task.lease) else { continue };
            let cut = clock.map(|clock| clock.map(now));
            lease.cut = lease.cut.or(cut);
            let open = match (lease.cut, lease.boot.0.is_empty()) {
                (Some(cut), false) => cut.since(lease.cursor),
                _ => now.since(row.created),
            };
            let most = quote(&lease.terms, open).unwrap_or(Credits::ZERO);
            keep = keep.checked_add(most).unwrap_or(keep);
        }
        for hold in std::iter::once(row.funds).chain(row.budgets.iter().map(|budget| budget.hold)) {
            let remaining = self.state.books.hold(hold).map_or(0, |row| row.remaining);
            let back = remaining - keep.units().min(remaining);
            if back > 0 {
                self.reduce_hold(hold, back, format!("cut/{id}/{hold}"))
                    .expect("invariant: no more is given back than remains");
            }
        }
    }

    /// A freed lease whose windows are all in is settled.
    pub(super) fn settle_lease(&mut self, id: LeaseId) {
        let Some(row) = self.state.leases.get(&id) else { return };
        let complete = row.windows.is_some_and(|windows| row.next_window >= windows);
        if row.state != LeaseState::Freed || !complete {
            return;
        }
        self.close_lease(id);
    }

    pub(super) fn close_lease(&mut self, id: LeaseId) {
        if self.state.leases.get(&id).is_some_and(|row| row.started.is_none()) {
            self.credit_preparation(id);
        }
        let Some(row) = self.state.leases.get_mut(&id) else { return };
        row.state = LeaseState::Settled;
        let (attempt, node) = (row.attempt, row.device.node);
        if let Some(leases) = self.state.leases_on.get_mut(&node) {
            leases.remove(&id);
        }
        self.settle_attempt(attempt);
    }

    /// An ended attempt whose leases are all settled gives back what is left of its holds.
    fn settle_attempt(&mut self, id: AttemptId) {
        let Some(row) = self.state.attempts.get(&id).cloned() else { return };
        let settled = |lease: &LeaseId| self.state.leases.get(lease).is_none_or(|row| row.state == LeaseState::Settled);
        if row.settled || row.state != AttemptState::Ended || !row.tasks.iter().all(|task| settled(&task.lease)) {
            return;
        }
        let budgets = row.budgets.iter().map(|budget| budget.hold);
        for hold in std::iter::once(row.funds).chain(budgets).chain(row.quota) {
            self.void_hold(hold, format!("void/{hold}"));
        }
        if let Some(row) = self.state.attempts.get_mut(&id) {
            row.settled = true;
        }
        self.state.out.ended.insert(row.job);
    }

    /// Ends an open migration without touching the job's state.
    pub(super) fn drop_migration(&mut self, id: JobId, reason: Reason) {
        let open = self.open_migration(id);
        let Some(migration) = open else { return };
        if let Some(target) = migration.target
            && self.state.jobs.get(&id).is_none_or(|job| job.current != Some(target))
        {
            self.end_attempt(target, Some(reason));
            self.cut_leases(target);
        }
        self.end_migration(id, MigrationPhase::Failed, Some(reason));
    }
}

/// How the attempt failed, if it did: the first task by rank that did not end well by itself.
fn failure(row: &Attempt) -> Option<&TaskEnd> {
    let ends = || row.tasks.iter().filter_map(|task| task.end.as_ref());
    // A lost or failing host explains what its peers died of.
    if let Some(lost) = ends().find(|end| end.reason.is_some_and(Reason::is_infrastructure)) {
        return Some(lost);
    }
    let own = |end: &&TaskEnd| end.reason.is_some_and(|reason| reason != Reason::Signalled) && !end.at_checkpoint;
    ends().find(own).or_else(|| ends().find(|end| end.reason.is_some() && !end.at_checkpoint))
}
