//! Connections of clients: accepted, bounded, cut off when they stand still.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::outflow::{Outflow, Watched};
use super::seats::{Busy, Seat};
use super::{DRAIN, Gateway, routes};

/// A request's head must have come in so long; a connection without one goes as well.
const HEAD: Duration = Duration::from_secs(30);
/// A client that takes nothing of its answer for so long is cut off.
const SLOW: Duration = Duration::from_secs(if cfg!(test) { 5 } else { 30 });
/// A handshake must be done in so long.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(10);
/// Bytes of a connection that hyper keeps.
const BUFFER: usize = 16 << 10;
/// Bytes of an answer that the kernel keeps for a client: what is there counts as delivered.
const SEND_BUFFER: u32 = 32 << 10;
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;
/// Headers of a request.
const HEADERS: usize = 64;
/// A short while: for a descriptor to be free, for example.
const PAUSE: Duration = Duration::from_millis(50);

/// One client's connection, as its requests see it.
#[derive(Clone)]
pub(super) struct Connection {
    seat: Arc<Seat>,
    /// Whether its client takes what is sent.
    pub(super) outflow: Arc<Outflow>,
}

impl Connection {
    /// A request of it was let in.
    pub(super) fn busy(&self) -> Busy {
        self.seat.busy()
    }
}

/// Listens at `address`.
///
/// # Errors
/// It cannot be had.
pub(super) fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Inherited by connections.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until `stop`; answers under way are ended then, and clients have a while to take their ends.
pub(super) async fn serve(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    stop: CancellationToken,
) {
    let acceptor = tls.map(TlsAcceptor::from);
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Where all are busy it is closed: whoever comes again later finds room.
        let Some(seat) = gateway.seats.take(Instant::now()) else { continue };
        let (gateway, acceptor, stop) = (Arc::clone(&gateway), acceptor.clone(), stop.clone());
        connections.spawn(connection(gateway, stream, acceptor, seat, stop));
    }
    drop(listener);
    gateway.end().await;
    connections.close();
    // What is left ends with the process.
    let _late = timeout(DRAIN, connections.wait()).await;
}

async fn connection(
    gateway: Arc<Gateway>,
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    seat: Seat,
    stop: CancellationToken,
) {
    // Tokens are small and awaited. Without it the connection is only slower.
    let _slow = stream.set_nodelay(true);
    match acceptor {
        None => carry(gateway, stream, seat, stop).await,
        Some(acceptor) => {
            let end = seat.end.clone();
            // One that says nothing keeps its seat no longer than an idle one does.
            let shaken = tokio::select! {
                shaken = timeout(HANDSHAKE, acceptor.accept(stream)) => shaken,
                () = end.cancelled() => return,
                () = stop.cancelled() => return,
            };
            if let Ok(Ok(stream)) = shaken {
                Box::pin(carry(gateway, stream, seat, stop)).await;
            }
        }
    }
}

/// Carries a connection to its end.
pub(super) async fn carry(
    gateway: Arc<Gateway>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    seat: Seat,
    stop: CancellationToken,
) {
    let end = seat.end.clone();
    let stream = Watched::new(stream, SLOW);
    let seat = Arc::new(seat);
    let connection = Connection { seat: Arc::clone(&seat), outflow: stream.outflow() };
    let service = service_fn(move |request: Request<Incoming>| {
        let (gateway, connection) = (Arc::clone(&gateway), connection.clone());
        async move { Ok::<_, Infallible>(routes::answer(&gateway, &connection, request.map(Body::new)).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    tokio::select! {
        ended = served.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a client's connection broke");
            }
        }
        () = end.cancelled() => {}
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            // What breaks now breaks for its client. Twice as long: its request's end may come late. One that asks nothing
            // may be halfway through a head, and is not waited for.
            let _broken = timeout(if seat.is_busy() { DRAIN * 2 } else { PAUSE }, served).await;
        }
    }
}
