//! A whole system under test: `sluice up` in a data folder, driven by the `sluice` command line as a user would.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::Value;

use crate::run;

/// How long a system may take to come up, and to stop with all its jobs.
const UP: Duration = Duration::from_secs(90);
const DOWN: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// An amount of money.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Money {
    pub(crate) text: String,
}

/// A task of a job.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Task {
    pub(crate) node: String,
}

/// A move of a job.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Migration {
    pub(crate) phase: String,
    pub(crate) step: u64,
}

/// What `sluice get jobs` says of a job.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) reason: Option<String>,
    #[serde(default)]
    pub(crate) message: Option<String>,
    #[serde(default)]
    pub(crate) site: Option<String>,
    pub(crate) step: u64,
    pub(crate) attempts: u32,
    pub(crate) metrics: std::collections::BTreeMap<String, f64>,
    pub(crate) spent: Money,
    pub(crate) credited: Money,
    pub(crate) tasks: Vec<Task>,
    #[serde(default)]
    pub(crate) migration: Option<Migration>,
}

impl Job {
    pub(crate) fn ended(&self) -> bool {
        matches!(self.state.as_str(), "SUCCEEDED" | "FAILED" | "CANCELLED")
    }

    /// Why it did not succeed.
    pub(crate) fn why(&self) -> String {
        let told = [self.reason.as_deref(), self.message.as_deref()].into_iter().flatten().collect::<Vec<_>>();
        format!("{} is {} {}", self.id, self.state, told.join(": "))
    }

    /// The name of the site it is at.
    pub(crate) fn at(&self) -> &str {
        self.site.as_deref().map_or("", |site| site.trim_start_matches("sites/"))
    }

    /// The name of the node of its first task.
    pub(crate) fn node(&self) -> Option<&str> {
        self.tasks.first().and_then(|task| task.node.rsplit('/').next())
    }
}

/// How a system is started.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) program: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) listen: SocketAddr,
    /// More flags of `sluice up`.
    pub(crate) flags: Vec<String>,
}

/// A running system.
#[derive(Debug)]
pub(crate) struct System {
    options: Options,
    up: Child,
}

/// What was killed with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Killed {
    pub(crate) processes: usize,
}

/// Where the log of `sluice up` is.
fn log_of(data: &Path) -> PathBuf {
    data.join("up.log")
}

/// Where the process id of `sluice up` is.
pub(crate) fn pid_of(data: &Path) -> PathBuf {
    data.join("up.pid")
}

