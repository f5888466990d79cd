//! What time does: losses, deadlines, periods, and forgetting.

use sluice_types::{AttemptId, Nanos, Reason, Timestamp};

use super::Step;
use crate::command::{Answer, Refusal};
use crate::model::{
    AttemptState, Goal, JobKind, JobState, LeaseState, MigrationCause, MigrationPhase, NodeState, StopCause, StopOrder,
    TaskState,
};
use crate::state::Happened;

/// How often old requests and tokens are looked for.
const FORGET_EVERY: Nanos = Nanos::from_secs(60);

impl Step<'_> {
    pub(super) fn tick(&mut self) -> Result<Answer, Refusal> {
        if self.state.last_tick == Timestamp::default() {
            self.adopt_old_quotas();
        }
        self.wake_up();
        self.lose_silent_nodes();
        self.grant_budgets();
        self.late_migrations();
        self.late_orders();
        self.late_starts();
        self.call_back_lent();
        self.resume_reclaimed();
        self.drain();
        self.void_lost_requests();
        self.scale_all();
        self.late_windows();
        self.forget_old();
        Ok(Answer::default())
    }

    /// Nobody listened for a while (the process or the machine was stopped, or the clock was set): that is not the nodes'
    /// silence.
    fn wake_up(&mut self) {
        let last = std::mem::replace(&mut self.state.last_tick, self.now);
        let gap = self.now.since(last);
        let begins = last == Timestamp::default();
        if !begins && gap < Nanos::new(self.state.settings.loss_timeout.get() / 2) {
            return;
        }
        self.state.awake = self.now;
        if begins {
            return;
        }
        let nodes: Vec<_> = self.state.nodes.values().map(|node| node.id).collect();
        for id in nodes {
            if let Some(row) = self.state.nodes.get_quietly(&id) {
                row.last_seen = row.last_seen.after(gap);
            }
        }
    }

    fn lose_silent_nodes(&mut self) {
        let timeout = self.state.settings.loss_timeout;
        let silent = self.state.nodes.values().filter(|node| node.state == NodeState::Ready);
        let silent: Vec<_> =
            silent.filter(|node| self.now.since(node.last_seen) > timeout).map(|node| node.id).collect();
        silent.into_iter().for_each(|node| self.lose_node(node));
    }

    /// Whether a deadline counts: what happened while nobody listened must be told first.
    fn is_over(&self, deadline: Timestamp) -> bool {
        deadline < self.now && self.now.since(self.state.awake) > self.state.settings.stop_deadline
    }

    /// A phase took longer than its deadline: back.
    fn late_migrations(&mut self) {
        let moving = self.state.marks.moving.iter().filter_map(|id| self.state.migrations.get(id));
        let late = moving.filter(|row| row.is_open() && self.is_over(row.deadline));
        let late: Vec<_> = late.map(|row| (row.job, row.phase, row.target)).collect();
        for (job, phase, target) in late {
            match (phase, target) {
                // Handed over: the target is the owner, so a target that does not start is a loss of it.
                (MigrationPhase::Starting, Some(target)) => self.lose_attempt(target, Reason::NodeLost),
                _ => self.abort_migration(job, Reason::MigrationTimedOut),
            }
        }
    }

    /// A checkpoint did not come in time: the job goes on, unless money forbids it or what it holds is wanted back.
    fn late_orders(&mut self) {
        let stopping = self.state.marks.stopping.iter().filter_map(|id| self.state.attempts.get(id));
        let late = stopping.filter(|row| row.state != AttemptState::Ended && row.goal == Goal::Checkpoint);
        let late = late.filter_map(|row| Some((row.id, row.job, row.order?)));
        let late: Vec<_> = late.filter(|(_, _, order)| self.is_over(order.deadline)).collect();
        for (attempt, job, order) in late {
            match order.kind {
                StopCause::SuspendForMoney => self.set_goal(attempt, Goal::Stop, None),
                _ if order.must => self.set_goal(attempt, Goal::Stop, Some(order)),
                StopCause::Migrate => {} // the migration's own deadline
                StopCause::Suspend | StopCause::SuspendForQuota | StopCause::Requeue => {
                    self.take_back_order(attempt);
                    let standing = self.state.jobs.get(&job).map(|row| row.state);
                    if standing == Some(JobState::Suspending) {
                        let message = "no checkpoint came in time, so it goes on";
                        let what = Happened::new("Running", message, "controller");
                        self.set_state(job, JobState::Running, None, message.to_owned(), what);
                    }
                }
            }
        }
    }

    fn late_starts(&mut self) {
        let deadline = self.state.settings.start_deadline;
        let starting = self.state.marks.starting.iter().filter_map(|id| self.state.attempts.get(id));
        // Ids grow with time, so the first that is not late ends the search.
        let late = starting.take_while(|row| self.now.since(row.created.max(self.state.awake)) > deadline);
        let late = late.filter(|row| row.state == AttemptState::Assigned && row.goal == Goal::Run);
        let late: Vec<_> = late.map(|row| row.id).collect();
        for attempt in late {
            let job = self.state.attempts.get(&attempt).map(|row| row.job);
            // A migration's hand-over has a deadline of its own, counted from the hand-over.
            if job.is_some_and(|job| self.open_migration(job).is_none()) {
                self.lose_attempt(attempt, Reason::NodeLost);
            }
        }
    }

    /// Jobs on draining nodes move: to another site where one is allowed, else they queue again at a checkpoint.
    fn drain(&mut self) {
        let draining: Vec<_> = self.state.nodes.values().filter(|node| node.draining).map(|node| node.id).collect();
        let mut leaving: Vec<AttemptId> = Vec::new();
        for node in draining {
            let leases = self.state.leases_on.get(&node).into_iter().flatten();
            leaving.extend(leases.filter_map(|id| self.state.leases.get(id)).map(|lease| lease.attempt));
        }
        leaving.sort();
        leaving.dedup();
        for attempt in leaving {
            let Some(row) = self.state.attempts.get(&attempt) else { continue };
            let job = self.state.jobs.get(&row.job).filter(|job| job.current == Some(attempt));
            // Replicas have no state to carry over: their endpoint begins others and lets them go.
            if job.is_some_and(|job| job.spec.kind == JobKind::Replica) {
                continue;
            }
            // A gang of which a task is done can stop nowhere together any more: it is left to its end.
            let whole = row.tasks.iter().all(|task| task.state != TaskState::Ended);
            let ready = row.state == AttemptState::Running && row.order.is_none() && whole;
            if !ready || !job.is_some_and(|job| job.state == JobState::Running && job.spec.checkpoint.is_some()) {
                continue;
            }
            let (id, site) = (row.job, row.site);
            let failed = job.and_then(|job| job.migration).and_then(|id| self.state.migrations.get(&id));
            let failed = failed.is_some_and(|row| {
                row.source == attempt && row.cause == MigrationCause::Platform && row.phase == MigrationPhase::Failed
            });
            // One try at another site; then any place will do.
            let other = if failed { None } else { self.other_site(id, site) };
            let moved =
                other.is_some_and(|to| self.start_migration(id, to, MigrationCause::Platform, "controller").is_ok());
            if !moved {
                self.order(attempt, StopCause::Requeue);
            }
        }
    }

    /// Another site that is alive and allowed.
    fn other_site(&self, job: sluice_types::JobId, not: sluice_types::SiteId) -> Option<sluice_types::SiteId> {
        let allowed = self.state.allowed_sites(self.state.jobs.get(&job)?);
        let open = |site: sluice_types::SiteId| {
            self.state.nodes.values().any(|node| node.site == site && self.state.is_open(node))
        };
        let sites = self.state.sites.values().map(|site| site.id);
        sites.into_iter().find(|site| *site != not && (allowed.is_empty() || allowed.contains(site)) && open(*site))
    }

    /// Windows of a lost node that never came: what is left of the hold is given back.
    fn late_windows(&mut self) {
        let wait = self.state.settings.late_windows;
        let unsettled = self.state.marks.unsettled.iter().filter_map(|id| self.state.attempts.get(id));
        let ended = unsettled.filter(|row| row.state == AttemptState::Ended && !row.settled);
        let late = ended.filter(|row| row.ended.is_some_and(|at| self.now.since(at) > wait));
        let leases: Vec<_> = late.flat_map(|row| row.tasks.iter().map(|task| task.lease)).collect();
        for id in leases {
            let gone = self.state.leases.get(&id).is_some_and(|lease| {
                let node = self.state.nodes.get(&lease.device.node);
                lease.state == LeaseState::Freed || node.is_none_or(|node| node.state == NodeState::Lost)
            });
            if gone {
                self.close_lease(id);
            }
        }
    }

    fn forget_old(&mut self) {
        let remember = self.state.settings.remember;
        let now = self.now;
        if now.since(self.state.last_forgetting) < FORGET_EVERY {
            return;
        }
        self.state.last_forgetting = now;
        self.state.requests.retain(|_, row| now.since(row.at) <= remember);
        let old = self.state.tokens.values().filter(|row| now.since(row.expires) > remember);
        let old: Vec<_> = old.map(|row| row.hash).collect();
        for hash in &old {
            self.state.tokens.evict(hash);
        }
        self.forget_uploads();
    }

    /// The system stops: what can be checkpointed stops at a checkpoint, the rest is stopped; all of it queues again.
    pub(super) fn quiesce(&mut self) -> Result<Answer, Refusal> {
        let live = self.state.attempts.values().filter(|row| row.state != AttemptState::Ended);
        let live: Vec<_> = live.map(|row| (row.id, row.job, row.state)).collect();
        for (attempt, job, state) in live {
            self.abort_migration(job, Reason::Unavailable);
            let Some(row) = self.state.jobs.get(&job).filter(|row| row.current == Some(attempt)) else { continue };
            if matches!(row.state, JobState::Cancelling | JobState::Suspending) {
                // On its way out already, for a reason that must not be forgotten.
                continue;
            }
            if row.spec.checkpoint.is_some() && state == AttemptState::Running {
                self.order(attempt, StopCause::Requeue);
            } else {
                let deadline = self.now.after(self.state.settings.stop_deadline);
                self.set_goal(
                    attempt,
                    Goal::Stop,
                    Some(StopOrder { kind: StopCause::Requeue, deadline, stop_step: None, must: false }),
                );
            }
        }
        Ok(Answer::default())
    }
}
