//! Blobs from wherever they are: the uploads of the controller, or a vault through its own link.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sluice_proto::v1;
use sluice_types::{Digest, SiteId};
use sluice_vault::{BlobStore, RELAYS_FULL};
use tokio::sync::mpsc;

use super::Hub;

/// How far a relay may be ahead of its receiver.
const WINDOW: u64 = 4 << 20;
/// A vault that sends no first part for so long is taken for gone. Vaults that ask wait for 13 s (`connect` and `idle` of
/// their `TransferLimits`): less is left here, so that they hear why, or of the next vault that has it.
const FIRST_PATIENCE: Duration = Duration::from_secs(10);
/// The same, once parts come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a blob cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    /// Nobody has it.
    #[error("no such blob")]
    Missing,
    /// Who has it went away.
    #[error("the vault went away")]
    Gone,
    /// Who may have it relays as much as it can.
    #[error("the vault has too many relays under way; retry in a second")]
    Busy,
    /// It is here but cannot be read.
    #[error("the blob cannot be read: {0}")]
    Unreadable(String),
}

/// Reads blobs for whoever may.
#[derive(Clone)]
pub(crate) struct BlobSource {
    pub(crate) uploads: BlobStore,
    pub(crate) hub: Arc<Hub>,
}

/// A blob under way: its size, and its bytes in order.
pub(crate) struct BlobStream {
    pub(crate) size: u64,
    pub(crate) parts: mpsc::Receiver<Result<Bytes, RelayError>>,
}

impl BlobSource {
    /// Opens a blob at `offset`: from `site`, or from the uploads and then from whichever vault but `asker` has it.
    pub(crate) async fn open(
        &self,
        digest: Digest,
        offset: u64,
        site: Option<SiteId>,
        asker: Option<SiteId>,
    ) -> Result<BlobStream, RelayError> {
        match site {
            Some(site) => self.open_in_vault(site, digest, offset).await,
            None if self.uploads.size(&digest).is_some() => self.open_upload(digest, offset),
            None => {
                let mut why = RelayError::Missing;
                for site in self.hub.vault_sites().into_iter().filter(|site| Some(*site) != asker) {
                    match self.open_in_vault(site, digest, offset).await {
                        Ok(stream) => return Ok(stream),
                        Err(RelayError::Missing) => {
                            tracing::debug!(%site, %digest, "this vault does not have the blob")
                        }
                        Err(error) => {
                            tracing::debug!(%site, %digest, %error, "this vault may have the blob");
                            why = error;
                        }
                    }
                }
                // Missing only if all have said so.
                Err(why)
            }
        }
    }

    fn open_upload(&self, digest: Digest, offset: u64) -> Result<BlobStream, RelayError> {
        let mut reader =
            self.uploads.reader(digest, offset).map_err(|error| RelayError::Unreadable(error.to_string()))?;
        let size = reader.size();
        let (sender, parts) = mpsc::channel(4);
        tokio::spawn(async move {
            loop {
                let part = match reader.next().await {
                    Ok(None) => return,
                    Ok(Some(bytes)) => Ok(bytes),
                    Err(error) => Err(RelayError::Unreadable(error.to_string())),
                };
                let last = part.is_err();
                if sender.send(part).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(BlobStream { size, parts })
    }

    async fn open_in_vault(&self, site: SiteId, digest: Digest, offset: u64) -> Result<BlobStream, RelayError> {
        let (number, data) = self.hub.open_relay(site, digest, offset, WINDOW).ok_or(RelayError::Gone)?;
        let mut relay = Relay { hub: Arc::clone(&self.hub), site, number, data, ended: false };
        let first = relay.next(FIRST_PATIENCE).await.ok_or(RelayError::Gone)?;
        match first.error.as_str() {
            "" => {}
            RELAYS_FULL => return Err(RelayError::Busy),
            _ => return Err(RelayError::Missing),
        }
        let size = first.size_bytes;
        let (sender, parts) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut next = Some(first);
            let mut at = offset;
            while let Some(part) = next {
                at += part.data.len() as u64;
                let part = if part.error.is_empty() { Ok(part.data) } else { Err(RelayError::Unreadable(part.error)) };
                if sender.send(part).await.is_err() || relay.ended {
                    return;
                }
                relay.grant(at + WINDOW);
                next = relay.next(PATIENCE).await;
            }
            // The receiver is gone too, if this fails.
            let _ = sender.send(Err(RelayError::Gone)).await;
        });
        Ok(BlobStream { size, parts })
    }
}

/// A relay under way. Dropped before its end, as when the asker goes away at any await, it is stopped: its vault would
/// keep a place for it and wait for a grant.
struct Relay {
    hub: Arc<Hub>,
    site: SiteId,
    number: u64,
    data: mpsc::Receiver<v1::RelayData>,
    /// The vault has said that no more will come.
    ended: bool,
}

impl Relay {
    /// The next part; `None` where the vault is gone or says nothing for so long.
    async fn next(&mut self, patience: Duration) -> Option<v1::RelayData> {
        let part = tokio::time::timeout(patience, self.data.recv()).await.ok().flatten()?;
        self.ended = part.end || !part.error.is_empty();
        Some(part)
    }

