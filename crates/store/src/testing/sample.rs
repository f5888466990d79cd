//! Rows as the writer makes them, from nothing but a number.

use std::collections::BTreeMap;

use sluice_ledger::{
    Account, AccountKey, Books, Hold, Price, PriceBook, QuotaKey, QuotaLimits, Rate, RatingTerms, Remainder, Transfer,
};
use sluice_lifecycle::Rows;
use sluice_lifecycle::model::{
    Attempt, AttemptState, Budget, BudgetPolicy, Checkpoint, CheckpointPart, ClockPair, Counters, Device, Discard,
    Event, Goal, Job, JobKind, JobSpec, JobState, JoinKind, JoinToken, Key, Lease, LeaseState, Migration,
    MigrationCause, MigrationPhase, Node, NodeState, Project, Quota, QuotaPolicy, Request, RequestKey, RequestOutcome,
    RetryPolicy, Role, Secret, Site, TaskRow, TaskState, Tenant, Upload, Window,
};
use sluice_plan::DeviceView;
use sluice_types::{
    AttemptId, BootId, Bytes, CheckpointId, CoreMilli, Credits, DeviceRef, Digest, Generation, HoldId, IsolationClass,
    JobId, KeyId, LeaseId, MigrationId, MilliGpu, Name, Nanos, NetworkMode, NodeId, NodeInstant, PriceVersion,
    ProjectId, Reason, SecretId, SiteId, TaskResources, TenantId, Timestamp, TransferId,
};

/// The first instant of every sample: 2026-01-01.
const EPOCH_NS: u64 = 1_767_225_600_000_000_000;

/// How clients choose the ids of their requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestIds {
    /// UUIDs that begin with the time (version 7): neighbours in the index.
    Ordered,
    /// Random UUIDs (version 4): each new one changes another page of the index.
    Random,
}

/// Mints ids, keeps books, and makes rows of every kind. Two samples with the same calls make the same rows.
#[derive(Debug)]
pub struct Sample {
    /// The tenant of all its rows.
    pub tenant: TenantId,
    /// The project of all its rows.
    pub project: ProjectId,
    /// The site of all its rows.
    pub site: SiteId,
    /// The balances behind its transfers.
    pub books: Books,
    /// How its clients choose the ids of their requests.
    pub request_ids: RequestIds,
    last_id: u64,
    last_event: u64,
    now: u64,
}

impl Sample {
    /// A sample whose ids and events are all above these: zero for an empty store, else what a snapshot says.
    #[must_use]
    pub fn beyond(last_id: u64, last_event: u64) -> Self {
        Self {
            tenant: TenantId::from_raw(1),
            project: ProjectId::from_raw(2),
            site: SiteId::from_raw(3),
            books: Books::default(),
            request_ids: RequestIds::Random,
            last_id: last_id.max(100),
            last_event,
            now: EPOCH_NS,
        }
    }

    /// Its clock, a microsecond further with every id.
    #[must_use]
    pub const fn now(&self) -> Timestamp {
        Timestamp::from_nanos(self.now)
    }

    /// A new id of any kind.
    pub const fn mint(&mut self) -> u64 {
        self.last_id += 1;
        self.now += 1_000;
        self.last_id
    }

    /// Tenant, project, keys, secrets, sites, nodes, tokens, prices, a budget and counters.
    pub fn world(&mut self) -> Rows {
        Rows {
            tenants: vec![self.tenant_row("acme")],
            projects: vec![self.project_row("vision")],
            keys: vec![self.key_row()],
            secrets: vec![self.secret_row("wandb")],
            sites: vec![self.site_row("north")],
            nodes: vec![self.node_row("n1")],
            tokens: vec![self.token_row()],
            prices: vec![self.prices_row()],
            budgets: vec![self.budget_row()],
            quotas: vec![self.quota_row(None), self.quota_row(Some(self.site))],
            uploads: vec![self.upload_row()],
            discards: vec![self.discard_row()],
            counters: Some(Counters { stale_reports: 3, refused_windows: 4, ..Counters::default() }),
            ..Rows::default()
        }
    }

    /// The tenant.
    #[must_use]
    pub fn tenant_row(&self, text: &str) -> Tenant {
        Tenant { id: self.tenant, name: name(text), manager: "kubernetes/7".to_owned(), created: self.now() }
    }

    /// A quota of the tenant, at a site or over all.
    pub fn quota_row(&mut self, site: Option<SiteId>) -> Quota {
        let limits = QuotaLimits { nominal: 4000, borrow: 1000, lend: 2000 };
        Quota {
            key: QuotaKey { tenant: self.tenant, site, class: name("cpu") },
            limits,
            policy: QuotaPolicy::Drain,
            manager: "kubernetes/8".to_owned(),
            version: self.mint(),
            created: self.now(),
            updated: self.now(),
            deleted: false,
        }
    }

