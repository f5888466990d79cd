//! Storing what a task leaves: checkpoints in their order, then the outputs; then the slice is released and the ended
//! report stands.

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use sluice_types::Reason;
use tokio::time::Instant;

use super::{Done, End, Kind, Task, blocking, launch};
use crate::depot::{DepotError, OutputsOwner, Sealed, told};
use crate::error::Failure;
use crate::home::{EndedNote, SealedNote, StoredOutputs};
use crate::metrics::NodeMetrics;
use crate::reconcile::Goal;
use crate::supervisor::{CheckpointMode, ExitRecord, Ordered, Outcome, remove_tree};

/// How long a supervisor may take to end after it recorded the end of its task.
const REAP: Duration = Duration::from_secs(5);

/// Losses that the ended report tells in words, and how long each; the others are counted.
const TOLD: usize = 8;
const TEXT_BOUND: usize = 256;

/// What could not be stored.
#[derive(Debug, Default)]
pub(super) struct GivenUp {
    texts: Vec<String>,
    more: u64,
}

impl GivenUp {
    fn push(&mut self, text: &str) {
        if self.texts.len() < TOLD {
            self.texts.push(text.chars().take(TEXT_BOUND).collect());
        } else {
            self.more += 1;
        }
    }

    /// The number first: the report is cut at its end.
    fn texts(&self) -> impl Iterator<Item = String> {
        let more = (self.more > 0).then(|| format!("{} more losses than are told here", self.more));
        more.into_iter().chain(self.texts.iter().cloned())
    }
}

impl Task {
    /// Seals the oldest staged checkpoint, if nothing else is under way. One at a time keeps their order.
    pub(super) fn seal_next(&mut self) {
        if self.work.is_some() || Instant::now() < self.retry_at || self.wanted.goal().is_fenced() {
            return;
        }
        let Some(manifest) = self.staged.values().next().cloned() else { return };
        let Some(depot) = self.shared.depot.borrow().clone() else { return self.back_off() };
        let folder = self.home.folder.staged_set(manifest.sequence);
        let (world, parent) = (self.wanted.assignment.world_size(), self.record.parent);
        self.start(Kind::Seal, async move {
            let sealed = depot.store_checkpoint(&folder, &manifest, world, parent).await;
            Done::Sealed(manifest.sequence, sealed)
        });
    }

    pub(super) async fn on_sealed(&mut self, sequence: u64, sealed: Result<Sealed, DepotError>) {
        match sealed {
            Ok(sealed) => {
                let Some(manifest) = self.staged.remove(&sequence) else { return };
                let note = SealedNote {
                    step: manifest.step,
                    manifest: sealed.manifest,
                    bytes: sealed.bytes,
                    captured: manifest.captured_at,
                    next_window: self.record.cuts.get(&sequence).copied().unwrap_or(self.record.chain.sequence),
                };
                self.shared.board.seal(self.record.key, self.stage(), note.wire(&self.record.key));
                self.record.on_sealed(sequence, note);
                self.retry_pause = Duration::ZERO;
                let metrics = &self.shared.config.metrics;
                NodeMetrics::add(&metrics.checkpoints_sealed, 1);
                NodeMetrics::add(&metrics.checkpoint_bytes, sealed.bytes);
                // While the note is not on disk, the staged checkpoint is what a restart seals again.
                if self.save().await {
                    self.remove_staged(sequence).await;
                }
            }
            Err(error) => {
                let error_text = told(&error);
                tracing::warn!(lease = %self.record.key.lease, sequence, error = error_text, "not sealed");
                if error.is_final() {
                    self.drop_staged(sequence, &error_text).await;
                } else {
                    self.back_off();
                }
            }
        }
    }

    /// A checkpoint that can never be stored must not hold up those behind it.
    async fn drop_staged(&mut self, sequence: u64, why: &str) {
        self.staged.remove(&sequence);
        self.record.cuts.remove(&sequence);
        self.given_up.push(&format!("checkpoint {sequence} was not stored: {why}"));
        NodeMetrics::add(&self.shared.config.metrics.checkpoints_dropped, 1);
        self.remove_staged(sequence).await;
        self.save().await;
    }

