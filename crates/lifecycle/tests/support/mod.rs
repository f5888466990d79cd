//! A small world around the writer's core: one tenant with one project, two sites with one node each, the real planner.
//! A whole device costs 100 units per window of 10 seconds.
#![allow(dead_code, clippy::unwrap_used, reason = "each test uses its part; a test fails by panicking")]

mod quota;

use std::collections::{BTreeMap, BTreeSet};

use sluice_ledger::{Account, AccountKey, Price, Rate};
use sluice_lifecycle::model::{
    BudgetPolicy, Capture, CheckpointPolicy, Device, Job, JobKind, JobSpec, JoinKind, RetryPolicy, TaskEnd,
};
use sluice_lifecycle::{
    Answer, Caller, Command, JoinHost, Mint, NodeReport, Refusal, Rows, Settings, Snapshot, State, TaskKey,
    UserCommand, WindowReport, step,
};
use sluice_plan::{DeviceView, Limits, Offered, World};
use sluice_types::{
    BootId, Bytes, CoreMilli, Credits, Digest, Generation, IsolationClass, JobId, KeyId, MilliGpu, Nanos, NetworkMode,
    NodeId, NodeInstant, ProjectId, Reason, SiteId, TaskResources, TenantId, Timestamp,
};

/// What a whole device costs per window.
pub(crate) const WINDOW_COST: i64 = 100;