    /// An upload of the project.
    pub fn upload_row(&mut self) -> Upload {
        let digest = Digest::from_bytes([7; 32]);
        let used = self.now();
        Upload { project: self.project, digest, size: 4096, complete: true, used, deleted: false }
    }

    /// Something that a vault may delete.
    pub fn discard_row(&mut self) -> Discard {
        Discard { site: self.site, manifest: Digest::from_bytes([8; 32]), due: self.now(), done: false }
    }

    /// A deposit to the tenant.
    pub fn deposit(&mut self, amount: i64) -> Rows {
        let id = TransferId::from_raw(self.mint());
        let sides = (AccountKey::Outside, AccountKey::Funds(self.tenant));
        let transfer = self.books.transfer(id, sides, amount, format!("deposit/{id}"), self.now()).expect("a deposit");
        self.booked(vec![transfer])
    }

    /// What `count` submits write in one commit: for each a job, an attempt, a lease, a hold with its transfer, an
    /// event and a request; for all together the accounts.
    pub fn submits(&mut self, count: usize) -> Rows {
        let mut rows = Rows::default();
        for _ in 0..count {
            let job = self.job_row("train");
            let (attempt, lease, transfer) = self.placed(&job);
            let job = Job { state: JobState::Starting, current: Some(attempt.id), attempts: 1, ..job };
            rows.events.push(self.event_row(job.id, "Placed"));
            rows.requests.push(self.request_row());
            rows.jobs.push(job);
            rows.attempts.push(attempt);
            rows.leases.push(lease);
            rows.transfers.push(transfer);
        }
        (rows.accounts, rows.holds) = self.books.take_touched();
        rows
    }

    /// The rows of what was booked since the last call.
    pub fn booked(&mut self, transfers: Vec<Transfer>) -> Rows {
        let (accounts, holds): (Vec<Account>, Vec<Hold>) = self.books.take_touched();
        Rows { transfers, accounts, holds, ..Rows::default() }
    }

    /// A pending job.
    pub fn job_row(&mut self, named: &str) -> Job {
        let id = JobId::from_raw(self.mint());
        Job {
            id,
            tenant: self.tenant,
            project: self.project,
            name: name(named),
            spec: std::sync::Arc::new(spec()),
            state: JobState::Pending,
            reason: Some(Reason::NoFreeShare),
            message: "waits for a \"slice\" – größer".to_owned(),
            version: 1,
            generation: Generation::new(1),
            last_generation: Generation::new(1),
            attempts: 0,
            current: None,
            losses: 0,
            failures: 0,
            step: 0,
            metrics: BTreeMap::from([("loss".to_owned(), 2.5)]),
            checkpoint: None,
            migration: None,
            spent: Credits::ZERO,
            credited: Credits::ZERO,
            run_time: Nanos::ZERO,
            purchase: None,
            manager: String::new(),
            endpoint: None,
            replaces: None,
            by: KeyId::from_raw(4),
            created: self.now(),
            started: None,
            ended: None,
        }
    }

    /// An attempt with one lease and a hold of 1,000 on the tenant's funds.
    pub fn placed(&mut self, job: &Job) -> (Attempt, Lease, Transfer) {
        let (id, lease, hold) = (self.mint(), LeaseId::from_raw(self.mint()), HoldId::from_raw(self.mint()));
        let transfer = TransferId::from_raw(self.mint());
        let id = AttemptId::from_raw(id);
        let sides = (AccountKey::Funds(self.tenant), AccountKey::Revenue(self.site));
        let cause = format!("hold/{id}");
        let transfer = self.books.open_hold(transfer, hold, sides, 1_000, cause, self.now()).expect("enough funds");
        let attempt = Attempt {
            id,
            job: job.id,
            generation: Generation::new(1),
            site: self.site,
            state: AttemptState::Assigned,
            goal: Goal::Run,
            revision: 1,
            order: None,
            tasks: vec![TaskRow {
                lease,
                device: device(),
                isolation: IsolationClass::Cpu,
                state: TaskState::Assigned,
                held: None,
                end: None,
            }],
            resume: None,
            funds: hold,
            budgets: Vec::new(),
            charge: 500,
            quota: None,
            settled: false,
            run_limit: Some(Nanos::from_secs(3600)),
            created: self.now(),
            started: None,
            ended: None,
            reason: None,
        };
        let lease = self.lease_row(lease, job, id);
        (attempt, lease, transfer)
    }

