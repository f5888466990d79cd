//! Attempts, the leases they hold, their checkpoints and moves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sluice_ledger::{AccountKey, BudgetScope, RatingTerms, Remainder};
use sluice_plan::LeaseView;
use sluice_types::{
    AttemptId, BootId, CheckpointId, Credits, DeviceRef, Digest, Generation, HoldId, IsolationClass, JobId, LeaseId,
    MigrationId, Nanos, NodeInstant, PriceVersion, ProjectId, Reason, SiteId, TaskResources, TenantId, Timestamp,
};

use super::BlobRef;

/// What a node should be doing with the tasks of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Fetch everything, start nothing.
    Prepare,
    /// Run.
    Run,
    /// Stop at a checkpoint.
    Checkpoint,
    /// Stop with grace, keep outputs.
    Stop,
    /// Kill and forget.
    Release,
}

/// Where an attempt stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptState {
    /// Placed; its tasks are not all running yet.
    Assigned,
    /// Everything is on its nodes; it waits for the hand-over.
    Prepared,
    /// All its tasks run.
    Running,
    /// Ended, or fenced. Its tasks may still have to prove that they are gone.
    Ended,
}

/// Why an attempt was told to stop at a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopCause {
    /// Its user suspends it.
    Suspend,
    /// A renewal of its hold failed.
    SuspendForMoney,
    /// Its tenant's quota does not cover it any more.
    SuspendForQuota,
    /// It moves to another site.
    Migrate,
    /// Its node is drained or the system stops: it queues again.
    Requeue,
}

/// An order to stop at a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopOrder {
    /// Why.
    pub kind: StopCause,
    /// Until when.
    pub deadline: Timestamp,
    /// A gang's common step: each task stops at its first step boundary from here on. `None` until every task told
    /// where it is held, and where nothing has to be agreed on.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub stop_step: Option<u64>,
    /// Past its deadline the attempt is stopped as it is, whatever the order's cause: what it holds is wanted back.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub must: bool,
}

/// Where a task stands on its node, as the node proved it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Nothing heard yet.
    Assigned,
    /// Ready to start.
    Prepared,
    /// Runs.
    Running,
    /// Ended, and nothing is left of it on the node.
    Ended,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskEnd {
    /// Exit status, where it exited.
    pub exit_code: Option<i32>,
    /// Signal that ended it, else 0.
    pub signal: u32,
    /// `None` for status 0.
    pub reason: Option<Reason>,
    /// In words.
    pub message: String,
    /// It stopped at a checkpoint because it was told to.
    pub at_checkpoint: bool,
    /// Its outputs in the site's vault.
    pub outputs: Option<BlobRef>,
    /// BLAKE3 of the manifest that keeps the outputs there.
    pub outputs_manifest: Option<Digest>,
}

/// One task of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRow {
    /// Its lease.
    pub lease: LeaseId,
    /// On which device.
    pub device: DeviceRef,
    /// How the slice is kept apart.
    pub isolation: IsolationClass,
    /// Where it stands.
    pub state: TaskState,
    /// Under the present order: the last step that it had told when it began to be held at its next step boundary.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub held: Option<u64>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub end: Option<TaskEnd>,
}

/// A hold on one period of a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetHold {
    /// The hold.
    pub hold: HoldId,
    /// Whose budget.
    pub scope: BudgetScope,
    /// Which of its periods.
    pub period: u64,
}

impl BudgetHold {
    /// The account it holds from.
    #[must_use]
    pub const fn account(&self) -> AccountKey {
        AccountKey::Budget(self.scope, self.period)
    }
}

/// One try to run a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its id.
    pub id: AttemptId,
    /// Of which job.
    pub job: JobId,
    /// Its fence.
    pub generation: Generation,
    /// Where.
    pub site: SiteId,
    /// Where it stands.
    pub state: AttemptState,
    /// What its nodes should be doing.
    pub goal: Goal,
    /// Grows with every change of the goal: nodes take the higher one.
    pub revision: u64,
    /// Why it was told to stop at a checkpoint, while it is.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub order: Option<StopOrder>,
    /// Its tasks, by rank.
    pub tasks: Vec<TaskRow>,
    /// The checkpoint it starts from.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub resume: Option<CheckpointId>,
    /// The hold on the tenant's funds.
    pub funds: HoldId,
    /// Holds on budgets, at most one per scope.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub budgets: Vec<BudgetHold>,
    /// Thousandths of quota that all its tasks take, until it ends.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub charge: i64,
    /// A hold of its own on a quota of the time before quotas had sites.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub quota: Option<HoldId>,
    /// The holds are closed.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub settled: bool,
    /// Run time it may use.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub run_limit: Option<Nanos>,
    /// When it was placed.
    pub created: Timestamp,
    /// When all its tasks ran.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub started: Option<Timestamp>,
    /// When it ended or was fenced.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub ended: Option<Timestamp>,
    /// Why.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub reason: Option<Reason>,
}

/// Where a lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// Holds its slice.
    Held,
    /// Its holder is fenced, but nothing proved yet that the slice is free.
    Ending,
    /// The slice is free; windows may still be on their way.
    Freed,
    /// All its windows are in, or will never come.
    Settled,
}

