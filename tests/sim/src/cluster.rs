//! The cluster at the begin of a day: sites, hosts, tenants, prices, programs.

use std::collections::BTreeMap;

use sluice_ledger::{Price, QuotaKey, QuotaLimits, Rate};
use sluice_lifecycle::model::{
    Capture, CheckpointPolicy, Completion, Device, JobKind, JobSpec, JoinKind, QuotaPolicy, RetryPolicy, StoredFile,
    WatchSignal,
};
use sluice_lifecycle::{Caller, Command, ImportModel, JoinHost, NodeReport, SetQuota, UserCommand};
use sluice_plan::DeviceView;
use sluice_types::{
    Bytes, CoreMilli, Credits, Digest, IsolationClass, KeyId, MilliGpu, Name, Nanos, NetworkMode, NodeId, SiteId,
    TaskResources, TenantId, Timestamp,
};

use crate::host::Host;
use crate::params::{EPOCH, HEARTBEAT, HOUR, MINUTE, SECOND};
use crate::process::{PROGRAM, Program};
use crate::sim::{Event, Sim};
use crate::vault::SiteSim;

pub(crate) const SITES: usize = 3;
pub(crate) const TENANTS: usize = 4;
/// Memory of a device.
pub(crate) const DEVICE_MEMORY: u64 = 64 << 30;

pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("invariant: the simulator's names are well formed")
}

pub(crate) fn system() -> Caller {
    Caller::of(KeyId::from_raw(1))
}

fn devices(host: &Host) -> Vec<Device> {
    let cpu = host.class == "cpu";
    let view = |index| DeviceView {
        index,
        class: name(host.class),
        memory: Bytes::new(DEVICE_MEMORY),
        cores: if cpu { CoreMilli::new(1000) } else { CoreMilli::ZERO },
        isolation: match cpu {
            true => vec![IsolationClass::Cpu],
            false => vec![IsolationClass::Windowed, IsolationClass::Exclusive],
        },
        healthy: true,
    };
    let uuid = |index| format!("{}-{index}", host.node);
    (0..host.devices).map(|index| Device { view: view(index), uuid: uuid(index), fault: String::new() }).collect()
}

pub(crate) fn hello(host: &Host, now: u64) -> NodeReport {
    NodeReport::Hello {
        boot: host.boot_id(),
        devices: devices(host),
        host_cores: CoreMilli::new(host.host_cores),
        host_memory: Bytes::new(if host.host_cores > 0 { 256 << 30 } else { 0 }),
        advisory: false,
        clock: host.instant(now),
        address: String::new(),
    }
}

/// A quota over all sites.
pub(crate) fn quota(tenant: TenantId, nominal: i64) -> SetQuota {
    let key = QuotaKey { tenant, site: None, class: name("gpu") };
    let limits = QuotaLimits { nominal, ..QuotaLimits::default() };
    SetQuota { key, limits, policy: QuotaPolicy::Refuse, version: None }
}

/// A quota at a site: what is its own, what it may borrow, and what it lends.
pub(crate) fn site_quota(tenant: TenantId, site: SiteId, (nominal, borrow, lend): (i64, i64, i64)) -> SetQuota {
    let key = QuotaKey { tenant, site: Some(site), class: name("gpu") };
    SetQuota { key, limits: QuotaLimits { nominal, borrow, lend }, policy: QuotaPolicy::Drain, version: None }
}

pub(crate) fn prices(device_hour: i64, sites: &[SiteId]) -> Vec<Price> {
    let rate = |device_hour: i64| Rate {
        device_hour: Credits::new(device_hour),
        core_hour: Credits::new(7_777),
        gib_hour: Credits::new(1_013),
    };
    let mut prices: Vec<_> = ["gpu", "cpu"]
        .iter()
        .map(|class| Price { class: name(class), isolation: None, site: None, rate: rate(device_hour) })
        .collect();
    let dear = sites.first().map(|site| Price {
        class: name("gpu"),
        isolation: Some(IsolationClass::Windowed),
        site: Some(*site),
        rate: rate(device_hour + 333_331),
    });
    prices.extend(dear);
    prices
}

