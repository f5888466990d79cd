//! What the writer is asked to do, and what it answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sluice_ledger::{Price, QuotaKey, QuotaLimits, TokenPrice};
use sluice_plan::{JobView, Plan};
use sluice_types::{
    AttemptId, BootId, Bytes, CoreMilli, Credits, Digest, EndpointId, Generation, JobId, KeyId, LeaseId, ModelId, Name,
    Nanos, NetworkMode, NodeId, NodeInstant, OrderId, ProjectId, Reason, RequestId, SiteId, TaskResources, TenantId,
    Timestamp,
};

use crate::model::{
    BudgetPolicy, Checkpoint, Device, Job, JobSpec, JoinKind, ModelInfo, QuotaPolicy, ReplicaBounds, RequestKey, Role,
    StoredFile, TaskEnd,
};

/// Who asks, so that a retry does nothing twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Whose key.
    pub key: KeyId,
    /// The request's id and the BLAKE3 of method and payload; `None` for commands of the system itself.
    pub request: Option<(RequestKey, Digest)>,
    /// The manager that it speaks for; empty = none. What has a manager is changed by callers that name it only.
    pub manager: String,
}

impl Caller {
    /// A caller without a request id, who speaks for no manager.
    #[must_use]
    pub const fn of(key: KeyId) -> Self {
        Self { key, request: None, manager: String::new() }
    }
}

/// A change that somebody wants.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// From a user, an admin or an operator, already authorized.
    User(Caller, UserCommand),
    /// From a node.
    Node(NodeId, Generation, NodeReport),
    /// A host joins with a token.
    Join(JoinHost),
    /// From the vault of a site.
    Copied {
        /// The site that has it now.
        site: SiteId,
        /// BLAKE3 of the manifest.
        manifest: Digest,
    },
    /// The vault of a site has deleted manifests that it was told to forget.
    Forgotten {
        /// Which.
        site: SiteId,
        /// BLAKE3 of the manifests.
        manifests: Vec<Digest>,
    },
    /// A vault connected.
    VaultAddress {
        /// Of which site.
        site: SiteId,
        /// Where it listens.
        address: String,
    },
    /// No vault of this site was connected for as long as the loss timeout.
    VaultAway {
        /// Of which site.
        site: SiteId,
    },
    /// What the import of a model found, told by whoever read its outputs.
    ModelChecked(ModelId, Result<ModelFound, String>),
    /// What an endpoint has to do now, told by the gateway. In no row: not told for ten seconds, it counts as nothing.
    EndpointLoad {
        /// Which.
        endpoint: EndpointId,
        /// Requests that wait for a place at a replica.
        queued: u32,
        /// Requests that have one.
        running: u32,
    },
    /// A request begins: what it may cost at most is held. From the gateway, which has looked at its key.
    OpenRequest(OpenRequest),
    /// A request is over: exactly what was delivered is paid, and the rest is free again.
    SettleRequest {
        /// Which.
        id: RequestId,
        /// Tokens of its prompt.
        prompt_tokens: u64,
        /// Tokens generated for it.
        completion_tokens: u64,
        /// Tokens of its prompt that were found in a cache.
        cached_tokens: u64,
    },
    /// A request was cut by the platform: nothing is paid for it.
    VoidRequest(RequestId, Reason),
    /// From the planner.
    Plan(Plan),
    /// Time passed: deadlines, losses, periods.
    Tick,
    /// The system stops: jobs are told to stop at a checkpoint.
    Quiesce,
}

