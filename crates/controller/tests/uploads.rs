//! Uploads belong to their project: a digest tells nothing and opens nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use bytes::Bytes;
use sluice_proto::v1;
use sluice_proto::v1::job_service_client::JobServiceClient;
use sluice_proto::v1::tenant_service_client::TenantServiceClient;
use sluice_proto::v1::upload_blob_request::Part;
use sluice_types::Reason;
use support::{Door, small_job, tenant, with};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

async fn upload(
    door: &Door,
    (parent, key): &(String, MetadataValue<Ascii>),
    digest: blake3::Hash,
    size: usize,
    bytes: &[u8],
) -> Result<bool, Status> {
    let header =
        v1::UploadBlobHeader { parent: parent.clone(), digest: digest.to_hex().to_string(), size_bytes: size as u64 };
    let parts = [Part::Header(header), Part::Data(Bytes::copy_from_slice(bytes))];
    let parts = parts.map(|part| v1::UploadBlobRequest { part: Some(part) });
    let mut jobs = JobServiceClient::new(door.channel.clone());
    let answer = jobs.upload_blob(with(tokio_stream::iter(parts), key)).await?;
    Ok(answer.into_inner().existed)
}

async fn submit(
    door: &Door,
    (parent, key): &(String, MetadataValue<Ascii>),
    digest: blake3::Hash,
    size: usize,
) -> Result<(), Status> {
    let blob = v1::BlobRef { digest: digest.to_hex().to_string(), size_bytes: size as u64, path: String::new() };
    let spec = v1::JobSpec { work_dir: Some(blob), ..small_job() };
    let request =
        v1::SubmitJobRequest { parent: parent.clone(), spec: Some(spec), validate_only: true, ..Default::default() };
    JobServiceClient::new(door.channel.clone()).submit_job(with(request, key)).await.map(|_| ())
}

fn reason(status: &Status) -> Option<Reason> {
    status.get_error_details().error_info()?.reason.parse().ok()
}

/// Everything that a caller can see of a refusal.
fn whole(status: &Status) -> (Code, String, Vec<u8>) {
    (status.code(), status.message().to_owned(), status.details().to_vec())
}

type Parts = mpsc::Sender<v1::UploadBlobRequest>;
type Answer = JoinHandle<Result<v1::UploadBlobResponse, Status>>;

