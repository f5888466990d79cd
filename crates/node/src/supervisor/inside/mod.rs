//! What runs inside a sandbox for sessions beside the user's own programs: its init, and what becomes a session.
//!
//! All of it runs as the task's user with everything that a batch task is shut in by, so nothing here is trusted by
//! anybody, and nothing of the user's files is touched with more rights than the user's.

mod connect;
mod copy;
mod engine;
mod host;
mod program;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(super) use host::host;
pub(super) use program::become_session;

/// What every session begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Base {
    /// Variables.
    pub(super) env: BTreeMap<String, String>,
    /// The home folder.
    pub(super) home: PathBuf,
}

/// A session to become.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SessionTask {
    base: Base,
    program: super::sessions::words::Program,
}
