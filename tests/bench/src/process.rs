//! What the kernel says of this process and of the machine.

use std::collections::BTreeMap;
use std::fs;

/// The load of the machine, in words.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let minute = text.split(' ').next().unwrap_or("?").to_owned();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("load {minute} on {cores} cores")
}

/// Resident memory of a process in bytes.
pub(crate) fn resident(process: u32) -> u64 {
    status(process, "VmRSS:")
}

/// The most that was resident since [`forget_peak`], in bytes.
pub(crate) fn peak(process: u32) -> u64 {
    status(process, "VmHWM:")
}

/// Begins to watch for a new peak.
pub(crate) fn forget_peak(process: u32) {
    // Where the kernel refuses, the peak is of the whole run, which only makes the figure worse.
    let _ = fs::write(format!("/proc/{process}/clear_refs"), "5");
}

fn status(process: u32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Processor time in nanoseconds by the names of threads, without numbers at their ends.
pub(crate) fn processor_time() -> BTreeMap<String, u64> {
    let mut times = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let name = read("comm").trim().trim_end_matches(|c: char| c.is_ascii_digit() || c == '-').to_owned();
        let nanos = read("schedstat").split(' ').next().and_then(|text| text.parse::<u64>().ok());
        *times.entry(name).or_default() += nanos.unwrap_or(0);
    }
    times
}

/// What each kind of thread used between two looks, in microseconds per job.
pub(crate) fn per_job(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>, jobs: u64) -> String {
    let used = |name: &String, nanos: &u64| nanos.saturating_sub(before.get(name).copied().unwrap_or(0));
    let each = |nanos: u64| nanos as f64 / 1000.0 / jobs.max(1) as f64;
    let mut parts: Vec<_> = after.iter().map(|(name, nanos)| (used(name, nanos), name)).collect();
    parts.sort_by_key(|part| std::cmp::Reverse(part.0));
    let all = each(parts.iter().map(|part| part.0).sum());
    let shown =
        parts.iter().filter(|part| each(part.0) >= 0.1).map(|(nanos, name)| format!("{name} {:.1}", each(*nanos)));
    format!("{all:.1} us of processor time per job: {}", shown.collect::<Vec<_>>().join(", "))
}
