//! The link to the controller: this side dials, says who it is, and then does what it is told.
//!
//! The link is the vault's only long-lived connection and may break at any time. Orders are numbered per link: what
//! finishes after its link broke is not reported over the next one; the controller orders it again, and finds it done.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sluice_proto::v1::link_request::Message as Up;
use sluice_proto::v1::link_response::Message as Down;
use sluice_proto::v1::site_service_client::SiteServiceClient;
use sluice_proto::v1::{
    CopyDone, CopyFailed, CopyOrder, ForgetDone, ForgetOrder, LinkRequest, LinkResponse, RelayData, RelayGrant,
    RelayOrder, VaultHeartbeat, VaultHello,
};
use sluice_types::Digest;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::relay::{Grant, RELAYS_FULL, serve};
use crate::replicate::{Origin, Replicator};
use crate::routes::TransferLimits;
use crate::stats::count;
use crate::status::chain;
use crate::store::BlobStore;
use crate::wire::{MAX_MESSAGE, MIN_WINDOW, TlsSource, endpoint};

/// Messages that wait to go up. Relays of 256 KiB frames make most of them.
const UP_QUEUE: usize = 16;
const HEARTBEAT: Duration = Duration::from_secs(1);
/// HTTP/2 pings find a dead connection that still takes our bytes.
const PING: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A link that lived so long was a good one: the next is dialled at once.
const GOOD: Duration = Duration::from_secs(10);
/// Digests of one order to forget.
const MAX_FORGET: usize = 65_536;

/// What the link needs.
pub(crate) struct Linker {
    pub(crate) store: BlobStore,
    pub(crate) replicator: Arc<Replicator>,
    pub(crate) controller: String,
    pub(crate) tls: TlsSource,
    /// Where others reach this vault; empty = nowhere.
    pub(crate) advertise: String,
    pub(crate) limits: TransferLimits,
}

/// What runs on behalf of one link.
struct Session {
    up: mpsc::Sender<LinkRequest>,
    relays: JoinSet<u64>,
    grants: HashMap<u64, watch::Sender<Grant>>,
}

impl Linker {
    /// Keeps a link until told to stop. The pauses between tries grow to 5 s; it never gives up, since a vault without a
    /// controller still serves its site.
    pub(crate) async fn keep(self, stop: CancellationToken) {
        // Copies outlive links: the bytes are wanted whoever orders them again.
        let mut work = JoinSet::new();
        let mut pause = FIRST_PAUSE;
        while !stop.is_cancelled() {
            let begun = Instant::now();
            tokio::select! {
                () = stop.cancelled() => break,
                ended = self.link(&mut work) => {
                    let why = ended.err().map_or_else(|| "closed".to_owned(), |status| status.message().to_owned());
                    tracing::info!(controller = %self.controller, %why, "the link to the controller ended");
                }
            }
            pause = if begun.elapsed() >= GOOD { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep(pause) => {}
            }
            while work.try_join_next().is_some() {}
        }
        work.shutdown().await;
    }

