//! From a sealed manifest back to files that a task can read.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use sluice_types::Digest;
use tonic::Code;

use crate::client::VaultClient;
use crate::error::ClientError;
use crate::manifest::{CheckpointManifest, Entry, Manifest};
use crate::path::RelativePath;

/// Tensors begin at multiples of this in the state file, so that they can be mapped.
const ALIGN: u64 = 64;

/// A checkpoint on disk.
#[derive(Debug, Clone)]
pub struct Materialised {
    /// What it is.
    pub manifest: CheckpointManifest,
    /// Its entries, in the order of the manifest.
    pub placed: Vec<Placed>,
}

/// One entry on disk, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// What it is.
    pub entry: Entry,
    /// Which file; below `files` under its own name if it is a file, else one file for all tensors.
    pub file: PathBuf,
    /// Where in the file, in bytes.
    pub offset: u64,
}

/// Bytes to be fetched to a place.
struct Wanted {
    digest: Digest,
    length: u64,
    path: PathBuf,
    file: Arc<File>,
    offset: u64,
}

impl VaultClient {
    /// Writes a checkpoint below a new folder: tensors into `state.bin`, files below `files`. Every byte is verified; what the
    /// site's vault lacks or finds damaged is fetched from elsewhere once. Of a gang's checkpoint, the part of `rank`.
    ///
    /// # Errors
    /// Nobody has a part of it, the manifest is of other ranks, the folder exists, the disk.
    pub async fn materialise(&self, digest: Digest, rank: u32, into: &Path) -> Result<Materialised, ClientError> {
        let (task, manifest) = self.task_manifest(digest, rank).await?;
        std::fs::create_dir(into).map_err(ClientError::io("create", into))?;
        let files = into.join("files");
        std::fs::create_dir(&files).map_err(ClientError::io("create", &files))?;
        let (placed, wanted) = lay_out(&manifest, into)?;
        futures::stream::iter(wanted)
            .map(|wanted| self.bring(task, wanted))
            .buffer_unordered(self.limits().parallel.max(1))
            .try_collect::<()>()
            .await?;
        Ok(Materialised { manifest, placed })
    }

    async fn task_manifest(&self, digest: Digest, rank: u32) -> Result<(Digest, CheckpointManifest), ClientError> {
        let group = match self.manifest_or_fetch(digest).await? {
            Manifest::Task(task) => return Ok((digest, task)),
            Manifest::Group(group) => group,
        };
        let member = group.members.iter().find(|member| member.rank == rank);
        let member = member.ok_or_else(|| tonic::Status::not_found("the checkpoint has no such rank"))?.manifest;
        match self.manifest_or_fetch(member).await? {
            Manifest::Task(task) => Ok((member, task)),
            Manifest::Group(_) => Err(tonic::Status::data_loss("a group names a group").into()),
        }
    }

    async fn manifest_or_fetch(&self, digest: Digest) -> Result<Manifest, ClientError> {
        match self.manifest(digest).await {
            Err(error) if is_lost(&error) => {
                self.ensure(&[digest], &[]).await?;
                self.manifest(digest).await
            }
            other => other,
        }
    }

    async fn bring(&self, manifest: Digest, wanted: Wanted) -> Result<(), ClientError> {
        let Wanted { digest, length, path, file, offset } = wanted;
        let first = self.get_into(digest, Some(length), &file, offset, &path).await;
        let size = match first {
            Err(error) if is_lost(&error) => {
                tracing::warn!(%digest, %error, "missing or damaged at this site, fetching it from elsewhere");
                self.ensure(&[manifest], &[]).await?;
                self.get_into(digest, Some(length), &file, offset, &path).await?
            }
            other => other?,
        };
        if size == length { Ok(()) } else { Err(ClientError::Untrue(digest)) }
    }
}

/// Whether another site may still have it.
fn is_lost(error: &ClientError) -> bool {
    match error {
        ClientError::Vault(status) => matches!(status.code(), Code::NotFound | Code::DataLoss),
        ClientError::Untrue(_) => true,
        _ => false,
    }
}

/// Decides where each entry goes and opens the files.
fn lay_out(manifest: &CheckpointManifest, into: &Path) -> Result<(Vec<Placed>, Vec<Wanted>), ClientError> {
    let state = into.join("state.bin");
    let mut end: u64 = 0;
    let mut places: HashMap<Digest, u64> = HashMap::new();
    let mut placed = Vec::with_capacity(manifest.entries.len());
    let mut wanted = Vec::new();
    let open = |path: &Path| {
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        file.map(Arc::new).map_err(ClientError::io("create", path))
    };
    let state_file = open(&state)?;
    for entry in &manifest.entries {
        let (digest, length) = (entry.digest, entry.length);
        if entry.is_file() {
            let name = RelativePath::parse(&entry.name)
                .map_err(|source| ClientError::Path { path: entry.name.clone(), source })?;
            let path = name.below(&into.join("files"));
            let parent = path.parent().unwrap_or(into);
            std::fs::create_dir_all(parent).map_err(ClientError::io("create", parent))?;
            let file = open(&path)?;
            wanted.push(Wanted { digest, length, path: path.clone(), file, offset: 0 });
            placed.push(Placed { entry: entry.clone(), file: path, offset: 0 });
            continue;
        }
        let offset = match places.get(&digest) {
            Some(offset) => *offset,
            None => {
                let begin = end.checked_next_multiple_of(ALIGN);
                let room = begin.and_then(|begin| Some((begin, begin.checked_add(length)?)));
                let (begin, next) = room.ok_or_else(|| tonic::Status::out_of_range("the checkpoint is too large"))?;
                end = next;
                places.insert(digest, begin);
                wanted.push(Wanted { digest, length, path: state.clone(), file: state_file.clone(), offset: begin });
                begin
            }
        };
        placed.push(Placed { entry: entry.clone(), file: state.clone(), offset });
    }
    state_file.set_len(end).map_err(ClientError::io("size", &state))?;
    Ok((placed, wanted))
}
