//! The server's TLS: who gets in, and a certificate of its own that is renewed while it serves.
//!
//! Users come without a certificate, hosts with one of the cluster's authority; what a peer showed is seen by the calls
//! of its connection. The server's certificate is chosen at each handshake: connections that are open know nothing of a
//! new one, those that come after it get no other.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sluice_identity::Authority;
use sluice_types::{Nanos, Timestamp};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::TcpListenerStream;

use crate::clock::Clock;
use crate::error::ControllerError;
use crate::peer::{Connection, Readers};

/// Handshakes at once; beyond it connections wait to be accepted.
const HANDSHAKES: usize = 1024;
/// A peer that has not finished its handshake in so long is cut off.
const HANDSHAKE: Duration = Duration::from_secs(10);

fn failed(error: impl std::fmt::Display) -> ControllerError {
    ControllerError::Tls(error.to_string())
}

/// How the server meets its peers. Its certificate is good for `names` beside its own, and lives for `lifetime`.
///
/// # Errors
/// [`ControllerError::Tls`] and [`ControllerError::Identity`].
pub(crate) fn config(
    authority: Arc<Authority>,
    names: Vec<String>,
    lifetime: Duration,
    clock: Arc<dyn Clock>,
) -> Result<Arc<ServerConfig>, ControllerError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(authority.der().to_vec())).map_err(failed)?;
    let peers = WebPkiClientVerifier::builder(roots.into()).allow_unauthenticated().build().map_err(failed)?;
    let builder = ServerConfig::builder().with_client_cert_verifier(peers);
    let maker = Maker { authority, names, lifetime, clock, provider: Arc::clone(builder.crypto_provider()) };
    let current = Mutex::new(maker.make()?);
    let mut config = builder.with_cert_resolver(Arc::new(Renewed { maker, current }));
    config.alpn_protocols.push(b"h2".to_vec());
    Ok(Arc::new(config))
}

/// Connections whose handshake is done, each read as often as `readers` allow. A handshake that fails is nobody's business
/// but its peer's.
pub(crate) fn incoming(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    readers: Arc<Readers>,
) -> impl Stream<Item = std::io::Result<Connection<TlsStream<TcpStream>>>> {
    let acceptor = TlsAcceptor::from(config);
    TcpListenerStream::new(listener)
        // A task each, so that many hosts that come back at once use all cores.
        .map(move |socket| tokio::spawn(shake_hands(acceptor.clone(), socket)))
        .buffer_unordered(HANDSHAKES)
        .filter_map(|done| std::future::ready(done.ok().flatten()))
        .map(move |done| done.map(|connection| Connection::new(connection, &readers)))
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    socket: std::io::Result<TcpStream>,
) -> Option<std::io::Result<TlsStream<TcpStream>>> {
    let socket = match socket {
        Ok(socket) => socket,
        Err(error) => return Some(Err(error)),
    };
    // Answers are small and awaited. Without it the connection is only slower.
    let _slow = socket.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(socket)).await {
        Ok(Ok(connection)) => Some(Ok(connection)),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a handshake failed");
            None
        }
        Err(_) => None,
    }
}

/// Makes certificates of the server.
struct Maker {
    authority: Arc<Authority>,
    names: Vec<String>,
    lifetime: Duration,
    clock: Arc<dyn Clock>,
    provider: Arc<CryptoProvider>,
}

/// A certificate with its key, and when the next one is due.
struct Held {
    certified: Arc<CertifiedKey>,
    due: Timestamp,
}

impl Maker {
    fn make(&self) -> Result<Held, ControllerError> {
        let life = u64::try_from(self.lifetime.as_nanos()).unwrap_or(u64::MAX);
        // Asked before the certificate begins to live: due is never late.
        let due = self.clock.now().after(Nanos::new(life / 3 * 2));
        let (certificate, key) = self.authority.controller_identity(&self.names)?;
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(failed)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(failed)?;
        let certified = CertifiedKey::from_der(vec![certificate], key, &self.provider).map_err(failed)?;
        Ok(Held { certified: Arc::new(certified), due })
    }
}

/// The certificate of the moment: a new one after two thirds of a life.
struct Renewed {
    maker: Maker,
    current: Mutex<Held>,
}

impl std::fmt::Debug for Renewed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewed").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Renewed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.due <= self.maker.clock.now() {
            match self.maker.make() {
                Ok(next) => *current = next,
                // The old one is good for a third of its life yet, and the next handshake tries again.
                Err(error) => tracing::error!(%error, "the server's certificate cannot be renewed"),
            }
        }
        Some(Arc::clone(&current.certified))
    }
}
