//! The OpenAI-compatible door: HTTP of users in, the engine's wire to replicas out.
//!
//! ```text
//! client ─HTTP─> http (seats) ─> routes (key, limits, form) ─> request (hold, bill) ─> pool (fair places)
//!                                                                    │
//!                                                 link ─ session ─> worker of a replica
//! ```
//!
//! It owns requests while they run and nothing behind them: holds and bills are rows of the ledger, replicas are jobs.
//! A gateway that dies takes its requests with it, and what was held for them is credited at the next start.

mod cluster;
mod control;
mod door;
mod fair;
mod http;
mod limits;
mod link;
mod openai;
mod outflow;
mod pool;
mod request;
mod routes;
mod seats;
mod session;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sluice_types::EndpointId;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use control::SharedControl;
use limits::Limits;
use pool::Pool;
use seats::Seats;

pub(crate) use cluster::Cluster;
pub(crate) use door::Door;
pub use door::GatewayConfig;
pub use limits::GatewayLimits;

/// What all connections share.
pub(crate) struct Gateway {
    control: SharedControl,
    limits: Arc<Limits>,
    seats: Arc<Seats>,
    pools: Arc<Mutex<BTreeMap<EndpointId, Arc<Pool>>>>,
    owners: TaskTracker,
    /// Cancelled first: nothing more is let in, and what is under way ends.
    stop: CancellationToken,
    /// Of the ways to replicas; they end when nobody needs them any more.
    links: CancellationToken,
}

/// At the end, requests have so long to be told and closed, and clients to take what they are told.
const DRAIN: Duration = Duration::from_secs(5);

impl Gateway {
    pub(crate) fn new(control: SharedControl, limits: GatewayLimits, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            control,
            limits: Limits::new(limits),
            seats: Seats::new(limits.connections),
            pools: Arc::default(),
            owners: TaskTracker::new(),
            stop,
            links: CancellationToken::new(),
        })
    }

    /// After the signal to stop: waits until requests that were under way are closed, or for as long as they have.
    async fn end(&self) {
        self.stop.cancel();
        self.owners.close();
        if timeout(DRAIN, self.owners.wait()).await.is_err() {
            tracing::warn!(left = self.owners.len(), "requests were not closed in time; the next start credits them");
        }
        self.links.cancel();
    }

    /// The pool of an endpoint that was found; made where there is none.
    fn pool(&self, endpoint: EndpointId) -> Arc<Pool> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&endpoint) {
            return Arc::clone(pool);
        }
        let pool = Pool::new(endpoint, Arc::clone(&self.control));
        pools.insert(endpoint, Arc::clone(&pool));
        let (all, kept, stop) = (Arc::clone(&self.pools), Arc::clone(&pool), self.stop.clone());
        tokio::spawn(async move {
            loop {
                Arc::clone(&kept).keep(stop.clone()).await;
                let mut pools = all.lock().unwrap_or_else(PoisonError::into_inner);
                // The map's, and ours: nobody waits in it.
                if stop.is_cancelled() || Arc::strong_count(&kept) <= 2 {
                    pools.remove(&endpoint);
                    return;
                }
            }
        });
        pool
    }
}
