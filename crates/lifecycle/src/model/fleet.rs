//! Sites, nodes and what they have.

use serde::{Deserialize, Serialize};
use sluice_plan::{DeviceView, NodeView};
use sluice_types::{BootId, Bytes, CoreMilli, Digest, Generation, Name, NodeId, NodeInstant, SiteId, Timestamp};

/// A data centre or cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// Its id.
    pub id: SiteId,
    /// Its unique name.
    pub name: Name,
    /// Where its vault listens for its nodes and other vaults; empty before it joined, and where it has no address for
    /// others.
    pub vault: String,
    /// Its vault is out of reach for longer than the loss timeout: nothing is placed at the site, and what the vault
    /// holds counts as lost until it is back.
    #[serde(default)]
    pub vault_away: bool,
    /// BLAKE3 of its vault's public key: who may renew the vault's certificate.
    pub vault_key: Option<Digest>,
    /// When it was created.
    pub created: Timestamp,
}

impl Site {
    /// A vault joined, whether others reach it by an address or through the controller's relay only.
    #[must_use]
    pub const fn has_vault(&self) -> bool {
        self.vault_key.is_some() || !self.vault.is_empty()
    }
}

/// Where a node stands. Written by the writer: ready on hello, lost when its heartbeats stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Joined but not connected yet.
    Joined,
    /// Connected.
    Ready,
    /// Silent for longer than the loss timeout.
    Lost,
}

/// One device of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// What the scheduler sees.
    pub view: DeviceView,
    /// The maker's id.
    pub uuid: String,
    /// Empty = healthy.
    pub fault: String,
}

/// One instant on both clocks: how the controller's instants are mapped to a node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockPair {
    /// When the controller took the message.
    pub controller: Timestamp,
    /// What the node's clock said in it. The message was under way for a while, so a mapped instant is early by
    /// that time: a cut errs in the customer's favour.
    pub node: NodeInstant,
}

impl ClockPair {
    /// The node's instant at the controller's `at`.
    #[must_use]
    pub const fn map(&self, at: Timestamp) -> NodeInstant {
        self.node.after(at.since(self.controller))
    }
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its site.
    pub site: SiteId,
    /// Its name, unique within the site.
    pub name: Name,
    /// BLAKE3 of its public key: who may renew its certificate.
    pub public_key: Digest,
    /// Fence of its stream: grows with every hello.
    pub generation: Generation,
    /// The boot it reported last.
    pub boot: BootId,
    /// Where it stands.
    pub state: NodeState,
    /// Closed for new work by an admin.
    pub cordoned: bool,
    /// Its jobs are being moved away, by an admin.
    pub draining: bool,
    /// Until then replicas on a draining node serve on while others begin elsewhere.
    #[serde(default)]
    pub drain_by: Timestamp,
    /// Why it is cordoned, draining or lost.
    pub reason: String,
    /// Tasks in a row that failed for a reason of the host.
    #[serde(default)]
    pub failed_starts: u32,
    /// IP address or name at which other hosts reach what its tasks listen on; empty before the first hello.
    #[serde(default)]
    pub address: String,
    /// Slices are not enforced, and every bill says so.
    pub advisory: bool,
    /// Host processor sold beside slices of accelerators.
    pub host_cores: CoreMilli,
    /// Host memory sold beside slices of accelerators.
    pub host_memory: Bytes,
    /// Its devices, by index.
    pub devices: Vec<Device>,
    /// Journal records up to this number are settled.
    pub settled_journal: u64,
    /// The clocks at the last hello; heartbeats refresh it in memory only.
    pub clock: Option<ClockPair>,
    /// Last sign of life; rows keep the one of the last change.
    pub last_seen: Timestamp,
}

impl Node {
    /// Ready and open for new work.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == NodeState::Ready && !self.cordoned && !self.draining
    }

    /// What the scheduler sees.
    #[must_use]
    pub fn view(&self) -> NodeView {
        NodeView {
            id: self.id,
            site: self.site,
            open: self.is_open(),
            host_cores: self.host_cores,
            host_memory: self.host_memory,
            devices: self.devices.iter().map(|device| device.view.clone()).collect(),
        }
    }
}

/// What joins with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinKind {
    /// A node agent.
    Node,
    /// A site's vault.
    Vault,
}

/// A one-time token; only its BLAKE3 is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// BLAKE3 of the token.
    pub hash: Digest,
    /// For which site.
    pub site: SiteId,
    /// For what.
    pub kind: JoinKind,
    /// When it ends.
    pub expires: Timestamp,
    /// When it was used, by the public key of which certificate request: a retry with the same key succeeds again,
    /// so that a lost answer does not lose the host.
    pub used: Option<Digest>,
}
