//! Doing the next thing, and taking note of work that came to its end.

use std::time::Duration;

use sluice_types::Reason;
use tokio::time::Instant;

use super::{Done, End, Kind, Task, Work, blocking, launch, prepare};
use crate::error::{Failure, in_one_line};
use crate::home::Phase;
use crate::metrics::NodeMetrics;
use crate::reconcile::{Action, Stage};
use crate::supervisor::{SupervisorError, remove_tree};

impl Task {
    /// One step of the way from what is to what should be.
    pub(super) async fn act(&mut self) {
        match self.next_action() {
            Action::Wait => {}
            Action::Prepare => self.prepare(),
            Action::Launch => self.launch().await,
            Action::OrderCheckpoint => self.order_checkpoint().await,
            Action::TakeBackOrder => self.take_back_order().await,
            Action::Stop => self.stop().await,
            Action::Kill => self.kill(),
            Action::EndUnstarted => self.end_unstarted().await,
            Action::DropResults => self.drop_results(),
            Action::Forget => return self.forget().await,
        }
        match self.stage() {
            Stage::Running => self.seal_next(),
            Stage::Finishing => self.finish().await,
            _ => {}
        }
    }

    fn prepare(&mut self) {
        if self.work.is_some() || Instant::now() < self.retry_at {
            return;
        }
        let (shared, home) = (self.shared.clone(), self.home.clone());
        let (assignment, uid) = (self.wanted.assignment.clone(), self.record.uid);
        self.start(Kind::Prepare, async move {
            let prepared = prepare::prepare(&shared, &home, &assignment, uid).await;
            Done::Prepared(assignment.resume_manifest().to_owned(), prepared)
        });
    }

    async fn launch(&mut self) {
        if self.work.is_some() || Instant::now() < self.retry_at {
            return;
        }
        let assignment = self.wanted.assignment.clone();
        let grant = match assignment.grant(self.shared.config.limits.pids) {
            Ok(grant) => grant,
            Err(failure) => return self.fail(failure),
        };
        if !self.wanted.fresh && assignment.secret_refs().is_ok_and(|refs| !refs.is_empty()) {
            // Read back from disk, where secrets are not: the controller sends them again.
            return;
        }
        // On disk before anything exists, so that a restart looks for what may have been begun.
        self.record.phase = Phase::Launched;
        self.record.grant = Some(grant.clone());
        if !self.save().await {
            return self.back_off();
        }
        let (shared, home, uid) = (self.shared.clone(), self.home.clone(), self.record.uid);
        self.start(
            Kind::Launch,
            async move { Done::Launched(launch::launch(shared, home, assignment, grant, uid).await) },
        );
    }

    /// The task cannot be started.
    fn fail(&mut self, failure: Failure) {
        tracing::warn!(lease = %self.record.key.lease, %failure, "could not be started");
        NodeMetrics::add(&self.shared.config.metrics.start_failures, 1);
        self.end = Some(End::Unstarted(failure));
    }

    async fn order_checkpoint(&mut self) {
        let (deadline, from) = (self.wanted.assignment.deadline(), self.wanted.assignment.stop_step());
        self.record.held = None;
        let told = match self.wanted.assignment.hold() {
            true => self.client.hold(deadline).await.map(Some),
            false => self.client.checkpoint_and_exit_from(from, deadline).await.map(|_order| None),
        };
        match told {
            Ok(held) => {
                self.record.held = held;
                tracing::info!(lease = %self.record.key.lease, held, from, "told to stop at a checkpoint");
            }
            // It cannot; the controller's deadline decides what then.
            Err(SupervisorError::Refused { reason, message }) if reason != Reason::Unavailable => {
                tracing::info!(lease = %self.record.key.lease, %reason, message, "refuses to stop at a checkpoint");
            }
            // Starting or ending; asked again at the next look.
            Err(_) => return,
        }
        self.record.ordered = self.wanted.assignment.revision;
        self.looked_at = None;
        self.save().await;
    }

    async fn take_back_order(&mut self) {
        if let Err(error) = self.client.resume_normal().await {
            tracing::debug!(lease = %self.record.key.lease, error = error.in_one_line(), "order not taken back");
        }
        self.look_again().await;
    }

    async fn look_again(&mut self) {
        if let Ok(status) = self.client.status().await {
            self.status = Some(status);
        }
    }

