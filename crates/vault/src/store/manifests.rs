//! Manifests: sealed only over what is complete, forgotten together with what no other one names.

use std::collections::HashSet;

use bytes::Bytes;
use object_store::{ObjectStore as _, PutMode, PutOptions, PutPayload};
use sluice_types::Digest;
use tokio::time::Instant;

use super::writer::too_large;
use super::{BlobStore, Kind, State, flat, hash_bytes};
use crate::error::StoreError;
use crate::manifest::{MAX_MANIFEST_BYTES, Manifest};
use crate::stats::count;

impl State {
    /// Which of the things a manifest names are not here, each once, with sizes where known. Those that are here are
    /// promised to the caller.
    fn missing(&mut self, manifest: &Manifest) -> Vec<(Digest, u64)> {
        let now = Instant::now();
        let mut missing = Vec::new();
        for (digest, length) in manifest.blobs() {
            match self.blobs.get_mut(&digest) {
                Some(blob) if blob.size == length => blob.touch(now),
                _ => missing.push((digest, length)),
            }
        }
        missing.extend(manifest.members().into_iter().filter(|it| !self.manifests.contains_key(it)).map(|it| (it, 0)));
        missing
    }

    fn refer(&mut self, manifest: &Manifest) {
        for digest in named(manifest) {
            *self.refs.entry(digest).or_insert(0) += 1;
        }
    }

    /// Takes the references back and tells what nobody names any more.
    fn release(&mut self, manifest: &Manifest) -> Vec<Digest> {
        let mut free = Vec::new();
        for digest in named(manifest) {
            if let Some(refs) = self.refs.get_mut(&digest) {
                *refs = refs.saturating_sub(1);
                if *refs == 0 {
                    self.refs.remove(&digest);
                    free.push(digest);
                }
            }
        }
        free
    }
}

fn named(manifest: &Manifest) -> impl Iterator<Item = Digest> {
    manifest.blobs().into_iter().map(|(digest, _)| digest).chain(manifest.members())
}

impl BlobStore {
    /// Seals a manifest: stores its bytes, durably, if everything it names is here and durable. Doing so again is fine.
    /// Returns its digest.
    ///
    /// # Errors
    /// [`StoreError::Manifest`] for bytes that break a rule, [`StoreError::Missing`] if something is not here; bounds;
    /// the disk.
    pub async fn seal(&self, bytes: Bytes) -> Result<Digest, StoreError> {
        let manifest = Manifest::parse(&bytes)?;
        let digest = hash_bytes(&bytes);
        let store = self.clone();
        flat(tokio::spawn(async move { store.seal_now(digest, &manifest, bytes).await }).await)?;
        Ok(digest)
    }

    async fn seal_now(&self, digest: Digest, manifest: &Manifest, bytes: Bytes) -> Result<(), StoreError> {
        let _flight = self.inner.flights.enter(digest).await;
        let size = bytes.len() as u64;
        {
            let limits = self.inner.limits;
            let mut state = self.state();
            if let Some((first, count)) = state.missing(manifest).split_first().map(|(it, rest)| (it.0, rest.len() + 1))
            {
                return Err(StoreError::Missing { first, count });
            }
            if state.manifests.contains_key(&digest) {
                return Ok(());
            }
            if state.manifests.len() >= limits.manifests {
                return Err(too_large("manifests", state.manifests.len() as u64 + 1, limits.manifests as u64));
            }
            let used = state.used.saturating_add(size);
            if used > limits.total.get() {
                return Err(too_large("what this vault stores", used, limits.total.get()));
            }
            // From here on nothing it names can be deleted, though it is not sealed before its file is durable.
            state.refer(manifest);
        }
        let location = Kind::Manifest.location(&digest);
        let payload = PutPayload::from_bytes(bytes.clone());
        let written = self.inner.objects.put_opts(&location, payload, PutOptions::from(PutMode::Create)).await;
        let written = match written {
            // A file that is not in the index was set aside but could not be moved: make it whole.
            Err(object_store::Error::AlreadyExists { .. }) => {
                let overwrite = PutOptions::from(PutMode::Overwrite);
                self.inner.objects.put_opts(&location, PutPayload::from_bytes(bytes), overwrite).await
            }
            other => other,
        };
        let mut state = self.state();
        if let Err(source) = written {
            state.release(manifest);
            return Err(StoreError::Objects { action: "write a manifest", source });
        }
        state.manifests.insert(digest, size);
        state.used = state.used.saturating_add(size);
        drop(state);
        count(&self.stats().manifests_sealed, 1);
        Ok(())
    }

