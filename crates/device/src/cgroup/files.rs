//! Reading and writing the kernel's small text files.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::Mount;
use crate::DeviceError;

/// Writes one value with one system call, as the kernel wants it.
pub(crate) fn write(path: &Path, value: impl Display) -> Result<(), DeviceError> {
    let fail = |source| DeviceError::Kernel { action: "writing", path: path.to_owned(), source };
    let mut file = fs::OpenOptions::new().write(true).open(path).map_err(fail)?;
    file.write_all(value.to_string().as_bytes()).map_err(fail)
}

/// The whole text.
pub(crate) fn read(path: &Path) -> Result<String, DeviceError> {
    fs::read_to_string(path).map_err(|source| DeviceError::Kernel { action: "reading", path: path.to_owned(), source })
}

/// A file of one number; `max` reads as the largest.
pub(crate) fn read_number(path: &Path) -> Result<u64, DeviceError> {
    let text = read(path)?;
    parse(path, text.trim())
}

/// The number behind `key` in a file of `key number` lines; `None` where there is no such line.
pub(crate) fn read_field(path: &Path, key: &str) -> Result<Option<u64>, DeviceError> {
    let text = read(path)?;
    let value = text.lines().find_map(|line| line.strip_prefix(key).and_then(|rest| rest.strip_prefix(' ')));
    value.map(|value| parse(path, value.trim())).transpose()
}

fn parse(path: &Path, text: &str) -> Result<u64, DeviceError> {
    if text == "max" {
        return Ok(u64::MAX);
    }
    let content = || text.chars().take(64).collect();
    text.parse().map_err(|_| DeviceError::Content { path: path.to_owned(), content: content() })
}

/// Makes one directory; that it exists already is fine.
pub(crate) fn make(path: &Path) -> Result<(), DeviceError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(DeviceError::Kernel { action: "creating", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Removes one empty group; that it is gone already is fine. Process-less child groups that a task's container tools
/// may have made are removed first.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(first) => {
            let Ok(entries) = fs::read_dir(path) else { return Err(first) };
            let mut found = false;
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    found = true;
                    remove(&entry.path())?;
                }
            }
            if found { fs::remove_dir(path) } else { Err(first) }
        }
        Ok(()) => Ok(()),
    }
}

/// Process ids in a `cgroup.procs`; a group that is gone has none.
pub(crate) fn processes(path: &Path) -> Result<Vec<u32>, DeviceError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect()),
        Err(error) if is_gone(&error) => Ok(Vec::new()),
        Err(source) => Err(DeviceError::Kernel { action: "reading", path: path.to_owned(), source }),
    }
}

/// Whether the file's group was removed before or while it was used.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)
}

/// The hierarchies mounted on this host.
pub(crate) fn mounts() -> Result<Vec<Mount>, DeviceError> {
    Ok(parse_mounts(&read(Path::new("/proc/self/mounts"))?))
}

fn parse_mounts(text: &str) -> Vec<Mount> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(path), Some(kind), Some(options)) = (words.next(), words.next(), words.next()) else { continue };
        let controllers = match kind {
            "cgroup2" => None,
            "cgroup" => Some(options.split(',').map(str::to_owned).collect()),
            _ => continue,
        };
        found.push(Mount { path: PathBuf::from(path.replace("\\040", " ")), controllers });
    }
    found
}

/// A core list as the kernel writes and reads it, for example `0,1,5`.
pub(crate) fn core_list(cores: &[u32]) -> String {
    cores.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_hybrid_and_unified_hosts_are_told_apart() {
        let text = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n\
                    cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\nshort\n";
        let mounts = parse_mounts(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[1], Mount { path: "/sys/fs/cgroup/unified".into(), controllers: None });
        assert!(mounts[0].controllers.as_ref().is_some_and(|list| list.iter().any(|name| name == "cpuacct")));
    }
}
