//! Sends a blob up to the controller for somebody who cannot reach this vault.

use std::time::Duration;

use sluice_proto::v1::link_request::Message;
use sluice_proto::v1::{LinkRequest, RelayData, RelayGrant, RelayOrder};
use sluice_types::Digest;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::stats::count;
use crate::status::chain;
use crate::store::BlobStore;

/// Frames on the link are small, so that heartbeats and other relays get their turn.
const FRAME: u64 = 256 << 10;
/// A relay whose next grant does not come for so long was forgotten: it ends, since its place is wanted.
const GRANT_PATIENCE: Duration = Duration::from_secs(120);

/// What a vault says instead of a blob when it relays as many as it may: unlike its other refusals this is no word on
/// whether it has the blob.
pub const RELAYS_FULL: &str = "too many relays at once";

/// How far a relay may go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grant {
    /// Offset in the blob; `u64::MAX` where the receiver set no bound.
    until: u64,
    stop: bool,
}

impl Grant {
    /// As the order says.
    pub(crate) fn first(order: &RelayOrder) -> Self {
        let until = if order.window == 0 { u64::MAX } else { order.offset.saturating_add(order.window) };
        Self { until, stop: false }
    }

    /// Takes a further one. Never shrinks.
    pub(crate) fn extend(&mut self, grant: &RelayGrant) {
        self.until = self.until.max(grant.until);
        self.stop |= grant.stop;
    }
}

fn message(data: RelayData) -> LinkRequest {
    LinkRequest { message: Some(Message::Relay(data)) }
}

/// Serves one order to its end. Ends early when the link is gone or the receiver is.
pub(crate) async fn serve(
    store: BlobStore,
    order: RelayOrder,
    mut grants: watch::Receiver<Grant>,
    link: mpsc::Sender<LinkRequest>,
) -> u64 {
    let relay = order.relay;
    if let Err(error) = send(&store, order, &mut grants, &link).await {
        let refusal = RelayData { relay, end: true, error, ..RelayData::default() };
        // Without a link there is nobody to tell.
        let _told = link.send(message(refusal)).await;
    }
    relay
}

async fn send(
    store: &BlobStore,
    order: RelayOrder,
    grants: &mut watch::Receiver<Grant>,
    link: &mpsc::Sender<LinkRequest>,
) -> Result<(), String> {
    let digest: Digest = order.digest.parse().map_err(|error| format!("digest: {error}"))?;
    let mut reader = store.reader(digest, order.offset).map_err(|error| chain(&error))?;
    reader.limit_frame(if order.window == 0 { FRAME } else { FRAME.min(order.window) });
    let mut size_bytes = reader.size();
    let whole = reader.size();
    loop {
        let frame_end = reader.frame_end();
        let granted = timeout(GRANT_PATIENCE, grants.wait_for(|grant| grant.stop || grant.until >= frame_end)).await;
        let granted = granted.map_err(|_| "no grant came for too long".to_owned())?;
        let Ok(grant) = granted.map(|grant| *grant) else { return Ok(()) };
        if grant.stop {
            return Ok(());
        }
        let data = reader.next().await.map_err(|error| chain(&error))?.unwrap_or_default();
        let end = reader.offset() >= whole;
        count(&store.stats().relay_served_bytes, data.len() as u64);
        let part = RelayData { relay: order.relay, data, size_bytes, end, error: String::new() };
        if link.send(message(part)).await.is_err() || end {
            return Ok(());
        }
        size_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::*;
    use crate::store::hash_bytes;

    /// On one thread with a clock that jumps to the next timer.
    #[tokio::test(start_paused = true)]
    async fn a_relay_that_nobody_lets_go_on_ends() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::UNIX_EPOCH;
        let store = BlobStore::open(folder.path(), Default::default(), Arc::default(), now).await.unwrap();
        let blob = vec![7; 3 << 20];
        store.put(hash_bytes(&blob), blob.clone().into()).await.unwrap();
        let order = RelayOrder { relay: 5, digest: hash_bytes(&blob).to_string(), offset: 0, window: 1 << 20 };
        let (_grants, granted) = watch::channel(Grant::first(&order));
        let (link, mut up) = mpsc::channel(64);
        let relay = timeout(Duration::from_secs(600), serve(store, order, granted, link)).await;
        assert_eq!(relay.expect("it waits for ever"), 5);
        let mut last = None;
        while let Some(LinkRequest { message: Some(Message::Relay(data)) }) = up.recv().await {
            last = Some(data);
        }
        let last = last.unwrap();
        assert!(last.end && last.error.contains("no grant"), "{last:?}");
    }
}
