//! Storing one blob: bytes are hashed as they come, and what was cut goes on from where it stopped.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStoreExt as _;
use object_store::path::Path as ObjectPath;
use sluice_types::Digest;
use tokio::time::Instant;

use super::{Blob, BlobStore, Kind, Partial, State, blocking, flat};
use crate::error::StoreError;
use crate::flight::Flight;
use crate::stats::count;

/// Whether there is anything to store.
#[derive(Debug)]
pub enum Begin {
    /// It is here already.
    Exists,
    /// Send the bytes from [`BlobWriter::offset`] on.
    Write(BlobWriter),
}

/// The only writer of one digest. Dropped before [`BlobWriter::commit`], it leaves what came for the next one.
#[derive(Debug)]
pub struct BlobWriter {
    digest: Digest,
    size: Option<u64>,
    offset: u64,
    // Absent only while file work runs; lost with that work if this future is dropped meanwhile.
    spool: Option<Box<Spool>>,
}

/// The file under `partial` with everything that must live as long as somebody writes to it: it moves into the file
/// work and back, so that the flight is never given up while a dropped caller's last write still runs.
#[derive(Debug)]
struct Spool {
    store: BlobStore,
    digest: Digest,
    path: PathBuf,
    file: File,
    hasher: blake3::Hasher,
    written: u64,
    done: bool,
    _flight: Flight,
}

impl BlobStore {
    /// Begins to store a blob. Waits while somebody else stores or deletes the same one.
    ///
    /// # Errors
    /// Bounds on the number of blobs; the disk.
    pub async fn begin(&self, digest: Digest) -> Result<Begin, StoreError> {
        let flight = self.inner.flights.enter(digest).await;
        if self.size(&digest).is_some() {
            return Ok(Begin::Exists);
        }
        {
            let mut state = self.state();
            let limit = self.inner.limits.blobs;
            if state.blobs.len() >= limit {
                return Err(too_large("the number of blobs", state.blobs.len() as u64 + 1, limit as u64));
            }
            state.clock += 1;
            let (order, since) = (state.clock, Instant::now());
            let begun = Partial { bytes: 0, order, active: true, since, before: Duration::ZERO };
            let partial = state.partials.entry(digest).or_insert(begun);
            (partial.active, partial.order) = (true, order);
        }
        let (store, path) = (self.clone(), self.partial_path(&digest));
        let spool = blocking(move || Spool::open(store, digest, path, flight)).await??;
        self.bound_beginnings().await;
        Ok(Begin::Write(BlobWriter { digest, size: None, offset: spool.written, spool: Some(Box::new(spool)) }))
    }

    /// Stores bytes in memory. Says whether they were here before.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] if the digest is another one; bounds; the disk.
    pub async fn put(&self, digest: Digest, bytes: Bytes) -> Result<bool, StoreError> {
        let Begin::Write(mut writer) = self.begin(digest).await? else { return Ok(true) };
        writer.expect(bytes.len() as u64).await?;
        let rest = bytes.slice(usize::try_from(writer.offset()).unwrap_or(usize::MAX).min(bytes.len())..);
        writer.write(rest).await?;
        writer.commit().await?;
        Ok(false)
    }
}

impl State {
    /// Sets what a partial file takes. `None` forgets it.
    pub(super) fn account(&mut self, digest: Digest, bytes: Option<u64>) {
        let before = match bytes {
            Some(bytes) => match self.partials.get_mut(&digest) {
                Some(partial) => std::mem::replace(&mut partial.bytes, bytes),
                None => return,
            },
            None => self.partials.remove(&digest).map_or(0, |partial| partial.bytes),
        };
        self.used = self.used.saturating_sub(before).saturating_add(bytes.unwrap_or(0));
    }
}

