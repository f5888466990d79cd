//! The control groups of one task, as a value that can be written down, read back after a restart and acted on.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use sluice_types::Bytes;

use crate::cgroup::files;
use crate::{DeviceError, Usage, advisory};

/// Largest piece of memory that is charged at once, and refused whole.
const HUGE_PAGE: u64 = 2 << 20;

/// Looks at whether all have stopped, a millisecond apart, before they are let go for a moment.
const ADVISORY_TRIES: u32 = 8;

/// Where the processes of one task are held, capped and counted.
///
/// A process joins by itself (or is joined by its parent) before it executes the task's program; everything it starts
/// later stays inside. The value holds paths only, so any process of the node may act on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "driver", rename_all = "lowercase")]
pub enum TaskGroup {
    /// One folder of the unified hierarchy.
    V2 {
        /// The group.
        path: PathBuf,
    },
    /// One folder in each of version 1's hierarchies.
    V1 {
        /// Quota and weight.
        cpu: PathBuf,
        /// Processor time.
        cpuacct: PathBuf,
        /// Cores.
        cpuset: PathBuf,
        /// Memory cap and peak.
        memory: PathBuf,
        /// Process cap.
        pids: PathBuf,
        /// Stop and go.
        freezer: PathBuf,
    },
    /// No caps: the first process is noted in a file, and its descendants are what counts as the task.
    Advisory {
        /// Holds `pid start-ticks`.
        pid_file: PathBuf,
    },
}

impl TaskGroup {
    /// The folders of the group, each once.
    fn folders(&self) -> Vec<&Path> {
        match self {
            Self::V2 { path } => vec![path],
            Self::V1 { cpu, cpuacct, cpuset, memory, pids, freezer } => {
                let mut all: Vec<&Path> = vec![freezer, cpu, cpuacct, cpuset, memory, pids];
                let mut seen = std::collections::BTreeSet::new();
                all.retain(|path| seen.insert(*path));
                all
            }
            Self::Advisory { .. } => Vec::new(),
        }
    }

    /// The last part of the paths: the grant's key.
    #[must_use]
    pub fn key(&self) -> &str {
        let path = match self {
            Self::V2 { path } => path.file_name(),
            Self::V1 { cpu, .. } => cpu.file_name(),
            Self::Advisory { pid_file } => pid_file.file_stem(),
        };
        path.and_then(|name| name.to_str()).unwrap_or("")
    }

    /// Whether the kernel holds this group to its limits.
    #[must_use]
    pub fn is_enforced(&self) -> bool {
        !matches!(self, Self::Advisory { .. })
    }

    /// Whether the group exists on this host.
    #[must_use]
    pub fn exists(&self) -> bool {
        match self {
            Self::Advisory { pid_file } => pid_file.exists(),
            _ => self.folders().iter().all(|folder| folder.is_dir()),
        }
    }

    /// Whether anything of the group is on this host: also one that was made or removed in part, which must be removed.
    #[must_use]
    pub fn has_traces(&self) -> bool {
        self.exists() || self.folders().iter().any(|folder| folder.is_dir())
    }

    /// Puts a process (all its threads) into the group. The freezer comes first, so that a process which got into any
    /// hierarchy can be found and killed.
    ///
    /// # Errors
    /// Kernel errors; the process may then be in some of the hierarchies and should end.
    pub fn join(&self, pid: u32) -> Result<(), DeviceError> {
        if let Self::Advisory { pid_file } = self {
            return advisory::note(pid_file, pid);
        }
        self.folders().into_iter().try_for_each(|folder| files::write(&folder.join("cgroup.procs"), pid))
    }

