//! One `sluice up` in a folder of its own: started, hurt in chosen places, and taken away without a trace.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;

use crate::address::quiet_address;
use crate::cli::Cli;
use crate::client::Client;
use crate::keeper::{Keeper, Kept};
use crate::{binary, groups, processes, wait_for};

/// How long a system may take to come up or a process to die.
const READY: Duration = Duration::from_secs(90);
const DIES: Duration = Duration::from_secs(20);

/// How a system is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Sites, named a, b …
    pub sites: u16,
    /// Nodes per site.
    pub nodes: u16,
    /// Length of a metering window.
    pub window: Duration,
    /// A node silent for longer is lost.
    pub loss_timeout: Duration,
    /// Whether `up` leaves parts that end as they are.
    pub no_restart: bool,
    /// Where the controller listens; default: a free port of the loopback.
    pub listen: Option<SocketAddr>,
    /// Where models are served; default: a free port of the loopback.
    pub gateway: Option<SocketAddr>,
    /// Thousandths of each core that nodes do not sell; default: as `up` has it.
    pub system_milli: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sites: 2,
            nodes: 1,
            window: Duration::from_secs(1),
            loss_timeout: Duration::from_secs(4),
            no_restart: false,
            listen: None,
            gateway: None,
            system_milli: None,
        }
    }
}

/// What a part was started with, first the program.
#[derive(Debug, Clone)]
pub struct Launch(pub(crate) Vec<String>);

impl Launch {
    /// What follows a flag.
    pub(crate) fn after(&self, flag: &str) -> Option<&str> {
        let place = self.0.iter().position(|word| word == flag)?;
        self.0.get(place + 1).map(String::as_str)
    }

    /// With one more word.
    #[must_use]
    pub fn and(mut self, word: &str) -> Self {
        self.0.push(word.to_owned());
        self
    }

    /// With another value after a flag.
    ///
    /// # Errors
    /// It has no such flag.
    pub fn with(mut self, flag: &str, value: &str) -> anyhow::Result<Self> {
        let place = self.0.iter().position(|word| word == flag).with_context(|| format!("no {flag}"))?;
        let known = self.0.get_mut(place + 1).with_context(|| format!("nothing after {flag}"))?;
        value.clone_into(known);
        Ok(self)
    }
}

/// A running system.
#[derive(Debug)]
pub struct System {
    folder: PathBuf,
    /// Its data folder.
    pub data: PathBuf,
    /// Where its controller listens.
    pub address: SocketAddr,
    gateway: SocketAddr,
    options: Options,
    program: PathBuf,
    up: Option<Child>,
    /// Parts that were started by this program, by name.
    own: BTreeMap<String, (Child, Launch)>,
    keeper: Option<Keeper>,
    runtime: tokio::runtime::Runtime,
    keep_folder: bool,
}

impl AsMut<Self> for System {
    fn as_mut(&mut self) -> &mut Self {
        self
    }
}

