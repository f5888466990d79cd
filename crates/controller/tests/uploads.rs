//! Uploads belong to their project: a digest tells nothing and opens nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use bytes::Bytes;
use sluice_proto::v1;
use sluice_proto::v1::job_service_client::JobServiceClient;
use sluice_proto::v1::upload_blob_request::Part;
use sluice_types::Reason;
use support::{Door, tenant, with};
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};
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
    let spec = v1::JobSpec {
        command: vec!["true".to_owned()],
        work_dir: Some(blob),
        resources: Some(v1::TaskResources {
            device_class: "cpu".to_owned(),
            milli: 100,
            memory_bytes: 1 << 20,
            ..Default::default()
        }),
        ..Default::default()
    };
    let request =
        v1::SubmitJobRequest { parent: parent.clone(), spec: Some(spec), validate_only: true, ..Default::default() };
    JobServiceClient::new(door.channel.clone()).submit_job(with(request, key)).await.map(|_| ())
}

fn reason(status: &Status) -> Option<Reason> {
    status.get_error_details().error_info()?.reason.parse().ok()
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
        assert_eq!((other.code(), reason(&other)), (refused.code(), reason(&refused)));
    }
    let refused = submit(&door, &stranger, digest, bytes.len()).await.unwrap_err();
    assert_eq!(reason(&refused), Some(Reason::InvalidField), "a failed upload opens nothing");

    // Control: whoever has the bytes may use them.
    assert!(!upload(&door, &stranger, digest, bytes.len(), bytes).await.unwrap());
    let fits = submit(&door, &stranger, digest, bytes.len()).await.map_err(|status| reason(&status));
    assert!(!matches!(fits, Err(Some(Reason::InvalidField))), "{fits:?}");
    door.close().await;
}
