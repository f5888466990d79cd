//! What goes into the scheduler and what comes out.

use serde::{Deserialize, Serialize};
use sluice_ledger::{Account, PriceBook, QuotaKey, QuotaLevel, QuotaLimits, billed_milli};
use sluice_types::{
    Bytes, CoreMilli, Credits, DeviceClassName, DeviceRef, IsolationClass, JobId, LeaseId, MilliGpu, Name, Nanos,
    NodeId, PriceVersion, ProjectId, Reason, SiteId, TaskResources, TenantId, Timestamp,
};

/// One device of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceView {
    /// Its place in the inventory.
    pub index: u16,
    /// Its class.
    pub class: DeviceClassName,
    /// Its memory.
    pub memory: Bytes,
    /// Host processor behind the whole device; zero for accelerators. Where it is not zero, host cores and host
    /// memory of a task are drawn from this device, because they are the same cores and the same memory.
    pub cores: CoreMilli,
    /// What it can be sliced into, cheapest first.
    pub isolation: Vec<IsolationClass>,
    /// Whether it can take new work.
    pub healthy: bool,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its id.
    pub id: NodeId,
    /// Its site.
    pub site: SiteId,
    /// Ready, not cordoned and not draining.
    pub open: bool,
    /// Host processor sold beside slices of accelerators.
    pub host_cores: CoreMilli,
    /// Host memory sold beside slices of accelerators.
    pub host_memory: Bytes,
    /// Its devices, by index.
    pub devices: Vec<DeviceView>,
}

/// A lease that holds something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseView {
    /// Its id.
    pub id: LeaseId,
    /// On which device.
    pub device: DeviceRef,
    /// What it holds.
    pub resources: TaskResources,
}

/// Why a placement is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Purpose {
    /// To start or restart the job.
    Run,
    /// To prepare the other end of a migration while the job runs on. Quota in use does not count twice.
    Migrate,
}

/// A job that waits for a placement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobView {
    /// Its id; ids grow with time, so they also order equals.
    pub id: JobId,
    /// The job's version: a placement is refused if it changed.
    pub version: u64,
    /// Who pays.
    pub tenant: TenantId,
    /// Which project.
    pub project: ProjectId,
    /// Higher goes first.
    pub priority: i32,
    /// Why it wants a placement.
    pub purpose: Purpose,
    /// Tasks, all or none, all at one site.
    pub tasks: u32,
    /// What each task asks for.
    pub resources: TaskResources,
    /// Sites it may run at, sorted; empty = any.
    pub sites: Vec<SiteId>,
    /// Sites where its newest checkpoint is, sorted; empty = it starts from nothing.
    pub state_at: Vec<SiteId>,
    /// How much run time is held at admission.
    pub hold_time: Nanos,
    /// Periods of the budgets that cover it, with the accounts' keys in `accounts`.
    pub budgets: Vec<sluice_ledger::AccountKey>,
    /// It may hold nothing but its tenant's nominal quota.
    pub firm: bool,
}

/// A quota as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaView {
    /// Which.
    pub key: QuotaKey,
    /// What its site is called; `None` = over all sites.
    pub site_name: Option<Name>,
    /// What it allows; `None` = it is gone.
    pub limits: Option<QuotaLimits>,
}

/// A committed change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// A node appeared or changed.
    Node(NodeView),
    /// A node is gone for good.
    NodeGone(NodeId),
    /// A lease began.
    Lease(LeaseView),
    /// A lease ended.
    LeaseGone(LeaseId),
    /// A job waits, or waits for something else.
    Job(JobView),
    /// A job waits no more.
    JobGone(JobId),
    /// A balance changed; what is held of quotas is told by their accounts.
    Account(Account),
    /// A quota was set or taken away.
    Quota(QuotaView),
    /// A new edition of the price book.
    Prices(PriceBook),
    /// When the others were committed: how long devices have been kept for a job is measured by it.
    Now(Timestamp),
}

/// One task's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskPlacement {
    /// Which device.
    pub device: DeviceRef,
    /// How the slice is kept apart.
    pub isolation: IsolationClass,
    /// max(compute, memory) share: what is billed.
    pub billed: MilliGpu,
}

/// All tasks of a job, placed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Which job.
    pub job: JobId,
    /// The version of the job that was placed.
    pub version: u64,
    /// Where.
    pub site: SiteId,
    /// One per task, by rank.
    pub tasks: Vec<TaskPlacement>,
    /// The prices it was quoted at.
    pub price: PriceVersion,
    /// The quoted ceiling of every task together, to be held.
    pub hold: Credits,
}

