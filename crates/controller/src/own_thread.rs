//! A thread with an executor of its own, for work that others wait for.
//!
//! A commit is some forty messages to the database's thread and back. On the runtime that also carries the calls, each
//! of them would wait behind whatever calls are ready; a thread that mostly sleeps is run by the kernel when it wakes.

use std::future::Future;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::error::ControllerError;

/// Ends its thread when dropped; what was spawned and has not ended is dropped there.
#[derive(Debug)]
pub(crate) struct OwnThread {
    executor: Handle,
    _alive: oneshot::Sender<()>,
}

impl OwnThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`ControllerError::Stopped`] where the system gives none.
    pub(crate) fn start(name: &'static str) -> Result<Self, ControllerError> {
        let none = |_| ControllerError::Stopped(name);
        let runtime = Builder::new_current_thread().enable_all().build().map_err(none)?;
        let executor = runtime.handle().clone();
        let (alive, ended) = oneshot::channel::<()>();
        let body = move || drop(runtime.block_on(ended));
        std::thread::Builder::new().name(name.to_owned()).spawn(body).map_err(none)?;
        Ok(Self { executor, _alive: alive })
    }

    /// Runs a task there.
    pub(crate) fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.executor.spawn(task)
    }
}
