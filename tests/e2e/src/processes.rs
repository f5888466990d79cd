//! Other processes, by number and by what they were started with.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Sends a signal; a process that is gone is no error.
pub fn signal(pid: i32, signal: Signal) {
    let _gone = kill(Pid::from_raw(pid), signal);
}

/// Whether any thread of the process is there and not only waits to be collected: until then its files are open.
pub(crate) fn is_alive(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.map(|thread| fs::read_to_string(thread.path().join("stat")).unwrap_or_default()).any(|text| {
        let state = text.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
        state.is_some_and(|state| state != 'Z' && state != 'X')
    })
}

/// What a process was started with.
///
/// # Errors
/// It is gone.
pub fn arguments_of(pid: i32) -> anyhow::Result<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).with_context(|| format!("process {pid} is gone"))?;
    let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    Ok(words.map(|word| String::from_utf8_lossy(word).into_owned()).collect())
}

/// Processes with an argument that lies in `folder`, but for this one.
pub(crate) fn started_in(folder: &Path) -> Vec<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let wanted = format!("{}/", folder.display());
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let inside = |pid: &i32| {
        let words = arguments_of(*pid).unwrap_or_default();
        words.iter().any(|word| format!("{word}/").starts_with(&wanted))
    };
    pids.filter(|pid| *pid != own).filter(inside).collect()
}
