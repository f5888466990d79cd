//! The node agent's side of the vault of its site.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sluice_proto::v1::put_blob_request::Part as PutPart;
use sluice_proto::v1::vault_service_client::VaultServiceClient;
use sluice_proto::v1::{
    EnsureBlobsRequest, GetBlobRequest, HasBlobsRequest, PutBlobHeader, PutBlobRequest, SealManifestRequest,
};
use sluice_types::Digest;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::archive::{self, ArchiveLimits, Packed, Unpacked};
use crate::error::ClientError;
use crate::manifest::{MAX_MANIFEST_BYTES, Manifest};
use crate::stage::judge;
use crate::store::hash_bytes;
use crate::wire::{MAX_MESSAGE, TlsSource, endpoint};

/// What may be under way to us on one connection.
const WINDOW: u32 = 4 << 20;
/// Bytes of one message of an upload.
const FRAME: u64 = 512 << 10;
/// A new connection is made after this time, so that it shows the newest certificate.
const CHANNEL_AGE: Duration = Duration::from_secs(600);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Digests in one question.
const BATCH: usize = 4096;

/// Bounds of a client.
#[derive(Debug, Clone, Copy)]
pub struct ClientLimits {
    /// How long dialling may take.
    pub connect: Duration,
    /// How long a call or stream may be silent. Fetches from another site have no such bound: see
    /// [`VaultClient::ensure`].
    pub idle: Duration,
    /// Tries per call.
    pub tries: u32,
    /// Blobs that move at once.
    pub parallel: usize,
    /// How often a vault is asked again for what it is to keep while a staging goes on. Less than half of
    /// [`crate::StoreLimits::promise`], so that one question may be lost.
    pub remind: Duration,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            idle: Duration::from_secs(30),
            tries: 5,
            parallel: 4,
            remind: Duration::from_secs(5 * 60),
        }
    }
}

/// Talks to the vault of the same site. Cheap to clone; dials when needed and again when the connection broke.
#[derive(Clone)]
pub struct VaultClient {
    inner: Arc<Inner>,
}

struct Inner {
    address: String,
    tls: TlsSource,
    limits: ClientLimits,
    channel: Mutex<Option<(Channel, Instant)>>,
}

impl fmt::Debug for VaultClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VaultClient").field("address", &self.inner.address).finish_non_exhaustive()
    }
}

/// Where the bytes of a blob are on this host.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) file: Arc<File>,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Source {
    /// Reads `length` bytes at `at`, counted from the source's begin. Blocks.
    pub(crate) fn read(&self, at: u64, length: u64) -> std::io::Result<Bytes> {
        let mut buffer = vec![0; usize::try_from(length).map_err(std::io::Error::other)?];
        self.file.read_exact_at(&mut buffer, self.offset + at)?;
        Ok(Bytes::from(buffer))
    }

    /// Hashes all of it. Blocks.
    pub(crate) fn digest(&self) -> std::io::Result<Digest> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        while at < self.length {
            let length = usize::try_from((self.length - at).min(1 << 20)).map_err(std::io::Error::other)?;
            self.file.read_exact_at(&mut buffer[..length], self.offset + at)?;
            hasher.update(&buffer[..length]);
            at += length as u64;
        }
        Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
    }
}

/// What the vault has of some blobs.
#[derive(Debug, Default)]
pub(crate) struct Present {
    pub(crate) whole: HashSet<Digest>,
    pub(crate) partial: HashMap<Digest, u64>,
}

fn worth_another_try(status: &Status) -> bool {
    // What a broken connection looks like depends on where it broke.
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::Aborted | Code::DeadlineExceeded
    )
}

