//! Files that only their owner reads, written whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use crate::IdentityError;

/// Writes `bytes` to `path` with mode 0600, atomically and fsynced.
///
/// # Errors
/// [`IdentityError::File`].
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let failed = |source| IdentityError::File { path: path.to_owned(), source };
    let parent = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(failed)?;
    let fresh = path.with_extension("new");
    // A leftover of a killed run may have any mode: begin anew.
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&fresh, path).map_err(failed)?;
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(failed)
}

/// Makes a folder that only its owner enters (0700), and closes one that is there and empty. One with files in it stays as
/// it is: it may be anybody's, as `/srv` or a home is, and others may have to enter it.
///
/// # Errors
/// [`IdentityError::File`].
pub fn private_folder(path: &Path) -> Result<(), IdentityError> {
    let failed = |source| IdentityError::File { path: path.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    if std::fs::read_dir(path).map_err(failed)?.next().is_some() {
        return Ok(());
    }
    match std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)) {
        Err(error) if error.kind() != std::io::ErrorKind::PermissionDenied => Err(failed(error)),
        _ => Ok(()),
    }
}

pub(crate) fn read(path: &Path) -> Result<Option<String>, IdentityError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(IdentityError::File { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_private_folder_is_closed_unless_it_is_shared_with_others() {
        let root = tempfile::tempdir().unwrap();
        let (new, open, shared) = (root.path().join("new"), root.path().join("open"), root.path().join("shared"));
        for path in [&open, &shared] {
            std::fs::create_dir(path).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::fs::write(shared.join("of others"), "").unwrap();
        for (path, after) in [(&new, 0o700), (&open, 0o700), (&shared, 0o755)] {
            private_folder(path).unwrap();
            assert_eq!(mode(path), after, "{}", path.display());
        }
    }
}
