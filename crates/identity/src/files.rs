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

/// Makes a folder that only its owner enters (0700), and closes one that is there already. One that is everybody's on
/// purpose (sticky, as `/tmp`) or somebody else's stays as it is.
///
/// # Errors
/// [`IdentityError::File`].
pub fn private_folder(path: &Path) -> Result<(), IdentityError> {
    const STICKY: u32 = 0o1000;
    let failed = |source| IdentityError::File { path: path.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode();
    if mode & STICKY != 0 || mode & 0o777 == 0o700 {
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
    fn a_private_folder_is_closed_also_where_it_was_open() {
        let root = tempfile::tempdir().unwrap();
        let (new, open, shared) = (root.path().join("new"), root.path().join("open"), root.path().join("shared"));
        for (path, before) in [(&open, 0o755), (&shared, 0o1777)] {
            std::fs::create_dir(path).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(before)).unwrap();
        }
        for (path, after) in [(&new, 0o700), (&open, 0o700), (&shared, 0o1777)] {
            private_folder(path).unwrap();
            assert_eq!(mode(path), after, "{}", path.display());
        }
    }
}
