//! What goes wrong in a vault, one enum per boundary. `status.rs` maps them to gRPC.

use std::io;
use std::path::PathBuf;

use sluice_types::{Bytes, Digest};

use crate::manifest::ManifestError;
use crate::path::PathError;

/// Errors of the blob store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such blob or manifest.
    #[error("{0} is not here")]
    NotFound(Digest),
    /// The bytes on disk are not those of the digest any more. They were set aside.
    #[error("{0} was damaged on disk and is set aside; fetch or upload it again")]
    Corrupt(Digest),
    /// The bytes that came are not those of the digest. They were thrown away.
    #[error("the bytes sent as {wanted} have the digest {got}")]
    Mismatch {
        /// As promised.
        wanted: Digest,
        /// As computed.
        got: Digest,
    },
    /// The stream ended early. What came is kept for a later try.
    #[error("only {have} of {size} bytes of {digest} came")]
    Truncated {
        /// Of the whole blob.
        digest: Digest,
        /// Bytes that are here.
        have: u64,
        /// Bytes of the whole.
        size: u64,
    },
    /// More bytes than announced, or a size that contradicts what is known.
    #[error("{digest} has {size} bytes, the sender claims at least {claimed}")]
    WrongSize {
        /// Of the blob.
        digest: Digest,
        /// Known size.
        size: u64,
        /// What the sender says.
        claimed: u64,
    },
    /// The bytes begin after what is here.
    #[error("the bytes of {digest} begin at {claimed}, but only {have} are here")]
    Gap {
        /// Of the blob.
        digest: Digest,
        /// Bytes that are here.
        have: u64,
        /// Where the sender begins.
        claimed: u64,
    },
    /// An offset past the end.
    #[error("offset {offset} is past the end of {digest}, which has {size} bytes")]
    PastEnd {
        /// Of the blob.
        digest: Digest,
        /// As asked.
        offset: u64,
        /// Its size.
        size: u64,
    },
    /// A bound of the store.
    #[error("{what} would be {asked}, the bound is {limit}")]
    TooLarge {
        /// What would grow too far.
        what: &'static str,
        /// How far.
        asked: u64,
        /// The bound.
        limit: u64,
    },
    /// A manifest names blobs or manifests that are not here.
    #[error("{count} of the blobs that the manifest names are not here, the first is {first}")]
    Missing {
        /// The first of them.
        first: Digest,
        /// How many.
        count: usize,
    },
    /// A manifest that breaks the rules.
    #[error("not a manifest of a checkpoint")]
    Manifest(#[from] ManifestError),
    /// Another vault uses the folder.
    #[error("{} is in use by another vault", .0.display())]
    Locked(PathBuf),
    /// The disk.
    #[error("could not {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The object store.
    #[error("could not {action}")]
    Objects {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: object_store::Error,
    },
}

impl StoreError {
    /// For `map_err`.
    pub(crate) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }

    /// For `map_err`.
    pub(crate) fn objects(action: &'static str) -> impl FnOnce(object_store::Error) -> Self {
        move |source| Self::Objects { action, source }
    }
}

/// Why a blob could not be brought here.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No source has it.
    #[error("no source has {0}")]
    Nowhere(Digest),
    /// No source could be reached, or none kept a transfer going. What came is kept.
    #[error("no source of {digest} could be reached or kept up: {last}")]
    Unreachable {
        /// What was wanted.
        digest: Digest,
        /// What the last one said.
        last: String,
    },
    /// A source sent bytes of another digest, and there is no other source.
    #[error("the sources of {0} send other bytes")]
    Untrue(Digest),
    /// Storing it failed.
    #[error("could not keep what was fetched")]
    Store(#[from] StoreError),
    /// The manifest that came breaks the rules.
    #[error("{manifest} is not a manifest of a checkpoint")]
    Manifest {
        /// Its digest.
        manifest: Digest,
        /// Why.
        source: ManifestError,
    },
}

/// Errors of running a vault.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The store.
    #[error("could not open the store")]
    Store(#[from] StoreError),
    /// The address.
    #[error("could not listen on {address}")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No TLS on an address that others can reach.
    #[error("{0} is not a loopback address: a vault without TLS listens on loopback only")]
    Plaintext(std::net::SocketAddr),
    /// The server, TLS included.
    #[error("the server failed")]
    Server(#[from] tonic::transport::Error),
}

/// Errors of [`crate::VaultClient`].
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The vault refused or could not be reached.
    #[error("the vault answered {}: {}", .0.code(), .0.message())]
    Vault(Box<tonic::Status>),
    /// The address or its TLS settings.
    #[error("could not use the vault's address")]
    Address(#[source] tonic::transport::Error),
    /// The vault sent bytes of another digest, or too few.
    #[error("the vault sent other bytes than those of {0}")]
    Untrue(Digest),
    /// The vault did not answer in time.
    #[error("the vault did not answer in time")]
    Deadline,
    /// A manifest that breaks the rules.
    #[error("not a manifest of a checkpoint")]
    Manifest(#[from] ManifestError),
    /// A path that breaks the rules.
    #[error("{path:?} is not a path that may be used")]
    Path {
        /// The path.
        path: String,
        /// Why.
        source: PathError,
    },
    /// A bound of the client.
    #[error("{what} would be {asked}, the bound is {limit}")]
    TooLarge {
        /// What would grow too far.
        what: &'static str,
        /// How far.
        asked: u64,
        /// The bound.
        limit: Bytes,
    },
    /// A file changed while it was read.
    #[error("{} changed or ended while it was read", .0.display())]
    Changed(PathBuf),
    /// The disk.
    #[error("could not {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// An archive.
    #[error("the archive was refused")]
    Archive(#[from] crate::archive::ArchiveError),
}

impl From<tonic::Status> for ClientError {
    fn from(status: tonic::Status) -> Self {
        Self::Vault(Box::new(status))
    }
}

impl ClientError {
    /// For `map_err`.
    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
