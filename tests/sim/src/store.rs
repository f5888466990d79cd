//! The store as tables in memory: what a commit leaves, and the snapshot that a writer starts from.
//!
//! Written from the doc comments of `Rows` and `Snapshot`, apart from the store that production uses.

use std::collections::{BTreeMap, BTreeSet};

use sluice_ledger::{Account, AccountKey, Hold, PriceBook, QuotaKey, Transfer};
use sluice_lifecycle::model::{
    Attempt, Budget, Checkpoint, Counters, Discard, Endpoint, EndpointState, InferenceRequest, InferenceState, Job,
    JoinToken, Key, Lease, LeaseState, Migration, Model, ModelState, Node, Order, Project, Quota, Request, RequestKey,
    Secret, Site, Tenant, Upload, Window,
};
use sluice_lifecycle::{Rows, Snapshot};
use sluice_types::{
    AttemptId, CheckpointId, Digest, EndpointId, HoldId, JobId, KeyId, LeaseId, MigrationId, ModelId, NodeId, OrderId,
    ProjectId, RequestId, SecretId, SiteId, TenantId,
};

/// All tables.
#[derive(Debug, Default)]
pub(crate) struct Store {
    tenants: BTreeMap<TenantId, Tenant>,
    projects: BTreeMap<ProjectId, Project>,
    keys: BTreeMap<KeyId, Key>,
    secrets: BTreeMap<SecretId, Secret>,
    sites: BTreeMap<SiteId, Site>,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    tokens: BTreeMap<Digest, JoinToken>,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    pub(crate) orders: BTreeMap<OrderId, Order>,
    pub(crate) models: BTreeMap<ModelId, Model>,
    pub(crate) endpoints: BTreeMap<EndpointId, Endpoint>,
    pub(crate) inference: BTreeMap<RequestId, InferenceRequest>,
    pub(crate) attempts: BTreeMap<AttemptId, Attempt>,
    pub(crate) leases: BTreeMap<LeaseId, Lease>,
    pub(crate) checkpoints: BTreeMap<CheckpointId, Checkpoint>,
    pub(crate) migrations: BTreeMap<MigrationId, Migration>,
    pub(crate) uploads: BTreeMap<(ProjectId, Digest), Upload>,
    pub(crate) discards: BTreeMap<(SiteId, Digest), Discard>,
    windows: BTreeMap<(LeaseId, u64), Window>,
    prices: Vec<PriceBook>,
    pub(crate) budgets: BTreeMap<String, Budget>,
    pub(crate) quotas: BTreeMap<QuotaKey, Quota>,
    accounts: BTreeMap<AccountKey, Account>,
    holds: BTreeMap<HoldId, Hold>,
    transfers: BTreeMap<String, Transfer>,
    requests: BTreeMap<RequestKey, Request>,
    pub(crate) counters: Counters,
    last_event: u64,
    last_id: u64,
    /// Jobs that have not ended, or have an attempt or lease that is not settled.
    live: BTreeSet<JobId>,
}

fn replace<K: Ord, V: Clone>(table: &mut BTreeMap<K, V>, rows: &[V], key: impl Fn(&V) -> K) {
    for row in rows {
        table.insert(key(row), row.clone());
    }
}

impl Store {
    /// One transaction.
    ///
    /// # Errors
    /// The unique index or gap-free sequence that the rows break.
    pub(crate) fn commit(&mut self, rows: &Rows) -> Result<(), String> {
        replace(&mut self.tenants, &rows.tenants, |row| row.id);
        replace(&mut self.projects, &rows.projects, |row| row.id);
        replace(&mut self.keys, &rows.keys, |row| row.id);
        replace(&mut self.secrets, &rows.secrets, |row| row.id);
        replace(&mut self.sites, &rows.sites, |row| row.id);
        replace(&mut self.nodes, &rows.nodes, |row| row.id);
        replace(&mut self.tokens, &rows.tokens, |row| row.hash);
        replace(&mut self.jobs, &rows.jobs, |row| row.id);
        replace(&mut self.orders, &rows.orders, |row| row.id);
        replace(&mut self.models, &rows.models, |row| row.id);
        replace(&mut self.endpoints, &rows.endpoints, |row| row.id);
        replace(&mut self.inference, &rows.inference, |row| row.id);
        replace(&mut self.attempts, &rows.attempts, |row| row.id);
        replace(&mut self.leases, &rows.leases, |row| row.id);
        replace(&mut self.checkpoints, &rows.checkpoints, |row| row.id);
        replace(&mut self.migrations, &rows.migrations, |row| row.id);
        replace(&mut self.uploads, &rows.uploads, |row| (row.project, row.digest));
        replace(&mut self.discards, &rows.discards, |row| (row.site, row.manifest));
        replace(&mut self.budgets, &rows.budgets, |row| row.scope.clone());
        replace(&mut self.quotas, &rows.quotas, |row| row.key.clone());
        replace(&mut self.accounts, &rows.accounts, |row| row.key.clone());
        replace(&mut self.holds, &rows.holds, |row| row.id);
        self.prices.extend(rows.prices.iter().cloned());
        self.windows(&rows.windows)?;
        for transfer in &rows.transfers {
            if self.transfers.insert(transfer.cause.clone(), transfer.clone()).is_some() {
                return Err(format!("two transfers have the cause {}", transfer.cause));
            }
        }
        for event in &rows.events {
            if event.sequence != self.last_event + 1 {
                return Err(format!("event {} follows {}", event.sequence, self.last_event));
            }
            self.last_event = event.sequence;
        }
        for request in &rows.requests {
            if self.requests.insert(request.key, request.clone()).is_some() {
                return Err("a request is remembered twice".to_owned());
            }
        }
        self.counters = rows.counters.unwrap_or(self.counters);
        self.note_ids(rows);
        self.note_live(rows);
        Ok(())
    }

