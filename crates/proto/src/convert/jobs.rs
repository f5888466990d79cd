//! Jobs and what belongs to them.

use sluice_lifecycle::model::{
    Attempt, Checkpoint, Event, Job, JobState, Migration, MigrationCause, MigrationPhase, TaskState,
};

use super::{SiteNames, duration, job_spec_back, timestamp};
use crate::v1;

/// What a job is shown with.
#[derive(Debug, Default)]
pub struct JobParts<'a> {
    /// Its resource name's parent: "tenants/…/projects/…".
    pub parent: &'a str,
    /// The attempt that owns it, or the last one.
    pub attempt: Option<&'a Attempt>,
    /// Full names of the nodes of its tasks, by rank.
    pub nodes: Vec<String>,
    /// Its newest checkpoint.
    pub checkpoint: Option<v1::Checkpoint>,
    /// Its migration.
    pub migration: Option<v1::Migration>,
    /// What is held for it.
    pub held: i64,
    /// What it costs per hour.
    pub hourly: i64,
}

/// A job for the wire.
#[must_use]
pub fn job(job: &Job, parts: JobParts<'_>, sites: &impl SiteNames) -> v1::Job {
    let tasks = parts.attempt.map(|attempt| tasks(attempt, &parts.nodes)).unwrap_or_default();
    let message = match (&job.reason, job.message.is_empty()) {
        (Some(reason), true) => reason.meaning().trim().to_owned(),
        _ => job.message.clone(),
    };
    v1::Job {
        name: format!("{}/jobs/{}", parts.parent, job.id),
        display_name: job.name.to_string(),
        spec: Some(job_spec_back(&job.spec, sites)),
        state: state(job.state).into(),
        reason: job.reason.map(|reason| reason.to_string()).unwrap_or_default(),
        message,
        etag: job.version.to_string(),
        generation: job.generation.get(),
        attempts: job.attempts,
        site: parts.attempt.map(|attempt| format!("sites/{}", sites.name(attempt.site))).unwrap_or_default(),
        tasks,
        step: job.step,
        metrics: job.metrics.clone(),
        checkpoint: parts.checkpoint,
        spent_credits: job.spent.units(),
        credited_credits: job.credited.units(),
        held_credits: parts.held,
        hourly_credits: parts.hourly,
        create_time: Some(timestamp(job.created)),
        start_time: job.started.map(timestamp),
        end_time: job.ended.map(timestamp),
        run_time: Some(duration(job.run_time)),
        migration: parts.migration,
        losses: job.losses,
        manager: job.manager.clone(),
        endpoint: job.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
    }
}

fn tasks(attempt: &Attempt, nodes: &[String]) -> Vec<v1::Task> {
    let state = |state| match state {
        TaskState::Assigned => "assigned",
        TaskState::Prepared => "prepared",
        TaskState::Running => "running",
        TaskState::Ended => "ended",
    };
    let rows = (0u32..).zip(&attempt.tasks).map(|(rank, task)| v1::Task {
        rank,
        node: usize::try_from(rank).ok().and_then(|rank| nodes.get(rank)).cloned().unwrap_or_default(),
        device: u32::from(task.device.index),
        lease: task.lease.to_string(),
        state: state(task.state).to_owned(),
        exit_code: task.end.as_ref().and_then(|end| end.exit_code),
        signal: task.end.as_ref().map_or(0, |end| end.signal),
    });
    rows.collect()
}

/// A job's state on the wire.
#[must_use]
pub const fn state(state: JobState) -> v1::JobState {
    match state {
        JobState::Pending => v1::JobState::Pending,
        JobState::Starting => v1::JobState::Starting,
        JobState::Running => v1::JobState::Running,
        JobState::Suspending => v1::JobState::Suspending,
        JobState::Suspended => v1::JobState::Suspended,
        JobState::Migrating => v1::JobState::Migrating,
        JobState::Cancelling => v1::JobState::Cancelling,
        JobState::Succeeded => v1::JobState::Succeeded,
        JobState::Failed => v1::JobState::Failed,
        JobState::Cancelled => v1::JobState::Cancelled,
    }
}

/// A checkpoint for the wire.
#[must_use]
pub fn checkpoint(row: &Checkpoint, durable: bool, sites: &impl SiteNames) -> v1::Checkpoint {
    let here = row.sites();
    let mut copying: Vec<_> = row.parts.values().flat_map(|part| part.sealed.clone()).collect();
    copying.retain(|site| !here.contains(site));
    copying.sort();
    copying.dedup();
    let entry = |site: &sluice_types::SiteId, state: &str| v1::CheckpointSite {
        site: format!("sites/{}", sites.name(*site)),
        state: state.to_owned(),
    };
    let states = here.iter().map(|site| entry(site, "sealed")).chain(copying.iter().map(|site| entry(site, "copying")));
    v1::Checkpoint {
        id: row.id.to_string(),
        generation: row.generation.get(),
        step: row.step,
        manifest: row.parts.values().next().map(|part| part.manifest.to_string()).unwrap_or_default(),
        size_bytes: row.size(),
        sites: states.collect(),
        create_time: Some(timestamp(row.created)),
        durable,
    }
}

/// A migration for the wire.
#[must_use]
pub fn migration(row: &Migration, step: u64, sites: &impl SiteNames) -> v1::Migration {
    let phase = match row.phase {
        MigrationPhase::Placing | MigrationPhase::Preparing => "preparing",
        MigrationPhase::Stopping => "stopping",
        MigrationPhase::Shipping => "shipping",
        MigrationPhase::Starting => "starting",
        MigrationPhase::Done => "done",
        MigrationPhase::Failed => "failed",
    };
    let cause = match row.cause {
        MigrationCause::Tenant => "tenant",
        MigrationCause::Platform => "platform",
    };
    v1::Migration {
        id: row.id.to_string(),
        from_site: format!("sites/{}", sites.name(row.from)),
        to_site: format!("sites/{}", sites.name(row.to)),
        phase: phase.to_owned(),
        reason: row.reason.map(|reason| reason.to_string()).unwrap_or_default(),
        cause: cause.to_owned(),
        step,
        start_time: Some(timestamp(row.created)),
        end_time: row.ended.map(timestamp),
    }
}

/// An event for the wire.
#[must_use]
pub fn event(row: &Event, parent: &str) -> v1::Event {
    v1::Event {
        sequence: row.sequence,
        time: Some(timestamp(row.at)),
        job: format!("{parent}/jobs/{}", row.job),
        kind: row.kind.clone(),
        reason: row.reason.map(|reason| reason.to_string()).unwrap_or_default(),
        message: row.message.clone(),
        actor: row.actor.clone(),
    }
}
