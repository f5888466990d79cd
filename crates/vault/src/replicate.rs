//! Copies a checkpoint from another site: its manifest, then only the blobs that are not here, then the seal.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use sluice_proto::v1::CopySource;
use sluice_types::Digest;

use crate::error::{FetchError, StoreError};
use crate::fetch::{Fetcher, Lane, Tally};
use crate::flight::Flights;
use crate::manifest::Manifest;
use crate::routes::Route;
use crate::store::BlobStore;
use crate::wire::{MIN_WINDOW, window_for};

/// Copies whose bytes are remembered, so that an order that is repeated over a new link is answered with the truth.
const REMEMBERED: usize = 1024;

/// Where to copy from.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    /// These sites, nearest first.
    Sites(Vec<CopySource>),
    /// Wherever the controller finds it.
    Anywhere,
}

impl Origin {
    fn routes(&self, window: u32) -> Vec<Route> {
        match self {
            Self::Sites(sources) => Route::to(sources, window),
            Self::Anywhere => Route::anywhere(window),
        }
    }

    /// The controller orders copies from sites; hosts do not care where from.
    const fn lane(&self) -> Lane {
        match self {
            Self::Sites(_) => Lane::Copies,
            Self::Anywhere => Lane::Awaited,
        }
    }
}

/// Makes checkpoints complete at this site.
pub(crate) struct Replicator {
    store: BlobStore,
    fetcher: Fetcher,
    copies: Flights,
    tallies: Mutex<Tallies>,
}

#[derive(Default)]
struct Tallies {
    by_manifest: HashMap<Digest, Arc<Tally>>,
    order: VecDeque<Digest>,
}

impl Replicator {
    pub(crate) fn new(store: BlobStore, fetcher: Fetcher) -> Self {
        Self { store, fetcher, copies: Flights::default(), tallies: Mutex::default() }
    }

    fn tally(&self, manifest: Digest) -> Arc<Tally> {
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tally) = tallies.by_manifest.get(&manifest) {
            return tally.clone();
        }
        if tallies.order.len() >= REMEMBERED
            && let Some(oldest) = tallies.order.pop_front()
        {
            tallies.by_manifest.remove(&oldest);
        }
        tallies.order.push_back(manifest);
        tallies.by_manifest.entry(manifest).or_default().clone()
    }

    /// Makes a manifest sealed and complete here. Returns all bytes of blobs that ever came over for it.
    pub(crate) async fn copy(&self, manifest: Digest, from: &Origin) -> Result<Arc<Tally>, FetchError> {
        let tally = self.tally(manifest);
        // One at a time per manifest: the second finds it sealed, or tries with its own sources.
        let _flight = self.copies.enter(manifest).await;
        let routes = from.routes(MIN_WINDOW);
        let (parsed, bytes) = self.manifest(manifest, &routes).await?;
        // What counts as here must be here still when all the rest has come, hours later.
        let mut holds = vec![self.store.hold(&parsed)];
        let mut parts = Vec::new();
        for member in parsed.members() {
            let flight = self.copies.enter(member).await;
            let (part, bytes) = self.manifest(member, &routes).await?;
            holds.push(self.store.hold(&part));
            parts.push((member, part, bytes, flight));
        }
        let mut missing: HashMap<Digest, u64> = HashMap::new();
        if parts.is_empty() {
            missing.extend(self.store.missing(&parsed));
        }
        for (_, part, ..) in &parts {
            missing.extend(self.store.missing(part));
        }
        self.blobs(missing, from, routes, &tally).await?;
        for (member, _, bytes, _flight) in parts {
            self.seal(member, bytes).await?;
        }
        self.seal(manifest, bytes).await?;
        Ok(tally)
    }

    /// Makes single blobs and manifests complete here, from wherever. Returns the bytes that came over for it.
    pub(crate) async fn ensure(&self, manifests: &[Digest], digests: &[Digest]) -> Result<u64, FetchError> {
        let from = Origin::Anywhere;
        let mut fetched = 0;
        for manifest in manifests {
            let before = self.tally(*manifest).fetched();
            fetched += self.copy(*manifest, &from).await?.fetched() - before;
        }
        let tally = Tally::default();
        let routes = from.routes(window_for(u64::MAX));
        let mut missing = digests.to_vec();
        missing.retain(|digest| self.store.size(digest).is_none());
        futures::stream::iter(missing)
            .map(|digest| self.fetcher.blob(digest, None, from.lane(), &routes, &tally))
            .buffer_unordered(self.fetcher.parallel())
            .try_collect::<()>()
            .await?;
        Ok(fetched + tally.fetched())
    }

    async fn manifest(&self, digest: Digest, routes: &[Route]) -> Result<(Manifest, Bytes), FetchError> {
        match self.store.manifest(digest).await {
            Err(StoreError::NotFound(_) | StoreError::Corrupt(_)) => {}
            other => return Ok(other?),
        }
        // Not state of the job: a manifest is not tallied.
        let bytes = self.fetcher.manifest(digest, routes, &Tally::default()).await?;
        let manifest = Manifest::parse(&bytes).map_err(|source| FetchError::Manifest { manifest: digest, source })?;
        Ok((manifest, bytes))
    }

    async fn blobs(
        &self,
        missing: HashMap<Digest, u64>,
        from: &Origin,
        mut routes: Vec<Route>,
        tally: &Tally,
    ) -> Result<(), FetchError> {
        let window = window_for(missing.values().fold(0, |sum, size| sum.saturating_add(*size)));
        if window > MIN_WINDOW {
            routes = from.routes(window);
        }
        let mut missing: Vec<_> = missing.into_iter().collect();
        // Largest first: a long one started last would run alone at the end.
        missing.sort_by_key(|(digest, size)| (std::cmp::Reverse(*size), *digest));
        futures::stream::iter(missing)
            .map(|(digest, size)| self.fetcher.blob(digest, Some(size), from.lane(), &routes, tally))
            .buffer_unordered(self.fetcher.parallel())
            .try_collect::<()>()
            .await
    }

    async fn seal(&self, digest: Digest, bytes: Bytes) -> Result<(), FetchError> {
        let sealed = self.store.seal(bytes).await?;
        debug_assert_eq!(sealed, digest, "the bytes were hashed before");
        Ok(())
    }
}
