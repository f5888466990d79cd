//! Sites, joining, and what nodes say of themselves.

use sluice_types::{
    BootId, Bytes, CoreMilli, Digest, Generation, Name, Nanos, NodeId, NodeInstant, Reason, SiteId, Timestamp,
};

use super::Step;
use super::people::bounded;
use crate::command::{Answer, JoinHost, Refusal};
use crate::model::{Checkpoint, ClockPair, Device, JoinKind, JoinToken, MigrationPhase, Node, NodeState, Site};

const MAX_SITES: usize = 1_000;
const MAX_NODES: usize = 100_000;
const MAX_TOKENS: usize = 10_000;

/// A node's inventory at hello.
pub(super) struct Inventory {
    pub(super) boot: BootId,
    pub(super) devices: Vec<Device>,
    pub(super) host_cores: CoreMilli,
    pub(super) host_memory: Bytes,
    pub(super) advisory: bool,
    pub(super) clock: NodeInstant,
    pub(super) address: String,
}

impl Step<'_> {
    pub(super) fn create_site(&mut self, name: Name) -> Result<Answer, Refusal> {
        if self.state.sites.values().any(|site| site.name == name) {
            return Err(Refusal::new(Reason::AlreadyExists, format!("site {name} exists already")));
        }
        bounded(self.state.sites.len(), MAX_SITES, "sites")?;
        let id = SiteId::from_raw(self.id());
        self.state
            .sites
            .insert(id, Site { id, name, vault: String::new(), vault_away: false, vault_key: None, created: self.now });
        Ok(Answer { object: id.to_string(), ..Answer::default() })
    }

    pub(super) fn create_join_token(
        &mut self,
        hash: Digest,
        site: SiteId,
        kind: JoinKind,
        expires: Timestamp,
    ) -> Result<Answer, Refusal> {
        if !self.state.sites.contains(&site) {
            return Err(Refusal::not_found("site"));
        }
        bounded(self.state.tokens.len(), MAX_TOKENS, "join tokens")?;
        self.state.tokens.insert(hash, JoinToken { hash, site, kind, expires, used: None });
        Ok(Answer::default())
    }

    /// Trades a token for the id of a node or, for a vault, of its site.
    pub(super) fn join(&mut self, join: JoinHost) -> Result<Answer, Refusal> {
        let refused = || Refusal::new(Reason::Unauthenticated, "the join token is not valid");
        let token = self.state.tokens.get(&join.token).cloned().ok_or_else(refused)?;
        if token.expires < self.now || token.used.is_some_and(|key| key != join.public_key) {
            return Err(refused());
        }
        let object = match token.kind {
            JoinKind::Vault => {
                let row = self.state.sites.get_mut(&token.site).ok_or_else(refused)?;
                row.vault_key = Some(join.public_key);
                token.site.to_string()
            }
            JoinKind::Node => self.join_node(token.site, join.name, join.public_key)?.to_string(),
        };
        if let Some(row) = self.state.tokens.get_mut(&join.token) {
            row.used = Some(join.public_key);
        }
        Ok(Answer { object, ..Answer::default() })
    }

    fn join_node(&mut self, site: SiteId, name: Option<Name>, public_key: Digest) -> Result<NodeId, Refusal> {
        let name = name.ok_or_else(|| Refusal::field("node", "a node joins with a name"))?;
        let known = self.state.nodes.values().find(|node| node.site == site && node.name == name);
        if let Some((id, key)) = known.map(|node| (node.id, node.public_key)) {
            // The token is the proof: the same host lost its answer (same key), or was set up anew. A host set up anew has
            // nothing of what ran there before.
            if key != public_key {
                self.lose_node(id);
            }
            if let Some(row) = self.state.nodes.get_mut(&id) {
                row.public_key = public_key;
            }
            return Ok(id);
        }
        bounded(self.state.nodes.len(), MAX_NODES, "nodes")?;
        let id = NodeId::from_raw(self.id());
        let row = Node {
            id,
            site,
            name,
            public_key,
            generation: Generation::ZERO,
            boot: BootId::default(),
            state: NodeState::Joined,
            cordoned: false,
            draining: false,
            drain_by: Timestamp::default(),
            reason: String::new(),
            failed_starts: 0,
            address: String::new(),
            advisory: false,
            host_cores: CoreMilli::ZERO,
            host_memory: Bytes::ZERO,
            devices: Vec::new(),
            settled_journal: 0,
            clock: None,
            last_seen: self.now,
        };
        self.state.nodes.insert(id, row);
        Ok(id)
    }

    pub(super) fn vault_address(&mut self, site: SiteId, address: String) -> Result<Answer, Refusal> {
        let row = self.state.sites.get_quietly(&site).ok_or_else(|| Refusal::not_found("site"))?;
        let back = std::mem::take(&mut row.vault_away);
        if row.vault != address || back {
            row.vault = address;
            self.state.sites.mark(&site);
        }
        if back {
            self.retell_site(site);
        }
        Ok(Answer::default())
    }

    /// The site's vault is gone for long: what it holds is lost for now, and nothing can start there.
    pub(super) fn vault_away(&mut self, site: SiteId) -> Result<Answer, Refusal> {
        let row = self.state.sites.get_quietly(&site).ok_or_else(|| Refusal::not_found("site"))?;
        if !std::mem::replace(&mut row.vault_away, true) {
            self.state.sites.mark(&site);
            self.abandon_shipping();
            self.retell_site(site);
        }
        Ok(Answer::default())
    }

    /// The scheduler sees the site's nodes anew, and where jobs can start from.
    fn retell_site(&mut self, site: SiteId) {
        let nodes: Vec<_> = self.state.nodes.values().filter(|node| node.site == site).map(|node| node.id).collect();
        nodes.iter().for_each(|node| self.state.nodes.mark(node));
        self.retell_resumable();
    }

    pub(super) fn set_node(
        &mut self,
        node: NodeId,
        cordoned: bool,
        draining: Option<Nanos>,
        reason: String,
    ) -> Result<Answer, Refusal> {
        let drain_by = draining.map_or(Timestamp::default(), |span| self.now.after(span));
        let row = self.state.nodes.get_mut(&node).ok_or_else(|| Refusal::not_found("node"))?;
        (row.cordoned, row.draining, row.reason) = (cordoned, draining.is_some(), reason);
        row.drain_by = drain_by;
        row.failed_starts = 0;
        if draining.is_some() {
            // Others of its replicas begin at once: the deadline may be shorter than a tick.
            self.scale_all();
        }
        Ok(Answer { object: node.to_string(), ..Answer::default() })
    }

    /// A node connected. Its older stream is fenced from here on.
    pub(super) fn hello(&mut self, node: NodeId, inventory: Inventory) -> Result<Answer, Refusal> {
        let now = self.now;
        self.lose_former_boot(node, &inventory.boot);
        let site = self.state.nodes.get(&node).ok_or_else(|| Refusal::not_found("node"))?.site;
        let wakes = !self.state.is_site_alive(site);
        let row = self.state.nodes.get_mut(&node).ok_or_else(|| Refusal::not_found("node"))?;
        row.generation = row.generation.next();
        if row.state == NodeState::Lost && !row.cordoned {
            row.reason.clear();
        }
        row.state = NodeState::Ready;
        row.boot = inventory.boot;
        row.devices = inventory.devices;
        (row.host_cores, row.host_memory) = (inventory.host_cores, inventory.host_memory);
        (row.advisory, row.address) = (inventory.advisory, inventory.address);
        row.clock = Some(ClockPair { controller: now, node: inventory.clock });
        row.last_seen = now;
        let generation = row.generation;
        if wakes {
            self.retell_resumable();
        }
        Ok(Answer { object: node.to_string(), generation, ..Answer::default() })
    }

    /// No process outlives its host's boot. What ran in the former one is lost now, on that boot's clock: the host's
    /// disk may be new, and a task that it does not know would be started a second time under the same fence.
    fn lose_former_boot(&mut self, node: NodeId, boot: &BootId) {
        let former = self.state.nodes.get(&node).map(|row| &row.boot);
        if former.is_some_and(|former| !former.0.is_empty() && former != boot) {
            self.lose_attempts_on(node, Reason::NodeLost);
        }
    }

    /// Fences every attempt that has a lease on the node.
    fn lose_attempts_on(&mut self, node: NodeId, reason: Reason) {
        let held = self.state.leases_on.get(&node).into_iter().flatten();
        let attempts: std::collections::BTreeSet<_> =
            held.filter_map(|id| self.state.leases.get(id)).map(|lease| lease.attempt).collect();
        for attempt in attempts {
            self.lose_attempt(attempt, reason);
        }
    }

    pub(super) fn heartbeat(&mut self, node: NodeId, clock: NodeInstant) {
        let now = self.now;
        if let Some(row) = self.state.nodes.get_quietly(&node) {
            row.last_seen = now;
            row.clock = Some(ClockPair { controller: now, node: clock });
        }
    }

    /// A node is silent for too long: its attempts are fenced and queue again elsewhere.
    pub(super) fn lose_node(&mut self, node: NodeId) {
        let now = self.now;
        let Some(row) = self.state.nodes.get_mut(&node) else { return };
        row.state = NodeState::Lost;
        row.reason = "no heartbeat".to_owned();
        let site = row.site;
        let reason = if self.state.is_site_alive(site) { Reason::NodeLost } else { Reason::SiteLost };
        let held = self.state.leases_on.get(&node).cloned().unwrap_or_default();
        self.lose_attempts_on(node, reason);
        // What the node still delivers up to this instant of its own clock is paid; later windows are refused.
        let cut = self.state.nodes.get(&node).and_then(|row| row.clock).map(|clock| clock.map(now));
        for lease in held {
            if let Some(row) = self.state.leases.get_mut(&lease) {
                row.cut = row.cut.or(cut);
            }
        }
        self.abandon_shipping();
        if !self.state.is_site_alive(site) {
            self.retell_resumable();
        }
    }

    /// A site came or went: jobs that start from a checkpoint may find theirs elsewhere.
    fn retell_resumable(&mut self) {
        self.retell(|state, job| state.checkpoints_of.contains_key(&job.id));
    }

    /// Moves whose last checkpoint is at no site alive cannot be waited for.
    fn abandon_shipping(&mut self) {
        let shipping = self.state.migrations.values().filter(|row| row.phase == MigrationPhase::Shipping);
        let stranded = shipping.filter(|row| {
            let sites = row.checkpoint.and_then(|id| self.state.checkpoints.get(&id)).map(Checkpoint::sites);
            !sites.unwrap_or_default().into_iter().any(|site| self.state.is_site_alive(site))
        });
        let stranded: Vec<_> = stranded.map(|row| row.job).collect();
        stranded.into_iter().for_each(|job| self.abort_migration(job, Reason::SiteLost));
    }
}
