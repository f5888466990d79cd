//! A connection that knows whether its client takes what is sent.
//!
//! hyper would buffer many pieces of an answer for a client that does not read. Here the answer gives the next piece only
//! when all before were handed to the kernel, so that a token counts as delivered when it was written, and a client that
//! takes nothing for too long is cut off.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Whether the connection waits for its client to take something.
#[derive(Debug, Default)]
pub(super) struct Outflow(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    blocked: bool,
    waiting: Option<Waker>,
}

impl Outflow {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready when nothing waits to be written.
    pub(super) fn poll_free(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if !state.blocked {
            return Poll::Ready(());
        }
        state.waiting = Some(context.waker().clone());
        Poll::Pending
    }

    fn set(&self, blocked: bool) {
        let mut state = self.state();
        state.blocked = blocked;
        if !blocked && let Some(waker) = state.waiting.take() {
            waker.wake();
        }
    }
}

/// A connection that is watched.
#[derive(Debug)]
pub(super) struct Watched<S> {
    io: S,
    outflow: Arc<Outflow>,
    patience: Duration,
    late: Option<Pin<Box<Sleep>>>,
}

impl<S> Watched<S> {
    /// Cut off when nothing is taken for `patience`.
    pub(super) fn new(io: S, patience: Duration) -> Self {
        Self { io, outflow: Arc::default(), patience, late: None }
    }

    pub(super) fn outflow(&self) -> Arc<Outflow> {
        Arc::clone(&self.outflow)
    }

    fn on_write(&mut self, context: &mut Context<'_>, wrote: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if wrote.is_ready() {
            self.late = None;
            self.outflow.set(false);
            return wrote;
        }
        self.outflow.set(true);
        let patience = self.patience;
        let late = self.late.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(late.as_mut().poll(context));
        late.as_mut().reset(Instant::now() + patience);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.io).poll_write(context, bytes);
        self.on_write(context, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.io).poll_write_vectored(context, parts);
        self.on_write(context, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut_off_and_one_that_takes_slowly_is_not() {
        let (near, mut far) = tokio::io::duplex(10);
        let mut near = Watched::new(near, Duration::from_secs(30));
        let outflow = near.outflow();
        let write = tokio::spawn(async move { near.write_all(&[0; 100]).await });
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(20)).await;
            assert!(outflow.state().blocked);
            far.read_exact(&mut [0; 9]).await.unwrap();
        }
        write.await.unwrap().unwrap();
        assert!(!outflow.state().blocked);
        let (near, _far) = tokio::io::duplex(10);
        let mut near = Watched::new(near, Duration::from_secs(30));
        let begun = Instant::now();
        assert_eq!(near.write_all(&[0; 100]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), 30);
    }
}
