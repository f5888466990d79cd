//! Connections: how they are made and how much may be under way on one.

use std::sync::Arc;
use std::time::Duration;

use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

/// Gives the TLS settings for a new connection; `None` for plaintext. Asked at each dial, so that a renewed certificate
/// is used without a restart. The domain name in it is the one that all vaults (or controllers) show, since addresses
/// are not names.
pub type TlsSource = Arc<dyn Fn() -> Option<ClientTlsConfig> + Send + Sync>;

/// Plaintext: for tests on loopback.
#[must_use]
pub fn no_tls() -> TlsSource {
    Arc::new(|| None)
}

/// Largest message taken: a frame of at most 1 MiB with its envelope.
pub(crate) const MAX_MESSAGE: usize = (1 << 20) + 4096;
/// Largest request with a manifest in it.
pub(crate) const MAX_SEAL: usize = crate::MAX_MANIFEST_BYTES + 4096;
/// HTTP/2 frames: large enough to be no overhead, small enough that streams take turns.
pub(crate) const MAX_HTTP_FRAME: u32 = 64 << 10;

/// Smallest and largest number of bytes under way to us on one connection.
pub(crate) const MIN_WINDOW: u32 = 256 << 10;
const MAX_WINDOW: u64 = 8 << 20;

/// How much may be under way when so many bytes are to come. What is under way is what a cut loses, so it is a small
/// part of the whole; the upper end fills 1 Gbit/s at 60 ms.
pub(crate) fn window_for(bytes: u64) -> u32 {
    u32::try_from((bytes / 40).clamp(u64::from(MIN_WINDOW), MAX_WINDOW)).unwrap_or(MIN_WINDOW)
}

/// HTTP/2 pings find a peer whose host lost its power: nothing comes from it, not even that the connection is gone.
const PING: Duration = Duration::from_secs(10);
/// How long the answer to a ping may take. Long: on a slow line it queues behind what is under way.
const PING_PATIENCE: Duration = Duration::from_secs(30);

/// An endpoint for `host:port`, with or without a scheme.
pub(crate) fn endpoint(
    address: &str,
    tls: &TlsSource,
    window: u32,
    connect: Duration,
) -> Result<Endpoint, tonic::transport::Error> {
    let bare = address.split_once("://").map_or(address, |(_, rest)| rest);
    let tls = tls();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{bare}"))?
        .connect_timeout(connect)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING_PATIENCE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(window)
        .initial_connection_window_size(window)
        .max_frame_size(MAX_HTTP_FRAME);
    match tls {
        Some(tls) => endpoint.tls_config(tls),
        None => Ok(endpoint),
    }
}

/// Dials.
pub(crate) async fn dial(
    address: &str,
    tls: &TlsSource,
    window: u32,
    connect: Duration,
) -> Result<Channel, tonic::transport::Error> {
    endpoint(address, tls, window, connect)?.connect().await
}