/// An upload that has begun and goes on as its sender says.
async fn begin(
    door: &Door,
    (parent, key): &(String, MetadataValue<Ascii>),
    digest: blake3::Hash,
    size: u64,
) -> (Parts, Answer) {
    let header = v1::UploadBlobHeader { parent: parent.clone(), digest: digest.to_hex().to_string(), size_bytes: size };
    let (sender, receiver) = mpsc::channel(1);
    sender.send(v1::UploadBlobRequest { part: Some(Part::Header(header)) }).await.unwrap();
    let request = with(ReceiverStream::new(receiver), key);
    let mut jobs = JobServiceClient::new(door.channel.clone());
    (sender, tokio::spawn(async move { jobs.upload_blob(request).await.map(tonic::Response::into_inner) }))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_tenant_has_under_way_holds_up_no_other() {
    const LARGEST: u64 = 4 << 30;
    let door = Door::open().await;
    let (slow, other) = (tenant(&door, "slow").await, tenant(&door, "other").await);
    let bytes = b"what two tenants use";
    let digest = blake3::hash(bytes);
    let mut under_way = Vec::new();
    for _ in 0..5 {
        under_way.push(begin(&door, &slow, digest, LARGEST).await);
    }
    // There is room for four of them, so one is refused when the others are in.
    let ended = futures::future::select_all(under_way.iter_mut().map(|(_, answer)| answer)).await;
    let (crowded, place) = (ended.0.unwrap().unwrap_err(), ended.1);
    drop(under_way.remove(place));
    assert_eq!(reason(&crowded), Some(Reason::Overloaded), "{crowded}");
    assert!(!crowded.message().contains(|c: char| c.is_ascii_digit()), "no totals: {crowded}");
    // The same content and any other are stored for whoever sends them.
    assert!(!upload(&door, &other, digest, bytes.len(), bytes).await.unwrap());
    assert!(upload(&door, &other, digest, bytes.len(), &[]).await.unwrap(), "it is there");
    // What ended gives its room back.
    let (sender, answer) = under_way.remove(0);
    drop(sender);
    let refused = answer.await.unwrap().unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::InvalidField), "{refused}");
    let again = begin(&door, &slow, digest, LARGEST).await;
    drop(again.0);
    let refused = again.1.await.unwrap().unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::InvalidField), "let in, and cut: {refused}");
    for (sender, answer) in under_way {
        drop(sender);
        assert!(answer.await.unwrap().is_err());
    }
    door.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_ends_its_upload() {
    let door = Door::open().await;
    let (revoked, good) = (tenant(&door, "revoked").await, tenant(&door, "good").await);
    let bytes = b"half and half";
    let digest = blake3::hash(bytes);
    let half = |half: &'static [u8]| v1::UploadBlobRequest { part: Some(Part::Data(Bytes::from_static(half))) };
    let mut answers = Vec::new();
    for who in [&revoked, &good] {
        let (sender, answer) = begin(&door, who, digest, bytes.len() as u64).await;
        sender.send(half(&bytes[..6])).await.unwrap();
        answers.push((sender, answer));
    }
    let id = revoked.1.to_str().unwrap().strip_prefix("Bearer sk-").unwrap().split_once('.').unwrap().0;
    let revoke = v1::RevokeKeyRequest {
        request_id: "123e4567-e89b-42d3-a456-426614174999".to_owned(),
        name: format!("tenants/revoked/keys/{id}"),
    };
    TenantServiceClient::new(door.channel.clone()).revoke_key(with(revoke, &door.key)).await.unwrap();
    let mut ends = Vec::new();
    for (sender, answer) in answers {
        // An upload that has ended already takes nothing more.
        let _ended = sender.send(half(&bytes[6..])).await;
        drop(sender);
        ends.push(answer.await.unwrap().map_err(|status| status.code()));
    }
    assert_eq!(ends[0].as_ref().map(|_| ()), Err(&Code::Unauthenticated));
    // The control: the same upload with a key that still stands.
    assert!(ends[1].is_ok(), "{:?}", ends[1]);
    door.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_tells_nothing_and_opens_nothing() {
    let door = Door::open().await;
    let (owner, stranger) = (tenant(&door, "owner").await, tenant(&door, "stranger").await);
    let bytes = b"weights nobody else has";
    let digest = blake3::hash(bytes);
    assert!(!upload(&door, &owner, digest, bytes.len(), bytes).await.unwrap());
    assert!(upload(&door, &owner, digest, bytes.len(), &[]).await.unwrap(), "its own is not sent again");

    // The stranger knows the digest and the size, and nothing else.
    let refused = submit(&door, &stranger, digest, bytes.len()).await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::InvalidField), "{refused}");
    for guess in [&b""[..], b"weights nobody else hat", b"weights nobody else has and more"] {
        let refused = upload(&door, &stranger, digest, bytes.len(), guess).await.unwrap_err();
        assert_eq!(reason(&refused), Some(Reason::InvalidField), "{refused}");
        // The same guess about bytes that nobody has: the answers do not differ.
        let unknown = blake3::hash(b"nobody ever");
        let other = upload(&door, &stranger, unknown, bytes.len(), guess).await.unwrap_err();
        assert_eq!(whole(&other), whole(&refused));
    }
    let refused = submit(&door, &stranger, digest, bytes.len()).await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::InvalidField), "a failed upload opens nothing");

    // Control: whoever has the bytes may use them.
    assert!(!upload(&door, &stranger, digest, bytes.len(), bytes).await.unwrap());
    let fits = submit(&door, &stranger, digest, bytes.len()).await.map_err(|status| reason(&status));
    assert!(!matches!(fits, Err(Some(Reason::InvalidField))), "{fits:?}");
    door.close().await;
}
