//! Capacity that is bought.

use serde::{Deserialize, Serialize};
use sluice_types::{Credits, JobId, KeyId, Name, OrderId, ProjectId, SiteId, TenantId, Timestamp};

/// A purchase. It never changes: where it stands is where the jobs of its legs stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Its id.
    pub id: OrderId,
    /// Who pays.
    pub tenant: TenantId,
    /// Whose.
    pub project: ProjectId,
    /// The name its user chose, not unique.
    pub name: Name,
    /// The job of each leg: count, slice, time and sites are in its spec.
    pub legs: Vec<JobId>,
    /// The key that bought it.
    pub by: KeyId,
    /// When it was committed.
    pub created: Timestamp,
}

/// What a leg's job is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purchase {
    /// The order.
    pub order: OrderId,
    /// What the leg may cost at most, whatever becomes of prices and places; `None` = whatever it costs.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub limit: Option<Credits>,
    /// The order whose home folder it began with.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub home: Option<OrderId>,
    /// Where it is to begin, as it was quoted; later it goes on at any site that it may be at.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub begins_at: Option<SiteId>,
}
