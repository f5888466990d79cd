//! The way up, in two lanes: what the controller must hear in time, and bytes of channels behind it.
//!
//! Both lanes are short, and the second is served only while the first is empty: however much sessions and logs have to
//! say, a heartbeat waits for what is handed to the transport already and for nothing else of ours.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use sluice_proto::v1;
use sluice_proto::v1::attach_request::Message as Up;
use tokio::sync::mpsc;
use tokio_stream::Stream;

use super::StreamError;

/// Messages that may wait to be sent.
const QUEUE: usize = 64;
/// Messages of channels that may wait; at most 64 KiB each.
const BULK: usize = 8;
/// How long the controller may take to take a message.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Where messages are put.
#[derive(Debug, Clone)]
pub(super) struct Outbox {
    urgent: mpsc::Sender<v1::AttachRequest>,
    bulk: mpsc::Sender<v1::AttachRequest>,
}

/// Where the transport takes them.
#[derive(Debug)]
pub(super) struct Lanes {
    urgent: mpsc::Receiver<v1::AttachRequest>,
    bulk: mpsc::Receiver<v1::AttachRequest>,
}

/// Both ends of a new way up.
pub(super) fn outbox() -> (Outbox, Lanes) {
    let ((urgent, from_urgent), (bulk, from_bulk)) = (mpsc::channel(QUEUE), mpsc::channel(BULK));
    (Outbox { urgent, bulk }, Lanes { urgent: from_urgent, bulk: from_bulk })
}

impl Outbox {
    /// Waits for room, not for ever.
    pub(super) async fn send(&self, message: Up) -> Result<(), StreamError> {
        put(&self.urgent, message).await
    }

    /// As [`Outbox::send`], for bytes of a channel.
    pub(super) async fn send_bulk(&self, message: Up) -> Result<(), StreamError> {
        put(&self.bulk, message).await
    }
}

async fn put(lane: &mpsc::Sender<v1::AttachRequest>, message: Up) -> Result<(), StreamError> {
    let message = v1::AttachRequest { message: Some(message) };
    match lane.send_timeout(message, PATIENCE).await {
        Ok(()) => Ok(()),
        Err(mpsc::error::SendTimeoutError::Timeout(_)) => Err(StreamError::Broken("takes no messages")),
        Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(StreamError::Broken("hung up")),
    }
}

impl Stream for Lanes {
    type Item = v1::AttachRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.urgent.poll_recv(context) {
            // Both lanes have the same senders.
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(message) => Poll::Ready(message),
            Poll::Pending => match self.bulk.poll_recv(context) {
                Poll::Ready(Some(message)) => Poll::Ready(Some(message)),
                Poll::Ready(None) | Poll::Pending => Poll::Pending,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    fn frame(channel: u64) -> Up {
        Up::Frame(v1::ChannelFrame { channel, ..v1::ChannelFrame::default() })
    }

    fn beat(now_ns: u64) -> Up {
        Up::Heartbeat(v1::Heartbeat { now_ns })
    }

    #[test]
    fn a_heartbeat_overtakes_whatever_channels_have_to_say() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (outbox, mut lanes) = outbox();
            // A flood: as much as there is room for, and somebody who waits to say more.
            for number in 0..BULK {
                outbox.send_bulk(frame(number as u64)).await.unwrap();
            }
            let more = outbox.clone();
            let flood = tokio::spawn(async move { while more.send_bulk(frame(99)).await.is_ok() {} });
            for turn in 0..20 {
                assert!(matches!(lanes.next().await.unwrap().message, Some(Up::Frame(_))));
                outbox.send(beat(turn)).await.unwrap();
                assert_eq!(lanes.next().await.unwrap().message, Some(beat(turn)), "the very next one");
            }
            flood.abort();
            // The control: in the same lane it waits its turn.
            let (outbox, mut lanes) = self::outbox();
            for number in 0..5 {
                outbox.send_bulk(frame(number)).await.unwrap();
            }
            outbox.send_bulk(beat(1)).await.unwrap();
            let mut before = 0;
            while lanes.next().await.unwrap().message != Some(beat(1)) {
                before += 1;
            }
            assert_eq!(before, 5);
        });
    }

    #[test]
    fn the_way_ends_with_those_who_use_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (outbox, mut lanes) = outbox();
            outbox.send(beat(1)).await.unwrap();
            drop(outbox);
            assert!(lanes.next().await.is_some() && lanes.next().await.is_none());
        });
    }
}
