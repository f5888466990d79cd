//! Queries. Each is one statement and returns at most [`MAX_PAGE`](crate::MAX_PAGE) rows.

use std::ops::Range;

use async_trait::async_trait;
use sluice_ledger::{Account, AccountKey, Hold, PriceBook, QuotaKey, Transfer};
use sluice_lifecycle::model::{
    Attempt, Budget, Checkpoint, Counters, Endpoint, Event, InferenceRequest, Job, Key, Lease, Migration, Model,
    ModelState, Node, Order, Project, Quota, Request, RequestKey, Secret, Site, Tenant, Window,
};
use sluice_lifecycle::{Rows, Snapshot};
use sluice_types::{
    AttemptId, CheckpointId, DeviceClassName, EndpointId, Generation, HoldId, JobId, KeyId, LeaseId, MigrationId,
    ModelId, Name, NodeId, OrderId, PriceVersion, ProjectId, RequestId, SecretId, SiteId, TenantId, Timestamp,
    TransferId,
};

use crate::engine::{Dialect, Engine};
use crate::value::{Query, Record, Value, exact, id, instant};
use crate::{
    EventFilter, JobFilter, LoadBounds, MAX_PAGE, Page, Result, Store, WindowPlace, WindowScope, tables, write,
};

const ACCOUNT: &str = "SELECT name, debits_pending, debits_posted, credits_pending, credits_posted, line FROM accounts";
const HOLD: &str = "SELECT id, debit, credit, remaining, live FROM holds";
const TRANSFER: &str = "SELECT id, kind, debit, credit, amount, hold, cause, at FROM transfers";

/// How many accounts one history may join.
const MAX_ACCOUNTS: usize = 16;

fn limit<K>(page: &Page<K>) -> u32 {
    page.limit.min(MAX_PAGE)
}

fn bounded<T>(keys: &[T]) -> &[T] {
    &keys[..keys.len().min(MAX_PAGE as usize)]
}

/// A statement that ends in one row's key.
fn by(text: &'static str, key: impl Into<Value>) -> Query {
    let mut query = Query::default();
    query.bind(text, key);
    query
}

/// Appends the page of a list that is ordered by an id column, oldest first. A condition must stand before.
fn rising(query: &mut Query, column: &str, after: Option<u64>, limit: u32) {
    let after = after.map_or(-1, u64::cast_signed);
    query.push(" AND ").push(column).bind(" > ", after);
    query.push(" ORDER BY ").push(column).bind(" LIMIT ", limit);
}

/// The same, newest first.
fn falling(query: &mut Query, after: Option<u64>, limit: u32) {
    let before = after.map_or(i64::MAX, u64::cast_signed);
    query.bind(" AND id < ", before).bind(" ORDER BY id DESC LIMIT ", limit);
}

fn event(record: &Record) -> Result<Event> {
    record.body("events")
}

fn job(record: &Record) -> Result<Job> {
    record.body("jobs")
}

fn window(record: &Record) -> Result<Window> {
    record.body("windows")
}

#[async_trait]
impl<D: Dialect> Store for Engine<D> {
    async fn acquire_leader(&self, holder: &str) -> Result<Generation> {
        self.lead(holder).await
    }

    async fn commit(&self, leader: Generation, rows: &Rows) -> Result<()> {
        self.write(leader, write::statements(D::LAYOUT, rows)).await.map(drop)
    }

    async fn load(&self, bounds: LoadBounds) -> Result<Snapshot> {
        self.snapshot(bounds).await
    }

    async fn forget_requests(&self, leader: Generation, before: Timestamp, limit: u32) -> Result<u64> {
        self.write(leader, std::iter::once(Ok(write::forget_requests(before, limit)))).await
    }

    async fn forget_inference(&self, leader: Generation, before: Timestamp, limit: u32) -> Result<u64> {
        self.write(leader, std::iter::once(Ok(write::forget_inference(before, limit)))).await
    }

    async fn ping(&self) -> Result<()> {
        Engine::ping(self).await
    }

    async fn close(&self) {
        Engine::close(self).await;
    }

    async fn get_job(&self, id_: JobId) -> Result<Option<Job>> {
        self.read_one(&mut by("SELECT body FROM jobs WHERE id = ", id(id_.raw())), job).await
    }

