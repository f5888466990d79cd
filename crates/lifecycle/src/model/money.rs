//! Metered windows, budgets, remembered requests and counters.

use serde::{Deserialize, Serialize};
use sluice_ledger::BudgetScope;
use sluice_types::{
    AttemptId, BootId, Credits, Digest, JobId, KeyId, LeaseId, NodeId, NodeInstant, ProjectId, SiteId, TenantId,
    Timestamp,
};

/// What a window took from one period of a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetShare {
    /// Whose budget.
    pub scope: BudgetScope,
    /// Which of its periods.
    pub period: u64,
    /// From what was held of it.
    pub held: Credits,
    /// Beyond it.
    pub over: Credits,
}

/// One metered window of one lease, as posted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Of which lease.
    pub lease: LeaseId,
    /// Its number within the lease.
    pub sequence: u64,
    /// Who held the lease.
    pub attempt: AttemptId,
    /// Whose.
    pub job: JobId,
    /// Whose.
    pub tenant: TenantId,
    /// Whose.
    pub project: ProjectId,
    /// Where.
    pub site: SiteId,
    /// Where.
    pub node: NodeId,
    /// The boot whose clock the instants are of.
    pub boot: BootId,
    /// Begin.
    pub start: NodeInstant,
    /// End, exclusive.
    pub end: NodeInstant,
    /// Evidence: processor time used, nanoseconds.
    pub used_ns: u64,
    /// Evidence: memory integrated over time.
    pub memory_byte_seconds: u64,
    /// Last step told.
    pub last_step: u64,
    /// Billed.
    pub amount: Credits,
    /// What it took from budgets, so that a credit goes back to where it came from.
    pub budgets: Vec<BudgetShare>,
    /// Credited back.
    pub credited: Credits,
    /// Nothing was measured between the window before and this one's begin: billed zero.
    pub gap_before: bool,
    /// The slice was not enforced.
    pub advisory: bool,
    /// When it was posted.
    pub at: Timestamp,
}

/// What happens when a budget ends under a running job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BudgetPolicy {
    /// Running jobs are checkpointed and suspended before they overdraw.
    #[default]
    Suspend,
    /// Only admission stops.
    AdmissionOnly,
}

/// Money per period. The balance of a period is the ledger's account of scope and period.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Whose, as text for the row's key: a tenant's or project's id.
    pub scope: String,
    /// Whose tenant.
    pub tenant: TenantId,
    /// The project, where it is one's.
    pub project: Option<ProjectId>,
    /// Per period.
    pub amount: Credits,
    /// Length of a period in seconds; 0 = one for ever.
    pub period_seconds: u64,
    /// What happens at its end.
    pub policy: BudgetPolicy,
}

impl Budget {
    /// The ledger's word for whose it is.
    #[must_use]
    pub const fn ledger_scope(&self) -> BudgetScope {
        match self.project {
            Some(project) => BudgetScope::Project(project),
            None => BudgetScope::Tenant(self.tenant),
        }
    }

    /// The period that `at` falls in.
    #[must_use]
    pub const fn period(&self, at: Timestamp) -> u64 {
        match (at.nanos() / 1_000_000_000).checked_div(self.period_seconds) {
            Some(period) => period,
            None => 0,
        }
    }
}

/// Who asked, and the id they gave the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestKey {
    /// The caller's key.
    pub by: KeyId,
    /// The UUID.
    #[serde(with = "uuid")]
    pub id: [u8; 16],
}

/// A UUID's bytes as one hexadecimal number.
mod uuid {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(id: &[u8; 16], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:032x}", u128::from_be_bytes(*id)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 16], D::Error> {
        let text = String::deserialize(deserializer)?;
        u128::from_str_radix(&text, 16).map(u128::to_be_bytes).map_err(D::Error::custom)
    }
}

/// What a remembered request did: enough to give the same answer again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestOutcome {
    /// Made or changed the object of this id (its text).
    Object(String),
    /// Changed something without an id of its own.
    Done,
}

/// A remembered request: a retry does nothing twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Which.
    pub key: RequestKey,
    /// BLAKE3 of method and payload: the same id with another payload is refused.
    pub digest: Digest,
    /// What it did.
    pub outcome: RequestOutcome,
    /// When.
    pub at: Timestamp,
}

/// What was refused, counted in the transaction that refused it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Reports of attempts that do not own their job any more.
    pub stale_reports: u64,
    /// Checkpoints of such attempts.
    pub stale_checkpoints: u64,
    /// Results of such attempts.
    pub stale_results: u64,
    /// Windows past the cut of their lease.
    pub refused_windows: u64,
    /// Windows that were there already.
    pub duplicate_windows: u64,
    /// The same window with other content: quarantined.
    pub conflicting_windows: u64,
    /// Placements that did not pass revalidation.
    pub rejected_placements: u64,
    /// Messages of a node's older stream.
    pub stale_streams: u64,
}