pub(crate) struct Bench {
    pub(crate) state: State,
    pub(crate) now: Timestamp,
    pub(crate) tenant: TenantId,
    pub(crate) project: ProjectId,
    pub(crate) sites: Vec<SiteId>,
    pub(crate) nodes: Vec<(NodeId, Generation)>,
    /// Rows of the last command.
    pub(crate) rows: Rows,
    mint: Mint,
    world: World,
    journals: BTreeMap<NodeId, u64>,
    /// Of every transfer: the store takes none twice.
    causes: BTreeSet<String>,
    /// All rows that were written, in order.
    written: Rows,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(Settings::default())
    }

    pub(crate) fn with(settings: Settings) -> Self {
        let now = Timestamp::from_nanos(1_800_000_000_000_000_000);
        let mut bench = Self {
            state: State::load(Snapshot::default(), settings, now),
            now,
            tenant: TenantId::from_raw(0),
            project: ProjectId::from_raw(0),
            sites: Vec::new(),
            nodes: Vec::new(),
            rows: Rows::default(),
            mint: Mint::new(0, 7),
            world: World::new(),
            journals: BTreeMap::new(),
            causes: BTreeSet::new(),
            written: Rows::default(),
        };
        for site in 0..2u8 {
            let made = bench.user(UserCommand::CreateSite(format!("site-{site}").parse().unwrap())).unwrap();
            bench.sites.push(made.object.parse().unwrap());
            bench.add_node(site);
        }
        let rate =
            Rate { device_hour: Credits::new(WINDOW_COST * 360), core_hour: Credits::ZERO, gib_hour: Credits::ZERO };
        let price = Price { class: "cpu".parse().unwrap(), isolation: None, site: None, rate };
        bench.user(UserCommand::SetPrices(vec![price])).unwrap();
        let made = bench.user(UserCommand::CreateTenant("acme".parse().unwrap())).unwrap();
        bench.tenant = made.object.parse().unwrap();
        let made = bench.user(UserCommand::CreateProject(bench.tenant, "main".parse().unwrap())).unwrap();
        bench.project = made.object.parse().unwrap();
        let deposit =
            UserCommand::Deposit { tenant: bench.tenant, amount: Credits::new(1_000_000), note: String::new() };
        bench.user(deposit).unwrap();
        bench
    }

    fn add_node(&mut self, site: u8) {
        let hash = Digest::from_bytes([site + 1; 32]);
        let at = self.sites[usize::from(site)];
        let expires = self.now.after(Nanos::from_secs(60));
        self.user(UserCommand::CreateJoinToken { hash, site: at, kind: JoinKind::Node, expires }).unwrap();
        let name = format!("node-{site}").parse().unwrap();
        let joined = self.command(Command::Join(JoinHost { token: hash, public_key: hash, name: Some(name) })).unwrap();
        let node: NodeId = joined.object.parse().unwrap();
        let answer = self.command(Command::Node(node, Generation::ZERO, self.inventory())).unwrap();
        self.nodes.push((node, answer.generation));
    }

    /// Every node's clock is the controller's.
    pub(crate) fn clock(&self) -> NodeInstant {
        NodeInstant::from_nanos(self.now.nanos())
    }

    /// One command, with all the laws that hold after every commit.
    pub(crate) fn command(&mut self, command: Command) -> Result<Answer, Refusal> {
        let (mut answers, rows) = step(&mut self.state, vec![command], self.now, &mut self.mint);
        self.state.books().audit().unwrap();
        for transfer in &rows.transfers {
            assert!(self.causes.insert(transfer.cause.clone()), "{} twice", transfer.cause);
        }
        for delta in self.state.deltas(&rows, self.now) {
            self.world.apply(&delta);
        }
        quota::judge(&self.state);
        self.written.append(rows.clone());
        self.rows = rows;
        answers.remove(0)
    }

    /// The writer starts anew from what was written, changed as wanted: the working set, its world and its judge are as before.
    pub(crate) fn restart_with(&mut self, change: impl FnOnce(&mut Rows)) {
        fn last<K: Ord, R: Clone>(rows: &[R], key: impl Fn(&R) -> K) -> Vec<R> {
            rows.iter().map(|row| (key(row), row.clone())).collect::<BTreeMap<_, _>>().into_values().collect()
        }
        let all = &self.written;
        let mut rows = Rows {
            tenants: last(&all.tenants, |row| row.id),
            projects: last(&all.projects, |row| row.id),
            sites: last(&all.sites, |row| row.id),
            nodes: last(&all.nodes, |row| row.id),
            jobs: last(&all.jobs, |row| row.id),
            attempts: last(&all.attempts, |row| row.id),
            leases: last(&all.leases, |row| row.id),
            checkpoints: last(&all.checkpoints, |row| row.id).into_iter().filter(|row| !row.retired).collect(),
            migrations: last(&all.migrations, |row| row.id),
            windows: last(&all.windows, |row| (row.lease, row.sequence)),
            prices: all.prices.clone(),
            budgets: last(&all.budgets, |row| row.scope.clone()),
            quotas: last(&all.quotas, |row| row.key.clone()),
            accounts: last(&all.accounts, |row| row.key.clone()),
            holds: last(&all.holds, |row| row.id),
            counters: all.counters,
            ..Rows::default()
        };
        rows.jobs.retain(|row| self.state.job(row.id).is_some());
        let known = |job| self.state.job(job).is_some();
        rows.attempts.retain(|row| known(row.job));
        rows.leases.retain(|row| known(row.job));
        rows.checkpoints.retain(|row| known(row.job));
        rows.migrations.retain(|row| known(row.job));
        rows.windows.retain(|row| known(row.job));
        change(&mut rows);
        let last_event = self.state.last_event();
        let settings = self.state.settings().clone();
        self.state = State::load(Snapshot { rows, last_id: 0, last_event }, settings, self.now);
        quota::judge(&self.state);
        self.world = World::new();
        self.state.world(self.now).iter().for_each(|delta| self.world.apply(delta));
    }

    /// The world that was advanced step by step is the one that a restart would build.
    pub(crate) fn check_world(&self) {
        let mut rebuilt = World::new();
        self.state.world(self.now).iter().for_each(|delta| rebuilt.apply(delta));
        assert!(rebuilt == self.world, "the world differs from the one rebuilt from rows");
    }

    /// Time passes and this node alone is silent.
    pub(crate) fn silence(&mut self, silent: NodeId, seconds: u64) {
        for _ in 0..seconds {
            self.now = self.now.after(Nanos::from_secs(1));
            for (node, generation) in self.nodes.clone() {
                if node != silent {
                    self.command(Command::Node(node, generation, NodeReport::Heartbeat(self.clock()))).unwrap();
                }
            }
            self.command(Command::Tick).unwrap();
        }
    }

    /// What every node says when it connects.
    fn inventory(&self) -> NodeReport {
        NodeReport::Hello {
            boot: BootId("boot".to_owned()),
            devices: (0..4).map(device).collect(),
            host_cores: CoreMilli::ZERO,
            host_memory: Bytes::ZERO,
            advisory: false,
            clock: self.clock(),
            address: String::new(),
        }
    }

    /// A node connects again, in the same boot.
    pub(crate) fn hello(&mut self, node: NodeId) {
        let answer = self.command(Command::Node(node, Generation::ZERO, self.inventory())).unwrap();
        self.nodes.iter_mut().filter(|(known, _)| *known == node).for_each(|known| known.1 = answer.generation);
    }

    pub(crate) fn user(&mut self, command: UserCommand) -> Result<Answer, Refusal> {
        self.command(Command::User(Caller::of(KeyId::from_raw(1)), command))
    }

    /// Time passes for the writer, with every node alive.
    pub(crate) fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now = self.now.after(Nanos::from_secs(1));
            for (node, generation) in self.nodes.clone() {
                self.command(Command::Node(node, generation, NodeReport::Heartbeat(self.clock()))).unwrap();
            }
            self.command(Command::Tick).unwrap();
        }
    }

    /// A long time passes at once, with every node alive.
    pub(crate) fn skip(&mut self, seconds: u64) {
        self.now = self.now.after(Nanos::from_secs(seconds));
        self.pass(1);
    }

    /// The planner's turn.
    pub(crate) fn plan(&mut self) {
        let plan = self.world.decide(Limits::default());
        let answer = self.command(Command::Plan(plan)).unwrap();
        answer.rejected.into_iter().for_each(|job| self.world.reject(job));
    }

    /// What the planner would place this for now.
    pub(crate) fn offer(&mut self, spec: JobSpec) -> Result<Offered, Reason> {
        let check = UserCommand::Validate(self.project, std::sync::Arc::new(spec));
        let wanted = self.user(check).unwrap().wanted.unwrap();
        assert!(self.rows.is_empty(), "a quote changes nothing");
        self.world.offer(&wanted).map_err(|(reason, _)| reason)
    }

    /// Submits a job that wants one device and runs until it is stopped.
    pub(crate) fn submit(&mut self, limit: Option<u64>) -> JobId {
        self.submit_spec(spec(limit.map(Nanos::from_secs)))
    }

    pub(crate) fn submit_spec(&mut self, spec: JobSpec) -> JobId {
        self.submit_to(self.project, spec)
    }

    /// Submits a job of another project.
    pub(crate) fn submit_to(&mut self, project: ProjectId, spec: JobSpec) -> JobId {
        let command = UserCommand::Submit { project, name: None, spec: std::sync::Arc::new(spec) };
        self.user(command).unwrap().object.parse().unwrap()
    }

    /// A tenant with money and one project.
    pub(crate) fn add_tenant(&mut self, name: &str) -> (TenantId, ProjectId) {
        let made = self.user(UserCommand::CreateTenant(name.parse().unwrap())).unwrap();
        let tenant: TenantId = made.object.parse().unwrap();
        let made = self.user(UserCommand::CreateProject(tenant, "main".parse().unwrap())).unwrap();
        let deposit = UserCommand::Deposit { tenant, amount: Credits::new(1_000_000), note: String::new() };
        self.user(deposit).unwrap();
        (tenant, made.object.parse().unwrap())
    }

    /// Submits a job, has it placed and lets it run.
    pub(crate) fn run(&mut self, limit: Option<u64>) -> JobId {
        let job = self.submit(limit);
        self.placed_and_running(job)
    }

    /// The same for a job whose checkpoints must be at so many sites.
    pub(crate) fn run_durable(&mut self, sites: u32) -> JobId {
        let mut wanted = spec(None);
        wanted.checkpoint.as_mut().unwrap().durable_sites = sites;
        let job = self.submit_spec(wanted);
        self.placed_and_running(job)
    }

    pub(crate) fn placed_and_running(&mut self, job: JobId) -> JobId {
        self.plan();
        self.running(job);
        job
    }

    /// The job's only task runs.
    pub(crate) fn running(&mut self, job: JobId) -> TaskKey {
        let key = self.task(job);
        let started = self.clock();
        self.node_of(key, NodeReport::Running { key, started, step: 0, metrics: BTreeMap::new(), held: None });
        assert_eq!(self.job(job).state.as_str(), "running");
        key
    }

    pub(crate) fn job(&self, id: JobId) -> Job {
        self.state.job(id).unwrap().clone()
    }

    /// The only task of the job's attempt.
    pub(crate) fn task(&self, id: JobId) -> TaskKey {
        let attempt = self.state.attempt(self.job(id).current.unwrap()).unwrap();
        TaskKey { attempt: attempt.id, lease: attempt.tasks[0].lease, generation: attempt.generation }
    }

    /// A report of the node that has the task.
    pub(crate) fn node_of(&mut self, key: TaskKey, report: NodeReport) {
        let node = self.state.lease(key.lease).unwrap().device.node;
        let generation = self.state.node(node).unwrap().generation;
        self.command(Command::Node(node, generation, report)).unwrap();
    }

    /// Ten seconds pass and the task's window for them is posted.
    pub(crate) fn window(&mut self, key: TaskKey) {
        let start = self.clock();
        self.pass(10);
        let lease = self.state.lease(key.lease).unwrap();
        let (node, sequence) = (lease.device.node, lease.next_window);
        let journal = self.journals.entry(node).or_default();
        *journal += 1;
        let record = WindowReport {
            journal: *journal,
            key,
            sequence,
            boot: BootId("boot".to_owned()),
            start,
            end: NodeInstant::from_nanos(self.now.nanos()),
            used_ns: 10_000_000_000,
            memory_byte_seconds: 0,
            last_step: sequence,
            advisory: false,
        };
        self.node_of(key, NodeReport::Windows(vec![record]));
    }

    /// The task is told to stop at a checkpoint, seals it and ends.
    pub(crate) fn stop_at_checkpoint(&mut self, key: TaskKey, number: u64) {
        let windows = self.state.lease(key.lease).unwrap().next_window;
        let sealed = NodeReport::Sealed {
            key,
            step: number,
            manifest: Digest::from_bytes([9; 32]),
            size: 1,
            captured: self.clock(),
            next_window: windows,
        };
        self.node_of(key, sealed);
        self.node_of(key, NodeReport::Ended { key, end: end(true), windows, step: number });
    }

    /// The task ends by itself, with status 0.
    pub(crate) fn end(&mut self, key: TaskKey) {
        let windows = self.state.lease(key.lease).unwrap().next_window;
        self.node_of(key, NodeReport::Ended { key, end: end(false), windows, step: 0 });
    }

    pub(crate) fn budget(&mut self, windows: i64, period_seconds: u64, policy: BudgetPolicy) {
        let command = UserCommand::SetBudget {
            tenant: self.tenant,
            project: None,
            amount: Credits::new(windows * WINDOW_COST),
            period_seconds,
            policy,
        };
        self.user(command).unwrap();
    }

    /// Period's budget account, and what was spent of it.
    pub(crate) fn budget_now(&self) -> (Account, i64) {
        let budget = self.state.budgets().next().unwrap();
        self.budget_of(budget.period(self.now))
    }

    pub(crate) fn budget_of(&self, period: u64) -> (Account, i64) {
        let scope = self.state.budgets().next().unwrap().ledger_scope();
        let spent = self.state.books().account(&AccountKey::Spent(scope, period)).balance();
        (self.state.books().account(&AccountKey::Budget(scope, period)), spent)
    }
}

