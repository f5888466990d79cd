//! Who needs what: how many manifests name a blob or another manifest.
//!
//! The law: what is counted is named by the manifests of the index, by those that were set aside and are not forgotten,
//! and by those that somebody holds. Only the first can be read again at any time, so only while there are no others can
//! all be counted anew.

use std::collections::HashMap;
use std::time::Duration;

use sluice_types::Digest;
use tokio::time::sleep;

use super::{BlobStore, Kind, State};
use crate::error::StoreError;
use crate::manifest::Manifest;

/// Tries to read a manifest at start, and the pause after the first, which doubles: what the disk or the table of open
/// files refuses once it may give a moment later.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);

impl State {
    pub(super) fn refer(&mut self, names: &[Digest]) {
        self.changes += 1;
        for digest in names {
            *self.refs.entry(*digest).or_insert(0) += 1;
        }
    }

    /// Takes the references back and tells what nobody names any more.
    pub(super) fn release(&mut self, names: &[Digest]) -> Vec<Digest> {
        self.changes += 1;
        let mut free = Vec::new();
        for digest in names {
            if let Some(refs) = self.refs.get_mut(digest) {
                *refs = refs.saturating_sub(1);
                if *refs == 0 {
                    self.refs.remove(digest);
                    free.push(*digest);
                }
            }
        }
        free
    }

    /// Forgets a manifest whose bytes are lost: what it named is known only from all the others.
    pub(super) fn forget_unread(&mut self, digest: &Digest) {
        if !self.refs.contains_key(digest) && self.aside.remove(digest) {
            self.stale = true;
        }
    }
}

/// References of a manifest that is not in the index: it is being sealed, copied or forgotten. Nothing that it names can
/// be deleted until this is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Hold {
    store: BlobStore,
    names: Option<Vec<Digest>>,
}

impl Hold {
    /// Takes them over from the index, which has just lost the manifest.
    pub(super) fn taken(store: &BlobStore, state: &mut State, manifest: &Manifest) -> Self {
        state.holds += 1;
        state.changes += 1;
        Self { store: store.clone(), names: Some(named(manifest)) }
    }

    /// Leaves them to the index, which has just got the manifest.
    pub(super) fn leave(mut self, state: &mut State) {
        self.names = None;
        state.holds = state.holds.saturating_sub(1);
        state.changes += 1;
    }

    /// Gives them back and tells what nobody names any more.
    pub(super) fn release(mut self, state: &mut State) -> Vec<Digest> {
        let free = state.release(&self.names.take().unwrap_or_default());
        state.holds = state.holds.saturating_sub(1);
        free
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(names) = self.names.take() else { return };
        let store = self.store.clone();
        let mut state = store.state();
        // What nobody else names goes when it is old: whoever held it is likely to come again.
        let _free = state.release(&names);
        state.holds = state.holds.saturating_sub(1);
    }
}

/// What a manifest names, each once.
pub(super) fn named(manifest: &Manifest) -> Vec<Digest> {
    manifest.blobs().into_iter().map(|(digest, _)| digest).chain(manifest.members()).collect()
}

impl BlobStore {
    /// Keeps what a manifest names from deletion, be it here already or on its way.
    pub(crate) fn hold(&self, manifest: &Manifest) -> Hold {
        let mut state = self.state();
        state.refer(&named(manifest));
        Hold::taken(self, &mut state, manifest)
    }

    /// At start: reads every manifest once, so that damaged ones are known and references are counted. One that cannot
    /// be read now may be whole: without its references, what it names would be deleted under it.
    pub(super) async fn count_references(&self) -> Result<(), StoreError> {
        for digest in self.manifests() {
            match self.read_patiently(digest).await {
                Ok(manifest) => self.state().refer(&named(&manifest)),
                Err(error @ (StoreError::NotFound(_) | StoreError::Corrupt(_) | StoreError::TooLarge { .. })) => {
                    tracing::error!(%digest, %error, "a manifest is damaged");
                    self.set_aside(Kind::Manifest, digest).await;
                    // Nothing was counted for it. What it names goes when it is old, unless it is sealed again.
                    self.state().aside.remove(&digest);
                }
                Err(error) => {
                    tracing::error!(%digest, "a manifest cannot be read");
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn read_patiently(&self, digest: Digest) -> Result<Manifest, StoreError> {
        let mut pause = PAUSE;
        for _ in 1..TRIES {
            match self.manifest(digest).await {
                Err(error @ (StoreError::Io { .. } | StoreError::Objects { .. })) => {
                    tracing::warn!(%digest, error = %crate::status::chain(&error), "a manifest cannot be read now");
                    sleep(pause).await;
                    pause *= 2;
                }
                other => return other.map(|(manifest, _)| manifest),
            }
        }
        self.manifest(digest).await.map(|(manifest, _)| manifest)
    }

    /// Counts all references anew where a manifest was forgotten whose bytes were lost, and lets go of what only that one
    /// named. Where something changes meanwhile a later call has to do it, at the latest the next start.
    pub(super) async fn recount(&self) -> Result<(), StoreError> {
        let settled = |state: &State| state.stale && state.aside.is_empty() && state.holds == 0;
        let changes = {
            let state = self.state();
            if !settled(&state) {
                return Ok(());
            }
            state.changes
        };
        let mut refs = HashMap::new();
        for digest in self.manifests() {
            let manifest = match self.manifest(digest).await {
                Ok((manifest, _)) => manifest,
                Err(StoreError::NotFound(_) | StoreError::Corrupt(_)) => return Ok(()),
                Err(other) => return Err(other),
            };
            for named in named(&manifest) {
                *refs.entry(named).or_insert(0) += 1;
            }
        }
        let free: Vec<_> = {
            let mut state = self.state();
            if !settled(&state) || state.changes != changes {
                return Ok(());
            }
            state.stale = false;
            let before = std::mem::replace(&mut state.refs, refs);
            before.into_keys().filter(|digest| !state.refs.contains_key(digest)).collect()
        };
        let mut forgotten = Ok(());
        for digest in free {
            forgotten = forgotten.and(self.forget(digest).await);
        }
        forgotten
    }
}