/// Why a job waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Which job.
    pub job: JobId,
    /// The version of the job that was judged.
    pub version: u64,
    /// The binding constraint.
    pub reason: Reason,
    /// In words, without any other tenant's names or amounts.
    pub message: String,
}

/// What the writer is asked to commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order they were decided.
    pub placements: Vec<Placement>,
    /// Only those that differ from the job's last verdict.
    pub verdicts: Vec<Verdict>,
}

/// Which single thing would have to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Ask for so much less compute share per task.
    LessMilli,
    /// Ask for so many bytes less device memory per task.
    LessMemory,
    /// Ask for so many host milli-cores less per task.
    LessHostCores,
    /// Ask for so many bytes less host memory per task.
    LessHostMemory,
    /// Ask for so many tasks fewer.
    FewerTasks,
    /// So many credits more in the tenant's funds.
    MoreFunds,
    /// So many credits more in the budget.
    MoreBudget,
    /// So many thousandths more nominal quota of the class.
    MoreQuota,
    /// So many thousandths more that its tenant may borrow.
    MoreBorrowing,
    /// Allow one more site: amount is the site's id number.
    OtherSite,
    /// Open so many closed nodes.
    OpenNodes,
}

/// One change, alone enough to admit the job at the next decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What.
    pub kind: ChangeKind,
    /// By how much, in the unit of the kind; the smallest that is enough.
    pub amount: i64,
}

/// Why a job waits and what would admit it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The binding constraint; `None` if it would be placed at the next decision.
    pub reason: Option<Reason>,
    /// In words.
    pub message: String,
    /// Every kind of single change that is enough, each the smallest of its kind, in the order of [`ChangeKind`].
    pub changes: Vec<Change>,
    /// Waiting jobs of the same tenant that go first.
    pub ahead: u32,
    /// No device that exists, empty and open, could ever hold a task, or all of them the gang.
    pub never: bool,
    /// The quota that binds, where one does.
    pub quota: Option<QuotaShortage>,
}

/// Which quota keeps a job out, and what it lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaShortage {
    /// Which.
    pub key: QuotaKey,
    /// What its site is called; `None` = over all sites.
    pub site_name: Option<Name>,
    /// Which of its bounds.
    pub level: QuotaLevel,
    /// Thousandths that the job takes.
    pub asked: i64,
    /// Thousandths that the bound lacks.
    pub missing: i64,
}

/// The thousandths of quota that `task` takes on `device`: the larger of what it takes of its share and of its memory, so
/// that nobody holds a device by asking for little of the one and all of the other.
#[must_use]
pub fn charge(task: &TaskResources, device: &DeviceView) -> i64 {
    let print = footprint(task, device);
    i64::from(billed_milli(print.milli, print.memory, device.memory).get())
}

/// What a task takes of a device and of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Footprint {
    /// Thousandths of the device.
    pub milli: MilliGpu,
    /// Memory of the device.
    pub memory: Bytes,
    /// Of the node's host pool.
    pub host_cores: CoreMilli,
    /// Of the node's host pool.
    pub host_memory: Bytes,
}

/// What `task` takes on `device`: on a device made of host cores, host cores become thousandths of the device
/// (rounded up) and host memory adds to its memory, so that nothing is sold twice.
#[must_use]
pub fn footprint(task: &TaskResources, device: &DeviceView) -> Footprint {
    if device.cores == CoreMilli::ZERO {
        return Footprint {
            milli: task.milli,
            memory: task.memory,
            host_cores: task.host_cores,
            host_memory: task.host_memory,
        };
    }
    let drawn = (u64::from(task.host_cores.get()) * 1000).div_ceil(u64::from(device.cores.get()));
    Footprint {
        milli: task.milli.plus(MilliGpu::new(u32::try_from(drawn).unwrap_or(u32::MAX))),
        memory: task.memory.plus(task.host_memory),
        host_cores: CoreMilli::ZERO,
        host_memory: Bytes::ZERO,
    }
}

impl DeviceView {
    /// The billed share of a task on this device.
    #[must_use]
    pub fn billed(&self, task: &TaskResources) -> MilliGpu {
        billed_milli(task.milli, task.memory, self.memory)
    }
}
