//! The vault's doors: what nodes of the site, other vaults and the controller may ask.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use sluice_proto::v1::put_blob_request::Part;
use sluice_proto::v1::vault_service_server::{VaultService, VaultServiceServer};
use sluice_proto::v1::{
    EnsureBlobsRequest, EnsureBlobsResponse, GetBlobRequest, GetBlobResponse, HasBlobsRequest, HasBlobsResponse,
    PartialBlob, PutBlobHeader, PutBlobRequest, PutBlobResponse, SealManifestRequest, SealManifestResponse,
};
use sluice_types::{Digest, Reason};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::error::StoreError;
use crate::policy::{PeerPolicy, VaultMethod};
use crate::replicate::Replicator;
use crate::routes::TransferLimits;
use crate::stats::count;
use crate::status::{digest, invalid, status, too_many};
use crate::store::{Begin, BlobReader, BlobStore, BlobWriter};
use crate::wire::MAX_SEAL;

/// Most digests of one request.
const MAX_DIGESTS: usize = 4096;
/// Most manifests of one request.
const MAX_MANIFESTS: usize = 256;
/// Largest message of an upload.
const MAX_PUT: usize = 1 << 20;
/// How long an uploader may be silent.
const PUT_IDLE: Duration = Duration::from_secs(30);

/// Whether connections carry certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Peers without a certificate are refused before the policy is asked.
    Tls,
    /// The policy alone decides, over an empty chain.
    Plaintext,
}

/// Implements `VaultService` over a store.
#[derive(Clone)]
pub struct VaultServer {
    store: BlobStore,
    replicator: Arc<Replicator>,
    policy: Arc<dyn PeerPolicy>,
    transport: Transport,
    reads: Arc<Semaphore>,
    puts: Arc<Semaphore>,
}

impl fmt::Debug for VaultServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VaultServer").field("policy", &self.policy).field("transport", &self.transport).finish()
    }
}

impl VaultServer {
    pub(crate) fn new(
        store: BlobStore,
        replicator: Arc<Replicator>,
        policy: Arc<dyn PeerPolicy>,
        transport: Transport,
        limits: TransferLimits,
    ) -> Self {
        let reads = Arc::new(Semaphore::new(limits.reads.max(1)));
        let puts = Arc::new(Semaphore::new(limits.reads.max(1)));
        Self { store, replicator, policy, transport, reads, puts }
    }

    /// As a service to be added to a `tonic` server.
    #[must_use]
    pub fn service(self) -> VaultServiceServer<Self> {
        VaultServiceServer::new(self).max_decoding_message_size(MAX_SEAL)
    }

    fn authorize<T>(&self, request: &Request<T>, method: VaultMethod, digests: &[Digest]) -> Result<(), Status> {
        let shown = request.peer_certs();
        let chain: Vec<&[u8]> = shown.iter().flat_map(|chain| chain.iter()).map(AsRef::as_ref).collect();
        self.judge(&chain, method, digests)
    }

    fn judge(&self, chain: &[&[u8]], method: VaultMethod, digests: &[Digest]) -> Result<(), Status> {
        if self.transport == Transport::Tls && chain.is_empty() {
            count(&self.store.stats().peers_refused, 1);
            return Err(status(Code::Unauthenticated, Reason::Unauthenticated, "the vault needs a client certificate"));
        }
        let allowed = match digests {
            [] => self.policy.allow(chain, method, None),
            all => all.iter().all(|digest| self.policy.allow(chain, method, Some(digest))),
        };
        if !allowed {
            count(&self.store.stats().peers_refused, 1);
            return Err(status(Code::PermissionDenied, Reason::PermissionDenied, "the vault does not do this for you"));
        }
        Ok(())
    }

