//! What the controller told about this node, kept so that a restart without it goes on as before.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sluice_types::Nanos;

use crate::shared::Shared;
use crate::supervisor::{read_json, write_json};

/// `node.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeNote {
    /// Length of a window.
    pub(crate) window: Option<Nanos>,
    /// Where the site's vault is.
    pub(crate) vault: Option<String>,
}

impl NodeNote {
    /// What an earlier agent kept.
    pub(crate) fn read(data: &Path) -> Self {
        match read_json(&data.join("node.json")) {
            Ok(note) => note.unwrap_or_default(),
            Err(error) => {
                // The controller tells it again.
                tracing::warn!(error = error.in_one_line(), "what the controller told before cannot be read");
                Self::default()
            }
        }
    }

    /// Keeps it. A full disk only means that a restart waits for the controller.
    pub(crate) fn keep(&self, data: &Path) {
        if Self::read(data) == *self {
            return;
        }
        if let Err(error) = write_json(&data.join("node.json"), self) {
            tracing::warn!(error = error.in_one_line(), "what the controller told cannot be kept");
        }
    }

    /// Tells the tasks.
    pub(crate) fn publish(&self, shared: &Shared) {
        if let Some(window) = self.window {
            shared.window.send_replace(window);
        }
        if let Some(address) = &self.vault {
            let depot = (shared.config.depots)(address);
            shared.depot.send_replace(Some(depot));
        }
    }
}
