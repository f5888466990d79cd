//! Uploads under way: how much may be announced at once, and where bytes wait until all of them are here.
//!
//! They go into a file without a name, and into the store when they are complete and right. So an upload that trickles
//! holds nothing that others wait for, neither room of the store nor its digest; and what a sender is told about its bytes
//! does not depend on what the store has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sluice_types::{Digest, TenantId};
use sluice_vault::{Begin, BlobStore, StoreError};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};

/// Bytes that a tenant may have announced and not sent to the end: four uploads of the largest size.
const PER_TENANT: u64 = 16 << 30;
/// The same for all tenants together.
const IN_ALL: u64 = 64 << 30;
/// What an upload counts for at least, so that the number of open files is bounded, too.
const LEAST: u64 = 64 << 20;
/// An upload that comes more slowly than this, in bytes a second, is cut off: 1 Mbit/s.
const SLOWEST: u64 = 128 << 10;
/// A sender that is silent for longer is gone.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const PIECE: usize = 1 << 20;

/// How long an upload may take in all.
pub(crate) const fn deadline(size: u64) -> Duration {
    PATIENCE.saturating_add(Duration::from_secs(size / SLOWEST))
}

/// All uploads under way.
pub(crate) struct Spools {
    folder: PathBuf,
    announced: Mutex<Announced>,
}

#[derive(Default)]
struct Announced {
    total: u64,
    tenants: BTreeMap<TenantId, u64>,
}

/// Room for one upload, given back when dropped.
pub(crate) struct Room {
    spools: Arc<Spools>,
    tenant: TenantId,
    bytes: u64,
}

impl Spools {
    /// Spools in `folder`, which is made.
    pub(crate) fn open(folder: &Path) -> std::io::Result<Arc<Self>> {
        std::fs::create_dir_all(folder)?;
        Ok(Arc::new(Self { folder: folder.to_owned(), announced: Mutex::default() }))
    }

    /// Where they are.
    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.clone()
    }

    /// Room for an upload of `size` bytes; `None` while too much is under way.
    pub(crate) fn admit(self: &Arc<Self>, tenant: TenantId, size: u64) -> Option<Room> {
        let bytes = size.max(LEAST);
        let mut announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        let own = announced.tenants.get(&tenant).copied().unwrap_or(0).checked_add(bytes)?;
        let total = announced.total.checked_add(bytes)?;
        if own > PER_TENANT || total > IN_ALL {
            return None;
        }
        announced.tenants.insert(tenant, own);
        announced.total = total;
        Some(Room { spools: Arc::clone(self), tenant, bytes })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut announced = self.spools.announced.lock().unwrap_or_else(PoisonError::into_inner);
        announced.total -= self.bytes;
        if let Some(own) = announced.tenants.get_mut(&self.tenant) {
            *own -= self.bytes;
            if *own == 0 {
                announced.tenants.remove(&self.tenant);
            }
        }
    }
}

/// The bytes of one upload, hashed as they come.
pub(crate) struct Spool {
    file: File,
    hasher: blake3::Hasher,
    written: u64,
    size: u64,
    digest: Digest,
    _room: Room,
}

impl Spool {
    /// An empty one for content of this digest and size.
    pub(crate) fn new(room: Room, digest: Digest, size: u64) -> std::io::Result<Self> {
        let file = File::from_std(tempfile::tempfile_in(&room.spools.folder)?);
        Ok(Self { file, hasher: blake3::Hasher::new(), written: 0, size, digest, _room: room })
    }

    /// One that is there already: the file has these bytes, and nothing else.
    pub(crate) fn whole(room: Room, file: std::fs::File, digest: Digest, size: u64) -> Self {
        Self { file: File::from_std(file), hasher: blake3::Hasher::new(), written: size, size, digest, _room: room }
    }

    /// Takes the next bytes. False if they are more than announced.
    pub(crate) async fn write(&mut self, bytes: &Bytes) -> std::io::Result<bool> {
        self.written = self.written.saturating_add(bytes.len() as u64);
        if self.written > self.size {
            return Ok(false);
        }
        self.hasher.update(bytes);
        self.file.write_all(bytes).await?;
        Ok(true)
    }

    /// Whether all came, and nothing else.
    pub(crate) fn is_whole(&self) -> bool {
        self.written == self.size && *self.hasher.finalize().as_bytes() == *self.digest.as_bytes()
    }

    /// Moves the bytes into the store, unless it has them.
    pub(crate) async fn store(mut self, store: &BlobStore) -> Result<(), StoreError> {
        let Begin::Write(mut writer) = store.begin(self.digest).await? else { return Ok(()) };
        // What a cut move left is not used here.
        writer.restart().await?;
        writer.expect(self.size).await?;
        let io = |source| StoreError::Io { action: "read a spooled upload", source };
        self.file.flush().await.map_err(io)?;
        self.file.rewind().await.map_err(io)?;
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            (&mut self.file).take(PIECE as u64).read_to_end(&mut piece).await.map_err(io)?;
            if piece.is_empty() {
                return writer.commit().await;
            }
            writer.write(piece.into()).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_tenant_announces_leaves_room_for_others() {
        let folder = tempfile::tempdir().unwrap();
        let spools = Spools::open(folder.path()).unwrap();
        let (greedy, other) = (TenantId::from_raw(1), TenantId::from_raw(2));
        let mut rooms = Vec::new();
        while let Some(room) = spools.admit(greedy, 4 << 30) {
            rooms.push(room);
        }
        assert_eq!(rooms.len(), 4);
        assert!(spools.admit(greedy, 1).is_none(), "small ones count, too");
        assert!(spools.admit(other, 4 << 30).is_some());
        assert!(spools.admit(other, u64::MAX).is_none());
        rooms.pop();
        assert!(spools.admit(greedy, 4 << 30).is_some(), "what ended is given back");
        drop(rooms);
        let announced = spools.announced.lock().unwrap();
        assert!(announced.total == 0 && announced.tenants.is_empty());
    }

    #[test]
    fn an_upload_has_an_end_however_it_trickles() {
        assert_eq!(deadline(0), PATIENCE);
        assert_eq!(deadline(128 << 20), PATIENCE + Duration::from_secs(1024));
        assert!(deadline(u64::MAX) > deadline(4 << 30));
    }
}