    /// Reads a sealed manifest, verified. Also returns its bytes.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Corrupt`]; the disk.
    pub async fn manifest(&self, digest: Digest) -> Result<(Manifest, Bytes), StoreError> {
        let size = self.state().manifests.get(&digest).copied().ok_or(StoreError::NotFound(digest))?;
        if size > MAX_MANIFEST_BYTES as u64 {
            return Err(too_large("the manifest", size, MAX_MANIFEST_BYTES as u64));
        }
        let bytes = self.open_kind(Kind::Manifest, digest, size, 0)?.rest().await?;
        Ok((Manifest::parse(&bytes)?, bytes))
    }

    /// Digests of the blobs, in no order.
    #[must_use]
    pub fn blobs(&self) -> Vec<Digest> {
        self.state().blobs.keys().copied().collect()
    }

    /// Digests of the sealed manifests, in no order.
    #[must_use]
    pub fn manifests(&self) -> Vec<Digest> {
        self.state().manifests.keys().copied().collect()
    }

    /// What a manifest names that is not here, each once, with its size (0 for members of a group).
    #[must_use]
    pub fn missing(&self, manifest: &Manifest) -> Vec<(Digest, u64)> {
        self.state().missing(manifest)
    }

    /// Forgets a manifest, with the blobs and members that no other names; or a blob that none names. What was promised
    /// lately goes later, with [`Self::sweep`]. A manifest that a group names stays until the group is forgotten.
    ///
    /// # Errors
    /// The disk.
    pub async fn forget(&self, digest: Digest) -> Result<(), StoreError> {
        let store = self.clone();
        flat(tokio::spawn(async move { store.forget_now(digest).await }).await)
    }

    async fn forget_now(&self, digest: Digest) -> Result<(), StoreError> {
        // A group's members come on top; nothing below them has members.
        let mut waiting = vec![digest];
        let mut seen = HashSet::new();
        while let Some(digest) = waiting.pop() {
            if !seen.insert(digest) {
                continue;
            }
            if !self.state().manifests.contains_key(&digest) {
                self.delete(digest).await?;
                continue;
            }
            let _flight = self.inner.flights.enter(digest).await;
            let manifest = match self.manifest_under_flight(digest).await {
                Ok(manifest) => manifest,
                Err(StoreError::NotFound(_) | StoreError::Corrupt(_)) => continue,
                Err(other) => return Err(other),
            };
            let size = {
                let mut state = self.state();
                if state.refs.contains_key(&digest) {
                    continue;
                }
                let Some(size) = state.manifests.remove(&digest) else { continue };
                state.used = state.used.saturating_sub(size);
                size
            };
            // First the manifest: blobs without one are harmless, the other way round is a broken promise.
            if let Err(error) = self.remove_object(Kind::Manifest, digest).await {
                // Its file is still here, and so is what it names: it counts until a later try succeeds.
                let mut state = self.state();
                state.manifests.insert(digest, size);
                state.used = state.used.saturating_add(size);
                return Err(error);
            }
            let mut state = self.state();
            let free = state.release(&manifest);
            // Should deleting one of them fail, the next sweep goes on with them.
            let blobs: Vec<_> = free.iter().filter(|it| state.blobs.contains_key(it)).copied().collect();
            state.condemned.extend(blobs);
            waiting.extend(free);
        }
        Ok(())
    }

