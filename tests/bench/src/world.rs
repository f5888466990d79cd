//! The world that jobs are placed on: rows written before the controller starts.

use sluice_identity::secret_digest;
use sluice_ledger::{AccountKey, Books, Price, PriceBook, Rate};
use sluice_lifecycle::model::{
    Device, JobKind, JobSpec, Key, Node, NodeState, Project, RetryPolicy, Role, Site, Tenant,
};
use sluice_lifecycle::{Rows, Settings};
use sluice_plan::DeviceView;
use sluice_types::{
    BootId, Bytes, CoreMilli, Credits, Digest, Generation, IsolationClass, KeyId, MilliGpu, Name, Nanos, NetworkMode,
    NodeId, PriceVersion, ProjectId, SiteId, TaskResources, TenantId, Timestamp, TransferId,
};

/// Devices of every node.
const DEVICES: u16 = 8;
const SITES: u64 = 2;
/// Ids of the world's own rows are this high, those of nodes follow.
const FIRST_NODE: u64 = 1000;
const DAY: u64 = 24 * 3600;

/// The tenant whose jobs are submitted.
pub(crate) const TENANT: TenantId = TenantId::from_raw(1);
/// Its project.
pub(crate) const PROJECT: ProjectId = ProjectId::from_raw(2);
/// The key that submits.
pub(crate) const KEY: KeyId = KeyId::from_raw(3);
/// Where the project is.
pub(crate) const PARENT: &str = "tenants/acme/projects/vision";
/// The class of every device.
pub(crate) const CLASS: &str = "h200";

const SECRET: [u8; 32] = [7; 32];

/// What a client sends to be known.
pub(crate) fn bearer() -> String {
    format!("Bearer sk-{KEY}.{}", hex::encode(SECRET))
}

/// Nothing is lost and nothing is late however long nodes are silent, because no node ever connects.
pub(crate) fn settings() -> Settings {
    let never = Nanos::from_secs(3650 * DAY);
    Settings { loss_timeout: never, start_deadline: never, jobs_per_tenant: 100_000_000, ..Settings::default() }
}

/// Sites, ready nodes, a tenant with a project and a developer's key, prices, and more money than will be spent.
pub(crate) fn rows(nodes: u64, now: Timestamp) -> Rows {
    let rate =
        Rate { device_hour: Credits::new(2_000_000), core_hour: Credits::new(10_000), gib_hour: Credits::new(1_000) };
    let price = Price { class: name(CLASS), isolation: None, site: None, rate };
    let mut books = Books::default();
    let sides = (AccountKey::Outside, AccountKey::Funds(TENANT));
    let deposit = books.transfer(TransferId::from_raw(4), sides, 1 << 60, "deposit/bench".to_owned(), now);
    let deposit = deposit.expect("invariant: money from outside has no limit");
    let (accounts, holds) = books.take_touched();
    let key = Key {
        id: KEY,
        tenant: Some(TENANT),
        project: Some(PROJECT),
        role: Role::Developer,
        hash: secret_digest(&SECRET),
        created: now,
        revoked: None,
    };
    let project = Project {
        id: PROJECT,
        tenant: TENANT,
        name: name("vision"),
        networks: Vec::new(),
        sites: Vec::new(),
        created: now,
    };
    Rows {
        tenants: vec![Tenant { id: TENANT, name: name("acme"), manager: String::new(), created: now }],
        projects: vec![project],
        keys: vec![key],
        sites: (0..SITES).map(|number| site(number, now)).collect(),
        nodes: (0..nodes).map(|number| node(number, now)).collect(),
        prices: vec![PriceBook { version: PriceVersion::from_raw(5), at: now, prices: vec![price] }],
        accounts,
        holds,
        transfers: vec![deposit],
        ..Rows::default()
    }
}

/// A small job: the `number`th of many. Equal numbers are equal jobs.
pub(crate) fn spec(number: u64) -> JobSpec {
    JobSpec {
        kind: JobKind::Batch,
        command: vec!["python3".to_owned(), "train.py".to_owned(), "--epochs=3".to_owned()],
        env: [("SEED".to_owned(), "17".to_owned())].into(),
        work_dir: None,
        inputs: Vec::new(),
        tasks: 1,
        resources: TaskResources {
            class: name(CLASS),
            milli: MilliGpu::new(milli(number)),
            memory: Bytes::mib(MEMORY_MIB),
            host_cores: CoreMilli::new(HOST_CORES),
            host_memory: Bytes::mib(MEMORY_MIB),
        },
        priority: 0,
        max_run_time: Some(Nanos::from_secs(RUN_SECONDS)),
        retry: RetryPolicy { on_failure: 0, on_loss: 3 },
        checkpoint: None,
        secrets: Vec::new(),
        network: NetworkMode::Loopback,
        sites: Vec::new(),
        labels: [("team".to_owned(), "vision".to_owned())].into(),
        model: None,
    }
}

/// Device memory and host memory of each job.
pub(crate) const MEMORY_MIB: u64 = 128;
/// Host cores of each job.
pub(crate) const HOST_CORES: u32 = 10;
/// Run limit of each job.
pub(crate) const RUN_SECONDS: u64 = 3600;

/// The share of a device that the `number`th job asks for: 1 to 10.
pub(crate) fn milli(number: u64) -> u32 {
    u32::try_from(number % 10).map_or(1, |step| step + 1)
}

fn site(number: u64, now: Timestamp) -> Site {
    Site {
        id: SiteId::from_raw(10 + number),
        name: name(&format!("site-{number}")),
        vault: String::new(),
        vault_away: false,
        vault_key: None,
        created: now,
    }
}

fn node(number: u64, now: Timestamp) -> Node {
    let device = |index| Device {
        view: DeviceView {
            index,
            class: name(CLASS),
            memory: Bytes::new(140 * Bytes::GIB),
            cores: CoreMilli::ZERO,
            isolation: vec![IsolationClass::Windowed],
            healthy: true,
        },
        uuid: format!("GPU-{number:08}-{index}"),
        fault: String::new(),
    };
    Node {
        id: NodeId::from_raw(FIRST_NODE + number),
        site: SiteId::from_raw(10 + number % SITES),
        name: name(&format!("node-{number}")),
        public_key: Digest::from_bytes([9; 32]),
        generation: Generation::new(1),
        boot: BootId(format!("boot-{number}")),
        state: NodeState::Ready,
        cordoned: false,
        draining: false,
        drain_by: Timestamp::default(),
        reason: String::new(),
        failed_starts: 0,
        address: String::new(),
        advisory: false,
        host_cores: CoreMilli::new(192_000),
        host_memory: Bytes::new(2048 * Bytes::GIB),
        devices: (0..DEVICES).map(device).collect(),
        settled_journal: 0,
        clock: None,
        last_seen: now,
    }
}

fn name(text: &str) -> Name {
    text.parse().expect("invariant: the world's names are names")
}
