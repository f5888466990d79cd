//! Runs, rebuilt from the step logs that the jobs wrote: on the line of checkpoints that leads to a result every step
//! was done exactly once, and no result comes from an attempt that was fenced.

use std::collections::{BTreeMap, BTreeSet};

use sluice_lifecycle::Rows;
use sluice_lifecycle::model::{Checkpoint, CheckpointPart, Goal, JobKind, JobState, MigrationPhase};
use sluice_types::{AttemptId, JobId};

use super::{Launch, Oracle};
use crate::host::Assignment;
use crate::process::Program;
use crate::store::Store;

impl Oracle {
    /// A start: the checkpoint is the job's own, complete, and of the step that was told.
    pub(crate) fn check_resume(&mut self, now: u64, wanted: &Assignment) {
        let Some((manifest, step)) = wanted.resume else { return };
        let Some(part) = self.parts.get(&manifest).cloned() else {
            return self.fail(now, format!("{} resumes from a manifest that nobody sealed", wanted.key.attempt));
        };
        let right = part.job == wanted.job && part.rank == wanted.rank && part.step == step;
        let older = part.generation < wanted.key.generation;
        let all = self.parts.values().filter(|other| other.attempt == part.attempt && other.step == part.step).count();
        if !right || !older || all != usize::try_from(part.world).unwrap_or(0) {
            self.fail(now, format!("{} resumes at {step} from {part:?}", wanted.key.attempt));
        }
    }

    /// A job that is placed to run goes on from the newest checkpoint that its site had before the commit.
    pub(crate) fn check_newest(&mut self, now: u64, rows: &Rows) {
        let placed =
            rows.attempts.iter().filter(|row| !self.attempts.contains_key(&row.id) && row.goal != Goal::Prepare);
        let mut older = Vec::new();
        for attempt in placed {
            let retired = |id| rows.checkpoints.iter().any(|row| row.id == id && row.retired);
            let of_job = self.checkpoints.values().filter(|row| row.job == attempt.job && row.is_complete());
            let there = of_job.filter(|row| {
                let stored = |part: &CheckpointPart| self.stored.contains(&(attempt.site, part.manifest));
                !row.retired
                    && !retired(row.id)
                    && row.sites().contains(&attempt.site)
                    && row.parts.values().all(stored)
            });
            let place = |row: &Checkpoint| (row.generation, row.step);
            let newest = there.map(place).max();
            let fresh = |id| rows.checkpoints.iter().find(|row| row.id == id).or_else(|| self.checkpoints.get(&id));
            let resumed = attempt.resume.and_then(fresh).map(place);
            if resumed < newest {
                older.push(format!("{} resumes behind {resumed:?}, {} has {newest:?}", attempt.id, attempt.site));
            }
        }
        older.into_iter().for_each(|what| self.fail(now, what));
    }

    /// Results land once, from the newest attempt that ever ran.
    pub(crate) fn check_jobs(&mut self, now: u64, rows: &Rows) {
        for row in &rows.jobs {
            let before = self.over.insert(row.id, row.state.is_terminal());
            if before == Some(true) && !row.state.is_terminal() {
                self.fail(now, format!("{} is {} after its end", row.id, row.state.as_str()));
            }
            if before == Some(true) || row.state != JobState::Succeeded {
                continue;
            }
            let launches = self.launches.values().filter(|launch| launch.job == row.id);
            let newest = launches.max_by_key(|launch| launch.generation).map(|launch| launch.generation);
            if newest != Some(row.generation) {
                let (told, newest) = (row.generation, newest.unwrap_or_default());
                self.fail(now, format!("{} succeeded by generation {told}, {newest} has run", row.id));
            }
        }
        for row in rows.migrations.iter().filter(|row| row.phase == MigrationPhase::Done) {
            let source = self.last_step(row.source);
            let target = row.target.and_then(|target| self.first_launch(target));
            let resumed = target.map(|launch| launch.resume.map_or(0, |resume| resume.1));
            if resumed != source {
                self.fail(now, format!("{} replays: stopped behind {source:?}, resumed behind {resumed:?}", row.id));
            }
        }
    }

