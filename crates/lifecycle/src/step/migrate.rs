//! Planned moves: prepare, stop, ship, hand over, release. Every phase has a deadline and a way back.

use sluice_types::{AttemptId, JobId, Reason};

use super::Step;
use crate::model::{AttemptState, Goal, JobState, Migration, MigrationPhase, StopCause};
use crate::state::Happened;

impl Step<'_> {
    /// The job's migration, while it is neither done nor failed.
    pub(super) fn open_migration(&self, job: JobId) -> Option<Migration> {
        let id = self.state.jobs.get(&job)?.migration?;
        self.state.migrations.get(&id).filter(|row| row.is_open()).cloned()
    }

    /// The target is ready: the source is told to stop at a checkpoint.
    pub(super) fn migration_prepared(&mut self, job: JobId, target: AttemptId) {
        let Some(migration) = self.open_migration(job) else { return };
        if migration.target != Some(target) || migration.phase != MigrationPhase::Preparing {
            return;
        }
        self.order(migration.source, StopCause::Migrate);
        self.set_phase(job, MigrationPhase::Stopping, self.state.settings.stop_deadline);
    }

    /// The source stopped at a checkpoint: it is copied, then handed over.
    pub(super) fn ship(&mut self, job: JobId) {
        let checkpoint = self.state.jobs.get(&job).and_then(|row| row.checkpoint);
        let Some(migration) = self.open_migration(job) else {
            // The order came from a migration that was given up meanwhile.
            return self.queue_again(job, None, "stopped at a checkpoint");
        };
        if let Some(row) = self.state.migrations.get_mut(&migration.id) {
            row.checkpoint = checkpoint;
        }
        self.set_phase(job, MigrationPhase::Shipping, self.state.settings.ship_deadline);
        self.hand_over(job);
    }

    /// If the last checkpoint is at the target's site, the target owns the job from this commit on.
    pub(super) fn hand_over(&mut self, job: JobId) {
        let Some(migration) = self.open_migration(job).filter(|row| row.phase == MigrationPhase::Shipping) else {
            return;
        };
        let Some((target, checkpoint)) = migration.target.zip(migration.checkpoint) else { return };
        let there = |row: &crate::model::Checkpoint| row.sites().contains(&migration.to);
        if !self.state.checkpoints.get(&checkpoint).is_some_and(there) {
            return;
        }
        if self.state.attempts.get(&target).is_none_or(|row| row.state == AttemptState::Ended) {
            return self.abort_migration(job, Reason::StartFailed);
        }
        let left = self.state.jobs.get(&job).and_then(|row| Some(row.spec.max_run_time?.minus(row.run_time)));
        let Some(row) = self.state.attempts.get_mut(&target) else { return };
        row.run_limit = left;
        (row.goal, row.resume, row.state) = (Goal::Run, Some(checkpoint), AttemptState::Assigned);
        row.revision += 1;
        let generation = row.generation;
        if let Some(row) = self.state.jobs.get_mut(&job) {
            (row.generation, row.current) = (generation, Some(target));
            row.attempts += 1;
        }
        // Where another job took the room over all sites meanwhile, the move is not stopped for it.
        self.own_quota(target);
        self.set_phase(job, MigrationPhase::Starting, self.state.settings.start_deadline);
    }

    /// Gives a migration up: the target is released, the job goes on or queues again.
    pub(super) fn abort_migration(&mut self, job: JobId, reason: Reason) {
        let Some(migration) = self.open_migration(job) else { return };
        if migration.phase == MigrationPhase::Starting {
            // Handed over: the target is the owner, and goes the way of any attempt.
            return;
        }
        let source = self.state.attempts.get(&migration.source).cloned();
        self.drop_migration(job, reason);
        let runs = source.as_ref().is_some_and(|row| row.state != AttemptState::Ended);
        let message = "the move was given up";
        if runs {
            if source.is_some_and(|row| row.order.is_some_and(|order| order.kind == StopCause::Migrate)) {
                self.take_back_order(migration.source);
            }
            if self.state.jobs.get(&job).is_some_and(|row| row.state == JobState::Migrating) {
                let what = Happened::new("MigrationFailed", message, "controller").because(Some(reason));
                self.set_state(job, JobState::Running, Some(reason), message.to_owned(), what);
            }
        } else if self.state.jobs.get(&job).is_some_and(|row| row.state == JobState::Migrating) {
            self.queue_again(job, Some(reason), message);
        }
    }

    fn set_phase(&mut self, job: JobId, phase: MigrationPhase, within: sluice_types::Nanos) {
        let deadline = self.now.after(within);
        let Some(migration) = self.open_migration(job) else { return };
        if let Some(row) = self.state.migrations.get_mut(&migration.id) {
            (row.phase, row.deadline) = (phase, deadline);
        }
        let Some(row) = self.state.jobs.get_mut(&job) else { return };
        row.version += 1;
        let row = row.clone();
        let kind = match phase {
            MigrationPhase::Stopping => "MigrationStopping",
            MigrationPhase::Shipping => "MigrationShipping",
            MigrationPhase::Starting => "HandedOver",
            _ => "MigrationPreparing",
        };
        let to = self.site_name(migration.to);
        self.state.event(&row, self.now, Happened::new(kind, to, "controller"));
    }

    pub(super) fn end_migration(&mut self, job: JobId, phase: MigrationPhase, reason: Option<Reason>) {
        let now = self.now;
        let Some(migration) = self.open_migration(job) else { return };
        if let Some(row) = self.state.migrations.get_mut(&migration.id) {
            (row.phase, row.reason, row.ended) = (phase, reason, Some(now));
        }
        let Some(row) = self.state.jobs.get(&job).cloned() else { return };
        let kind = if phase == MigrationPhase::Done { "Migrated" } else { "MigrationEnded" };
        let to = self.site_name(migration.to);
        self.state.event(&row, now, Happened::new(kind, to, "controller").because(reason));
    }
}