    async fn stop(&mut self) {
        match self.client.stop(self.shared.config.limits.stop_grace).await {
            Ok(()) => self.stopped = true,
            Err(error) => {
                tracing::debug!(lease = %self.record.key.lease, error = error.in_one_line(), "could not be told to stop");
            }
        }
    }

    /// Kills at once. What is being stored does not count any more.
    fn kill(&mut self) {
        self.drop_storing();
        if self.work.is_some() || Instant::now() < self.retry_at {
            return;
        }
        let (client, backend) = (self.client.clone(), self.shared.config.backend.clone());
        let (key, patience) = (self.record.key.lease.to_string(), self.shared.config.limits.kill_patience);
        self.start(Kind::Kill, async move {
            if client.kill().await.is_ok() {
                return Done::Killed(Ok(()));
            }
            Done::Killed(blocking(move || backend.kill(&key, patience)).await.map_err(Failure::from))
        });
    }

    async fn end_unstarted(&mut self) {
        self.work = None;
        let message = "told to end before it started".to_owned();
        if self.record.phase == Phase::Launched && self.home.folder.launch().exists() {
            // A supervisor may have been started by an agent that was killed: bar it, then see.
            self.settle();
            self.supervised = true;
            return;
        }
        self.end = Some(End::Unstarted(Failure { reason: Reason::Signalled, message }));
    }

    fn drop_results(&mut self) {
        self.drop_storing();
        self.staged.clear();
    }

    /// Ends a conversation with the vault that stores something, if one is under way.
    pub(super) fn drop_storing(&mut self) {
        if self.work.as_ref().is_some_and(|work| matches!(work.kind, Kind::Seal | Kind::Outputs)) {
            self.work = None;
        }
    }

    /// Takes note of work that came to its end.
    pub(super) async fn on_done(&mut self, done: Done) {
        match done {
            // Meanwhile another checkpoint may have been named: then it is prepared once more.
            Done::Prepared(manifest, Ok(())) if manifest != self.wanted.assignment.resume_manifest() => {}
            Done::Prepared(_, Ok(())) => {
                self.record.phase = Phase::Prepared;
                self.save().await;
            }
            Done::Prepared(_, Err(failure)) => self.fail(failure),
            Done::Launched(Ok(child)) => {
                self.child = Some(child);
                self.supervised = true;
                self.launched_at = Some(Instant::now());
                NodeMetrics::add(&self.shared.config.metrics.tasks_started, 1);
            }
            Done::Launched(Err(failure)) => self.fail(failure),
            Done::Settled(Ok(Some(exit))) => self.on_exit(exit).await,
            // Somebody has the lock: it lives after all.
            Done::Settled(Ok(None)) => {}
            Done::Settled(Err(failure)) => self.trouble("settling", &failure),
            Done::Killed(Ok(())) => self.killed = true,
            Done::Killed(Err(failure)) => self.trouble("killing", &failure),
            Done::Sealed(sequence, sealed) => self.on_sealed(sequence, sealed).await,
            Done::Outputs(stored) => self.on_outputs(stored).await,
            Done::Released(Ok(())) => self.on_released().await,
            Done::Released(Err(failure)) => self.trouble("releasing its slice", &failure),
        }
    }

    fn trouble(&mut self, what: &str, failure: &Failure) {
        tracing::error!(lease = %self.record.key.lease, what, %failure, "tried again");
        self.back_off();
    }

    /// Deletes every trace, except the log, which stays readable for a while.
    async fn forget(&mut self) {
        let (home, lease, logs) = (self.home.clone(), self.record.key.lease, self.shared.logs());
        let gone = blocking(move || {
            std::fs::create_dir_all(&logs)?;
            match std::fs::rename(home.folder.log(), logs.join(format!("{lease}.log"))) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => remove_tree(home.root()),
            }
        });
        match gone.await {
            Ok(()) => {
                self.shared.board.forget(lease);
                self.forgotten = true;
                tracing::info!(%lease, "forgotten");
            }
            Err(error) => {
                tracing::error!(%lease, error = in_one_line(&error), "its folder could not be removed");
                self.back_off();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// What is under way, if it is this.
    pub(super) fn is_doing(&self, wanted: Kind) -> bool {
        matches!(&self.work, Some(Work { kind, .. }) if *kind == wanted)
    }
}
