//! What lists are asked for: filters, places and bounds.

use sluice_lifecycle::model::{JobState, Window};
use sluice_types::{JobId, LeaseId, Name, Nanos, ProjectId, TenantId, Timestamp};

/// The most rows that one call returns; a higher limit is cut to it.
pub const MAX_PAGE: u32 = 1000;

/// A part of a list: at most `limit` rows, beginning behind the row with the key `after`. Rows that are added or
/// changed between two pages neither repeat nor hide others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page<K> {
    /// Key of the last row already seen.
    pub after: Option<K>,
    /// At most so many rows, and never more than [`MAX_PAGE`].
    pub limit: u32,
}

impl<K> Page<K> {
    /// The first `limit` rows.
    #[must_use]
    pub const fn first(limit: u32) -> Self {
        Self { after: None, limit }
    }

    /// The `limit` rows behind `key`.
    #[must_use]
    pub const fn after(key: K, limit: u32) -> Self {
        Self { after: Some(key), limit }
    }
}

/// Which jobs: all conditions that are set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// Of this project.
    pub project: Option<ProjectId>,
    /// In one of these states; empty = any.
    pub states: Vec<JobState>,
    /// Of exactly this name.
    pub name: Option<Name>,
    /// With each of these labels, at exactly this value.
    pub labels: Vec<(String, String)>,
}

/// Which events: all conditions that are set must hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// Of this project.
    pub project: Option<ProjectId>,
    /// Of this job.
    pub job: Option<JobId>,
}

impl EventFilter {
    /// Events of one job.
    #[must_use]
    pub const fn of_job(job: JobId) -> Self {
        Self { tenant: None, project: None, job: Some(job) }
    }
}

/// Whose windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowScope {
    /// All of a tenant.
    Tenant(TenantId),
    /// All of a project.
    Project(ProjectId),
    /// All of a job.
    Job(JobId),
}

/// A window's place in the order of posting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WindowPlace {
    /// When it was posted.
    pub at: Timestamp,
    /// Of which lease.
    pub lease: LeaseId,
    /// Its number within the lease.
    pub sequence: u64,
}

impl From<&Window> for WindowPlace {
    fn from(window: &Window) -> Self {
        Self { at: window.at, lease: window.lease, sequence: window.sequence }
    }
}

/// What a snapshot leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadBounds {
    /// Now, on the controller's clock.
    pub now: Timestamp,
    /// Requests older than this are left out.
    pub request_age: Nanos,
    /// At most so many requests, the newest.
    pub max_requests: u32,
    /// Join tokens that ended longer ago are left out.
    pub token_grace: Nanos,
}

impl LoadBounds {
    /// The bounds that the controller uses: requests of seven days, at most a million, and tokens for a day more.
    #[must_use]
    pub const fn at(now: Timestamp) -> Self {
        const DAY: u64 = 24 * 60 * 60;
        Self {
            now,
            request_age: Nanos::from_secs(7 * DAY),
            max_requests: 1_000_000,
            token_grace: Nanos::from_secs(DAY),
        }
    }
}
