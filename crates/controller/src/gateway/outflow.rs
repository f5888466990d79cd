//! A connection that knows whether its client takes what is sent.
//!
//! hyper would buffer many pieces of an answer for a client that does not read, and TLS as many again. Here the answer
//! gives the next piece only when all before were handed to the kernel, so that a token counts as delivered when it was
//! written, and a client that takes nothing for too long is cut off. What an answer takes up is kept until then, too.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::request::Delivery;

/// Whether what the connection was given was handed to the kernel.
#[derive(Default)]
pub(super) struct Outflow(Mutex<State>);

#[derive(Default)]
struct State {
    unflushed: bool,
    waiting: Option<Waker>,
    /// Let go when all is flushed.
    kept: Vec<Box<dyn Send>>,
}

impl Outflow {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready when all that was given before was handed to the kernel. hyper flushes what it has when an answer has nothing
    /// more for now, so that this comes.
    pub(super) fn poll_free(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if !state.unflushed {
            return Poll::Ready(());
        }
        state.waiting = Some(context.waker().clone());
        Poll::Pending
    }

    /// A piece is given.
    pub(super) fn given(&self) {
        self.state().unflushed = true;
    }

    fn flushed(&self) {
        let mut state = self.state();
        state.unflushed = false;
        let (waker, kept) = (state.waiting.take(), std::mem::take(&mut state.kept));
        drop(state);
        drop(kept);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// What an answer takes up. Dropped with it, it is kept by the connection until that has written the rest, or is over.
pub(super) struct Kept {
    outflow: Arc<Outflow>,
    what: Option<Box<dyn Send>>,
}

impl Kept {
    pub(super) fn new(outflow: Arc<Outflow>, what: impl Send + 'static) -> Self {
        Self { outflow, what: Some(Box::new(what)) }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.outflow.state().kept.extend(self.what.take());
    }
}

/// An answer in one piece, with what it takes up.
pub(super) struct Whole {
    bytes: Option<Bytes>,
    delivery: Arc<Delivery>,
    _kept: Kept,
}

impl Whole {
    pub(super) fn new(bytes: Bytes, delivery: Arc<Delivery>, kept: Kept) -> Self {
        Self { bytes: Some(bytes), delivery, _kept: kept }
    }
}

impl Body for Whole {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let bytes = self.bytes.take();
        if bytes.is_some() {
            self.delivery.end();
        }
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

/// A connection that is watched.
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

    /// A step of writing: one that is not ready for too long is an error.
    fn watch<T>(&mut self, context: &mut Context<'_>, step: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if step.is_ready() {
            self.late = None;
            return step;
        }
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
        self.watch(context, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.io).poll_write_vectored(context, parts);
        self.watch(context, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        let flushed = ready!(self.watch(context, flushed));
        if flushed.is_ok() {
            self.outflow.flushed();
        }
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut_off_and_one_that_takes_slowly_is_not() {
        let (near, mut far) = tokio::io::duplex(10);
        let mut near = Watched::new(near, Duration::from_secs(30));
        let outflow = near.outflow();
        let (held, mut let_go) = tokio::sync::oneshot::channel::<()>();
        outflow.given();
        drop(Kept::new(Arc::clone(&outflow), held));
        let write = tokio::spawn(async move {
            near.write_all(&[0; 100]).await?;
            // Written to TLS, for example, is not written.
            assert!(near.outflow().state().unflushed);
            near.flush().await
        });
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(20)).await;
            assert!(outflow.state().unflushed && let_go.try_recv() == Err(TryRecvError::Empty));
            far.read_exact(&mut [0; 9]).await.unwrap();
        }
        write.await.unwrap().unwrap();
        assert!(!outflow.state().unflushed && let_go.try_recv() == Err(TryRecvError::Closed));
        let (near, _far) = tokio::io::duplex(10);
        let mut near = Watched::new(near, Duration::from_secs(30));
        let begun = Instant::now();
        assert_eq!(near.write_all(&[0; 100]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), 30);
    }
}