    /// A task of a gang stops behind this step, as it was told. None of those that were told the same is past it: they
    /// wait for each other, so it would neither get further nor stop.
    pub(crate) fn stops(&mut self, now: u64, wanted: &Assignment, step: u64, peers_in: &[u64]) {
        let attempt = wanted.key.attempt;
        if let Some(past) = peers_in.iter().find(|within| **within > step)
            && !self.let_go.contains(&attempt)
        {
            self.fail(now, format!("a task of {attempt} stops behind {step} and another is in {past}"));
        }
    }

    fn first_launch(&self, attempt: AttemptId) -> Option<&Launch> {
        self.launches.values().find(|launch| launch.attempt == attempt && launch.rank == 0)
    }

    fn last_step(&self, attempt: AttemptId) -> Option<u64> {
        let launch = self.first_launch(attempt)?;
        launch.steps.last().map(|step| step.0).or(Some(launch.resume.map_or(0, |resume| resume.1)))
    }

    /// At the end: every success has a line of attempts that did each step once.
    pub(crate) fn check_lineages(&mut self, now: u64, store: &Store, programs: &[Program]) {
        let mut by_job: BTreeMap<JobId, Vec<Launch>> = BTreeMap::new();
        for launch in self.launches.values() {
            by_job.entry(launch.job).or_default().push(launch.clone());
        }
        for job in store.jobs.values().filter(|job| job.state == JobState::Succeeded) {
            if job.spec.kind != JobKind::Batch {
                continue; // it has no result: its time was over
            }
            self.succeeded += 1;
            let launches = by_job.get(&job.id).map_or(&[][..], Vec::as_slice);
            let ranks: BTreeSet<u32> = launches.iter().map(|launch| launch.rank).collect();
            if ranks.len() != usize::try_from(job.spec.tasks).unwrap_or(0) {
                self.fail(now, format!("{} succeeded with ranks {ranks:?}", job.id));
            }
            let total = launches.first().and_then(|launch| programs.get(launch.program)).map_or(0, |plan| plan.steps);
            for rank in ranks {
                let of_rank: Vec<_> = launches.iter().filter(|launch| launch.rank == rank).collect();
                if let Err(broken) = self.check_line(&of_rank, total) {
                    self.fail(now, format!("{} rank {rank}: {broken}", job.id));
                }
            }
            let done: usize = launches.iter().filter(|launch| launch.rank == 0).map(|launch| launch.steps.len()).sum();
            self.replayed += u64::try_from(done).unwrap_or(0).saturating_sub(total);
        }
    }

    /// Walks back from the attempt that reached the last step.
    fn check_line(&self, launches: &[&Launch], total: u64) -> Result<(), String> {
        let ends: Vec<_> =
            launches.iter().filter(|launch| launch.steps.last().is_some_and(|step| step.0 == total)).collect();
        let Some(mut at) = ends.iter().max_by_key(|launch| launch.generation).copied().copied() else {
            return Err(format!("no attempt reached step {total}"));
        };
        let mut until = total;
        loop {
            let from = at.resume.map_or(0, |resume| resume.1);
            for (step, (done, _)) in (from + 1..=until).zip(&at.steps) {
                if step != *done {
                    return Err(format!("{} did step {done} where {step} was due", at.attempt));
                }
            }
            let done = at.steps.iter().filter(|step| step.0 <= until).count();
            if u64::try_from(done).unwrap_or(0) != until - from {
                return Err(format!("{} did {done} steps from {from} to {until}", at.attempt));
            }
            let Some((manifest, _)) = at.resume else { return Ok(()) };
            let Some(part) = self.parts.get(&manifest) else { return Err("a manifest is unknown".to_owned()) };
            until = part.step;
            match launches.iter().find(|launch| launch.lease == part.lease) {
                Some(parent) if parent.at < at.at => at = parent,
                _ => return Err(format!("{} resumes from an attempt that did not run before", at.attempt)),
            }
        }
    }
}
