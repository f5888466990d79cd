//! What sessions take of their node: of its agent, and of the supervisors that hold their buffers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;

use crate::processes;
use crate::system::System;

/// The only node, and its agent among the system's parts.
const NODE: &str = "a/a1";
const AGENT: &str = "node-a1";
/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// A look at the node while it is attacked, in a thread of its own.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<i64>,
}

impl Watch {
    /// Begins, once so many sandboxes are there.
    ///
    /// # Errors
    /// One of them has no supervisor.
    pub(super) fn start(system: &System, sandboxes: usize) -> anyhow::Result<Self> {
        let mut pids = processes::started_in(&system.node_folder(NODE));
        pids.retain(|pid| {
            processes::arguments_of(*pid).is_ok_and(|words| words.get(1).is_some_and(|role| role == "supervise"))
        });
        anyhow::ensure!(pids.len() >= sandboxes, "{} supervisors of {sandboxes} sandboxes", pids.len());
        pids.push(system.pid_of(AGENT)?);
        let idle: Vec<_> = pids.into_iter().filter_map(|pid| Some((pid, private(pid).ok()?))).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let look = move || {
            let mut most = 0;
            while !stopped.load(Ordering::Relaxed) {
                most = grown(&idle).max(most);
                std::thread::sleep(LOOK);
            }
            most
        };
        let thread = std::thread::Builder::new().name("node".to_owned()).spawn(look)?;
        Ok(Self { stop, thread })
    }

    /// KiB that they grew by at most, all together.
    ///
    /// # Errors
    /// None of them grew: then nobody came there.
    pub(super) fn end(self) -> anyhow::Result<i64> {
        self.stop.store(true, Ordering::Relaxed);
        let most = self.thread.join().map_err(|_| anyhow::anyhow!("the look at the node ended in a panic"))?;
        anyhow::ensure!(most > 0, "no hostile client came to the node");
        Ok(most)
    }
}

/// KiB that processes grew by. One that ends or shrinks, of a rental that was released, gives nothing to the others.
fn grown(idle: &[(i32, i64)]) -> i64 {
    idle.iter().map(|(pid, idle)| private(*pid).map_or(0, |now| now.saturating_sub(*idle).max(0))).sum()
}

/// KiB that are the process's own: pages of the program and of files, which all have in common, do not count.
fn private(pid: i32) -> anyhow::Result<i64> {
    let file = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&file).with_context(|| format!("no {file}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}
