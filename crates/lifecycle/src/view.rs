//! What others derive from the state: what the scheduler should place, what nodes should do, what vaults should copy.
//!
//! All of it is computed from committed rows and nothing else, so it can be computed again at any time.

use serde::{Deserialize, Serialize};
use sluice_plan::{JobView, Purpose};
use sluice_types::{CheckpointId, Digest, JobId, Nanos, NodeId, SiteId, Timestamp};

use crate::command::TaskKey;
use crate::model::{
    Attempt, AttemptState, Capture, Checkpoint, Goal, Job, JobState, LeaseState, MigrationPhase, NodeState, TaskState,
};
use crate::state::State;

/// What one task should be doing, as rows say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Whose.
    pub key: TaskKey,
    /// What it should be doing.
    pub goal: Goal,
    /// Grows with every change.
    pub revision: u64,
    /// Its place in the gang.
    pub rank: u32,
    /// The checkpoint part to start from.
    pub resume: Option<(Digest, u64)>,
    /// Until when a stop at a checkpoint is waited for.
    pub deadline: Option<Timestamp>,
    /// How it is to stop at a checkpoint.
    pub stop: StopStep,
}

/// At which step boundary a task stops, when it is told to stop at a checkpoint.
///
/// The tasks of a gang wait for each other within a step, so they can only stop at the same one. As in blocking
/// coordinated checkpointing (Elnozahy et al., "A survey of rollback-recovery protocols in message-passing systems", 2002)
/// they are first held, each at its next boundary, and then told a boundary that none of them has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopStep {
    /// At the next one.
    Next,
    /// It is held at the next one and tells which step it had finished before.
    Hold,
    /// At the first one from this step on.
    From(u64),
}

/// A copy that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Copy {
    /// Where to.
    pub to: SiteId,
    /// What.
    pub manifest: Digest,
    /// Sites that have it.
    pub from: Vec<SiteId>,
}

impl State {
    /// What the scheduler should place for a job, if anything.
    #[must_use]
    pub fn wanted(&self, job: &Job, now: Timestamp) -> Option<JobView> {
        let (purpose, sites) = match job.state {
            JobState::Pending if self.is_held_back(job) => return None,
            JobState::Pending => (Purpose::Run, self.sites_to_run_at(job)),
            JobState::Migrating => {
                let migration = self.migrations.get(&job.migration?)?;
                if migration.phase != MigrationPhase::Placing {
                    return None;
                }
                (Purpose::Migrate, vec![migration.to])
            }
            _ => return None,
        };
        let state_at = match purpose {
            // What another job left is fetched from wherever it is: its new owner chose the site.
            Purpose::Run => self.resumable(job).filter(|row| !row.is_lent()).map(Checkpoint::sites).unwrap_or_default(),
            Purpose::Migrate => Vec::new(),
        };
        Some(JobView {
            id: job.id,
            version: job.version,
            tenant: job.tenant,
            project: job.project,
            priority: job.spec.priority,
            purpose,
            tasks: job.spec.tasks,
            resources: job.spec.resources.clone(),
            sites,
            state_at,
            hold_time: self.hold_time(job),
            budgets: self.budget_accounts(job.tenant, job.project, now),
            firm: job.spec.kind.is_firm(),
        })
    }

    /// Where it may be placed: a purchase begins where it was quoted, and later goes on at any site that it may be at.
    fn sites_to_run_at(&self, job: &Job) -> Vec<SiteId> {
        let allowed = self.allowed_sites(job);
        match job.purchase.and_then(|purchase| purchase.begins_at) {
            Some(site) if job.attempts == 0 => common_sites(&[site], &allowed),
            _ => allowed,
        }
    }

    /// Sites at which a job could start now, as far as is seen without a scheduler: it may be there, what it goes on from
    /// is there, and a node with a device of its class takes work.
    pub(crate) fn sites_to_start_at(&self, job: &Job) -> Vec<SiteId> {
        let allowed = self.sites_to_run_at(job);
        let state = self.resumable(job).filter(|row| !row.is_lent()).map(Checkpoint::sites).unwrap_or_default();
        let open = |site: SiteId| {
            let mut nodes = self.nodes.values().filter(|node| node.site == site && self.is_open(node));
            nodes.any(|node| node.devices.iter().any(|device| device.view.class == job.spec.resources.class))
        };
        let sites = self.sites.values().map(|site| site.id);
        let fits = |site: &SiteId| {
            (allowed.is_empty() || allowed.contains(site)) && (state.is_empty() || state.contains(site)) && open(*site)
        };
        sites.filter(fits).collect()
    }

