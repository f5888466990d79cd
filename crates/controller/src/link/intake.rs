//! Takes the pieces of logs that a node's stream brings to disk, beside the stream: a slow disk must delay no heartbeat.
//!
//! A piece is acknowledged when it is in the file. One that cannot be kept is not: its channel is reported as broken, and
//! what follows on it is dropped, until the session opens another channel where the file ends. So is one that finds too many
//! others waiting: a disk that has stalled.

use std::collections::HashSet;
use std::sync::Arc;

use sluice_lifecycle::TaskKey;
use sluice_proto::v1;
use sluice_proto::v1::attach_response::Message as Down;
use sluice_types::{AttemptId, JobId, Reason};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use crate::logs::LogStore;
use crate::metrics::ControllerMetrics;

/// Pieces of at most 64 KiB that may wait per stream.
const QUEUE: usize = 64;

/// Where a log channel's bytes go.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogTarget {
    /// Whose log it is.
    pub(super) key: TaskKey,
    pub(super) job: JobId,
    pub(super) rank: u32,
    pub(super) attempt: AttemptId,
    /// Where in the log the channel began: frames count from there.
    pub(super) begin: u64,
}

/// A piece of a log could not be kept. The node may have ended the channel since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) channel: u64,
    pub(super) key: TaskKey,
}

/// The way of one stream's logs to disk. Ends with the stream.
pub(super) struct Intake {
    pieces: mpsc::Sender<(LogTarget, v1::ChannelFrame)>,
    /// Channels whose pieces could not be kept, each told once.
    pub(super) broken: mpsc::Receiver<Trouble>,
    _task: AbortOnDropHandle<()>,
}

impl Intake {
    pub(super) fn start(
        logs: Arc<LogStore>,
        metrics: Arc<ControllerMetrics>,
        acks: mpsc::Sender<Result<v1::AttachResponse, Status>>,
    ) -> Self {
        let (pieces, queue) = mpsc::channel(QUEUE);
        let (trouble, broken) = mpsc::channel(QUEUE);
        let task = tokio::spawn(run(logs, metrics, queue, acks, trouble));
        Self { pieces, broken, _task: AbortOnDropHandle::new(task) }
    }

