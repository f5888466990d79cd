//! How much disk a task fills, and when that is too much.
//!
//! The folders lie on the host's file system, whose quotas are rarely switched on and whose loop devices are rarely
//! there in a container; a memory file system would charge files to the task's memory. So the size of one file is
//! capped by the kernel (RLIMIT_FSIZE), and the sum is watched: a task over its bound is killed with the reason. Between
//! two looks a task can overshoot by what the disk takes in that time. Files that were removed but are still held open
//! or mapped are counted through the task's processes. One that was sent through a socket and is not received is in no
//! process: the kernel only tells that there is one (`scm_fds` in `fdinfo`, Linux 5.6 and later; before that nothing
//! sees it), so a task that keeps descriptors there is ended. So is one that maps removed files after its main thread
//! ended, because then nothing tells how large they are.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, fstatat, major, minor};

use super::protocol::MANIFEST;
use super::{LaunchSpec, folder::Folder};

/// Deeper trees are refused: they serve nobody and make walking and removing them costly.
const DEPTH_BOUND: usize = 64;
/// Descriptors and mappings of all processes together that one look goes through; a second or two of it. A thousand
/// processes with a thousand each are far more than any program has use for.
const HELD_BOUND: usize = 1 << 20;
/// Looks in a row at which descriptors may be under way between processes. Passing one takes a moment, keeping it there
/// is a way to hide it.
const HIDDEN_BOUND: u32 = 12;
/// What a file may fill beyond its length.
const BLOCK: u64 = 4096;

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

/// What one look at everything that a task fills found.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// Which bound is broken, and how.
    over: Option<String>,
    /// Files may be open where their size cannot be seen, for example under way between processes.
    hidden: bool,
}

/// What the looks at one task come to.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    hidden: u32,
}

impl Judge {
    /// What is wrong after one more look; `None` that nothing is. A task that is `frozen` cannot receive what it sent.
    pub(crate) fn on_look(&mut self, look: Look, frozen: bool) -> Option<String> {
        self.hidden = match (look.hidden, frozen) {
            (false, _) => 0,
            (true, true) => self.hidden,
            (true, false) => self.hidden + 1,
        };
        let text = || "open files are kept where their size cannot be seen, as in sockets that nobody reads".to_owned();
        look.over.or_else(|| (self.hidden >= HIDDEN_BOUND).then(text))
    }
}

/// Looks at everything the task fills. Takes as long as walking the folders does.
pub(crate) fn look(spec: &LaunchSpec, folder: &Folder) -> Look {
    let (all, over) = walk_places(spec, folder);
    if over.is_some() {
        return Look { over, hidden: false };
    }
    if let Some(text) = grown(spec, folder) {
        return Look { over: Some(text), hidden: false };
    }
    let held = Held::by(&spec.group.processes().unwrap_or_default(), &spec.work_dir, HELD_BOUND);
    let limits = &spec.limits;
    let bound = [limits.work, limits.stage, limits.outputs].iter().fold(0u64, |sum, it| sum.saturating_add(it.get()));
    let over = if held.seen > HELD_BOUND {
        Some(format!("its processes have more than {HELD_BOUND} descriptors and mappings"))
    } else if all.saturating_add(held.bytes) > bound {
        Some(format!("files that were removed but are held open fill more than {bound} bytes with the rest"))
    } else {
        None
    };
    Look { over, hidden: held.hidden }
}

/// Bytes in the task's own folders, and which bound they break.
fn walk_places(spec: &LaunchSpec, folder: &Folder) -> (u64, Option<String>) {
    let limits = &spec.limits;
    let (stage, outputs) = (folder.stage(), folder.outputs());
    let places =
        [("work", &spec.work_dir, limits.work), ("stage", &stage, limits.stage), ("outputs", &outputs, limits.outputs)];
    let (mut files, mut all) = (0, 0u64);
    for (name, path, bound) in places {
        let filled = Filled::walk(path, limits.files);
        if filled.too_deep {
            return (all, Some(format!("`{name}` has folders more than {DEPTH_BOUND} deep")));
        }
        if filled.bytes > bound.get() {
            return (all, Some(format!("`{name}` holds {} bytes of {}", filled.bytes, bound.get())));
        }
        (files, all) = (files + filled.files, all.saturating_add(filled.bytes));
    }
    let many = files > limits.files;
    (all, many.then(|| format!("there are more than {} files", limits.files)))
}

