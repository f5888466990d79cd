//! The writer's working set: every row that can still change, in memory.

use std::collections::{BTreeMap, BTreeSet};

use sluice_ledger::{AccountKey, Books, PriceBook, Transfer};
use sluice_plan::{Delta, NodeView};
use sluice_types::{
    AttemptId, CheckpointId, Digest, JobId, KeyId, LeaseId, MigrationId, Name, NodeId, ProjectId, Reason, SecretId,
    SiteId, TenantId, Timestamp,
};

use crate::marks::Marks;
use crate::model::{
    Attempt, Budget, Checkpoint, Counters, Discard, Event, Job, JoinToken, Key, Lease, LeaseState, Migration, Node,
    NodeState, Order, Project, Request, RequestKey, Secret, Site, Tenant, Upload, Window,
};
use crate::quotas::Quotas;
use crate::serving::Serving;
use crate::settings::Settings;
use crate::table::Table;
use crate::{Rows, Snapshot};

/// The working set. [`crate::step`] is the only code that changes it.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub(crate) settings: Settings,
    pub(crate) tenants: Table<TenantId, Tenant>,
    pub(crate) projects: Table<ProjectId, Project>,
    pub(crate) keys: Table<KeyId, Key>,
    pub(crate) secrets: Table<SecretId, Secret>,
    /// Secrets that are not deleted, as submits name them.
    pub(crate) secret_names: BTreeMap<ProjectId, BTreeMap<Name, SecretId>>,
    pub(crate) sites: Table<SiteId, Site>,
    pub(crate) nodes: Table<NodeId, Node>,
    pub(crate) tokens: Table<Digest, JoinToken>,
    pub(crate) jobs: Table<JobId, Job>,
    pub(crate) attempts: Table<AttemptId, Attempt>,
    pub(crate) leases: Table<LeaseId, Lease>,
    pub(crate) checkpoints: Table<CheckpointId, Checkpoint>,
    pub(crate) migrations: Table<MigrationId, Migration>,
    pub(crate) windows: Table<(LeaseId, u64), Window>,
    pub(crate) uploads: Table<(ProjectId, Digest), Upload>,
    pub(crate) discards: Table<(SiteId, Digest), Discard>,
    pub(crate) budgets: Table<String, Budget>,
    pub(crate) quotas: Quotas,
    pub(crate) books: Books,
    pub(crate) prices: Option<PriceBook>,
    pub(crate) requests: BTreeMap<RequestKey, Request>,
    pub(crate) counters: Counters,
    pub(crate) last_event: u64,
    /// When time was last told, and when old requests were last looked for; kept by nobody.
    pub(crate) last_tick: Timestamp,
    pub(crate) last_forgetting: Timestamp,
    /// Since when somebody has listened to the nodes without a gap; kept by nobody.
    pub(crate) awake: Timestamp,
    /// Attempts of a job, also ended ones, while the job is in memory.
    pub(crate) attempts_of: BTreeMap<JobId, BTreeSet<AttemptId>>,
    pub(crate) checkpoints_of: BTreeMap<JobId, BTreeSet<CheckpointId>>,
    /// Leases on a node that are not settled.
    pub(crate) leases_on: BTreeMap<NodeId, BTreeSet<LeaseId>>,
    pub(crate) jobs_of: BTreeMap<TenantId, usize>,
    /// Number and bytes of a project's uploads.
    pub(crate) uploaded: BTreeMap<ProjectId, (usize, u64)>,
    /// How many jobs in memory name an upload.
    pub(crate) uses: BTreeMap<(ProjectId, Digest), usize>,
    /// Discards of each site by when they are due.
    pub(crate) due: BTreeSet<(SiteId, Timestamp, Digest)>,
    /// Models, endpoints and their requests.
    pub(crate) serving: Serving,
    pub(crate) marks: Marks,
    /// What the running step has produced so far.
    pub(crate) out: Output,
}

/// Rows that are inserted, and other marks of a running step.
#[derive(Debug, Clone, Default)]
pub(crate) struct Output {
    pub(crate) transfers: Vec<Transfer>,
    pub(crate) orders: Vec<Order>,
    pub(crate) events: Vec<Event>,
    pub(crate) requests: Vec<Request>,
    pub(crate) prices: Vec<PriceBook>,
    pub(crate) counters: bool,
    /// Jobs whose last row changed in this step, to be looked at for eviction.
    pub(crate) ended: BTreeSet<JobId>,
    /// Checkpoints that were superseded in this step.
    pub(crate) retired: Vec<(JobId, CheckpointId)>,
    /// Waiting jobs for which something else changed.
    pub(crate) retold: BTreeSet<JobId>,
}