impl VaultClient {
    /// For the vault at `host:port`. Does not dial yet.
    #[must_use]
    pub fn new(address: impl Into<String>, tls: TlsSource, limits: ClientLimits) -> Self {
        let inner = Inner { address: address.into(), tls, limits, channel: Mutex::new(None) };
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn limits(&self) -> ClientLimits {
        self.inner.limits
    }

    fn stub(&self) -> Result<VaultServiceClient<Channel>, ClientError> {
        let mut kept = self.inner.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = match &*kept {
            Some((channel, since)) if since.elapsed() < CHANNEL_AGE => channel.clone(),
            _ => {
                let endpoint = endpoint(&self.inner.address, &self.inner.tls, WINDOW, self.inner.limits.connect);
                let channel = endpoint.map_err(ClientError::Address)?.connect_lazy();
                *kept = Some((channel.clone(), Instant::now()));
                channel
            }
        };
        Ok(VaultServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
    }

    /// Whether a failed call is tried again; pauses if so.
    async fn again(&self, tries: &mut u32, status: &Status) -> bool {
        *tries += 1;
        if *tries >= self.inner.limits.tries || !worth_another_try(status) {
            return false;
        }
        self.inner.channel.lock().unwrap_or_else(PoisonError::into_inner).take();
        sleep((Duration::from_millis(50) * (1 << (*tries).min(8))).min(LONGEST_PAUSE)).await;
        true
    }

    /// Makes sure that these manifests, with all that they name, and these blobs are in the site's vault. It fetches what is
    /// missing from other sites or the controller, which takes as long as it takes: set a deadline around it. Dropped, it
    /// goes on from where it was when called again. Returns the bytes that were fetched.
    ///
    /// # Errors
    /// `NOT_FOUND` from the vault if nobody has one of them, `UNAVAILABLE` if nobody who has could be reached.
    pub async fn ensure(&self, manifests: &[Digest], digests: &[Digest]) -> Result<u64, ClientError> {
        let request = EnsureBlobsRequest {
            manifests: manifests.iter().map(Digest::to_string).collect(),
            digests: digests.iter().map(Digest::to_string).collect(),
        };
        let mut tries = 0;
        loop {
            match self.stub()?.ensure_blobs(request.clone()).await {
                Ok(answer) => return Ok(answer.into_inner().fetched_bytes),
                Err(status) if self.again(&mut tries, &status).await => {}
                Err(status) => return Err(status.into()),
            }
        }
    }

    /// Which of these blobs are in the vault, whole or in part. They are kept there for a while, for a manifest to come.
    pub(crate) async fn present(&self, digests: &[Digest]) -> Result<Present, ClientError> {
        let mut present = Present::default();
        for batch in digests.chunks(BATCH) {
            let request = HasBlobsRequest { digests: batch.iter().map(Digest::to_string).collect() };
            let mut tries = 0;
            let answer = loop {
                let mut stub = self.stub()?;
                let call = timeout(self.inner.limits.idle, stub.has_blobs(request.clone()));
                match call.await.unwrap_or_else(|_| Err(Status::deadline_exceeded("silent"))) {
                    Ok(answer) => break answer.into_inner(),
                    Err(status) if self.again(&mut tries, &status).await => {}
                    Err(status) => return Err(status.into()),
                }
            };
            present.whole.extend(answer.present.iter().filter_map(|text| text.parse::<Digest>().ok()));
            let partial = answer.partial.iter().filter_map(|it| Some((it.digest.parse().ok()?, it.offset)));
            present.partial.extend(partial);
        }
        Ok(present)
    }

    /// Which of these blobs or manifests are in the vault.
    ///
    /// # Errors
    /// The vault cannot be reached.
    pub async fn has(&self, digests: &[Digest]) -> Result<HashSet<Digest>, ClientError> {
        Ok(self.present(digests).await?.whole)
    }

    /// Stores bytes in memory.
    ///
    /// # Errors
    /// Bounds of the vault; it cannot be reached.
    pub async fn put_bytes(&self, bytes: &[u8]) -> Result<Digest, ClientError> {
        let digest = hash_bytes(bytes);
        let messages = |bytes: &[u8]| -> Vec<PutBlobRequest> {
            let size = usize::try_from(FRAME).unwrap_or(usize::MAX);
            bytes.chunks(size).map(|chunk| data_message(Bytes::copy_from_slice(chunk))).collect()
        };
        let (mut tries, mut anew) = (0, false);
        loop {
            if self.present(&[digest]).await?.whole.contains(&digest) {
                return Ok(digest);
            }
            let stream = [header_message(digest, bytes.len() as u64, 0)].into_iter().chain(messages(bytes));
            match self.stub()?.put_blob(futures::stream::iter(stream.collect::<Vec<_>>())).await {
                Ok(_) => return Ok(digest),
                // See [`Self::upload`].
                Err(status) if status.code() == Code::InvalidArgument && !anew => anew = true,
                Err(status) if self.again(&mut tries, &status).await => {}
                Err(status) => return Err(status.into()),
            }
        }
    }

    /// Stores a file, unless it is there. Returns its digest and size.
    ///
    /// # Errors
    /// The file cannot be read or changes meanwhile; bounds of the vault; it cannot be reached.
    pub async fn put_file(&self, path: &Path) -> Result<(Digest, u64), ClientError> {
        let file = File::open(path).map_err(ClientError::io("open", path))?;
        let length = file.metadata().map_err(ClientError::io("read", path))?.len();
        let source = Source { file: Arc::new(file), offset: 0, length };
        let hashed = source.clone();
        let digest = work(path, move || hashed.digest()).await?;
        let present = self.present(&[digest]).await?;
        if !present.whole.contains(&digest) {
            self.upload(digest, source, present.partial.get(&digest).copied().unwrap_or(0), path).await?;
        }
        Ok((digest, length))
    }

    /// Sends a blob from where the vault's part ends, and again after a cut.
    pub(crate) async fn upload(
        &self,
        digest: Digest,
        source: Source,
        mut offset: u64,
        path: &Path,
    ) -> Result<(), ClientError> {
        let (mut tries, mut anew) = (0, false);
        loop {
            let failed = Arc::new(Mutex::new(None));
            let stream = upload_stream(digest, source.clone(), offset.min(source.length), failed.clone());
            let answer = self.stub()?.put_blob(stream).await;
            if let Some(error) = failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return Err(judge(error, path));
            }
            let status = match answer {
                Ok(_) => return Ok(()),
                Err(status) => status,
            };
            match status.code() {
                // It went on from what the vault had, be it of other bytes. That is thrown away now.
                Code::InvalidArgument if !anew => (anew, offset) = (true, 0),
                // The digest was computed from this file: another one means that it changed since.
                Code::InvalidArgument => return Err(ClientError::Changed(path.to_owned())),
                // The part that the vault kept is gone.
                Code::OutOfRange if offset > 0 => offset = 0,
                _ if self.again(&mut tries, &status).await => {
                    let present = self.present(&[digest]).await?;
                    if present.whole.contains(&digest) {
                        return Ok(());
                    }
                    offset = present.partial.get(&digest).copied().unwrap_or(0);
                }
                _ => return Err(status.into()),
            }
        }
    }

    /// Seals a manifest whose blobs are all in the vault: durable at this site when this returns. Returns its digest.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` from the vault if a blob is missing; a manifest that breaks a rule.
    pub async fn seal(&self, manifest: &Manifest) -> Result<Digest, ClientError> {
        let (bytes, digest) = manifest.encode()?;
        let mut tries = 0;
        loop {
            let request = SealManifestRequest { manifest: bytes.clone() };
            let mut stub = self.stub()?;
            let call = timeout(self.inner.limits.idle, stub.seal_manifest(request));
            match call.await.unwrap_or_else(|_| Err(Status::deadline_exceeded("silent"))) {
                Ok(answer) if answer.get_ref().digest == digest.to_string() => return Ok(digest),
                Ok(_) => return Err(ClientError::Untrue(digest)),
                Err(status) if self.again(&mut tries, &status).await => {}
                Err(status) => return Err(status.into()),
            }
        }
    }

    /// Reads a manifest, verified.
    ///
    /// # Errors
    /// It is not in the vault, or is not a manifest.
    pub async fn manifest(&self, digest: Digest) -> Result<Manifest, ClientError> {
        Ok(Manifest::parse(&self.get_bytes(digest, MAX_MANIFEST_BYTES as u64).await?)?)
    }

    /// Reads a small blob, verified.
    ///
    /// # Errors
    /// It is not in the vault, or has more than `limit` bytes.
    pub async fn get_bytes(&self, digest: Digest, limit: u64) -> Result<Bytes, ClientError> {
        let mut bytes = Vec::new();
        let mut take = async |data: Bytes| {
            bytes.extend_from_slice(&data);
            Ok(())
        };
        self.stream(digest, Some(limit), &mut take).await?;
        Ok(Bytes::from(bytes))
    }

    /// Reads a blob into a new file, verified. The file appears under its name only when it is complete.
    ///
    /// # Errors
    /// It is not in the vault; the disk.
    pub async fn get_file(&self, digest: Digest, path: &Path) -> Result<u64, ClientError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let part = path.with_file_name(name);
        let file = File::create(&part).map_err(ClientError::io("create", &part))?;
        let written = self.get_into(digest, None, &Arc::new(file), 0, &part).await;
        if written.is_err() {
            // Best effort: the next try overwrites it.
            let _gone = std::fs::remove_file(&part);
        }
        let written = written?;
        std::fs::rename(&part, path).map_err(ClientError::io("rename", &part))?;
        Ok(written)
    }