    /// Sites that both the job and its project's residency allow; empty = any.
    pub(crate) fn allowed_sites(&self, job: &Job) -> Vec<SiteId> {
        let residency = self.projects.get(&job.project).map(|project| project.sites.clone()).unwrap_or_default();
        common_sites(&job.spec.sites, &residency)
    }

    /// Run time held at admission: what is left of the run limit, or some windows.
    pub(crate) fn hold_time(&self, job: &Job) -> Nanos {
        match job.spec.max_run_time {
            Some(limit) => Nanos::new(limit.minus(job.run_time).get().max(1_000_000_000)),
            None => self.settings.held_ahead(),
        }
    }

    /// The newest complete checkpoint that a site alive has; where none is alive, the newest there is.
    pub(crate) fn resumable(&self, job: &Job) -> Option<&Checkpoint> {
        let complete = || self.complete_checkpoints(job);
        complete()
            .find(|checkpoint| checkpoint.sites().iter().any(|site| self.is_site_alive(*site)))
            .or_else(|| complete().next())
    }

    /// The newest complete checkpoint that `site` has, or what the job began with, wherever that is.
    pub(crate) fn resumable_at(&self, job: &Job, site: SiteId) -> Option<CheckpointId> {
        self.complete_checkpoints(job).find(|row| row.sites().contains(&site) || row.is_lent()).map(|row| row.id)
    }

