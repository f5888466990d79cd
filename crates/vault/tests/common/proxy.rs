//! A TCP proxy that counts bytes and cuts its connections when told, exactly so many bytes from now.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

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
    closed: AtomicBool,
    silent: AtomicBool,
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
            closed: AtomicBool::new(false),
            silent: AtomicBool::new(false),
        });
        let accepting = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if !accepting.closed.load(Ordering::SeqCst) {
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

    /// Passes nothing on any more, and tells nobody.
    pub fn fall_silent(&self) {
        self.state.silent.store(true, Ordering::SeqCst);
    }

    /// Takes no connection any more and cuts those there are.
    pub fn close(&self) {
        self.state.closed.store(true, Ordering::SeqCst);
        self.state.cut.notify_waiters();
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
        if state.silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
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
