//! One error for the room.

use std::io;
use std::path::{Path, PathBuf};

use sluice_device::DeviceError;
use sluice_types::Reason;

use super::SpecError;

/// Why a supervisor or its client could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
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
    /// The launch description is not acceptable.
    #[error("the launch description is not acceptable")]
    Spec(#[from] SpecError),
    /// A control group could not be used.
    #[error("the task's control group failed")]
    Device(#[from] DeviceError),
    /// The host has not what a sandbox needs.
    #[error("no sandbox can be made here: {0}")]
    NoSandbox(String),
    /// Somebody supervises, or has supervised, this folder.
    #[error("{} was started before; a task starts at most once", .0.display())]
    AlreadyStarted(PathBuf),
    /// There is no launch description.
    #[error("{} has no launch.json", .0.display())]
    NothingToRun(PathBuf),
    /// The other side of the control socket refused.
    #[error("{reason}: {message}")]
    Refused {
        /// The documented word.
        reason: Reason,
        /// The sentence.
        message: String,
    },
    /// The other side of the control socket answered something else or not in time.
    #[error("the supervisor's answer is not usable: {0}")]
    Answer(String),
}

impl SupervisorError {
    pub(crate) fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { action, path: path.to_owned(), source }
    }

    /// The documented word that a verdict or answer carries.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Spec(_) => Reason::InvalidField,
            Self::Device(error) => error.reason(),
            Self::NoSandbox(_) => Reason::NotEnforceable,
            Self::AlreadyStarted(_) => Reason::AlreadyExists,
            Self::NothingToRun(_) => Reason::NotFound,
            Self::Refused { reason, .. } => *reason,
            Self::File { .. } => Reason::HostFailed,
            Self::Answer(_) => Reason::Unavailable,
        }
    }

    /// The error and its sources in one line, for records that people read.
    #[must_use]
    pub fn in_one_line(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(source) = next {
            text.push_str(": ");
            text.push_str(&source.to_string());
            next = source.source();
        }
        text
    }
}