    fn grant(&self, until: u64) {
        self.hub.grant(self.site, self.number, until);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if !self.ended {
            self.hub.stop_relay(self.site, self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use v1::link_response::Message;

    use super::*;

    type Orders = mpsc::Receiver<Result<v1::LinkResponse, tonic::Status>>;

    async fn source(folder: &std::path::Path) -> BlobSource {
        let now = std::time::SystemTime::UNIX_EPOCH;
        let uploads = BlobStore::open(folder, Default::default(), Arc::default(), now).await.unwrap();
        BlobSource { uploads, hub: Hub::new(Arc::default()) }
    }

    async fn told(orders: &mut Orders) -> Option<Message> {
        let told = tokio::time::timeout(PATIENCE, orders.recv()).await.expect("the vault is told nothing");
        told.unwrap().unwrap().message
    }

    async fn ordered(orders: &mut Orders) -> u64 {
        match told(orders).await {
            Some(Message::Relay(order)) => order.relay,
            other => panic!("{other:?}"),
        }
    }

    async fn stopped(orders: &mut Orders) -> u64 {
        match told(orders).await {
            Some(Message::Grant(v1::RelayGrant { relay, stop: true, .. })) => relay,
            other => panic!("{other:?}"),
        }
    }

    fn part(relay: u64, data: &'static [u8]) -> v1::RelayData {
        v1::RelayData { relay, data: data.into(), size_bytes: 100, ..v1::RelayData::default() }
    }

    #[tokio::test]
    async fn a_relay_is_stopped_whenever_its_asker_goes_away() {
        let folder = tempfile::tempdir().unwrap();
        let (source, site) = (source(folder.path()).await, SiteId::from_raw(1));
        let (sender, mut orders) = mpsc::channel(8);
        let _seat = source.hub.seat_vault(site, sender);
        let digest = Digest::from_bytes([1; 32]);
        let open = || {
            let source = source.clone();
            tokio::spawn(async move { source.open(digest, 0, Some(site), None).await })
        };

        // While it waits for the first part.
        let asker = open();
        let relay = ordered(&mut orders).await;
        asker.abort();
        assert_eq!(stopped(&mut orders).await, relay);
        // A part that was on its way meanwhile: the vault is told once more, in case it did not hear.
        source.hub.relayed(site, part(relay, b"late"));
        assert_eq!(stopped(&mut orders).await, relay);
        source.hub.relayed(site, v1::RelayData { end: true, ..part(relay, b"last") });

        // When it has had a part.
        let asker = open();
        let relay = ordered(&mut orders).await;
        source.hub.relayed(site, part(relay, b"first"));
        let stream = asker.await.unwrap().unwrap();
        assert!(matches!(told(&mut orders).await, Some(Message::Grant(v1::RelayGrant { stop: false, .. }))));
        drop(stream);
        source.hub.relayed(site, part(relay, b"second"));
        assert_eq!(stopped(&mut orders).await, relay);

        // One that came to its end needs no stop.
        let asker = open();
        let relay = ordered(&mut orders).await;
        source.hub.relayed(site, v1::RelayData { end: true, ..part(relay, b"all") });
        let mut stream = asker.await.unwrap().unwrap();
        assert_eq!(stream.parts.recv().await.unwrap().unwrap(), "all");
        assert!(stream.parts.recv().await.is_none());
        assert!(orders.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_blob_is_missing_only_if_every_vault_has_said_so() {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path()).await;
        let mut vaults = Vec::new();
        for site in [1, 2].map(SiteId::from_raw) {
            let (sender, orders) = mpsc::channel(8);
            vaults.push((site, source.hub.seat_vault(site, sender), orders));
        }
        for (busy, wanted) in [(None, "no such blob"), (Some(0), "too many"), (Some(1), "too many")] {
            let asking = source.clone();
            let asker = tokio::spawn(async move { asking.open(Digest::from_bytes([1; 32]), 0, None, None).await });
            for (place, (site, _, orders)) in vaults.iter_mut().enumerate() {
                let error = if busy == Some(place) { RELAYS_FULL } else { "not here" }.to_owned();
                let relay = ordered(orders).await;
                source.hub.relayed(*site, v1::RelayData { error, end: true, ..part(relay, b"") });
            }
            let error = asker.await.unwrap().err().unwrap();
            assert!(error.to_string().contains(wanted), "{busy:?}: {error}");
        }
    }
}
