//! A TCP proxy that counts bytes and cuts its connections when told, exactly so many bytes from now.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    target: SocketAddr,
    /// Both directions.
    bytes: AtomicU64,
    /// Bytes until the next cut.
    until_cut: AtomicI64,
    cuts: AtomicU64,
    cut: Notify,
    /// Bytes from which on it takes and keeps no connection.
    closed_from: AtomicU64,
    /// Bytes from which on it passes nothing on.
    silent_from: AtomicU64,
}

impl State {
    fn is_beyond(&self, bound: &AtomicU64) -> bool {
        self.bytes.load(Ordering::SeqCst) >= bound.load(Ordering::SeqCst)
    }
}

impl Proxy {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            target,
            bytes: AtomicU64::new(0),
            until_cut: AtomicI64::new(i64::MAX),
            cuts: AtomicU64::new(0),
            cut: Notify::new(),
            closed_from: AtomicU64::new(u64::MAX),
            silent_from: AtomicU64::new(u64::MAX),
        });
        let accepting = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if !accepting.is_beyond(&accepting.closed_from) {
                    tokio::spawn(forward(accepting.clone(), stream));
                }
            }
        });
        Self { address, state }
    }

    /// Bytes that went through, in both directions.
    pub fn bytes(&self) -> u64 {
        self.state.bytes.load(Ordering::SeqCst)
    }

    pub fn cuts(&self) -> u64 {
        self.state.cuts.load(Ordering::SeqCst)
    }

    /// Cuts all connections, once, after so many more bytes.
    pub fn cut_after(&self, bytes: u64) {
        self.state.until_cut.store(i64::try_from(bytes).unwrap(), Ordering::SeqCst);
    }

    /// Passes nothing on any more, and tells nobody, once so many bytes went through.
    pub fn fall_silent_at(&self, bytes: u64) {
        self.state.silent_from.store(bytes, Ordering::SeqCst);
    }

    /// Passes on what comes over new connections.
    pub fn speak(&self) {
        self.fall_silent_at(u64::MAX);
    }

    /// Waits until so many bytes went through.
    pub async fn passed(&self, bytes: u64) {
        while self.bytes() < bytes {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Takes no connection any more and cuts those there are, once so many bytes went through.
    pub fn close_at(&self, bytes: u64) {
        self.state.closed_from.store(bytes, Ordering::SeqCst);
        if self.bytes() >= bytes {
            self.state.cut.notify_waiters();
        }
    }
}

async fn forward(state: Arc<State>, client: TcpStream) {
    let Ok(server) = TcpStream::connect(state.target).await else { return };
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let cut = state.cut.notified();
    tokio::select! {
        () = cut => {}
        () = pump(&state, client_read, server_write) => {}
        () = pump(&state, server_read, client_write) => {}
    }
}

async fn pump(state: &State, mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read) = from.read(&mut buffer).await {
        if read == 0 {
            return;
        }
        if state.is_beyond(&state.silent_from) {
            std::future::pending::<()>().await;
        }
        if state.is_beyond(&state.closed_from) {
            state.cut.notify_waiters();
            return;
        }
        state.bytes.fetch_add(read as u64, Ordering::SeqCst);
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        let read = i64::try_from(read).unwrap();
        let before = state.until_cut.fetch_sub(read, Ordering::SeqCst);
        if before > 0 && before <= read {
            state.until_cut.store(i64::MAX, Ordering::SeqCst);
            state.cuts.fetch_add(1, Ordering::SeqCst);
            state.cut.notify_waiters();
            return;
        }
    }
}
