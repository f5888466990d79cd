//! Looking at a task: its end, its supervisor's view, its use of the slice, its staged checkpoints.

use std::process::Child;
use std::time::Duration;

use tokio::time::Instant;

use super::{Done, End, Kind, Task, USUAL, blocking};
use crate::error::{Failure, in_one_line};
use crate::home::Phase;
use crate::metrics::NodeMetrics;
use crate::supervisor::{
    self, ExitRecord, LaunchSpec, Liveness, Outcome, Status, SupervisorError, SupervisorIdentity, read_exit,
    read_identity, read_json, read_staged, settle,
};

/// How long a supervisor may take to say who it is.
const BEGIN: Duration = Duration::from_secs(30);
/// How long one is waited for that may have been started by an agent that was killed.
const MOMENT: Duration = Duration::from_secs(1);

impl Task {
    /// After a start of the agent: what became of the task meanwhile?
    pub(super) async fn find_again(&mut self) {
        for note in &self.record.sealed {
            let report = note.wire(&self.record.key);
            self.shared.board.seal(self.record.key, self.stage(), report);
        }
        if self.record.ended.is_some() {
            return;
        }
        if self.record.phase != Phase::Launched {
            // Its lease was of the boot before.
            self.end = self.now().is_none().then(|| End::Unstarted(lost()));
            return;
        }
        if let Some(grant) = self.record.grant.clone() {
            let backend = self.shared.config.backend.clone();
            if let Err(error) = blocking(move || backend.adopt(&grant)).await {
                tracing::warn!(lease = %self.record.key.lease, error = in_one_line(&error), "its slice was not found");
            }
        }
        match self.look_for_supervisor().await {
            Ok((Some(exit), _)) => self.on_exit(exit).await,
            Ok((None, Some(identity))) => {
                self.supervised = true;
                NodeMetrics::add(&self.shared.config.metrics.tasks_adopted, 1);
                tracing::info!(lease = %self.record.key.lease, pid = identity.pid, "found again");
            }
            // Neither began nor ended: it is launched again, and whoever begins first bars the other.
            Ok((None, None)) if self.now().is_some() => {}
            Ok((None, None)) => self.end = Some(End::Unstarted(lost())),
            Err(error) => {
                self.supervised = true;
                tracing::error!(lease = %self.record.key.lease, error = error.in_one_line(), "its folder is damaged");
            }
        }
    }

    /// Whether the task ended, and who supervises it. One that the agent before started just before it was killed has a
    /// moment to begin.
    async fn look_for_supervisor(&self) -> Result<(Option<ExitRecord>, Option<SupervisorIdentity>), SupervisorError> {
        let end = Instant::now() + MOMENT;
        loop {
            let folder = self.home.folder.clone();
            let found = blocking(move || Ok((read_exit(&folder)?, read_identity(&folder)?))).await;
            let may_begin = self.now().is_some() && self.home.folder.launch().exists() && Instant::now() < end;
            match found {
                Ok((None, None)) if may_begin => tokio::time::sleep(MOMENT / 20).await,
                other => return other,
            }
        }
    }

    /// Looks at a running task.
    pub(super) async fn observe(&mut self) {
        if !self.supervised || self.end.is_some() || self.record.ended.is_some() {
            return;
        }
        if let Some(child) = &mut self.child {
            // Reaps it; its end is read from its folder.
            let _running = child.try_wait();
        }
        let folder = self.home.folder.clone();
        match blocking(move || read_exit(&folder)).await {
            Ok(Some(exit)) => return self.on_exit(exit).await,
            Ok(None) => {}
            Err(error) => {
                tracing::error!(lease = %self.record.key.lease, error = error.in_one_line(), "exit record unreadable");
            }
        }
        let due = self.looked_at.is_none_or(|at| at.elapsed() >= USUAL) || self.is_in_motion();
        if !due {
            return;
        }
        let before = supervisor::boottime();
        self.read_usage();
        match self.client.status().await {
            Ok(status) => {
                self.looked_at = Some(Instant::now());
                self.on_status(status).await;
                self.seen_until = before;
            }
            Err(error) => self.on_silence(&error).await,
        }
    }

    /// The kernel's counters, while the slice is there.
    pub(super) fn read_usage(&mut self) {
        let Some(now) = self.now().filter(|_| self.record.grant.is_some()) else { return };
        if let Ok(usage) = self.shared.config.backend.usage(&self.record.key.lease.to_string()) {
            self.meter.sample(now, usage.cpu_nanos, usage.memory);
        }
    }