impl System {
    /// Starts a system and waits until it is up. It outlives this program.
    pub(crate) fn start(options: Options) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&options.data).context("cannot make the data folder")?;
        let log = File::create(log_of(&options.data)).context("cannot make the log of `sluice up`")?;
        // A session of its own: closing the terminal must not end it.
        let mut command = Command::new("setsid");
        command.arg(&options.program).arg("up").arg("--data").arg(&options.data);
        command.arg("--listen").arg(options.listen.to_string()).args(&options.flags);
        let again = log.try_clone().context("cannot open the log of `sluice up` twice")?;
        let up = command.stdin(Stdio::null()).stdout(log).stderr(again).spawn();
        let up = up.with_context(|| format!("cannot start {}", run::shown(&command)))?;
        std::fs::write(pid_of(&options.data), up.id().to_string()).context("cannot write the pid of `sluice up`")?;
        let mut system = Self { options, up };
        match system.wait_up() {
            Ok(()) => Ok(system),
            Err(error) => {
                let _ = system.signal(Signal::SIGKILL);
                let _ = system.up.wait();
                Err(error)
            }
        }
    }

    fn wait_up(&mut self) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let said = std::fs::read_to_string(log_of(&self.options.data)).unwrap_or_default();
            if said.contains("sluice is up") {
                return Ok(());
            }
            if let Some(status) = self.up.try_wait().context("cannot look at `sluice up`")? {
                anyhow::bail!("`sluice up` ended ({status}): {}", said.trim());
            }
            anyhow::ensure!(begin.elapsed() < UP, "`sluice up` is not up after {UP:?}: {}", said.trim());
            std::thread::sleep(PAUSE);
        }
    }

    /// What `sluice up` has printed.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(log_of(&self.options.data)).unwrap_or_default()
    }

    /// Where models are served.
    pub(crate) fn gateway(&self) -> anyhow::Result<SocketAddr> {
        let file = self.options.data.join("controller/gateway.addr");
        let text = std::fs::read_to_string(file).context("models are not served")?;
        text.trim().parse().context("an address")
    }

    /// The process id of `sluice up`.
    pub(crate) fn pid(&self) -> u32 {
        self.up.id()
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(Pid::from_raw(i32::try_from(self.up.id()).context("a process id")?), signal).context("cannot signal")
    }

    /// Stops it cleanly; kills it where that takes too long.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGTERM)?;
        let begin = Instant::now();
        while self.up.try_wait().context("cannot look at `sluice up`")?.is_none() {
            if begin.elapsed() > DOWN {
                self.signal(Signal::SIGKILL)?;
                self.up.wait().context("cannot wait for `sluice up`")?;
                anyhow::bail!("`sluice up` did not stop within {DOWN:?}");
            }
            std::thread::sleep(PAUSE);
        }
        let _ = std::fs::remove_file(pid_of(&self.options.data));
        Ok(())
    }

    /// Ends it whatever it does, with every process of its folder.
    pub(crate) fn destroy(mut self) {
        for signal in [Signal::SIGTERM, Signal::SIGTERM] {
            let _ = self.signal(signal);
            std::thread::sleep(PAUSE);
        }
        let begin = Instant::now();
        while matches!(self.up.try_wait(), Ok(None)) && begin.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(PAUSE);
        }
        let _ = self.signal(Signal::SIGKILL);
        let _ = self.up.wait();
        let _ = kill_all(&self.options.data, |_| true);
    }

    /// The `sluice` command against this system.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.options.program);
        command.arg("--data").arg(&self.options.data);
        for name in ["SLUICE_SERVER", "SLUICE_CA", "SLUICE_KEY", "SLUICE_TENANT", "SLUICE_PROJECT"] {
            command.env_remove(name);
        }
        command
    }

    /// A command's text for people.
    pub(crate) fn text(&self, arguments: &[&str]) -> anyhow::Result<String> {
        run::output(self.command().args(arguments))
    }

    /// A command's JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let text = run::output(self.command().args(["-q", "-o", "json"]).args(arguments))?;
        serde_json::from_str(&text).with_context(|| format!("`sluice {}` printed no JSON", arguments.join(" ")))
    }

    /// Submits a job file.
    pub(crate) fn submit(&self, file: &Path) -> anyhow::Result<Job> {
        let file = file.to_str().context("a path that is not text")?;
        job(self.json(&["submit", "-f", file])?)
    }

    /// A job as it is now.
    pub(crate) fn job(&self, id: &str) -> anyhow::Result<Job> {
        job(self.json(&["get", "jobs", id])?)
    }

    /// Starts to move a job.
    pub(crate) fn migrate(&self, id: &str, site: &str) -> anyhow::Result<Job> {
        job(self.json(&["migrate", id, "--to", site])?)
    }

    /// Looks at a job until `done` says so; it is shown each look.
    pub(crate) fn watch(
        &self,
        id: &str,
        patience: Duration,
        mut done: impl FnMut(&Job) -> bool,
    ) -> anyhow::Result<Job> {
        let begin = Instant::now();
        loop {
            let job = self.job(id)?;
            if done(&job) {
                return Ok(job);
            }
            anyhow::ensure!(!job.ended(), "{}", job.why());
            anyhow::ensure!(begin.elapsed() < patience, "{} after {patience:?}, at step {}", job.why(), job.step);
            std::thread::sleep(PAUSE);
        }
    }

    /// Kills a whole node as a power cut would: its agent, its supervisors and all processes of its jobs.
    pub(crate) fn kill_node(&self, node: &str) -> anyhow::Result<Killed> {
        let pid = self.options.data.join(format!("processes/node-{node}.pid"));
        let agent = std::fs::read_to_string(&pid).with_context(|| format!("no process id of node {node}"))?;
        let agent: i32 = agent.trim().parse().context("a process id")?;
        // The agent first, so that it reports nothing of what follows.
        kill(Pid::from_raw(agent), Signal::SIGKILL).context("cannot kill the agent")?;
        let site = node.trim_end_matches(|c: char| c.is_ascii_digit());
        let folder = self.options.data.join("sites").join(site).join(node);
        let killed = kill_all(&folder, |words| words.iter().any(|word| word == "supervise"))?;
        Ok(Killed { processes: killed + 1 })
    }
}

