//! Blobs and manifests on disk, by digest.
//!
//! One folder:
//! * `blobs/ab/abcd…` - complete, verified, fsynced;
//! * `manifests/ab/abcd…` - sealed: everything they name was complete when they were written;
//! * `partial/abcd…` - beginnings of blobs whose upload or transfer was cut, kept to go on from;
//! * `corrupt/abcd…` - what was found damaged, for whoever wants to know why; bounded;
//! * `lock` - held while a vault runs on the folder.
//!
//! `partial` is a spool of plain files, since no object store can append; everything else goes through `object_store`
//! with fsync switched on, so that a bucket can take its place. An index in memory answers who is here; it is built
//! from the folder at start and is never ahead of the disk.
//!
//! Two rules keep acknowledged bytes safe. Whoever changes a digest's file holds its flight. And whether a blob may go is
//! decided under the index lock, in the same breath in which it leaves the index, so a seal either sees it go or keeps it.

mod beginnings;
mod manifests;
mod reader;
mod recover;
mod references;
mod writer;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use object_store::ObjectStore as _;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use sluice_types::{Bytes, Digest};
use tokio::time::Instant;

pub use self::reader::BlobReader;
pub use self::writer::{Begin, BlobWriter};
use crate::error::StoreError;
use crate::flight::Flights;
use crate::stats::{VaultStats, count};

/// BLAKE3 of bytes in memory.
#[must_use]
pub fn hash_bytes(bytes: &[u8]) -> Digest {
    Digest::from_bytes(*blake3::hash(bytes).as_bytes())
}

/// Bounds of a store.
#[derive(Debug, Clone, Copy)]
pub struct StoreLimits {
    /// Of everything on disk.
    pub total: Bytes,
    /// Of one blob.
    pub blob: Bytes,
    /// How many blobs.
    pub blobs: usize,
    /// How many manifests.
    pub manifests: usize,
    /// How many beginnings of cut transfers are kept. The oldest go where room is wanted, too.
    pub partials: usize,
    /// How long nobody may have gone on with such a beginning.
    pub partial_age: Duration,
    /// How long a blob that somebody asked for or stored is kept from deletion although no manifest names it: time for
    /// the manifest to come.
    pub promise: Duration,
    /// How long a blob is kept that no manifest names and nobody asked for: an input, which can be fetched again, or what
    /// is left of a checkpoint that was never sealed. `None` = for ever.
    pub unnamed: Option<Duration>,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            total: Bytes::mib(256 << 10),
            blob: Bytes::mib(64 << 10),
            blobs: 1 << 20,
            manifests: 65_536,
            partials: 4096,
            partial_age: Duration::from_secs(7 * 86_400),
            promise: Duration::from_secs(15 * 60),
            unnamed: Some(Duration::from_secs(86_400)),
        }
    }
}

/// Content-addressed blobs in one folder. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BlobStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    objects: LocalFileSystem,
    limits: StoreLimits,
    flights: Flights,
    state: Mutex<State>,
    stats: Arc<VaultStats>,
    /// Files that cannot be deleted.
    #[cfg(test)]
    stuck: Mutex<Vec<Digest>>,
    /// The disk is full as long as there is a beginning that nobody writes to.
    #[cfg(test)]
    full: std::sync::atomic::AtomicBool,
    // Advisory lock on the folder, let go by the kernel when the process ends.
    _lock: std::fs::File,
}

/// What is on disk, by digest.
#[derive(Debug, Default)]
struct State {
    blobs: HashMap<Digest, Blob>,
    /// With their sizes.
    manifests: HashMap<Digest, u64>,
    partials: HashMap<Digest, Partial>,
    /// How many manifests name a blob or manifest, be it here or set aside: those that are sealed, those that were until
    /// they were set aside, and those that somebody holds.
    refs: HashMap<Digest, u32>,
    /// Manifests that were set aside and not forgotten since. What they name stays.
    aside: BTreeSet<Digest>,
    /// Some manifest was forgotten whose bytes were lost: `refs` has too many, until they are counted anew.
    stale: bool,
    /// How many [`Hold`]s there are.
    holds: usize,
    /// Grows whenever references change.
    changes: u64,
    /// Named by no manifest any more, but promised to somebody when they were to go.
    condemned: BTreeSet<Digest>,
    /// Sum over all three maps, in bytes.
    used: u64,
    /// Grows with each partial, so that the oldest is known.
    clock: u64,
}

