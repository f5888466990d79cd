//! Content that is kept for users: what they uploaded, and what may be deleted again.

use serde::{Deserialize, Serialize};
use sluice_types::{Digest, ProjectId, SiteId, Timestamp};

/// Content that a project uploaded. Only this project's jobs may name it: knowing a digest is no right to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// Whose.
    pub project: ProjectId,
    /// BLAKE3.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// All of it is there; before that the room is only reserved.
    pub complete: bool,
    /// When it was last uploaded, or a job that names it last submitted or ended.
    pub used: Timestamp,
    /// Its time is over: kept as a row so that the change is a row too.
    pub deleted: bool,
}

/// A manifest in the vault of a site that nobody needs any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discard {
    /// Which vault.
    pub site: SiteId,
    /// BLAKE3 of the manifest.
    pub manifest: Digest,
    /// From when on it may be deleted.
    pub due: Timestamp,
    /// The vault has deleted it.
    pub done: bool,
}
