//! Counting without control groups: a noted first process and its descendants in `/proc`.
//!
//! Advisory only: a daemon that detaches is lost, nothing is capped, and processor time of processes that ended
//! without being waited for inside the task is missing. Bills say so.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use sluice_types::{BootId, Bytes};

use crate::{DeviceError, Usage};

const NANOS: u64 = 1_000_000_000;

/// The identity of this boot of the host.
///
/// # Errors
/// The kernel's file cannot be read.
pub fn boot_id() -> Result<BootId, DeviceError> {
    let text = crate::cgroup::files::read(Path::new("/proc/sys/kernel/random/boot_id"))?;
    Ok(BootId(text.trim().to_owned()))
}

/// When a process was started, in clock ticks since boot: with the pid and the boot id it names one process for ever.
/// `None` where there is no such process, or it is a zombie.
#[must_use]
pub fn process_start_ticks(pid: u32) -> Option<u64> {
    let stat = Stat::read(pid)?;
    (stat.state != 'Z' && stat.state != 'X').then_some(stat.start_ticks)
}

#[derive(Debug, Clone, Copy)]
struct Stat {
    state: char,
    parent: u32,
    /// User, system, and the same of waited-for children, in clock ticks.
    ticks: u64,
    start_ticks: u64,
    resident_pages: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Fields as in proc(5); the second one is free text in parentheses, so counting starts behind the last of them.
    fn parse(text: &str) -> Option<Self> {
        let rest: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |field: usize| rest.get(field - 3).and_then(|word| word.parse::<u64>().ok());
        Some(Self {
            state: rest.first()?.chars().next()?,
            parent: u32::try_from(number(4)?).ok()?,
            ticks: (14..=17).filter_map(number).sum(),
            start_ticks: number(22)?,
            resident_pages: number(24)?,
        })
    }
}

/// Notes the first process of a task.
pub(crate) fn note(pid_file: &Path, pid: u32) -> Result<(), DeviceError> {
    let ticks = process_start_ticks(pid).ok_or_else(|| DeviceError::Unknown(format!("process {pid}")))?;
    let text = format!("{pid} {ticks}");
    fs::write(pid_file, text).map_err(|source| DeviceError::Kernel { action: "writing", path: pid_file.into(), source })
}

fn first(pid_file: &Path) -> Option<u32> {
    let text = fs::read_to_string(pid_file).ok()?;
    let (pid, ticks) = text.split_once(' ')?;
    let pid = pid.parse().ok()?;
    (process_start_ticks(pid)? == ticks.trim().parse::<u64>().ok()?).then_some(pid)
}

/// The noted process, if it lives, and everything below it.
pub(crate) fn descendants(pid_file: &Path) -> Result<Vec<u32>, DeviceError> {
    Ok(tree(pid_file)?.into_keys().collect())
}

fn tree(pid_file: &Path) -> Result<BTreeMap<u32, Stat>, DeviceError> {
    let Some(root) = first(pid_file) else { return Ok(BTreeMap::new()) };
    let proc = Path::new("/proc");
    let fail = |source| DeviceError::Kernel { action: "reading", path: proc.into(), source };
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(proc).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if let Some(stat) = Stat::read(pid) {
            all.insert(pid, stat);
        }
    }
    // Parents may have higher numbers than children, so membership is grown to a fixed point.
    let mut found = BTreeMap::from_iter(all.get(&root).map(|stat| (root, *stat)));
    loop {
        let before = found.len();
        for (pid, stat) in &all {
            if found.contains_key(&stat.parent) {
                found.insert(*pid, *stat);
            }
        }
        if found.len() == before {
            found.retain(|_, stat| stat.state != 'Z');
            return Ok(found);
        }
    }
}

/// Whether all of them are stopped by a signal or a tracer.
pub(crate) fn is_stopped(pid_file: &Path) -> Result<bool, DeviceError> {
    Ok(tree(pid_file)?.values().all(|stat| matches!(stat.state, 'T' | 't')))
}

/// What the tree of processes used; zero where it has ended.
pub(crate) fn usage(pid_file: &Path) -> Result<Usage, DeviceError> {
    let tree = tree(pid_file)?;
    let ticks: u64 = tree.values().map(|stat| stat.ticks).sum();
    let pages: u64 = tree.values().map(|stat| stat.resident_pages).sum();
    let memory = Bytes::new(pages.saturating_mul(setting(nix::unistd::SysconfVar::PAGE_SIZE, 4096)));
    let nanos_per_tick = NANOS / setting(nix::unistd::SysconfVar::CLK_TCK, 100);
    Ok(Usage {
        cpu_nanos: ticks.saturating_mul(nanos_per_tick),
        memory,
        memory_peak: memory,
        oom_kills: 0,
        processes: u64::try_from(tree.len()).unwrap_or(u64::MAX),
    })
}

fn setting(name: nix::unistd::SysconfVar, usual: u64) -> u64 {
    let value = nix::unistd::sysconf(name).ok().flatten().and_then(|value| u64::try_from(value).ok());
    value.filter(|value| *value > 0).unwrap_or(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_in_a_stat_line_cannot_confuse_it() {
        let line = "7 (a) R 9 (x) S 1 7 7 0 -1 0 0 0 0 0 11 12 13 14 20 0 1 0 999 4096 55 0";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.state, stat.parent, stat.ticks, stat.start_ticks, stat.resident_pages), ('S', 1, 50, 999, 55));
        assert!(Stat::parse("7 (a").is_none() && Stat::parse("7 (a) S 1").is_none());
    }

    #[test]
    fn this_process_has_a_start_and_a_pid_that_is_not_ours_has_none() {
        assert!(process_start_ticks(std::process::id()).is_some_and(|ticks| ticks > 0));
        assert_eq!(process_start_ticks(u32::MAX), None);
    }
}