    /// Reads a blob to a place in a file, verified. Returns its size.
    pub(crate) async fn get_into(
        &self,
        digest: Digest,
        limit: Option<u64>,
        file: &Arc<File>,
        offset: u64,
        path: &Path,
    ) -> Result<u64, ClientError> {
        let mut at = offset;
        let mut take = async |data: Bytes| {
            let (file, begin) = (file.clone(), at);
            at += data.len() as u64;
            work(path, move || file.write_all_at(&data, begin)).await
        };
        self.stream(digest, limit, &mut take).await
    }

    /// Streams a blob, going on after a cut, and verifies it. The bytes count only when this succeeds.
    async fn stream(
        &self,
        digest: Digest,
        limit: Option<u64>,
        take: &mut impl AsyncFnMut(Bytes) -> Result<(), ClientError>,
    ) -> Result<u64, ClientError> {
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        let mut tries = 0;
        loop {
            let before = at;
            let ended = self.stream_once(digest, limit, &mut at, &mut hasher, take).await;
            tries = if at > before { 0 } else { tries };
            match ended {
                Ok(size) if at == size && hasher.finalize().as_bytes() == digest.as_bytes() => return Ok(size),
                Ok(_) => return Err(ClientError::Untrue(digest)),
                Err(ClientError::Vault(status)) if self.again(&mut tries, &status).await => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn stream_once(
        &self,
        digest: Digest,
        limit: Option<u64>,
        at: &mut u64,
        hasher: &mut blake3::Hasher,
        take: &mut impl AsyncFnMut(Bytes) -> Result<(), ClientError>,
    ) -> Result<u64, ClientError> {
        let idle = self.inner.limits.idle;
        let silent = || ClientError::from(Status::deadline_exceeded("silent"));
        let request = GetBlobRequest { digest: digest.to_string(), offset: *at };
        let mut stub = self.stub()?;
        let mut stream = timeout(idle, stub.get_blob(request)).await.map_err(|_| silent())??.into_inner();
        let mut size = None;
        while let Some(message) = timeout(idle, stream.message()).await.map_err(|_| silent())?? {
            let size = *size.get_or_insert(message.size_bytes);
            if let Some(limit) = limit.filter(|limit| size > *limit) {
                let limit = sluice_types::Bytes::new(limit);
                return Err(ClientError::TooLarge { what: "the blob", asked: size, limit });
            }
            let end = *at + message.data.len() as u64;
            if end > size {
                return Err(ClientError::Untrue(digest));
            }
            hasher.update(&message.data);
            *at = end;
            take(message.data).await?;
        }
        match size {
            Some(size) if *at == size => Ok(size),
            _ => Err(Status::aborted("the stream ended early").into()),
        }
    }

    /// Packs a folder into a new file and stores that. See [`archive::pack`].
    ///
    /// # Errors
    /// As [`archive::pack`] and [`Self::put_file`].
    pub async fn pack_tar(
        &self,
        folder: &Path,
        archive_file: &Path,
        limits: ArchiveLimits,
    ) -> Result<Packed, ClientError> {
        let (from, to) = (folder.to_owned(), archive_file.to_owned());
        let packed = off_thread(move || archive::pack(&from, &to, limits)).await??;
        self.put_file(archive_file).await?;
        Ok(packed)
    }

    /// Unpacks an archive that is in the vault, by way of a scratch file that is removed again. See [`archive::unpack`].
    ///
    /// # Errors
    /// As [`Self::get_file`] and [`archive::unpack`].
    pub async fn unpack_tar(
        &self,
        digest: Digest,
        folder: &Path,
        scratch: &Path,
        limits: ArchiveLimits,
    ) -> Result<Unpacked, ClientError> {
        self.get_file(digest, scratch).await?;
        let (from, to) = (scratch.to_owned(), folder.to_owned());
        let unpacked = off_thread(move || archive::unpack(&from, &to, limits)).await;
        // Best effort: the scratch folder is cleaned as a whole.
        let _gone = std::fs::remove_file(scratch);
        Ok(unpacked??)
    }
}

fn header_message(digest: Digest, size_bytes: u64, offset: u64) -> PutBlobRequest {
    let header = PutBlobHeader { digest: digest.to_string(), size_bytes, offset };
    PutBlobRequest { part: Some(PutPart::Header(header)) }
}

fn data_message(data: Bytes) -> PutBlobRequest {
    PutBlobRequest { part: Some(PutPart::Data(data)) }
}

/// The messages of an upload. A read that fails ends the stream early, and the vault refuses what came.
fn upload_stream(
    digest: Digest,
    source: Source,
    offset: u64,
    failed: Arc<Mutex<Option<std::io::Error>>>,
) -> impl futures::Stream<Item = PutBlobRequest> + Send + 'static {
    let header = futures::stream::iter([header_message(digest, source.length, offset)]);
    let data = futures::stream::unfold((source, offset, failed), |(source, at, failed)| async move {
        let length = (source.length - at).min(FRAME);
        if length == 0 {
            return None;
        }
        let reading = source.clone();
        let read = tokio::task::spawn_blocking(move || reading.read(at, length)).await;
        match read.unwrap_or_else(|gone| Err(std::io::Error::other(gone))) {
            Ok(data) => Some((data_message(data), (source, at + length, failed))),
            Err(error) => {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                None
            }
        }
    });
    futures::StreamExt::chain(header, data)
}

/// File work off the async threads.
pub(crate) async fn work<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, ClientError> {
    off_thread(work).await?.map_err(ClientError::io("read or write", path))
}

pub(crate) async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ClientError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|gone| ClientError::Io {
        action: "finish work on",
        path: "a file".into(),
        source: std::io::Error::other(gone),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AllowAll, StoreLimits, TransferLimits, Vault, VaultConfig, VaultStats, no_tls};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_that_changed_since_it_was_hashed_is_refused_at_the_second_try() {
        let folder = tempfile::tempdir().unwrap();
        let stats = Arc::new(VaultStats::default());
        let vault = Vault::open(VaultConfig {
            folder: folder.path().join("vault"),
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: String::new(),
            controller: String::new(),
            server_tls: None,
            controller_tls: no_tls(),
            peer_tls: no_tls(),
            policy: Arc::new(AllowAll),
            store: StoreLimits::default(),
            transfers: TransferLimits::default(),
            stats: stats.clone(),
        });
        let vault = vault.await.unwrap();
        let client = VaultClient::new(vault.address().to_string(), no_tls(), ClientLimits::default());
        tokio::spawn(vault.run(tokio_util::sync::CancellationToken::new()));
        let path = folder.path().join("file");
        std::fs::write(&path, "now").unwrap();
        let source = Source { file: Arc::new(File::open(&path).unwrap()), offset: 0, length: 3 };
        let refused = client.upload(hash_bytes(b"was"), source, 0, &path).await;
        assert!(matches!(refused, Err(ClientError::Changed(_))), "{refused:?}");
        assert_eq!(stats.figures().digests_refused, 2);
    }
}