fn job(value: Value) -> anyhow::Result<Job> {
    let value = match value.get("items") {
        Some(items) => items.get(0).cloned().context("an empty list of jobs")?,
        None => value,
    };
    serde_json::from_value(value).context("not a job")
}

/// Kills every process that names `folder` on its command line and that `wanted` selects, and all its descendants.
/// Children of a process that is killed lose their parent, so the whole tree is found before anything is killed.
fn kill_all(folder: &Path, wanted: impl Fn(&[String]) -> bool) -> anyhow::Result<usize> {
    let folder = folder.to_string_lossy().into_owned();
    let mut victims = BTreeSet::new();
    // Trees grow while they are looked at; a second look finds what the first one missed.
    for _ in 0..3 {
        let processes = processes()?;
        for process in &processes {
            if process.words.iter().any(|word| word.contains(&folder)) && wanted(&process.words) {
                victims.insert(process.pid);
            }
        }
        while let Some(more) = processes.iter().find(|one| victims.contains(&one.parent) && !victims.contains(&one.pid))
        {
            victims.insert(more.pid);
        }
        for pid in &victims {
            // It may have ended with its parent.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
    }
    Ok(victims.len())
}

struct Process {
    pid: i32,
    parent: i32,
    words: Vec<String>,
}

fn processes() -> anyhow::Result<Vec<Process>> {
    let mut found = Vec::new();
    let own = i32::try_from(std::process::id()).context("a process id")?;
    for entry in std::fs::read_dir("/proc").context("cannot list processes")? {
        let entry = entry.context("cannot list processes")?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let line = read("cmdline");
        let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        // After the name in parentheses, which may hold anything: the state, then the parent.
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
        let parent = after.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        if pid != own {
            found.push(Process { pid, parent, words });
        }
    }
    Ok(found)
}

/// Whether the process id in a data folder's file is that of a running `sluice up` in it.
pub(crate) fn running(data: &Path) -> Option<i32> {
    let pid: i32 = std::fs::read_to_string(pid_of(data)).ok()?.trim().parse().ok()?;
    let data = data.to_string_lossy();
    let found = processes().ok()?.into_iter().find(|process| process.pid == pid)?;
    let is_up = found.words.iter().any(|word| word == "up") && found.words.iter().any(|word| *word == data);
    is_up.then_some(pid)
}

/// Stops a `sluice up` that an earlier program left running.
pub(crate) fn stop_running(pid: i32) -> anyhow::Result<()> {
    let up = Pid::from_raw(pid);
    kill(up, Signal::SIGTERM).context("cannot stop the system that runs")?;
    let begin = Instant::now();
    while kill(up, None).is_ok() {
        anyhow::ensure!(begin.elapsed() < DOWN, "the system that runs (process {pid}) does not stop");
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> anyhow::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("no free port")?;
    listener.local_addr().context("no free port")
}

/// Why a system that enforces slices cannot run here; `None` where it can.
pub(crate) fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root, so slices cannot be enforced".to_owned());
    }
    for program in ["bwrap", "setpriv", "setsid"] {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|folder| folder.join(program).exists()) {
            return Some(format!("{program} is not installed (scripts/setup.sh installs it)"));
        }
    }
    None
}
