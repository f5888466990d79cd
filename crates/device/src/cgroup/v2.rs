//! Version 2: one unified hierarchy.

use std::path::{Path, PathBuf};

use super::cfs::CfsQuota;
use super::{Driver, Limits, Mount, Place, files, v1};
use crate::{DeviceError, TaskGroup};

const NEEDED: [&str; 4] = ["cpu", "memory", "pids", "cpuset"];
/// The largest weight of v2.
const TOP_WEIGHT: u64 = 10_000;

#[derive(Debug)]
pub(crate) struct V2 {
    node: PathBuf,
}

impl V2 {
    pub(crate) fn open(mounts: &[Mount], place: &Place) -> Result<Self, DeviceError> {
        let mount = mounts.iter().find(|mount| mount.controllers.is_none());
        let mount = mount.ok_or_else(|| DeviceError::NotEnforceable("it is not mounted".to_owned()))?;
        Self::open_at(&mount.path, place)
    }

    /// As [`V2::open`], on the hierarchy at `root`.
    fn open_at(root: &Path, place: &Place) -> Result<Self, DeviceError> {
        let available = files::read(&root.join("cgroup.controllers"))?;
        let missing: Vec<_> = NEEDED.iter().filter(|name| !available.split_whitespace().any(|a| a == **name)).collect();
        if !missing.is_empty() {
            return Err(DeviceError::NotEnforceable(format!("controllers {missing:?} are not in the unified tree")));
        }
        // The parent may be several levels deep (`system.slice/sluice.service/tasks`), each of which hands down.
        let mut level = root.to_owned();
        hand_down(&level)?;
        for part in Path::new(&place.parent) {
            level.push(part);
            files::make(&level)?;
            hand_down(&level)?;
        }
        files::write(&level.join("cpu.weight"), TOP_WEIGHT)?;
        let node = level.join(&place.node);
        files::make(&node)?;
        hand_down(&node)?;
        files::write(&node.join("cpu.weight"), u64::from(place.weight).clamp(1, TOP_WEIGHT))?;
        files::write(&node.join("cpuset.cpus"), files::core_list(&place.core_set))?;
        let effective = files::read(&node.join("cpuset.cpus.effective"))?;
        if !place.core_set.iter().all(|core| list_holds(effective.trim(), *core)) {
            return Err(DeviceError::NotEnforceable(format!(
                "cores {} are not all among those of the host ({})",
                files::core_list(&place.core_set),
                effective.trim()
            )));
        }
        Ok(Self { node })
    }
}

fn hand_down(group: &Path) -> Result<(), DeviceError> {
    let file = group.join("cgroup.subtree_control");
    let enabled = files::read(&file)?;
    for name in NEEDED {
        if !enabled.split_whitespace().any(|have| have == name) {
            files::write(&file, format!("+{name}"))?;
        }
    }
    Ok(())
}

/// Whether a kernel core list such as `0-3,8` holds `core`.
fn list_holds(list: &str, core: u32) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        matches!((first.parse::<u32>(), last.parse::<u32>()), (Ok(first), Ok(last)) if (first..=last).contains(&core))
    })
}

impl Driver for V2 {
    fn describe(&self) -> String {
        format!("cgroup v2 under {}", self.node.display())
    }

    fn group(&self, key: &str) -> TaskGroup {
        TaskGroup::V2 { path: self.node.join(key) }
    }

    fn create(&self, key: &str, limits: &Limits) -> Result<TaskGroup, DeviceError> {
        let cfs = CfsQuota::for_share(limits.cores)?;
        let path = self.node.join(key);
        files::make(&path)?;
        files::write(&path.join("cpuset.cpus"), files::core_list(&limits.core_set))?;
        files::write(&path.join("cpu.max"), format!("{} {}", cfs.quota, cfs.period))?;
        files::write(&path.join("cpu.weight"), limits.cores.weight(1, TOP_WEIGHT))?;
        files::write(&path.join("memory.max"), limits.memory.get())?;
        // Absent where the kernel has no swap accounting; then there is no swap to charge either.
        let swap = path.join("memory.swap.max");
        if swap.exists() {
            files::write(&swap, 0)?;
        }
        // One process over the cap ends the whole task: a gang member that lost a worker would only hang.
        files::write(&path.join("memory.oom.group"), 1)?;
        files::write(&path.join("pids.max"), limits.pids)?;
        Ok(self.group(key))
    }

    fn keys(&self) -> Result<Vec<String>, DeviceError> {
        v1::child_names(&self.node)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use sluice_types::{Bytes, CoreMilli};

    use super::super::cfs::CoreFraction;
    use super::*;

    /// A folder that looks like a unified hierarchy to writes: plain files take the place of the kernel's.
    fn pretend(root: &Path, folders: &[&str]) {
        for folder in folders {
            let path = root.join(folder);
            fs::create_dir_all(&path).unwrap();
            let names = ["cgroup.subtree_control", "cpu.weight", "cpuset.cpus", "cpu.max", "memory.max"];
            for name in names.into_iter().chain(["memory.swap.max", "memory.oom.group", "pids.max"]) {
                fs::write(path.join(name), "").unwrap();
            }
            fs::write(path.join("cpuset.cpus.effective"), "0-3\n").unwrap();
            fs::write(path.join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        }
    }

    fn place(cores: &[u32]) -> Place {
        Place { parent: "sluice".to_owned(), node: "n1".to_owned(), core_set: cores.to_vec(), weight: 900 }
    }

    #[test]
    fn limits_are_written_in_the_forms_of_the_unified_hierarchy() {
        let root = tempfile::tempdir().unwrap();
        pretend(root.path(), &["", "sluice", "sluice/n1", "sluice/n1/k"]);
        let driver = V2::open_at(root.path(), &place(&[0, 1])).unwrap();
        let limits = Limits {
            cores: CoreFraction::of_cores(CoreMilli::new(135)),
            core_set: vec![1],
            memory: Bytes::mib(64),
            pids: 32,
        };
        let group = driver.create("k", &limits).unwrap();
        assert_eq!(group, TaskGroup::V2 { path: root.path().join("sluice/n1/k") });
        let text = |name: &str| fs::read_to_string(root.path().join("sluice").join(name)).unwrap();
        assert_eq!(text("cpu.weight"), "10000");
        assert_eq!(text("n1/cpu.weight"), "900");
        assert_eq!(text("n1/k/cpu.max"), "2700 20000");
        assert_eq!(text("n1/k/memory.max"), (64 << 20).to_string());
        assert_eq!(text("n1/k/memory.swap.max"), "0");
        assert_eq!(text("n1/k/pids.max"), "32");
        assert_eq!(driver.keys().unwrap(), ["k"]);
    }

    #[test]
    fn a_tree_without_the_controllers_or_cores_is_refused_with_the_reason() {
        let root = tempfile::tempdir().unwrap();
        pretend(root.path(), &["", "sluice", "sluice/n1"]);
        let error = V2::open_at(root.path(), &place(&[7])).unwrap_err().to_string();
        assert!(error.contains("cores 7"), "{error}");
        fs::write(root.path().join("cgroup.controllers"), "hugetlb\n").unwrap();
        let error = V2::open_at(root.path(), &place(&[0])).unwrap_err().to_string();
        assert!(error.contains("cpuset"), "{error}");
    }
}