/// The right of an attempt's task to a slice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its id.
    pub id: LeaseId,
    /// Who holds it.
    pub attempt: AttemptId,
    /// Whose.
    pub job: JobId,
    /// Whose.
    pub tenant: TenantId,
    /// Whose.
    pub project: ProjectId,
    /// Where.
    pub site: SiteId,
    /// Which device.
    pub device: DeviceRef,
    /// Which task.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub rank: u32,
    /// What it holds.
    pub resources: TaskResources,
    /// What is billed.
    pub terms: RatingTerms,
    /// At which edition of the prices.
    pub price: PriceVersion,
    /// The holder's fence.
    pub generation: Generation,
    /// Where it stands.
    pub state: LeaseState,
    /// The boot that its windows are measured in; empty before the first.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub boot: BootId,
    /// End of its last window.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub cursor: NodeInstant,
    /// Number of its next window.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub next_window: u64,
    /// Carried to its next window.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub remainder: Remainder,
    /// Time billed.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub billed: Nanos,
    /// Time not measured.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub gaps: Nanos,
    /// Sum of its windows.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub amount: Credits,
    /// Rated but beyond what was held: the platform bears it.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub uncollected: Credits,
    /// Credited back.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub credited: Credits,
    /// Windows refused because they ended after the cut.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub refused: u64,
    /// Windows that end later are refused.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub cut: Option<NodeInstant>,
    /// Windows from this number on are credited back, because their work was lost.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub credit_from: Option<(u64, Reason)>,
    /// Windows that end before the task ran are credited back: the platform chose the move, or the lease is a rental's.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub free_preparation: bool,
    /// When the task ran first, on the node's clock.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub started: Option<NodeInstant>,
    /// The lowest window that a loss could still make worthless; the writer keeps those from here on in memory.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub keep_from: u64,
    /// How many windows the node says there are, once its task ended.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub windows: Option<u64>,
    /// When it began.
    pub created: Timestamp,
    /// When its slice was free.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub freed: Option<Timestamp>,
}

impl Lease {
    /// What the scheduler sees.
    #[must_use]
    pub fn view(&self) -> LeaseView {
        LeaseView { id: self.id, device: self.device, resources: self.resources.clone() }
    }
}

/// One task's part of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointPart {
    /// BLAKE3 of its manifest.
    pub manifest: Digest,
    /// All bytes of its state.
    pub size: u64,
    /// The lease it ran under.
    pub lease: LeaseId,
    /// When the state was captured, on the node's clock; a window ends there.
    pub captured: NodeInstant,
    /// The lease's first window after the capture.
    pub next_window: u64,
    /// Sites where the part is sealed, sorted.
    pub sealed: Vec<SiteId>,
}

/// A job's state at a step: one part per task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Its id.
    pub id: CheckpointId,
    /// Of which job.
    pub job: JobId,
    /// Who wrote it.
    pub attempt: AttemptId,
    /// The fence it was written under.
    pub generation: Generation,
    /// The step that was complete.
    pub step: u64,
    /// The checkpoint that the attempt started from or wrote before.
    pub parent: Option<CheckpointId>,
    /// Parts, by rank.
    pub parts: BTreeMap<u32, CheckpointPart>,
    /// Tasks of the job.
    pub world: u32,
    /// When its first part was sealed.
    pub created: Timestamp,
    /// Superseded: its blobs may be forgotten.
    pub retired: bool,
}

impl Checkpoint {
    /// Every task's part is sealed somewhere.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.parts.len() == usize::try_from(self.world).unwrap_or(usize::MAX)
    }

    /// Sites that have every part, sorted.
    #[must_use]
    pub fn sites(&self) -> Vec<SiteId> {
        if !self.is_complete() {
            return Vec::new();
        }
        let mut parts = self.parts.values();
        let first = parts.next().map(|part| part.sealed.clone()).unwrap_or_default();
        parts.fold(first, |sites, part| sites.into_iter().filter(|site| part.sealed.contains(site)).collect())
    }

    /// It was written by another job, and this one begins with it: no attempt has this generation. Its parts are kept by
    /// both for as long as either needs them.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        self.generation == Generation::ZERO
    }

    /// All bytes of the job's state.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.parts.values().map(|part| part.size).sum()
    }
}

/// Who wanted a migration, and so who pays for its preparation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MigrationCause {
    /// The tenant.
    Tenant,
    /// The platform.
    Platform,
}

/// How far a migration is. Every phase but the last two has a deadline and a way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MigrationPhase {
    /// Waits for a placement at the other site. Way back: forget it.
    Placing,
    /// The other site fetches what it needs. Way back: release it.
    Preparing,
    /// The job is told to stop at a checkpoint. Way back: it goes on.
    Stopping,
    /// The last checkpoint is copied. Way back: it starts again where it was.
    Shipping,
    /// Handed over: the new attempt owns the job. No way back but forward.
    Starting,
    /// It runs at the other site.
    Done,
    /// It went back.
    Failed,
}

/// One move of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    /// Its id.
    pub id: MigrationId,
    /// Of which job.
    pub job: JobId,
    /// From where.
    pub from: SiteId,
    /// To where.
    pub to: SiteId,
    /// Who wanted it.
    pub cause: MigrationCause,
    /// How far it is.
    pub phase: MigrationPhase,
    /// The attempt that is left.
    pub source: AttemptId,
    /// The attempt that takes over.
    pub target: Option<AttemptId>,
    /// The checkpoint it carries over.
    pub checkpoint: Option<CheckpointId>,
    /// When the phase must be over.
    pub deadline: Timestamp,
    /// When it began.
    pub created: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// Why it failed.
    pub reason: Option<Reason>,
}

impl Migration {
    /// Neither done nor failed.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        !matches!(self.phase, MigrationPhase::Done | MigrationPhase::Failed)
    }
}
