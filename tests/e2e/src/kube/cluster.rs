//! The parts of a test cluster: started in order, killed one by one, ended together.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;

use super::access::Access;
use super::{Kubectl, User, binary, install};
use crate::address::quiet_listener;
use crate::{processes, wait_for};

/// How long a part may take to serve, and to end. Several clusters may come up side by side on a machine that is busy
/// besides; one that ended while it came up is not waited for.
const READY: Duration = Duration::from_secs(600);
const ENDS: Duration = Duration::from_secs(30);

/// A part of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Where the API server keeps its objects.
    Etcd,
    /// The API server.
    Api,
    /// Namespaces that go, objects without owners, roles that are made of others.
    Controllers,
}

impl Part {
    const ALL: [Self; 3] = [Self::Etcd, Self::Api, Self::Controllers];

    const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Api => "kube-apiserver",
            Self::Controllers => "kube-controller-manager",
        }
    }
}

/// A control plane in a folder.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    program: PathBuf,
    access: Access,
    store: u16,
    peers: u16,
    api: u16,
    /// Whether the parts end with this program and the folder goes with them.
    own: bool,
}

impl Cluster {
    /// Starts one in a folder of its own that ends with this value, with our kinds, roles and policies applied.
    ///
    /// # Errors
    /// Kubernetes is not built, or does not come up.
    pub fn start(name: &str) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix(&format!("kube-{name}-")).tempdir_in("/tmp")?.keep();
        Self::start_in(&folder, true)
    }

    /// The cluster that all tests of this program have together; it ends with the last that uses it.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn shared() -> anyhow::Result<Arc<Self>> {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = shared.upgrade() {
            return Ok(cluster);
        }
        let cluster = Arc::new(Self::start("kube")?);
        *shared = Arc::downgrade(&cluster);
        Ok(cluster)
    }

    fn start_in(folder: &Path, own: bool) -> anyhow::Result<Self> {
        let program = binary().map_err(anyhow::Error::msg)?;
        // All three at once: a port that was given back could be given out again.
        let held = (quiet_listener()?, quiet_listener()?, quiet_listener()?);
        let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
        let (store, peers, api) = (port(&held.0)?, port(&held.1)?, port(&held.2)?);
        drop(held);
        let access = Access::make(folder, api)?;
        let cluster = Self { folder: folder.to_owned(), program, access, store, peers, api, own };
        cluster.launch(Part::Etcd)?;
        cluster.launch(Part::Api)?;
        cluster.ready()?;
        cluster.launch(Part::Controllers)?;
        install(&cluster.kubectl(User::Admin))?;
        Ok(cluster)
    }

    /// What a user types.
    #[must_use]
    pub fn kubectl(&self, user: User) -> Kubectl {
        Kubectl { program: self.program.clone(), kubeconfig: self.kubeconfig(user), home: self.folder.clone() }
    }

    /// What a user's programs connect with.
    #[must_use]
    pub fn kubeconfig(&self, user: User) -> PathBuf {
        self.access.kubeconfig(user)
    }

    /// Folder for files of the test.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Waits until the API server serves.
    ///
    /// # Errors
    /// It does not.
    pub fn ready(&self) -> anyhow::Result<()> {
        let kubectl = self.kubectl(User::Admin);
        let ready = wait_for("the API server", READY, || {
            if !processes::is_alive(self.pid(Part::Api)?) {
                anyhow::bail!("the API server ended");
            }
            // Cheap until somebody listens: kubectl itself takes a while to start.
            if std::net::TcpStream::connect(("127.0.0.1", self.api)).is_err() {
                return Ok(None);
            }
            Ok((kubectl.run(&["get", "--raw", "/readyz"])?.code == 0).then_some(()))
        });
        ready.with_context(|| self.log_end(Part::Api))
    }

    fn log_end(&self, part: Part) -> String {
        let text = fs::read_to_string(self.file(part, "log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn file(&self, part: Part, kind: &str) -> PathBuf {
        self.folder.join(format!("{}.{kind}", part.name()))
    }

    fn arguments(&self, part: Part) -> Vec<String> {
        let at = |name: &str| self.folder.join(name).display().to_string();
        let store = format!("http://127.0.0.1:{}", self.store);
        let words: Vec<String> = match part {
            Part::Etcd => vec![
                format!("--data-dir={}", at("etcd")),
                format!("--listen-client-urls={store}"),
                format!("--advertise-client-urls={store}"),
                format!("--listen-peer-urls=http://127.0.0.1:{}", self.peers),
                format!("--initial-advertise-peer-urls=http://127.0.0.1:{}", self.peers),
                format!("--initial-cluster=default=http://127.0.0.1:{}", self.peers),
                // What a power failure takes is no loss here.
                "--unsafe-no-fsync".to_owned(),
                "--log-level=warn".to_owned(),
            ],
            Part::Api => vec![
                format!("--etcd-servers={store}"),
                format!("--secure-port={}", self.api),
                "--bind-address=127.0.0.1".to_owned(),
                "--advertise-address=127.0.0.1".to_owned(),
                "--endpoint-reconciler-type=none".to_owned(),
                "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
                "--authorization-mode=RBAC".to_owned(),
                format!("--tls-cert-file={}", at("server.pem")),
                format!("--tls-private-key-file={}", at("server.key")),
                format!("--token-auth-file={}", at("tokens.csv")),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                format!("--service-account-key-file={}", at("accounts.pub")),
                format!("--service-account-signing-key-file={}", at("accounts.key")),
                "--profiling=false".to_owned(),
            ],
            Part::Controllers => vec![
                format!("--kubeconfig={}", self.kubeconfig(User::Admin).display()),
                format!("--service-account-private-key-file={}", at("accounts.key")),
                "--controllers=namespace-controller,garbage-collector-controller,clusterrole-aggregation-controller,\
                 serviceaccount-controller"
                    .to_owned(),
                "--leader-elect=false".to_owned(),
                "--secure-port=0".to_owned(),
                "--profiling=false".to_owned(),
            ],
        };
        std::iter::once(part.name().to_owned()).chain(words).collect()
    }

    /// Starts a part, for the first time or after it was killed.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn launch(&self, part: Part) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.file(part, "log"))?;
        let mut command = if self.own {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--"]).arg(&self.program);
            command
        } else {
            Command::new(&self.program)
        };
        command.args(self.arguments(part)).current_dir(&self.folder);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let pid_file = self.file(part, "pid");
        // The kernel counts the starting thread as the parent: this one waits as long as its child lives.
        let (told, hear) = std::sync::mpsc::channel();
        std::thread::Builder::new().name(part.name().to_owned()).spawn(move || {
            let started = command.spawn().and_then(|child| {
                fs::write(&pid_file, child.id().to_string())?;
                Ok(child)
            });
            match started {
                Err(error) => drop(told.send(Err(error))),
                Ok(mut child) => {
                    drop(told.send(Ok(())));
                    let _ended = child.wait();
                }
            }
        })?;
        hear.recv().context("nobody started it")?.with_context(|| format!("cannot start {}", part.name()))
    }

    fn pid(&self, part: Part) -> anyhow::Result<i32> {
        read_pid(&self.file(part, "pid"))
    }

    /// Kills a part at once and waits until it is dead.
    ///
    /// # Errors
    /// It is not there, or does not die.
    pub fn kill(&self, part: Part) -> anyhow::Result<()> {
        let pid = self.pid(part)?;
        processes::signal(pid, Signal::SIGKILL);
        wait_for("a death", ENDS, || Ok((!processes::is_alive(pid)).then_some(())))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.own {
            return;
        }
        for part in Part::ALL.into_iter().rev() {
            // One that is dead already is what is wanted.
            let _dead = self.kill(part);
        }
        if std::env::var_os("SLUICE_E2E_KEEP").is_none() && !std::thread::panicking() {
            let _gone = fs::remove_dir_all(&self.folder);
        }
    }
}