    fn lease_row(&self, id: LeaseId, job: &Job, attempt: AttemptId) -> Lease {
        let rate = Rate { device_hour: Credits::new(90_000), core_hour: Credits::new(5), gib_hour: Credits::new(1) };
        Lease {
            id,
            attempt,
            job: job.id,
            tenant: self.tenant,
            project: self.project,
            site: self.site,
            device: device(),
            rank: 0,
            resources: job.spec.resources.clone(),
            terms: RatingTerms {
                billed: MilliGpu::new(500),
                host_cores: CoreMilli::ZERO,
                host_memory: Bytes::ZERO,
                rate,
            },
            price: PriceVersion::from_raw(5),
            generation: Generation::new(1),
            state: LeaseState::Held,
            boot: BootId::default(),
            cursor: NodeInstant::from_nanos(0),
            next_window: 0,
            remainder: Remainder::ZERO,
            billed: Nanos::ZERO,
            gaps: Nanos::ZERO,
            amount: Credits::ZERO,
            uncollected: Credits::ZERO,
            credited: Credits::ZERO,
            refused: 0,
            cut: None,
            credit_from: None,
            free_preparation: false,
            started: None,
            keep_from: 0,
            windows: None,
            created: self.now(),
            freed: None,
        }
    }

    /// One task's checkpoint at a step.
    pub fn checkpoint_row(&mut self, attempt: &Attempt, step: u64) -> Checkpoint {
        let id = CheckpointId::from_raw(self.mint());
        let part = CheckpointPart {
            manifest: digest(step),
            size: 4096,
            lease: attempt.tasks[0].lease,
            captured: NodeInstant::from_nanos(step * 7),
            next_window: step,
            sealed: vec![self.site],
        };
        Checkpoint {
            id,
            job: attempt.job,
            attempt: attempt.id,
            generation: attempt.generation,
            step,
            parent: None,
            parts: BTreeMap::from([(0, part)]),
            world: 1,
            created: self.now(),
            retired: false,
        }
    }

    /// A move that has begun.
    pub fn migration_row(&mut self, attempt: &Attempt) -> Migration {
        let id = MigrationId::from_raw(self.mint());
        Migration {
            id,
            job: attempt.job,
            from: self.site,
            to: SiteId::from_raw(6),
            cause: MigrationCause::Tenant,
            phase: MigrationPhase::Placing,
            source: attempt.id,
            target: None,
            checkpoint: None,
            deadline: self.now().after(Nanos::from_secs(60)),
            created: self.now(),
            ended: None,
            reason: None,
        }
    }

    /// A window of a lease, posted now.
    pub fn window_row(&mut self, lease: &Lease, sequence: u64) -> Window {
        self.mint();
        Window {
            lease: lease.id,
            sequence,
            attempt: lease.attempt,
            job: lease.job,
            tenant: lease.tenant,
            project: lease.project,
            site: lease.site,
            node: lease.device.node,
            boot: BootId("4ce2e0a9-5e3c-4b55-a1d3-7a0d87a8c7b0".to_owned()),
            start: NodeInstant::from_nanos(sequence * 10_000_000_000),
            end: NodeInstant::from_nanos((sequence + 1) * 10_000_000_000),
            used_ns: 4_900_000_000,
            memory_byte_seconds: 1 << 33,
            last_step: sequence * 3,
            amount: Credits::new(125),
            budgets: Vec::new(),
            credited: Credits::ZERO,
            gap_before: sequence == 0,
            advisory: false,
            at: self.now(),
        }
    }

    /// The next event.
    pub fn event_row(&mut self, job: JobId, kind: &str) -> Event {
        self.last_event += 1;
        Event {
            sequence: self.last_event,
            at: self.now(),
            tenant: self.tenant,
            project: self.project,
            job,
            kind: kind.to_owned(),
            reason: None,
            message: "on node-0000000000007, device 0".to_owned(),
            actor: "planner".to_owned(),
        }
    }

    /// A remembered request.
    pub fn request_row(&mut self) -> Request {
        let number = self.mint();
        let mixed = u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        let id = match self.request_ids {
            RequestIds::Ordered => (u128::from(number) << 64) | (mixed >> 64),
            RequestIds::Random => mixed,
        };
        let id = id.to_be_bytes();
        Request {
            key: RequestKey { by: KeyId::from_raw(4), id },
            digest: digest(number),
            outcome: RequestOutcome::Object(JobId::from_raw(number).to_string()),
            at: self.now(),
        }
    }

