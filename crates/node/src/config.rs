//! What a node agent is told when it starts.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sluice_device::Backend;
use sluice_types::{Bytes, CoreMilli, Name, Nanos};
use sluice_vault::{ClientLimits, TlsSource, VaultClient, no_tls};

use crate::depot::{Depot, Rooms, VaultDepot};
use crate::metrics::NodeMetrics;
use crate::supervisor::{Sandbox, SandboxMode};

/// Makes the way to a site's vault from the address that the controller names. Asked again when the address changes.
pub type DepotSource = Arc<dyn Fn(&str) -> Arc<dyn Depot> + Send + Sync>;

/// Everything a node agent has to be told.
#[derive(Clone)]
pub struct NodeConfig {
    /// Folder of the journal, the attempts and their logs. One agent at a time.
    pub data: PathBuf,
    /// The node's name, for messages.
    pub name: Name,
    /// Controllers as `host:port`, tried in turn.
    pub controllers: Vec<String>,
    /// Where other hosts reach what tasks listen on; `None` = this host's address on the way to the controller.
    pub advertise: Option<String>,
    /// TLS towards the controller, asked at each dial so that a renewed certificate is used; `None` inside is plaintext.
    pub tls: TlsSource,
    /// The way to the site's vault.
    pub depots: DepotSource,
    /// What enforces slices.
    pub backend: Arc<dyn Backend>,
    /// The program with the roles `supervise`, `enter` and `enter-task`.
    pub program: PathBuf,
    /// How tasks are shut in.
    pub sandbox: Sandbox,
    /// Users for tasks: each live task has one of its own. Nodes of one host need ranges of their own.
    pub uids: Range<u32>,
    /// Folder for secrets, best on a tmpfs; `None` = in the task's own folder. Files are 0400 and go with the task.
    pub secrets: Option<PathBuf>,
    /// Length of a metering window until the controller has told its own.
    pub window: Nanos,
    /// Host processor sold beside slices; zero where the devices are the cores.
    pub host_cores: CoreMilli,
    /// Host memory sold beside slices.
    pub host_memory: Bytes,
    /// Bounds and deadlines.
    pub limits: NodeLimits,
    /// Figures, to be exported.
    pub metrics: Arc<NodeMetrics>,
}

/// Bounds and deadlines of a node agent.
#[derive(Debug, Clone, Copy)]
pub struct NodeLimits {
    /// How long fetching and unpacking what a task needs may take.
    pub prepare: Duration,
    /// How long storing the last checkpoint and the outputs of an ended task may take.
    pub finish: Duration,
    /// How long a task that is told to stop may take before it is killed.
    pub stop_grace: Duration,
    /// How long killed processes may take to be gone.
    pub kill_patience: Duration,
    /// How long a slice that is not free yet is waited for.
    pub grant: Duration,
    /// Processes and threads of one task.
    pub pids: u32,
    /// Log of one task.
    pub log: Bytes,
    /// Working directory of one task.
    pub work: Bytes,
    /// Checkpoints being written by one task.
    pub stage: Bytes,
    /// Outputs of one task.
    pub outputs: Bytes,
    /// Files of models on this node, those in use included.
    pub models: Bytes,
    /// Files of one task.
    pub files: u64,
    /// Open files per process.
    pub open_files: u64,
    /// Tasks known at one time.
    pub tasks: usize,
    /// How long logs of tasks that are gone are kept.
    pub log_age: Duration,
    /// How many bytes of them.
    pub log_bytes: Bytes,
    /// Longest pause between two dials.
    pub longest_pause: Duration,
    /// How long a stop of the agent may take.
    pub shutdown: Duration,
}

impl Default for NodeLimits {
    fn default() -> Self {
        Self {
            prepare: Duration::from_secs(600),
            finish: Duration::from_secs(300),
            stop_grace: Duration::from_secs(10),
            kill_patience: Duration::from_secs(10),
            grant: Duration::from_secs(10),
            pids: 1024,
            log: Bytes::mib(64),
            work: Bytes::mib(16 << 10),
            stage: Bytes::mib(64 << 10),
            outputs: Bytes::mib(16 << 10),
            models: Bytes::mib(64 << 10),
            files: 100_000,
            open_files: 4096,
            tasks: 4096,
            log_age: Duration::from_secs(24 * 3600),
            log_bytes: Bytes::mib(1 << 10),
            longest_pause: Duration::from_secs(10),
            shutdown: Duration::from_secs(10),
        }
    }
}

impl NodeConfig {
    /// A node with defaults: plaintext, an enforced sandbox, windows of 10 s, users from 200,000 on.
    #[must_use]
    pub fn new(data: PathBuf, name: Name, backend: Arc<dyn Backend>, program: PathBuf) -> Self {
        Self {
            data,
            name,
            controllers: Vec::new(),
            advertise: None,
            tls: no_tls(),
            depots: vault_depots(no_tls()),
            backend,
            program,
            sandbox: Sandbox { mode: SandboxMode::Enforced, read_only_binds: Vec::new(), tmp: Bytes::mib(64) },
            uids: 200_000..260_000,
            secrets: None,
            window: Nanos::from_secs(10),
            host_cores: CoreMilli::ZERO,
            host_memory: Bytes::ZERO,
            limits: NodeLimits::default(),
            metrics: Arc::default(),
        }
    }
}

/// The usual way to a vault: over the network, with this TLS.
#[must_use]
pub fn vault_depots(tls: TlsSource) -> DepotSource {
    let rooms = Rooms::new();
    Arc::new(move |address| {
        let client = VaultClient::new(address, tls.clone(), ClientLimits::default());
        Arc::new(VaultDepot::within(client, rooms.clone()))
    })
}

impl fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeConfig")
            .field("data", &self.data)
            .field("name", &self.name)
            .field("controllers", &self.controllers)
            .field("program", &self.program)
            .field("sandbox", &self.sandbox)
            .field("uids", &self.uids)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
