//! Which rows time and events may act on, so that nobody looks at all of them.
//!
//! Kept from the rows that a step changed, at its end. Inside a step a mark may be missing or be one too many, so
//! whoever follows it checks the row again; what a step changed itself is in its rows anyway.

use std::collections::{BTreeMap, BTreeSet};

use sluice_types::{AttemptId, CheckpointId, Digest, JobId, MigrationId};

use crate::model::{Attempt, AttemptState, Checkpoint, Goal, Job, JobState, Migration};
use crate::step::{is_reclaimed, waits_for_lent};

/// Marks on rows of the working set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Marks {
    /// Jobs that the scheduler may be told of.
    pub(crate) waiting: BTreeSet<JobId>,
    /// Jobs that wait for what their own tenants lend.
    pub(crate) lent: BTreeSet<JobId>,
    /// Jobs that were suspended for want of quota.
    pub(crate) reclaimed: BTreeSet<JobId>,
    /// Attempts that should be running but do not run yet.
    pub(crate) starting: BTreeSet<AttemptId>,
    /// Attempts that were told to stop at a checkpoint.
    pub(crate) stopping: BTreeSet<AttemptId>,
    /// Ended attempts whose last windows are not in.
    pub(crate) unsettled: BTreeSet<AttemptId>,
    /// Migrations under way.
    pub(crate) moving: BTreeSet<MigrationId>,
    /// All migrations of a job that is in memory.
    pub(crate) moves_of: BTreeMap<JobId, BTreeSet<MigrationId>>,
    /// Checkpoints with a part of this manifest. Several jobs may seal the same bytes.
    pub(crate) by_manifest: BTreeMap<Digest, BTreeSet<CheckpointId>>,
    /// Jobs with a copy that is wanted.
    pub(crate) copying: BTreeSet<JobId>,
}

fn set<K: Ord>(marks: &mut BTreeSet<K>, key: K, marked: bool) {
    if marked {
        marks.insert(key);
    } else {
        marks.remove(&key);
    }
}

impl Marks {
    pub(crate) fn job(&mut self, row: &Job) {
        set(&mut self.waiting, row.id, matches!(row.state, JobState::Pending | JobState::Migrating));
        set(&mut self.lent, row.id, waits_for_lent(row));
        set(&mut self.reclaimed, row.id, is_reclaimed(row));
    }

    pub(crate) fn attempt(&mut self, row: &Attempt) {
        let live = row.state != AttemptState::Ended;
        set(&mut self.starting, row.id, row.state == AttemptState::Assigned && row.goal == Goal::Run);
        set(&mut self.stopping, row.id, live && row.goal == Goal::Checkpoint);
        set(&mut self.unsettled, row.id, !live && !row.settled);
    }

    pub(crate) fn migration(&mut self, row: &Migration) {
        set(&mut self.moving, row.id, row.is_open());
        self.moves_of.entry(row.job).or_default().insert(row.id);
    }

    /// A part was sealed. Told at once: the vaults' word on it may come in the same step.
    pub(crate) fn sealed(&mut self, manifest: Digest, checkpoint: CheckpointId) {
        self.by_manifest.entry(manifest).or_default().insert(checkpoint);
    }

    pub(crate) fn forget_job(&mut self, id: JobId) {
        for marks in [&mut self.waiting, &mut self.lent, &mut self.reclaimed] {
            marks.remove(&id);
        }
        self.copying.remove(&id);
        for migration in self.moves_of.remove(&id).unwrap_or_default() {
            self.moving.remove(&migration);
        }
    }

    pub(crate) fn forget_attempt(&mut self, id: AttemptId) {
        for marks in [&mut self.starting, &mut self.stopping, &mut self.unsettled] {
            marks.remove(&id);
        }
    }

    pub(crate) fn forget_checkpoint(&mut self, row: &Checkpoint) {
        for part in row.parts.values() {
            if let Some(known) = self.by_manifest.get_mut(&part.manifest) {
                known.remove(&row.id);
                if known.is_empty() {
                    self.by_manifest.remove(&part.manifest);
                }
            }
        }
    }
}
