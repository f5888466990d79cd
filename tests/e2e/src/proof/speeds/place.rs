//! Who runs where: the served model on one core, in its slice; the peer in a group that is set as the slice is; everybody
//! else on another core.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Settings of a slice's groups, in an order in which they can be set.
const SETTINGS: [&str; 9] = [
    "cpuset.mems",
    "cpuset.cpus",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
    "cpu.shares",
    "cpu.max",
    "cpu.weight",
    "memory.limit_in_bytes",
    "memory.max",
];

/// The two cores that are used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cores {
    /// Of the slice, and of the peer.
    pub(super) engine: usize,
    /// Of the client, and of the rest of the system.
    pub(super) driver: usize,
}

impl Cores {
    /// The last and the first that this process may use; none where there is only one.
    pub(super) fn find() -> anyhow::Result<Option<Self>> {
        let set = sched_getaffinity(Pid::from_raw(0)).context("which cores there are")?;
        let all: Vec<usize> = (0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).collect();
        Ok(match all[..] {
            [driver, .., engine] => Some(Self { engine, driver }),
            _ => None,
        })
    }
}

/// Lets a thread, and what it starts, run on one core.
pub(super) fn pin(thread: i32, core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(thread), &set).with_context(|| format!("thread {thread} cannot go to core {core}"))
}

/// Lets processes run on one core, with all their threads. One that is gone is no error.
pub(super) fn pin_all(processes: &[i32], core: usize) {
    for process in processes {
        let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
        for thread in threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
            let _gone = pin(thread, core);
        }
    }
}

/// Groups for the peer, one in each hierarchy in which the slice has one.
#[derive(Debug)]
pub(super) struct Groups(Vec<PathBuf>);

impl Groups {
    /// Made as the slice's are.
    pub(super) fn like(slice: &[PathBuf]) -> anyhow::Result<Self> {
        let mut made = Self(Vec::new());
        for folder in slice {
            // Beside those of nodes: what else the host does has as little say in it as in the slice.
            let parent = folder.parent().and_then(Path::parent).context("a slice's group is below its node's")?;
            let own = parent.join(format!("peer-{}", std::process::id()));
            fs::create_dir_all(&own).with_context(|| own.display().to_string())?;
            made.0.push(own.clone());
            for setting in SETTINGS {
                let Ok(value) = fs::read_to_string(folder.join(setting)) else { continue };
                let to = own.join(setting);
                if to.exists() {
                    fs::write(&to, value.trim()).with_context(|| format!("{} = {}", to.display(), value.trim()))?;
                }
            }
        }
        anyhow::ensure!(!made.0.is_empty(), "the slice has no group");
        Ok(made)
    }

    /// Where a process is put to be in them.
    pub(super) fn doors(&self) -> Vec<PathBuf> {
        self.0.iter().map(|folder| folder.join("cgroup.procs")).collect()
    }

    /// As [`cpu_nanos`].
    pub(super) fn cpu_nanos(&self) -> Option<u64> {
        cpu_nanos(&self.0)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for folder in &self.0 {
            // One that is busy is left to be looked at.
            let _busy = fs::remove_dir(folder);
        }
    }
}

/// Time of a processor that a group's members have used.
pub(super) fn cpu_nanos(group: &[PathBuf]) -> Option<u64> {
    let read = |folder: &PathBuf| {
        if let Ok(text) = fs::read_to_string(folder.join("cpuacct.usage")) {
            return text.trim().parse::<u64>().ok();
        }
        let text = fs::read_to_string(folder.join("cpu.stat")).ok()?;
        let micros = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
        Some(micros.trim().parse::<u64>().ok()? * 1_000)
    };
    group.iter().find_map(read)
}

/// What a group may have of its core, and which.
pub(super) fn told(group: &[PathBuf]) -> String {
    let names = ["cpuset.cpus", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.max"];
    let read = |name: &str| {
        let text = group.iter().find_map(|folder| fs::read_to_string(folder.join(name)).ok())?;
        Some(format!("{name} {}", text.trim()))
    };
    names.iter().filter_map(|name| read(name)).collect::<Vec<_>>().join(", ")
}