#[derive(Debug, Clone, Copy)]
struct Blob {
    size: u64,
    /// When somebody was last told that it is here.
    touched: Instant,
    /// How long nobody had been told before, where that is known from its file only.
    before: Duration,
}

impl Blob {
    fn stored(size: u64) -> Self {
        Self { size, touched: Instant::now(), before: Duration::ZERO }
    }

    fn touch(&mut self, now: Instant) {
        (self.touched, self.before) = (now, Duration::ZERO);
    }

    /// How long nobody has been told that it is here. A promise counts from [`Self::touched`], since a process knows
    /// nothing of those of the one before it.
    fn idle(&self, now: Instant) -> Duration {
        now.duration_since(self.touched).saturating_add(self.before)
    }
}

#[derive(Debug)]
struct Partial {
    /// On disk, or, while a writer is at work, what it may grow to.
    bytes: u64,
    order: u64,
    active: bool,
    /// When the last writer was done with it, by what this process knows.
    since: Instant,
    /// How long it had lain before.
    before: Duration,
}

impl Partial {
    fn idle(&self, now: Instant) -> Duration {
        now.duration_since(self.since).saturating_add(self.before)
    }
}

/// The two kinds of things that a digest can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Blob,
    Manifest,
}

impl Kind {
    const fn folder(self) -> &'static str {
        match self {
            Self::Blob => "blobs",
            Self::Manifest => "manifests",
        }
    }

    fn location(self, digest: &Digest) -> ObjectPath {
        let hex = digest.to_string();
        ObjectPath::from(format!("{}/{}/{hex}", self.folder(), &hex[..2]))
    }
}