    async fn on_status(&mut self, status: Status) {
        if let Some(step) = status.last_step {
            self.record.last_step = step;
        }
        self.steps.extend(&status.steps);
        if let Some(started) = status.started_at
            && self.record.started.is_none()
            && self.cut_at(started).await
        {
            self.record.started = Some(started);
            self.save().await;
        }
        let news = status.staged.iter().any(|summary| !self.knows(summary.sequence));
        self.status = Some(status);
        if news {
            self.find_staged().await;
        }
    }

    fn knows(&self, sequence: u64) -> bool {
        self.staged.contains_key(&sequence)
            || self.record.sealed_sequences.back().is_some_and(|newest| *newest >= sequence)
    }

    /// Reads staged checkpoints that are not known yet, and cuts a window at each capture. `false` where some are left.
    pub(super) async fn find_staged(&mut self) -> bool {
        let folder = self.home.folder.clone();
        let found = match blocking(move || read_staged(&folder)).await {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(lease = %self.record.key.lease, error = error.in_one_line(), "staged checkpoints");
                return false;
            }
        };
        for manifest in found {
            if self.record.sealed_sequences.contains(&manifest.sequence) {
                // Sealed by an agent that was killed before it could remove it.
                self.remove_staged(manifest.sequence).await;
            } else if !self.staged.contains_key(&manifest.sequence) {
                if !self.cut_at_capture(manifest.sequence, manifest.captured_at).await {
                    // The disk is full: looked at again, in order.
                    return false;
                }
                self.staged.insert(manifest.sequence, manifest);
            }
        }
        true
    }

    pub(super) async fn remove_staged(&mut self, sequence: u64) {
        let path = self.home.folder.staged_set(sequence);
        if let Err(error) = blocking(move || crate::supervisor::remove_tree(&path)).await {
            tracing::warn!(lease = %self.record.key.lease, %error, "a stored checkpoint could not be removed");
        }
    }

    pub(super) async fn on_exit(&mut self, exit: ExitRecord) {
        if self.end.is_some() {
            return;
        }
        if let Some(step) = exit.last_step {
            self.record.last_step = step;
        }
        self.steps.extend(&exit.steps);
        if let (Some(started), None) = (exit.started_at, self.record.started)
            && !matches!(exit.outcome, Outcome::SupervisorLost)
            && self.cut_at(started).await
        {
            self.record.started = Some(started);
        }
        if self.record.boot == self.shared.boot && exit.cpu_nanos > 0 {
            self.meter.sample(exit.ended_at, exit.cpu_nanos, sluice_types::Bytes::ZERO);
        }
        self.all_found = self.find_staged().await;
        tracing::info!(lease = %self.record.key.lease, outcome = ?exit.outcome, "ended");
        self.end = Some(End::Exit(Box::new(exit)));
        self.save().await;
    }

    /// Nobody answers at the control socket: still starting, ending right now, or killed.
    async fn on_silence(&mut self, error: &SupervisorError) {
        let folder = self.home.folder.clone();
        let found = blocking(move || {
            let identity = read_identity(&folder)?;
            identity.map(|identity| identity.liveness()).transpose()
        });
        let gone = match found.await {
            Ok(Some(Liveness::Alive)) => false,
            Ok(Some(Liveness::Gone | Liveness::OtherBoot)) => true,
            Ok(None) => {
                let late = self.launched_at.is_none_or(|at| at.elapsed() > BEGIN);
                late || self.child.as_mut().is_some_and(has_ended)
            }
            Err(_) => true,
        };
        if gone && self.work.as_ref().is_none_or(|work| work.kind != Kind::Settle) {
            tracing::warn!(lease = %self.record.key.lease, error = error.in_one_line(), "its supervisor is gone");
            self.settle();
        }
    }

    /// Settles a folder without a supervisor: kills what is left and bars a later start.
    pub(super) fn settle(&mut self) {
        let folder = self.home.folder.clone();
        let (backend, key) = (self.shared.config.backend.clone(), self.record.key.lease.to_string());
        let patience = self.shared.config.limits.kill_patience;
        let work = async move {
            let settled = blocking(move || {
                // What cannot be read back must not keep the lease for ever: the lease names the group as well.
                let written = read_json::<LaunchSpec>(&folder.launch()).ok().flatten();
                let group = written.map_or_else(|| backend.group(&key), |launch| Ok(launch.group))?;
                settle(&folder, &group, patience)
            });
            Done::Settled(settled.await.map_err(Failure::from))
        };
        self.start(Kind::Settle, work);
    }
}

fn has_ended(child: &mut Child) -> bool {
    child.try_wait().is_ok_and(|status| status.is_some())
}

pub(super) fn lost() -> Failure {
    Failure { reason: sluice_types::Reason::NodeLost, message: "the host restarted before it began".to_owned() }
}
