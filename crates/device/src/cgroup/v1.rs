//! Version 1: one hierarchy per controller (or a few together), as on older and hybrid hosts.

use std::path::{Path, PathBuf};

use super::cfs::CfsQuota;
use super::{Driver, Limits, Mount, Place, files};
use crate::{DeviceError, TaskGroup};

/// The largest weight of v1.
const TOP_SHARES: u64 = 262_144;

#[derive(Debug)]
pub(crate) struct V1 {
    nodes: Paths,
}

/// This node's folder in each hierarchy; several may be the same folder where controllers are mounted together.
#[derive(Debug, Clone)]
struct Paths {
    cpu: PathBuf,
    cpuacct: PathBuf,
    cpuset: PathBuf,
    memory: PathBuf,
    pids: PathBuf,
    freezer: PathBuf,
}

impl Paths {
    fn find(mounts: &[Mount]) -> Result<Self, DeviceError> {
        let find = |wanted: &str| {
            let has = |mount: &&Mount| mount.controllers.as_ref().is_some_and(|list| list.iter().any(|c| c == wanted));
            let found = mounts.iter().find(has).map(|mount| mount.path.clone());
            found.ok_or_else(|| DeviceError::NotEnforceable(format!("controller {wanted} is not mounted")))
        };
        Ok(Self {
            cpu: find("cpu")?,
            cpuacct: find("cpuacct")?,
            cpuset: find("cpuset")?,
            memory: find("memory")?,
            pids: find("pids")?,
            freezer: find("freezer")?,
        })
    }

    fn map(&self, change: impl Fn(&Path) -> PathBuf) -> Self {
        Self {
            cpu: change(&self.cpu),
            cpuacct: change(&self.cpuacct),
            cpuset: change(&self.cpuset),
            memory: change(&self.memory),
            pids: change(&self.pids),
            freezer: change(&self.freezer),
        }
    }

    fn all(&self) -> [&Path; 6] {
        [&self.cpu, &self.cpuacct, &self.cpuset, &self.memory, &self.pids, &self.freezer]
    }
}

impl V1 {
    pub(crate) fn open(mounts: &[Mount], place: &Place) -> Result<Self, DeviceError> {
        let roots = Paths::find(mounts)?;
        let parents = roots.map(|root| root.join(&place.parent));
        let nodes = parents.map(|parent| parent.join(&place.node));
        for (level, above) in [(&parents, &roots), (&nodes, &parents)] {
            level.all().into_iter().try_for_each(files::make)?;
            // A v1 cpuset starts empty and takes no process until both lists are set, top down.
            let cores = files::read(&above.cpuset.join("cpuset.cpus"))?;
            let memory_nodes = files::read(&above.cpuset.join("cpuset.mems"))?;
            files::write(&level.cpuset.join("cpuset.cpus"), cores.trim())?;
            files::write(&level.cpuset.join("cpuset.mems"), memory_nodes.trim())?;
        }
        files::write(&parents.cpu.join("cpu.shares"), TOP_SHARES)?;
        files::write(&nodes.cpu.join("cpu.shares"), u64::from(place.weight).clamp(2, TOP_SHARES))?;
        let available = files::read(&nodes.cpuset.join("cpuset.cpus"))?;
        files::write(&nodes.cpuset.join("cpuset.cpus"), files::core_list(&place.core_set)).map_err(|_| {
            DeviceError::NotEnforceable(format!(
                "cores {} are not all among those of the host ({})",
                files::core_list(&place.core_set),
                available.trim()
            ))
        })?;
        if !nodes.cpu.join("cpu.cfs_quota_us").exists() {
            return Err(DeviceError::NotEnforceable("the kernel has no CFS bandwidth control".to_owned()));
        }
        Ok(Self { nodes })
    }

    fn limit_memory(folder: &Path, limit: u64) -> Result<(), DeviceError> {
        let plain = folder.join("memory.limit_in_bytes");
        let with_swap = folder.join("memory.memsw.limit_in_bytes");
        // The kernel demands plain <= with swap at every moment, so raising and lowering need opposite orders.
        let swap_is_counted = with_swap.exists();
        if swap_is_counted && files::read_number(&with_swap)? < limit {
            files::write(&with_swap, limit)?;
        }
        files::write(&plain, limit)?;
        if swap_is_counted {
            files::write(&with_swap, limit)?;
        }
        files::write(&folder.join("memory.swappiness"), 0)
    }
}

impl Driver for V1 {
    fn describe(&self) -> String {
        format!("cgroup v1 under {}", self.nodes.cpu.display())
    }

    fn group(&self, key: &str) -> TaskGroup {
        let paths = self.nodes.map(|node| node.join(key));
        TaskGroup::V1 {
            cpu: paths.cpu,
            cpuacct: paths.cpuacct,
            cpuset: paths.cpuset,
            memory: paths.memory,
            pids: paths.pids,
            freezer: paths.freezer,
        }
    }

    fn create(&self, key: &str, limits: &Limits) -> Result<TaskGroup, DeviceError> {
        let cfs = CfsQuota::for_share(limits.cores)?;
        let paths = self.nodes.map(|node| node.join(key));
        paths.all().into_iter().try_for_each(files::make)?;
        let memory_nodes = files::read(&self.nodes.cpuset.join("cpuset.mems"))?;
        files::write(&paths.cpuset.join("cpuset.mems"), memory_nodes.trim())?;
        files::write(&paths.cpuset.join("cpuset.cpus"), files::core_list(&limits.core_set))?;
        // Lifting the cap first keeps every step between old and new values within the kernel's checks.
        files::write(&paths.cpu.join("cpu.cfs_quota_us"), -1)?;
        files::write(&paths.cpu.join("cpu.cfs_period_us"), cfs.period)?;
        files::write(&paths.cpu.join("cpu.cfs_quota_us"), cfs.quota)?;
        files::write(&paths.cpu.join("cpu.shares"), limits.cores.weight(2, TOP_SHARES))?;
        Self::limit_memory(&paths.memory, limits.memory.get())?;
        files::write(&paths.pids.join("pids.max"), limits.pids)?;
        Ok(self.group(key))
    }

    fn keys(&self) -> Result<Vec<String>, DeviceError> {
        let mut keys = std::collections::BTreeSet::new();
        for folder in self.nodes.all() {
            keys.extend(child_names(folder)?);
        }
        Ok(keys.into_iter().collect())
    }
}

/// Names of the folders in `folder`.
pub(super) fn child_names(folder: &Path) -> Result<Vec<String>, DeviceError> {
    let fail = |source| DeviceError::Kernel { action: "reading", path: folder.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_type().map_err(fail)?.is_dir() {
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort();
    Ok(names)
}
