//! Moves and copies: a move goes through its phases in truth, a job has one owner, and vaults have what rows say.

use sluice_lifecycle::Rows;
use sluice_lifecycle::model::{AttemptState, JobState, Migration, MigrationPhase};
use sluice_types::{Digest, LeaseId, SiteId};

use super::Oracle;
use crate::host::{Assignment, Host};
use crate::store::Store;

impl Oracle {
    /// A task has everything it needs to start at once.
    pub(crate) fn prepared(&mut self, lease: LeaseId) {
        self.prepared.insert(lease);
    }

    /// A vault has a manifest with all that it names.
    pub(crate) fn stored(&mut self, site: SiteId, manifest: Digest) {
        self.stored.insert((site, manifest));
    }

    /// A vault deleted what it was told to. Nothing that a job may go on from is ever among it.
    pub(crate) fn deleted(&mut self, now: u64, site: SiteId, manifest: Digest, store: &Store) {
        self.stored.remove(&(site, manifest));
        let heads = store.jobs.values().filter(|job| !job.state.is_terminal()).filter_map(|job| job.checkpoint);
        let starting = store.attempts.values().filter(|row| row.state != AttemptState::Ended && row.started.is_none());
        let needed = heads.chain(starting.filter_map(|row| row.resume)).filter_map(|id| store.checkpoints.get(&id));
        if needed.flat_map(|row| row.parts.values()).any(|part| part.manifest == manifest) {
            self.fail(now, format!("{manifest} is deleted at {site} and still needed"));
        }
    }

    /// Where rows say that a part is, it is.
    pub(crate) fn check_stored(&mut self, now: u64, rows: &Rows) {
        for row in rows.checkpoints.iter().filter(|row| !row.retired) {
            for part in row.parts.values() {
                let lacking = part.sealed.iter().find(|site| !self.stored.contains(&(**site, part.manifest)));
                if let Some(site) = lacking.copied() {
                    self.fail(now, format!("{} of {} is not at {site}", part.manifest, row.id));
                }
            }
        }
    }

    /// Each phase of a move begins when the one before is really over.
    pub(crate) fn check_moves(&mut self, now: u64, rows: &Rows, hosts: &[Host]) {
        for row in &rows.migrations {
            let before = self.phases.insert(row.id, row.phase).unwrap_or(MigrationPhase::Placing);
            if before >= row.phase || row.phase == MigrationPhase::Failed {
                continue;
            }
            if row.phase >= MigrationPhase::Stopping && before < MigrationPhase::Stopping {
                self.check_prepared(now, row, rows);
            }
            if row.phase >= MigrationPhase::Starting && before < MigrationPhase::Starting {
                self.check_shipped(now, row, rows, hosts);
            }
        }
    }

    fn check_prepared(&mut self, now: u64, row: &Migration, rows: &Rows) {
        let target = row.target.and_then(|id| {
            let fresh = rows.attempts.iter().find(|attempt| attempt.id == id);
            fresh.or_else(|| self.attempts.get(&id)).cloned()
        });
        let waits = target.map(|target| target.tasks.iter().any(|task| !self.prepared.contains(&task.lease)));
        if waits != Some(false) {
            self.fail(now, format!("{} stops its source before its target is prepared", row.id));
        }
    }

    fn check_shipped(&mut self, now: u64, row: &Migration, rows: &Rows, hosts: &[Host]) {
        let runs = |lease: LeaseId| {
            let mut tasks = hosts.iter().filter(|host| host.power).filter_map(|host| host.tasks.get(&lease));
            tasks.any(|task| task.process)
        };
        let source = rows.attempts.iter().find(|attempt| attempt.id == row.source);
        let source = source.or_else(|| self.attempts.get(&row.source));
        if source.is_some_and(|source| source.tasks.iter().any(|task| runs(task.lease))) {
            self.fail(now, format!("{} is handed over while its source runs", row.id));
        }
        let checkpoint = row.checkpoint.and_then(|id| {
            let fresh = rows.checkpoints.iter().find(|checkpoint| checkpoint.id == id).cloned();
            fresh.or_else(|| self.checkpoints.get(&id).cloned())
        });
        let there = checkpoint.is_some_and(|checkpoint| {
            checkpoint.is_complete()
                && checkpoint.parts.values().all(|part| self.stored.contains(&(row.to, part.manifest)))
        });
        if !there {
            self.fail(now, format!("{} is handed over and its checkpoint is not at {}", row.id, row.to));
        }
    }

    /// Of a job's attempts that count, one has processes.
    pub(crate) fn check_one_owner(&mut self, now: u64, wanted: &Assignment, hosts: &[Host]) {
        let counts = |id| self.attempts.get(&id).is_some_and(|row| row.state != AttemptState::Ended);
        let mut tasks = hosts.iter().filter(|host| host.power).flat_map(|host| host.tasks.values());
        let other = tasks.find(|task| {
            let key = task.wanted.key;
            task.process && task.wanted.job == wanted.job && key.attempt != wanted.key.attempt && counts(key.attempt)
        });
        if let Some(other) = other.map(|task| task.wanted.key.attempt) {
            let mine = wanted.key.attempt;
            if counts(mine) {
                self.fail(now, format!("{mine} is started while {other} runs"));
            }
        }
    }

    /// A job that has ended keeps nothing running that counts.
    pub(crate) fn check_ended(&mut self, now: u64, rows: &Rows) {
        for row in rows.jobs.iter().filter(|row| row.state.is_terminal() && row.state != JobState::Succeeded) {
            let attempt = row.current.and_then(|id| {
                let fresh = rows.attempts.iter().find(|attempt| attempt.id == id);
                fresh.or_else(|| self.attempts.get(&id))
            });
            if attempt.is_some_and(|attempt| attempt.state != AttemptState::Ended) {
                self.fail(now, format!("{} is {} and its attempt goes on", row.id, row.state.as_str()));
            }
        }
    }
}