/// Checkpoints that were taken over are of the size that was checked then, unless the task kept a descriptor open and
/// goes on writing. How many there are is bounded where they are taken.
fn grown(spec: &LaunchSpec, folder: &Folder) -> Option<String> {
    let sets = [folder.staging(), folder.staged()].into_iter().flat_map(fs::read_dir).flatten().flatten();
    sets.into_iter().find_map(|set| {
        let filled = Filled::walk(&set.path(), spec.limits.files);
        // Ours, and new since the task could reach the folder.
        let manifest = fs::symlink_metadata(set.path().join(MANIFEST)).map_or(0, |data| data.blocks() * 512);
        let stage = spec.limits.stage.get();
        // File systems count blocks of their own on large files.
        let bound = stage.saturating_add(stage / 16).saturating_add(filled.files * BLOCK).saturating_add(manifest);
        let text = || format!("a checkpoint that was handed over grew to {} bytes of {bound}", filled.bytes);
        (filled.bytes > bound).then(text)
    })
}

/// Files that no folder shows.
#[derive(Debug, Default)]
struct Held {
    /// Of removed files that are open or mapped.
    bytes: u64,
    /// Descriptors and mappings looked at.
    seen: usize,
    /// Some are where their size cannot be seen.
    hidden: bool,
}

impl Held {
    /// What processes hold on the file system of `place`; ends early beyond `bound` descriptors and mappings.
    fn by(processes: &[u32], place: &Path, bound: usize) -> Self {
        let mut held = Self::default();
        let Ok(device) = fs::metadata(place).map(|data| data.dev()) else { return held };
        let mut known = BTreeSet::new();
        // What is sent to our own socket waits in ours.
        let us = std::process::id();
        for pid in processes.iter().copied().chain([us]) {
            let process = PathBuf::from(format!("/proc/{pid}"));
            let thread = thread_of_dead(&process);
            held.hidden |= thread.as_deref().is_some_and(|thread| maps_removed(thread, device));
            // All threads have one table of descriptors (`seccomp`).
            let place = thread.unwrap_or(process);
            for kind in ["fd", "map_files"] {
                for entry in fs::read_dir(place.join(kind)).into_iter().flatten().flatten() {
                    held.seen += 1;
                    if held.seen > bound {
                        return held;
                    }
                    // Through the link that the kernel keeps to the very file, removed or not.
                    let Ok(data) = fs::metadata(entry.path()) else { continue };
                    if data.file_type().is_socket() {
                        held.hidden |= has_pending(&place.join("fdinfo").join(entry.file_name()));
                    } else if pid != us && data.nlink() == 0 && data.dev() == device && known.insert(data.ino()) {
                        held.bytes = held.bytes.saturating_add(data.blocks().saturating_mul(512));
                    }
                }
            }
        }
        held
    }
}

/// Some other thread of a process whose main thread ended: such a process shows nothing of what the others have. One
/// that lives has mappings.
fn thread_of_dead(process: &Path) -> Option<PathBuf> {
    let is_dead = fs::read_dir(process.join("map_files")).is_ok_and(|mut entries| entries.next().is_none());
    let threads = is_dead.then(|| fs::read_dir(process.join("task")).ok()).flatten()?;
    threads.flatten().find(|thread| Some(thread.file_name().as_os_str()) != process.file_name()).map(|it| it.path())
}

/// Whether a thread maps removed files; without its main thread nothing tells how large they are.
fn maps_removed(thread: &Path, device: u64) -> bool {
    let device = format!("{:02x}:{:02x}", major(device), minor(device));
    let Ok(maps) = fs::File::open(thread.join("maps")) else { return false };
    let mut lines = BufReader::new(maps).split(b'\n').map_while(Result::ok);
    lines.any(|line| {
        let on_device = line.split(|byte| *byte == b' ').nth(3) == Some(device.as_bytes());
        on_device && line.ends_with(b" (deleted)")
    })
}

/// Whether descriptors wait in a socket to be received.
fn has_pending(description: &Path) -> bool {
    let text = fs::read_to_string(description).unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("scm_fds:"));
    count.is_some_and(|count| count.trim() != "0")
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
    fn descriptors_may_be_passed_but_not_kept_under_way() {
        let look = |hidden| Look { over: None, hidden };
        let mut judge = Judge::default();
        for _ in 0..3 {
            let passing: Vec<_> = (1..HIDDEN_BOUND).map(|_| judge.on_look(look(true), false)).collect();
            assert!(passing.iter().all(Option::is_none) && judge.on_look(look(false), false).is_none());
        }
        // A frozen task receives nothing; that is not its choice.
        assert!((0..100).all(|_| judge.on_look(look(true), true).is_none()));
        assert!((1..HIDDEN_BOUND).all(|_| judge.on_look(look(true), false).is_none()));
        assert!(judge.on_look(look(true), false).is_some());
    }

    #[test]
    fn one_look_goes_through_so_many_descriptors_and_no_more() {
        let us = [std::process::id()];
        let all = Held::by(&us, Path::new("/"), usize::MAX).seen;
        assert!(all > 10);
        assert_eq!(Held::by(&us, Path::new("/"), 5).seen, 6);
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