    async fn list_jobs(&self, filter: &JobFilter, page: Page<JobId>) -> Result<Vec<Job>> {
        let mut query = Query::new("SELECT body FROM jobs WHERE 1 = 1");
        if let Some(tenant) = filter.tenant {
            query.bind(" AND tenant = ", id(tenant.raw()));
        }
        if let Some(project) = filter.project {
            query.bind(" AND project = ", id(project.raw()));
        }
        if let Some(name) = &filter.name {
            query.bind(" AND name = ", name.as_str());
        }
        if !filter.states.is_empty() {
            query.bind_list(" AND state IN ", filter.states.iter().copied().map(tables::state_word));
            if filter.states.iter().all(|state| !state.is_terminal()) {
                // The same again for the index of live jobs, which is short however long the history is.
                query.push(" AND live = 1");
            }
        }
        for (key, value) in &filter.labels {
            D::has_label(&mut query, key, value);
        }
        falling(&mut query, page.after.map(JobId::raw), limit(&page));
        self.read(&mut query, job).await
    }

    async fn jobs_by_ids(&self, ids: &[JobId]) -> Result<Vec<Job>> {
        let mut query = Query::new("SELECT body FROM jobs");
        query.bind_list(" WHERE id IN ", bounded(ids).iter().map(|job| id(job.raw()))).push(" ORDER BY id DESC");
        self.read(&mut query, job).await
    }

    async fn get_order(&self, order: OrderId) -> Result<Option<Order>> {
        let mut query = by("SELECT body FROM orders WHERE id = ", id(order.raw()));
        self.read_one(&mut query, |row| row.body("orders")).await
    }

    async fn list_orders(&self, project: ProjectId, page: Page<OrderId>) -> Result<Vec<Order>> {
        let mut query = by("SELECT body FROM orders WHERE project = ", id(project.raw()));
        falling(&mut query, page.after.map(OrderId::raw), limit(&page));
        self.read(&mut query, |row| row.body("orders")).await
    }

    async fn get_model(&self, model: ModelId) -> Result<Option<Model>> {
        let mut query = by("SELECT body FROM models WHERE id = ", id(model.raw()));
        self.read_one(&mut query, |row| row.body("models")).await
    }

    async fn model_by_name(&self, project: ProjectId, name: &Name) -> Result<Option<Model>> {
        let mut query = by("SELECT body FROM models WHERE live = 1 AND project = ", id(project.raw()));
        self.read_one(query.bind(" AND name = ", name.as_str()), |row| row.body("models")).await
    }

    async fn list_models(&self, project: ProjectId, page: Page<ModelId>) -> Result<Vec<Model>> {
        let mut query = by("SELECT body FROM models WHERE live = 1 AND project = ", id(project.raw()));
        falling(&mut query, page.after.map(ModelId::raw), limit(&page));
        self.read(&mut query, |row| row.body("models")).await
    }

    async fn importing_models(&self, page: Page<ModelId>) -> Result<Vec<Model>> {
        let importing = tables::model_word(ModelState::Importing);
        let mut query = by("SELECT body FROM models WHERE live = 1 AND state = ", importing);
        falling(&mut query, page.after.map(ModelId::raw), limit(&page));
        self.read(&mut query, |row| row.body("models")).await
    }

    async fn get_endpoint(&self, endpoint: EndpointId) -> Result<Option<Endpoint>> {
        let mut query = by("SELECT body FROM endpoints WHERE id = ", id(endpoint.raw()));
        self.read_one(&mut query, |row| row.body("endpoints")).await
    }

    async fn endpoint_by_name(&self, project: ProjectId, name: &Name) -> Result<Option<Endpoint>> {
        let mut query = by("SELECT body FROM endpoints WHERE live = 1 AND project = ", id(project.raw()));
        self.read_one(query.bind(" AND name = ", name.as_str()), |row| row.body("endpoints")).await
    }

    async fn list_endpoints(&self, project: ProjectId, page: Page<EndpointId>) -> Result<Vec<Endpoint>> {
        let mut query = by("SELECT body FROM endpoints WHERE live = 1 AND project = ", id(project.raw()));
        falling(&mut query, page.after.map(EndpointId::raw), limit(&page));
        self.read(&mut query, |row| row.body("endpoints")).await
    }

