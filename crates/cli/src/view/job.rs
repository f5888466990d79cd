//! Jobs, their tasks, migrations and checkpoints.

use std::collections::BTreeMap;

use serde::Serialize;
use sluice_proto::v1;
use sluice_types::Bytes;

use super::spec::SpecView;
use super::{Money, age, filled, short_site, time, word};
use crate::duration;
use crate::output::{Column, View};
use crate::reference::leaf;

/// A job.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JobView {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) display_name: String,
    pub(crate) state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    pub(crate) etag: String,
    pub(crate) generation: u64,
    pub(crate) attempts: u32,
    pub(crate) losses: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) manager: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) site: Option<String>,
    pub(crate) tasks: Vec<TaskView>,
    pub(crate) step: u64,
    pub(crate) metrics: BTreeMap<String, f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) checkpoint: Option<CheckpointView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) migration: Option<MigrationView>,
    pub(crate) spent: Money,
    pub(crate) credited: Money,
    pub(crate) held: Money,
    pub(crate) hourly: Money,
    pub(crate) run_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) create_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) start_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) end_time: Option<String>,
    pub(crate) spec: SpecView,
}

/// One task of the current or last attempt.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TaskView {
    pub(crate) rank: u32,
    pub(crate) node: String,
    pub(crate) device: u32,
    pub(crate) lease: String,
    pub(crate) state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) signal: Option<u32>,
}

impl From<&v1::Task> for TaskView {
    fn from(task: &v1::Task) -> Self {
        Self {
            rank: task.rank,
            node: task.node.clone(),
            device: task.device,
            lease: task.lease.clone(),
            state: task.state.clone(),
            exit_code: task.exit_code,
            signal: (task.signal != 0).then_some(task.signal),
        }
    }
}

impl TaskView {
    /// How it ended, for a table.
    pub(crate) fn ending(&self) -> String {
        match (self.exit_code, self.signal) {
            (_, Some(signal)) => format!("signal {signal}"),
            (Some(code), None) => format!("status {code}"),
            (None, None) => String::new(),
        }
    }
}

/// A move of a job.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MigrationView {
    pub(crate) id: String,
    pub(crate) from_site: String,
    pub(crate) to_site: String,
    pub(crate) phase: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    pub(crate) cause: String,
    pub(crate) step: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) start_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) end_time: Option<String>,
}

impl From<&v1::Migration> for MigrationView {
    fn from(migration: &v1::Migration) -> Self {
        Self {
            id: migration.id.clone(),
            from_site: migration.from_site.clone(),
            to_site: migration.to_site.clone(),
            phase: migration.phase.clone(),
            reason: filled(&migration.reason),
            cause: migration.cause.clone(),
            step: migration.step,
            start_time: time(migration.start_time.as_ref()),
            end_time: time(migration.end_time.as_ref()),
        }
    }
}

/// A checkpoint.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CheckpointView {
    pub(crate) id: String,
    pub(crate) step: u64,
    pub(crate) generation: u64,
    pub(crate) size_bytes: u64,
    pub(crate) durable: bool,
    pub(crate) manifest: String,
    pub(crate) sites: Vec<CheckpointSiteView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) create_time: Option<String>,
}

/// A checkpoint at a site.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CheckpointSiteView {
    pub(crate) site: String,
    pub(crate) state: String,
}

impl From<&v1::Checkpoint> for CheckpointView {
    fn from(checkpoint: &v1::Checkpoint) -> Self {
        let site = |at: &v1::CheckpointSite| CheckpointSiteView { site: at.site.clone(), state: at.state.clone() };
        Self {
            id: checkpoint.id.clone(),
            step: checkpoint.step,
            generation: checkpoint.generation,
            size_bytes: checkpoint.size_bytes,
            durable: checkpoint.durable,
            manifest: checkpoint.manifest.clone(),
            sites: checkpoint.sites.iter().map(site).collect(),
            create_time: time(checkpoint.create_time.as_ref()),
        }
    }
}