    /// As [`Self::manifest`], for whoever holds the flight: a damaged one is set aside without taking it again.
    async fn manifest_under_flight(&self, digest: Digest) -> Result<Manifest, StoreError> {
        let location = Kind::Manifest.location(&digest);
        let read = self.inner.objects.get_opts(&location, object_store::GetOptions::default()).await;
        let bytes = match read {
            Ok(found) => found.bytes().await,
            Err(source) => Err(source),
        };
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(object_store::Error::NotFound { .. }) => return Err(StoreError::NotFound(digest)),
            Err(source) => return Err(StoreError::Objects { action: "read a manifest", source }),
        };
        if hash_bytes(&bytes) != digest {
            self.set_aside_now(Kind::Manifest, digest).await;
            return Err(StoreError::Corrupt(digest));
        }
        Ok(Manifest::parse(&bytes)?)
    }

    /// At start: reads every manifest once, so that damaged ones are known and references are counted.
    pub(super) async fn count_references(&self) {
        for digest in self.manifests() {
            match self.manifest(digest).await {
                Ok((manifest, _)) => self.state().refer(&manifest),
                // Its blobs stay until somebody forgets them one by one.
                Err(error) => tracing::error!(%digest, %error, "a manifest could not be read at start"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use sluice_types::{AttemptId, Generation, JobId};

    use super::*;
    use crate::manifest::{CheckpointManifest, Entry};
    use crate::store::StoreLimits;

    fn checkpoint(blobs: &[Bytes]) -> Bytes {
        let entry = |blob: &Bytes| Entry {
            name: format!("w{}", blob[0]),
            dtype: "u8".into(),
            shape: vec![blob.len() as u64],
            digest: hash_bytes(blob),
            length: blob.len() as u64,
        };
        let entries: Vec<_> = blobs.iter().map(entry).collect();
        let manifest = CheckpointManifest {
            version: CheckpointManifest::VERSION,
            job: JobId::from_raw(1),
            attempt: AttemptId::from_raw(2),
            generation: Generation::new(3),
            rank: 0,
            world_size: 1,
            step: 1,
            parent: None,
            cursor: serde_json::Value::Null,
            code: String::new(),
            total: entries.iter().map(|entry| entry.length).sum(),
            entries,
        };
        Manifest::Task(manifest).encode().unwrap().0
    }

    #[tokio::test]
    async fn what_could_not_be_deleted_is_still_here_and_goes_with_a_later_try() {
        let folder = tempfile::tempdir().unwrap();
        let limits = StoreLimits { promise: Duration::ZERO, ..StoreLimits::default() };
        let open = || BlobStore::open(folder.path(), limits, Arc::default(), SystemTime::now());
        let store = open().await.unwrap();
        let blobs = [1, 2].map(|seed| Bytes::from(vec![seed; 1000]));
        for blob in &blobs {
            store.put(hash_bytes(blob), blob.clone()).await.unwrap();
        }
        let manifest = store.seal(checkpoint(&blobs)).await.unwrap();
        let stored = store.stored();
        let stuck = |digests: &[Digest]| *store.inner.stuck.lock().unwrap() = digests.to_vec();
        stuck(&[manifest]);
        assert!(store.forget(manifest).await.is_err());
        assert_eq!((store.manifests(), store.stored()), (vec![manifest], stored));
        assert!(!store.delete(hash_bytes(&blobs[0])).await.unwrap(), "a manifest names it");

        // The manifest goes this time, its blobs do not.
        stuck(&blobs.each_ref().map(|blob| hash_bytes(blob)));
        assert!(store.forget(manifest).await.is_err());
        assert_eq!((store.manifests().len(), store.blobs().len()), (0, 2));
        store.forget(manifest).await.unwrap();
        // One that cannot be deleted holds up none of the others.
        let first = store.blobs().into_iter().min().unwrap();
        stuck(&[first]);
        assert!(store.sweep().await.is_err());
        assert_eq!(store.blobs(), [first]);
        stuck(&[]);
        store.sweep().await.unwrap();
        assert_eq!((store.blobs().len(), store.stored().get()), (0, 0));
        drop(store);
        assert_eq!(open().await.unwrap().stored().get(), 0, "no file was left");
    }
}