impl Sim {
    /// Everything that is there before the first job.
    pub(crate) fn set_up(&mut self) {
        self.start_controller();
        for site in 0..SITES {
            let made =
                self.command_now(Command::User(system(), UserCommand::CreateSite(name(&format!("site-{site}")))));
            if let Ok(id) = made.object.parse() {
                self.sites.push(SiteSim::new(id));
                self.agenda
                    .plan(self.now + SECOND, Event::VaultBeat { site, incarnation: self.controller.incarnation });
            }
        }
        for site in 0..SITES {
            for place in 0..self.day.hosts_per_site {
                self.add_host(site, if place == 1 { "cpu" } else { "gpu" });
            }
        }
        let sites: Vec<_> = self.sites.iter().map(|site| site.id).collect();
        self.command_now(Command::User(system(), UserCommand::SetPrices(prices(2_500_001, &sites))));
        for tenant in 0..TENANTS {
            self.add_tenant(tenant);
        }
        // A cohort at the first site, to which all of them belong.
        let limits = [(1500, 500, 1500), (300, 1500, 0), (0, 2000, 0), (1000, 0, 500)];
        for ((tenant, _), limits) in self.users.tenants.clone().into_iter().zip(limits) {
            let wanted = site_quota(tenant, self.sites[0].id, limits);
            self.command_now(Command::User(system(), UserCommand::SetQuota(wanted)));
        }
    }

    fn add_tenant(&mut self, place: usize) {
        let made =
            self.command_now(Command::User(system(), UserCommand::CreateTenant(name(&format!("tenant-{place}")))));
        let Ok(tenant) = made.object.parse() else { return };
        let project = UserCommand::CreateProject(tenant, name("main"));
        let made = self.command_now(Command::User(system(), project));
        let Ok(project) = made.object.parse() else { return };
        self.users.tenants.push((tenant, project));
        self.add_model(place, project);
        let amount = Credits::new(if place == 3 { 3_000_000 } else { 10_000_000_000 });
        let deposit = UserCommand::Deposit { tenant, amount, note: "first".to_owned() };
        self.command_now(Command::User(system(), deposit));
        if place == 1 {
            self.command_now(Command::User(system(), UserCommand::SetQuota(quota(tenant, 2500))));
        }
        if place == 2 {
            let budget = UserCommand::SetBudget {
                tenant,
                project: None,
                amount: Credits::new(9_000_000),
                period_seconds: 4 * 3600,
                policy: sluice_lifecycle::model::BudgetPolicy::Suspend,
            };
            self.command_now(Command::User(system(), budget));
            self.oracle.budget_set(tenant);
        }
    }

    /// A model that its tenant may serve, once it is looked into.
    fn add_model(&mut self, place: usize, project: sluice_types::ProjectId) {
        let mut digest = [3u8; 32];
        digest[0] = u8::try_from(place).unwrap_or(0);
        let file = StoredFile { digest: Digest::from_bytes(digest), size: 1 << 20 };
        let upload = UserCommand::RecordUpload { project, digest: file.digest, size: file.size, complete: true };
        self.command_now(Command::User(system(), upload));
        let resources = TaskResources {
            class: name("cpu"),
            milli: MilliGpu::new(200),
            memory: Bytes::new(1 << 30),
            host_cores: CoreMilli::ZERO,
            host_memory: Bytes::ZERO,
        };
        let wanted = ImportModel { project, name: name("model"), file, requantize: String::new(), resources };
        self.command_now(Command::User(system(), UserCommand::ImportModel(Box::new(wanted))));
    }

    /// A new host joins with a token and starts its agent.
    pub(crate) fn add_host(&mut self, site: usize, class: &'static str) {
        let number = self.hosts.len();
        let mut token = [7u8; 32];
        token[..8].copy_from_slice(&(number as u64).to_be_bytes());
        let hash = Digest::from_bytes(token);
        let expires = Timestamp::from_nanos(EPOCH + self.now + HOUR);
        let id = self.sites[site].id;
        let create = UserCommand::CreateJoinToken { hash, site: id, kind: JoinKind::Node, expires };
        self.command_now(Command::User(system(), create));
        let join = JoinHost { token: hash, public_key: hash, name: Some(name(&format!("host-{number}"))) };
        let joined = self.command_now(Command::Join(join));
        let node: NodeId = joined.object.parse().unwrap_or(NodeId::from_raw(0));
        let gpu = class == "gpu";
        let skew = self.dice.range(0, 400);
        self.hosts.push(Host {
            site,
            node,
            power: true,
            gone: false,
            agent: true,
            boot: 1,
            boot_at: self.now,
            base: self.dice.range(0, 1000 * HOUR),
            skew_ppm: i64::try_from(skew).unwrap_or(0) - 200,
            cut: false,
            slow: 0,
            stream: None,
            connecting: false,
            ghosts: Vec::new(),
            tasks: BTreeMap::new(),
            proofs: BTreeMap::new(),
            journal: Vec::new(),
            next_journal: 1,
            class,
            devices: if gpu { 2 } else { 4 },
            host_cores: if gpu { 32_000 } else { 0 },
        });
        if let Some(memory) = self.controller.memory.as_mut() {
            memory.seats.resize(self.hosts.len(), None);
        }
        self.agenda.plan(self.now + self.dice.range(0, HEARTBEAT), Event::Beat { host: number, boot: 1 });
    }