    /// Of a window only what is credited ever changes.
    fn windows(&mut self, rows: &[Window]) -> Result<(), String> {
        for row in rows {
            let old = self.windows.insert((row.lease, row.sequence), row.clone());
            if old.is_some_and(|old| Window { credited: row.credited, ..old } != *row) {
                return Err(format!("window {}/{} changed", row.lease, row.sequence));
            }
        }
        Ok(())
    }

    fn note_ids(&mut self, rows: &Rows) {
        let ids = rows.tenants.iter().map(|row| row.id.raw());
        let ids = ids.chain(rows.projects.iter().map(|row| row.id.raw()));
        let ids = ids.chain(rows.keys.iter().map(|row| row.id.raw()));
        let ids = ids.chain(rows.sites.iter().map(|row| row.id.raw()));
        let ids = ids.chain(rows.nodes.iter().map(|row| row.id.raw()));
        let ids = ids.chain(rows.jobs.iter().map(|row| row.id.raw()));
        let ids = ids.chain(rows.attempts.iter().map(|row| row.id.raw()));
        let ids = ids.chain(rows.leases.iter().map(|row| row.id.raw()));
        let ids = ids.chain(rows.checkpoints.iter().map(|row| row.id.raw()));
        let ids = ids.chain(rows.migrations.iter().map(|row| row.id.raw()));
        let ids = ids.chain(rows.holds.iter().map(|row| row.id.raw()));
        let ids = ids.chain(rows.transfers.iter().map(|row| row.id.raw()));
        let ids = ids.chain(rows.models.iter().map(|row| row.id.raw()));
        let ids = ids.chain(rows.endpoints.iter().map(|row| row.id.raw()));
        let ids = ids.chain(rows.inference.iter().map(|row| row.id.raw()));
        let ids = ids.chain(rows.prices.iter().map(|row| row.version.raw()));
        self.last_id = ids.fold(self.last_id, u64::max);
    }

    fn note_live(&mut self, rows: &Rows) {
        let jobs = rows.jobs.iter().map(|row| row.id);
        let jobs = jobs.chain(rows.attempts.iter().map(|row| row.job)).chain(rows.leases.iter().map(|row| row.job));
        for id in jobs.collect::<BTreeSet<_>>() {
            self.live.insert(id);
        }
    }

    /// Every row that can still change.
    pub(crate) fn load(&mut self) -> Snapshot {
        let open: BTreeSet<_> =
            self.leases.values().filter(|row| row.state != LeaseState::Settled).map(|row| row.job).collect();
        let jobs = &self.jobs;
        self.live.retain(|id| open.contains(id) || jobs.get(id).is_some_and(|job| !job.state.is_terminal()));
        let live = &self.live;
        let leases: Vec<_> = self.leases.values().filter(|row| live.contains(&row.job)).cloned().collect();
        let mut windows = Vec::new();
        for lease in &leases {
            let from = (lease.id, lease.keep_from);
            windows.extend(self.windows.range(from..=(lease.id, u64::MAX)).map(|(_, row)| row.clone()));
        }
        let rows = Rows {
            tenants: self.tenants.values().cloned().collect(),
            projects: self.projects.values().cloned().collect(),
            keys: self.keys.values().cloned().collect(),
            secrets: self.secrets.values().filter(|row| !row.deleted).cloned().collect(),
            sites: self.sites.values().cloned().collect(),
            nodes: self.nodes.values().cloned().collect(),
            tokens: self.tokens.values().cloned().collect(),
            jobs: live.iter().filter_map(|id| jobs.get(id)).cloned().collect(),
            attempts: self.attempts.values().filter(|row| live.contains(&row.job)).cloned().collect(),
            leases,
            checkpoints: self
                .checkpoints
                .values()
                .filter(|row| !row.retired && live.contains(&row.job))
                .cloned()
                .collect(),
            migrations: self.migrations.values().filter(|row| live.contains(&row.job)).cloned().collect(),
            windows,
            models: self.models.values().filter(|row| row.state != ModelState::Deleted).cloned().collect(),
            endpoints: self.endpoints.values().filter(|row| row.state != EndpointState::Deleted).cloned().collect(),
            inference: self.inference.values().filter(|row| row.state == InferenceState::Open).cloned().collect(),
            prices: self.prices.last().cloned().into_iter().collect(),
            uploads: self.uploads.values().filter(|row| !row.deleted).cloned().collect(),
            discards: self.discards.values().filter(|row| !row.done).cloned().collect(),
            budgets: self.budgets.values().cloned().collect(),
            quotas: self.quotas.values().filter(|row| !row.deleted).cloned().collect(),
            accounts: self.accounts.values().cloned().collect(),
            holds: self.holds.values().filter(|row| !row.closed).cloned().collect(),
            requests: self.requests.values().cloned().collect(),
            counters: Some(self.counters),
            ..Rows::default()
        };
        Snapshot { rows, last_id: self.last_id, last_event: self.last_event }
    }
}