/// A change through the API.
#[derive(Debug, Clone, PartialEq)]
pub enum UserCommand {
    /// A new tenant.
    CreateTenant(Name),
    /// A new project.
    CreateProject(TenantId, Name),
    /// New policy of a project.
    UpdateProject {
        /// Which.
        project: ProjectId,
        /// Network modes beside loopback.
        networks: Vec<NetworkMode>,
        /// Residency.
        sites: Vec<SiteId>,
    },
    /// A new key.
    CreateKey {
        /// Bound to this tenant.
        tenant: Option<TenantId>,
        /// Bound to this project.
        project: Option<ProjectId>,
        /// What it may do.
        role: Role,
        /// BLAKE3 of its secret.
        hash: Digest,
    },
    /// Ends a key.
    RevokeKey(KeyId),
    /// Sets a secret.
    PutSecret {
        /// Whose.
        project: ProjectId,
        /// Its name.
        name: Name,
        /// Ciphertext.
        sealed: Vec<u8>,
    },
    /// Deletes a secret.
    DeleteSecret(ProjectId, Name),
    /// Reserves room for an upload, and later says that all of it is there.
    RecordUpload {
        /// Whose.
        project: ProjectId,
        /// BLAKE3.
        digest: Digest,
        /// Size in bytes.
        size: u64,
        /// All of it is there.
        complete: bool,
    },
    /// Books money that came in.
    Deposit {
        /// Whose.
        tenant: TenantId,
        /// How much.
        amount: Credits,
        /// Shown on the transfer.
        note: String,
    },
    /// Sets a credit line.
    SetCreditLine(TenantId, Credits),
    /// Publishes prices.
    SetPrices(Vec<Price>),
    /// Sets a quota.
    SetQuota(SetQuota),
    /// Takes a quota away, at the version that the caller read.
    DeleteQuota(QuotaKey, Option<u64>),
    /// Hands something to a manager, or to nobody.
    SetManager {
        /// What.
        object: Managed,
        /// To whom; empty = to nobody.
        manager: String,
        /// Whoever manages it now; else the caller must speak for its manager.
        detach: bool,
    },
    /// Sets a budget.
    SetBudget {
        /// Whose.
        tenant: TenantId,
        /// One project only.
        project: Option<ProjectId>,
        /// Per period.
        amount: Credits,
        /// Length in seconds.
        period_seconds: u64,
        /// What happens at its end.
        policy: BudgetPolicy,
    },
    /// A new site.
    CreateSite(Name),
    /// A token with which a host joins once.
    CreateJoinToken {
        /// BLAKE3 of the token.
        hash: Digest,
        /// Where to.
        site: SiteId,
        /// What joins.
        kind: JoinKind,
        /// When it ends.
        expires: Timestamp,
    },
    /// Closes or opens a node for new work, or moves its jobs away.
    SetNode {
        /// Which.
        node: NodeId,
        /// Closed.
        cordoned: bool,
        /// Moved away; replicas of endpoints may serve on for so long while others begin elsewhere. `None` = not moved.
        draining: Option<Nanos>,
        /// Why.
        reason: String,
    },
    /// A new job.
    Submit {
        /// Whose.
        project: ProjectId,
        /// `None` = made from the id.
        name: Option<Name>,
        /// What.
        spec: Arc<JobSpec>,
    },
    /// Checks a job as a submit or an order would, and does nothing.
    Validate(ProjectId, Arc<JobSpec>),
    /// Buys capacity.
    CreateOrder {
        /// Whose.
        project: ProjectId,
        /// `None` = made from the id.
        name: Option<Name>,
        /// What each leg asks for.
        legs: Vec<Arc<JobSpec>>,
        /// What the whole may cost at most; `None` = whatever it costs.
        limit: Option<Credits>,
        /// The files that its sandboxes begin with.
        home: Option<Box<KeptHome>>,
        /// Where it is to begin; later it goes on at any site that it may be at.
        begins_at: Option<SiteId>,
    },
    /// Ends what is left of an order: these are the jobs of its legs.
    ReleaseOrder(OrderId, Vec<JobId>),
    /// Makes a model of an upload.
    ImportModel(Box<ImportModel>),
    /// Deletes a model that no endpoint serves.
    DeleteModel(ModelId),
    /// Serves a model.
    CreateEndpoint(Box<NewEndpoint>),
    /// Changes an endpoint, if it is at this version.
    UpdateEndpoint(EndpointId, Option<u64>, EndpointChange),
    /// Ends an endpoint.
    DeleteEndpoint(EndpointId),
    /// Ends a job.
    Cancel(JobId, Option<u64>),
    /// Suspends a job.
    Suspend(JobId, Option<u64>),
    /// Queues a suspended job again.
    Resume(JobId, Option<u64>),
    /// Moves a job.
    Migrate(JobId, SiteId, Option<u64>),
}

