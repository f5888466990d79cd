//! The link of a site's vault, and blobs relayed for those who cannot reach each other.

use std::sync::Arc;
use std::time::Duration;

use sluice_identity::Subject;
use sluice_lifecycle::Command;
use sluice_proto::error::{refuse, refuse_field, status};
use sluice_proto::v1;
use sluice_proto::v1::site_service_server::SiteService;
use sluice_types::{Digest, Reason, SiteId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::hub::LINK_QUEUE;
use super::{Answers, BlobSource, Hub, RelayError, subject};
use crate::directory::Directory;
use crate::writer::WriterHandle;

/// How long a vault may take to say who it is.
const HELLO: Duration = Duration::from_secs(30);
/// A vault heartbeats every second: some may be late.
const SHORTEST_SILENCE: Duration = Duration::from_secs(3);

/// Manifests in one report at most; more than were ordered are not looked at.
const MAX_FORGOTTEN: usize = 4096;

/// Serves vaults.
#[derive(Clone)]
pub(crate) struct SiteApi {
    pub(crate) writer: WriterHandle,
    pub(crate) directory: Arc<Directory>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) blobs: BlobSource,
    /// A node silent for longer is lost, and so is a vault: what waits for it goes elsewhere.
    pub(crate) loss_timeout: Duration,
}

#[tonic::async_trait]
impl SiteService for SiteApi {
    type LinkStream = Answers<v1::LinkResponse>;
    type RelayBlobStream = Answers<v1::RelayBlobResponse>;

    async fn link(&self, request: Request<Streaming<v1::LinkRequest>>) -> Result<Response<Self::LinkStream>, Status> {
        let Subject::Vault(site) = subject(&request, &self.directory)? else {
            return Err(refuse(Reason::PermissionDenied, "only vaults link"));
        };
        let (sender, receiver) = mpsc::channel(LINK_QUEUE);
        let this = self.clone();
        let inbound = request.into_inner();
        tokio::spawn(async move {
            if let Err(status) = this.serve(site, inbound, sender.clone()).await {
                let _ = sender.try_send(Err(status));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn relay_blob(
        &self,
        request: Request<v1::RelayBlobRequest>,
    ) -> Result<Response<Self::RelayBlobStream>, Status> {
        let asker = match subject(&request, &self.directory)? {
            Subject::Vault(site) => Some(site),
            Subject::Node(_) => None,
            Subject::Controller => return Err(refuse(Reason::PermissionDenied, "only hosts relay")),
        };
        let wanted = request.into_inner();
        let digest: Digest = wanted.digest.parse().map_err(|_| refuse_field("digest", "64 hexadecimal digits"))?;
        let site = match wanted.site_id.as_str() {
            "" => None,
            id => Some(id.parse().map_err(|_| refuse_field("site_id", "an id of a site"))?),
        };
        let mut blob =
            self.blobs.open(digest, wanted.offset, site, asker).await.map_err(|error| relay_status(&error))?;
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut size_bytes = blob.size;
            let empty = v1::RelayBlobResponse { data: bytes::Bytes::new(), size_bytes };
            if size_bytes == wanted.offset && sender.send(Ok(empty)).await.is_err() {
                return;
            }
            while let Some(part) = blob.parts.recv().await {
                let part = part.map(|data| v1::RelayBlobResponse { data, size_bytes });
                let part = part.map_err(|error| relay_status(&error));
                if sender.send(part).await.is_err() {
                    return;
                }
                size_bytes = 0;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn relay_status(error: &RelayError) -> Status {
    match error {
        RelayError::Missing => refuse(Reason::NotFound, "there is no such blob"),
        RelayError::Gone | RelayError::Busy => refuse(Reason::Unavailable, error.to_string()),
        RelayError::Unreadable(_) => refuse(Reason::Unavailable, "the blob cannot be read there"),
    }
}

impl SiteApi {
    async fn serve(
        &self,
        site: SiteId,
        mut inbound: Streaming<v1::LinkRequest>,
        sender: mpsc::Sender<Result<v1::LinkResponse, Status>>,
    ) -> Result<(), Status> {
        use v1::link_request::Message;
        let first = tokio::time::timeout(HELLO, inbound.message()).await;
        let first = first.map_err(|_| refuse(Reason::DeadlineExceeded, "no hello"))??;
        let Some(Message::Hello(hello)) = first.and_then(|message| message.message) else {
            return Err(refuse_field("hello", "the first message is hello"));
        };
        if hello.address.len() > 256 {
            return Err(refuse_field("hello.address", "at most 256 bytes"));
        }
        let seat = self.hub.seat_vault(site, sender);
        let command = Command::VaultAddress { site, address: hello.address };
        self.writer.report(command).await.map_err(|refusal| status(&refusal))?;
        self.writer.refresh_copies().await;
        tracing::info!(%site, "vault connected");
        let silence = self.loss_timeout.max(SHORTEST_SILENCE);
        loop {
            let message = tokio::select! {
                () = seat.stop.cancelled() => return Ok(()),
                message = tokio::time::timeout(silence, inbound.message()) => message,
            };
            let message = message.map_err(|_| refuse(Reason::DeadlineExceeded, "no heartbeat"))??;
            let Some(message) = message else { return Ok(()) };
            match message.message {
                Some(Message::Done(done)) => self.done(site, &done).await?,
                Some(Message::Failed(failed)) => {
                    tracing::warn!(%site, manifest = failed.manifest, error = failed.message, "a copy failed");
                    self.hub.copy_over(site, failed.order, true);
                }
                Some(Message::Forgotten(done)) => self.forgotten(site, &done).await?,
                Some(Message::Relay(data)) => self.hub.relayed(site, data),
                // A heartbeat is also the moment to order again what failed.
                Some(Message::Heartbeat(_)) => self.writer.refresh_copies().await,
                Some(Message::Hello(_)) | None => {}
            }
        }
    }

    async fn forgotten(&self, site: SiteId, done: &v1::ForgetDone) -> Result<(), Status> {
        let manifests = done.manifests.iter().take(MAX_FORGOTTEN).filter_map(|text| text.parse().ok()).collect();
        self.writer.report(Command::Forgotten { site, manifests }).await.map_err(|refusal| status(&refusal))?;
        // What could not be forgotten is ordered again with the next heartbeat: at once would be without a pause.
        self.hub.forgotten(site);
        Ok(())
    }

    async fn done(&self, site: SiteId, done: &v1::CopyDone) -> Result<(), Status> {
        self.hub.copy_over(site, done.order, false);
        let Ok(manifest) = done.manifest.parse() else {
            return Err(refuse_field("manifest", "64 hexadecimal digits"));
        };
        tracing::info!(%site, %manifest, bytes = done.fetched_bytes, relayed = done.relayed_bytes, "copied");
        self.writer.report(Command::Copied { site, manifest }).await.map_err(|refusal| status(&refusal))?;
        self.writer.refresh_copies().await;
        Ok(())
    }
}
