//! Manifests: sealed only over what is complete, forgotten together with what no other one names.

use std::collections::HashSet;

use bytes::Bytes;
use object_store::{ObjectStore as _, PutMode, PutOptions, PutPayload};
use sluice_types::Digest;
use tokio::time::Instant;

use super::references::{Hold, named};
use super::writer::too_large;
use super::{BlobStore, Kind, State, flat, hash_bytes};
use crate::error::StoreError;
use crate::flight::Flight;
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

    /// Takes a manifest in whose file is here.
    fn list(&mut self, digest: Digest, size: u64) {
        self.manifests.insert(digest, size);
        self.used = self.used.saturating_add(size);
    }
}

/// A group that is being forgotten: its members go first.
struct Group {
    digest: Digest,
    size: u64,
    manifest: Manifest,
    _flight: Flight,
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
        self.make_room(size).await;
        let hold = {
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
            state.refer(&named(manifest));
            Hold::taken(self, &mut state, manifest)
        };
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
        written.map_err(StoreError::objects("write a manifest"))?;
        {
            let mut state = self.state();
            state.list(digest, size);
            if state.aside.remove(&digest) {
                // Those from before it was set aside still count.
                let _none = hold.release(&mut state);
            } else {
                hold.leave(&mut state);
            }
        }
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
        let mut groups = Vec::new();
        let mut forgotten = self.forget_all(digest, &mut groups).await;
        // A group's file goes after its members: were it to go first, a stop in between would leave them sealed, and
        // nobody would ever forget them.
        for group in groups.into_iter().rev() {
            if forgotten.is_ok() {
                forgotten = self.remove_object(Kind::Manifest, group.digest).await;
            }
            if forgotten.is_err() {
                // Its file is still here: whoever forgets it again goes on with what is left of its members.
                let mut state = self.state();
                state.list(group.digest, group.size);
                state.refer(&named(&group.manifest));
            }
        }
        forgotten
    }

    /// Forgets all but the files of groups, which are out of the index when this returns.
    async fn forget_all(&self, digest: Digest, groups: &mut Vec<Group>) -> Result<(), StoreError> {
        // A group's members come on top; nothing below them has members.
        let mut waiting = vec![digest];
        let mut seen = HashSet::new();
        while let Some(digest) = waiting.pop() {
            if !seen.insert(digest) {
                continue;
            }
            if !self.state().manifests.contains_key(&digest) {
                self.state().forget_unread(&digest);
                self.delete(digest).await?;
                continue;
            }
            let flight = self.inner.flights.enter(digest).await;
            let manifest = match self.manifest_under_flight(digest).await {
                Ok(manifest) => manifest,
                Err(StoreError::NotFound(_) | StoreError::Corrupt(_)) => {
                    self.set_aside_now(Kind::Manifest, digest).await;
                    self.state().forget_unread(&digest);
                    continue;
                }
                Err(other) => return Err(other),
            };
            let (size, hold) = {
                let mut state = self.state();
                if state.refs.contains_key(&digest) {
                    continue;
                }
                let Some(size) = state.manifests.remove(&digest) else { continue };
                state.used = state.used.saturating_sub(size);
                (size, Hold::taken(self, &mut state, &manifest))
            };
            if !manifest.members().is_empty() {
                waiting.extend(hold.release(&mut self.state()));
                groups.push(Group { digest, size, manifest, _flight: flight });
                continue;
            }
            // First the manifest: blobs without one are harmless, the other way round is a broken promise.
            if let Err(error) = self.remove_object(Kind::Manifest, digest).await {
                // Its file is still here, and so is what it names: it counts until a later try succeeds.
                let mut state = self.state();
                state.list(digest, size);
                hold.leave(&mut state);
                return Err(error);
            }
            let mut state = self.state();
            let free = hold.release(&mut state);
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
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use sluice_types::{AttemptId, Generation, JobId};

    use super::*;
    use crate::manifest::{CheckpointManifest, Entry, GroupManifest, Member};
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

    #[tokio::test]
    async fn a_group_whose_forgetting_was_interrupted_is_forgotten_whole_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let limits = StoreLimits { promise: Duration::ZERO, ..StoreLimits::default() };
        let open = || BlobStore::open(folder.path(), limits, Arc::default(), SystemTime::now());
        let store = open().await.unwrap();
        let mut members = Vec::new();
        for rank in 0..2u8 {
            let blob = Bytes::from(vec![rank + 1; 1000]);
            store.put(hash_bytes(&blob), blob.clone()).await.unwrap();
            let Manifest::Task(mut task) = Manifest::parse(&checkpoint(&[blob])).unwrap() else { panic!() };
            (task.rank, task.world_size) = (rank.into(), 2);
            let manifest = store.seal(Manifest::Task(task).encode().unwrap().0).await.unwrap();
            members.push(Member { rank: rank.into(), manifest, length: 1000 });
        }
        let group = GroupManifest {
            version: 1,
            job: JobId::from_raw(1),
            attempt: AttemptId::from_raw(2),
            generation: Generation::new(3),
            world_size: 2,
            step: 1,
            parent: None,
            total: 2000,
            members: members.clone(),
        };
        let group = store.seal(Manifest::Group(group).encode().unwrap().0).await.unwrap();
        *store.inner.stuck.lock().unwrap() = members.iter().map(|member| member.manifest).collect();
        assert!(store.forget(group).await.is_err());
        assert_eq!(store.manifests().len(), 3);
        drop(store);
        let store = open().await.unwrap();
        store.forget(group).await.unwrap();
        assert_eq!((store.manifests().len(), store.stored().get()), (0, 0));
        drop(store);
        assert_eq!(open().await.unwrap().stored().get(), 0, "no file was left");
    }
}
