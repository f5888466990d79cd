//! Who may ask a vault for what.

use std::fmt;

use sluice_types::Digest;

/// What a peer asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VaultMethod {
    /// Whether blobs are here.
    Has,
    /// Store a blob.
    Put,
    /// Read a blob or manifest.
    Get,
    /// Fetch blobs and manifests from elsewhere.
    Ensure,
    /// Store a manifest.
    Seal,
}

/// Decides whether a peer is answered. The binary knows how its certificates name nodes and vaults; the vault does not.
pub trait PeerPolicy: fmt::Debug + Send + Sync + 'static {
    /// Whether the peer that showed these certificates (DER, its own first; empty on a plaintext connection) may do this
    /// with this digest. The chain was already verified against the trusted roots. Asked once per digest.
    fn allow(&self, chain: &[&[u8]], method: VaultMethod, digest: Option<&Digest>) -> bool;
}

/// Answers everybody who showed a certificate at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequireCertificate;

impl PeerPolicy for RequireCertificate {
    fn allow(&self, chain: &[&[u8]], _: VaultMethod, _: Option<&Digest>) -> bool {
        !chain.is_empty()
    }
}

/// Answers everybody: for tests on loopback.
#[derive(Debug, Clone, Copy, Default)]
pub struct AllowAll;

impl PeerPolicy for AllowAll {
    fn allow(&self, _: &[&[u8]], _: VaultMethod, _: Option<&Digest>) -> bool {
        true
    }
}