    fn permit(permits: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Status> {
        permits
            .clone()
            .try_acquire_owned()
            .map_err(|_| status(Code::Unavailable, Reason::Overloaded, "too many transfers at once; retry in a second"))
    }

    async fn receive(
        &self,
        header: &PutBlobHeader,
        mut writer: BlobWriter,
        mut parts: Streaming<PutBlobRequest>,
    ) -> Result<(), Status> {
        let digest = digest("header.digest", &header.digest)?;
        writer.expect(header.size_bytes).await?;
        let mut at = header.offset;
        if at > writer.offset() {
            return Err(StoreError::Gap { digest, have: writer.offset(), claimed: at }.into());
        }
        loop {
            let next = timeout(PUT_IDLE, parts.message()).await.map_err(|_| {
                status(Code::DeadlineExceeded, Reason::DeadlineExceeded, "the upload was silent for 30 s; resume it")
            })??;
            let Some(next) = next else { break };
            let Some(Part::Data(data)) = next.part else {
                return Err(invalid("part", "data after the header, nothing else"));
            };
            if data.len() > MAX_PUT {
                return Err(too_many("data", MAX_PUT));
            }
            // Another upload of the same blob may have brought more than this uploader knows.
            let known = usize::try_from(writer.offset().saturating_sub(at)).unwrap_or(usize::MAX).min(data.len());
            at = at.saturating_add(data.len() as u64);
            count(&self.store.stats().put_bytes, data.len() as u64);
            writer.write(data.slice(known..)).await?;
        }
        Ok(writer.commit().await?)
    }
}

fn digests(field: &'static str, texts: &[String], limit: usize) -> Result<Vec<Digest>, Status> {
    if texts.len() > limit {
        return Err(too_many(field, limit));
    }
    texts.iter().map(|text| digest(field, text)).collect()
}

type Frames = Pin<Box<dyn Stream<Item = Result<GetBlobResponse, Status>> + Send>>;

/// A blob as messages. The first has the size, also where nothing else is left to send.
fn frames(reader: BlobReader, permit: OwnedSemaphorePermit, store: BlobStore) -> Frames {
    let first = Some(reader.size());
    Box::pin(futures::stream::try_unfold((reader, permit, first, store), |state| async move {
        let (mut reader, permit, first, store) = state;
        let data = match reader.next().await? {
            Some(data) => data,
            None if first.is_some() => bytes::Bytes::new(),
            None => return Ok(None),
        };
        count(&store.stats().served_bytes, data.len() as u64);
        let message = GetBlobResponse { data, size_bytes: first.unwrap_or(0) };
        Ok(Some((message, (reader, permit, None, store))))
    }))
}

#[tonic::async_trait]
impl VaultService for VaultServer {
    type GetBlobStream = Frames;

    async fn has_blobs(&self, request: Request<HasBlobsRequest>) -> Result<Response<HasBlobsResponse>, Status> {
        let asked = digests("digests", &request.get_ref().digests, MAX_DIGESTS)?;
        self.authorize(&request, VaultMethod::Has, &asked)?;
        let mut answer = HasBlobsResponse::default();
        for digest in asked {
            if self.store.size(&digest).is_some() {
                answer.present.push(digest.to_string());
            } else if let Some(here) = self.store.partial(&digest) {
                answer.partial.push(PartialBlob { digest: digest.to_string(), offset: here.get() });
            }
        }
        Ok(Response::new(answer))
    }

    async fn put_blob(&self, request: Request<Streaming<PutBlobRequest>>) -> Result<Response<PutBlobResponse>, Status> {
        self.authorize(&request, VaultMethod::Put, &[])?;
        let shown = request.peer_certs();
        let mut parts = request.into_inner();
        let first = timeout(PUT_IDLE, parts.message())
            .await
            .map_err(|_| status(Code::DeadlineExceeded, Reason::DeadlineExceeded, "no header came for 30 s"))??;
        let Some(Part::Header(header)) = first.and_then(|first| first.part) else {
            return Err(invalid("header", "the first message"));
        };
        let digest = digest("header.digest", &header.digest)?;
        let chain: Vec<&[u8]> = shown.iter().flat_map(|chain| chain.iter()).map(AsRef::as_ref).collect();
        self.judge(&chain, VaultMethod::Put, &[digest])?;
        let _permit = Self::permit(&self.puts)?;
        let Begin::Write(writer) = self.store.begin(digest).await? else {
            return Ok(Response::new(PutBlobResponse { existed: true }));
        };
        self.receive(&header, writer, parts).await?;
        Ok(Response::new(PutBlobResponse { existed: false }))
    }

    async fn get_blob(&self, request: Request<GetBlobRequest>) -> Result<Response<Frames>, Status> {
        let wanted = digest("digest", &request.get_ref().digest)?;
        self.authorize(&request, VaultMethod::Get, &[wanted])?;
        let permit = Self::permit(&self.reads)?;
        let reader = self.store.reader(wanted, request.get_ref().offset)?;
        Ok(Response::new(frames(reader, permit, self.store.clone())))
    }

    async fn ensure_blobs(
        &self,
        request: Request<EnsureBlobsRequest>,
    ) -> Result<Response<EnsureBlobsResponse>, Status> {
        let manifests = digests("manifests", &request.get_ref().manifests, MAX_MANIFESTS)?;
        let blobs = digests("digests", &request.get_ref().digests, MAX_DIGESTS)?;
        let all: Vec<_> = manifests.iter().chain(&blobs).copied().collect();
        self.authorize(&request, VaultMethod::Ensure, &all)?;
        let fetched_bytes = self.replicator.ensure(&manifests, &blobs).await?;
        Ok(Response::new(EnsureBlobsResponse { fetched_bytes }))
    }

    async fn seal_manifest(
        &self,
        request: Request<SealManifestRequest>,
    ) -> Result<Response<SealManifestResponse>, Status> {
        self.authorize(&request, VaultMethod::Seal, &[])?;
        let digest = self.store.seal(request.into_inner().manifest).await?;
        Ok(Response::new(SealManifestResponse { digest: digest.to_string() }))
    }
}