    /// The project.
    #[must_use]
    pub fn project_row(&self, named: &str) -> Project {
        Project {
            id: self.project,
            tenant: self.tenant,
            name: name(named),
            networks: vec![NetworkMode::Gang],
            sites: vec![self.site],
            created: self.now(),
        }
    }

    /// A developer's key.
    pub fn key_row(&mut self) -> Key {
        let number = self.mint();
        Key {
            id: KeyId::from_raw(number),
            tenant: Some(self.tenant),
            project: Some(self.project),
            role: Role::Developer,
            hash: digest(number),
            created: self.now(),
            revoked: None,
        }
    }

    /// A secret of the project.
    pub fn secret_row(&mut self, named: &str) -> Secret {
        Secret {
            id: SecretId::from_raw(self.mint()),
            project: self.project,
            name: name(named),
            sealed: (0..=255).collect(),
            updated: self.now(),
            deleted: false,
        }
    }

    /// The site.
    #[must_use]
    pub fn site_row(&self, named: &str) -> Site {
        Site {
            id: self.site,
            name: name(named),
            vault: "127.0.0.1:7001".to_owned(),
            vault_away: false,
            vault_key: Some(digest(1)),
            created: self.now(),
        }
    }

    /// A node of the site with one device.
    pub fn node_row(&mut self, named: &str) -> Node {
        let view = DeviceView {
            index: 0,
            class: name("cpu"),
            memory: Bytes::mib(2048),
            cores: CoreMilli::new(1000),
            isolation: vec![IsolationClass::Cpu],
            healthy: true,
        };
        Node {
            id: NodeId::from_raw(self.mint()),
            site: self.site,
            name: name(named),
            public_key: digest(2),
            generation: Generation::new(2),
            boot: BootId("boot".to_owned()),
            state: NodeState::Ready,
            cordoned: false,
            draining: false,
            drain_by: Timestamp::from_nanos(7),
            reason: String::new(),
            failed_starts: 0,
            address: "10.0.0.7".to_owned(),
            advisory: false,
            host_cores: CoreMilli::ZERO,
            host_memory: Bytes::ZERO,
            devices: vec![Device { view, uuid: "cpu-0".to_owned(), fault: String::new() }],
            settled_journal: 12,
            clock: Some(ClockPair { controller: self.now(), node: NodeInstant::from_nanos(5) }),
            last_seen: self.now(),
        }
    }

    /// A token that ends in an hour.
    pub fn token_row(&mut self) -> JoinToken {
        JoinToken {
            hash: digest(self.mint()),
            site: self.site,
            kind: JoinKind::Vault,
            expires: self.now().after(Nanos::from_secs(3600)),
            used: None,
        }
    }

    /// An edition of the prices.
    pub fn prices_row(&mut self) -> PriceBook {
        let rate = Rate { device_hour: Credits::new(90_000), core_hour: Credits::new(5), gib_hour: Credits::new(1) };
        PriceBook {
            version: PriceVersion::from_raw(self.mint()),
            at: self.now(),
            prices: vec![Price { class: name("cpu"), isolation: None, site: Some(self.site), rate }],
        }
    }

    /// A budget of the tenant.
    #[must_use]
    pub fn budget_row(&self) -> Budget {
        Budget {
            scope: self.tenant.to_string(),
            tenant: self.tenant,
            project: None,
            amount: Credits::new(5_000_000),
            period_seconds: 86_400,
            policy: BudgetPolicy::AdmissionOnly,
        }
    }
}

fn name(text: &str) -> Name {
    text.parse().expect("a sample's name is one")
}

fn digest(number: u64) -> Digest {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Digest::from_bytes(bytes)
}

const fn device() -> DeviceRef {
    DeviceRef { node: NodeId::from_raw(7), index: 0 }
}

fn spec() -> JobSpec {
    JobSpec {
        kind: JobKind::Batch,
        command: vec!["python3".to_owned(), "train.py".to_owned(), "--epochs=3".to_owned()],
        env: BTreeMap::from([("SEED".to_owned(), "17".to_owned())]),
        work_dir: None,
        inputs: Vec::new(),
        tasks: 1,
        resources: TaskResources {
            class: name("cpu"),
            milli: MilliGpu::new(500),
            memory: Bytes::mib(512),
            host_cores: CoreMilli::ZERO,
            host_memory: Bytes::ZERO,
        },
        priority: 0,
        max_run_time: Some(Nanos::from_secs(3600)),
        retry: RetryPolicy { on_failure: 0, on_loss: 3 },
        checkpoint: None,
        secrets: Vec::new(),
        network: NetworkMode::Loopback,
        sites: Vec::new(),
        labels: BTreeMap::from([("team".to_owned(), "a/\"b\"".to_owned())]),
        model: None,
    }
}
