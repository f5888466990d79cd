//! One error for the room.

use std::path::PathBuf;

use sluice_types::Reason;

/// Why a device could not be found, sliced, measured or given back.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The configuration names no usable device.
    #[error("the device configuration is not usable: {0}")]
    Config(String),
    /// The host cannot hold slices to their size.
    #[error("slices cannot be enforced on this host: {0}")]
    NotEnforceable(String),
    /// The grant asks for what the device has not (left).
    #[error("device {index} cannot hold grant `{key}`: {detail}")]
    DoesNotFit {
        /// Index of the device.
        index: u16,
        /// The grant's key.
        key: String,
        /// Which bound it breaks.
        detail: String,
    },
    /// The key is not a plain path component of at most 128 characters.
    #[error("`{0}` is no key: 1 to 128 of a-z A-Z 0-9 . _ -, not beginning with a dot")]
    Key(String),
    /// No such grant or device.
    #[error("no grant or device `{0}`")]
    Unknown(String),
    /// Processes of a group did not end within the time allowed.
    #[error("{left} processes of `{key}` are still there after being killed")]
    StillRunning {
        /// The group.
        key: String,
        /// How many are left.
        left: usize,
    },
    /// A kernel file could not be read or written.
    #[error("{action} {}", path.display())]
    Kernel {
        /// `reading`, `writing`, `creating` or `removing`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// A kernel file had unexpected content.
    #[error("{} holds `{content}`, not the expected form", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Its content, cut to 64 characters.
        content: String,
    },
}

impl DeviceError {
    /// The documented word that a verdict or answer carries.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Config(_) | Self::Key(_) => Reason::InvalidField,
            Self::NotEnforceable(_) => Reason::NotEnforceable,
            Self::DoesNotFit { .. } => Reason::NoFreeShare,
            Self::Unknown(_) => Reason::NotFound,
            Self::StillRunning { .. } | Self::Kernel { .. } | Self::Content { .. } => Reason::Internal,
        }
    }
}