fn read_pid(file: &Path) -> anyhow::Result<i32> {
    let text = fs::read_to_string(file).with_context(|| format!("no {}", file.display()))?;
    text.trim().parse().with_context(|| file.display().to_string())
}

/// Starts a cluster in `folder` that outlives this program.
///
/// # Errors
/// There is one already, or it does not come up.
pub fn up(folder: &Path) -> anyhow::Result<Cluster> {
    anyhow::ensure!(!folder.join("etcd.pid").exists(), "there is one in {} already: `down` first", folder.display());
    fs::create_dir_all(folder)?;
    Cluster::start_in(folder, false)
}

/// Ends the cluster in `folder`, by the numbers of its processes, and removes the folder.
///
/// # Errors
/// There is none, or a process does not end.
pub fn down(folder: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(folder.join("etcd.pid").exists(), "there is no cluster in {}", folder.display());
    for part in Part::ALL.into_iter().rev() {
        let Ok(pid) = read_pid(&folder.join(format!("{}.pid", part.name()))) else { continue };
        // The number may be somebody else's by now.
        let words = processes::arguments_of(pid).unwrap_or_default();
        if !words.iter().any(|word| word.contains(&folder.display().to_string())) {
            continue;
        }
        processes::signal(pid, Signal::SIGTERM);
        let ended = wait_for("an end", ENDS, || Ok((!processes::is_alive(pid)).then_some(())));
        if ended.is_err() {
            processes::signal(pid, Signal::SIGKILL);
        }
    }
    fs::remove_dir_all(folder).with_context(|| folder.display().to_string())
}
