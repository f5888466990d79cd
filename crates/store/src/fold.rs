//! Folds SQLite's log into its file beside the writer.
//!
//! SQLite would do it inside a commit, which then takes as long as writing and syncing tens of megabytes. Here a
//! connection of its own does it while the writer goes on appending; what it leaves over when the log reaches its
//! bound is little, and the writer folds only that.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::pool::Pool;
use sqlx::{Sqlite, query};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Commits between two folds.
const EVERY: u32 = 16;

/// The writer's side of the folding task.
#[derive(Debug)]
pub(crate) struct Folder {
    commits: AtomicU32,
    task: Mutex<Option<(mpsc::Sender<()>, JoinHandle<()>)>>,
}

impl Folder {
    /// Starts the task on a pool of one connection. It ends when the folder is stopped or dropped.
    pub(crate) fn start(pool: Pool<Sqlite>) -> Self {
        let (wake, mut woken) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            while woken.recv().await.is_some() {
                // A fold that fails is tried again with the next commits, and the writer's own bound stands behind it.
                let _ = query("PRAGMA wal_checkpoint(PASSIVE)").execute(&pool).await;
            }
            pool.close().await;
        });
        Self { commits: AtomicU32::new(0), task: Mutex::new(Some((wake, task))) }
    }

    /// Tells of a commit. Never waits.
    pub(crate) fn committed(&self) {
        if self.commits.fetch_add(1, Ordering::Relaxed) % EVERY == EVERY - 1
            && let Ok(task) = self.task.lock()
            && let Some((wake, _)) = task.as_ref()
        {
            // Full means that a fold is due already.
            let _ = wake.try_send(());
        }
    }

    /// Ends the task and waits for it.
    pub(crate) async fn stop(&self) {
        let task = self.task.lock().ok().and_then(|mut task| task.take());
        if let Some((wake, task)) = task {
            drop(wake);
            // It cannot be cancelled and does not panic; either way it is gone.
            let _ = task.await;
        }
    }
}
