//! What the supervisor's tests share: a node with real control groups, and attempts to run on it.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test uses its part; a test fails by panicking"
)]

pub mod session;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sluice_device::{
    Backend, CoreShare, CpuBackend, CpuConfig, Enforcement, LimitMode, SliceGrant, TaskGroup, measure,
};
use sluice_node::supervisor::{
    self, CheckpointMode, CheckpointPolicy, ExitRecord, Folder, HostLayout, LaunchSpec, LogRecord, Sandbox,
    SandboxMode, Status, SupervisorClient, TaskKind, TaskLimits,
};
use sluice_types::{AttemptId, Bytes, CoreMilli, Generation, JobId, MilliGpu, Nanos, NetworkMode};

static COUNT: AtomicU32 = AtomicU32::new(1);

/// A node of one core, with its groups.
pub struct Node {
    pub backend: CpuBackend,
    pub root: tempfile::TempDir,
    mode: SandboxMode,
}

impl Node {
    /// `None`, said on the output, where this host cannot enforce.
    pub fn enforced() -> Option<Self> {
        if let Err(error) = HostLayout::probe() {
            println!("SKIPPED: {error}");
            return None;
        }
        let node = Self::open(LimitMode::Enforce, SandboxMode::Enforced);
        if let Enforcement::NotEnforceable(reason) = node.backend.enforcement() {
            println!("SKIPPED: {reason}");
            return None;
        }
        Some(node)
    }

    pub fn advisory() -> Self {
        Self::open(LimitMode::Advisory, SandboxMode::Advisory)
    }

    fn open(limit: LimitMode, mode: SandboxMode) -> Self {
        let root = tempfile::tempdir().unwrap();
        let config = CpuConfig {
            node: "n1".parse().unwrap(),
            class: "cpu".parse().unwrap(),
            cores: vec![CoreShare { core: 0, share: CoreMilli::new(900) }],
            memory: Bytes::mib(512),
            mode: limit,
            parent: format!("sluice-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)),
            state: root.path().join("groups"),
        };
        Self { backend: CpuBackend::open(config).unwrap(), root, mode }
    }

    /// An attempt of one task that runs a shell script.
    pub fn attempt(&self, script: &str) -> Attempt<'_> {
        self.attempt_of(&["/bin/sh", "-c", script])
    }

    pub fn attempt_of(&self, argv: &[&str]) -> Attempt<'_> {
        self.attempt_sized(200, argv)
    }

    /// A sandbox for sessions; nobody waits for its clients for long.
    pub fn rental(&self) -> Attempt<'_> {
        self.rental_of(48)
    }

    /// A sandbox of so many processes.
    pub fn rental_of(&self, pids: u32) -> Attempt<'_> {
        let mut attempt = self.attempt_with(Bytes::mib(192), 400, pids, &[]);
        attempt.spec.kind = TaskKind::Sandbox { patience: Nanos::from_secs(600) };
        attempt.spec.checkpoint.mode = CheckpointMode::Disabled;
        attempt
    }

    pub fn attempt_sized(&self, milli: u32, argv: &[&str]) -> Attempt<'_> {
        self.attempt_within(Bytes::mib(64), milli, argv)
    }

    /// An attempt that may break its bounds on disk first: on a memory file system what it writes is its memory too.
    pub fn attempt_on_disk(&self, argv: &[&str]) -> Attempt<'_> {
        self.attempt_within(Bytes::mib(192), 200, argv)
    }

    fn attempt_within(&self, memory: Bytes, milli: u32, argv: &[&str]) -> Attempt<'_> {
        self.attempt_with(memory, milli, 48, argv)
    }

    fn attempt_with(&self, memory: Bytes, milli: u32, pids_max: u32, argv: &[&str]) -> Attempt<'_> {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let key = format!("att-{number}");
        let grant = SliceGrant {
            key: key.clone(),
            device: 0,
            milli: MilliGpu::new(milli),
            memory,
            host_cores: CoreMilli::ZERO,
            host_memory: Bytes::ZERO,
            pids_max,
        };
        let group = self.backend.grant(&grant).unwrap().group;
        let folder = Folder::new(&self.root.path().join(&key));
        let work = folder.root().join("work");
        std::fs::create_dir_all(&work).unwrap();
        let uid = 61_000 + number;
        if self.mode == SandboxMode::Enforced {
            std::os::unix::fs::chown(&work, Some(uid), Some(uid)).unwrap();
        }
        let spec = LaunchSpec {
            job: JobId::from_raw(u64::from(number)),
            job_name: "test-job".parse().unwrap(),
            attempt: AttemptId::from_raw(u64::from(number)),
            generation: Generation::new(3),
            rank: 0,
            world_size: 1,
            rendezvous: None,
            kind: TaskKind::Command,
            model: None,
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            env: BTreeMap::new(),
            uid,
            gid: uid,
            work_dir: work,
            secrets: BTreeMap::new(),
            resume: None,
            checkpoint: CheckpointPolicy { mode: CheckpointMode::StateProvider, every_steps: None, every: None },
            group,
            network: NetworkMode::Loopback,
            sandbox: Sandbox { mode: self.mode, read_only_binds: Vec::new(), tmp: Bytes::mib(8) },
            limits: TaskLimits {
                log: Bytes::mib(1),
                work: Bytes::mib(16),
                stage: Bytes::mib(16),
                outputs: Bytes::mib(16),
                files: 1000,
                open_files: 256,
                run: None,
            },
        };
        Attempt { node: self, key, folder, spec, child: None }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for left in self.backend.leftovers().unwrap_or_default() {
            let _ = self.backend.release(&left.key, Duration::from_secs(5));
        }
        if self.backend.config().mode == LimitMode::Enforce {
            measure::remove_parent(&self.backend.config().parent);
        }
    }
}

