//! Jobs as users see them.

use std::collections::HashMap;

use sluice_ledger::quote;
use sluice_lifecycle::model::{Attempt, Checkpoint, Job};
use sluice_proto::convert::{self, JobParts};
use sluice_proto::v1;
use sluice_types::{Nanos, SiteId};
use tonic::Status;

use super::{Api, store_status};

impl Api {
    /// A job with everything that belongs to it: for one job at a time.
    pub(super) async fn show_job(&self, job: &Job) -> Result<v1::Job, Status> {
        let current = match job.current {
            Some(id) => self.store.attempts_by_ids(&[id]).await.map_err(store_status)?.pop(),
            None => self.store.latest_attempt(job.id).await.map_err(store_status)?,
        };
        let current = current.as_ref();
        let checkpoint = match job.checkpoint {
            Some(id) => self.store.get_checkpoint(id).await.map_err(store_status)?,
            None => None,
        };
        let migration = match job.migration {
            Some(id) => self.store.get_migration(id).await.map_err(store_status)?,
            None => None,
        };
        let carried = match migration.as_ref().and_then(|row| row.checkpoint) {
            Some(id) => self.store.get_checkpoint(id).await.map_err(store_status)?.map_or(0, |row| row.step),
            None => 0,
        };
        let (held, hourly) = (self.held(job).await?, self.hourly(job).await?);
        let durable = checkpoint.as_ref().is_some_and(|row| self.is_durable(job, row));
        let directory = self.directory.read();
        let node = |task: &sluice_lifecycle::model::TaskRow| directory.node_path(task.device.node);
        let parts = JobParts {
            parent: &directory.project_path(job.project),
            attempt: current,
            nodes: current.map(|row| row.tasks.iter().map(node).collect()).unwrap_or_default(),
            checkpoint: checkpoint.map(|row| convert::checkpoint(&row, durable, &*directory)),
            migration: migration.map(|row| convert::migration(&row, carried, &*directory)),
            held,
            hourly,
        };
        Ok(convert::job(job, parts, &*directory))
    }

    /// Listed jobs with where they are: one query for all of them.
    pub(super) async fn show_placed(&self, jobs: &[Job]) -> Result<Vec<v1::Job>, Status> {
        let ids: Vec<_> = jobs.iter().filter_map(|job| job.current).collect();
        let attempts = match ids.is_empty() {
            true => Vec::new(),
            false => self.store.attempts_by_ids(&ids).await.map_err(store_status)?,
        };
        let attempts: HashMap<_, _> = attempts.iter().map(|row| (row.id, row)).collect();
        let current = |job: &Job| job.current.and_then(|id| attempts.get(&id).copied());
        Ok(jobs.iter().map(|job| self.show_brief(job, current(job))).collect())
    }

    /// A job from its own row alone: for lists, and for the answer to a submit.
    pub(super) fn show_brief(&self, job: &Job, attempt: Option<&Attempt>) -> v1::Job {
        let directory = self.directory.read();
        let parent = directory.project_path(job.project);
        convert::job(job, JobParts { parent: &parent, attempt, ..JobParts::default() }, &*directory)
    }

    /// What a job's leases cost per hour, while it holds some.
    async fn hourly(&self, job: &Job) -> Result<i64, Status> {
        let leases = self.store.open_leases_of(job.id).await.map_err(store_status)?;
        let held = leases.iter().filter(|row| row.state == sluice_lifecycle::model::LeaseState::Held);
        let hour = Nanos::from_secs(3600);
        Ok(held.filter_map(|row| quote(&row.terms, hour).ok()).map(sluice_types::Credits::units).sum())
    }

    /// Whether a checkpoint is at as many sites as the job's policy names, within what there is.
    pub(super) fn is_durable(&self, job: &Job, row: &Checkpoint) -> bool {
        let policy = job.spec.checkpoint.as_ref().map_or(0, |policy| policy.durable_sites);
        let wanted = if policy == 0 { 2 } else { usize::try_from(policy).unwrap_or(usize::MAX) };
        let directory = self.directory.read();
        let residency = directory.projects.get(&job.project).map(|row| row.sites.clone()).unwrap_or_default();
        let allowed = |site: &SiteId| {
            (job.spec.sites.is_empty() || job.spec.sites.contains(site))
                && (residency.is_empty() || residency.contains(site))
        };
        let vaults =
            directory.sites.values().filter(|site| site.has_vault() && !site.vault_away && allowed(&site.id)).count();
        row.is_complete() && row.sites().len() >= wanted.min(vaults).max(1)
    }
}
