//! The control groups that a system's nodes make: who is in them, and removing them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

const ROOT: &str = "/sys/fs/cgroup";
/// All of a host's nodes have their groups below one of this name.
const PARENT: &str = "sluice";

/// Why no group can be made here.
pub(crate) fn missing() -> Option<String> {
    let unified = Path::new(ROOT).join("cgroup.controllers").exists();
    let controller = if unified { PathBuf::from(ROOT) } else { Path::new(ROOT).join("cpu") };
    // Tests of one process ask at the same time.
    static PROBES: AtomicU32 = AtomicU32::new(0);
    let number = PROBES.fetch_add(1, Ordering::Relaxed);
    let probe = controller.join(format!("sluice-e2e-{}-{number}", std::process::id()));
    match fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)) {
        Ok(()) => None,
        Err(error) => Some(format!("control groups cannot be written ({}: {error})", probe.display())),
    }
}

/// The groups of a node, in every hierarchy.
fn groups_of(node: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    look(Path::new(ROOT), node, 4, &mut found);
    found
}

fn look(dir: &Path, node: &str, depth: u32, found: &mut Vec<PathBuf>) {
    let own = dir.join(PARENT).join(node);
    if own.is_dir() {
        found.push(own);
    }
    if depth == 0 {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.file_name() != PARENT {
            look(&entry.path(), node, depth - 1, found);
        }
    }
}

fn below(dir: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below(&entry.path(), visit);
        }
    }
    visit(dir);
}

/// Processes in a node's groups.
pub(crate) fn processes_of(node: &str) -> Vec<i32> {
    let mut pids = Vec::new();
    for group in groups_of(node) {
        below(&group, &mut |dir| {
            let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        });
    }
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Groups of tasks, by their leases' names, that a node still has.
pub(crate) fn tasks_of(node: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for group in groups_of(node) {
        below(&group, &mut |dir| {
            if dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("lse-")) {
                found.push(dir.to_owned());
            }
        });
    }
    found
}

/// Removes a node's groups; those that still have processes stay.
pub(crate) fn remove_of(node: &str) {
    for group in groups_of(node) {
        below(&group, &mut |dir| {
            // Busy ones are removed at the next look.
            let _ = fs::remove_dir(dir);
        });
    }
}
