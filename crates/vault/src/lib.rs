//! The vault: one process per site that keeps checkpoints, work directories, inputs and outputs.
//!
//! * [`BlobStore`] keeps blobs by their BLAKE3 digest on disk: verified while they stream in, fsynced before success,
//!   verified again whenever one is read whole, resumable after a cut. Manifests live beside the blobs they name and are
//!   sealed only when all of those are there.
//! * [`Manifest`] is a checkpoint: tensors or files by digest, the data cursor, the parent and who wrote it.
//! * [`Vault`] serves a store to the nodes of its site and to other vaults, and holds the link to the controller, from
//!   which it takes orders to copy, relay and forget. Sites dial out: a blob comes directly from the other site's vault
//!   where that can be reached, else through the controller's relay.
//! * [`VaultClient`] is what a node agent uses; [`archive`] packs and unpacks folders.
//!
//! The vault decides nothing: which checkpoint is a job's head, where it must be durable and when it may go is the
//! controller's business. It trusts no byte it did not hash and no path it did not check.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod archive;
mod client;
mod error;
mod fetch;
mod flight;
mod link;
mod manifest;
mod materialise;
mod path;
mod policy;
mod relay;
mod replicate;
mod routes;
mod server;
mod stage;
mod stats;
mod status;
mod store;
mod vault;
mod wire;

pub use client::{ClientLimits, VaultClient};
pub use error::{ClientError, FetchError, StoreError, VaultError};
pub use manifest::{
    CheckpointManifest, Entry, FILE_DTYPE, GroupManifest, MAX_CURSOR_BYTES, MAX_ENTRIES, MAX_MANIFEST_BYTES, Manifest,
    ManifestError, Member,
};
pub use materialise::{Materialised, Placed};
pub use path::{PathError, RelativePath, open_beneath};
pub use policy::{AllowAll, PeerPolicy, RequireCertificate, VaultMethod};
pub use relay::RELAYS_FULL;
pub use routes::TransferLimits;
pub use server::{Transport, VaultServer};
pub use stage::{Part, Staged};
pub use stats::{VaultFigures, VaultStats};
pub use store::{Begin, BlobReader, BlobStore, BlobWriter, StoreLimits, hash_bytes};
pub use vault::{Vault, VaultConfig, run};
pub use wire::{TlsSource, no_tls};
