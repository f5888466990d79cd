//! Brings one blob here: over the first way that works, going on where a cut left off, verified before it counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sluice_types::Digest;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};

use crate::error::{FetchError, StoreError};
use crate::manifest::MAX_MANIFEST_BYTES;
use crate::routes::{Pool, Route, TransferLimits};
use crate::stats::{VaultStats, count};
use crate::store::{Begin, BlobStore, BlobWriter, hash_bytes};

/// Cuts after which a blob is given up even though each try brought some bytes.
const MAX_CUTS: u32 = 256;
/// Whole transfers that may end with a false digest: one for a stale beginning, one for each source up to three.
const MAX_UNTRUE: u32 = 4;
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Payload bytes that came over for one copy, repeated ones included.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    fetched: AtomicU64,
    relayed: AtomicU64,
}

impl Tally {
    pub(crate) fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    pub(crate) fn relayed(&self) -> u64 {
        self.relayed.load(Ordering::Relaxed)
    }
}

/// Where the bytes go.
trait Sink: Send {
    fn offset(&self) -> u64;
    fn expect(&mut self, size: u64) -> impl Future<Output = Result<(), StoreError>> + Send;
    fn write(&mut self, bytes: Bytes) -> impl Future<Output = Result<(), StoreError>> + Send;
    fn restart(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

impl Sink for BlobWriter {
    fn offset(&self) -> u64 {
        Self::offset(self)
    }
    async fn expect(&mut self, size: u64) -> Result<(), StoreError> {
        Self::expect(self, size).await
    }
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        Self::write(self, bytes).await
    }
    async fn restart(&mut self) -> Result<(), StoreError> {
        Self::restart(self).await
    }
}

/// A manifest on its way: it may not be in the store before what it names is.
struct Memory {
    digest: Digest,
    size: u64,
    bytes: Vec<u8>,
}

impl Sink for Memory {
    fn offset(&self) -> u64 {
        self.bytes.len() as u64
    }
    async fn expect(&mut self, size: u64) -> Result<(), StoreError> {
        let limit = MAX_MANIFEST_BYTES as u64;
        if size > limit {
            return Err(StoreError::TooLarge { what: "the manifest", asked: size, limit });
        }
        self.size = size;
        Ok(())
    }
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let claimed = self.offset() + bytes.len() as u64;
        if claimed > self.size {
            return Err(StoreError::WrongSize { digest: self.digest, size: self.size, claimed });
        }
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }
    async fn restart(&mut self) -> Result<(), StoreError> {
        self.bytes.clear();
        Ok(())
    }
}

/// How one try ended.
enum Pulled {
    Complete,
    /// Worth another try.
    Cut(Status),
    /// This source does not have it.
    Lacks(Status),
    /// This source will never send it: it refuses us, or contradicts what is known.
    Refused(String),
}

/// Who waits for a fetch. Each lane has room of its own: a copy from a site that fell silent holds its room for as long
/// as its tries last, and what a job's start waits for must not queue behind that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Nobody: a copy that was ordered.
    Copies,
    /// A host of the site.
    Awaited,
}

/// Fetches blobs into a store.
pub(crate) struct Fetcher {
    store: BlobStore,
    pool: Pool,
    limits: TransferLimits,
    copies: Semaphore,
    awaited: Semaphore,
    stats: Arc<VaultStats>,
}

impl Fetcher {
    pub(crate) fn new(store: BlobStore, pool: Pool, limits: TransferLimits, stats: Arc<VaultStats>) -> Self {
        let room = || Semaphore::new(limits.parallel.max(1));
        Self { store, pool, limits, copies: room(), awaited: room(), stats }
    }

    pub(crate) fn parallel(&self) -> usize {
        self.limits.parallel.max(1)
    }

