//! The way to the site's vault, as the agent needs it: fetch what a task starts from, store what it leaves.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use sluice_types::{AttemptId, Bytes, Digest, Generation, JobId, Reason};
use sluice_vault::archive::{self, ArchiveLimits};
use sluice_vault::{
    CheckpointManifest, ClientError, Entry, FILE_DTYPE, Manifest, Materialised, Part, RelativePath, VaultClient,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::error::in_one_line;
use crate::home::StoredOutputs;
use crate::supervisor::StagedManifest;

/// Why something could not be fetched or stored.
#[derive(Debug, thiserror::Error)]
pub enum DepotError {
    /// The vault or the way to it.
    #[error("the vault failed")]
    Vault(#[from] ClientError),
    /// An input is no archive and has no path to be placed at.
    #[error("input {0} is no archive, so it needs a path below the working directory")]
    NoPlace(Digest),
    /// A path that leaves the working directory.
    #[error("{0:?} is no path below the working directory")]
    Path(String),
    /// The files of a checkpoint are not those that were announced.
    #[error("entry `{0}` changed after it was announced")]
    Changed(String),
    /// The models in use fill the room for models.
    #[error("a model of {size} has no room: {used} of {bound} are in use; end other replicas here, or raise the bound")]
    NoRoom {
        /// The model's size.
        size: Bytes,
        /// Bytes of models in use.
        used: Bytes,
        /// The bound.
        bound: Bytes,
    },
    /// A file could not be read or written.
    #[error("files could not be read or written")]
    Io(#[from] std::io::Error),
}

impl DepotError {
    /// Whether trying again cannot help.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Vault(error) => match error {
                ClientError::Vault(status) => status.code() == tonic::Code::InvalidArgument,
                ClientError::Manifest(_)
                | ClientError::Path { .. }
                | ClientError::TooLarge { .. }
                | ClientError::Changed(_)
                | ClientError::Archive(_) => true,
                _ => false,
            },
            Self::NoPlace(_) | Self::Path(_) | Self::Changed(_) => true,
            Self::NoRoom { .. } | Self::Io(_) => false,
        }
    }

    /// The documented word, where there is a better one than that of the situation.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        matches!(self, Self::Vault(ClientError::TooLarge { .. })).then_some(Reason::TooLarge)
    }
}

/// A checkpoint that is sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// BLAKE3 of its manifest.
    pub manifest: Digest,
    /// All bytes of its state.
    pub bytes: u64,
}

/// Whose outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputsOwner {
    /// Of which job.
    pub job: JobId,
    /// Of which try.
    pub attempt: AttemptId,
    /// The fence under which they were written.
    pub generation: Generation,
    /// The task's place in its gang.
    pub rank: u32,
    /// Size of the gang.
    pub world_size: u32,
    /// Last step told.
    pub step: u64,
}

/// What is stored at a site, for one node of it. Every call may be dropped and made again.
#[async_trait]
pub trait Depot: Send + Sync + fmt::Debug {
    /// Unpacks an archive, or places a single file, at `path` below `work` (empty = `work` itself).
    async fn fetch(&self, digest: Digest, work: &Path, path: &str, scratch: &Path) -> Result<(), DepotError>;

    /// Writes one file, whatever it holds, to `to`.
    async fn fetch_file(&self, digest: Digest, to: &Path) -> Result<(), DepotError>;

    /// Writes a checkpoint's files into the new folder `into`.
    async fn fetch_checkpoint(&self, manifest: Digest, rank: u32, into: &Path) -> Result<Materialised, DepotError>;

    /// Stores the bytes of a staged checkpoint and seals its manifest: durable at this site when it returns.
    async fn store_checkpoint(
        &self,
        folder: &Path,
        staged: &StagedManifest,
        world_size: u32,
        parent: Option<Digest>,
    ) -> Result<Sealed, DepotError>;

    /// Packs and stores the outputs of a task, and seals a manifest that keeps them. `None` where there are none.
    async fn store_outputs(
        &self,
        folder: &Path,
        scratch: &Path,
        owner: OutputsOwner,
    ) -> Result<Option<StoredOutputs>, DepotError>;
}