    async fn get_inference(&self, request: RequestId) -> Result<Option<InferenceRequest>> {
        let mut query = by("SELECT body FROM inference WHERE id = ", id(request.raw()));
        self.read_one(&mut query, |row| row.body("inference")).await
    }

    async fn inference_of(&self, endpoint: EndpointId, page: Page<RequestId>) -> Result<Vec<InferenceRequest>> {
        let mut query = by("SELECT body FROM inference WHERE endpoint = ", id(endpoint.raw()));
        falling(&mut query, page.after.map(RequestId::raw), limit(&page));
        self.read(&mut query, |row| row.body("inference")).await
    }

    async fn inference_by(&self, project: ProjectId, page: Page<RequestId>) -> Result<Vec<InferenceRequest>> {
        let mut query = by("SELECT body FROM inference WHERE project = ", id(project.raw()));
        falling(&mut query, page.after.map(RequestId::raw), limit(&page));
        self.read(&mut query, |row| row.body("inference")).await
    }

    async fn list_events(&self, filter: EventFilter, page: Page<u64>) -> Result<Vec<Event>> {
        let mut query = Query::new("SELECT body FROM events WHERE 1 = 1");
        let EventFilter { tenant, project, job } = filter;
        if let Some(tenant) = tenant {
            query.bind(" AND tenant = ", id(tenant.raw()));
        }
        if let Some(project) = project {
            query.bind(" AND project = ", id(project.raw()));
            if tenant.is_none() && job.is_none() {
                // A project's events are found through its tenant's index.
                query.bind(" AND tenant = (SELECT tenant FROM projects WHERE id = ", id(project.raw())).push(")");
            }
        }
        if let Some(job) = job {
            query.bind(" AND job = ", id(job.raw()));
        }
        let after = page.after.map(|after| after.min(i64::MAX.cast_unsigned()));
        rising(&mut query, "sequence", after, limit(&page));
        self.read(&mut query, event).await
    }

    async fn attempts_of(&self, job: JobId, page: Page<AttemptId>) -> Result<Vec<Attempt>> {
        let mut query = by("SELECT body FROM attempts WHERE job = ", id(job.raw()));
        rising(&mut query, "id", page.after.map(AttemptId::raw), limit(&page));
        self.read(&mut query, |row| row.body("attempts")).await
    }

    async fn attempts_by_ids(&self, ids: &[AttemptId]) -> Result<Vec<Attempt>> {
        let mut query = Query::new("SELECT body FROM attempts");
        query.bind_list(" WHERE id IN ", bounded(ids).iter().map(|attempt| id(attempt.raw())));
        self.read(&mut query, |row| row.body("attempts")).await
    }

    async fn open_attempts_of(&self, job: JobId) -> Result<Vec<Attempt>> {
        let mut query = by("SELECT body FROM attempts WHERE job = ", id(job.raw()));
        falling(query.push(" AND live = 1"), None, MAX_PAGE);
        self.read(&mut query, |row| row.body("attempts")).await
    }

    async fn latest_attempt(&self, job: JobId) -> Result<Option<Attempt>> {
        let mut query = by("SELECT body FROM attempts WHERE job = ", id(job.raw()));
        falling(&mut query, None, 1);
        self.read_one(&mut query, |row| row.body("attempts")).await
    }

    async fn open_leases_of(&self, job: JobId) -> Result<Vec<Lease>> {
        let mut query = by("SELECT body FROM leases WHERE job = ", id(job.raw()));
        falling(query.push(" AND live = 1"), None, MAX_PAGE);
        self.read(&mut query, |row| row.body("leases")).await
    }

    async fn leases_of(&self, job: JobId, page: Page<LeaseId>) -> Result<Vec<Lease>> {
        let mut query = by("SELECT body FROM leases WHERE job = ", id(job.raw()));
        rising(&mut query, "id", page.after.map(LeaseId::raw), limit(&page));
        self.read(&mut query, |row| row.body("leases")).await
    }

    async fn get_lease(&self, lease: LeaseId) -> Result<Option<Lease>> {
        let mut query = by("SELECT body FROM leases WHERE id = ", id(lease.raw()));
        self.read_one(&mut query, |row| row.body("leases")).await
    }

    async fn checkpoints_of(&self, job: JobId, page: Page<CheckpointId>) -> Result<Vec<Checkpoint>> {
        let mut query = by("SELECT body FROM checkpoints WHERE job = ", id(job.raw()));
        falling(&mut query, page.after.map(CheckpointId::raw), limit(&page));
        self.read(&mut query, |row| row.body("checkpoints")).await
    }

