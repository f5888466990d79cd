//! What the parts of one agent share.

use std::path::PathBuf;
use std::sync::Arc;

use sluice_device::Enforcement;
use sluice_types::{BootId, Nanos};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::NodeConfig;
use crate::board::Board;
use crate::depot::Depot;
use crate::journal::JournalHandle;
use crate::models::Models;
use crate::supervisor::SandboxMode;

/// One running agent.
pub(crate) struct Shared {
    pub(crate) config: NodeConfig,
    pub(crate) journal: JournalHandle,
    pub(crate) board: Board,
    /// Files of models.
    pub(crate) models: Models,
    /// This boot of the host.
    pub(crate) boot: BootId,
    /// The site's vault, once its address is known.
    pub(crate) depot: watch::Sender<Option<Arc<dyn Depot>>>,
    /// Length of a window.
    pub(crate) window: watch::Sender<Nanos>,
    /// Everything is to stop, jobs excepted.
    pub(crate) stop: CancellationToken,
}

impl Shared {
    /// Folder of all attempts.
    pub(crate) fn attempts(&self) -> PathBuf {
        self.config.data.join("attempts")
    }

    /// Logs of tasks that are gone.
    pub(crate) fn logs(&self) -> PathBuf {
        self.config.data.join("logs")
    }

    /// Slices or sandboxes are not enforced; shows on every bill.
    pub(crate) fn is_advisory(&self) -> bool {
        matches!(self.config.backend.enforcement(), Enforcement::Advisory(_))
            || self.config.sandbox.mode == SandboxMode::Advisory
    }
}