    /// One link, from dialling to its end.
    async fn link(&self, work: &mut JoinSet<()>) -> Result<(), Status> {
        let dialled = endpoint(&self.controller, &self.tls, MIN_WINDOW, self.limits.connect)
            .map(|endpoint| {
                endpoint.http2_keep_alive_interval(PING).keep_alive_timeout(PING).keep_alive_while_idle(true)
            })
            .map_err(|error| Status::unavailable(chain(&error)))?;
        let channel = dialled.connect().await.map_err(|error| Status::unavailable(chain(&error)))?;
        let mut client = SiteServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE.max(MAX_FORGET * 72));
        let (up, queue) = mpsc::channel(UP_QUEUE);
        let hello = VaultHello { address: self.advertise.clone(), stored_bytes: self.store.stored().get() };
        let _room = up.send(LinkRequest { message: Some(Up::Hello(hello)) }).await;
        let answer = timeout(self.limits.idle, client.link(ReceiverStream::new(queue))).await;
        let down = answer.map_err(|_| Status::deadline_exceeded("the controller did not answer"))??.into_inner();
        count(&self.store.stats().links_made, 1);
        let mut session = Session { up, relays: JoinSet::new(), grants: HashMap::new() };
        let ended = self.attend(&mut session, down, work).await;
        session.relays.shutdown().await;
        ended
    }

    async fn attend(
        &self,
        session: &mut Session,
        mut down: Streaming<LinkResponse>,
        work: &mut JoinSet<()>,
    ) -> Result<(), Status> {
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = down.message() => match message? {
                    Some(LinkResponse { message: Some(message) }) => self.obey(session, message, work).await,
                    Some(_) => {}
                    None => return Ok(()),
                },
                Some(ended) = session.relays.join_next() => {
                    if let Ok(relay) = ended {
                        session.grants.remove(&relay);
                    }
                }
                Some(_) = work.join_next() => {}
                _ = heartbeat.tick() => {
                    let alive = VaultHeartbeat { stored_bytes: self.store.stored().get() };
                    // Where the queue is full, data flows: a sign of life as good as this one.
                    let _full = session.up.try_send(LinkRequest { message: Some(Up::Heartbeat(alive)) });
                    if session.up.is_closed() {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn obey(&self, session: &mut Session, message: Down, work: &mut JoinSet<()>) {
        match message {
            Down::Copy(order) => self.copy(session, order, work).await,
            Down::Relay(order) => self.relay(session, order).await,
            Down::Grant(grant) => extend(session, &grant),
            Down::Forget(order) => self.forget(session, order, work),
        }
    }

    async fn copy(&self, session: &Session, order: CopyOrder, work: &mut JoinSet<()>) {
        let refuse = |message: String| {
            let failed = CopyFailed { order: order.order, manifest: order.manifest.clone(), message };
            session.up.send(LinkRequest { message: Some(Up::Failed(failed)) })
        };
        let manifest = match order.manifest.parse::<Digest>() {
            Ok(manifest) => manifest,
            Err(error) => {
                let _gone = refuse(format!("manifest: {error}")).await;
                return;
            }
        };
        if work.len() >= self.limits.orders {
            let _gone = refuse("too many orders at once".into()).await;
            return;
        }
        let (replicator, store, up) = (self.replicator.clone(), self.store.clone(), session.up.clone());
        work.spawn(async move {
            let CopyOrder { order, manifest: text, sources } = order;
            let report = match replicator.copy(manifest, &Origin::Sites(sources)).await {
                Ok(tally) => {
                    count(&store.stats().copies_done, 1);
                    let (fetched_bytes, relayed_bytes) = (tally.fetched(), tally.relayed());
                    Up::Done(CopyDone { order, manifest: text, fetched_bytes, relayed_bytes })
                }
                Err(error) => {
                    count(&store.stats().copies_failed, 1);
                    tracing::warn!(%manifest, error = %chain(&error), "a copy failed");
                    Up::Failed(CopyFailed { order, manifest: text, message: chain(&error) })
                }
            };
            // A link that is gone has forgotten the order.
            let _gone = up.send(LinkRequest { message: Some(report) }).await;
        });
    }

    async fn relay(&self, session: &mut Session, order: RelayOrder) {
        if session.relays.len() >= self.limits.orders {
            let error = RELAYS_FULL.to_owned();
            let refusal = RelayData { relay: order.relay, end: true, error, ..RelayData::default() };
            let _gone = session.up.send(LinkRequest { message: Some(Up::Relay(refusal)) }).await;
            return;
        }
        let (grants, granted) = watch::channel(Grant::first(&order));
        session.grants.insert(order.relay, grants);
        session.relays.spawn(serve(self.store.clone(), order, granted, session.up.clone()));
    }

    fn forget(&self, session: &Session, order: ForgetOrder, work: &mut JoinSet<()>) {
        let (store, up) = (self.store.clone(), session.up.clone());
        work.spawn(async move {
            let mut gone = Vec::new();
            for text in order.manifests.into_iter().take(MAX_FORGET) {
                let Ok(digest) = text.parse() else {
                    tracing::warn!(%text, "an order to forget names no digest");
                    continue;
                };
                match store.forget(digest).await {
                    Ok(()) => gone.push(text),
                    Err(error) => tracing::warn!(%digest, error = %chain(&error), "could not forget"),
                }
            }
            // A link that is gone has forgotten the order: it will come again, and find nothing to do.
            let _gone = up.send(LinkRequest { message: Some(Up::Forgotten(ForgetDone { manifests: gone })) }).await;
        });
    }
}

fn extend(session: &Session, grant: &RelayGrant) {
    if let Some(grants) = session.grants.get(&grant.relay) {
        grants.send_modify(|granted| granted.extend(grant));
    }
}