    /// Brings a blob here, once however many want it. `size` where it is known.
    pub(crate) async fn blob(
        &self,
        digest: Digest,
        size: Option<u64>,
        lane: Lane,
        routes: &[Route],
        tally: &Tally,
    ) -> Result<(), FetchError> {
        let room = match lane {
            Lane::Copies => &self.copies,
            Lane::Awaited => &self.awaited,
        };
        for untrue in 0..MAX_UNTRUE {
            let Begin::Write(mut writer) = self.store.begin(digest).await? else { return Ok(()) };
            let Ok(_permit) = room.acquire().await else { return Err(FetchError::Nowhere(digest)) };
            if let Some(size) = size {
                writer.expect(size).await?;
            }
            if size != Some(writer.offset()) {
                self.bring(digest, &mut writer, routes, tally).await?;
            }
            match writer.commit().await {
                Ok(()) => return Ok(()),
                Err(StoreError::Mismatch { .. }) => {
                    tracing::warn!(%digest, "a transfer ended with another digest");
                    // The first time it may have been what an earlier transfer left behind.
                    if untrue > 0
                        && let Some(route) = routes.iter().find(|route| !route.is_dead())
                    {
                        route.give_up(&self.pool);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(FetchError::Untrue(digest))
    }

    /// Brings the bytes of a manifest, which is not stored yet.
    pub(crate) async fn manifest(&self, digest: Digest, routes: &[Route], tally: &Tally) -> Result<Bytes, FetchError> {
        for _ in 0..MAX_UNTRUE {
            let mut memory = Memory { digest, size: 0, bytes: Vec::new() };
            self.bring(digest, &mut memory, routes, tally).await?;
            if hash_bytes(&memory.bytes) == digest {
                return Ok(Bytes::from(memory.bytes));
            }
            count(&self.stats.digests_refused, 1);
            if let Some(route) = routes.iter().find(|route| !route.is_dead()) {
                route.give_up(&self.pool);
            }
        }
        Err(FetchError::Untrue(digest))
    }

    /// Tries the ways one after the other until the sink is full.
    async fn bring(
        &self,
        digest: Digest,
        sink: &mut impl Sink,
        routes: &[Route],
        tally: &Tally,
    ) -> Result<(), FetchError> {
        let mut last = None;
        let mut cuts = 0;
        for route in routes {
            let mut idle_tries = 0;
            while !route.is_dead() {
                let before = sink.offset();
                let why = match self.pull(digest, sink, route, tally).await? {
                    Pulled::Complete => return Ok(()),
                    Pulled::Lacks(why) => {
                        tracing::debug!(%digest, %why, "a source does not have it");
                        break;
                    }
                    Pulled::Refused(why) => {
                        route.give_up(&self.pool);
                        last = Some(why);
                        break;
                    }
                    Pulled::Cut(why) => why.message().to_owned(),
                };
                count(&self.stats.transfers_cut, 1);
                tracing::debug!(%digest, %why, at = sink.offset(), "a transfer was cut");
                last = Some(why);
                cuts += 1;
                idle_tries = if sink.offset() > before { 0 } else { idle_tries + 1 };
                let tries = if route.is_relay() { self.limits.relay_tries } else { self.limits.direct_tries };
                if idle_tries >= tries || cuts >= MAX_CUTS {
                    route.give_up(&self.pool);
                    break;
                }
                sleep(self.pause(idle_tries)).await;
            }
        }
        match last {
            Some(last) => Err(FetchError::Unreachable { digest, last }),
            None if routes.iter().any(Route::is_dead) => {
                Err(FetchError::Unreachable { digest, last: "given up before".into() })
            }
            None => Err(FetchError::Nowhere(digest)),
        }
    }

    fn pause(&self, idle_tries: u32) -> Duration {
        self.limits.backoff.saturating_mul(1 << idle_tries.min(16)).min(LONGEST_PAUSE)
    }

    /// One try over one way. Errors are those of the sink: they end the whole fetch.
    async fn pull(
        &self,
        digest: Digest,
        sink: &mut impl Sink,
        route: &Route,
        tally: &Tally,
    ) -> Result<Pulled, FetchError> {
        let idle = self.limits.idle;
        let opened = timeout(self.limits.connect + idle, route.open(&self.pool, digest, sink.offset())).await;
        let mut incoming = match opened {
            Err(_) => return Ok(Pulled::Cut(Status::deadline_exceeded("no answer in time"))),
            Ok(Err(status)) => return judge(status, sink).await,
            Ok(Ok(incoming)) => incoming,
        };
        let mut size = None;
        loop {
            let next = match timeout(idle, incoming.next()).await {
                Err(_) => return Ok(Pulled::Cut(Status::deadline_exceeded("silent for too long"))),
                Ok(Err(status)) => return judge(status, sink).await,
                Ok(Ok(next)) => next,
            };
            let Some((data, told)) = next else { break };
            if size.is_none() {
                match sink.expect(told).await {
                    Err(StoreError::WrongSize { .. }) => {
                        return Ok(Pulled::Refused(format!("it claims {told} bytes")));
                    }
                    other => other?,
                }
                size = Some(told);
                if sink.offset() > 0 {
                    count(&self.stats.transfers_resumed, 1);
                }
            }
            if data.is_empty() {
                continue;
            }
            let bytes = data.len() as u64;
            count(&self.stats.fetched_bytes, bytes);
            count(&tally.fetched, bytes);
            if route.is_relay() {
                count(&self.stats.relayed_bytes, bytes);
                count(&tally.relayed, bytes);
            }
            match sink.write(data).await {
                Err(StoreError::WrongSize { claimed, .. }) => {
                    sink.restart().await?;
                    return Ok(Pulled::Refused(format!("it sends {claimed} bytes or more")));
                }
                other => other?,
            }
        }
        Ok(match size {
            Some(size) if sink.offset() == size => Pulled::Complete,
            _ => Pulled::Cut(Status::aborted("the stream ended early")),
        })
    }
}

/// What a status says about the source.
async fn judge(status: Status, sink: &mut impl Sink) -> Result<Pulled, FetchError> {
    Ok(match status.code() {
        Code::NotFound | Code::DataLoss => Pulled::Lacks(status),
        Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument | Code::Unimplemented => {
            Pulled::Refused(status.message().to_owned())
        }
        Code::OutOfRange => {
            // What an earlier transfer left is longer than the blob: it is of something else.
            sink.restart().await?;
            Pulled::Cut(status)
        }
        _ => Pulled::Cut(status),
    })
}
