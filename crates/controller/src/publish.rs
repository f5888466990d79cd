//! What happens after a commit: the world outside learns of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sluice_lifecycle::{Rows, State, Wish};
use sluice_proto::convert;
use sluice_proto::v1;
use sluice_types::{JobId, NodeId, Timestamp};
use tokio::sync::watch;

use crate::directory::Directory;
use crate::link::Hub;
use crate::planner::PlannerHandle;
use crate::secrets::SecretBox;

/// The port of rank 0 in a gang: the first of a range that the system keeps for jobs.
const RENDEZVOUS_PORT: u16 = 29_400;

/// Manifests that one vault is told to forget at once.
const FORGET_AT_ONCE: usize = 256;

/// Tells scheduler, nodes, vaults and watchers what is committed. Never waits for any of them.
pub(crate) struct Publisher {
    pub(crate) directory: Arc<Directory>,
    pub(crate) planner: PlannerHandle,
    pub(crate) hub: Arc<Hub>,
    pub(crate) secrets: Arc<SecretBox>,
    pub(crate) events: watch::Sender<u64>,
}

impl Publisher {
    /// From nothing, at the start.
    pub(crate) fn start(&self, state: &State, now: Timestamp) {
        self.directory.load(state);
        self.planner.committed(state.world(now), Vec::new());
        self.events.send_replace(state.last_event());
        self.copies(state, now);
    }

    /// The directory has the rows already: see [`crate::writer`].
    pub(crate) fn committed(&self, state: &State, rows: &Rows, rejected: Vec<JobId>, now: Timestamp) {
        if rows.is_empty() && rejected.is_empty() {
            return;
        }
        self.planner.committed(state.deltas(rows, now), rejected);
        let touched = rows.attempts.iter().flat_map(|row| row.tasks.iter().map(|task| task.device.node));
        let touched: BTreeSet<NodeId> = touched.chain(rows.nodes.iter().map(|row| row.id)).collect();
        for node in touched {
            self.refresh(state, node, now);
        }
        if !(rows.checkpoints.is_empty() && rows.migrations.is_empty() && rows.sites.is_empty()) {
            self.copies(state, now);
        }
        if let Some(event) = rows.events.last() {
            self.events.send_replace(event.sequence);
        }
    }

    /// Everything that a connected node should be doing.
    pub(crate) fn refresh(&self, state: &State, node: NodeId, now: Timestamp) {
        if !self.hub.is_connected(node) {
            return;
        }
        let wishes = state.wishes(node);
        let assignments = wishes.iter().filter_map(|wish| self.assignment(state, wish, now)).collect();
        self.hub.desired(node, v1::Desired { full: true, assignments });
    }

    /// Everything that vaults should copy, and what they may delete.
    pub(crate) fn copies(&self, state: &State, now: Timestamp) {
        if self.hub.has_vaults() {
            self.hub.copies(state.copies(), &self.directory);
        }
        for site in self.hub.vault_sites() {
            self.hub.forget(site, &state.discards(site, now, FORGET_AT_ONCE));
        }
    }

    fn assignment(&self, state: &State, wish: &Wish, now: Timestamp) -> Option<v1::Assignment> {
        let attempt = state.attempt(wish.key.attempt)?;
        let job = state.job(attempt.job)?;
        let lease = state.lease(wish.key.lease)?;
        let directory = self.directory.read();
        let name = format!("{}/jobs/{}", directory.project_path(job.project), job.id);
        let mut secrets = BTreeMap::new();
        for secret in &job.spec.secrets {
            let value = state.secret(job.project, &secret.secret);
            let value = value.and_then(|row| self.secrets.reveal(job.project, &row.name, &row.sealed));
            // A secret may have been deleted since. The assignment is sent all the same: one that is left out would end a
            // task without a word, or hide an order to release it. The node refuses to start a task without its secret.
            if let Some(value) = value {
                secrets.insert(secret.secret.to_string(), value);
            }
        }
        let parent = job.checkpoint.and_then(|id| state.checkpoint(id));
        let parent = parent.and_then(|row| row.parts.get(&wish.rank)).map(|part| part.manifest);
        let parts = convert::Assignment {
            wish,
            job,
            attempt,
            lease,
            name,
            rendezvous: rendezvous(attempt.tasks.first().map(|task| task.device.index).unwrap_or(0)),
            secrets,
            parent,
            now,
        };
        Some(convert::assignment(parts, &*directory))
    }
}

/// Gangs meet on the loopback of one host, or on the host network where policy allows it.
fn rendezvous(device: u16) -> String {
    format!("127.0.0.1:{}", RENDEZVOUS_PORT.saturating_add(device))
}