impl BlobWriter {
    /// How many bytes are here: where the sender has to go on.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Announces the size of the whole blob and reserves room for it.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] over a bound; [`StoreError::WrongSize`] where another size was announced before.
    pub async fn expect(&mut self, size: u64) -> Result<(), StoreError> {
        let spool = self.spool.as_ref().ok_or_else(lost)?;
        if let Some(known) = self.size.filter(|known| *known != size) {
            return Err(StoreError::WrongSize { digest: self.digest, size: known, claimed: size });
        }
        let limits = spool.store.inner.limits;
        if size > limits.blob.get() {
            return Err(too_large("the blob", size, limits.blob.get()));
        }
        if self.offset > size {
            // The beginning that was kept is of something else.
            self.restart().await?;
        }
        let store = self.spool.as_ref().ok_or_else(lost)?.store.clone();
        let held = |state: &State| state.partials.get(&self.digest).map_or(0, |partial| partial.bytes);
        let more = size.saturating_sub(held(&store.state()));
        store.make_room(more).await;
        let mut state = store.state();
        let held = held(&state);
        let used = state.used.saturating_sub(held).saturating_add(size);
        if used > limits.total.get() {
            return Err(too_large("what this vault stores", used, limits.total.get()));
        }
        state.account(self.digest, Some(size));
        drop(state);
        self.size = Some(size);
        Ok(())
    }

    /// Throws away what is here, to begin at 0.
    ///
    /// # Errors
    /// The disk.
    pub async fn restart(&mut self) -> Result<(), StoreError> {
        self.on_spool("restart a partial file", |spool| {
            spool.file.set_len(0)?;
            spool.file.seek(SeekFrom::Start(0))?;
            spool.hasher.reset();
            spool.written = 0;
            Ok(())
        })
        .await
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`StoreError::WrongSize`] if there are more than announced; the disk.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let size = self.size.unwrap_or(0);
        let end = self.offset.saturating_add(bytes.len() as u64);
        if end > size {
            return Err(StoreError::WrongSize { digest: self.digest, size, claimed: end });
        }
        self.on_spool("write a partial file", move |spool| {
            #[cfg(test)]
            spool.store.refuse_if_full()?;
            spool.file.write_all(&bytes)?;
            spool.hasher.update(&bytes);
            spool.written += bytes.len() as u64;
            Ok(())
        })
        .await
    }

    /// Checks the digest and makes the blob durable: file, then folder, are fsynced before this returns.
    ///
    /// # Errors
    /// [`StoreError::Truncated`] if bytes are missing (they can still come, later); [`StoreError::Mismatch`] if they
    /// are not those of the digest (they are thrown away); the disk.
    pub async fn commit(mut self) -> Result<(), StoreError> {
        let size = self.size.ok_or(StoreError::Truncated { digest: self.digest, have: self.offset, size: 0 })?;
        if self.offset != size {
            return Err(StoreError::Truncated { digest: self.digest, have: self.offset, size });
        }
        let spool = self.spool.take().ok_or_else(lost)?;
        // Between the rename and the index there is no way back, so a caller that goes away must not stop it there.
        flat(tokio::spawn(spool.publish()).await)
    }

    async fn on_spool(
        &mut self,
        action: &'static str,
        work: impl FnOnce(&mut Spool) -> std::io::Result<()> + Send + 'static,
    ) -> Result<(), StoreError> {
        let mut spool = self.spool.take().ok_or_else(lost)?;
        let (spool, result) = blocking(move || {
            let result = work(&mut spool);
            (spool, result)
        })
        .await?;
        self.offset = spool.written;
        if let Err(error) = &result
            && matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
        {
            // For the next try, which goes on from here.
            spool.store.make_room_on_disk(self.size.unwrap_or(0).saturating_sub(spool.written)).await;
        }
        // After a failed write file and hash may differ: without its spool this writer refuses to go on.
        result.map_err(StoreError::io(action))?;
        self.spool = Some(spool);
        Ok(())
    }
}