/// What a quota is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetQuota {
    /// Which.
    pub key: QuotaKey,
    /// What it allows.
    pub limits: QuotaLimits,
    /// What lowering it does.
    pub policy: QuotaPolicy,
    /// The version that the caller read; 0 = it must not be there; `None` = whatever is there.
    pub version: Option<u64>,
}

/// What may have a manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Managed {
    /// A tenant.
    Tenant(TenantId),
    /// A quota.
    Quota(QuotaKey),
    /// A job.
    Job(JobId),
}

/// A model that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportModel {
    /// Whose.
    pub project: ProjectId,
    /// Its name.
    pub name: Name,
    /// The upload.
    pub file: StoredFile,
    /// What is made of it; empty = it is served as it is.
    pub requantize: String,
    /// What the import gets.
    pub resources: TaskResources,
}

/// What an import found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFound {
    /// In the file.
    pub info: ModelInfo,
    /// The file to serve: an upload of the project, complete.
    pub file: StoredFile,
}

/// An endpoint that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEndpoint {
    /// Whose.
    pub project: ProjectId,
    /// Its name.
    pub name: Name,
    /// What it serves.
    pub model: ModelId,
    /// How many replicas there may be.
    pub replicas: ReplicaBounds,
    /// What each replica gets.
    pub resources: TaskResources,
    /// Sites to choose from; empty = any that the project may use.
    pub sites: Vec<SiteId>,
    /// Tokens of context of each sequence; 0 = as many as the model was trained for, or as the memory holds where that is
    /// less.
    pub context: u32,
    /// Sequences that each replica has open at once.
    pub sequences: u32,
    /// Other tenants may call it.
    pub public: bool,
    /// What callers of other tenants pay.
    pub price: Option<TokenPrice>,
    /// A replica that was not needed for so long ends.
    pub idle: Nanos,
}

/// What is changed of an endpoint; `None` stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EndpointChange {
    /// How many replicas there may be.
    pub replicas: Option<ReplicaBounds>,
    /// Other tenants may call it.
    pub public: Option<bool>,
    /// What callers of other tenants pay.
    pub price: Option<TokenPrice>,
    /// A replica that was not needed for so long ends.
    pub idle: Option<Nanos>,
}

/// A request that begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenRequest {
    /// To which endpoint.
    pub endpoint: EndpointId,
    /// Who calls.
    pub tenant: TenantId,
    /// Which of its projects.
    pub project: ProjectId,
    /// With which key.
    pub key: KeyId,
    /// Tokens that its prompt may have.
    pub prompt_ceiling: u64,
    /// Tokens that may be generated.
    pub completion_ceiling: u64,
}

/// The home folder of an order, to begin another one with.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptHome {
    /// Whose.
    pub order: OrderId,
    /// The job of its leg.
    pub job: JobId,
    /// Its newest whole checkpoint as the store has it: jobs that are over are not in memory.
    pub stored: Option<Checkpoint>,
}

/// A host joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinHost {
    /// BLAKE3 of the token it showed.
    pub token: Digest,
    /// BLAKE3 of its public key.
    pub public_key: Digest,
    /// Its wanted name, for nodes.
    pub name: Option<Name>,
}

/// Which task of which attempt, and the fence it reports under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskKey {
    /// The attempt.
    pub attempt: AttemptId,
    /// The task's lease.
    pub lease: LeaseId,
    /// The attempt's generation.
    pub generation: Generation,
}

