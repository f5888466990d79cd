//! Uploads and outputs.

use std::sync::Arc;

use bytes::Bytes;
use sluice_lifecycle::model::Job;
use sluice_lifecycle::{Caller, Command, UserCommand};
use sluice_proto::error::{refuse, refuse_field, status};
use sluice_proto::v1;
use sluice_proto::v1::upload_blob_request::Part;
use sluice_store::Page;
use sluice_types::{Digest, ProjectId, Reason};
use sluice_vault::{Begin, StoreError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Api, not_found, store_status};
use crate::link::Answers;
use crate::principal::Principal;
use crate::spool::{PATIENCE, Spool, deadline};

const MAX_UPLOAD: u64 = 4 << 30;

// What is in the store and on its disk is everybody's: no text tells one tenant of the others.

fn unkept(error: &impl std::fmt::Display) -> Status {
    tracing::error!(%error, "an upload cannot be kept");
    refuse(Reason::Unavailable, "the upload cannot be kept now; try again")
}

fn unstored(error: &StoreError) -> Status {
    match error {
        StoreError::TooLarge { .. } => {
            tracing::warn!(%error, "there is no room for an upload");
            refuse(Reason::Overloaded, "there is no room for uploads now; try again later")
        }
        _ => unkept(error),
    }
}

fn crowded() -> Status {
    refuse(Reason::Overloaded, "too many bytes of uploads are under way; try again when some have ended")
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
        let project = self.project(who, "header.parent", &header.parent)?;
        let digest: Digest =
            header.digest.parse().map_err(|_| refuse_field("header.digest", "64 hexadecimal digits of BLAKE3"))?;
        if header.size_bytes > MAX_UPLOAD {
            return Err(refuse(Reason::TooLarge, format!("an upload has at most {MAX_UPLOAD} bytes")));
        }
        let size = header.size_bytes;
        let blob = v1::BlobRef { digest: header.digest, size_bytes: size, path: String::new() };
        let room = self.spools.admit(project.tenant, size).ok_or_else(crowded)?;
        // From here on the content is kept, and counts against the project's bounds.
        let had = self.record(who, project.id, digest, size, false).await?;
        if had && matches!(self.blobs.uploads.begin(digest).await.map_err(|error| unkept(&error))?, Begin::Exists) {
            return Ok(v1::UploadBlobResponse { blob: Some(blob), existed: true });
        }
        // Somebody else's bytes may be here. Whoever has only heard of their digest must not learn of them: all bytes are
        // asked for, and judged before the store is asked.
        let mut spool = Spool::new(room, digest, size).map_err(|error| unkept(&error))?;
        let late = |_| refuse(Reason::DeadlineExceeded, "the upload came too slowly");
        tokio::time::timeout(deadline(size), self.receive(who, &mut parts, &mut spool)).await.map_err(late)??;
        spool.store(&self.blobs.uploads).await.map_err(|error| unstored(&error))?;
        who.still(&self.directory)?;
        self.record(who, project.id, digest, size, true).await?;
        Ok(v1::UploadBlobResponse { blob: Some(blob), existed: false })
    }

    /// Takes the bytes, as long as the key is good, and refuses any but those that were announced.
    async fn receive(
        &self,
        who: &Principal,
        parts: &mut Streaming<v1::UploadBlobRequest>,
        spool: &mut Spool,
    ) -> Result<(), Status> {
        let wrong = || refuse_field("data", "the bytes are not those of the digest and size");
        while let Some(data) = next_data(parts).await? {
            who.still(&self.directory)?;
            if !spool.write(&data).await.map_err(|error| unkept(&error))? {
                return Err(wrong());
            }
        }
        if spool.is_whole() { Ok(()) } else { Err(wrong()) }
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
        let caller = Caller::of(who.key.id);
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