impl State {
    /// The working set from stored rows. Nodes get `now` as their last sign of life: silence while nobody listened
    /// is no loss.
    #[must_use]
    pub fn load(snapshot: Snapshot, settings: Settings, now: Timestamp) -> Self {
        let rows = snapshot.rows;
        let books = Books::from_rows(rows.accounts, rows.holds);
        let mut state = Self {
            settings,
            quotas: Quotas::load(rows.quotas, &books),
            books,
            prices: rows.prices.into_iter().max_by_key(|book| book.version),
            requests: rows.requests.into_iter().map(|request| (request.key, request)).collect(),
            counters: rows.counters.unwrap_or_default(),
            last_event: snapshot.last_event,
            serving: Serving::load(rows.models, rows.endpoints, rows.inference),
            ..Self::default()
        };
        rows.tenants.into_iter().for_each(|row| state.tenants.load(row.id, row));
        rows.projects.into_iter().for_each(|row| state.projects.load(row.id, row));
        rows.keys.into_iter().for_each(|row| state.keys.load(row.id, row));
        for secret in rows.secrets.into_iter().filter(|row| !row.deleted) {
            state.secret_names.entry(secret.project).or_default().insert(secret.name.clone(), secret.id);
            state.secrets.load(secret.id, secret);
        }
        rows.sites.into_iter().for_each(|row| state.sites.load(row.id, row));
        for mut node in rows.nodes {
            node.last_seen = now;
            state.nodes.load(node.id, node);
        }
        rows.tokens.into_iter().for_each(|row| state.tokens.load(row.hash, row));
        rows.budgets.into_iter().for_each(|row| state.budgets.load(row.scope.clone(), row));
        rows.uploads.into_iter().filter(|row| !row.deleted).for_each(|row| {
            state.count_upload(row.project, row.size);
            state.uploads.load((row.project, row.digest), row);
        });
        for row in rows.discards.into_iter().filter(|row| !row.done) {
            state.due.insert((row.site, row.due, row.manifest));
            state.discards.load((row.site, row.manifest), row);
        }
        for job in rows.jobs {
            state.count_uses(&job);
            state.serving.job(&job);
            *state.jobs_of.entry(job.tenant).or_default() += 1;
            state.marks.job(&job);
            state.jobs.load(job.id, job);
        }
        let kept: Vec<_> = state.models().filter_map(|row| Some((row.project, row.keeps()?.digest))).collect();
        kept.into_iter().for_each(|(project, digest)| state.keep_upload(project, digest));
        for mut attempt in rows.attempts {
            state.count_loaded(&mut attempt);
            state.attempts_of.entry(attempt.job).or_default().insert(attempt.id);
            state.marks.attempt(&attempt);
            state.attempts.load(attempt.id, attempt);
        }
        for lease in rows.leases {
            if lease.state != LeaseState::Settled {
                state.leases_on.entry(lease.device.node).or_default().insert(lease.id);
            }
            state.leases.load(lease.id, lease);
        }
        for checkpoint in rows.checkpoints {
            state.checkpoints_of.entry(checkpoint.job).or_default().insert(checkpoint.id);
            checkpoint.parts.values().for_each(|part| state.marks.sealed(part.manifest, checkpoint.id));
            state.checkpoints.load(checkpoint.id, checkpoint);
        }
        for migration in rows.migrations {
            state.marks.migration(&migration);
            state.migrations.load(migration.id, migration);
        }
        rows.windows.into_iter().for_each(|row| state.windows.load((row.lease, row.sequence), row));
        state.mark_copying(None);
        state
    }

    /// The bounds and times.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The books.
    #[must_use]
    pub const fn books(&self) -> &Books {
        &self.books
    }

    /// What was refused so far.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// A job that is in memory.
    #[must_use]
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// All jobs in memory, oldest first.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// An attempt that is in memory.
    #[must_use]
    pub fn attempt(&self, id: AttemptId) -> Option<&Attempt> {
        self.attempts.get(&id)
    }

