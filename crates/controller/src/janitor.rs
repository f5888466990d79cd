//! Deletes what nobody needs any more from the controller's folders: uploads that no project keeps, and logs of jobs that
//! ended long ago.

use std::sync::Arc;
use std::time::Duration;

use sluice_store::Store;
use sluice_types::{JobId, Nanos, Timestamp};
use sluice_vault::BlobStore;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::directory::Directory;
use crate::error::ControllerError;
use crate::logs::LogStore;

const EVERY: Duration = Duration::from_secs(600);
/// How long the logs of an ended job are kept.
const KEEP_LOGS: Nanos = Nanos::from_secs(30 * 24 * 3600);

/// What it looks after.
pub(crate) struct Janitor {
    pub(crate) directory: Arc<Directory>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) uploads: BlobStore,
    pub(crate) logs: Arc<LogStore>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Janitor {
    /// Cleans now and then until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), ControllerError> {
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = tick.tick() => {
                    self.clean_uploads().await;
                    self.clean_logs().await;
                }
            }
        }
    }

    /// An upload is recorded before its bytes come, so bytes without a record are of a time that is over. What was stored
    /// or asked for lately stays until the next round.
    async fn clean_uploads(&self) {
        for digest in self.uploads.blobs() {
            if self.directory.read().keeps_upload(digest) {
                continue;
            }
            if let Err(error) = self.uploads.delete(digest).await {
                tracing::warn!(%digest, %error, "an upload could not be deleted");
            }
        }
    }

    async fn clean_logs(&self) {
        let jobs = match self.logs.jobs() {
            Ok(jobs) => jobs,
            Err(error) => return tracing::warn!(%error, "the logs cannot be listed"),
        };
        let now = self.clock.now();
        for job in jobs {
            match self.is_old(job, now).await {
                Ok(true) => {
                    if let Err(error) = self.logs.remove(job) {
                        tracing::warn!(%job, %error, "logs could not be deleted");
                    }
                }
                Ok(false) => {}
                Err(error) => return tracing::warn!(%error, "jobs cannot be read"),
            }
        }
    }

    async fn is_old(&self, job: JobId, now: Timestamp) -> Result<bool, sluice_store::StoreError> {
        let ended = self.store.get_job(job).await?.and_then(|job| job.ended);
        Ok(ended.is_some_and(|ended| now.since(ended) > KEEP_LOGS))
    }
}
