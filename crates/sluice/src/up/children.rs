//! The processes of one `sluice up`: started, started again when they end, stopped in order.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::layout::Layout;
use super::say::note;

/// The pause before a process that ended is started again: doubles up to the bound, back to the start after a minute.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const SETTLED: Duration = Duration::from_secs(60);
/// A part's log is moved aside at a start when it is larger.
const MAX_LOG: u64 = 64 << 20;

/// What a watcher of one process is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Run,
    Stop,
    Kill,
}

struct Part {
    wish: watch::Sender<Wish>,
    watcher: JoinHandle<()>,
}

/// All parts, by name.
pub(crate) struct Children {
    program: PathBuf,
    logs: PathBuf,
    restart: bool,
    parts: BTreeMap<String, Part>,
    lost: mpsc::Receiver<String>,
    tell: mpsc::Sender<String>,
}

impl Children {
    pub(crate) fn new(layout: &Layout, restart: bool) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let logs = layout.data.join("processes");
        sluice_identity::private_folder(&logs).context("cannot make the folder of logs")?;
        let (tell, lost) = mpsc::channel(1);
        Ok(Self { program, logs, restart, parts: BTreeMap::new(), lost, tell })
    }

    /// Starts a part.
    pub(crate) fn start(&mut self, name: &str, arguments: Vec<String>) -> anyhow::Result<()> {
        let (wish, wished) = watch::channel(Wish::Run);
        let log = self.logs.join(format!("{name}.log"));
        if log.metadata().is_ok_and(|meta| meta.len() > MAX_LOG) {
            std::fs::rename(&log, log.with_extension("log.old")).context("cannot move a log aside")?;
        }
        let part = Watched {
            name: name.to_owned(),
            program: self.program.clone(),
            arguments,
            log,
            pid: self.logs.join(format!("{name}.pid")),
            restart: self.restart,
            tell: self.tell.clone(),
        };
        let first = part.spawn()?;
        let watcher = tokio::spawn(part.watch(first, wished));
        self.parts.insert(name.to_owned(), Part { wish, watcher });
        Ok(())
    }

    /// Whether a part's process is still watched.
    pub(crate) fn runs(&self, name: &str) -> bool {
        self.parts.get(name).is_some_and(|part| !part.watcher.is_finished())
    }

    /// Waits until a part ended for good.
    pub(crate) async fn lost(&mut self) -> String {
        if self.restart {
            return std::future::pending().await;
        }
        // Without restarts a killed part is what the caller wanted to see: go on without it.
        while let Some(name) = self.lost.recv().await {
            note(&format!("{name} ended"));
        }
        std::future::pending().await
    }

    /// Asks the parts whose name begins with `prefix` to stop, and kills those that do not within `patience`.
    pub(crate) async fn stop(&mut self, prefix: &str, patience: Duration) {
        let names: Vec<_> = self.parts.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
        let parts: Vec<_> = names.iter().filter_map(|name| self.parts.remove(name)).collect();
        for part in &parts {
            part.wish.send_replace(Wish::Stop);
        }
        let deadline = tokio::time::Instant::now() + patience;
        for part in parts {
            let (wish, mut watcher) = (part.wish, part.watcher);
            if tokio::time::timeout_at(deadline, &mut watcher).await.is_err() {
                wish.send_replace(Wish::Kill);
                let _ = watcher.await;
            }
        }
    }

    /// Kills every part at once.
    pub(crate) async fn kill(&mut self) {
        for (_, part) in std::mem::take(&mut self.parts) {
            part.wish.send_replace(Wish::Kill);
            let _ = part.watcher.await;
        }
    }
}

/// One part as its watcher knows it.
struct Watched {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    pid: PathBuf,
    restart: bool,
    tell: mpsc::Sender<String>,
}

impl Watched {
    fn spawn(&self) -> anyhow::Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log).context("cannot open a log")?;
        let again = log.try_clone().context("cannot open a log")?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .args(["--parent".to_owned(), std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(again)
            // A terminal's interrupt is for `up`, which stops its parts in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", self.name))?;
        let pid = child.id().map(|pid| pid.to_string()).unwrap_or_default();
        std::fs::write(&self.pid, pid).context("cannot write a pid file")?;
        Ok(child)
    }

    async fn watch(self, first: Child, mut wished: watch::Receiver<Wish>) {
        let mut child = first;
        let mut pause = FIRST_PAUSE;
        loop {
            let begin = tokio::time::Instant::now();
            if self.wait(&mut child, &mut wished).await {
                break;
            }
            if !self.restart {
                let _ = self.tell.send(self.name.clone()).await;
                break;
            }
            pause = if begin.elapsed() > SETTLED { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            match self.start_again(&mut pause, &mut wished).await {
                Some(next) => child = next,
                None => break,
            }
        }
        // A stale pid must not be taken for a process of ours.
        let _ = std::fs::remove_file(&self.pid);
    }

    /// Starts the process again after the pause, as often as it takes: what stands in the way now (no memory, a full
    /// disk) may not stand there later. `None` if something else was wished meanwhile.
    async fn start_again(&self, pause: &mut Duration, wished: &mut watch::Receiver<Wish>) -> Option<Child> {
        loop {
            tokio::select! {
                () = tokio::time::sleep(*pause) => {}
                _ = wished.wait_for(|wish| *wish != Wish::Run) => return None,
            }
            match self.spawn() {
                Ok(child) => return Some(child),
                Err(error) => note(&format!("{error:#}; it is tried again")),
            }
            *pause = (*pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Waits for the end of the process. True if it was wished.
    async fn wait(&self, child: &mut Child, wished: &mut watch::Receiver<Wish>) -> bool {
        loop {
            tokio::select! {
                ended = child.wait() => {
                    let wanted = *wished.borrow() != Wish::Run;
                    if !wanted {
                        let status = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                        note(&format!("{} ended by itself ({status}); its log: {}", self.name, self.log.display()));
                    }
                    return wanted;
                }
                changed = wished.changed() => {
                    let signal = match *wished.borrow_and_update() {
                        Wish::Kill => Signal::SIGKILL,
                        Wish::Stop => Signal::SIGTERM,
                        Wish::Run => continue,
                    };
                    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
                        // It may have ended meanwhile; then the wait above returns.
                        let _ = kill(Pid::from_raw(pid), signal);
                    }
                    if changed.is_err() {
                        let _ = child.wait().await;
                        return true;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_part_that_cannot_be_started_is_tried_until_it_can() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let (tell, _lost) = mpsc::channel(1);
        let part = Watched {
            name: "part".to_owned(),
            program: file("program"),
            arguments: Vec::new(),
            log: file("log"),
            pid: file("pid"),
            restart: true,
            tell,
        };
        let (wish, mut wished) = watch::channel(Wish::Run);
        let mut pause = FIRST_PAUSE;
        let mend = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            std::os::unix::fs::symlink("/bin/true", &part.program).unwrap();
        };
        let (started, ()) = tokio::join!(part.start_again(&mut pause, &mut wished), mend);
        assert!(started.unwrap().wait().await.unwrap().success());
        assert_eq!(pause, LONGEST_PAUSE);
        // Whoever stops does not wait for it.
        std::fs::remove_file(&part.program).unwrap();
        wish.send_replace(Wish::Stop);
        assert!(part.start_again(&mut pause, &mut wished).await.is_none());
    }
}