impl View for CheckpointView {
    const KIND: &'static str = "Checkpoint";
    const PLURAL: &'static str = "checkpoints";
    const COLUMNS: &'static [Column] = &[
        Column::new("ID"),
        Column::new("STEP").right(),
        Column::new("SIZE").right(),
        Column::new("DURABLE"),
        Column::new("SITES"),
        Column::new("AGE").right(),
        Column::wide("GENERATION").right(),
        Column::wide("MANIFEST"),
    ];

    fn name(&self) -> String {
        self.id.clone()
    }

    fn cells(&self, now: jiff::Timestamp) -> Vec<String> {
        let at = |site: &CheckpointSiteView| match site.state.as_str() {
            "sealed" => short_site(&site.site),
            state => format!("{} ({state})", short_site(&site.site)),
        };
        vec![
            self.id.clone(),
            self.step.to_string(),
            size(self.size_bytes),
            if self.durable { "yes" } else { "no" }.to_owned(),
            self.sites.iter().map(at).collect::<Vec<_>>().join(", "),
            age(self.create_time.as_deref(), now),
            self.generation.to_string(),
            self.manifest.clone(),
        ]
    }
}

/// A size for people: three digits and a binary unit.
pub(crate) fn size(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >> shift > 0 {
            let tenths = (u128::from(bytes) * 10) >> shift;
            return if tenths < 100 {
                format!("{}.{}{unit}", tenths / 10, tenths % 10)
            } else {
                format!("{}{unit}", tenths / 10)
            };
        }
    }
    Bytes::new(bytes).to_string()
}

impl From<&v1::Job> for JobView {
    fn from(job: &v1::Job) -> Self {
        Self {
            name: job.name.clone(),
            id: leaf(&job.name).to_owned(),
            display_name: job.display_name.clone(),
            state: word(job.state().as_str_name(), "JOB_STATE_"),
            reason: filled(&job.reason),
            message: filled(&job.message),
            etag: job.etag.clone(),
            generation: job.generation,
            attempts: job.attempts,
            losses: job.losses,
            manager: filled(&job.manager),
            site: filled(&job.site),
            tasks: job.tasks.iter().map(TaskView::from).collect(),
            step: job.step,
            metrics: job.metrics.clone().into_iter().collect(),
            checkpoint: job.checkpoint.as_ref().map(CheckpointView::from),
            migration: job.migration.as_ref().map(MigrationView::from),
            spent: Money::new(job.spent_credits),
            credited: Money::new(job.credited_credits),
            held: Money::new(job.held_credits),
            hourly: Money::new(job.hourly_credits),
            run_time: job.run_time.as_ref().map(duration::from_proto).map_or("0s".into(), duration::print_duration),
            create_time: time(job.create_time.as_ref()),
            start_time: time(job.start_time.as_ref()),
            end_time: time(job.end_time.as_ref()),
            spec: SpecView::from(&job.spec.clone().unwrap_or_default()),
        }
    }
}

impl View for JobView {
    const KIND: &'static str = "Job";
    const PLURAL: &'static str = "jobs";
    const COLUMNS: &'static [Column] = &[
        Column::new("ID"),
        Column::new("NAME"),
        Column::new("STATE"),
        Column::new("REASON"),
        Column::new("SITE"),
        Column::new("STEP").right(),
        Column::new("SPENT").right(),
        Column::new("AGE").right(),
        Column::wide("PROJECT"),
        Column::wide("CLASS"),
        Column::wide("SHARE").right(),
        Column::wide("TASKS").right(),
        Column::wide("PRIORITY").right(),
        Column::wide("ATTEMPTS").right(),
        Column::wide("CHECKPOINT").right(),
        Column::wide("PER-HOUR").right(),
        Column::wide("RUN-TIME").right(),
    ];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self, now: jiff::Timestamp) -> Vec<String> {
        let resources = &self.spec.resources;
        let project = self.name.rsplit_once("/jobs/").map_or("", |(parent, _)| parent);
        vec![
            self.id.clone(),
            self.display_name.clone(),
            self.state.clone(),
            self.reason.clone().unwrap_or_default(),
            self.site.as_deref().map(short_site).unwrap_or_default(),
            self.step.to_string(),
            self.spent.cell(),
            age(self.create_time.as_deref(), now),
            project.to_owned(),
            resources.class.clone(),
            resources.share.clone(),
            self.spec.tasks.to_string(),
            self.spec.priority.to_string(),
            self.attempts.to_string(),
            self.checkpoint.as_ref().map(|c| c.step.to_string()).unwrap_or_default(),
            self.hourly.cell(),
            self.run_time.clone(),
        ]
    }
}
