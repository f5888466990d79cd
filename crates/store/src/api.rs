//! What the rest of the system may ask of the database.

use async_trait::async_trait;
use sluice_ledger::{Account, AccountKey, Hold, PriceBook, QuotaKey, Transfer};
use sluice_lifecycle::model::{
    Attempt, Budget, Checkpoint, Counters, Endpoint, Event, InferenceRequest, Job, Key, Lease, Migration, Model, Node,
    Order, Project, Quota, Request, RequestKey, Secret, Site, Tenant, Window,
};
use sluice_lifecycle::{Rows, Snapshot};
use sluice_types::{
    AttemptId, CheckpointId, DeviceClassName, EndpointId, Generation, HoldId, JobId, KeyId, LeaseId, MigrationId,
    ModelId, Name, NodeId, OrderId, PriceVersion, ProjectId, RequestId, SecretId, SiteId, TenantId, Timestamp,
    TransferId,
};

use crate::{EventFilter, JobFilter, LoadBounds, Page, Result, WindowPlace, WindowScope};

/// The durable truth, on SQLite or PostgreSQL.
///
/// One writer at a time commits; everybody else reads, from other connections, and never waits for the writer nor
/// makes it wait. What a read returns was committed, and may be older than the writer's newest commit only while that
/// commit has not been answered yet.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Makes the caller the only writer: every commit under an older generation is refused from now on.
    async fn acquire_leader(&self, holder: &str) -> Result<Generation>;

    /// Writes all rows or none, and returns after they are on disk. Where a kind holds the same key twice, the later
    /// row counts.
    ///
    /// # Errors
    /// [`NotLeader`](crate::StoreError::NotLeader) and [`Conflict`](crate::StoreError::Conflict): nothing was
    /// written. Any other error: unknown, so the caller must acquire and load again.
    async fn commit(&self, leader: Generation, rows: &Rows) -> Result<()>;

    /// What a writer starts from, as of one instant. Call it after [`Store::acquire_leader`].
    async fn load(&self, bounds: LoadBounds) -> Result<Snapshot>;

    /// Deletes at most `limit` requests that were remembered before `before`, and returns how many.
    ///
    /// # Errors
    /// As [`Store::commit`].
    async fn forget_requests(&self, leader: Generation, before: Timestamp, limit: u32) -> Result<u64>;

    /// Deletes at most `limit` requests to endpoints that were over before `before`, and returns how many.
    ///
    /// # Errors
    /// As [`Store::commit`].
    async fn forget_inference(&self, leader: Generation, before: Timestamp, limit: u32) -> Result<u64>;

    /// Whether the database answers.
    async fn ping(&self) -> Result<()>;

    /// Closes every connection. On SQLite the log is folded into the file.
    async fn close(&self);

    /// A job.
    async fn get_job(&self, id: JobId) -> Result<Option<Job>>;
    /// Jobs, newest first.
    async fn list_jobs(&self, filter: &JobFilter, page: Page<JobId>) -> Result<Vec<Job>>;
    /// The jobs of these ids that exist, newest first; at most [`MAX_PAGE`](crate::MAX_PAGE) ids count.
    async fn jobs_by_ids(&self, ids: &[JobId]) -> Result<Vec<Job>>;
    /// An order.
    async fn get_order(&self, id: OrderId) -> Result<Option<Order>>;
    /// Orders of a project, newest first.
    async fn list_orders(&self, project: ProjectId, page: Page<OrderId>) -> Result<Vec<Order>>;
    /// A model, deleted or not.
    async fn get_model(&self, id: ModelId) -> Result<Option<Model>>;
    /// A model that is not deleted.
    async fn model_by_name(&self, project: ProjectId, name: &Name) -> Result<Option<Model>>;
    /// Models of a project that are not deleted, newest first.
    async fn list_models(&self, project: ProjectId, page: Page<ModelId>) -> Result<Vec<Model>>;
    /// Models of all projects whose import has not ended, newest first.
    async fn importing_models(&self, page: Page<ModelId>) -> Result<Vec<Model>>;
    /// An endpoint, deleted or not.
    async fn get_endpoint(&self, id: EndpointId) -> Result<Option<Endpoint>>;
    /// An endpoint that is not deleted.
    async fn endpoint_by_name(&self, project: ProjectId, name: &Name) -> Result<Option<Endpoint>>;
    /// Endpoints of a project that are not deleted, newest first.
    async fn list_endpoints(&self, project: ProjectId, page: Page<EndpointId>) -> Result<Vec<Endpoint>>;
    /// A request to an endpoint.
    async fn get_inference(&self, id: RequestId) -> Result<Option<InferenceRequest>>;
    /// Requests to an endpoint, newest first.
    async fn inference_of(&self, endpoint: EndpointId, page: Page<RequestId>) -> Result<Vec<InferenceRequest>>;
    /// Requests that a project made, newest first.
    async fn inference_by(&self, project: ProjectId, page: Page<RequestId>) -> Result<Vec<InferenceRequest>>;
    /// Events in the order of their sequence. Sequences are committed in order, so a reader that has seen one never
    /// finds a lower one later.
    async fn list_events(&self, filter: EventFilter, page: Page<u64>) -> Result<Vec<Event>>;
    /// Attempts of a job, oldest first.
    async fn attempts_of(&self, job: JobId, page: Page<AttemptId>) -> Result<Vec<Attempt>>;
    /// The attempts of these ids that exist, in no order; at most [`MAX_PAGE`](crate::MAX_PAGE) ids count.
    async fn attempts_by_ids(&self, ids: &[AttemptId]) -> Result<Vec<Attempt>>;
    /// Attempts of a job whose holds are not closed, newest first; at most [`MAX_PAGE`](crate::MAX_PAGE).
    async fn open_attempts_of(&self, job: JobId) -> Result<Vec<Attempt>>;
    /// The newest attempt of a job.
    async fn latest_attempt(&self, job: JobId) -> Result<Option<Attempt>>;
    /// Leases of a job that are not settled, newest first; at most [`MAX_PAGE`](crate::MAX_PAGE).
    async fn open_leases_of(&self, job: JobId) -> Result<Vec<Lease>>;
    /// Leases of a job, oldest first.
    async fn leases_of(&self, job: JobId, page: Page<LeaseId>) -> Result<Vec<Lease>>;
    /// A lease.
    async fn get_lease(&self, id: LeaseId) -> Result<Option<Lease>>;
    /// Checkpoints of a job, newest first, retired ones too.
    async fn checkpoints_of(&self, job: JobId, page: Page<CheckpointId>) -> Result<Vec<Checkpoint>>;
    /// A checkpoint.
    async fn get_checkpoint(&self, id: CheckpointId) -> Result<Option<Checkpoint>>;
    /// A migration.
    async fn get_migration(&self, id: MigrationId) -> Result<Option<Migration>>;
    /// Migrations of a job, newest first.
    async fn migrations_of(&self, job: JobId, page: Page<MigrationId>) -> Result<Vec<Migration>>;

    /// Windows in the order of posting, those posted in `since <= at < until`.
    async fn windows_of(
        &self,
        scope: WindowScope,
        span: std::ops::Range<Timestamp>,
        page: Page<WindowPlace>,
    ) -> Result<Vec<Window>>;
    /// Windows of a lease by their number.
    async fn windows_of_lease(&self, lease: LeaseId, page: Page<u64>) -> Result<Vec<Window>>;
    /// Transfers that touch one of these accounts, newest first; at most 16 accounts count.
    async fn transfers_of(&self, accounts: &[AccountKey], page: Page<TransferId>) -> Result<Vec<Transfer>>;
    /// All transfers in the order of posting, for whoever checks the books.
    async fn transfers_all(&self, page: Page<TransferId>) -> Result<Vec<Transfer>>;
    /// The transfer that a cause made.
    async fn transfer_by_cause(&self, cause: &str) -> Result<Option<Transfer>>;
    /// The accounts of these keys that exist; at most [`MAX_PAGE`](crate::MAX_PAGE) keys count.
    async fn accounts(&self, keys: &[AccountKey]) -> Result<Vec<Account>>;
    /// Accounts of a tenant by key, those of its projects' budgets not among them.
    async fn accounts_of(&self, tenant: TenantId, page: Page<AccountKey>) -> Result<Vec<Account>>;
    /// All accounts by key, for whoever checks the books.
    async fn accounts_all(&self, page: Page<AccountKey>) -> Result<Vec<Account>>;
    /// The holds of these ids that exist, closed ones too; at most [`MAX_PAGE`](crate::MAX_PAGE) ids count.
    async fn holds(&self, ids: &[HoldId]) -> Result<Vec<Hold>>;
    /// One edition of the prices.
    async fn prices(&self, version: PriceVersion) -> Result<Option<PriceBook>>;
    /// The newest edition of the prices.
    async fn latest_prices(&self) -> Result<Option<PriceBook>>;
    /// Budgets of a tenant and its projects by scope.
    async fn budgets_of(&self, tenant: TenantId, page: Page<String>) -> Result<Vec<Budget>>;
    /// A quota.
    async fn get_quota(&self, key: &QuotaKey) -> Result<Option<Quota>>;
    /// Quotas of a tenant by site and class, the first [`MAX_PAGE`](crate::MAX_PAGE): a tenant has no more.
    async fn quotas_of(&self, tenant: TenantId) -> Result<Vec<Quota>>;
    /// All tenants' quotas of a class at a site, oldest tenants first.
    async fn quotas_at(&self, site: SiteId, class: &DeviceClassName, page: Page<TenantId>) -> Result<Vec<Quota>>;

    /// Tenants, oldest first.
    async fn list_tenants(&self, page: Page<TenantId>) -> Result<Vec<Tenant>>;
    /// A tenant.
    async fn get_tenant(&self, id: TenantId) -> Result<Option<Tenant>>;
    /// A tenant.
    async fn tenant_by_name(&self, name: &Name) -> Result<Option<Tenant>>;
    /// Projects of a tenant, or of all, oldest first.
    async fn list_projects(&self, tenant: Option<TenantId>, page: Page<ProjectId>) -> Result<Vec<Project>>;
    /// A project.
    async fn get_project(&self, id: ProjectId) -> Result<Option<Project>>;
    /// A project.
    async fn project_by_name(&self, tenant: TenantId, name: &Name) -> Result<Option<Project>>;
    /// Keys bound to a tenant, or all keys, oldest first, revoked ones too.
    async fn list_keys(&self, tenant: Option<TenantId>, page: Page<KeyId>) -> Result<Vec<Key>>;
    /// A key.
    async fn get_key(&self, id: KeyId) -> Result<Option<Key>>;
    /// Secrets of a project, oldest first, without the deleted.
    async fn list_secrets(&self, project: ProjectId, page: Page<SecretId>) -> Result<Vec<Secret>>;
    /// A secret that is not deleted.
    async fn secret_by_name(&self, project: ProjectId, name: &Name) -> Result<Option<Secret>>;
    /// Sites, oldest first.
    async fn list_sites(&self, page: Page<SiteId>) -> Result<Vec<Site>>;
    /// A site.
    async fn get_site(&self, id: SiteId) -> Result<Option<Site>>;
    /// Nodes of a site, or of all, oldest first.
    async fn list_nodes(&self, site: Option<SiteId>, page: Page<NodeId>) -> Result<Vec<Node>>;
    /// A node.
    async fn get_node(&self, id: NodeId) -> Result<Option<Node>>;
    /// What was refused so far.
    async fn counters(&self) -> Result<Counters>;
    /// A remembered request.
    async fn find_request(&self, key: RequestKey) -> Result<Option<Request>>;
}