    /// The next step after the end of the process.
    pub(super) async fn finish(&mut self) {
        let limit = self.shared.config.limits.finish;
        let finish_by = *self.finish_by.get_or_insert_with(|| Instant::now() + limit);
        let in_time = Instant::now() < finish_by;
        if !in_time {
            // A vault that fell silent may hold a conversation for longer than its results are waited for.
            self.drop_storing();
        }
        if self.work.is_some() || Instant::now() < self.retry_at {
            return;
        }
        let keeps = matches!(self.end, Some(End::Exit(_))) && !self.wanted.goal().is_fenced();
        if keeps && !self.all_found {
            self.all_found = self.find_staged().await;
        }
        if (keeps && !self.all_found) || !self.close_meter().await {
            return self.back_off();
        }
        if keeps && in_time {
            self.seal_next();
            if self.work.is_some() || !self.staged.is_empty() {
                return;
            }
            if self.record.outputs.is_none() {
                return self.store_outputs();
            }
        } else if keeps {
            self.give_up().await;
        }
        self.release();
    }

    async fn give_up(&mut self) {
        let waiting: Vec<u64> = self.staged.keys().copied().collect();
        for sequence in waiting {
            self.drop_staged(sequence, "the site's vault could not be reached in time").await;
        }
        if self.record.outputs.is_none() {
            self.given_up.push("the outputs were not stored: the site's vault could not be reached in time");
            self.record.outputs = Some(None);
        }
    }

    fn store_outputs(&mut self) {
        let folder = self.home.folder.outputs();
        if is_empty(&folder) {
            self.record.outputs = Some(None);
            return;
        }
        let assignment = &self.wanted.assignment;
        let Ok(job) = assignment.job() else {
            // Nothing was ever started under an assignment that cannot be read.
            self.record.outputs = Some(None);
            return;
        };
        let owner = OutputsOwner {
            job,
            attempt: assignment.key.attempt,
            generation: assignment.key.generation,
            rank: assignment.rank(),
            world_size: assignment.world_size(),
            step: self.record.last_step,
        };
        let Some(depot) = self.shared.depot.borrow().clone() else { return self.back_off() };
        let scratch = self.home.scratch();
        self.start(Kind::Outputs, async move { Done::Outputs(depot.store_outputs(&folder, &scratch, owner).await) });
    }

    pub(super) async fn on_outputs(&mut self, stored: Result<Option<StoredOutputs>, DepotError>) {
        match stored {
            Ok(stored) => self.record.outputs = Some(stored),
            Err(error) if error.is_final() => {
                self.given_up.push(&format!("the outputs were not stored: {}", told(&error)));
                self.record.outputs = Some(None);
            }
            Err(error) => {
                tracing::warn!(lease = %self.record.key.lease, error = told(&error), "outputs not stored yet");
                return self.back_off();
            }
        }
        self.save().await;
    }

    /// Releases the slice and cleans the folder.
    fn release(&mut self) {
        if self.is_doing(Kind::Release) {
            return;
        }
        let (shared, home, assignment) = (self.shared.clone(), self.home.clone(), self.wanted.assignment.clone());
        let granted = self.record.grant.is_some() && self.now().is_some();
        let key = self.record.key.lease.to_string();
        let child = self.child.take();
        let work = blocking(move || {
            let patience = shared.config.limits.kill_patience;
            let released = if granted { shared.config.backend.release(&key, patience).map(|_| ()) } else { Ok(()) };
            match released {
                Ok(()) | Err(sluice_device::DeviceError::Unknown(_)) => {}
                Err(error) => return Err(Failure::from(error)),
            }
            if let Some(child) = child {
                reap(child);
            }
            // A secret that stays is worse than a task that ends late.
            let secrets = launch::secrets_folder(&shared, &home, &assignment);
            remove_tree(&secrets).map_err(|error| Failure::host(format!("removing its secrets: {error}")))?;
            home.clean();
            Ok(())
        });
        self.start(Kind::Release, async move { Done::Released(work.await) });
    }

    pub(super) async fn on_released(&mut self) {
        let ended = self.ended();
        self.record.grant = None;
        self.staged.clear();
        self.record.ended = Some(ended);
        self.save().await;
        self.tell();
    }