    /// All attempts in memory, oldest first.
    pub fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.values()
    }

    /// A lease that is in memory.
    #[must_use]
    pub fn lease(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(&id)
    }

    /// All leases in memory, oldest first.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// A checkpoint that is in memory.
    #[must_use]
    pub fn checkpoint(&self, id: CheckpointId) -> Option<&Checkpoint> {
        self.checkpoints.get(&id)
    }

    /// A migration that is in memory.
    #[must_use]
    pub fn migration(&self, id: MigrationId) -> Option<&Migration> {
        self.migrations.get(&id)
    }

    /// A node.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// All sites.
    pub fn sites(&self) -> impl Iterator<Item = &Site> {
        self.sites.values()
    }

    /// A site.
    #[must_use]
    pub fn site(&self, id: SiteId) -> Option<&Site> {
        self.sites.get(&id)
    }

    /// All tenants.
    pub fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.tenants.values()
    }

    /// A tenant.
    #[must_use]
    pub fn tenant(&self, id: TenantId) -> Option<&Tenant> {
        self.tenants.get(&id)
    }

    /// All projects.
    pub fn projects(&self) -> impl Iterator<Item = &Project> {
        self.projects.values()
    }

    /// A project.
    #[must_use]
    pub fn project(&self, id: ProjectId) -> Option<&Project> {
        self.projects.get(&id)
    }

    /// All keys, revoked ones too.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.values()
    }

    /// A key.
    #[must_use]
    pub fn key(&self, id: KeyId) -> Option<&Key> {
        self.keys.get(&id)
    }

    /// A secret by its name.
    #[must_use]
    pub fn secret(&self, project: ProjectId, name: &Name) -> Option<&Secret> {
        self.secrets.get(self.secret_names.get(&project)?.get(name)?)
    }

    /// The current price book.
    #[must_use]
    pub const fn prices(&self) -> Option<&PriceBook> {
        self.prices.as_ref()
    }

    /// All budgets.
    pub fn budgets(&self) -> impl Iterator<Item = &Budget> {
        self.budgets.values()
    }

    /// The last event's sequence.
    #[must_use]
    pub const fn last_event(&self) -> u64 {
        self.last_event
    }

    /// A site whose vault is there and of which a node is connected.
    pub(crate) fn is_site_alive(&self, site: SiteId) -> bool {
        !self.is_vault_away(site) && self.nodes.values().any(|node| node.site == site && node.state == NodeState::Ready)
    }

    fn is_vault_away(&self, site: SiteId) -> bool {
        self.sites.get(&site).is_some_and(|row| row.vault_away)
    }

    /// A node to which work may be given, and that can fetch what the work needs.
    pub(crate) fn is_open(&self, node: &Node) -> bool {
        node.is_open() && !self.is_vault_away(node.site)
    }

    /// What the scheduler sees of a node.
    fn node_view(&self, node: &Node) -> NodeView {
        NodeView { open: self.is_open(node), ..node.view() }
    }

    pub(crate) fn event(&mut self, job: &Job, now: Timestamp, what: Happened<'_>) {
        self.last_event += 1;
        self.out.events.push(Event {
            sequence: self.last_event,
            at: now,
            tenant: job.tenant,
            project: job.project,
            job: job.id,
            kind: what.kind.to_owned(),
            reason: what.reason,
            message: what.message,
            actor: what.actor.to_owned(),
        });
    }

    /// Counts a refusal in the transaction that refuses.
    pub(crate) fn count(&mut self, which: impl FnOnce(&mut Counters) -> &mut u64) {
        *which(&mut self.counters) += 1;
        self.out.counters = true;
    }

    /// Everything that the step changed, as rows; and forgets what can change no more.
    pub(crate) fn take_rows(&mut self, now: Timestamp) -> Rows {
        let over = self.over();
        over.iter().for_each(|job| self.leave_behind(*job, now));
        let (accounts, holds) = self.books.take_touched();
        let out = std::mem::take(&mut self.out);
        let rows = Rows {
            tenants: self.tenants.take_dirty(),
            projects: self.projects.take_dirty(),
            keys: self.keys.take_dirty(),
            secrets: self.secrets.take_dirty(),
            sites: self.sites.take_dirty(),
            nodes: self.nodes.take_dirty(),
            tokens: self.tokens.take_dirty(),
            jobs: self.jobs.take_dirty(),
            attempts: self.attempts.take_dirty(),
            leases: self.leases.take_dirty(),
            checkpoints: self.checkpoints.take_dirty(),
            migrations: self.migrations.take_dirty(),
            windows: self.windows.take_dirty(),
            uploads: self.uploads.take_dirty(),
            discards: self.discards.take_dirty(),
            prices: out.prices,
            budgets: self.budgets.take_dirty(),
            quotas: self.quotas.rows.take_dirty(),
            accounts,
            holds,
            transfers: out.transfers,
            orders: out.orders,
            models: self.serving.models.take_dirty(),
            endpoints: self.serving.endpoints.take_dirty(),
            inference: self.serving.requests.take_dirty(),
            events: out.events,
            requests: out.requests,
            counters: out.counters.then_some(self.counters),
            retold: out.retold.into_iter().collect(),
        };
        self.mark(&rows);
        for (job, checkpoint) in out.retired {
            if let Some(row) = self.checkpoints.evict(&checkpoint) {
                self.marks.forget_checkpoint(&row);
            }
            if let Some(known) = self.checkpoints_of.get_mut(&job) {
                known.remove(&checkpoint);
            }
        }
        self.forget(&over);
        self.forget_deleted(&rows);
        self.serving.forget(&rows);
        rows
    }

    /// Brings the marks up to date with what a step changed, and drops what was deleted.
    fn mark(&mut self, rows: &Rows) {
        rows.jobs.iter().for_each(|row| self.marks.job(row));
        rows.attempts.iter().for_each(|row| self.marks.attempt(row));
        rows.migrations.iter().for_each(|row| self.marks.migration(row));
        for secret in rows.secrets.iter().filter(|row| row.deleted) {
            self.secrets.evict(&secret.id);
        }
        for quota in rows.quotas.iter().filter(|row| row.deleted) {
            self.quotas.rows.evict(&quota.key);
        }
        if !(rows.sites.is_empty() && rows.projects.is_empty()) {
            return self.mark_copying(None);
        }
        let copied = rows.checkpoints.iter().map(|row| row.job).chain(rows.migrations.iter().map(|row| row.job));
        for job in copied.chain(rows.jobs.iter().map(|row| row.id)) {
            if self.checkpoints_of.contains_key(&job) {
                self.mark_copying(Some(job));
            }
        }
    }

    /// Finds out whether a job, or any, wants a copy.
    fn mark_copying(&mut self, only: Option<JobId>) {
        let jobs: Vec<_> = only.map_or_else(|| self.checkpoints_of.keys().copied().collect(), |job| vec![job]);
        for job in jobs {
            let mut copies = Vec::new();
            self.copies_of(job, &mut copies);
            if copies.is_empty() {
                self.marks.copying.remove(&job);
            } else {
                self.marks.copying.insert(job);
            }
        }
    }

    /// Ended jobs whose every lease is settled: nothing of them can change any more.
    fn over(&self) -> Vec<JobId> {
        let settled = |attempt: &AttemptId| self.attempts.get(attempt).is_none_or(|row| row.settled);
        let over = |id: &&JobId| {
            self.jobs.get(id).is_some_and(|job| job.state.is_terminal())
                && self.attempts_of.get(id).into_iter().flatten().all(settled)
        };
        self.out.ended.iter().filter(over).copied().collect()
    }

    /// Drops jobs with all that belongs to them: the store keeps them.
    fn forget(&mut self, over: &[JobId]) {
        for id in over {
            let Some(job) = self.jobs.get(id) else { continue };
            let tenant = job.tenant;
            let attempts = self.attempts_of.get(id).cloned().unwrap_or_default();
            for attempt in &attempts {
                let leases: Option<Vec<_>> =
                    self.attempts.get(attempt).map(|row| row.tasks.iter().map(|task| task.lease).collect());
                for lease in leases.unwrap_or_default() {
                    self.forget_windows(lease, u64::MAX);
                    self.leases.evict(&lease);
                }
                self.attempts.evict(attempt);
                self.marks.forget_attempt(*attempt);
            }
            self.attempts_of.remove(id);
            for checkpoint in self.checkpoints_of.remove(id).unwrap_or_default() {
                if let Some(row) = self.checkpoints.evict(&checkpoint) {
                    self.marks.forget_checkpoint(&row);
                }
            }
            for migration in self.marks.moves_of.get(id).into_iter().flatten() {
                self.migrations.evict(migration);
            }
            self.marks.forget_job(*id);
            self.jobs.evict(id);
            if let Some(count) = self.jobs_of.get_mut(&tenant) {
                *count = count.saturating_sub(1);
            }
        }
    }

    /// Drops windows of a lease below `keep_from` from memory.
    pub(crate) fn forget_windows(&mut self, lease: LeaseId, keep_from: u64) {
        let old: Vec<_> = self.windows.range((lease, 0)..(lease, keep_from)).map(|(key, _)| *key).collect();
        for key in &old {
            self.windows.evict(key);
        }
    }

    /// The deltas from which a scheduler's world is built from nothing.
    #[must_use]
    pub fn world(&self, now: Timestamp) -> Vec<Delta> {
        let mut deltas: Vec<_> = self.nodes.values().map(|node| Delta::Node(self.node_view(node))).collect();
        let held = |lease: &&Lease| matches!(lease.state, LeaseState::Held | LeaseState::Ending);
        deltas.extend(self.leases.values().filter(held).map(|lease| Delta::Lease(lease.view())));
        deltas.extend(self.books.accounts().filter(|account| account.key.is_limited()).cloned().map(Delta::Account));
        deltas.extend(self.quotas().map(|row| Delta::Quota(self.quota_view(row))));
        deltas.extend(self.prices.clone().map(Delta::Prices));
        deltas.extend(self.jobs.values().filter_map(|job| self.wanted(job, now)).map(Delta::Job));
        deltas.push(Delta::Now(now));
        deltas
    }

    /// What committed rows mean for the scheduler's world.
    #[must_use]
    pub fn deltas(&self, rows: &Rows, now: Timestamp) -> Vec<Delta> {
        let mut deltas: Vec<_> = rows.nodes.iter().map(|node| Delta::Node(self.node_view(node))).collect();
        deltas.extend(rows.leases.iter().map(|lease| match lease.state {
            LeaseState::Held | LeaseState::Ending => Delta::Lease(lease.view()),
            LeaseState::Freed | LeaseState::Settled => Delta::LeaseGone(lease.id),
        }));
        deltas.extend(rows.accounts.iter().filter(|account| account.key.is_limited()).cloned().map(Delta::Account));
        deltas.extend(rows.quotas.iter().map(|row| Delta::Quota(self.quota_view(row))));
        deltas.extend(rows.prices.iter().cloned().map(Delta::Prices));
        deltas.extend(rows.jobs.iter().map(|job| match self.jobs.get(&job.id).and_then(|job| self.wanted(job, now)) {
            Some(view) => Delta::Job(view),
            None => Delta::JobGone(job.id),
        }));
        deltas.extend(rows.retold.iter().map(|id| match self.jobs.get(id).and_then(|job| self.wanted(job, now)) {
            Some(view) => Delta::Job(view),
            None => Delta::JobGone(*id),
        }));
        if !deltas.is_empty() {
            deltas.push(Delta::Now(now));
        }
        deltas
    }

    /// The accounts of the budgets that cover a project at `now`.
    pub(crate) fn budget_accounts(&self, tenant: TenantId, project: ProjectId, now: Timestamp) -> Vec<AccountKey> {
        if self.budgets.len() == 0 {
            return Vec::new();
        }
        [tenant.to_string(), project.to_string()]
            .iter()
            .filter_map(|scope| self.budgets.get(scope))
            .map(|budget| AccountKey::Budget(budget.ledger_scope(), budget.period(now)))
            .collect()
    }
}

/// The changing part of an event.
#[derive(Debug, Clone)]
pub(crate) struct Happened<'a> {
    pub(crate) kind: &'static str,
    pub(crate) reason: Option<Reason>,
    pub(crate) message: String,
    pub(crate) actor: &'a str,
}

impl<'a> Happened<'a> {
    pub(crate) fn new(kind: &'static str, message: impl Into<String>, actor: &'a str) -> Self {
        Self { kind, reason: None, message: message.into(), actor }
    }

    pub(crate) const fn because(mut self, reason: Option<Reason>) -> Self {
        self.reason = reason;
        self
    }
}