impl Spool {
    /// Opens the file and hashes what is in it.
    fn open(store: BlobStore, digest: Digest, path: PathBuf, flight: Flight) -> Result<Self, StoreError> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = match file {
            Ok(file) => file,
            Err(source) => {
                store.state().account(digest, None);
                return Err(StoreError::Io { action: "open a partial file", source });
            }
        };
        let hasher = blake3::Hasher::new();
        let mut spool = Self { store, digest, path, file, hasher, written: 0, done: false, _flight: flight };
        spool.hash_beginning().map_err(StoreError::io("read a partial file"))?;
        Ok(spool)
    }

    fn hash_beginning(&mut self) -> std::io::Result<()> {
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = self.file.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            self.hasher.update(&buffer[..read]);
            self.written += read as u64;
        }
    }

    async fn publish(self: Box<Self>) -> Result<(), StoreError> {
        let mut spool = blocking(move || self.check_and_sync()).await??;
        let (store, digest) = (spool.store.clone(), spool.digest);
        let from = ObjectPath::from(format!("partial/{digest}"));
        // Renames and fsyncs both folders.
        let renamed = store.inner.objects.rename(&from, &Kind::Blob.location(&digest)).await;
        renamed.map_err(StoreError::objects("move a blob into place"))?;
        {
            let mut state = store.state();
            state.account(digest, None);
            state.used = state.used.saturating_add(spool.written);
            state.blobs.insert(digest, Blob::stored(spool.written));
        }
        spool.done = true;
        count(&store.stats().blobs_stored, 1);
        Ok(())
    }

    fn check_and_sync(mut self: Box<Self>) -> Result<Box<Self>, StoreError> {
        let got = Digest::from_bytes(*self.hasher.finalize().as_bytes());
        if got != self.digest {
            count(&self.store.stats().digests_refused, 1);
            self.done = true;
            std::fs::remove_file(&self.path).map_err(StoreError::io("remove a refused file"))?;
            self.store.state().account(self.digest, None);
            return Err(StoreError::Mismatch { wanted: self.digest, got });
        }
        self.file.sync_all().map_err(StoreError::io("sync a blob"))?;
        Ok(self)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut state = self.store.state();
        if self.written == 0 {
            // Nothing worth keeping; a file that cannot be removed is found at the next start.
            let _gone = std::fs::remove_file(&self.path);
            state.account(self.digest, None);
            return;
        }
        state.account(self.digest, Some(self.written));
        if let Some(partial) = state.partials.get_mut(&self.digest) {
            (partial.active, partial.since, partial.before) = (false, Instant::now(), Duration::ZERO);
        }
    }
}

pub(super) fn too_large(what: &'static str, asked: u64, limit: u64) -> StoreError {
    StoreError::TooLarge { what, asked, limit }
}

fn lost() -> StoreError {
    StoreError::Io { action: "go on after a failed write", source: std::io::ErrorKind::BrokenPipe.into() }
}

#[cfg(test)]
impl BlobStore {
    fn refuse_if_full(&self) -> std::io::Result<()> {
        let full = self.inner.full.load(std::sync::atomic::Ordering::Relaxed);
        let filled = full && self.state().partials.values().any(|partial| !partial.active);
        if filled { Err(nix::errno::Errno::ENOSPC.into()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use std::time::SystemTime;

    use super::*;
    use crate::store::{StoreLimits, hash_bytes};

    #[tokio::test]
    async fn a_full_disk_says_so_and_is_freed_of_beginnings() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::UNIX_EPOCH;
        let store = BlobStore::open(folder.path(), StoreLimits::default(), Arc::default(), now).await.unwrap();
        let digests = [b"cut 1", b"cut 2"].map(|bytes| hash_bytes(bytes));
        for digest in digests {
            let Begin::Write(mut writer) = store.begin(digest).await.unwrap() else { panic!() };
            writer.expect(5).await.unwrap();
            writer.write("cut".into()).await.unwrap();
        }
        store.inner.full.store(true, Ordering::Relaxed);
        let refused = tonic::Status::from(store.put(hash_bytes(b"wanted"), "wanted".into()).await.unwrap_err());
        assert_eq!(refused.code(), tonic::Code::Unavailable);
        assert!(refused.message().contains("No space left on device"), "{refused:?}");
        store.put(hash_bytes(b"wanted"), "wanted".into()).await.unwrap();
        assert_eq!(store.stored().get(), 6);
        assert_eq!(digests.map(|digest| store.partial_path(&digest).exists()), [false, false]);
    }
}