    fn ended(&self) -> EndedNote {
        let mut note = EndedNote {
            exit_code: None,
            signal: 0,
            reason: None,
            message: String::new(),
            ended: Default::default(),
            outputs: self.record.outputs.flatten(),
            at_checkpoint: false,
            windows: self.record.chain.sequence,
            step: self.record.last_step,
        };
        match &self.end {
            Some(End::Exit(exit)) => self.describe_exit(exit, &mut note),
            Some(End::Unstarted(failure)) => {
                note.reason = Some(failure.reason);
                note.message.clone_from(&failure.message);
            }
            None => {}
        }
        for text in self.given_up.texts() {
            if !note.message.is_empty() {
                note.message.push_str("; ");
            }
            note.message.push_str(&text);
        }
        note.message = note.message.chars().take(1024).collect();
        note
    }

    fn describe_exit(&self, exit: &ExitRecord, note: &mut EndedNote) {
        note.ended = exit.ended_at;
        note.reason = exit.outcome.reason();
        match &exit.outcome {
            Outcome::Exited { code } => note.exit_code = Some(*code),
            Outcome::Signalled { signal } => {
                note.signal = u32::try_from(*signal).unwrap_or(0);
                note.message = format!("ended by signal {signal}");
            }
            Outcome::OutOfMemory => "killed at its memory cap".clone_into(&mut note.message),
            Outcome::RunLimit => "ran longer than its run limit".clone_into(&mut note.message),
            Outcome::DiskLimit { detail } | Outcome::StartFailed { detail } | Outcome::HostFailed { detail } => {
                note.message.clone_from(detail);
            }
            Outcome::SupervisorLost => "its supervisor was killed or the host restarted".clone_into(&mut note.message),
        }
        if matches!(exit.outcome, Outcome::StartFailed { .. } | Outcome::HostFailed { .. }) {
            if exit.started_at.is_none() {
                NodeMetrics::add(&self.shared.config.metrics.start_failures, 1);
            }
            if self.is_told_to_end() && exit.started_at.is_none() {
                // Barred before it began, because it was told to end.
                note.reason = Some(Reason::Signalled);
            }
        }
        note.at_checkpoint = self.is_at_checkpoint(exit);
        if note.at_checkpoint {
            note.reason = None;
        }
    }

    fn is_told_to_end(&self) -> bool {
        matches!(self.wanted.goal(), Goal::Stop | Goal::Release | Goal::Unlisted)
    }

    /// It ended by the order to stop at a checkpoint, and that checkpoint is sealed. Programs that know nothing of
    /// Sluice are ended by their supervisor once the set is complete, so for them a signal is the regular end.
    fn is_at_checkpoint(&self, exit: &ExitRecord) -> bool {
        let sealed = exit.order_sequence.is_some_and(|sequence| self.record.sealed_sequences.contains(&sequence));
        let ended = || {
            let policy = self.wanted.assignment.checkpoint();
            policy.is_ok_and(|policy| matches!(policy.mode, CheckpointMode::Directory { .. } | CheckpointMode::Home))
        };
        let by_order = exit.ordered == Some(Ordered::CheckpointAndExit);
        let well = match exit.outcome {
            Outcome::Exited { code: 0 } => true,
            Outcome::Exited { .. } | Outcome::Signalled { .. } => ended(),
            _ => false,
        };
        sealed && by_order && well
    }
}

/// Waits for a supervisor that has written its last; one that hangs all the same is ended.
fn reap(mut child: Child) {
    let end = std::time::Instant::now() + REAP;
    while matches!(child.try_wait(), Ok(None)) {
        if std::time::Instant::now() >= end {
            // Gone this very moment is as good.
            let _gone = child.kill();
            let _status = child.wait();
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_without_end_are_told_in_bounds() {
        let mut given_up = GivenUp::default();
        (0..100).for_each(|sequence| given_up.push(&format!("{sequence}{}", "x".repeat(1000))));
        let texts: Vec<_> = given_up.texts().collect();
        assert_eq!((texts.len(), texts[0].as_str()), (TOLD + 1, "92 more losses than are told here"));
        assert!(texts.iter().all(|text| text.len() <= TEXT_BOUND));
    }
}
