//! How many threads a worker may compute with: what its slice grants, and never more.
//!
//! Threads beyond the granted cores wait for each other at every layer: measured, three to twenty times slower.

use std::path::{Path, PathBuf};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// What is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// Whole cores that can be computed on at once, at least 1.
    pub threads: u32,
    /// Whether less time is granted than these cores have: waiting must not burn it.
    pub fractional: bool,
}

/// What this process is granted now, by its affinity and by the quotas of its control groups.
#[must_use]
pub fn granted() -> Granted {
    let cores = sched_getaffinity(Pid::from_raw(0))
        .map_or(1, |set| (0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).count().max(1));
    of(u32::try_from(cores).unwrap_or(1), quota_milli())
}

/// A core is computed on where at least half of it is granted: a thread of less would keep the others waiting.
fn of(cores: u32, quota_milli: Option<u64>) -> Granted {
    let Some(milli) = quota_milli.filter(|milli| *milli < u64::from(cores) * 1_000) else {
        return Granted { threads: cores, fractional: false };
    };
    let threads = u32::try_from(milli.saturating_add(500) / 1_000).unwrap_or(u32::MAX).clamp(1, cores);
    Granted { threads, fractional: milli < u64::from(threads) * 1_000 }
}

/// The least quota of this process's control group and those above it, thousandths of a core.
fn quota_milli() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let root = Path::new("/sys/fs/cgroup");
    let mut folder: PathBuf = root.join(path.trim_start_matches('/'));
    let mut least: Option<u64> = None;
    while folder.starts_with(root) {
        let quota = std::fs::read_to_string(folder.join("cpu.max")).ok().and_then(|text| milli_of(&text));
        least = [least, quota].into_iter().flatten().min();
        if !folder.pop() {
            break;
        }
    }
    least
}

/// `cpu.max` is "QUOTA PERIOD" in microseconds, or "max PERIOD".
fn milli_of(text: &str) -> Option<u64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    quota.checked_mul(1_000)?.checked_div(period)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_more_threads_than_what_is_granted() {
        for (cores, milli, threads, fractional) in [
            (4, None, 4, false),
            (4, Some(9_000), 4, false),
            (4, Some(4_000), 4, false),
            (4, Some(3_500), 4, true),
            (4, Some(2_400), 2, false),
            (4, Some(500), 1, true),
            (4, Some(100), 1, true),
            (1, Some(1_000), 1, false),
        ] {
            assert_eq!(of(cores, milli), Granted { threads, fractional }, "{cores} cores, {milli:?}");
        }
        assert!(granted().threads >= 1);
    }

    #[test]
    fn quotas_are_read() {
        assert_eq!(milli_of("50000 100000\n"), Some(500));
        assert_eq!(milli_of("max 100000\n"), None);
        assert_eq!(milli_of("1 0\n"), None);
        assert_eq!(milli_of(""), None);
    }
}
