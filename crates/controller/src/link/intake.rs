//! Takes the pieces of logs that a node's stream brings to disk, beside the stream: a slow disk must delay no heartbeat.
//!
//! A piece is acknowledged when it is in the file. One that cannot be kept is not: its channel is reported as broken, and
//! what follows on it is dropped, until the session opens another channel where the file ends.

use std::collections::HashSet;
use std::sync::Arc;

use sluice_proto::v1;
use sluice_proto::v1::attach_response::Message as Down;
use sluice_types::{AttemptId, JobId};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use crate::logs::LogStore;
use crate::metrics::ControllerMetrics;

/// Pieces of at most 64 KiB that may wait per stream; a stream that is ahead by more waits for the disk.
const QUEUE: usize = 16;

/// Where a log channel's bytes go.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogTarget {
    pub(super) job: JobId,
    pub(super) rank: u32,
    pub(super) attempt: AttemptId,
    /// Where in the log the channel began: frames count from there.
    pub(super) begin: u64,
}

/// The way of one stream's logs to disk. Ends with the stream.
pub(super) struct Intake {
    pieces: mpsc::Sender<(LogTarget, v1::ChannelFrame)>,
    /// Channels whose pieces could not be kept, each told once.
    pub(super) broken: mpsc::Receiver<u64>,
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

    /// Takes a piece; waits while too many are under way.
    pub(super) async fn take(&self, target: LogTarget, frame: v1::ChannelFrame) {
        // Nobody takes it only when the node is gone.
        let _ = self.pieces.send((target, frame)).await;
    }
}

async fn run(
    logs: Arc<LogStore>,
    metrics: Arc<ControllerMetrics>,
    mut queue: mpsc::Receiver<(LogTarget, v1::ChannelFrame)>,
    acks: mpsc::Sender<Result<v1::AttachResponse, Status>>,
    trouble: mpsc::Sender<u64>,
) {
    let mut broken = HashSet::new();
    while let Some((target, frame)) = queue.recv().await {
        let (channel, end, size) = (frame.channel, frame.end, frame.data.len());
        if broken.contains(&channel) {
            if end {
                broken.remove(&channel);
            }
            continue;
        }
        let acknowledged = frame.offset.saturating_add(size as u64);
        let logs = Arc::clone(&logs);
        let kept = tokio::task::spawn_blocking(move || {
            let offset = target.begin.saturating_add(frame.offset);
            logs.append(target.job, target.rank, target.attempt, offset, &frame.data)
        });
        let kept = kept.await.map_err(std::io::Error::other).and_then(|kept| kept);
        if let Err(error) = kept {
            tracing::warn!(%error, job = %target.job, "cannot keep a piece of a log");
            broken.insert(channel);
            if trouble.send(channel).await.is_err() {
                return;
            }
            continue;
        }
        metrics.logged(size);
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
    use super::*;

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
        let target = LogTarget { job: JobId::from_raw(1), rank: 0, attempt: AttemptId::from_raw(2), begin: 0 };
        intake.take(target, frame(0, b"one ")).await;
        assert_eq!(acknowledged(&mut acks).await, 4);

        // A file where the job's folder would be: nothing can be written below it.
        let at = folder.path().join(target.job.to_string());
        std::fs::rename(&at, folder.path().join("aside")).unwrap();
        std::fs::write(&at, "").unwrap();
        intake.take(target, frame(4, b"two ")).await;
        intake.take(target, frame(8, b"three")).await;
        assert_eq!(intake.broken.recv().await, Some(7));

        std::fs::remove_file(&at).unwrap();
        std::fs::rename(folder.path().join("aside"), &at).unwrap();
        let again = LogTarget { begin: logs.length(target.job, 0, target.attempt), ..target };
        intake.take(again, v1::ChannelFrame { channel: 8, ..frame(0, b"two three") }).await;
        assert_eq!(acknowledged(&mut acks).await, 9);
        assert!(intake.broken.try_recv().is_err());
        assert_eq!(logs.read(target.job, 0, 0, 100).unwrap(), "one two three");
    }
}