/// What a node tells.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeReport {
    /// It connected. Its generation in the command is ignored: this gives it a new one.
    Hello {
        /// This boot.
        boot: BootId,
        /// What it has.
        devices: Vec<Device>,
        /// Sold beside slices.
        host_cores: CoreMilli,
        /// Sold beside slices.
        host_memory: Bytes,
        /// Slices are not enforced.
        advisory: bool,
        /// Its clock.
        clock: NodeInstant,
        /// Where other hosts reach what its tasks listen on.
        address: String,
    },
    /// It is alive.
    Heartbeat(NodeInstant),
    /// A task is ready to start.
    Prepared(TaskKey),
    /// A task runs.
    Running {
        /// Whose.
        key: TaskKey,
        /// Since when.
        started: NodeInstant,
        /// Last step told.
        step: u64,
        /// Last numbers told.
        metrics: BTreeMap<String, f64>,
        /// It is held at its next step boundary until it is told at which one its gang stops.
        held: Option<Held>,
    },
    /// A task ended, and nothing is left of it on the node.
    Ended {
        /// Whose.
        key: TaskKey,
        /// How.
        end: TaskEnd,
        /// How many windows its lease has.
        windows: u64,
        /// Last step told.
        step: u64,
    },
    /// A checkpoint is sealed in the site's vault.
    Sealed {
        /// Whose.
        key: TaskKey,
        /// The step that was complete.
        step: u64,
        /// BLAKE3 of its manifest.
        manifest: Digest,
        /// All bytes.
        size: u64,
        /// When it was captured.
        captured: NodeInstant,
        /// The lease's first window after that.
        next_window: u64,
    },
    /// Journal records in order.
    Windows(Vec<WindowReport>),
}

/// A gang's task that was told to stop at a checkpoint waits at its next step boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The order, by the attempt's revision that brought it.
    pub revision: u64,
    /// The last step that the task had told before.
    pub step: u64,
}

/// One journal record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowReport {
    /// Number in the node's journal.
    pub journal: u64,
    /// Whose.
    pub key: TaskKey,
    /// Number within the lease.
    pub sequence: u64,
    /// The boot whose clock the instants are of.
    pub boot: BootId,
    /// Begin.
    pub start: NodeInstant,
    /// End, exclusive.
    pub end: NodeInstant,
    /// Processor time used, nanoseconds.
    pub used_ns: u64,
    /// Memory integrated over time.
    pub memory_byte_seconds: u64,
    /// Last step told.
    pub last_step: u64,
    /// The slice was not enforced.
    pub advisory: bool,
}

/// What a command did. It counts only once its rows are committed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answer {
    /// Text of the id of the object made or changed; empty where there is none.
    pub object: String,
    /// The job as it is now, for job commands that were not replayed.
    pub job: Option<Box<Job>>,
    /// What the scheduler would be asked to place, for a job that was only checked.
    pub wanted: Option<Box<JobView>>,
    /// The request was remembered, or the upload was there: nothing was done.
    pub replayed: bool,
    /// Tasks that the reporting node must release, because nobody knows them.
    pub release: Vec<TaskKey>,
    /// Jobs whose placement did not pass revalidation: the scheduler may place them again.
    pub rejected: Vec<JobId>,
    /// The new generation of a node's stream, after its hello; the site's id, after a join.
    pub generation: Generation,
}

/// Why a command was refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The documented reason.
    pub reason: Reason,
    /// In words.
    pub message: String,
    /// The field of the request, where there is one.
    pub field: Option<String>,
    /// More that a program can read, by name: of a quota `quota`, `level`, `missing_milli` and `who` may change it.
    pub details: BTreeMap<String, String>,
}

impl Refusal {
    /// A refusal for `reason`.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), field: None, details: BTreeMap::new() }
    }

    /// A refusal of one field.
    #[must_use]
    pub fn field(field: &str, message: impl Into<String>) -> Self {
        Self { field: Some(field.to_owned()), ..Self::new(Reason::InvalidField, message) }
    }

    /// The same with one more detail.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.details.insert(name.to_owned(), value.to_string());
        self
    }

    /// There is no such object, as far as the caller may know.
    #[must_use]
    pub fn not_found(what: &str) -> Self {
        Self::new(Reason::NotFound, format!("there is no such {what}"))
    }
}
