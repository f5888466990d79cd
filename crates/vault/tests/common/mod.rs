//! What the tests share: vaults in folders, a controller that only relays, and a proxy that cuts connections on the byte.
#![allow(dead_code, missing_docs, clippy::unwrap_used, unreachable_pub)]

pub mod controller;
pub mod proxy;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sluice_types::{AttemptId, Digest, Generation, JobId};
use sluice_vault::{
    AllowAll, CheckpointManifest, ClientLimits, Entry, Manifest, StoreLimits, TransferLimits, Vault, VaultClient,
    VaultConfig, VaultFigures, VaultStats, hash_bytes, no_tls,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A vault that runs in this process.
pub struct Running {
    pub address: SocketAddr,
    pub stats: Arc<VaultStats>,
    pub store: sluice_vault::BlobStore,
    folder: std::path::PathBuf,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

pub fn config(folder: &Path, controller: &str) -> VaultConfig {
    VaultConfig {
        folder: folder.to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: String::new(),
        controller: controller.to_owned(),
        server_tls: None,
        controller_tls: no_tls(),
        peer_tls: no_tls(),
        policy: Arc::new(AllowAll),
        store: StoreLimits { promise: Duration::ZERO, ..StoreLimits::default() },
        transfers: TransferLimits {
            idle: Duration::from_secs(3),
            backoff: Duration::from_millis(10),
            ..TransferLimits::default()
        },
        stats: Arc::new(VaultStats::default()),
    }
}

pub async fn start(config: VaultConfig) -> Running {
    let (stats, folder) = (config.stats.clone(), config.folder.clone());
    let vault = Vault::open(config).await.unwrap();
    let (address, store) = (vault.address(), vault.store().clone());
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let task = tokio::spawn(async move { vault.run(stopped).await.unwrap() });
    Running { address, stats, store, folder, stop, task }
}

impl Running {
    pub fn client(&self) -> VaultClient {
        client(self.address)
    }

    pub fn figures(&self) -> VaultFigures {
        self.stats.figures()
    }

    /// Waits until it has counted so many links. The controller has a link a little earlier than that: a test that cuts or
    /// relays as soon as the controller can send would race with it.
    pub async fn linked(&self, links: u64) {
        while self.figures().links_made < links {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// In the middle of whatever it does, without a chance to clean up. What must not survive is dropped.
    pub async fn kill(self) {
        self.task.abort();
        let _aborted = self.task.await;
        drop(self.store);
        // Aborted tasks end a little later; the last one lets go of the lock.
        let lock = std::fs::File::open(self.folder.join("lock")).unwrap();
        while lock.try_lock().is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

pub fn client(address: SocketAddr) -> VaultClient {
    VaultClient::new(address.to_string(), no_tls(), ClientLimits::default())
}

/// Bytes that look random and are the same each time.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A checkpoint of these tensors.
pub fn checkpoint(step: u64, tensors: &[Vec<u8>]) -> Manifest {
    let entries: Vec<_> = tensors
        .iter()
        .enumerate()
        .map(|(at, bytes)| Entry {
            name: format!("blk.{at}.w"),
            dtype: "f32".into(),
            shape: vec![bytes.len() as u64 / 4],
            digest: hash_bytes(bytes),
            length: bytes.len() as u64,
        })
        .collect();
    Manifest::Task(CheckpointManifest {
        version: CheckpointManifest::VERSION,
        job: JobId::from_raw(1),
        attempt: AttemptId::from_raw(2),
        generation: Generation::new(3),
        rank: 0,
        world_size: 1,
        step,
        parent: None,
        cursor: serde_json::json!({"position": step}),
        code: "v1".into(),
        total: entries.iter().map(|entry| entry.length).sum(),
        entries,
    })
}

/// Uploads and seals it.
pub async fn seal(client: &VaultClient, step: u64, tensors: &[Vec<u8>]) -> Digest {
    for tensor in tensors {
        client.put_bytes(tensor).await.unwrap();
    }
    client.seal(&checkpoint(step, tensors)).await.unwrap()
}

/// Where a blob lies on disk.
pub fn on_disk(folder: &Path, digest: &Digest) -> std::path::PathBuf {
    let hex = digest.to_string();
    folder.join("blobs").join(&hex[..2]).join(hex)
}

/// Flips one bit of a blob, at a place.
pub fn flip(folder: &Path, digest: &Digest, at: usize) {
    let path = on_disk(folder, digest);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}
