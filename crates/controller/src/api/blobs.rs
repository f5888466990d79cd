//! Uploads and outputs.

use std::time::Duration;

use sluice_lifecycle::model::Job;
use sluice_proto::error::{refuse, refuse_field};
use sluice_proto::v1;
use sluice_proto::v1::upload_blob_request::Part;
use sluice_store::Page;
use sluice_types::{Digest, Reason};
use sluice_vault::Begin;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Api, not_found, store_status};
use crate::link::Answers;
use crate::principal::Principal;

const MAX_UPLOAD: u64 = 4 << 30;
const PATIENCE: Duration = Duration::from_secs(60);

fn failed(error: &impl std::fmt::Display) -> Status {
    refuse_field("data", format!("the upload cannot be kept: {error}"))
}

impl Api {
    pub(super) async fn upload(
        &self,
        who: &Principal,
        mut parts: Streaming<v1::UploadBlobRequest>,
    ) -> Result<v1::UploadBlobResponse, Status> {
        let first = next(&mut parts).await?.and_then(|message| message.part);
        let Some(Part::Header(header)) = first else {
            return Err(refuse_field("header", "the first message is the header"));
        };
        self.project(who, "header.parent", &header.parent)?;
        let digest: Digest =
            header.digest.parse().map_err(|_| refuse_field("header.digest", "64 hexadecimal digits of BLAKE3"))?;
        if header.size_bytes > MAX_UPLOAD {
            return Err(refuse(Reason::TooLarge, format!("an upload has at most {MAX_UPLOAD} bytes")));
        }
        let blob = v1::BlobRef { digest: header.digest, size_bytes: header.size_bytes, path: String::new() };
        let mut writer = match self.blobs.uploads.begin(digest).await.map_err(|error| failed(&error))? {
            Begin::Exists => return Ok(v1::UploadBlobResponse { blob: Some(blob), existed: true }),
            Begin::Write(writer) => writer,
        };
        // What a cut upload left is not used here: the client sends all of it again.
        writer.restart().await.map_err(|error| failed(&error))?;
        writer.expect(blob.size_bytes).await.map_err(|error| failed(&error))?;
        while let Some(message) = next(&mut parts).await? {
            match message.part {
                Some(Part::Data(data)) => writer.write(data).await.map_err(|error| failed(&error))?,
                _ => return Err(refuse_field("data", "after the header come bytes only")),
            }
        }
        writer.commit().await.map_err(|error| failed(&error))?;
        Ok(v1::UploadBlobResponse { blob: Some(blob), existed: false })
    }

    pub(super) async fn outputs(&self, job: &Job, rank: u32) -> Result<Answers<v1::DownloadOutputsResponse>, Status> {
        let attempts = self.store.attempts_of(job.id, Page::first(1000)).await.map_err(store_status)?;
        let of_rank = |row: &sluice_lifecycle::model::Attempt| {
            let task = row.tasks.get(usize::try_from(rank).ok()?)?;
            Some((row.site, task.end.as_ref()?.outputs.clone()?))
        };
        let found = attempts.iter().rev().find_map(of_rank);
        let (site, blob) = found
            .ok_or_else(|| refuse(Reason::WrongState, "there are no outputs: the task has not ended, or left none"))?;
        let mut stream = self.blobs.open(blob.digest, 0, Some(site), None).await.map_err(|error| {
            tracing::warn!(%error, digest = %blob.digest, "outputs cannot be read");
            refuse(Reason::Unavailable, "the site that has the outputs does not answer")
        })?;
        if stream.size == 0 {
            return Err(not_found("outputs"));
        }
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut size_bytes = stream.size;
            while let Some(part) = stream.parts.recv().await {
                let part = part.map(|data| v1::DownloadOutputsResponse { size_bytes, data });
                let part = part.map_err(|error| refuse(Reason::Unavailable, error.to_string()));
                if sender.send(part).await.is_err() {
                    return;
                }
                size_bytes = 0;
            }
        });
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }
}

async fn next(parts: &mut Streaming<v1::UploadBlobRequest>) -> Result<Option<v1::UploadBlobRequest>, Status> {
    let late = |_| refuse(Reason::DeadlineExceeded, "the upload stood still for too long");
    tokio::time::timeout(PATIENCE, parts.message()).await.map_err(late)?
}
