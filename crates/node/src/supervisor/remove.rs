//! Removing what a hostile task left: never through a link, never deeper in recursion than a fixed bound.
//!
//! A task can nest folders far deeper than any path, stack or descriptor table allows in the time between two looks of
//! the disk watch. Below the bound, whole sub-trees are moved up beside the root of the tree and removed from there.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

const DEPTH: usize = 32;
const FOLDER: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Removes a file, link or folder with everything below it; nothing there is fine.
///
/// # Errors
/// The file system's. What was removed before the error stays removed.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let root = match open(path, FOLDER, Mode::empty()) {
        Ok(root) => root,
        Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::ENOTDIR | Errno::ELOOP) => return std::fs::remove_file(path),
        Err(error) => return Err(error.into()),
    };
    let mut moved = 0;
    // Each round empties what it found and may move deeper trees up, which the next round finds.
    while !empty(&root, &root, 0, &mut moved)? {}
    std::fs::remove_dir(path)
}

/// Removes everything in a folder down to the bound; `false` where something was moved up to `root`.
fn empty(folder: &OwnedFd, root: &OwnedFd, depth: usize, moved: &mut u64) -> io::Result<bool> {
    let mut all = true;
    for (name, is_folder) in entries(folder)? {
        if !is_folder {
            gone_is_fine(unlinkat(folder, name.as_c_str(), UnlinkatFlags::NoRemoveDir))?;
            continue;
        }
        if unlinkat(folder, name.as_c_str(), UnlinkatFlags::RemoveDir).is_ok() {
            continue;
        }
        if depth >= DEPTH {
            let place = CString::new(format!(".sluice-removing-{moved}"))?;
            *moved += 1;
            all = false;
            match renameat(folder, name.as_c_str(), root, place.as_c_str()) {
                // An earlier, interrupted removal left that name; the next number may be free.
                Err(Errno::ENOTEMPTY | Errno::EEXIST) => continue,
                result => gone_is_fine(result)?,
            }
            continue;
        }
        let below = openat(folder, name.as_c_str(), FOLDER, Mode::empty())?;
        all &= empty(&below, root, depth + 1, moved)?;
        match unlinkat(folder, name.as_c_str(), UnlinkatFlags::RemoveDir) {
            // Something that was moved up came into this very folder's place.
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => all = false,
            result => gone_is_fine(result)?,
        }
    }
    Ok(all)
}

fn gone_is_fine(result: nix::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn entries(folder: &OwnedFd) -> io::Result<Vec<(CString, bool)>> {
    let mut dir = Dir::from_fd(openat(folder, ".", FOLDER, Mode::empty())?)?;
    let mut found = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes() == b"." || name.to_bytes() == b".." {
            continue;
        }
        let is_folder = match entry.file_type() {
            Some(kind) => kind == Type::Directory,
            None => is_folder(folder, name),
        };
        found.push((name.to_owned(), is_folder));
    }
    Ok(found)
}

fn is_folder(folder: &impl AsFd, name: &std::ffi::CStr) -> bool {
    let data = fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW);
    data.is_ok_and(|data| data.st_mode & nix::libc::S_IFMT == nix::libc::S_IFDIR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_deeper_than_any_path_are_removed_and_links_are_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("keep"), "x").unwrap();
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::os::unix::fs::symlink(outside.path(), tree.join("link")).unwrap();
        let mut at = open(&tree, FOLDER, Mode::empty()).unwrap();
        for _ in 0..2100 {
            nix::sys::stat::mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
            drop(openat(&at, "f", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRWXU).unwrap());
            at = openat(&at, "d", FOLDER, Mode::empty()).unwrap();
        }
        drop(at);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && outside.path().join("keep").exists());
        remove_tree(&tree).unwrap();
    }

    #[test]
    fn a_link_in_place_of_the_tree_is_itself_removed() {
        let root = tempfile::tempdir().unwrap();
        let link = root.path().join("link");
        std::os::unix::fs::symlink("/usr", &link).unwrap();
        remove_tree(&link).unwrap();
        assert!(link.symlink_metadata().is_err() && Path::new("/usr").exists());
    }
}
