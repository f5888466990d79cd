//! What the agent's tests share: a controller that says what a test wants and writes down what it hears, a real vault, and
//! agents on real control groups.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test uses its part; a test fails by panicking"
)]

mod controller;
mod job;
#[path = "../../../vault/tests/common/proxy.rs"]
mod proxy;
mod talk;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sluice_device::{Backend, CoreShare, CpuBackend, CpuConfig, Enforcement, LimitMode, measure};
use sluice_node::supervisor::{HostLayout, SandboxMode};
use sluice_node::{NodeConfig, NodeMetrics};
use sluice_types::{Bytes, CoreMilli, Nanos};
use sluice_vault::{
    AllowAll, ClientLimits, StoreLimits, TransferLimits, Vault, VaultClient, VaultConfig, VaultStats, no_tls,
};
use tokio_util::sync::CancellationToken;

pub use controller::Controller;
pub use job::{Job, TRAINER, checkpointing, rental, shell};
use proxy::Proxy;
pub use talk::{PATIENCE, Talk, begun, command, running, said, session_id};

static COUNT: AtomicU32 = AtomicU32::new(1);

/// One host with a vault and a controller; agents come and go.
pub struct Host {
    pub root: tempfile::TempDir,
    pub controller: Controller,
    pub vault: VaultClient,
    /// The agents' way to the vault; tests have one of their own.
    pub way: Proxy,
    pub metrics: Arc<NodeMetrics>,
    parent: String,
    uids: u32,
    limit: LimitMode,
    sandbox: SandboxMode,
    stop: CancellationToken,
}

/// A running agent.
pub struct Agent {
    runtime: Option<tokio::runtime::Runtime>,
    stop: CancellationToken,
    ended: Option<tokio::task::JoinHandle<Result<(), sluice_node::NodeError>>>,
}

impl Host {
    /// `None`, said on the output, where this host cannot enforce.
    pub async fn enforced() -> Option<Self> {
        if let Err(error) = HostLayout::probe() {
            println!("SKIPPED: {error}");
            return None;
        }
        let host = Self::open(LimitMode::Enforce, SandboxMode::Enforced).await;
        if let Enforcement::NotEnforceable(reason) = host.backend().enforcement() {
            println!("SKIPPED: {reason}");
            return None;
        }
        Some(host)
    }

    /// A host that needs nothing and enforces nothing.
    pub async fn advisory() -> Self {
        Self::open(LimitMode::Advisory, SandboxMode::Advisory).await
    }

    async fn open(limit: LimitMode, sandbox: SandboxMode) -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let vault = Vault::open(VaultConfig {
            folder: root.path().join("vault"),
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: String::new(),
            controller: String::new(),
            server_tls: None,
            controller_tls: no_tls(),
            peer_tls: no_tls(),
            policy: Arc::new(AllowAll),
            store: StoreLimits::default(),
            transfers: TransferLimits::default(),
            stats: Arc::new(VaultStats::default()),
        })
        .await
        .unwrap();
        let address = vault.address().to_string();
        let way = Proxy::to(vault.address()).await;
        tokio::spawn(vault.run(stop.clone()));
        Self {
            controller: Controller::start(&way.address.to_string()).await,
            way,
            vault: VaultClient::new(address, no_tls(), ClientLimits::default()),
            metrics: Arc::default(),
            parent: format!("sluice-agent-{}-{number}", std::process::id()),
            uids: 70_000 + number * 100,
            root,
            limit,
            sandbox,
            stop,
        }
    }

    pub fn data(&self) -> PathBuf {
        self.root.path().join("node")
    }

    pub fn attempt(&self, job: &Job) -> PathBuf {
        self.data().join("attempts").join(job.lease.to_string())
    }

    /// The same groups for every agent of this host, as after a restart.
    pub fn backend(&self) -> CpuBackend {
        let config = CpuConfig {
            node: "n1".parse().unwrap(),
            class: "cpu".parse().unwrap(),
            cores: vec![CoreShare { core: 0, share: CoreMilli::new(900) }],
            memory: Bytes::mib(512),
            mode: self.limit,
            parent: self.parent.clone(),
            state: self.root.path().join("groups"),
        };
        CpuBackend::open(config).unwrap()
    }

    pub fn config(&self) -> NodeConfig {
        let backend = Arc::new(self.backend());
        let mut config = NodeConfig::new(self.data(), "n1".parse().unwrap(), backend, program());
        config.controllers = vec![self.controller.address()];
        config.sandbox.mode = self.sandbox;
        config.uids = self.uids..self.uids + 100;
        config.window = Nanos::from_secs(1);
        config.metrics = self.metrics.clone();
        config
    }

    pub fn agent(&self) -> Agent {
        self.agent_with(self.config())
    }

    /// An agent on threads of its own, so that it can be cut off at any instruction.
    pub fn agent_with(&self, config: NodeConfig) -> Agent {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let stop = CancellationToken::new();
        let ended = runtime.spawn(Box::pin(sluice_node::run(config, stop.clone())));
        Agent { runtime: Some(runtime), stop, ended: Some(ended) }
    }

    /// Packs a folder into the vault.
    pub async fn upload(&self, files: &[(&str, &str)]) -> sluice_proto::v1::BlobRef {
        let folder = tempfile::tempdir_in(self.root.path()).unwrap();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let scratch = self.root.path().join("upload.tar");
        let packed = self.vault.pack_tar(folder.path(), &scratch, Default::default()).await.unwrap();
        std::fs::remove_file(scratch).unwrap();
        sluice_proto::v1::BlobRef {
            digest: packed.digest.to_string(),
            size_bytes: packed.size.get(),
            path: String::new(),
        }
    }
}

impl Host {
    /// An agent as a process of its own, to be killed for real.
    pub fn process(&self) -> std::process::Child {
        let mut command = std::process::Command::new(example("node-agent"));
        command.arg(self.data()).arg(self.controller.address()).arg(&self.parent).arg(self.root.path().join("groups"));
        command.arg(self.uids.to_string()).arg(program()).spawn().unwrap()
    }
}

impl Agent {
    /// Nearly as `kill -9`: nothing is told to anybody.
    pub fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    /// As a polite stop.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let ended = self.ended.take().unwrap();
        tokio::time::timeout(Duration::from_secs(15), ended).await.unwrap().unwrap().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.cancel();
        let backend = self.backend();
        for left in backend.leftovers().unwrap_or_default() {
            let _ = backend.release(&left.key, Duration::from_secs(5));
        }
        if self.limit == LimitMode::Enforce {
            measure::remove_parent(&self.parent);
        }
    }
}

pub fn program() -> PathBuf {
    example("task-supervisor")
}

/// An example that cargo builds beside the tests.
fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let found = tests.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(found.exists(), "{} is missing: cargo build -p sluice-node --examples", found.display());
    found
}

/// Waits until something is so.
pub async fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    eventually_in(Duration::from_secs(20), what, look).await
}

/// The same for what may take long on a slow machine.
pub async fn eventually_in<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = tokio::time::Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(tokio::time::Instant::now() < end, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
