//! Tenants, projects, keys and secrets.

use serde::{Deserialize, Serialize};
use sluice_types::{Digest, KeyId, Name, NetworkMode, ProjectId, SecretId, SiteId, TenantId, Timestamp};

/// Who pays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// Its unique name.
    pub name: Name,
    /// Who manages it; empty = nobody.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub manager: String,
    /// When it was created.
    pub created: Timestamp,
}

/// A part of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// Its id.
    pub id: ProjectId,
    /// Whose.
    pub tenant: TenantId,
    /// Its name, unique within the tenant.
    pub name: Name,
    /// Network modes that jobs may ask for beside loopback.
    pub networks: Vec<NetworkMode>,
    /// Residency: sites where its bytes may be, sorted; empty = all.
    pub sites: Vec<SiteId>,
    /// When it was created.
    pub created: Timestamp,
}

/// What a key may do; the matrix is in the controller's authorization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything, all tenants.
    PlatformAdmin,
    /// Everything of one tenant but money coming in and prices.
    TenantAdmin,
    /// Jobs and secrets of one project.
    Developer,
    /// Reading one project.
    Viewer,
}

/// An API key. Only the BLAKE3 of its secret is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Its id, also part of the secret so that the row is found without a search.
    pub id: KeyId,
    /// The tenant it is bound to; `None` for platform admins.
    pub tenant: Option<TenantId>,
    /// The project it is bound to, for developers and viewers.
    pub project: Option<ProjectId>,
    /// What it may do.
    pub role: Role,
    /// BLAKE3 of the secret. The secret has 256 random bits, so a slow hash adds nothing.
    pub hash: Digest,
    /// When it was created.
    pub created: Timestamp,
    /// When it was revoked.
    pub revoked: Option<Timestamp>,
}

/// A named value of a project, encrypted before it reaches the writer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Its id.
    pub id: SecretId,
    /// Whose.
    pub project: ProjectId,
    /// Its name, unique within the project.
    pub name: Name,
    /// Ciphertext with its nonce.
    pub sealed: Vec<u8>,
    /// When it was last set.
    pub updated: Timestamp,
    /// Deleted: kept as a row so that the change is a row too.
    pub deleted: bool,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({}, {} bytes sealed)", self.id, self.sealed.len())
    }
}
