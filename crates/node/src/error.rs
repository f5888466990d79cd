//! One error for the agent itself; what goes wrong with a task becomes its ended report instead.

use std::io;
use std::path::{Path, PathBuf};

use sluice_device::DeviceError;
use sluice_types::Reason;

use crate::depot::DepotError;
use crate::journal::JournalError;
use crate::supervisor::SupervisorError;

/// Why an agent could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration cannot be used.
    #[error("the configuration is not usable: {0}")]
    Config(String),
    /// Another agent uses the data folder.
    #[error("{} is in use by another node agent", .0.display())]
    Locked(PathBuf),
    /// A file or folder could not be used.
    #[error("{action} {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The journal.
    #[error("the journal failed")]
    Journal(#[from] JournalError),
    /// Devices or control groups.
    #[error("the device backend failed")]
    Device(#[from] DeviceError),
    /// A supervisor or its folder.
    #[error("the task's supervisor failed")]
    Supervisor(#[from] SupervisorError),
}

impl NodeError {
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}

/// What one task could not do, with the word and the sentence for its ended report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn start(message: impl Into<String>) -> Self {
        Self { reason: Reason::StartFailed, message: message.into() }
    }

    /// What the host could not do for any task.
    pub(crate) fn host(message: impl Into<String>) -> Self {
        Self { reason: Reason::HostFailed, message: message.into() }
    }
}

impl From<SupervisorError> for Failure {
    fn from(error: SupervisorError) -> Self {
        Self { reason: error.reason(), message: error.in_one_line() }
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        let reason = match error.reason() {
            reason @ (Reason::NotEnforceable | Reason::NoFreeShare) => reason,
            _ => Reason::HostFailed,
        };
        Self { reason, message: in_one_line(&error) }
    }
}

impl From<DepotError> for Failure {
    fn from(error: DepotError) -> Self {
        Self::start(in_one_line(&error))
    }
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Self {
        Self::host(in_one_line(&error))
    }
}

/// An error and its sources in one line, for messages that people read.
pub(crate) fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
