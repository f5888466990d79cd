//! From files that a task wrote to entries of a manifest whose bytes are in the vault.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use sluice_types::{Bytes, Digest};
use tokio::time::sleep;

use crate::archive::ArchiveLimits;
use crate::client::{Source, VaultClient, off_thread};
use crate::error::ClientError;
use crate::manifest::{Entry, FILE_DTYPE, MAX_ENTRIES};
use crate::path::{Found, RelativePath, open_beneath, walk};

/// Bytes of a file that become one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The entry's name.
    pub name: String,
    /// The entry's dtype.
    pub dtype: String,
    /// The entry's shape.
    pub shape: Vec<u64>,
    /// Which file, below the staged folder.
    pub file: RelativePath,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

impl Part {
    /// One part per regular file below a folder, in the order of names: the entries of a watched directory. Links, fifos,
    /// sockets and devices are left out.
    ///
    /// # Errors
    /// Bounds; the disk.
    pub fn of_folder(folder: &Path, limits: ArchiveLimits) -> Result<Vec<Self>, ClientError> {
        let mut parts = Vec::new();
        let mut total: u64 = 0;
        let limit = limits.entries.min(MAX_ENTRIES as u64);
        walk::<Walk>(folder, &mut |path, found| {
            let Found::File(file) = found else { return Ok(()) };
            let length = file.metadata()?.len();
            total = total.saturating_add(length);
            if parts.len() as u64 >= limit {
                return Err(Walk::Bound("files", parts.len() as u64 + 1, limit));
            }
            if total > limits.bytes.get() {
                return Err(Walk::Bound("bytes of all files", total, limits.bytes.get()));
            }
            let (name, dtype) = (path.as_str().to_owned(), FILE_DTYPE.to_owned());
            parts.push(Self { name, dtype, shape: Vec::new(), file: path, offset: 0, length });
            Ok(())
        })
        .map_err(|error| match error {
            Walk::Io(source) => ClientError::Io { action: "walk", path: folder.to_owned(), source },
            Walk::Bound(what, asked, limit) => ClientError::TooLarge { what, asked, limit: Bytes::new(limit) },
        })?;
        Ok(parts)
    }
}

enum Walk {
    Io(std::io::Error),
    Bound(&'static str, u64, u64),
}

impl From<std::io::Error> for Walk {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// Entries whose bytes are in the vault, fsynced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// In the order of the parts.
    pub entries: Vec<Entry>,
    /// Sum of their lengths.
    pub total: Bytes,
    /// Bytes that the vault did not have yet.
    pub uploaded: Bytes,
}

impl VaultClient {
    /// Hashes parts of files below a folder and uploads what the vault does not have. Follows no link below the folder, since
    /// the task that wrote it may still run.
    ///
    /// # Errors
    /// A part past the end of its file, or one that changes meanwhile; bounds; the vault.
    pub async fn stage(&self, folder: &Path, parts: Vec<Part>) -> Result<Staged, ClientError> {
        if parts.len() > MAX_ENTRIES {
            let limit = Bytes::new(MAX_ENTRIES as u64);
            return Err(ClientError::TooLarge { what: "entries", asked: parts.len() as u64, limit });
        }
        let entries = self.hash(folder, &parts).await?;
        self.bring_in(folder, &parts, entries).await
    }

    /// As [`Self::stage`], for files that nobody can change any more and whose digests are known: what the vault has is not
    /// read again. It hashes what it gets, so a false digest is refused.
    ///
    /// # Errors
    /// As [`Self::stage`].
    pub async fn stage_hashed(
        &self,
        folder: &Path,
        parts: Vec<Part>,
        digests: Vec<Digest>,
    ) -> Result<Staged, ClientError> {
        if parts.len() > MAX_ENTRIES || digests.len() != parts.len() {
            let limit = Bytes::new(MAX_ENTRIES as u64);
            return Err(ClientError::TooLarge { what: "entries", asked: parts.len() as u64, limit });
        }
        let entry = |(part, digest): (&Part, Digest)| Entry {
            name: part.name.clone(),
            dtype: part.dtype.clone(),
            shape: part.shape.clone(),
            digest,
            length: part.length,
        };
        let entries = parts.iter().zip(digests).map(entry).collect();
        self.bring_in(folder, &parts, entries).await
    }

    /// Uploads what the vault does not have.
    async fn bring_in(&self, folder: &Path, parts: &[Part], entries: Vec<Entry>) -> Result<Staged, ClientError> {
        let mut unique: HashMap<Digest, &Part> = HashMap::new();
        for (entry, part) in entries.iter().zip(parts) {
            unique.entry(entry.digest).or_insert(part);
        }
        let asked: Vec<_> = unique.keys().copied().collect();
        let present = self.present(&asked).await?;
        let missing: Vec<_> = unique.into_iter().filter(|(digest, _)| !present.whole.contains(digest)).collect();
        let uploaded = missing.iter().map(|(_, part)| part.length).sum();
        let uploads = futures::stream::iter(missing)
            .map(|(digest, part)| {
                let begin = present.partial.get(&digest).copied().unwrap_or(0);
                async move {
                    let path = part.file.below(folder);
                    let source = open(folder, part).map_err(|error| judge(error, &path))?;
                    self.upload(digest, source, begin, &path).await
                }
            })
            .buffer_unordered(self.limits().parallel.max(1))
            .try_collect::<()>();
        tokio::select! {
            done = uploads => done?,
            never = self.remind(&asked) => match never {},
        }
        let total = Bytes::new(entries.iter().map(|entry| entry.length).sum());
        Ok(Staged { entries, total, uploaded: Bytes::new(uploaded) })
    }

    /// Asks for blobs again and again: what the vault has is kept only for a while after it was asked for.
    async fn remind(&self, blobs: &[Digest]) -> Infallible {
        loop {
            sleep(self.limits().remind).await;
            if let Err(error) = self.present(blobs).await {
                // Whether the vault can be reached is for the uploads to find out.
                tracing::debug!(%error, "the vault could not be reminded");
            }
        }
    }

    async fn hash(&self, folder: &Path, parts: &[Part]) -> Result<Vec<Entry>, ClientError> {
        futures::stream::iter(parts.iter().cloned())
            .map(|part| {
                let folder: PathBuf = folder.to_owned();
                async move {
                    let path = part.file.below(&folder);
                    let hashed = off_thread(move || {
                        let digest = open(&folder, &part)?.digest()?;
                        let Part { name, dtype, shape, length, .. } = part;
                        Ok(Entry { name, dtype, shape, digest, length })
                    });
                    hashed.await?.map_err(|error| judge(error, &path))
                }
            })
            .buffered(self.limits().parallel.max(1))
            .try_collect()
            .await
    }
}

fn open(folder: &Path, part: &Part) -> std::io::Result<Source> {
    let file = open_beneath(folder, &part.file)?;
    let end = part.offset.checked_add(part.length);
    if end.is_none_or(|end| end > i64::MAX.cast_unsigned()) {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Source { file: Arc::new(file), offset: part.offset, length: part.length })
}

/// What a read that failed says about the file.
pub(crate) fn judge(error: std::io::Error, path: &Path) -> ClientError {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => ClientError::Changed(path.to_owned()),
        _ => ClientError::Io { action: "read", path: path.to_owned(), source: error },
    }
}
