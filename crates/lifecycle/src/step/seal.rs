//! Checkpoints: sealed at one site, copied to others, retired when newer ones are safe.

use std::collections::BTreeMap;

use sluice_types::{AttemptId, CheckpointId, Digest, JobId, NodeId, NodeInstant, SiteId};

use super::Step;
use crate::command::{Answer, Refusal, TaskKey};
use crate::model::{AttemptState, Checkpoint, CheckpointPart, Job};
use crate::state::{Happened, State};

impl Step<'_> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn sealed(
        &mut self,
        node: NodeId,
        key: TaskKey,
        number: u64,
        manifest: Digest,
        size: u64,
        captured: NodeInstant,
        next_window: u64,
    ) {
        let Some(attempt) = self.state.attempts.get(&key.attempt).cloned() else { return };
        let Some(job) = self.state.jobs.get(&attempt.job).cloned() else { return };
        // The fence: only the owner's checkpoints become the job's.
        if attempt.state == AttemptState::Ended || job.current != Some(attempt.id) {
            self.state.count(|counters| &mut counters.stale_checkpoints);
            return self.discard_unnamed(job.id, node, manifest);
        }
        // Nodes repeat what they are not sure of. An older step of the same attempt is such a repetition, or too late to
        // be of use; taken for new it would move the job's head back.
        let newest = self.state.complete_checkpoints(&job).next();
        if newest.is_some_and(|row| row.generation == attempt.generation && row.step >= number) {
            return self.discard_unnamed(job.id, node, manifest);
        }
        let Some(site) = self.state.nodes.get(&node).map(|row| row.site) else { return };
        let rank = self.state.leases.get(&key.lease).map_or(0, |row| row.rank);
        let part = CheckpointPart { manifest, size, lease: key.lease, captured, next_window, sealed: vec![site] };
        let id = self.checkpoint_of(&job, attempt.id, number);
        let Some(row) = self.state.checkpoints.get_mut(&id) else { return };
        if row.parts.contains_key(&rank) {
            return self.discard_unnamed(job.id, node, manifest);
        }
        row.parts.insert(rank, part);
        let complete = row.is_complete();
        self.state.marks.sealed(manifest, id);
        if complete {
            self.completed(&job, id);
        }
    }

    /// A sealed manifest that did not become part of a checkpoint is of no use. Repetitions tell of those that did.
    fn discard_unnamed(&mut self, job: JobId, node: NodeId, manifest: Digest) {
        let ids = self.state.checkpoints_of.get(&job).into_iter().flatten();
        let mut rows = ids.filter_map(|id| self.state.checkpoints.get(id));
        let named = rows.any(|row| row.parts.values().any(|part| part.manifest == manifest));
        if let Some(site) = self.state.nodes.get(&node).map(|row| row.site).filter(|_| !named) {
            self.state.discard(site, manifest, self.now);
        }
    }

    /// The checkpoint that collects the parts of this attempt's step.
    fn checkpoint_of(&mut self, job: &Job, attempt: AttemptId, number: u64) -> CheckpointId {
        let known = self.state.checkpoints_of.get(&job.id).into_iter().flatten();
        let known = known.filter_map(|id| self.state.checkpoints.get(id));
        let same = known.into_iter().find(|row| row.attempt == attempt && row.step == number).map(|row| row.id);
        if let Some(id) = same {
            return id;
        }
        let id = CheckpointId::from_raw(self.id());
        let generation = self.state.attempts.get(&attempt).map_or(job.generation, |row| row.generation);
        let row = Checkpoint {
            id,
            job: job.id,
            attempt,
            generation,
            step: number,
            parent: job.checkpoint,
            parts: BTreeMap::new(),
            world: job.spec.tasks,
            created: self.now,
            retired: false,
        };
        self.state.checkpoints.insert(id, row);
        self.state.checkpoints_of.entry(job.id).or_default().insert(id);
        id
    }

    /// Every task's part is sealed: the job's head moves, in the same transaction.
    fn completed(&mut self, job: &Job, id: CheckpointId) {
        let number = self.state.checkpoints.get(&id).map_or(0, |row| row.step);
        if let Some(row) = self.state.jobs.get_mut(&job.id) {
            row.checkpoint = Some(id);
        }
        let what = Happened::new("CheckpointSealed", format!("step {number}"), "node");
        self.state.event(job, self.now, what);
        self.durable(job.id, id);
    }

    /// A vault has a manifest now, with all that it names.
    pub(super) fn copied(&mut self, site: SiteId, manifest: Digest) -> Result<Answer, Refusal> {
        let known = self.state.marks.by_manifest.get(&manifest).into_iter().flatten();
        let known = known.filter_map(|id| self.state.checkpoints.get(id));
        let touched = known
            .filter(|row| row.parts.values().any(|part| part.manifest == manifest && !part.sealed.contains(&site)));
        let touched: Vec<_> = touched.map(|row| (row.id, row.job)).collect();
        if touched.is_empty() && !self.state.names_manifest(manifest) {
            // Superseded while it was copied.
            self.state.discard(site, manifest, self.now);
        }
        for (id, job) in touched {
            if let Some(row) = self.state.checkpoints.get_mut(&id) {
                for part in row.parts.values_mut().filter(|part| part.manifest == manifest) {
                    part.sealed.push(site);
                    part.sealed.sort();
                    part.sealed.dedup();
                }
            }
            self.durable(job, id);
            self.hand_over(job);
            // A waiting job may now resume at this site too.
            self.state.jobs.mark(&job);
        }
        Ok(Answer::default())
    }

    /// If the checkpoint is durable now, older ones are not needed any more.
    fn durable(&mut self, job: JobId, id: CheckpointId) {
        let Some(row) = self.state.checkpoints.get(&id).cloned() else { return };
        let Some(owner) = self.state.jobs.get(&job).cloned() else { return };
        if !self.state.is_durable(&row) {
            return;
        }
        let what = Happened::new("CheckpointDurable", format!("step {}", row.step), "controller");
        self.state.event(&owner, self.now, what);
        let older = self.state.checkpoints_of.get(&job).into_iter().flatten();
        let older = older.filter_map(|other| self.state.checkpoints.get(other));
        let needed = self.checkpoints_in_use(job);
        // Durable may mean fewer sites for as long as a vault is away. What more sites have is kept until the newer one
        // has got as far: the vault comes back with it, and another may be lost before the copy is there.
        let sites = row.sites().len();
        let aim = State::durable_aim(&owner);
        let older: Vec<_> = older
            .filter(|other| !other.retired && !needed.contains(&other.id) && sites >= aim.min(other.sites().len()))
            .filter(|other| (other.generation, other.step, other.id) < (row.generation, row.step, id))
            .map(|other| other.id)
            .collect();
        for other in older {
            if let Some(row) = self.state.checkpoints.get_mut(&other) {
                row.retired = true;
                let parts: Vec<_> = row.parts.values().cloned().collect();
                parts.iter().for_each(|part| self.state.let_go(part, self.now));
                self.state.out.retired.push((job, other));
            }
        }
        // What an attempt still starts from, or a move carries over, is older and left: the job may yet go on from it.
        let left = self.state.checkpoints_of.get(&job).into_iter().flatten();
        let left = left.filter_map(|other| self.state.checkpoints.get(other));
        let left = left.filter(|other| other.is_complete() && !other.retired);
        if let Some(oldest) = left.min_by_key(|other| (other.generation, other.step, other.id)).cloned() {
            self.keep_windows(job, &oldest);
        }
    }

    /// Checkpoints that an attempt still starts from, or a move carries over.
    fn checkpoints_in_use(&self, job: JobId) -> Vec<CheckpointId> {
        let ids = self.state.attempts_of.get(&job).into_iter().flatten();
        let attempts = ids.filter_map(|id| self.state.attempts.get(id));
        let starting = attempts.filter(|row| !matches!(row.state, AttemptState::Running | AttemptState::Ended));
        let carried = self.open_migration(job).and_then(|row| row.checkpoint);
        starting.filter_map(|row| row.resume).chain(carried).collect()
    }

    /// Windows before the oldest checkpoint that a job could still resume from can never be replayed.
    fn keep_windows(&mut self, job: JobId, oldest: &Checkpoint) {
        let attempts: Vec<_> = self.state.attempts_of.get(&job).into_iter().flatten().copied().collect();
        for id in attempts {
            let Some(attempt) = self.state.attempts.get(&id).cloned() else { continue };
            if attempt.generation > oldest.generation {
                continue;
            }
            for task in &attempt.tasks {
                let part = oldest.parts.values().find(|part| part.lease == task.lease);
                let Some(lease) = self.state.leases.get_mut(&task.lease) else { continue };
                lease.keep_from = part.map_or(lease.next_window, |part| part.next_window);
                let keep_from = lease.keep_from;
                self.state.forget_windows(task.lease, keep_from);
            }
        }
    }
}
