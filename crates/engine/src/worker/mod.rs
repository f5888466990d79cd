//! A worker: one loaded model, served over connections by the protocol of `engine.proto`.
//!
//! Several drivers may be connected at once; a connection's sequences end with it. One thread owns the engine; everything else
//! is on the runtime that [`Worker::serve`] runs on, which should have one thread: the granted cores are for computing.

mod check;
mod connection;
mod preparing;
mod thread;

use std::hash::{BuildHasher as _, Hasher as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sluice_proto::v1::EngineReady;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

pub use self::thread::Made;
use self::thread::{Command, EngineThread};
use crate::engine::EngineError;
use crate::meter::Meter;
use crate::runner::Bounds;

/// Connections at once at most; more are closed at once.
const CONNECTIONS: usize = 8;
/// Sequences that one connection may have open.
const CONNECTION_SEQUENCES: u32 = 256;
/// How often slow readers are looked for while nothing is computed.
const TICK: Duration = Duration::from_secs(1);

/// A worker whose engine is loaded.
#[derive(Clone)]
pub struct Worker {
    engine: EngineThread,
    ready: EngineReady,
    connections: Arc<Semaphore>,
    number: Arc<std::sync::atomic::AtomicU64>,
}

/// Where drivers come.
#[derive(Debug)]
pub enum Door {
    /// A Unix socket.
    Unix(UnixListener),
    /// A TCP port.
    Tcp(TcpListener),
}

impl Door {
    /// Opens `unix:PATH`, whose socket only its owner may use, or `ADDRESS:PORT`.
    ///
    /// # Errors
    ///
    /// Where it cannot be listened at.
    pub async fn open(address: &str) -> std::io::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let Some(path) = address.strip_prefix("unix:") else {
            return Ok(Self::Tcp(TcpListener::bind(address).await?));
        };
        // Of a worker that was killed.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(Path::new(path), std::fs::Permissions::from_mode(0o600))?;
        Ok(Self::Unix(listener))
    }

    /// Where it is, as a driver would say it.
    ///
    /// # Errors
    ///
    /// Where the system does not tell.
    pub fn address(&self) -> std::io::Result<String> {
        match self {
            Self::Unix(listener) => {
                let address = listener.local_addr()?;
                Ok(format!("unix:{}", address.as_pathname().unwrap_or(Path::new("")).display()))
            }
            Self::Tcp(listener) => Ok(listener.local_addr()?.to_string()),
        }
    }
}

impl Worker {
    /// Loads an engine on a thread of its own. `model` is the BLAKE3 of the model's file.
    ///
    /// # Errors
    ///
    /// Where it cannot be loaded.
    pub async fn load(
        make: impl FnOnce() -> Result<Made, EngineError> + Send + 'static,
        model: String,
        meter: Box<dyn Meter + Send>,
        bounds: Bounds,
    ) -> Result<Self, EngineError> {
        // Told apart from the workers before it in the same folder; nothing secret.
        let number = std::hash::RandomState::new().build_hasher().finish();
        let engine = thread::start(make, meter, bounds, number).await?;
        let facts = &engine.facts;
        let ready = EngineReady {
            model,
            context: facts.context,
            sequences: facts.slots.saturating_sub(bounds.spare).max(1),
            threads: facts.threads,
            window: bounds.window,
            kernels: facts.kernels.clone(),
            connection_sequences: CONNECTION_SEQUENCES,
        };
        let number = Arc::new(std::sync::atomic::AtomicU64::new(1));
        Ok(Self { engine, ready, connections: Arc::new(Semaphore::new(CONNECTIONS)), number })
    }

    /// What drivers are told first.
    #[must_use]
    pub fn ready(&self) -> &EngineReady {
        &self.ready
    }

    /// Computes with so many threads from the next step on.
    pub async fn resize(&self, threads: u32) {
        let _ = self.engine.commands.send(Command::Resize(threads)).await;
    }

    /// Serves whoever comes, until the door breaks or this is dropped.
    ///
    /// # Errors
    ///
    /// Where nobody can come any more, or the engine's thread ended.
    pub async fn serve(&self, door: Door) -> std::io::Result<()> {
        let mut connections = tokio::task::JoinSet::new();
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                stream = accept(&door) => match stream? {
                    Stream::Unix(stream) => self.admit(stream, &mut connections),
                    Stream::Tcp(stream) => {
                        let _ = stream.set_nodelay(true);
                        self.admit(stream, &mut connections);
                    }
                },
                _ = tick.tick() => if let Err(tokio::sync::mpsc::error::TrySendError::Closed(_)) =
                    self.engine.commands.try_send(Command::Tick)
                {
                    return Err(std::io::Error::other("the engine's thread ended"));
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    fn admit<S>(&self, stream: S, connections: &mut tokio::task::JoinSet<()>)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
            tracing::debug!("{CONNECTIONS} drivers are connected, the most there may be: another is sent away");
            return;
        };
        let number = self.number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (engine, ready) = (self.engine.clone(), self.ready.clone());
        connections.spawn(async move {
            if let Err(error) = connection::serve(stream, number, engine, ready).await {
                tracing::info!(number, %error, "a driver's connection ended");
            }
            drop(permit);
        });
    }
}

enum Stream {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

/// The next connection. What goes wrong with one of them is no reason to end.
async fn accept(door: &Door) -> std::io::Result<Stream> {
    let accepted = match door {
        Door::Unix(listener) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
        Door::Tcp(listener) => listener.accept().await.map(|(stream, _)| Stream::Tcp(stream)),
    };
    match accepted {
        Err(error) if error.raw_os_error() == Some(nix::libc::EMFILE) || is_of_one(&error) => {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Box::pin(accept(door)).await
        }
        other => other,
    }
}

fn is_of_one(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted)
}
