//! The vault process: a store, its doors and its link.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::stream::{FuturesUnordered, Stream, StreamExt as _, unfold};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;
use tonic::transport::{Server, ServerTlsConfig};

use crate::error::VaultError;
use crate::fetch::Fetcher;
use crate::link::Linker;
use crate::policy::PeerPolicy;
use crate::replicate::Replicator;
use crate::routes::{Pool, TransferLimits};
use crate::server::{Transport, VaultServer};
use crate::stats::VaultStats;
use crate::store::{BlobStore, StoreLimits};
use crate::wire::{MAX_HTTP_FRAME, TlsSource};

/// What uploads of one connection may have under way.
const SERVER_WINDOW: u32 = 4 << 20;
const MAX_STREAMS: u32 = 256;
const SWEEP: Duration = Duration::from_secs(60);
/// How long running transfers may go on after the signal to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// Everything a vault has to be told.
pub struct VaultConfig {
    /// Where blobs are kept.
    pub folder: PathBuf,
    /// Where to listen. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where others reach this vault (`host:port`); empty = nowhere, everything goes through the relay.
    pub advertise: String,
    /// The controller, `host:port`; empty = no link, for tests.
    pub controller: String,
    /// TLS for those who dial us; it must ask for client certificates. What is sent later, as for a renewed certificate,
    /// is for new connections, and cuts no transfer. `None` only on loopback.
    pub server_tls: Option<watch::Receiver<ServerTlsConfig>>,
    /// TLS for dialling the controller.
    pub controller_tls: TlsSource,
    /// TLS for dialling other vaults.
    pub peer_tls: TlsSource,
    /// Who is answered.
    pub policy: Arc<dyn PeerPolicy>,
    /// Bounds of the store.
    pub store: StoreLimits,
    /// Bounds of transfers.
    pub transfers: TransferLimits,
    /// Counters, to be exported.
    pub stats: Arc<VaultStats>,
}

impl fmt::Debug for VaultConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VaultConfig")
            .field("folder", &self.folder)
            .field("listen", &self.listen)
            .field("advertise", &self.advertise)
            .field("controller", &self.controller)
            .field("tls", &self.server_tls.is_some())
            .finish_non_exhaustive()
    }
}

/// A vault that listens and is not served yet.
pub struct Vault {
    store: BlobStore,
    replicator: Arc<Replicator>,
    listener: TcpListener,
    address: SocketAddr,
    config: VaultConfig,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("config", &self.config).field("address", &self.address).finish_non_exhaustive()
    }
}

impl Vault {
    /// Opens the folder and the port.
    ///
    /// # Errors
    /// The folder is in use or cannot be read, the port cannot be had, or it would be open without TLS.
    pub async fn open(config: VaultConfig) -> Result<Self, VaultError> {
        if config.server_tls.is_none() && !config.listen.ip().is_loopback() {
            return Err(VaultError::Plaintext(config.listen));
        }
        let stats = config.stats.clone();
        let store = BlobStore::open(&config.folder, config.store, stats.clone(), SystemTime::now()).await?;
        let pool = Pool::new(
            config.controller.clone(),
            config.controller_tls.clone(),
            config.peer_tls.clone(),
            config.transfers.connect,
        );
        let fetcher = Fetcher::new(store.clone(), pool, config.transfers, stats);
        let replicator = Arc::new(Replicator::new(store.clone(), fetcher));
        let listen = |source| VaultError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        Ok(Self { store, replicator, listener, address, config })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its store.
    #[must_use]
    pub fn store(&self) -> &BlobStore {
        &self.store
    }

    /// Serves until told to stop; then running transfers have 5 s.
    ///
    /// # Errors
    /// The server could not be started with its TLS settings, or failed.
    pub async fn run(self, stop: CancellationToken) -> Result<(), VaultError> {
        let Self { store, replicator, listener, config, .. } = self;
        // Ours, so that a server that fails takes the rest down with it and not the caller.
        let stop = stop.child_token();
        let transport = if config.server_tls.is_some() { Transport::Tls } else { Transport::Plaintext };
        let server =
            VaultServer::new(store.clone(), replicator.clone(), config.policy.clone(), transport, config.transfers);
        let served = async {
            let served = serve(server, listener, config.server_tls, stop.clone()).await;
            stop.cancel();
            served
        };
        let linker = Linker {
            store: store.clone(),
            replicator,
            controller: config.controller,
            tls: config.controller_tls,
            advertise: config.advertise,
            limits: config.transfers,
        };
        let linked = async {
            if linker.controller.is_empty() {
                stop.cancelled().await;
            } else {
                linker.keep(stop.clone()).await;
            }
        };
        let deadline = async {
            stop.cancelled().await;
            sleep(DRAIN).await;
        };
        let all = async { tokio::join!(served, linked, sweep(store, stop.clone())).0 };
        tokio::select! {
            served = all => Ok(served?),
            () = deadline => Ok(()),
        }
    }
}

/// Serves until told to stop. With each renewal of the TLS settings a new server takes the port over, and the one before
/// it ends with the last of its transfers: the store and the link know nothing of it.
async fn serve(
    server: VaultServer,
    listener: TcpListener,
    mut tls: Option<watch::Receiver<ServerTlsConfig>>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let listener = Arc::new(listener);
    let mut servers = FuturesUnordered::new();
    while !stop.is_cancelled() {
        let settings = tls.as_mut().map(|tls| tls.borrow_and_update().clone());
        let router = router(server.clone(), settings)?;
        let ended = stop.child_token();
        servers.push(router.serve_with_incoming_shutdown(accept(listener.clone()), ended.clone().cancelled_owned()));
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = renewed(&mut tls) => break,
                // One that was replaced ends well, the newest only with an error.
                Some(served) = servers.next() => served?,
            }
        }
        ended.cancel();
    }
    while let Some(served) = servers.next().await {
        served?;
    }
    Ok(())
}

fn router(server: VaultServer, tls: Option<ServerTlsConfig>) -> Result<Router, tonic::transport::Error> {
    let mut builder = Server::builder()
        .initial_stream_window_size(SERVER_WINDOW)
        .initial_connection_window_size(SERVER_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_frame_size(MAX_HTTP_FRAME)
        .http2_keepalive_interval(Some(Duration::from_secs(20)));
    if let Some(tls) = tls {
        builder = builder.tls_config(tls)?;
    }
    Ok(builder.add_service(server.service()))
}

/// Connections, as they come. Several servers may take from one port: no moment is without one.
fn accept(listener: Arc<TcpListener>) -> impl Stream<Item = std::io::Result<TcpStream>> {
    unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| {
            // Without it the connection is only slower.
            let _slow = stream.set_nodelay(true);
            stream
        });
        Some((accepted, listener))
    })
}

/// Waits for new TLS settings; for ever where none will come.
async fn renewed(tls: &mut Option<watch::Receiver<ServerTlsConfig>>) {
    let come = match tls {
        Some(tls) => tls.changed().await.is_ok(),
        None => false,
    };
    if !come {
        std::future::pending::<()>().await;
    }
}

/// Deletes now and then what could not go at once.
async fn sweep(store: BlobStore, stop: CancellationToken) {
    let mut tick = interval(SWEEP);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {
                if let Err(error) = store.sweep().await {
                    tracing::warn!(error = %crate::status::chain(&error), "could not sweep");
                }
            }
        }
    }
}

/// Opens a vault and serves it until told to stop.
///
/// # Errors
/// As [`Vault::open`] and [`Vault::run`].
pub async fn run(config: VaultConfig, stop: CancellationToken) -> Result<(), VaultError> {
    Vault::open(config).await?.run(stop).await
}
