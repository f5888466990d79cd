//! Reading a blob or manifest in frames, verified when it is read whole.

use bytes::Bytes;
use object_store::ObjectStoreExt as _;
use sluice_types::Digest;

use super::{BlobStore, Kind};
use crate::error::StoreError;

/// Smallest and largest frame. A frame is the unit that is lost when a transfer is cut, so small blobs have small ones;
/// at 32 KiB its header is still 0.1 % of it.
const MIN_FRAME: u64 = 32 << 10;
const MAX_FRAME: u64 = 512 << 10;

/// Reads one blob from an offset to its end.
#[derive(Debug)]
pub struct BlobReader {
    store: BlobStore,
    digest: Digest,
    kind: Kind,
    size: u64,
    next: u64,
    frame: u64,
    /// Only for a whole read.
    hasher: Option<Box<blake3::Hasher>>,
}

impl BlobStore {
    /// Opens a blob, or a manifest, for reading from `offset` on.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::PastEnd`].
    pub fn reader(&self, digest: Digest, offset: u64) -> Result<BlobReader, StoreError> {
        let (kind, size) = {
            let state = self.state();
            let blob = state.blobs.get(&digest).map(|blob| (Kind::Blob, blob.size));
            let manifest = || state.manifests.get(&digest).map(|size| (Kind::Manifest, *size));
            blob.or_else(manifest).ok_or(StoreError::NotFound(digest))?
        };
        self.open_kind(kind, digest, size, offset)
    }

    pub(super) fn open_kind(
        &self,
        kind: Kind,
        digest: Digest,
        size: u64,
        offset: u64,
    ) -> Result<BlobReader, StoreError> {
        if offset > size {
            return Err(StoreError::PastEnd { digest, offset, size });
        }
        let frame = (size / 32).clamp(MIN_FRAME, MAX_FRAME);
        let hasher = (offset == 0).then(|| Box::new(blake3::Hasher::new()));
        Ok(BlobReader { store: self.clone(), digest, kind, size, next: offset, frame, hasher })
    }

    /// Reads a small blob whole and verified.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Corrupt`], [`StoreError::TooLarge`] over `limit` bytes.
    pub async fn read(&self, digest: Digest, limit: u64) -> Result<Bytes, StoreError> {
        let mut reader = self.reader(digest, 0)?;
        if reader.size() > limit {
            return Err(super::writer::too_large("what is read at once", reader.size(), limit));
        }
        reader.rest().await
    }

    /// Reads a blob whole and verifies it, for a scrub.
    ///
    /// # Errors
    /// As [`BlobReader::next`].
    pub async fn verify(&self, digest: Digest) -> Result<(), StoreError> {
        let mut reader = self.reader(digest, 0)?;
        while reader.next().await?.is_some() {}
        Ok(())
    }
}

impl BlobReader {
    /// Bytes of the whole blob.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where the next frame begins.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.next
    }

    /// Where the next frame will end.
    pub(crate) fn frame_end(&self) -> u64 {
        self.next.saturating_add(self.frame).min(self.size)
    }

    /// Takes smaller frames.
    pub(crate) fn limit_frame(&mut self, frame: u64) {
        self.frame = self.frame.min(frame).max(1);
    }

    /// The next bytes. A whole read holds its last frame back until the digest is found true, so a damaged blob is
    /// never handed out complete.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the bytes on disk are not those of the digest (the blob is set aside);
    /// [`StoreError::NotFound`] when it was deleted meanwhile; the disk.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.next >= self.size {
            return Ok(None);
        }
        let end = self.next.saturating_add(self.frame).min(self.size);
        let location = self.kind.location(&self.digest);
        let bytes = match self.store.inner.objects.get_range(&location, self.next..end).await {
            Ok(bytes) if bytes.len() as u64 == end - self.next => bytes,
            Ok(_) => return Err(self.corrupt().await),
            Err(object_store::Error::NotFound { .. }) => return Err(StoreError::NotFound(self.digest)),
            Err(source) => return Err(self.unreadable(source).await),
        };
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes);
            let wrong = end == self.size && hasher.finalize().as_bytes() != self.digest.as_bytes();
            if wrong {
                return Err(self.corrupt().await);
            }
        }
        self.next = end;
        Ok(Some(bytes))
    }

    /// All that is left.
    pub(super) async fn rest(&mut self) -> Result<Bytes, StoreError> {
        let mut all = Vec::with_capacity(usize::try_from(self.size - self.next).unwrap_or(0));
        while let Some(bytes) = self.next().await? {
            all.extend_from_slice(&bytes);
        }
        Ok(Bytes::from(all))
    }

    async fn corrupt(&self) -> StoreError {
        self.store.set_aside(self.kind, self.digest).await;
        StoreError::Corrupt(self.digest)
    }

    /// A file that is shorter than the index says is damaged; anything else is the disk's trouble.
    async fn unreadable(&self, source: object_store::Error) -> StoreError {
        match self.store.inner.objects.head(&self.kind.location(&self.digest)).await {
            Ok(meta) if meta.size < self.size => self.corrupt().await,
            _ => StoreError::Objects { action: "read a blob", source },
        }
    }
}