    async fn get_checkpoint(&self, checkpoint: CheckpointId) -> Result<Option<Checkpoint>> {
        let mut query = by("SELECT body FROM checkpoints WHERE id = ", id(checkpoint.raw()));
        self.read_one(&mut query, |row| row.body("checkpoints")).await
    }

    async fn get_migration(&self, migration: MigrationId) -> Result<Option<Migration>> {
        let mut query = by("SELECT body FROM migrations WHERE id = ", id(migration.raw()));
        self.read_one(&mut query, |row| row.body("migrations")).await
    }

    async fn migrations_of(&self, job: JobId, page: Page<MigrationId>) -> Result<Vec<Migration>> {
        let mut query = by("SELECT body FROM migrations WHERE job = ", id(job.raw()));
        falling(&mut query, page.after.map(MigrationId::raw), limit(&page));
        self.read(&mut query, |row| row.body("migrations")).await
    }

    async fn windows_of(
        &self,
        scope: WindowScope,
        span: Range<Timestamp>,
        page: Page<WindowPlace>,
    ) -> Result<Vec<Window>> {
        let mut query = match scope {
            WindowScope::Tenant(tenant) => by("SELECT body FROM windows WHERE tenant = ", id(tenant.raw())),
            WindowScope::Project(project) => by("SELECT body FROM windows WHERE project = ", id(project.raw())),
            WindowScope::Job(job) => by("SELECT body FROM windows WHERE job = ", id(job.raw())),
        };
        query.bind(" AND at >= ", instant(span.start)).bind(" AND at < ", instant(span.end));
        if let Some(place) = page.after {
            query.bind(" AND (at, lease, sequence) > (", instant(place.at));
            query.bind(", ", id(place.lease.raw())).bind(", ", exact(place.sequence, "a place")?).push(")");
        }
        query.bind(" ORDER BY at, lease, sequence LIMIT ", limit(&page));
        self.read(&mut query, window).await
    }

    async fn windows_of_lease(&self, lease: LeaseId, page: Page<u64>) -> Result<Vec<Window>> {
        let mut query = by("SELECT body FROM windows WHERE lease = ", id(lease.raw()));
        let after = page.after.map(|after| after.min(i64::MAX.cast_unsigned()));
        rising(&mut query, "sequence", after, limit(&page));
        self.read(&mut query, window).await
    }

    async fn transfers_of(&self, accounts: &[AccountKey], page: Page<TransferId>) -> Result<Vec<Transfer>> {
        // Each side of each account is a walk along its own index; their ends are merged.
        let mut query = Query::default();
        let before = page.after.map_or(i64::MAX, |id| id.raw().cast_signed());
        let sides = accounts.iter().take(MAX_ACCOUNTS).flat_map(|key| [("debit", key), ("credit", key)]);
        for (place, (side, key)) in sides.enumerate() {
            query.push(if place == 0 { "" } else { " UNION " });
            query.push("SELECT * FROM (").push(TRANSFER).push(" WHERE ").push(side).bind(" = ", key.to_string());
            query.bind(" AND id < ", before).bind(" ORDER BY id DESC LIMIT ", limit(&page)).push(") AS part");
        }
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        query.bind(" ORDER BY id DESC LIMIT ", limit(&page));
        self.read(&mut query, tables::transfer).await
    }

    async fn transfers_all(&self, page: Page<TransferId>) -> Result<Vec<Transfer>> {
        let mut query = Query::new(TRANSFER);
        query.push(" WHERE 1 = 1");
        rising(&mut query, "id", page.after.map(TransferId::raw), limit(&page));
        self.read(&mut query, tables::transfer).await
    }

    async fn transfer_by_cause(&self, cause: &str) -> Result<Option<Transfer>> {
        let mut query = Query::new(TRANSFER);
        query.bind(" WHERE cause = ", cause);
        self.read_one(&mut query, tables::transfer).await
    }

    async fn accounts(&self, keys: &[AccountKey]) -> Result<Vec<Account>> {
        let mut query = Query::new(ACCOUNT);
        query.bind_list(" WHERE name IN ", bounded(keys).iter().map(|key| key.to_string().into()));
        self.read(query.push(" ORDER BY name"), tables::account).await
    }

