//! What a node asks of the vault while a checkpoint is staged, by a vault that only answers.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use futures::Stream;
use sluice_proto::v1::vault_service_server::{VaultService, VaultServiceServer};
use sluice_proto::v1::{
    EnsureBlobsRequest, EnsureBlobsResponse, GetBlobRequest, GetBlobResponse, HasBlobsRequest, HasBlobsResponse,
    PutBlobRequest, PutBlobResponse, SealManifestRequest, SealManifestResponse,
};
use sluice_vault::archive::ArchiveLimits;
use sluice_vault::{ClientLimits, Part, VaultClient, hash_bytes, no_tls};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

/// Has one blob, and takes another one only when it was asked for the first again, twice.
struct Forgetful {
    has: String,
    asked: watch::Sender<u32>,
}

#[tonic::async_trait]
impl VaultService for Forgetful {
    type GetBlobStream = std::pin::Pin<Box<dyn Stream<Item = Result<GetBlobResponse, Status>> + Send>>;

    async fn has_blobs(&self, request: Request<HasBlobsRequest>) -> Result<Response<HasBlobsResponse>, Status> {
        let digests = request.into_inner().digests;
        let present: Vec<_> = digests.into_iter().filter(|digest| *digest == self.has).collect();
        self.asked.send_modify(|asked| *asked += u32::from(!present.is_empty()));
        Ok(Response::new(HasBlobsResponse { present, partial: vec![] }))
    }

    async fn put_blob(&self, _: Request<Streaming<PutBlobRequest>>) -> Result<Response<PutBlobResponse>, Status> {
        let mut asked = self.asked.subscribe();
        asked.wait_for(|asked| *asked >= 3).await.unwrap();
        Ok(Response::new(PutBlobResponse { existed: false }))
    }

    async fn get_blob(&self, _: Request<GetBlobRequest>) -> Result<Response<Self::GetBlobStream>, Status> {
        Err(Status::unimplemented("it only answers"))
    }

    async fn ensure_blobs(&self, _: Request<EnsureBlobsRequest>) -> Result<Response<EnsureBlobsResponse>, Status> {
        Err(Status::unimplemented("it only answers"))
    }

    async fn seal_manifest(&self, _: Request<SealManifestRequest>) -> Result<Response<SealManifestResponse>, Status> {
        Err(Status::unimplemented("it only answers"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_is_reminded_of_what_it_has_while_a_long_staging_goes_on() {
    let stage = tempfile::tempdir().unwrap();
    std::fs::write(stage.path().join("frozen"), "frozen").unwrap();
    std::fs::write(stage.path().join("new"), "new").unwrap();
    let vault = Forgetful { has: hash_bytes(b"frozen").to_string(), asked: watch::channel(0).0 };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tonic::transport::Server::builder().add_service(VaultServiceServer::new(vault));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let limits = ClientLimits { remind: Duration::from_millis(10), ..ClientLimits::default() };
    let client = VaultClient::new(address, no_tls(), limits);
    let parts = Part::of_folder(stage.path(), ArchiveLimits::default()).unwrap();
    let staged = timeout(Duration::from_secs(30), client.stage(stage.path(), parts)).await;
    assert_eq!(staged.expect("it asks no more").unwrap().uploaded.get(), 3);
}