    /// Complete checkpoints that are not retired, newest first: by generation, then step.
    pub(crate) fn complete_checkpoints(&self, job: &Job) -> impl Iterator<Item = &Checkpoint> {
        let ids = self.checkpoints_of.get(&job.id);
        let mut rows: Vec<_> = ids
            .into_iter()
            .flatten()
            .filter_map(|id| self.checkpoints.get(id))
            .filter(|row| row.is_complete() && !row.retired)
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse((row.generation, row.step, row.id)));
        rows.into_iter()
    }

    /// At how many sites a job's checkpoints must be to be durable: the policy's number, within what there is.
    pub(crate) fn durable_sites(&self, job: &Job) -> usize {
        Self::durable_aim(job).min(self.storage_sites(job).count()).max(1)
    }

    /// The policy's number, whatever there is.
    pub(crate) fn durable_aim(job: &Job) -> usize {
        let policy = job.spec.checkpoint.as_ref().map_or(0, |policy| policy.durable_sites);
        if policy == 0 { 2 } else { usize::try_from(policy).unwrap_or(usize::MAX) }
    }

    /// Sites with a vault in reach that may keep the job's bytes, in the order of their ids.
    fn storage_sites(&self, job: &Job) -> impl Iterator<Item = SiteId> {
        let allowed = self.allowed_sites(job);
        let fits = move |site: &SiteId| allowed.is_empty() || allowed.contains(site);
        self.sites.values().filter(|site| site.has_vault() && !site.vault_away).map(|site| site.id).filter(fits)
    }

    /// Whether a checkpoint is durable.
    #[must_use]
    pub fn is_durable(&self, checkpoint: &Checkpoint) -> bool {
        let Some(job) = self.jobs.get(&checkpoint.job) else { return false };
        checkpoint.is_complete() && checkpoint.sites().len() >= self.durable_sites(job)
    }

    /// What every task on `node` should be doing, by lease. Tasks that proved their end are not on the list.
    #[must_use]
    pub fn wishes(&self, node: NodeId) -> Vec<Wish> {
        let leases = self.leases_on.get(&node).into_iter().flatten().filter_map(|id| self.leases.get(id));
        leases
            .filter(|lease| matches!(lease.state, LeaseState::Held | LeaseState::Ending))
            .filter_map(|lease| {
                let attempt = self.attempts.get(&lease.attempt)?;
                Some(self.wish(attempt, lease.rank, lease.id))
            })
            .collect()
    }

    fn wish(&self, attempt: &Attempt, rank: u32, lease: sluice_types::LeaseId) -> Wish {
        let resume = attempt.resume.and_then(|id| self.checkpoints.get(&id));
        let part = resume.and_then(|row| Some((row.parts.get(&rank)?.manifest, row.step)));
        Wish {
            key: TaskKey { attempt: attempt.id, lease, generation: attempt.generation },
            goal: if attempt.state == AttemptState::Ended { Goal::Release } else { attempt.goal },
            revision: attempt.revision,
            rank,
            resume: part,
            deadline: attempt.order.map(|order| order.deadline),
            stop: self.stop_step(attempt),
        }
    }

    fn stop_step(&self, attempt: &Attempt) -> StopStep {
        match attempt.order.and_then(|order| order.stop_step) {
            Some(step) => StopStep::From(step),
            None if self.meets(attempt) => StopStep::Hold,
            None => StopStep::Next,
        }
    }

    /// Its tasks have to stop at one step, and tell their steps. Programs that are told by a signal see to it themselves.
    pub(crate) fn meets(&self, attempt: &Attempt) -> bool {
        let policy = self.jobs.get(&attempt.job).and_then(|job| job.spec.checkpoint.as_ref());
        attempt.tasks.len() > 1 && policy.is_some_and(|policy| policy.capture == Capture::StateProvider)
    }

    /// Checkpoint parts that should be copied: newest checkpoints that are not durable yet, and whatever an open
    /// migration needs at its target.
    #[must_use]
    pub fn copies(&self) -> Vec<Copy> {
        let mut copies = Vec::new();
        self.marks.copying.iter().for_each(|job| self.copies_of(*job, &mut copies));
        copies.sort();
        copies.dedup();
        copies
    }

    /// The copies that are wanted for one job.
    pub(crate) fn copies_of(&self, job: JobId, copies: &mut Vec<Copy>) {
        let Some(job) = self.jobs.get(&job).filter(|job| !job.state.is_terminal()) else { return };
        let Some(newest) = self.complete_checkpoints(job).next() else { return };
        for site in self.copy_targets(job, newest) {
            for part in newest.parts.values().filter(|part| !part.sealed.contains(&site)) {
                copies.push(Copy { to: site, manifest: part.manifest, from: part.sealed.clone() });
            }
        }
    }

    /// Sites that should get `checkpoint`.
    fn copy_targets(&self, job: &Job, checkpoint: &Checkpoint) -> Vec<SiteId> {
        let mut have = checkpoint.sites();
        let mut targets = Vec::new();
        let migration = job.migration.and_then(|id| self.migrations.get(&id)).filter(|row| row.is_open());
        if let Some(to) = migration.map(|row| row.to).filter(|to| !have.contains(to)) {
            targets.push(to);
            have.push(to);
        }
        // What another job left is fetched where it is needed first, and is to be known there.
        let first = job.current.and_then(|id| self.attempts.get(&id)).map(|row| row.site);
        if let Some(site) = first.filter(|site| checkpoint.is_lent() && !have.contains(site)) {
            targets.push(site);
            have.push(site);
        }
        let missing = self.durable_sites(job).saturating_sub(have.len());
        targets.extend(self.storage_sites(job).filter(|site| !have.contains(site)).take(missing));
        targets
    }

    /// Tasks whose node never answered within the start deadline, and other marks of time, are found by the tick; this
    /// says when the next of them is due, so that a driver can sleep until then.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let ready = self.nodes.values().filter(|node| node.state == NodeState::Ready);
        let losses = ready.map(|node| node.last_seen.after(self.settings.loss_timeout));
        let moves = self.migrations.values().filter(|row| row.is_open()).map(|row| row.deadline);
        let orders = self.attempts.values().filter_map(|row| row.order).map(|order| order.deadline);
        losses.chain(moves).chain(orders).min()
    }

    /// A task of an attempt that has not ended.
    pub(crate) fn has_live_tasks(attempt: &Attempt) -> bool {
        attempt.tasks.iter().any(|task| task.state != TaskState::Ended)
    }
}

/// Sites that both lists allow, where an empty list allows any.
#[must_use]
pub fn common_sites(wanted: &[SiteId], residency: &[SiteId]) -> Vec<SiteId> {
    match (wanted.is_empty(), residency.is_empty()) {
        (true, _) => residency.to_vec(),
        (false, true) => wanted.to_vec(),
        (false, false) => {
            let both: Vec<_> = wanted.iter().filter(|site| residency.contains(site)).copied().collect();
            // "Nothing in common" must not read as "any": no site has this id.
            if both.is_empty() { vec![SiteId::from_raw(0)] } else { both }
        }
    }
}
