//! How much disk a task fills, and when that is too much.
//!
//! The folders lie on the host's file system, whose quotas are rarely switched on and whose loop devices are rarely
//! there in a container; a memory file system would charge files to the task's memory. So the size of one file is
//! capped by the kernel (RLIMIT_FSIZE), and the sum is watched: a task over its bound is killed with the reason. Between
//! two looks a task can overshoot by what the disk takes in that time. Files that were removed but are still held open
//! or mapped are counted through the task's processes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, fstatat};
use sluice_device::TaskGroup;

use super::{LaunchSpec, folder::Folder};

/// Deeper trees are refused: they serve nobody and make walking and removing them costly.
const DEPTH_BOUND: usize = 64;

#[derive(Debug, Clone, Copy, Default)]
struct Filled {
    bytes: u64,
    files: u64,
    too_deep: bool,
}

impl Filled {
    fn walk(path: &Path, files_bound: u64) -> Self {
        let mut filled = Self::default();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        if let Ok(dir) = Dir::open(path, flags, Mode::empty()) {
            filled.add(dir, 0, files_bound);
        }
        filled
    }

    /// Files that vanish or cannot be looked at while walking count as nothing; the next look sees what is there.
    fn add(&mut self, mut dir: Dir, depth: usize, files_bound: u64) {
        if depth > DEPTH_BOUND {
            self.too_deep = true;
            return;
        }
        let mut below = Vec::new();
        let Ok(above) = nix::fcntl::openat(&dir, ".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) else { return };
        for entry in dir.iter().flatten() {
            let name = entry.file_name();
            if name.to_bytes() == b"." || name.to_bytes() == b".." {
                continue;
            }
            self.files += 1;
            if self.files > files_bound {
                return;
            }
            if let Ok(data) = fstatat(&above, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                self.bytes = self.bytes.saturating_add(u64::try_from(data.st_blocks).unwrap_or(0).saturating_mul(512));
            }
            if entry.file_type() == Some(Type::Directory) {
                below.push(name.to_owned());
            }
        }
        drop(dir);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        for name in below {
            if let Ok(folder) = Dir::openat(&above, name.as_c_str(), flags, Mode::empty()) {
                self.add(folder, depth + 1, files_bound);
            }
        }
    }
}

/// Looks at everything the task fills; the text says which bound is broken, `None` that none is. Takes as long as
/// walking the folders does.
pub(crate) fn over(spec: &LaunchSpec, folder: &Folder) -> Option<String> {
    let limits = &spec.limits;
    let (stage, outputs) = (folder.stage(), folder.outputs());
    let places =
        [("work", &spec.work_dir, limits.work), ("stage", &stage, limits.stage), ("outputs", &outputs, limits.outputs)];
    let (mut files, mut all) = (0, 0u64);
    for (name, path, bound) in places {
        let filled = Filled::walk(path, limits.files);
        if filled.too_deep {
            return Some(format!("`{name}` has folders more than {DEPTH_BOUND} deep"));
        }
        if filled.bytes > bound.get() {
            return Some(format!("`{name}` holds {} bytes of {}", filled.bytes, bound.get()));
        }
        (files, all) = (files + filled.files, all.saturating_add(filled.bytes));
    }
    if files > limits.files {
        return Some(format!("there are more than {} files", limits.files));
    }
    let bound = places.iter().fold(0u64, |sum, (.., bound)| sum.saturating_add(bound.get()));
    let hidden = if all.saturating_add(held(&spec.group, &spec.work_dir)) > bound { Some(()) } else { None };
    hidden.map(|()| format!("files that were removed but are held open fill more than {bound} bytes with the rest"))
}

/// Bytes of removed files on the file system of `place` that the task's processes hold open or mapped.
fn held(group: &TaskGroup, place: &Path) -> u64 {
    let Ok(device) = fs::metadata(place).map(|data| data.dev()) else { return 0 };
    let mut seen = BTreeSet::new();
    let mut bytes = 0u64;
    for pid in group.processes().unwrap_or_default() {
        for kind in ["fd", "map_files"] {
            let Ok(entries) = fs::read_dir(format!("/proc/{pid}/{kind}")) else { continue };
            for entry in entries.flatten() {
                // Through the link that the kernel keeps to the very file, removed or not.
                let Ok(data) = fs::metadata(entry.path()) else { continue };
                if data.nlink() == 0 && data.dev() == device && seen.insert(data.ino()) {
                    bytes = bytes.saturating_add(data.blocks().saturating_mul(512));
                }
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_counted_and_links_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/c"), vec![1; 100_000]).unwrap();
        std::os::unix::fs::symlink("/usr", root.path().join("a/usr")).unwrap();
        let filled = Filled::walk(root.path(), 100);
        assert_eq!(filled.files, 4);
        assert!((100_000..200_000).contains(&filled.bytes), "{}", filled.bytes);
        assert!(Filled::walk(root.path(), 2).files > 2);
    }

    #[test]
    fn bottomless_trees_are_noticed() {
        let root = tempfile::tempdir().unwrap();
        let mut path = root.path().to_owned();
        for _ in 0..=DEPTH_BOUND + 1 {
            path.push("d");
        }
        fs::create_dir_all(&path).unwrap();
        assert!(Filled::walk(root.path(), 1000).too_deep);
    }
}
