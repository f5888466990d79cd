//! What a start finds in the folder: complete files go into the index, young beginnings are kept, the rest goes.

use std::fs::{self, File, Metadata, TryLockError};
use std::io;
use std::path::Path;
use std::time::SystemTime;

use sluice_types::Digest;
use tokio::time::Instant;

use super::{Blob, Kind, Partial, State, StoreLimits};
use crate::error::StoreError;

/// How many damaged files are kept to be looked at.
const KEPT_CORRUPT: usize = 16;

/// Makes the folders, durably, and takes the lock.
pub(super) fn prepare(folder: &Path) -> Result<File, StoreError> {
    for name in ["blobs", "manifests", "partial", "corrupt"] {
        fs::create_dir_all(folder.join(name)).map_err(StoreError::io("create the folder"))?;
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::io("sync the folder"))?;
    let lock = File::create(folder.join("lock")).map_err(StoreError::io("create the lock file"))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(folder.to_owned())),
        Err(TryLockError::Error(source)) => Err(StoreError::Io { action: "lock the folder", source }),
    }
}

/// Builds the index.
pub(super) fn read_folder(folder: &Path, limits: StoreLimits, now: SystemTime) -> Result<State, StoreError> {
    let mut state = State::default();
    // Nobody was promised anything by this process yet; a manifest on its way before the stop still gets its time.
    let touched = Instant::now();
    for_each_object(&folder.join(Kind::Blob.folder()), &mut |digest, file| {
        // Else no blob would ever be old in a vault that is started often.
        let before = now.duration_since(file.modified()?).unwrap_or_default();
        state.used = state.used.saturating_add(file.len());
        state.blobs.insert(digest, Blob { size: file.len(), touched, before });
        Ok(())
    })
    .map_err(StoreError::io("list the blobs"))?;
    for_each_object(&folder.join(Kind::Manifest.folder()), &mut |digest, file| {
        state.used = state.used.saturating_add(file.len());
        state.manifests.insert(digest, file.len());
        Ok(())
    })
    .map_err(StoreError::io("list the manifests"))?;
    keep_partials(&folder.join("partial"), limits, now, &mut state).map_err(StoreError::io("list partial files"))?;
    Ok(state)
}

/// Walks the two levels. A file under another name is what a stop left of a write that was never acknowledged.
fn for_each_object(folder: &Path, found: &mut impl FnMut(Digest, Metadata) -> io::Result<()>) -> io::Result<()> {
    for shard in fs::read_dir(folder)? {
        let shard = shard?;
        if !shard.file_type()?.is_dir() {
            continue;
        }
        for file in fs::read_dir(shard.path())? {
            let file = file?;
            match digest_of(&file) {
                Some(digest) => found(digest, file.metadata()?)?,
                None if file.file_type()?.is_file() => fs::remove_file(file.path())?,
                None => {}
            }
        }
    }
    Ok(())
}

fn digest_of(file: &fs::DirEntry) -> Option<Digest> {
    file.file_name().to_str()?.parse().ok()
}

/// Keeps the youngest beginnings within the bounds of age and number.
fn keep_partials(folder: &Path, limits: StoreLimits, now: SystemTime, state: &mut State) -> io::Result<()> {
    let mut found = Vec::new();
    for file in fs::read_dir(folder)? {
        let file = file?;
        let meta = file.metadata()?;
        let modified = meta.modified()?;
        let age = now.duration_since(modified).unwrap_or_default();
        let old = age > limits.partial_age;
        match digest_of(&file) {
            Some(digest) if !old && !state.blobs.contains_key(&digest) => {
                found.push((modified, age, digest, meta.len(), file.path()));
            }
            _ => fs::remove_file(file.path())?,
        }
    }
    found.sort();
    let excess = found.len().saturating_sub(limits.partials);
    for (at, (_, before, digest, bytes, path)) in found.into_iter().enumerate() {
        if at < excess {
            fs::remove_file(path)?;
            continue;
        }
        state.clock += 1;
        state.used = state.used.saturating_add(bytes);
        let partial = Partial { bytes, order: state.clock, active: false, since: Instant::now(), before };
        state.partials.insert(digest, partial);
    }
    Ok(())
}

/// Moves a damaged file to `corrupt`, where the oldest makes room.
pub(super) fn move_aside(folder: &Path, kind: Kind, digest: &Digest) -> io::Result<()> {
    let hex = digest.to_string();
    let corrupt = folder.join("corrupt");
    let mut kept = Vec::new();
    for file in fs::read_dir(&corrupt)? {
        let file = file?;
        kept.push((file.metadata()?.modified()?, file.path()));
    }
    kept.sort();
    for (_, path) in kept.iter().take((kept.len() + 1).saturating_sub(KEPT_CORRUPT)) {
        fs::remove_file(path)?;
    }
    fs::rename(folder.join(kind.folder()).join(&hex[..2]).join(&hex), corrupt.join(&hex))
}