    async fn accounts_of(&self, tenant: TenantId, page: Page<AccountKey>) -> Result<Vec<Account>> {
        let mut query = Query::new(ACCOUNT);
        let after = page.after.as_ref().map(AccountKey::to_string).unwrap_or_default();
        query.bind(" WHERE tenant = ", id(tenant.raw())).bind(" AND name > ", after);
        query.bind(" ORDER BY name LIMIT ", limit(&page));
        self.read(&mut query, tables::account).await
    }

    async fn accounts_all(&self, page: Page<AccountKey>) -> Result<Vec<Account>> {
        let mut query = Query::new(ACCOUNT);
        let after = page.after.as_ref().map(AccountKey::to_string).unwrap_or_default();
        query.bind(" WHERE name > ", after).bind(" ORDER BY name LIMIT ", limit(&page));
        self.read(&mut query, tables::account).await
    }

    async fn holds(&self, ids: &[HoldId]) -> Result<Vec<Hold>> {
        let mut query = Query::new(HOLD);
        query.bind_list(" WHERE id IN ", bounded(ids).iter().map(|hold| id(hold.raw()))).push(" ORDER BY id");
        self.read(&mut query, tables::hold).await
    }

    async fn prices(&self, version: PriceVersion) -> Result<Option<PriceBook>> {
        let mut query = by("SELECT body FROM prices WHERE version = ", id(version.raw()));
        self.read_one(&mut query, |row| row.body("prices")).await
    }

    async fn latest_prices(&self) -> Result<Option<PriceBook>> {
        let mut query = Query::new("SELECT body FROM prices ORDER BY version DESC LIMIT 1");
        self.read_one(&mut query, |row| row.body("prices")).await
    }

    async fn budgets_of(&self, tenant: TenantId, page: Page<String>) -> Result<Vec<Budget>> {
        let mut query = by("SELECT body FROM budgets WHERE tenant = ", id(tenant.raw()));
        query.bind(" AND scope > ", page.after.as_deref().unwrap_or_default());
        query.bind(" ORDER BY scope LIMIT ", limit(&page));
        self.read(&mut query, |row| row.body("budgets")).await
    }

    async fn get_quota(&self, key: &QuotaKey) -> Result<Option<Quota>> {
        let mut query = by("SELECT body FROM quotas WHERE live = 1 AND tenant = ", id(key.tenant.raw()));
        query.bind(" AND site = ", tables::site(key)).bind(" AND class = ", key.class.as_str());
        self.read_one(&mut query, |row| row.body("quotas")).await
    }

    async fn quotas_of(&self, tenant: TenantId) -> Result<Vec<Quota>> {
        let mut query = by("SELECT body FROM quotas WHERE live = 1 AND tenant = ", id(tenant.raw()));
        query.bind(" ORDER BY site, class LIMIT ", MAX_PAGE);
        self.read(&mut query, |row| row.body("quotas")).await
    }

    async fn quotas_at(&self, site: SiteId, class: &DeviceClassName, page: Page<TenantId>) -> Result<Vec<Quota>> {
        let mut query = by("SELECT body FROM quotas WHERE live = 1 AND site = ", id(site.raw()));
        query.bind(" AND class = ", class.as_str());
        rising(&mut query, "tenant", page.after.map(TenantId::raw), limit(&page));
        self.read(&mut query, |row| row.body("quotas")).await
    }

    async fn list_tenants(&self, page: Page<TenantId>) -> Result<Vec<Tenant>> {
        let mut query = Query::new("SELECT body FROM tenants WHERE 1 = 1");
        rising(&mut query, "id", page.after.map(TenantId::raw), limit(&page));
        self.read(&mut query, |row| row.body("tenants")).await
    }

    async fn get_tenant(&self, tenant: TenantId) -> Result<Option<Tenant>> {
        let mut query = by("SELECT body FROM tenants WHERE id = ", id(tenant.raw()));
        self.read_one(&mut query, |row| row.body("tenants")).await
    }

    async fn tenant_by_name(&self, name: &Name) -> Result<Option<Tenant>> {
        let mut query = by("SELECT body FROM tenants WHERE name = ", name.as_str());
        self.read_one(&mut query, |row| row.body("tenants")).await
    }

