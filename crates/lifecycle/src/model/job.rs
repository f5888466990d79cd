//! Jobs and what happened to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sluice_types::{
    AttemptId, CheckpointId, Credits, EndpointId, Generation, JobId, KeyId, MigrationId, Name, Nanos, ProjectId,
    Reason, TenantId, Timestamp,
};

use super::{JobSpec, Purchase};

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for a placement.
    Pending,
    /// Placed; its nodes are getting it ready.
    Starting,
    /// Runs.
    Running,
    /// Told to stop at a checkpoint, to be suspended.
    Suspending,
    /// Holds nothing, can be resumed.
    Suspended,
    /// Moving to another site. It may be running meanwhile.
    Migrating,
    /// Told to end, by its user.
    Cancelling,
    /// Ended with status 0.
    Succeeded,
    /// Ended otherwise.
    Failed,
    /// Ended by its user.
    Cancelled,
}

impl JobState {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Pending,
        Self::Starting,
        Self::Running,
        Self::Suspending,
        Self::Suspended,
        Self::Migrating,
        Self::Cancelling,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// It will never run again.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// The stable word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Suspending => "suspending",
            Self::Suspended => "suspended",
            Self::Migrating => "migrating",
            Self::Cancelling => "cancelling",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Whose.
    pub tenant: TenantId,
    /// Whose.
    pub project: ProjectId,
    /// The name its user chose, not unique.
    pub name: Name,
    /// What was asked.
    #[serde(with = "super::shared")]
    pub spec: Arc<JobSpec>,
    /// Where it stands.
    pub state: JobState,
    /// Why it stands there, where there is a reason.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub reason: Option<Reason>,
    /// The reason in words.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub message: String,
    /// Grows with every change.
    pub version: u64,
    /// The fence: the generation of the attempt that owns it. Reports of lower ones are refused.
    pub generation: Generation,
    /// The highest generation ever given to one of its attempts, owner or not.
    pub last_generation: Generation,
    /// Attempts so far.
    pub attempts: u32,
    /// The attempt that owns it.
    pub current: Option<AttemptId>,
    /// Attempts lost to infrastructure.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub losses: u32,
    /// Attempts that failed by themselves.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub failures: u32,
    /// Last step told.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub step: u64,
    /// Last numbers told.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub metrics: BTreeMap<String, f64>,
    /// Newest complete checkpoint.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub checkpoint: Option<CheckpointId>,
    /// The migration under way, or the last one.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub migration: Option<MigrationId>,
    /// Billed so far.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub spent: Credits,
    /// Credited back so far.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub credited: Credits,
    /// Billed time of rank 0 over all attempts.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub run_time: Nanos,
    /// The order whose leg it is.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub purchase: Option<Purchase>,
    /// Who manages it; empty = nobody.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub manager: String,
    /// The endpoint whose replica it is.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub endpoint: Option<EndpointId>,
    /// The replica that it begins for, whose node is drained; none once that one has left, or stays after all.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub replaces: Option<JobId>,
    /// The key that submitted it.
    pub by: KeyId,
    /// When it was submitted.
    pub created: Timestamp,
    /// When it first ran.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub started: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub ended: Option<Timestamp>,
}

impl Job {
    /// What it has cost so far, credits counted.
    #[must_use]
    pub fn net_paid(&self) -> Credits {
        Credits::new(self.spent.units().saturating_sub(self.credited.units()))
    }
}

/// One thing that happened to a job. Its place in the log is given by the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Grows by one with every event of the store.
    pub sequence: u64,
    /// When.
    pub at: Timestamp,
    /// Whose.
    pub tenant: TenantId,
    /// Whose.
    pub project: ProjectId,
    /// Which job.
    pub job: JobId,
    /// What, one CamelCase word.
    pub kind: String,
    /// Why, where there is a reason.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub reason: Option<Reason>,
    /// In words.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub message: String,
    /// Who: a key, `planner`, a node or `controller`.
    pub actor: String,
}
