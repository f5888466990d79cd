//! Uploads folders and brings outputs back.

use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use indicatif::ProgressBar;
use sluice_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use crate::archive::{Packed, pack};
use crate::command::Invocation;
use crate::error::CliError;

/// Bytes in one message.
const CHUNK: usize = 256 << 10;
/// Messages that wait for the connection.
const AHEAD: usize = 4;
/// An upload is over after this.
const UPLOAD_DEADLINE: Duration = Duration::from_secs(600);
/// The largest outputs that are fetched.
const LARGEST_OUTPUTS: u64 = 64 << 30;

/// Packs a local file or folder in a thread of its own.
pub(crate) async fn pack_local(field: &str, path: &Path) -> Result<Packed, CliError> {
    let owned = path.to_path_buf();
    let packed = tokio::task::spawn_blocking(move || pack(&owned)).await;
    let packed = packed.map_err(|error| CliError::io("pack a folder", std::io::Error::other(error)))?;
    packed.map_err(|error| CliError::Usage {
        message: format!("{} cannot be uploaded: {error}", path.display()),
        field: Some(field.to_owned()),
        next: Some("Correct it, leave it out by .sluiceignore, or name another folder.".into()),
    })
}

/// A file as it is, to be uploaded as it is.
pub(crate) async fn hash_local(path: &Path) -> Result<Packed, CliError> {
    let reading = |error| CliError::io(format!("read {}", path.display()), error);
    let file = std::fs::File::open(path).map_err(reading)?;
    let hashing = tokio::task::spawn_blocking(move || {
        let mut hasher = blake3::Hasher::new();
        let size = std::io::copy(&mut &file, &mut hasher)?;
        let digest = sluice_types::Digest::from_bytes(*hasher.finalize().as_bytes());
        Ok(Packed { file, digest, size, entries: 1 })
    });
    hashing.await.map_err(std::io::Error::other).and_then(|hashed| hashed).map_err(reading)
}

/// Uploads an archive; what the project has already is not sent again.
pub(crate) async fn upload(at: &Invocation, parent: &str, packed: &Packed) -> Result<v1::BlobRef, CliError> {
    let doing = "upload the archive";
    let bar = at.console.progress("uploading", packed.size);
    let header =
        v1::UploadBlobHeader { parent: parent.to_owned(), digest: packed.digest.to_string(), size_bytes: packed.size };
    let mut backoff = at.api.call_backoff();
    let answer = loop {
        // Content-addressed, so sending it again cannot make two.
        bar.set_position(0);
        match attempt(at, header.clone(), packed, &bar).await? {
            Ok(answer) => break answer,
            Err(status) => backoff.after(status).await.map_err(|status| CliError::refused(doing, status))?,
        }
    };
    bar.finish_and_clear();
    let blob = answer.blob.unwrap_or_default();
    if blob.digest != header.digest || blob.size_bytes != header.size_bytes {
        return Err(CliError::Answer("the server stored another archive than was sent".into()));
    }
    at.console.note(&format!(
        "{} {} files and folders, {} bytes",
        if answer.existed { "already there:" } else { "uploaded" },
        packed.entries,
        packed.size
    ));
    Ok(blob)
}

async fn attempt(
    at: &Invocation,
    header: v1::UploadBlobHeader,
    packed: &Packed,
    bar: &ProgressBar,
) -> Result<Result<v1::UploadBlobResponse, Status>, CliError> {
    let reading = |error| CliError::io("read the temporary archive", error);
    let mut file = packed.file.try_clone().map_err(reading)?;
    file.rewind().map_err(reading)?;
    let (sender, receiver) = mpsc::channel(AHEAD);
    let bar = bar.clone();
    let feeder = tokio::task::spawn_blocking(move || feed(file, header, &sender, &bar));
    let mut request = Request::new(ReceiverStream::new(receiver));
    request.set_timeout(UPLOAD_DEADLINE);
    let answer = at.api.jobs().upload_blob(request).await;
    // The channel is closed by now, so the feeder ends at its next message.
    let fed = feeder.await.map_err(|error| CliError::io("read the archive", std::io::Error::other(error)))?;
    fed.map_err(reading)?;
    Ok(answer.map(tonic::Response::into_inner))
}

/// Sends header and bytes until the end or until nobody listens.
fn feed(
    mut file: std::fs::File,
    header: v1::UploadBlobHeader,
    sender: &mpsc::Sender<v1::UploadBlobRequest>,
    bar: &ProgressBar,
) -> std::io::Result<()> {
    use v1::upload_blob_request::Part;
    let mut part = Some(Part::Header(header));
    let mut buffer = vec![0; CHUNK];
    while let Some(message) = part {
        if sender.blocking_send(v1::UploadBlobRequest { part: Some(message) }).is_err() {
            return Ok(());
        }
        let read = file.read(&mut buffer)?;
        bar.inc(u64::try_from(read).unwrap_or(0));
        part = (read > 0).then(|| Part::Data(Bytes::copy_from_slice(&buffer[..read])));
    }
    Ok(())
}

/// Fetches a task's outputs into a nameless file in `near`, ready to be read from its beginning.
pub(crate) async fn fetch_outputs(
    at: &Invocation,
    job: &str,
    rank: u32,
    near: &Path,
) -> Result<std::fs::File, CliError> {
    let doing = "fetch the outputs";
    let mut backoff = at.api.call_backoff();
    loop {
        let spool = |error| CliError::io(format!("write a temporary file in {}", near.display()), error);
        let mut file = tempfile::tempfile_in(near).map_err(spool)?;
        match fetch_once(at, job, rank, &mut file).await? {
            Ok(()) => {
                file.rewind().map_err(spool)?;
                return Ok(file);
            }
            // The call has no offset to go on from: it begins again.
            Err(status) => backoff.after(status).await.map_err(|status| CliError::refused(doing, status))?,
        }
    }
}

async fn fetch_once(
    at: &Invocation,
    job: &str,
    rank: u32,
    file: &mut std::fs::File,
) -> Result<Result<(), Status>, CliError> {
    let request = v1::DownloadOutputsRequest { name: job.to_owned(), rank };
    let mut stream = match at.api.jobs().download_outputs(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    let (mut size, mut got) = (None, 0u64);
    let bar = at.console.progress("downloading", 0);
    loop {
        let message = match stream.message().await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(status) => return Ok(Err(status)),
        };
        let size = *size.get_or_insert(message.size_bytes);
        if size > LARGEST_OUTPUTS {
            return Err(CliError::Answer(format!("the outputs have {size} bytes, more than 64 GiB")));
        }
        bar.set_length(size);
        got = got.saturating_add(u64::try_from(message.data.len()).unwrap_or(u64::MAX));
        if got > size {
            return Err(CliError::Answer("the server sent more bytes than it announced".into()));
        }
        file.write_all(&message.data).map_err(|error| CliError::io("write a temporary file", error))?;
        bar.set_position(got);
    }
    bar.finish_and_clear();
    match size {
        Some(size) if size != got => Ok(Err(Status::unavailable("the outputs ended early"))),
        _ => Ok(Ok(())),
    }
}
