//! Paths that strangers choose: relative, inside one folder, opened without following any link.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

/// Longest path in bytes.
const MAX_PATH: usize = 1024;
/// Longest component in bytes: what common file systems hold.
const MAX_COMPONENT: usize = 255;
/// Most components.
const MAX_DEPTH: usize = 64;

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Empty, or an empty component: a leading, doubled or trailing slash.
    #[error("it is absolute, empty or has an empty component")]
    Empty,
    /// `.` or `..`.
    #[error("it has a component `.` or `..`")]
    Dots,
    /// NUL or another control character.
    #[error("it has control characters")]
    Control,
    /// Over a bound.
    #[error("it is longer than 1024 bytes, deeper than 64 folders or has a component over 255 bytes")]
    TooLong,
}

/// A path that stays below the folder it is joined to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelativePath(String);

impl RelativePath {
    /// Checks a text.
    ///
    /// # Errors
    /// Every form that could leave the folder or that file systems read in two ways.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if text.len() > MAX_PATH || text.split('/').count() > MAX_DEPTH {
            return Err(PathError::TooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(PathError::Control);
        }
        for component in text.split('/') {
            match component {
                "" => return Err(PathError::Empty),
                "." | ".." => return Err(PathError::Dots),
                long if long.len() > MAX_COMPONENT => return Err(PathError::TooLong),
                _ => {}
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Below a folder.
    #[must_use]
    pub fn below(&self, folder: &Path) -> PathBuf {
        folder.join(&self.0)
    }

    /// The folders above it, outermost first, without itself.
    pub(crate) fn parents(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').map(|(end, _)| &self.0[..end])
    }
}

fn folder_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

/// Opens a folder below another without following links.
pub(crate) fn open_folder_beneath(folder: &OwnedFd, name: &std::ffi::OsStr) -> std::io::Result<OwnedFd> {
    Ok(openat(folder, Path::new(name), folder_flags(), Mode::empty())?)
}

/// Opens a folder by its path. Only its last component may not be a link.
pub(crate) fn open_folder(folder: &Path) -> std::io::Result<OwnedFd> {
    Ok(open(folder, folder_flags(), Mode::empty())?)
}

/// Opens a regular file directly inside an open folder. A fifo cannot block it, a device or link is refused.
pub(crate) fn open_file_beneath(folder: &OwnedFd, name: &std::ffi::OsStr) -> std::io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(openat(folder, Path::new(name), flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

/// Opens a regular file below `folder` for reading, following no link at any component: the program that owns the
/// folder may swap files and folders for links while it is read, and must not make a privileged reader leave it.
///
/// # Errors
/// Not found, not a regular file, or a link on the way.
pub fn open_beneath(folder: &Path, path: &RelativePath) -> std::io::Result<File> {
    let mut at = open_folder(folder)?;
    let (parents, name) = match path.0.rsplit_once('/') {
        Some((parents, name)) => (Some(parents), name),
        None => (None, path.0.as_str()),
    };
    for component in parents.into_iter().flat_map(|parents| parents.split('/')) {
        at = open_folder_beneath(&at, component.as_ref())?;
    }
    open_file_beneath(&at, name.as_ref())
}

/// What a walk found.
#[derive(Debug)]
pub(crate) enum Found {
    /// A regular file.
    File(File),
    /// A folder; what is in it follows.
    Folder,
    /// A link, with its target as it stands.
    Link(PathBuf),
}

/// Walks a folder in the order of names, following no link, and hands each thing to `visit`. Returns how many things were
/// left out: fifos, sockets, devices, and names that no archive or manifest can carry.
pub(crate) fn walk<E: From<std::io::Error>>(
    folder: &Path,
    visit: &mut dyn FnMut(RelativePath, Found) -> Result<(), E>,
) -> Result<u64, E> {
    let mut left_out = 0;
    walk_into(&open_folder(folder)?, "", &mut left_out, visit)?;
    Ok(left_out)
}

/// Its depth is bounded by [`RelativePath::parse`], and with it the number of open folders.
fn walk_into<E: From<std::io::Error>>(
    folder: &OwnedFd,
    prefix: &str,
    left_out: &mut u64,
    visit: &mut dyn FnMut(RelativePath, Found) -> Result<(), E>,
) -> Result<(), E> {
    use std::os::fd::AsRawFd as _;
    // Lists the folder that is open, whatever its name points to by now.
    let mut entries = std::fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()))?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<Vec<_>, _>>()?;
    entries.sort();
    for name in entries {
        let path = name.to_str().and_then(|name| RelativePath::parse(&format!("{prefix}{name}")).ok());
        let Some(path) = path else {
            *left_out += 1;
            continue;
        };
        if let Ok(inner) = open_folder_beneath(folder, &name) {
            let prefix = format!("{}/", path.as_str());
            visit(path, Found::Folder)?;
            walk_into(&inner, &prefix, left_out, visit)?;
        } else if let Ok(target) = nix::fcntl::readlinkat(folder, Path::new(&name)) {
            visit(path, Found::Link(target.into()))?;
        } else if let Ok(file) = open_file_beneath(folder, &name) {
            visit(path, Found::File(file))?;
        } else {
            *left_out += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_could_leave_the_folder_are_refused() {
        for good in ["a", "a/b", "a.b/..c", "ä", ".hidden"] {
            assert!(RelativePath::parse(good).is_ok(), "{good}");
        }
        let deep = "a/".repeat(64) + "a";
        let long = "a".repeat(256);
        for bad in ["", "/", "/etc/passwd", "..", "a/../b", "a/./b", "a//b", "a/", "a\0b", "a\nb", &deep, &long] {
            assert!(RelativePath::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir_all(root.join("d")).unwrap();
        std::fs::write(root.join("d/f"), "x").unwrap();
        std::os::unix::fs::symlink("d", root.join("l")).unwrap();
        std::os::unix::fs::symlink("d/f", root.join("m")).unwrap();
        let open = |path: &str| open_beneath(root, &RelativePath::parse(path).unwrap());
        assert!(open("d/f").is_ok());
        assert!(open("l/f").is_err());
        assert!(open("m").is_err());
        assert!(open("d").is_err());
    }
}
