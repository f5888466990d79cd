//! Uploads and outputs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sluice_lifecycle::model::Job;
use sluice_lifecycle::{Caller, Command, UserCommand};
use sluice_proto::error::{refuse, refuse_field, status};
use sluice_proto::v1;
use sluice_proto::v1::upload_blob_request::Part;
use sluice_store::Page;
use sluice_types::{Digest, ProjectId, Reason};
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
        let project = self.project(who, "header.parent", &header.parent)?.id;
        let digest: Digest =
            header.digest.parse().map_err(|_| refuse_field("header.digest", "64 hexadecimal digits of BLAKE3"))?;
        if header.size_bytes > MAX_UPLOAD {
            return Err(refuse(Reason::TooLarge, format!("an upload has at most {MAX_UPLOAD} bytes")));
        }
        let size = header.size_bytes;
        let blob = v1::BlobRef { digest: header.digest, size_bytes: size, path: String::new() };
        // From here on the content is kept, and counts against the project's bounds.
        let had = self.record(who, project, digest, size, false).await?;
        match self.blobs.uploads.begin(digest).await.map_err(|error| failed(&error))? {
            Begin::Exists if had => return Ok(v1::UploadBlobResponse { blob: Some(blob), existed: true }),
            // Somebody else's bytes. Whoever has only heard of their digest must not learn of them: they are asked for.
            Begin::Exists => same(&mut parts, digest, size).await?,
            Begin::Write(mut writer) => {
                // What a cut upload left is not used here: the client sends all of it again.
                writer.restart().await.map_err(|error| failed(&error))?;
                writer.expect(size).await.map_err(|error| failed(&error))?;
                while let Some(data) = next_data(&mut parts).await? {
                    writer.write(data).await.map_err(|error| failed(&error))?;
                }
                writer.commit().await.map_err(|error| failed(&error))?;
            }
        }
        self.record(who, project, digest, size, true).await?;
        Ok(v1::UploadBlobResponse { blob: Some(blob), existed: false })
    }

    /// Says whether the project had all of it before.
    async fn record(
        &self,
        who: &Principal,
        project: ProjectId,
        digest: Digest,
        size: u64,
        complete: bool,
    ) -> Result<bool, Status> {
        let caller = Caller { key: who.key.id, request: None };
        let command = Command::User(caller, UserCommand::RecordUpload { project, digest, size, complete });
        let answer = self.writer.submit(command).await.map_err(|refusal| status(&refusal))?;
        Ok(answer.replayed)
    }

    pub(super) async fn outputs(
        &self,
        who: Principal,
        job: &Job,
        rank: u32,
    ) -> Result<Answers<v1::DownloadOutputsResponse>, Status> {
        let of_rank = |row: &sluice_lifecycle::model::Attempt| {
            let task = row.tasks.get(usize::try_from(rank).ok()?)?;
            Some((row.site, task.end.as_ref()?.outputs.clone()?))
        };
        let latest = self.store.latest_attempt(job.id).await.map_err(store_status)?;
        let mut found = latest.as_ref().and_then(of_rank);
        if found.is_none() {
            // The newest attempt has left none, yet: those of the last one that did.
            let attempts = self.store.attempts_of(job.id, Page::first(1000)).await.map_err(store_status)?;
            found = attempts.iter().rev().find_map(of_rank);
        }
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
        let directory = Arc::clone(&self.directory);
        tokio::spawn(async move {
            let mut size_bytes = stream.size;
            while let Some(part) = stream.parts.recv().await {
                if let Err(status) = who.still(&directory) {
                    // A receiver that has gone wants no reason.
                    let _gone = sender.send(Err(status)).await;
                    return;
                }
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

async fn next_data(parts: &mut Streaming<v1::UploadBlobRequest>) -> Result<Option<Bytes>, Status> {
    match next(parts).await? {
        None => Ok(None),
        Some(v1::UploadBlobRequest { part: Some(Part::Data(data)) }) => Ok(Some(data)),
        Some(_) => Err(refuse_field("data", "after the header come bytes only")),
    }
}

/// Reads an upload of content that is there, and refuses any other.
async fn same(parts: &mut Streaming<v1::UploadBlobRequest>, digest: Digest, size: u64) -> Result<(), Status> {
    let (mut hasher, mut seen) = (blake3::Hasher::new(), 0u64);
    while let Some(data) = next_data(parts).await? {
        seen = seen.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        if seen > size {
            break;
        }
        hasher.update(&data);
    }
    if seen != size || *hasher.finalize().as_bytes() != *digest.as_bytes() {
        return Err(refuse_field("data", "the bytes are not those of the digest"));
    }
    Ok(())
}
