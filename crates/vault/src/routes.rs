//! The ways to a blob: straight to another site's vault, or through the controller's relay.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sluice_proto::v1::site_service_client::SiteServiceClient;
use sluice_proto::v1::vault_service_client::VaultServiceClient;
use sluice_proto::v1::{CopySource, GetBlobRequest, GetBlobResponse, RelayBlobRequest, RelayBlobResponse};
use sluice_types::Digest;
use tokio::sync::OnceCell;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::wire::{MAX_MESSAGE, TlsSource, dial};

/// Bounds of transfers between sites.
#[derive(Debug, Clone, Copy)]
pub struct TransferLimits {
    /// Blobs that are fetched at once, over all copies.
    pub parallel: usize,
    /// Copy orders and relays that run at once, each.
    pub orders: usize,
    /// Reads that are served at once.
    pub reads: usize,
    /// How long dialling may take.
    pub connect: Duration,
    /// How long a stream may be silent before it counts as cut.
    pub idle: Duration,
    /// Tries without any progress before the direct way is given up for the rest of a copy.
    pub direct_tries: u32,
    /// The same for the relay.
    pub relay_tries: u32,
    /// Pause before the second try; doubles with each further one, up to 2 s.
    pub backoff: Duration,
}

impl Default for TransferLimits {
    fn default() -> Self {
        Self {
            parallel: 8,
            orders: 64,
            reads: 128,
            connect: Duration::from_secs(3),
            idle: Duration::from_secs(10),
            direct_tries: 3,
            relay_tries: 6,
            backoff: Duration::from_millis(100),
        }
    }
}

/// One way.
#[derive(Debug)]
pub(crate) struct Route {
    kind: RouteKind,
    window: u32,
    /// Dialled once per copy; the channel dials again by itself when its connection breaks.
    channel: OnceCell<Channel>,
    dead: AtomicBool,
}

#[derive(Debug)]
enum RouteKind {
    Direct { address: String },
    Relay { site_id: String },
}

/// Bytes on their way, whichever way it is.
pub(crate) enum Incoming {
    Direct(Streaming<GetBlobResponse>),
    Relay(Streaming<RelayBlobResponse>),
}

impl Incoming {
    /// The next bytes, and the size of the whole if this is the first message.
    pub(crate) async fn next(&mut self) -> Result<Option<(Bytes, u64)>, Status> {
        Ok(match self {
            Self::Direct(stream) => stream.message().await?.map(|message| (message.data, message.size_bytes)),
            Self::Relay(stream) => stream.message().await?.map(|message| (message.data, message.size_bytes)),
        })
    }
}

impl Route {
    fn new(kind: RouteKind, window: u32) -> Self {
        Self { kind, window, channel: OnceCell::new(), dead: AtomicBool::new(false) }
    }

    /// The ways to these sources, direct ones first: the relay costs the controller's bandwidth.
    pub(crate) fn to(sources: &[CopySource], window: u32) -> Vec<Self> {
        let direct = sources
            .iter()
            .filter(|source| !source.address.is_empty())
            .map(|source| Self::new(RouteKind::Direct { address: source.address.clone() }, window));
        let relays =
            sources.iter().map(|source| Self::new(RouteKind::Relay { site_id: source.site_id.clone() }, window));
        direct.chain(relays).collect()
    }

    /// Wherever the controller finds it.
    pub(crate) fn anywhere(window: u32) -> Vec<Self> {
        vec![Self::new(RouteKind::Relay { site_id: String::new() }, window)]
    }

    pub(crate) fn is_relay(&self) -> bool {
        matches!(self.kind, RouteKind::Relay { .. })
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// Gives it up for the rest of the copy.
    pub(crate) fn give_up(&self, pool: &Pool) {
        self.dead.store(true, Ordering::Relaxed);
        pool.forget(self.address(pool));
    }

    fn address<'a>(&'a self, pool: &'a Pool) -> &'a str {
        match &self.kind {
            RouteKind::Direct { address } => address,
            RouteKind::Relay { .. } => &pool.controller,
        }
    }

    async fn dial(&self, pool: &Pool) -> Result<Channel, Status> {
        if self.is_dead() {
            return Err(Status::unavailable("given up before"));
        }
        let tls = if self.is_relay() { &pool.controller_tls } else { &pool.peer_tls };
        let dialled = pool.connect(self.address(pool), tls, self.window).await;
        if dialled.is_err() && !self.is_relay() {
            // Given up here, so that those who wait to dial too do not each wait for the same silence. The controller is
            // tried again: without it there is no other way.
            self.give_up(pool);
        }
        dialled.map_err(Status::unavailable)
    }

    /// Asks for a blob from an offset on.
    pub(crate) async fn open(&self, pool: &Pool, digest: Digest, offset: u64) -> Result<Incoming, Status> {
        let channel = self.channel.get_or_try_init(|| self.dial(pool)).await?.clone();
        let digest = digest.to_string();
        match &self.kind {
            RouteKind::Direct { .. } => {
                let mut client = VaultServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
                let answer = client.get_blob(GetBlobRequest { digest, offset }).await?;
                Ok(Incoming::Direct(answer.into_inner()))
            }
            RouteKind::Relay { site_id } => {
                let mut client = SiteServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
                let request = RelayBlobRequest { digest, offset, site_id: site_id.clone() };
                Ok(Incoming::Relay(client.relay_blob(request).await?.into_inner()))
            }
        }
    }
}

/// Connections that were of use, kept so that many small copies do not each pay for a handshake.
pub(crate) struct Pool {
    controller: String,
    controller_tls: TlsSource,
    peer_tls: TlsSource,
    connect: Duration,
    open: Mutex<HashMap<String, (Channel, u32)>>,
}

/// Most connections kept.
const KEPT: usize = 64;

impl Pool {
    pub(crate) fn new(controller: String, controller_tls: TlsSource, peer_tls: TlsSource, connect: Duration) -> Self {
        Self { controller, controller_tls, peer_tls, connect, open: Mutex::default() }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Channel, u32)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, address: &str) {
        self.kept().remove(address);
    }

    async fn connect(&self, address: &str, tls: &TlsSource, window: u32) -> Result<Channel, String> {
        if let Some((channel, kept)) = self.kept().get(address)
            && (window / 2..=window.saturating_mul(2)).contains(kept)
        {
            return Ok(channel.clone());
        }
        let channel = dial(address, tls, window, self.connect).await.map_err(|error| crate::status::chain(&error))?;
        let mut kept = self.kept();
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(address.to_owned(), (channel.clone(), window));
        Ok(channel)
    }
}
