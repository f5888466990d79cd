//! What one transaction writes.

use sluice_ledger::{Account, Hold, PriceBook, Transfer};
use sluice_types::JobId;

use crate::model::{
    Attempt, Budget, Checkpoint, Counters, Discard, Endpoint, Event, InferenceRequest, Job, JoinToken, Key, Lease,
    Migration, Model, Node, Order, Project, Quota, Request, Secret, Site, Tenant, Upload, Window,
};

/// Rows to be written together or not at all. All but transfers, prices, orders and events replace the row of the
/// same key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// Replaced by id.
    pub tenants: Vec<Tenant>,
    /// Replaced by id.
    pub projects: Vec<Project>,
    /// Replaced by id.
    pub keys: Vec<Key>,
    /// Replaced by id.
    pub secrets: Vec<Secret>,
    /// Replaced by id.
    pub sites: Vec<Site>,
    /// Replaced by id.
    pub nodes: Vec<Node>,
    /// Replaced by hash.
    pub tokens: Vec<JoinToken>,
    /// Replaced by id.
    pub jobs: Vec<Job>,
    /// Replaced by id.
    pub attempts: Vec<Attempt>,
    /// Replaced by id.
    pub leases: Vec<Lease>,
    /// Replaced by id.
    pub checkpoints: Vec<Checkpoint>,
    /// Replaced by id.
    pub migrations: Vec<Migration>,
    /// Replaced by (project, digest).
    pub uploads: Vec<Upload>,
    /// Replaced by (site, manifest).
    pub discards: Vec<Discard>,
    /// Replaced by (lease, sequence): only `credited` ever changes.
    pub windows: Vec<Window>,
    /// Inserted.
    pub prices: Vec<PriceBook>,
    /// Replaced by scope.
    pub budgets: Vec<Budget>,
    /// Replaced by key.
    pub quotas: Vec<Quota>,
    /// Replaced by key.
    pub accounts: Vec<Account>,
    /// Replaced by id.
    pub holds: Vec<Hold>,
    /// Inserted; the cause is unique.
    pub transfers: Vec<Transfer>,
    /// Inserted.
    pub orders: Vec<Order>,
    /// Replaced by id.
    pub models: Vec<Model>,
    /// Replaced by id.
    pub endpoints: Vec<Endpoint>,
    /// Replaced by id.
    pub inference: Vec<InferenceRequest>,
    /// Inserted; the sequence is gap-free.
    pub events: Vec<Event>,
    /// Replaced by key: an id that is older than what is remembered begins anew.
    pub requests: Vec<Request>,
    /// Replaced.
    pub counters: Option<Counters>,
    /// Not written: waiting jobs for which something changed that is in no row of theirs. For the scheduler.
    pub retold: Vec<JobId>,
}

impl Rows {
    /// Nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds the rows of the next step, to be written in the same transaction. A row that both have stands twice, the
    /// newer one behind the older.
    pub fn append(&mut self, next: Self) {
        // A new field must not be forgotten here.
        let Self {
            tenants,
            projects,
            keys,
            secrets,
            sites,
            nodes,
            tokens,
            jobs,
            attempts,
            leases,
            checkpoints,
            migrations,
            windows,
            uploads,
            discards,
            prices,
            budgets,
            quotas,
            accounts,
            holds,
            transfers,
            orders,
            models,
            endpoints,
            inference,
            events,
            requests,
            counters,
            retold,
        } = next;
        self.tenants.extend(tenants);
        self.projects.extend(projects);
        self.keys.extend(keys);
        self.secrets.extend(secrets);
        self.sites.extend(sites);
        self.nodes.extend(nodes);
        self.tokens.extend(tokens);
        self.jobs.extend(jobs);
        self.attempts.extend(attempts);
        self.leases.extend(leases);
        self.checkpoints.extend(checkpoints);
        self.migrations.extend(migrations);
        self.windows.extend(windows);
        self.uploads.extend(uploads);
        self.discards.extend(discards);
        self.prices.extend(prices);
        self.budgets.extend(budgets);
        self.quotas.extend(quotas);
        self.accounts.extend(accounts);
        self.holds.extend(holds);
        self.transfers.extend(transfers);
        self.orders.extend(orders);
        self.models.extend(models);
        self.endpoints.extend(endpoints);
        self.inference.extend(inference);
        self.events.extend(events);
        self.requests.extend(requests);
        self.counters = counters.or(self.counters.take());
        self.retold.extend(retold);
    }
}

/// What the writer starts from: every row that can still change, and the high-water marks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Live rows: of jobs, those not ended or with a lease that is not settled, and what belongs to them.
    pub rows: Rows,
    /// The highest id ever minted.
    pub last_id: u64,
    /// The last event's sequence.
    pub last_event: u64,
}