impl BlobStore {
    /// Opens a folder, creating it where needed, and takes in what is there. `now` judges the age of files.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another vault has it; the disk, also where it fails to read a manifest: what that one
    /// names would be nobody's.
    pub async fn open(
        folder: &Path,
        limits: StoreLimits,
        stats: Arc<VaultStats>,
        now: SystemTime,
    ) -> Result<Self, StoreError> {
        let home = folder.to_owned();
        let lock = blocking(move || recover::prepare(&home)).await??;
        let objects = LocalFileSystem::new_with_prefix(folder).map_err(StoreError::objects("open the folder"))?;
        let home = folder.to_owned();
        let state = blocking(move || recover::read_folder(&home, limits, now)).await??;
        let inner = Inner {
            folder: folder.to_owned(),
            objects: objects.with_fsync(true),
            limits,
            flights: Flights::default(),
            state: Mutex::new(state),
            stats,
            #[cfg(test)]
            stuck: Mutex::default(),
            #[cfg(test)]
            full: Default::default(),
            _lock: lock,
        };
        let store = Self { inner: Arc::new(inner) };
        store.count_references().await?;
        Ok(store)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> &VaultStats {
        &self.inner.stats
    }

    /// Bytes on disk, and those that running uploads may still add.
    #[must_use]
    pub fn stored(&self) -> Bytes {
        Bytes::new(self.state().used)
    }

    /// Size of a blob or manifest that is here. Whoever was told so can rely on it for [`StoreLimits::promise`].
    #[must_use]
    pub fn size(&self, digest: &Digest) -> Option<Bytes> {
        let now = Instant::now();
        let mut state = self.state();
        if let Some(blob) = state.blobs.get_mut(digest) {
            blob.touch(now);
            return Some(Bytes::new(blob.size));
        }
        state.manifests.get(digest).map(|size| Bytes::new(*size))
    }

    /// How much of a blob is here from an upload or transfer that was cut.
    #[must_use]
    pub fn partial(&self, digest: &Digest) -> Option<Bytes> {
        self.state().partials.get(digest).filter(|partial| !partial.active).map(|partial| Bytes::new(partial.bytes))
    }

    /// Deletes a blob unless a manifest names it or somebody was told lately that it is here; then it goes with
    /// [`Self::sweep`]. Says whether it is gone.
    ///
    /// # Errors
    /// The disk.
    pub async fn delete(&self, digest: Digest) -> Result<bool, StoreError> {
        let store = self.clone();
        // Not to be left half done by a caller that goes away.
        flat(tokio::spawn(async move { store.delete_now(digest).await }).await)
    }

    async fn delete_now(&self, digest: Digest) -> Result<bool, StoreError> {
        let _flight = self.inner.flights.enter(digest).await;
        let blob = {
            let now = Instant::now();
            let mut state = self.state();
            let named = state.refs.contains_key(&digest);
            let Some(blob) = state.blobs.get(&digest).copied() else {
                state.condemned.remove(&digest);
                return Ok(true);
            };
            if named {
                state.condemned.remove(&digest);
                return Ok(false);
            }
            if now.duration_since(blob.touched) < self.inner.limits.promise {
                state.condemned.insert(digest);
                return Ok(false);
            }
            state.blobs.remove(&digest);
            state.condemned.remove(&digest);
            state.used = state.used.saturating_sub(blob.size);
            blob
        };
        if let Err(error) = self.remove_object(Kind::Blob, digest).await {
            // Its file is still here: it counts, and goes with a later sweep.
            let mut state = self.state();
            state.blobs.insert(digest, blob);
            state.used = state.used.saturating_add(blob.size);
            state.condemned.insert(digest);
            return Err(error);
        }
        count(&self.stats().blobs_deleted, 1);
        Ok(true)
    }

    /// Deletes what was promised when it was to go and is not any more, what nobody has named or asked for in
    /// [`StoreLimits::unnamed`], and beginnings that nobody has gone on with in [`StoreLimits::partial_age`]. Called now
    /// and then.
    ///
    /// # Errors
    /// The disk; of several, the first.
    pub async fn sweep(&self) -> Result<(), StoreError> {
        let now = Instant::now();
        self.evict_old_beginnings().await;
        let mut swept = self.recount().await;
        let gone: BTreeSet<_> = {
            let state = self.state();
            let limits = self.inner.limits;
            let promised = |blob: &Blob| now.duration_since(blob.touched) < limits.promise;
            let old = |blob: &Blob| limits.unnamed.is_some_and(|age| blob.idle(now) >= age) && !promised(blob);
            let unnamed = state.blobs.iter().filter(|(digest, blob)| !state.refs.contains_key(digest) && old(blob));
            unnamed.map(|(digest, _)| *digest).chain(state.condemned.iter().copied()).collect()
        };
        for digest in gone {
            // One that cannot be deleted holds up none of the others.
            swept = swept.and(self.delete(digest).await.map(|_| ()));
        }
        swept
    }

    async fn remove_object(&self, kind: Kind, digest: Digest) -> Result<(), StoreError> {
        #[cfg(test)]
        if self.inner.stuck.lock().unwrap().contains(&digest) {
            return Err(StoreError::Io { action: "delete a file", source: std::io::Error::other("stuck") });
        }
        let gone = self.inner.objects.delete_stream(Box::pin(futures::stream::once(async move {
            Ok::<_, object_store::Error>(kind.location(&digest))
        })));
        match futures::TryStreamExt::try_collect::<Vec<_>>(gone).await {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(StoreError::Objects { action: "delete a file", source }),
        }
    }

    /// Takes a damaged blob or manifest out of the index and moves its file aside, so that nobody is told that it is
    /// here and the next fetch brings it again. References to it stay counted.
    async fn set_aside(&self, kind: Kind, digest: Digest) {
        let store = self.clone();
        let done = tokio::spawn(async move {
            let _flight = store.inner.flights.enter(digest).await;
            store.set_aside_now(kind, digest).await;
        });
        if done.await.is_err() {
            tracing::error!(%digest, "setting a damaged file aside panicked");
        }
    }

    async fn set_aside_now(&self, kind: Kind, digest: Digest) {
        {
            let mut state = self.state();
            let size = match kind {
                Kind::Blob => state.blobs.remove(&digest).map(|blob| blob.size),
                Kind::Manifest => state.manifests.remove(&digest),
            };
            // Somebody else was faster.
            let Some(size) = size else { return };
            if kind == Kind::Manifest {
                state.aside.insert(digest);
            }
            state.used = state.used.saturating_sub(size);
        }
        count(&self.stats().blobs_corrupt, 1);
        tracing::error!(%digest, ?kind, "damaged on disk, set aside");
        let folder = self.inner.folder.clone();
        let moved = blocking(move || recover::move_aside(&folder, kind, &digest)).await;
        if !matches!(moved, Ok(Ok(()))) {
            // It stays where it is until it is overwritten; the index does not name it.
            tracing::error!(%digest, "could not move a damaged file aside");
        }
    }

    fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.inner.folder.join("partial").join(digest.to_string())
    }
}

/// Runs file work off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|gone| StoreError::Io { action: "finish file work", source: std::io::Error::other(gone) })
}

/// The result of a task that was spawned only to be finished in any case.
fn flat<T>(joined: Result<Result<T, StoreError>, tokio::task::JoinError>) -> Result<T, StoreError> {
    joined.unwrap_or_else(|gone| Err(StoreError::Io { action: "finish", source: std::io::Error::other(gone) }))
}