pub(crate) fn end(at_checkpoint: bool) -> TaskEnd {
    TaskEnd {
        exit_code: Some(0),
        signal: 0,
        reason: None,
        message: String::new(),
        at_checkpoint,
        outputs: None,
        outputs_manifest: None,
    }
}

fn device(index: u16) -> Device {
    Device {
        view: DeviceView {
            index,
            class: "cpu".parse().unwrap(),
            memory: Bytes::mib(4096),
            cores: CoreMilli::new(1000),
            isolation: vec![IsolationClass::Cpu],
            healthy: true,
        },
        uuid: format!("cpu-{index}"),
        fault: String::new(),
    }
}

pub(crate) fn spec(limit: Option<Nanos>) -> JobSpec {
    JobSpec {
        kind: JobKind::Batch,
        command: vec!["train".to_owned()],
        env: BTreeMap::new(),
        work_dir: None,
        inputs: Vec::new(),
        tasks: 1,
        resources: TaskResources {
            class: "cpu".parse().unwrap(),
            milli: MilliGpu::WHOLE,
            memory: Bytes::mib(1024),
            host_cores: CoreMilli::ZERO,
            host_memory: Bytes::ZERO,
        },
        priority: 0,
        max_run_time: limit,
        retry: RetryPolicy { on_failure: 0, on_loss: 10 },
        checkpoint: Some(CheckpointPolicy {
            capture: Capture::StateProvider,
            every_steps: 1,
            every: Nanos::ZERO,
            durable_sites: 1,
        }),
        secrets: Vec::new(),
        network: NetworkMode::Loopback,
        sites: Vec::new(),
        labels: BTreeMap::new(),
        model: None,
    }
}