impl System {
    /// Starts a system and waits until it is ready.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(name: &str, options: Options) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix(&format!("e2e-{name}-")).tempdir_in("/tmp")?.keep();
        let data = folder.join("data");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let mut system = Self {
            keeper: Some(Keeper::start(&data)?),
            program: binary::sluice_binary()?,
            address: match options.listen {
                Some(address) => address,
                None => quiet_address()?,
            },
            gateway: match options.gateway {
                Some(address) => address,
                None => quiet_address()?,
            },
            folder,
            data,
            options,
            up: None,
            own: BTreeMap::new(),
            runtime,
            keep_folder: false,
        };
        system.start_up()?;
        Ok(system)
    }

    /// Starts `up`, again or for the first time, and waits until it says that it is ready.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_up(&mut self) -> anyhow::Result<()> {
        let log = self.folder.join("up.log");
        let file = File::create(&log)?;
        let millis = |span: Duration| format!("{}ms", span.as_millis());
        let mut command = Command::new(&self.program);
        command.arg("--data").arg(&self.data).arg("up");
        command.args(["--listen", &self.address.to_string(), "--gateway", &self.gateway.to_string()]);
        command.args(["--window", &millis(self.options.window)]);
        command.args(["--loss-timeout", &millis(self.options.loss_timeout)]);
        command.args(["--sites", &self.options.sites.to_string(), "--nodes", &self.options.nodes.to_string()]);
        if let Some(milli) = self.options.system_milli {
            command.args(["--system-milli", &milli.to_string()]);
        }
        if self.options.no_restart {
            command.arg("--no-restart");
        }
        let child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn();
        let child = self.up.insert(child.context("cannot start sluice up")?);
        let ready = wait_for("sluice up", READY, || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            if let Some(status) = child.try_wait()? {
                anyhow::bail!("sluice up ended ({status}): {text}");
            }
            Ok(text.contains("next: sluice").then_some(()))
        });
        ready.with_context(|| fs::read_to_string(&log).unwrap_or_default())
    }

    /// The command line as the admin.
    #[must_use]
    pub fn cli(&self) -> Cli {
        Cli::new(&self.program, &self.data)
    }

    /// The gRPC door as the admin.
    ///
    /// # Errors
    /// The system was never up.
    pub fn client(&self) -> anyhow::Result<Client> {
        let _inside = self.runtime.enter();
        Client::new(&self.data)
    }

    /// Waits for something asynchronous.
    pub fn block<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Where asynchronous work of this system runs.
    #[must_use]
    pub fn runtime(&self) -> &tokio::runtime::Runtime {
        &self.runtime
    }

    /// The evidence so far.
    #[must_use]
    pub fn kept(&self) -> Kept {
        self.keeper.as_ref().map_or_else(|| Kept::beside(&self.data), |keeper| keeper.kept().clone())
    }

    /// The program under test.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Folder for files of the test.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        &self.folder
    }

    /// Leaves the folder where it is at the end, to be looked at.
    pub fn keep_folder(&mut self) {
        self.keep_folder = true;
    }

    /// Where models are served.
    #[must_use]
    pub const fn gateway(&self) -> SocketAddr {
        self.gateway
    }

    /// The control group of a node (SITE/NODE).
    ///
    /// # Errors
    /// It has none yet.
    pub(crate) fn group_of(&self, node: &str) -> anyhow::Result<String> {
        group_name(&self.node_folder(node))
    }

    /// The process of a part, such as `controller`, `node-a1` or `vault-b`.
    ///
    /// # Errors
    /// There is none.
    pub fn pid_of(&self, part: &str) -> anyhow::Result<i32> {
        if let Some((child, _)) = self.own.get(part) {
            return Ok(i32::try_from(child.id())?);
        }
        let file = self.data.join("processes").join(format!("{part}.pid"));
        let text = fs::read_to_string(&file).with_context(|| format!("no process file of {part}"))?;
        text.trim().parse().with_context(|| format!("the process number of {part}"))
    }

    /// Kills one part at once and waits until it is dead. Returns what it was started with.
    ///
    /// # Errors
    /// There is none, or it does not die.
    pub fn kill_part(&mut self, part: &str) -> anyhow::Result<Launch> {
        let pid = self.pid_of(part)?;
        let words = processes::arguments_of(pid)?;
        anyhow::ensure!(!words.is_empty(), "{part} ended by itself; see its log in {}", self.data.display());
        processes::signal(pid, Signal::SIGKILL);
        let own = self.own.remove(part);
        let launch = match own {
            Some((mut child, launch)) => {
                child.wait()?;
                launch
            }
            // It ends with `up` no more, and begins with the same file.
            None => {
                let rest = words.into_iter().skip(1).filter(|word| word != "--with-parent");
                Launch(std::iter::once(self.program.display().to_string()).chain(rest).collect())
            }
        };
        wait_for("a death", DIES, || Ok((!processes::is_alive(pid)).then_some(())))?;
        Ok(launch)
    }

    /// Starts a part, also in place of one that was killed, without `up`'s pause between restarts.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn launch(&mut self, part: &str, launch: Launch) -> anyhow::Result<()> {
        let log = self.data.join("processes").join(format!("{part}.log"));
        let log = File::options().create(true).append(true).open(log)?;
        let (program, arguments) = launch.0.split_first().context("a program")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {part}"))?;
        self.own.insert(part.to_owned(), (child, launch));
        Ok(())
    }

    /// Kills `up` at once; its parts end with it, jobs go on.
    ///
    /// # Errors
    /// It does not die.
    pub fn kill_up(&mut self) -> anyhow::Result<()> {
        let parts = self.parts();
        if let Some(mut up) = self.up.take() {
            up.kill()?;
            up.wait()?;
        }
        let dead = || parts.iter().all(|pid| !processes::is_alive(*pid));
        wait_for("the end of up's parts", DIES, || Ok(dead().then_some(())))
    }

    fn parts(&self) -> Vec<i32> {
        let files = fs::read_dir(self.data.join("processes")).into_iter().flatten().flatten();
        let files = files.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|kind| kind == "pid"));
        let text = files.filter_map(|path| fs::read_to_string(path).ok());
        text.filter_map(|text| text.trim().parse().ok()).collect()
    }

    /// Kills a whole node (SITE/NODE) at once: its agent, its supervisors and all processes of its jobs. To be used where
    /// `up` restarts nothing; the node is dead for good.
    ///
    /// # Errors
    /// Something of it does not die.
    pub fn kill_node(&mut self, node: &str) -> anyhow::Result<Launch> {
        let launch = self.cut_power(node)?;
        self.kept().note_dead(node);
        Ok(launch)
    }

    /// As [`Self::kill_node`], but the node may be started again: its disk is whole.
    ///
    /// # Errors
    /// As [`Self::kill_node`].
    pub fn cut_power(&mut self, node: &str) -> anyhow::Result<Launch> {
        let _before = self.kept();
        let part = format!("node-{}", node.rsplit('/').next().unwrap_or(node));
        let folder = self.node_folder(node);
        let launch = self.kill_part(&part)?;
        let group = group_name(&folder)?;
        wait_for("the death of a node", DIES, || {
            let mut left = processes::started_in(&folder);
            left.extend(groups::processes_of(&group));
            left.retain(|pid| processes::is_alive(*pid));
            left.iter().for_each(|pid| processes::signal(*pid, Signal::SIGKILL));
            Ok(left.is_empty().then_some(()))
        })?;
        groups::remove_of(&group);
        Ok(launch)
    }

    /// The folder of a node (SITE/NODE).
    #[must_use]
    pub fn node_folder(&self, node: &str) -> PathBuf {
        self.data.join("sites").join(node)
    }

    /// Stops (`SIGSTOP`) or continues the agents and the vault of a site: nobody hears of it, its jobs run on.
    ///
    /// # Errors
    /// A part of it is not there.
    pub fn signal_site(&self, site: &str, what: Signal) -> anyhow::Result<()> {
        for node in 1..=self.options.nodes {
            processes::signal(self.pid_of(&format!("node-{site}{node}"))?, what);
        }
        processes::signal(self.pid_of(&format!("vault-{site}"))?, what);
        Ok(())
    }

    /// Figures that a part serves for Prometheus, such as `controller` or `sites/a/a1`, by name.
    ///
    /// # Errors
    /// It serves none.
    pub fn metrics(&self, part: &str) -> anyhow::Result<BTreeMap<String, u64>> {
        let text = self.metrics_page(part)?;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let pairs = lines.filter_map(|line| line.rsplit_once(' '));
        Ok(pairs.filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?))).collect())
    }

    /// All that a part says to Prometheus.
    ///
    /// # Errors
    /// It serves nothing.
    pub fn metrics_page(&self, part: &str) -> anyhow::Result<String> {
        use std::io::{Read as _, Write as _};
        let file = self.data.join(part).join("metrics.addr");
        let address = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let mut stream = std::net::TcpStream::connect(address.trim())?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Words of a part's log that must never be there: panics and broken invariants.
    #[must_use]
    pub fn alarms(&self) -> Vec<String> {
        let files = fs::read_dir(self.data.join("processes")).into_iter().flatten().flatten();
        let logs = files.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|kind| kind == "log"));
        let bad = |line: &&str| ["panicked", "invariant", "audit"].iter().any(|word| line.contains(word));
        let lines = logs.map(|path| fs::read_to_string(path).unwrap_or_default());
        lines.flat_map(|text| text.lines().filter(bad).map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    /// Ends everything, and removes what it left on the host.
    fn clear(&mut self) {
        let groups: Vec<_> = self.node_folders().iter().filter_map(|folder| group_name(folder).ok()).collect();
        if let Some(mut up) = self.up.take() {
            let _ = up.kill();
            let _ = up.wait();
        }
        for (child, _) in self.own.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let gone = wait_for("the end of a system", DIES, || {
            let mut left = processes::started_in(&self.data);
            left.extend(groups.iter().flat_map(|group| groups::processes_of(group)));
            left.retain(|pid| processes::is_alive(*pid));
            left.iter().for_each(|pid| processes::signal(*pid, Signal::SIGKILL));
            Ok(left.is_empty().then_some(()))
        });
        if let Err(error) = gone {
            eprintln!("{error:#}");
        }
        groups.iter().for_each(|group| groups::remove_of(group));
    }

    fn node_folders(&self) -> Vec<PathBuf> {
        let below = |folder: &Path| -> Vec<PathBuf> {
            fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
        };
        below(&self.data.join("sites")).iter().flat_map(|site| below(site)).collect()
    }
}

impl Drop for System {
    fn drop(&mut self) {
        self.clear();
        self.keeper = None;
        if std::thread::panicking() || self.keep_folder || std::env::var_os("SLUICE_E2E_KEEP").is_some() {
            eprintln!("kept for a look: {}", self.folder.display());
        } else if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{} cannot be removed: {error}", self.folder.display());
        }
    }
}

/// The name of a node's control group: its own, and its id.
pub(crate) fn group_name(folder: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(folder.join("identity/host.json")).context("the identity of a node")?;
    let value: serde_json::Value = serde_json::from_str(&text)?;
    let id = value["id"].as_str().and_then(|id| id.strip_prefix("node-")).context("the id of a node")?;
    Ok(format!("{}-{id}", folder.file_name().unwrap_or_default().to_string_lossy()))
}
