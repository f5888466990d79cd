//! Folders as tar archives: packing for uploads, unpacking of outputs.
//!
//! Packing is deterministic (the same files give the same bytes), unpacking trusts nothing in the archive. Both hold
//! the same rule for symbolic links: see [`link_stays_inside`].

mod ignore;
mod pack;
mod unpack;

pub(crate) use pack::{Packed, pack};
pub(crate) use unpack::{Wanted, unpack};

use std::path::{Component, Path};

/// Why a folder cannot be packed or an archive not be unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// A file of this host.
    #[error("cannot {doing}: {source}")]
    Io {
        doing: String,
        #[source]
        source: std::io::Error,
    },
    /// An entry that is not taken.
    #[error("`{path}` {why}")]
    Entry { path: String, why: String },
    /// More than the bound.
    #[error("it holds more than {0}")]
    Bound(String),
    /// The ignore file.
    #[error(".sluiceignore, line {line}: {why}")]
    Ignore { line: usize, why: &'static str },
    /// Nothing in the archive has the wanted path.
    #[error("there is no `{0}` in the outputs")]
    Absent(String),
}

impl ArchiveError {
    fn io(doing: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { doing: doing.into(), source }
    }

    fn entry(path: &Path, why: impl Into<String>) -> Self {
        Self::Entry { path: path.display().to_string(), why: why.into() }
    }
}

/// Whether a symbolic link at `path` (relative, of plain names) with this target can only lead to places inside.
///
/// The target is relative, and `..` stands only at its beginning, no more often than the link is deep. A `..` after a
/// name could climb out of the folder that another link leads to, which no look at the text shows.
fn link_stays_inside(path: &Path, target: &Path) -> bool {
    let depth = path.components().count().saturating_sub(1);
    let mut ups = 0;
    let mut names = 0;
    for component in target.components() {
        match component {
            Component::ParentDir if names == 0 => ups += 1,
            Component::Normal(_) => names += 1,
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    ups <= depth && (ups + names > 0 || !target.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_could_leave_are_told_apart() {
        for (path, target, inside) in [
            ("a", "b", true),
            ("d/a", "../b", true),
            ("d/e/a", "../../b/c", true),
            ("a", ".", true),
            ("a", "../b", false),
            ("d/a", "../../b", false),
            ("a", "/etc/passwd", false),
            ("d/a", "b/../../..", false),
            ("d/a", "l/../x", false),
            ("a", "", false),
        ] {
            assert_eq!(link_stays_inside(Path::new(path), Path::new(target)), inside, "{path} -> {target}");
        }
    }
}