/// Conversations of each kind at a time.
const ROOM: usize = 64;

/// Room for conversations, shared by all depots of an agent. Each holds a thread of the runtime's pool and needs further
/// ones for its files: were there as many conversations as threads, all would wait for ever. Those that store have room
/// of their own, so that tasks that wait for slow inputs hold up no checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct Rooms {
    fetching: Arc<Semaphore>,
    storing: Arc<Semaphore>,
}

impl Rooms {
    pub(crate) fn new() -> Self {
        Self::of(ROOM)
    }

    fn of(each: usize) -> Self {
        Self { fetching: Arc::new(Semaphore::new(each)), storing: Arc::new(Semaphore::new(each)) }
    }
}

/// A [`Depot`] over the network.
#[derive(Debug, Clone)]
pub struct VaultDepot {
    client: VaultClient,
    rooms: Rooms,
}

impl VaultDepot {
    /// Over this client, with room of its own.
    #[must_use]
    pub fn new(client: VaultClient) -> Self {
        Self::within(client, Rooms::new())
    }

    /// Over this client.
    pub(crate) fn within(client: VaultClient, rooms: Rooms) -> Self {
        Self { client, rooms }
    }
}

/// Runs one conversation with the vault on a thread of its own, once there is room: its futures hold borrows across awaits
/// that cannot be shown to be `Send`. Dropped, the conversation ends at its next await.
async fn apart<T, F>(room: &Arc<Semaphore>, talk: impl FnOnce() -> F + Send + 'static) -> Result<T, DepotError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, DepotError>>,
{
    let room = room.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let dropped = CancellationToken::new();
    let _guard = dropped.clone().drop_guard();
    let handle = tokio::runtime::Handle::current();
    let done = tokio::task::spawn_blocking(move || {
        // Held by the thread: a conversation that is dropped has it until it ends.
        let _room = room;
        handle.block_on(async {
            tokio::select! {
                done = talk() => done,
                () = dropped.cancelled() => Err(std::io::Error::from(std::io::ErrorKind::Interrupted).into()),
            }
        })
    });
    done.await.map_err(std::io::Error::other)?
}

#[async_trait]
impl Depot for VaultDepot {
    async fn fetch(&self, digest: Digest, work: &Path, path: &str, scratch: &Path) -> Result<(), DepotError> {
        let (client, work, path) = (self.client.clone(), work.to_owned(), path.to_owned());
        let scratch = scratch.to_owned();
        apart(&self.rooms.fetching, move || async move {
            client.ensure(&[], &[digest]).await?;
            client.get_file(digest, &scratch).await?;
            place(digest, &work, &path, &scratch)
        })
        .await
    }

    async fn fetch_file(&self, digest: Digest, to: &Path) -> Result<(), DepotError> {
        let (client, to) = (self.client.clone(), to.to_owned());
        apart(&self.rooms.fetching, move || async move {
            client.ensure(&[], &[digest]).await?;
            Ok(client.get_file(digest, &to).await.map(drop)?)
        })
        .await
    }

    async fn fetch_checkpoint(&self, manifest: Digest, rank: u32, into: &Path) -> Result<Materialised, DepotError> {
        let (client, into) = (self.client.clone(), into.to_owned());
        apart(&self.rooms.fetching, move || async move {
            client.ensure(&[manifest], &[]).await?;
            Ok(client.materialise(manifest, rank, &into).await?)
        })
        .await
    }

    async fn store_checkpoint(
        &self,
        folder: &Path,
        staged: &StagedManifest,
        world_size: u32,
        parent: Option<Digest>,
    ) -> Result<Sealed, DepotError> {
        let (client, folder, staged) = (self.client.clone(), folder.to_owned(), staged.clone());
        apart(&self.rooms.storing, move || async move {
            store_checkpoint(&client, &folder, staged, world_size, parent).await
        })
        .await
    }

    async fn store_outputs(
        &self,
        folder: &Path,
        scratch: &Path,
        owner: OutputsOwner,
    ) -> Result<Option<StoredOutputs>, DepotError> {
        if !folder.is_dir() || std::fs::read_dir(folder)?.next().is_none() {
            return Ok(None);
        }
        let (client, folder, scratch) = (self.client.clone(), folder.to_owned(), scratch.to_owned());
        apart(&self.rooms.storing, move || async move {
            // Left by a try that was interrupted.
            let _none = std::fs::remove_file(&scratch);
            let packed = client.pack_tar(&folder, &scratch, ArchiveLimits::default()).await;
            let _gone = std::fs::remove_file(&scratch);
            let packed = packed?;
            if packed.left_out > 0 {
                tracing::info!(left_out = packed.left_out, "outputs that are no plain files were left out");
            }
            if packed.entries == 0 {
                return Ok(None);
            }
            let (archive, size) = (packed.digest, packed.size.get());
            let manifest = client.seal(&outputs_manifest(owner, archive, size)).await?;
            Ok(Some(StoredOutputs { archive, size, manifest }))
        })
        .await
    }
}

/// The outputs as one file. Its manifest is this attempt's alone, so it can be forgotten without asking whose else the same
/// bytes are.
fn outputs_manifest(owner: OutputsOwner, archive: Digest, size: u64) -> Manifest {
    let entry = Entry {
        name: "outputs.tar".to_owned(),
        dtype: FILE_DTYPE.to_owned(),
        shape: Vec::new(),
        digest: archive,
        length: size,
    };
    Manifest::Task(CheckpointManifest {
        version: CheckpointManifest::VERSION,
        job: owner.job,
        attempt: owner.attempt,
        generation: owner.generation,
        rank: owner.rank,
        world_size: owner.world_size,
        step: owner.step,
        parent: None,
        cursor: serde_json::Value::Null,
        code: String::new(),
        entries: vec![entry],
        total: size,
    })
}

async fn store_checkpoint(
    client: &VaultClient,
    folder: &Path,
    staged: StagedManifest,
    world_size: u32,
    parent: Option<Digest>,
) -> Result<Sealed, DepotError> {
    let parts = parts(&staged)?;
    let stored = match staged.is_home() {
        true => client.stage_hashed(folder, parts, staged.entries.iter().map(|entry| entry.blake3).collect()).await?,
        false => client.stage(folder, parts).await?,
    };
    for (entry, announced) in stored.entries.iter().zip(&staged.entries) {
        if entry.digest != announced.blake3 {
            return Err(DepotError::Changed(entry.name.clone()));
        }
    }
    let manifest = CheckpointManifest {
        version: CheckpointManifest::VERSION,
        job: staged.job,
        attempt: staged.attempt,
        generation: staged.generation,
        rank: staged.rank,
        world_size,
        step: staged.step,
        parent,
        cursor: staged.cursor,
        code: staged.code,
        total: stored.total.get(),
        entries: stored.entries,
    };
    let manifest = client.seal(&Manifest::Task(manifest)).await?;
    Ok(Sealed { manifest, bytes: stored.total.get() })
}

fn parts(staged: &StagedManifest) -> Result<Vec<Part>, DepotError> {
    let part = |entry: &crate::supervisor::StagedEntry| {
        Ok(Part {
            name: entry.name.clone(),
            dtype: entry.dtype.clone(),
            shape: entry.shape.clone(),
            file: RelativePath::parse(&entry.file).map_err(|_| DepotError::Path(entry.file.clone()))?,
            offset: entry.offset,
            length: entry.length,
        })
    };
    staged.entries.iter().map(part).collect()
}

/// Unpacks or moves what was fetched, and takes the scratch file away.
fn place(digest: Digest, work: &Path, path: &str, scratch: &Path) -> Result<(), DepotError> {
    let target = match path {
        "" => None,
        path => Some(RelativePath::parse(path).map_err(|_| DepotError::Path(path.to_owned()))?),
    };
    let folder = target.as_ref().map_or_else(|| work.to_owned(), |path| path.below(work));
    if is_archive(scratch)? {
        beneath(work, &folder)?;
        std::fs::create_dir_all(&folder)?;
        archive::unpack(scratch, &folder, ArchiveLimits::default()).map_err(ClientError::from)?;
        std::fs::remove_file(scratch)?;
        return Ok(());
    }
    if target.is_none() {
        return Err(DepotError::NoPlace(digest));
    }
    let parent = folder.parent().unwrap_or(work);
    beneath(work, parent)?;
    std::fs::create_dir_all(parent)?;
    Ok(std::fs::rename(scratch, &folder)?)
}

/// Refuses a folder that an earlier archive has made a link on the way to.
fn beneath(work: &Path, folder: &Path) -> Result<(), DepotError> {
    let mut at = folder;
    while at != work {
        if std::fs::symlink_metadata(at).is_ok_and(|data| !data.is_dir()) {
            return Err(DepotError::Path(folder.display().to_string()));
        }
        let Some(parent) = at.parent() else { break };
        at = parent;
    }
    Ok(())
}

/// Whether a file begins as a tar archive does (POSIX.1-1988 `ustar` and what followed it).
fn is_archive(path: &Path) -> std::io::Result<bool> {
    let mut head = Vec::with_capacity(512);
    std::fs::File::open(path)?.take(512).read_to_end(&mut head)?;
    // An archive of nothing is two blocks of zeroes.
    Ok(head.get(257..262) == Some(b"ustar") || (head.len() == 512 && head.iter().all(|byte| *byte == 0)))
}

/// For logs.
pub(crate) fn told(error: &DepotError) -> String {
    in_one_line(error)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn more_conversations_than_threads_all_come_to_their_end() {
        let runtime = tokio::runtime::Builder::new_multi_thread().max_blocking_threads(3).enable_all().build().unwrap();
        let (rooms, talks) = (Rooms::of(1), 16);
        let mut all = tokio::task::JoinSet::new();
        for place in 0..talks {
            let room = if place % 2 == 0 { rooms.fetching.clone() } else { rooms.storing.clone() };
            // As each does for its files.
            let talk = || async { Ok(tokio::task::spawn_blocking(|| 7).await.unwrap()) };
            all.spawn_on(async move { apart(&room, talk).await }, runtime.handle());
        }
        let done = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), all.join_all()).await });
        // Threads that wait for each other would hold up its end as well.
        runtime.shutdown_background();
        assert_eq!(done.expect("they wait for each other").len(), talks);
    }

    #[test]
    fn whoever_waits_for_inputs_holds_up_no_checkpoint() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let rooms = Rooms::of(1);
        let stored = runtime.block_on(async {
            let slow = apart::<(), _>(&rooms.fetching, std::future::pending);
            let quick = apart(&rooms.storing, || std::future::ready(Ok(7)));
            let stored = async {
                tokio::select! {
                    biased;
                    never = slow => never.map(|()| 0),
                    stored = quick => stored,
                }
            };
            tokio::time::timeout(Duration::from_secs(20), stored).await
        });
        assert_eq!(stored.expect("it waits for the inputs").unwrap(), 7);
    }

    #[test]
    fn files_are_placed_and_archives_unpacked_only_inside() {
        let root = tempfile::tempdir().unwrap();
        let (work, scratch) = (root.path().join("work"), root.path().join("scratch"));
        std::fs::create_dir(&work).unwrap();
        let digest = Digest::from_bytes([1; 32]);
        std::fs::write(&scratch, "plain").unwrap();
        assert!(matches!(place(digest, &work, "", &scratch), Err(DepotError::NoPlace(_))));
        for bad in ["../x", "/x", "a/../../x"] {
            assert!(matches!(place(digest, &work, bad, &scratch), Err(DepotError::Path(_))), "{bad}");
        }
        place(digest, &work, "data/in.txt", &scratch).unwrap();
        assert_eq!(std::fs::read(work.join("data/in.txt")).unwrap(), b"plain");
        archive::pack(&work, &scratch, ArchiveLimits::default()).unwrap();
        place(digest, &work, "copy", &scratch).unwrap();
        assert_eq!(std::fs::read(work.join("copy/data/in.txt")).unwrap(), b"plain");
        assert!(!scratch.exists());
        std::os::unix::fs::symlink("/", work.join("out")).unwrap();
        std::fs::write(&scratch, "plain").unwrap();
        assert!(place(digest, &work, "out/tmp/escaped", &scratch).is_err());
    }
}
