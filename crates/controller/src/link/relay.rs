//! Blobs from wherever they are: the uploads of the controller, or a vault through its own link.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sluice_types::{Digest, SiteId};
use sluice_vault::BlobStore;
use tokio::sync::mpsc;

use super::Hub;

/// How far a relay may be ahead of its receiver.
const WINDOW: u64 = 4 << 20;
/// A vault that says nothing for so long is taken for gone.
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
                for site in self.hub.vault_sites().into_iter().filter(|site| Some(*site) != asker) {
                    match self.open_in_vault(site, digest, offset).await {
                        Ok(stream) => return Ok(stream),
                        Err(error) => tracing::debug!(%site, %digest, %error, "this vault does not have the blob"),
                    }
                }
                Err(RelayError::Missing)
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
        let (relay, mut data) = self.hub.open_relay(site, digest, offset, WINDOW).ok_or(RelayError::Gone)?;
        let Some(first) = tokio::time::timeout(PATIENCE, data.recv()).await.ok().flatten() else {
            // Else it would be kept for a vault that never answers.
            self.hub.grant(site, relay, offset, true);
            return Err(RelayError::Gone);
        };
        if !first.error.is_empty() {
            return Err(RelayError::Missing);
        }
        let size = first.size_bytes;
        let (sender, parts) = mpsc::channel(4);
        let hub = Arc::clone(&self.hub);
        tokio::spawn(async move {
            let mut next = Some(first);
            let mut at = offset;
            while let Some(part) = next {
                let end = part.end;
                at += part.data.len() as u64;
                let part = if part.error.is_empty() { Ok(part.data) } else { Err(RelayError::Unreadable(part.error)) };
                let failed = part.is_err();
                if sender.send(part).await.is_err() {
                    return hub.grant(site, relay, at, true);
                }
                if end || failed {
                    return;
                }
                hub.grant(site, relay, at + WINDOW, false);
                next = tokio::time::timeout(PATIENCE, data.recv()).await.ok().flatten();
            }
            hub.grant(site, relay, at, true);
            // The receiver is gone too, if this fails.
            let _ = sender.send(Err(RelayError::Gone)).await;
        });
        Ok(BlobStream { size, parts })
    }
}