/// One attempt of one task.
pub struct Attempt<'a> {
    node: &'a Node,
    pub key: String,
    pub folder: Folder,
    pub spec: LaunchSpec,
    child: Option<Child>,
}

impl Attempt<'_> {
    pub fn work(&self) -> PathBuf {
        self.spec.work_dir.clone()
    }

    pub fn client(&self) -> SupervisorClient {
        SupervisorClient::new(&self.folder)
    }

    pub fn group(&self) -> &TaskGroup {
        &self.spec.group
    }

    /// Starts the supervisor.
    pub fn start(&mut self) -> u32 {
        supervisor::write_json(&self.folder.launch(), &self.spec).unwrap();
        let child = supervisor::spawn(&program(), &self.folder).unwrap();
        let pid = child.id();
        self.child = Some(child);
        pid
    }

    /// Waits for the end. It gives up late: some tasks run a hundred programs, on a share of one core. So whatever is to
    /// be ended must go on for longer than that by itself.
    pub fn end(&mut self) -> ExitRecord {
        let mut child = self.child.take().unwrap();
        let give_up = Instant::now() + Duration::from_secs(300);
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > give_up {
                let _ = child.kill();
                let _ = self.spec.group.kill(Duration::from_secs(5));
                let _ = child.wait();
                panic!("it did not end\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        supervisor::read_exit(&self.folder).unwrap().unwrap_or_else(|| panic!("no exit record\n{}", self.own_log()))
    }

    pub fn run(&mut self) -> ExitRecord {
        self.start();
        self.end()
    }

    /// Kills the supervisor itself, without a chance to do anything.
    pub fn kill_supervisor(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Text of both streams, without times.
    pub fn logs(&self) -> String {
        let bytes = std::fs::read(self.folder.log()).unwrap_or_default();
        let mut text = String::new();
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let record = LogRecord::parse(line).unwrap_or_else(|| panic!("torn: {}", String::from_utf8_lossy(line)));
            text.push_str(&String::from_utf8_lossy(record.text));
            text.push('\n');
        }
        text
    }

    pub fn own_log(&self) -> String {
        std::fs::read_to_string(self.folder.own_log()).unwrap_or_default()
    }

    /// Waits until the task has made this file in its working directory.
    pub fn wait_file(&self, name: &str) {
        let give_up = Instant::now() + Duration::from_secs(20);
        while !self.work().join(name).exists() {
            if Instant::now() > give_up {
                panic!("it made no `{name}`\nlog: {}\nown: {}", self.logs(), self.own_log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks until the status is as wanted.
    pub fn wait_status(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let give_up = Instant::now() + Duration::from_secs(20);
        loop {
            let status = block_on(self.client().status());
            if let Ok(status) = &status
                && wanted(status)
            {
                return status.clone();
            }
            if Instant::now() > give_up {
                panic!("{what}: {status:?}\nlog: {}\nown: {}", self.logs(), self.own_log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = self.node.backend.release(&self.key, Duration::from_secs(5));
    }
}

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// The example that cargo builds beside the tests.
pub fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let found = tests.parent().and_then(Path::parent).unwrap().join("examples/task-supervisor");
    assert!(found.exists(), "{} is missing: cargo build -p sluice-node --examples", found.display());
    found
}