    /// Takes a piece without waiting: behind it are heartbeats.
    ///
    /// # Errors
    /// Too many are under way: the channel is broken.
    pub(super) fn take(&self, target: LogTarget, frame: v1::ChannelFrame) -> Result<(), Trouble> {
        let trouble = Trouble { channel: frame.channel, key: target.key };
        match self.pieces.try_send((target, frame)) {
            Err(mpsc::error::TrySendError::Full(_)) => Err(trouble),
            // Nobody takes it only when the node is gone.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        }
    }
}

async fn run(
    logs: Arc<LogStore>,
    metrics: Arc<ControllerMetrics>,
    mut queue: mpsc::Receiver<(LogTarget, v1::ChannelFrame)>,
    acks: mpsc::Sender<Result<v1::AttachResponse, Status>>,
    trouble: mpsc::Sender<Trouble>,
) {
    let mut broken = HashSet::new();
    while let Some((target, frame)) = queue.recv().await {
        let (channel, end, size) = (frame.channel, frame.end, frame.data.len());
        // The node's last word on it, unless it broke off; of a task that wrote nothing there is no log.
        let complete = end && (frame.reason.is_empty() || frame.reason == Reason::NotFound.as_str());
        if broken.contains(&channel) {
            if end {
                broken.remove(&channel);
            }
            continue;
        }
        let acknowledged = frame.offset.saturating_add(size as u64);
        let (done, logs) = (&logs, Arc::clone(&logs));
        let kept = tokio::task::spawn_blocking(move || {
            let offset = target.begin.saturating_add(frame.offset);
            logs.append(target.job, target.rank, target.attempt, offset, &frame.data)
        });
        let kept = kept.await.map_err(std::io::Error::other).and_then(|kept| kept);
        if let Err(error) = kept {
            tracing::warn!(%error, job = %target.job, "cannot keep a piece of a log");
            if !end {
                broken.insert(channel);
            }
            if trouble.send(Trouble { channel, key: target.key }).await.is_err() {
                return;
            }
            continue;
        }
        metrics.logged(size);
        if complete {
            done.completed(target.job, target.rank, target.attempt);
        }
        if end {
            continue;
        }
        let ack = v1::ChannelFrame { channel, acknowledged, ..v1::ChannelFrame::default() };
        let message = v1::AttachResponse { message: Some(Down::Frame(ack)) };
        if acks.send(Ok(message)).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_types::{Generation, LeaseId};

    use super::*;

    fn target() -> LogTarget {
        let attempt = AttemptId::from_raw(2);
        let key = TaskKey { attempt, lease: LeaseId::from_raw(3), generation: Generation::ZERO };
        LogTarget { key, job: JobId::from_raw(1), rank: 0, attempt, begin: 0 }
    }

    fn frame(offset: u64, data: &'static [u8]) -> v1::ChannelFrame {
        v1::ChannelFrame { channel: 7, offset, data: data.into(), ..v1::ChannelFrame::default() }
    }

    async fn acknowledged(acks: &mut mpsc::Receiver<Result<v1::AttachResponse, Status>>) -> u64 {
        match acks.recv().await.unwrap().unwrap().message {
            Some(Down::Frame(frame)) => frame.acknowledged,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn what_cannot_be_kept_is_not_acknowledged_and_breaks_its_channel_once() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Arc::new(LogStore::open(folder.path()).unwrap());
        let (sender, mut acks) = mpsc::channel(8);
        let mut intake = Intake::start(Arc::clone(&logs), Arc::default(), sender);
        let target = target();
        intake.take(target, frame(0, b"one ")).unwrap();
        assert_eq!(acknowledged(&mut acks).await, 4);

        // A file where the job's folder would be: nothing can be written below it.
        let at = folder.path().join(target.job.to_string());
        std::fs::rename(&at, folder.path().join("aside")).unwrap();
        std::fs::write(&at, "").unwrap();
        intake.take(target, frame(4, b"two ")).unwrap();
        intake.take(target, frame(8, b"three")).unwrap();
        assert_eq!(intake.broken.recv().await, Some(Trouble { channel: 7, key: target.key }));

        std::fs::remove_file(&at).unwrap();
        std::fs::rename(folder.path().join("aside"), &at).unwrap();
        let again = LogTarget { begin: logs.length(target.job, 0, target.attempt), ..target };
        intake.take(again, v1::ChannelFrame { channel: 8, ..frame(0, b"two three") }).unwrap();
        assert_eq!(acknowledged(&mut acks).await, 9);
        assert!(intake.broken.try_recv().is_err());
        assert_eq!(logs.read(target.job, 0, 0, 100).unwrap(), "one two three");
    }

    #[tokio::test]
    async fn a_log_is_complete_once_its_last_piece_is_kept_and_not_when_its_channel_breaks_off() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Arc::new(LogStore::open(folder.path()).unwrap());
        let (sender, _acks) = mpsc::channel(8);
        let intake = Intake::start(Arc::clone(&logs), Arc::default(), sender);
        let target = target();
        let mut changes = logs.changes();
        for (attempt, reason, complete) in [(5, "", true), (6, "OVERLOADED", false), (7, "NOT_FOUND", true)] {
            let target = LogTarget { attempt: AttemptId::from_raw(attempt), ..target };
            let last = v1::ChannelFrame { end: true, reason: reason.to_owned(), ..frame(0, b"the end") };
            intake.take(target, last).unwrap();
            // The piece, then that it was the last.
            for _ in 0..1 + usize::from(complete) {
                changes.recv().await.unwrap();
            }
            assert_eq!(logs.is_complete(target.job, 0, target.attempt), complete, "{reason}");
        }
        assert!(!logs.is_complete(target.job, 1, AttemptId::from_raw(5)));
    }

    #[tokio::test]
    async fn a_stream_that_is_ahead_of_the_disk_is_told_so_and_not_held_up() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Arc::new(LogStore::open(folder.path()).unwrap());
        let (sender, mut acks) = mpsc::channel(8);
        let intake = Intake::start(Arc::clone(&logs), Arc::default(), sender);
        let target = target();
        // On one thread nothing is taken to the disk before the next await.
        for place in 0..QUEUE {
            intake.take(target, frame(place as u64, b"x")).unwrap();
        }
        let trouble = Trouble { channel: 7, key: target.key };
        assert_eq!(intake.take(target, frame(QUEUE as u64, b"x")), Err(trouble));
        for place in 0..QUEUE {
            assert_eq!(acknowledged(&mut acks).await, place as u64 + 1);
        }
        assert_eq!(logs.length(target.job, 0, target.attempt), QUEUE as u64);
    }
}