    async fn list_projects(&self, tenant: Option<TenantId>, page: Page<ProjectId>) -> Result<Vec<Project>> {
        let mut query = Query::new("SELECT body FROM projects WHERE 1 = 1");
        if let Some(tenant) = tenant {
            query.bind(" AND tenant = ", id(tenant.raw()));
        }
        rising(&mut query, "id", page.after.map(ProjectId::raw), limit(&page));
        self.read(&mut query, |row| row.body("projects")).await
    }

    async fn get_project(&self, project: ProjectId) -> Result<Option<Project>> {
        let mut query = by("SELECT body FROM projects WHERE id = ", id(project.raw()));
        self.read_one(&mut query, |row| row.body("projects")).await
    }

    async fn project_by_name(&self, tenant: TenantId, name: &Name) -> Result<Option<Project>> {
        let mut query = by("SELECT body FROM projects WHERE tenant = ", id(tenant.raw()));
        self.read_one(query.bind(" AND name = ", name.as_str()), |row| row.body("projects")).await
    }

    async fn list_keys(&self, tenant: Option<TenantId>, page: Page<KeyId>) -> Result<Vec<Key>> {
        let mut query = Query::new("SELECT body FROM api_keys WHERE 1 = 1");
        if let Some(tenant) = tenant {
            query.bind(" AND tenant = ", id(tenant.raw()));
        }
        rising(&mut query, "id", page.after.map(KeyId::raw), limit(&page));
        self.read(&mut query, |row| row.body("api_keys")).await
    }

    async fn get_key(&self, key: KeyId) -> Result<Option<Key>> {
        let mut query = by("SELECT body FROM api_keys WHERE id = ", id(key.raw()));
        self.read_one(&mut query, |row| row.body("api_keys")).await
    }

    async fn list_secrets(&self, project: ProjectId, page: Page<SecretId>) -> Result<Vec<Secret>> {
        let mut query = by("SELECT body FROM secrets WHERE live = 1 AND project = ", id(project.raw()));
        rising(&mut query, "id", page.after.map(SecretId::raw), limit(&page));
        self.read(&mut query, |row| row.body("secrets")).await
    }

    async fn secret_by_name(&self, project: ProjectId, name: &Name) -> Result<Option<Secret>> {
        let mut query = by("SELECT body FROM secrets WHERE live = 1 AND project = ", id(project.raw()));
        self.read_one(query.bind(" AND name = ", name.as_str()), |row| row.body("secrets")).await
    }

    async fn list_sites(&self, page: Page<SiteId>) -> Result<Vec<Site>> {
        let mut query = Query::new("SELECT body FROM sites WHERE 1 = 1");
        rising(&mut query, "id", page.after.map(SiteId::raw), limit(&page));
        self.read(&mut query, |row| row.body("sites")).await
    }

    async fn get_site(&self, site: SiteId) -> Result<Option<Site>> {
        let mut query = by("SELECT body FROM sites WHERE id = ", id(site.raw()));
        self.read_one(&mut query, |row| row.body("sites")).await
    }

    async fn list_nodes(&self, site: Option<SiteId>, page: Page<NodeId>) -> Result<Vec<Node>> {
        let mut query = Query::new("SELECT body FROM nodes WHERE 1 = 1");
        if let Some(site) = site {
            query.bind(" AND site = ", id(site.raw()));
        }
        rising(&mut query, "id", page.after.map(NodeId::raw), limit(&page));
        self.read(&mut query, |row| row.body("nodes")).await
    }

    async fn get_node(&self, node: NodeId) -> Result<Option<Node>> {
        let mut query = by("SELECT body FROM nodes WHERE id = ", id(node.raw()));
        self.read_one(&mut query, |row| row.body("nodes")).await
    }

    async fn counters(&self) -> Result<Counters> {
        let mut query = Query::new("SELECT body FROM counters WHERE id = 1");
        Ok(self.read_one(&mut query, |row| row.body("counters")).await?.unwrap_or_default())
    }

    async fn find_request(&self, key: RequestKey) -> Result<Option<Request>> {
        let [high, low] = tables::halves(&key);
        let mut query = by("SELECT body FROM requests WHERE caller = ", id(key.by.raw()));
        query.bind(" AND id_high = ", high).bind(" AND id_low = ", low);
        self.read_one(&mut query, |row| row.body("requests")).await
    }
}
