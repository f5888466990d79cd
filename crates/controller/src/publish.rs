//! What happens after a commit: the world outside learns of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use sluice_lifecycle::model::TaskRow;
use sluice_lifecycle::{Rows, State, Wish};
use sluice_proto::convert;
use sluice_proto::v1;
use sluice_types::{JobId, NodeId, Timestamp};
use tokio::sync::watch;

use crate::directory::Directory;
use crate::group::{Group, Messages};
use crate::link::Hub;
use crate::planner::PlannerHandle;
use crate::secrets::SecretBox;

/// Ports at which gangs meet, below those that the kernel gives away.
const RENDEZVOUS_PORTS: Range<u64> = 20_000..30_000;

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
        self.planner.stepped(state.world(now), Vec::new());
        self.events.send_replace(state.last_event());
    }

    /// A step: the scheduler goes on from it at once. See [`crate::writer`] for why it may.
    pub(crate) fn stepped(&self, state: &State, rows: &Rows, rejected: Vec<JobId>, now: Timestamp) {
        self.planner.stepped(state.deltas(rows, now), rejected);
    }

    /// What hosts will have to be told once `group` is committed, from a state that has its rows and no later ones.
    pub(crate) fn messages(&self, state: &State, group: &Group, now: Timestamp) -> Messages {
        let rows = &group.rows;
        let mut touched = BTreeSet::new();
        if self.hub.has_nodes() {
            touched.extend(rows.attempts.iter().flat_map(|row| row.tasks.iter().map(|task| task.device.node)));
            touched.extend(rows.nodes.iter().map(|row| row.id));
            touched.extend(group.refresh.iter().copied());
        }
        let touched = touched.into_iter().filter(|node| self.hub.is_connected(*node));
        let desired = touched.map(|node| (node, self.desired(state, node, now))).collect();
        let moved = !(rows.checkpoints.is_empty() && rows.migrations.is_empty() && rows.sites.is_empty());
        let mut messages = Messages { desired, ..Messages::default() };
        if group.copies || moved {
            let vaults = self.hub.vault_sites();
            messages.copies = (!vaults.is_empty()).then(|| state.copies());
            let discards = |site| (site, state.discards(site, now, FORGET_AT_ONCE));
            messages.discards = vaults.into_iter().map(discards).collect();
        }
        messages
    }

    /// A group is committed, and the directory has its rows already: hosts and watchers learn of it.
    pub(crate) fn committed(&self, group: &mut Group) {
        let messages = std::mem::take(&mut group.messages);
        for (node, desired) in messages.desired {
            self.hub.desired(node, desired);
        }
        if let Some(copies) = messages.copies {
            self.hub.copies(copies, &self.directory);
        }
        for (site, manifests) in messages.discards {
            self.hub.forget(site, &manifests);
        }
        if let Some(event) = group.rows.events.last() {
            self.events.send_replace(event.sequence);
        }
    }

    /// Everything that a node should be doing.
    fn desired(&self, state: &State, node: NodeId, now: Timestamp) -> v1::Desired {
        let wishes = state.wishes(node);
        let assignments = wishes.iter().filter_map(|wish| self.assignment(state, wish, now)).collect();
        v1::Desired { full: true, assignments }
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
            rendezvous: attempt.tasks.first().map(|first| rendezvous(state, first)).unwrap_or_default(),
            secrets,
            parent,
            now,
        };
        Some(convert::assignment(parts, &*directory))
    }
}

/// Where a gang meets: at the host of rank 0, on a port that hardly any other gang there has.
fn rendezvous(state: &State, first: &TaskRow) -> String {
    let address = state.node(first.device.node).map(|node| node.address.as_str()).filter(|address| !address.is_empty());
    let port = RENDEZVOUS_PORTS.start + first.lease.raw() % (RENDEZVOUS_PORTS.end - RENDEZVOUS_PORTS.start);
    match address.unwrap_or("127.0.0.1") {
        address if address.contains(':') => format!("[{address}]:{port}"),
        address => format!("{address}:{port}"),
    }
}