    /// A program and the spec that asks for it.
    pub(crate) fn program(&mut self) -> (Program, JobSpec) {
        let index = self.jobs.len();
        let pace = match self.dice.range(0, 19) {
            0 => 100 * SECOND,
            1..=4 => self.dice.range(2, 8) * SECOND,
            _ => self.dice.range(8, 40) * SECOND,
        };
        let busy = self.dice.range(5, 90) * MINUTE;
        let steps = (busy / pace).clamp(5, 600);
        let captures = self.dice.chance(850);
        let program = Program {
            steps,
            pace,
            every: if self.dice.chance(800) { (self.dice.range(1, 5) * MINUTE / pace).max(1) } else { 0 },
            prepare: self.dice.range(1, 20) * SECOND,
            seal: self.dice.range(1, 15) * SECOND,
            fails_at: self.dice.chance(120).then(|| self.dice.range(1, steps)),
            captures,
        };
        let spec = self.spec(index, &program);
        (program, spec)
    }

    /// A sandbox to work in, for a time or until it is given back.
    pub(crate) fn rental(&mut self) -> (Program, JobSpec) {
        let index = self.jobs.len();
        let program = Program {
            steps: u64::MAX,
            pace: MINUTE,
            every: 0,
            prepare: self.dice.range(1, 5) * SECOND,
            seal: SECOND,
            fails_at: None,
            captures: false,
        };
        let span = self.dice.chance(800).then(|| Nanos::new(self.dice.range(2, 120) * MINUTE));
        let spec = JobSpec {
            kind: JobKind::Rental,
            command: Vec::new(),
            env: BTreeMap::from([(PROGRAM.to_owned(), index.to_string())]),
            priority: 100,
            max_run_time: span,
            retry: RetryPolicy { on_failure: 0, on_loss: 50 },
            checkpoint: None,
            ..self.spec(index, &program)
        };
        (program, spec)
    }

    fn spec(&mut self, index: usize, program: &Program) -> JobSpec {
        let cpu = self.dice.chance(300);
        let tasks = if self.dice.chance(120) { self.dice.range(2, 3) } else { 1 };
        let milli = *self.dice.pick(&[100u32, 250, 300, 500, 700, 1000]).unwrap_or(&500);
        let sites: Vec<_> = self.sites.iter().map(|site| site.id).collect();
        let only =
            if self.dice.chance(150) { self.dice.pick(&sites).copied().into_iter().collect() } else { Vec::new() };
        let capture = match self.dice.chance(500) {
            true => Capture::StateProvider,
            false => Capture::Directory {
                path: "out".to_owned(),
                completion: Completion::File("done".to_owned()),
                signal: Some(WatchSignal::Usr1),
                grace: Nanos::from_secs(30),
            },
        };
        let needed = Nanos::new(program.steps.saturating_mul(program.pace));
        let limit = match self.dice.range(0, 9) {
            0 => Some(Nanos::new((needed.get() / 2).max(SECOND))),
            1..=4 => Some(Nanos::new(needed.get().saturating_mul(3))),
            _ => None,
        };
        JobSpec {
            kind: JobKind::Batch,
            command: vec!["sim".to_owned(), index.to_string()],
            env: BTreeMap::new(),
            work_dir: None,
            inputs: Vec::new(),
            tasks: u32::try_from(tasks).unwrap_or(1),
            resources: TaskResources {
                class: name(if cpu { "cpu" } else { "gpu" }),
                milli: MilliGpu::new(milli),
                memory: Bytes::new(self.dice.range(1, if cpu { 30 } else { 60 }) << 30),
                host_cores: CoreMilli::new(if cpu { 0 } else { u32::try_from(self.dice.range(0, 4000)).unwrap_or(0) }),
                host_memory: Bytes::new(self.dice.range(0, 8) << 30),
            },
            priority: i32::try_from(self.dice.range(0, 3)).unwrap_or(0),
            max_run_time: limit,
            retry: RetryPolicy { on_failure: u32::try_from(self.dice.range(0, 1)).unwrap_or(0), on_loss: 50 },
            checkpoint: program.captures.then_some(CheckpointPolicy {
                capture,
                every_steps: program.every,
                every: Nanos::ZERO,
                durable_sites: 0,
            }),
            secrets: Vec::new(),
            network: NetworkMode::Loopback,
            sites: only,
            labels: BTreeMap::new(),
            model: None,
        }
    }
}