    /// Process ids in the group; empty where it is gone.
    ///
    /// # Errors
    /// Kernel errors.
    pub fn processes(&self) -> Result<Vec<u32>, DeviceError> {
        if let Self::Advisory { pid_file } = self {
            return advisory::descendants(pid_file);
        }
        let mut all = Vec::new();
        for folder in self.folders() {
            all.extend(files::processes(&folder.join("cgroup.procs"))?);
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// Processes that the kernel killed for want of memory so far, at the cap or because the host ran out of it
    /// ([`TaskGroup::hit_memory_cap`]); zero where nothing caps.
    ///
    /// # Errors
    /// Kernel errors.
    pub fn oom_kills(&self) -> Result<u64, DeviceError> {
        let found = match self {
            Self::V2 { path } => files::read_field(&path.join("memory.events"), "oom_kill")?,
            Self::V1 { memory, .. } => files::read_field(&memory.join("memory.oom_control"), "oom_kill")?,
            Self::Advisory { .. } => None,
        };
        Ok(found.unwrap_or(0))
    }

    /// Whether the memory cap was reached so far. What the kernel kills without that, it kills for want of memory on the
    /// host or in a group above. Under version 1 file cache that filled the cap counts too.
    ///
    /// # Errors
    /// Kernel errors.
    pub fn hit_memory_cap(&self) -> Result<bool, DeviceError> {
        match self {
            // Counted in the group whose limit it is and in those above, never in those below
            // (<https://docs.kernel.org/admin-guide/cgroup-v2.html>).
            Self::V2 { path } => Ok(files::read_field(&path.join("memory.events"), "oom")?.unwrap_or(0) > 0),
            Self::V1 { memory, .. } => {
                // `failcnt` would say it, but stays zero on some kernels (seen on 6.18). Swap, where it is counted, has
                // the same limit.
                for kind in ["memory", "memory.memsw"] {
                    let limit = memory.join(format!("{kind}.limit_in_bytes"));
                    if limit.exists() {
                        let most = files::read_number(&memory.join(format!("{kind}.max_usage_in_bytes")))?;
                        if most.saturating_add(HUGE_PAGE) >= files::read_number(&limit)? {
                            return Ok(true);
                        }
                    }
                }
                Ok(false)
            }
            Self::Advisory { .. } => Ok(false),
        }
    }

    /// What was used since the group was made.
    ///
    /// # Errors
    /// Kernel errors.
    pub fn usage(&self) -> Result<Usage, DeviceError> {
        match self {
            Self::V2 { path } => {
                let micros = files::read_field(&path.join("cpu.stat"), "usage_usec")?.unwrap_or(0);
                let memory = files::read_number(&path.join("memory.current"))?;
                // Kernels before 5.19 keep no peak; then the present value is the best known bound from below.
                let peak = files::read_number(&path.join("memory.peak")).unwrap_or(memory);
                Ok(Usage {
                    cpu_nanos: micros.saturating_mul(1000),
                    memory: Bytes::new(memory),
                    memory_peak: Bytes::new(peak),
                    oom_kills: self.oom_kills()?,
                    processes: files::read_number(&path.join("pids.current"))?,
                })
            }
            Self::V1 { cpuacct, memory, pids, .. } => Ok(Usage {
                cpu_nanos: files::read_number(&cpuacct.join("cpuacct.usage"))?,
                memory: Bytes::new(files::read_number(&memory.join("memory.usage_in_bytes"))?),
                memory_peak: Bytes::new(files::read_number(&memory.join("memory.max_usage_in_bytes"))?),
                oom_kills: self.oom_kills()?,
                processes: files::read_number(&pids.join("pids.current"))?,
            }),
            Self::Advisory { pid_file } => advisory::usage(pid_file),
        }
    }

    /// Stops all processes; returns once the kernel says so, at most after a second of trying.
    ///
    /// # Errors
    /// Kernel errors; [`DeviceError::StillRunning`] where some process could not be stopped in time.
    pub fn freeze(&self) -> Result<(), DeviceError> {
        match self {
            Self::V2 { path } => {
                files::write(&path.join("cgroup.freeze"), 1)?;
                self.wait(Duration::from_secs(1), || {
                    Ok(files::read_field(&path.join("cgroup.events"), "frozen")? == Some(1))
                })
            }
            Self::V1 { freezer, .. } => {
                let state = freezer.join("freezer.state");
                files::write(&state, "FROZEN")?;
                self.wait(Duration::from_secs(1), || {
                    let frozen = files::read(&state)?.trim() == "FROZEN";
                    if !frozen {
                        // A process that was being forked can slip through; the kernel wants to be asked again.
                        files::write(&state, "FROZEN")?;
                    }
                    Ok(frozen)
                })
            }
            Self::Advisory { pid_file } => {
                let mut tries = 0;
                self.wait(Duration::from_secs(1), || {
                    // One that waits for its child to execute something cannot be stopped while the child is: they are let
                    // go for a moment now and then.
                    tries += 1;
                    if tries % ADVISORY_TRIES == 0 {
                        self.signal_all(Signal::SIGCONT)?;
                        return Ok(false);
                    }
                    // One that was forked meanwhile is in the next list only.
                    self.signal_all(Signal::SIGSTOP)?;
                    advisory::is_stopped(pid_file)
                })
            }
        }
    }

    /// Whether all processes are stopped, and none of them has gone on since it was.
    ///
    /// # Errors
    /// Kernel errors.
    pub fn is_frozen(&self) -> Result<bool, DeviceError> {
        match self {
            Self::V2 { path } => Ok(files::read_field(&path.join("cgroup.events"), "frozen")? == Some(1)),
            Self::V1 { freezer, .. } => Ok(files::read(&freezer.join("freezer.state"))?.trim() == "FROZEN"),
            Self::Advisory { pid_file } => advisory::is_stopped(pid_file),
        }
    }

    /// Lets the processes go on.
    ///
    /// # Errors
    /// Kernel errors.
    pub fn thaw(&self) -> Result<(), DeviceError> {
        match self {
            Self::V2 { path } => files::write(&path.join("cgroup.freeze"), 0),
            Self::V1 { freezer, .. } => files::write(&freezer.join("freezer.state"), "THAWED"),
            Self::Advisory { .. } => self.signal_all(Signal::SIGCONT),
        }
    }

    /// Kills every process and waits until none is left.
    ///
    /// # Errors
    /// [`DeviceError::StillRunning`] after `patience`; kernel errors.
    pub fn kill(&self, patience: Duration) -> Result<(), DeviceError> {
        let end = Instant::now() + patience;
        loop {
            let left = self.processes()?;
            if left.is_empty() {
                return Ok(());
            }
            self.kill_once()?;
            if Instant::now() >= end {
                return Err(DeviceError::StillRunning { key: self.key().to_owned(), left: left.len() });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn kill_once(&self) -> Result<(), DeviceError> {
        if let Self::V2 { path } = self {
            // One write kills the whole tree without a race against fork (kernel 5.14 and later).
            let at_once = path.join("cgroup.kill");
            if at_once.exists() {
                return files::write(&at_once, 1);
            }
        }
        if !self.exists() {
            // What is left of it may have no freezer.
            return self.signal_all(Signal::SIGKILL);
        }
        // Frozen processes cannot fork away between reading the list and killing; a pending SIGKILL acts at the thaw.
        let frozen = self.freeze();
        let killed = self.signal_all(Signal::SIGKILL);
        let thawed = self.thaw();
        if matches!(frozen, Err(DeviceError::StillRunning { .. })) {
            killed.and(thawed)
        } else {
            frozen.and(killed).and(thawed)
        }
    }

    fn signal_all(&self, signal: Signal) -> Result<(), DeviceError> {
        for pid in self.processes()? {
            // Gone between listing and signalling is what was wanted; nothing else can fail for root.
            let _gone = i32::try_from(pid).map(|pid| kill(Pid::from_raw(pid), signal));
        }
        Ok(())
    }

    fn wait(&self, patience: Duration, mut done: impl FnMut() -> Result<bool, DeviceError>) -> Result<(), DeviceError> {
        let end = Instant::now() + patience;
        while !done()? {
            if Instant::now() >= end {
                return Err(DeviceError::StillRunning { key: self.key().to_owned(), left: self.processes()?.len() });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Removes the (empty) group.
    ///
    /// # Errors
    /// Kernel errors, for example where a process is still in it.
    pub fn remove(&self) -> Result<(), DeviceError> {
        if let Self::Advisory { pid_file } = self {
            let _gone = std::fs::remove_file(pid_file);
            return Ok(());
        }
        let end = Instant::now() + Duration::from_secs(2);
        for folder in self.folders() {
            // A killed process leaves `cgroup.procs` a moment before it stops counting as a member.
            while let Err(source) = files::remove(folder) {
                if source.raw_os_error() != Some(nix::libc::EBUSY) || Instant::now() >= end {
                    return Err(DeviceError::Kernel { action: "removing", path: folder.to_owned(), source });
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_for_want_of_memory_is_the_caps_only_where_the_cap_was_reached() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(root.path().join(name), text).unwrap();
        let path = root.path().to_owned();
        let v2 = TaskGroup::V2 { path: path.clone() };
        for (events, hit) in [("oom 0\noom_kill 1\n", false), ("oom 1\noom_kill 1\n", true), ("oom_kill 1\n", false)] {
            write("memory.events", events);
            assert_eq!((v2.hit_memory_cap().unwrap(), v2.oom_kills().unwrap()), (hit, 1), "{events}");
        }
        let [cpu, cpuacct, cpuset, memory, pids, freezer] = std::array::from_fn(|_| path.clone());
        let v1 = TaskGroup::V1 { cpu, cpuacct, cpuset, memory, pids, freezer };
        write("memory.limit_in_bytes", "67108864");
        for (most, hit) in [("33554432", false), ("67108864", true), ("66000000", true)] {
            write("memory.max_usage_in_bytes", most);
            assert_eq!(v1.hit_memory_cap().unwrap(), hit, "{most}");
        }
    }
}
