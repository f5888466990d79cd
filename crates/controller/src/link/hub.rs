//! Who is connected, and how to reach them without waiting.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sluice_lifecycle::Copy;
use sluice_proto::v1;
use sluice_types::{Digest, NodeId, SiteId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::sessions::{SessionSender, Sessions};
use crate::directory::Directory;
use crate::metrics::ControllerMetrics;

/// Messages under way to one peer. A peer that takes none for so long is cut off and starts over.
pub(crate) const LINK_QUEUE: usize = 256;
/// Copies under way to one site.
const COPIES_AT_ONCE: usize = 4;
/// A copy that is neither done nor failed for so long is ordered again: copies are idempotent.
const COPY_PATIENCE: Duration = Duration::from_secs(600);
/// A failed copy is not ordered again before.
const COPY_PAUSE: Duration = Duration::from_secs(1);

type NodeSender = mpsc::Sender<Result<v1::AttachResponse, Status>>;
type VaultSender = mpsc::Sender<Result<v1::LinkResponse, Status>>;

struct NodeLink {
    serial: u64,
    sender: NodeSender,
    sessions: SessionSender,
    stop: CancellationToken,
}

struct VaultLink {
    serial: u64,
    sender: VaultSender,
    stop: CancellationToken,
    orders: HashMap<u64, (Digest, Instant)>,
    pauses: HashMap<Digest, Instant>,
    relays: HashMap<u64, mpsc::Sender<v1::RelayData>>,
    /// An order to forget is under way since then.
    forgetting: Option<Instant>,
}

/// Connected nodes and vaults.
pub(crate) struct Hub {
    nodes: Mutex<BTreeMap<NodeId, NodeLink>>,
    vaults: Mutex<BTreeMap<SiteId, VaultLink>>,
    /// When a site's vault was connected last.
    left: Mutex<BTreeMap<SiteId, Instant>>,
    since: Instant,
    next: AtomicU64,
    pub(super) sessions: Sessions,
    metrics: Arc<ControllerMetrics>,
}

/// One connection's place in the hub; gone when dropped.
pub(crate) struct Seat<K: SeatKey> {
    hub: Arc<Hub>,
    key: K,
    serial: u64,
    /// Cancelled when a newer connection takes over, or the hub gives up on this one.
    pub(crate) stop: CancellationToken,
}

/// Keys of the hub.
pub(crate) trait SeatKey: std::marker::Copy {
    fn leave(hub: &Hub, key: Self, serial: u64);
}

impl<K: SeatKey> Drop for Seat<K> {
    fn drop(&mut self) {
        // Whoever still waits for this connection waits for nothing.
        self.stop.cancel();
        K::leave(&self.hub, self.key, self.serial);
    }
}

impl SeatKey for NodeId {
    fn leave(hub: &Hub, key: Self, serial: u64) {
        let mut nodes = hub.nodes();
        if nodes.get(&key).is_some_and(|link| link.serial == serial) {
            nodes.remove(&key);
        }
    }
}

impl SeatKey for SiteId {
    fn leave(hub: &Hub, key: Self, serial: u64) {
        let mut vaults = hub.vaults();
        if vaults.get(&key).is_some_and(|link| link.serial == serial) {
            vaults.remove(&key);
            hub.left.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Instant::now());
        }
    }
}

impl Hub {
    pub(crate) fn new(metrics: Arc<ControllerMetrics>) -> Arc<Self> {
        Arc::new(Self {
            nodes: Mutex::default(),
            vaults: Mutex::default(),
            left: Mutex::default(),
            since: Instant::now(),
            next: AtomicU64::new(1),
            sessions: Sessions::default(),
            metrics,
        })
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<NodeId, NodeLink>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vaults(&self) -> MutexGuard<'_, BTreeMap<SiteId, VaultLink>> {
        self.vaults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes the node's place; an older connection of it is stopped.
    pub(crate) fn seat_node(
        self: &Arc<Self>,
        key: NodeId,
        sender: NodeSender,
        sessions: SessionSender,
    ) -> Seat<NodeId> {
        let (serial, stop) = (self.number(), CancellationToken::new());
        let link = NodeLink { serial, sender, sessions, stop: stop.clone() };
        let count = {
            let mut nodes = self.nodes();
            if let Some(old) = nodes.insert(key, link) {
                old.stop.cancel();
            }
            nodes.len()
        };
        self.metrics.connected(count, self.vaults().len());
        Seat { hub: Arc::clone(self), key, serial, stop }
    }

    /// Takes the vault's place; an older connection of it is stopped.
    pub(crate) fn seat_vault(self: &Arc<Self>, key: SiteId, sender: VaultSender) -> Seat<SiteId> {
        let (serial, stop) = (self.number(), CancellationToken::new());
        let link = VaultLink {
            serial,
            sender,
            stop: stop.clone(),
            orders: HashMap::new(),
            pauses: HashMap::new(),
            relays: HashMap::new(),
            forgetting: None,
        };
        let count = {
            let mut vaults = self.vaults();
            if let Some(old) = vaults.insert(key, link) {
                old.stop.cancel();
            }
            vaults.len()
        };
        self.metrics.connected(self.nodes().len(), count);
        Seat { hub: Arc::clone(self), key, serial, stop }
    }

    pub(crate) fn is_connected(&self, node: NodeId) -> bool {
        self.nodes().contains_key(&node)
    }

    /// The queue down to the sessions of a node that is connected, and what ends with its connection.
    pub(super) fn session_sender(&self, node: NodeId) -> Option<(SessionSender, CancellationToken)> {
        self.nodes().get(&node).map(|link| (link.sessions.clone(), link.stop.clone()))
    }

    pub(crate) fn has_nodes(&self) -> bool {
        !self.nodes().is_empty()
    }

    pub(crate) fn is_vault_connected(&self, site: SiteId) -> bool {
        self.vaults().contains_key(&site)
    }

    /// Whether no vault of the site was connected for so long.
    pub(crate) fn is_vault_away(&self, site: SiteId, span: Duration) -> bool {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner).get(&site).copied();
        !self.is_vault_connected(site) && left.unwrap_or(self.since).elapsed() > span
    }

    /// Sites whose vault is connected.
    pub(crate) fn vault_sites(&self) -> Vec<SiteId> {
        self.vaults().keys().copied().collect()
    }

    /// Sends a node what it should be doing. A node that does not keep up is cut off: it connects again and is told all.
    pub(crate) fn desired(&self, node: NodeId, desired: v1::Desired) {
        let message = v1::AttachResponse { message: Some(v1::attach_response::Message::Desired(desired)) };
        let mut nodes = self.nodes();
        let Some(link) = nodes.get(&node) else { return };
        if link.sender.try_send(Ok(message)).is_err() {
            link.stop.cancel();
            nodes.remove(&node);
        }
    }

    /// Orders the copies that are wanted and not under way.
    pub(crate) fn copies(&self, copies: Vec<Copy>, directory: &Directory) {
        let mut wanted: BTreeMap<SiteId, Vec<Copy>> = BTreeMap::new();
        copies.into_iter().for_each(|copy| wanted.entry(copy.to).or_default().push(copy));
        let mut vaults = self.vaults();
        for (site, link) in vaults.iter_mut() {
            let now = Instant::now();
            link.orders.retain(|_, (_, since)| now.duration_since(*since) < COPY_PATIENCE);
            link.pauses.retain(|_, since| now.duration_since(*since) < COPY_PAUSE);
            for copy in wanted.remove(site).unwrap_or_default() {
                let busy = link.orders.values().any(|(manifest, _)| *manifest == copy.manifest);
                if busy || link.pauses.contains_key(&copy.manifest) || link.orders.len() >= COPIES_AT_ONCE {
                    continue;
                }
                let order = self.number();
                let message =
                    v1::CopyOrder { order, manifest: copy.manifest.to_string(), sources: sources(&copy, directory) };
                let message = v1::LinkResponse { message: Some(v1::link_response::Message::Copy(message)) };
                if link.sender.try_send(Ok(message)).is_ok() {
                    link.orders.insert(order, (copy.manifest, now));
                }
            }
        }
    }

    /// Orders a vault to forget manifests, unless it is at it.
    pub(crate) fn forget(&self, site: SiteId, manifests: &[Digest]) {
        let mut vaults = self.vaults();
        let Some(link) = vaults.get_mut(&site) else { return };
        let now = Instant::now();
        if manifests.is_empty() || link.forgetting.is_some_and(|since| now.duration_since(since) < COPY_PATIENCE) {
            return;
        }
        let order = v1::ForgetOrder { manifests: manifests.iter().map(Digest::to_string).collect() };
        let message = v1::LinkResponse { message: Some(v1::link_response::Message::Forget(order)) };
        if link.sender.try_send(Ok(message)).is_ok() {
            link.forgetting = Some(now);
        }
    }

    /// A vault did what it was told to forget.
    pub(crate) fn forgotten(&self, site: SiteId) {
        if let Some(link) = self.vaults().get_mut(&site) {
            link.forgetting = None;
        }
    }

    /// A copy is over, one way or the other.
    pub(crate) fn copy_over(&self, site: SiteId, order: u64, failed: bool) {
        if let Some(link) = self.vaults().get_mut(&site)
            && let Some((manifest, _)) = link.orders.remove(&order)
            && failed
        {
            link.pauses.insert(manifest, Instant::now());
        }
    }

    /// Asks a vault to send a blob up. The receiver gets its parts; grants are sent with [`Hub::grant`]. One
    /// that is given up before its last part must be stopped with [`Hub::stop_relay`].
    pub(crate) fn open_relay(
        &self,
        site: SiteId,
        digest: Digest,
        offset: u64,
        window: u64,
    ) -> Option<(u64, mpsc::Receiver<v1::RelayData>)> {
        let relay = self.number();
        let (sender, receiver) = mpsc::channel(64);
        let mut vaults = self.vaults();
        let link = vaults.get_mut(&site)?;
        let order = v1::RelayOrder { relay, digest: digest.to_string(), offset, window };
        let message = v1::LinkResponse { message: Some(v1::link_response::Message::Relay(order)) };
        link.sender.try_send(Ok(message)).ok()?;
        link.relays.insert(relay, sender);
        Some((relay, receiver))
    }

    /// Lets a relay go on up to `until`.
    pub(crate) fn grant(&self, site: SiteId, relay: u64, until: u64) {
        if let Some(link) = self.vaults().get_mut(&site) {
            link.extend(v1::RelayGrant { relay, until, stop: false });
        }
    }

    /// Ends a relay that nobody waits for any more.
    pub(crate) fn stop_relay(&self, site: SiteId, relay: u64) {
        if let Some(link) = self.vaults().get_mut(&site) {
            link.relays.remove(&relay);
            link.extend(v1::RelayGrant { relay, until: 0, stop: true });
        }
    }

    /// A part of a relayed blob came up.
    pub(crate) fn relayed(&self, site: SiteId, data: v1::RelayData) {
        let mut vaults = self.vaults();
        let Some(link) = vaults.get_mut(&site) else { return };
        let (relay, last) = (data.relay, data.end || !data.error.is_empty());
        let lost = link.relays.get(&relay).is_none_or(|sender| sender.try_send(data).is_err());
        if last || lost {
            link.relays.remove(&relay);
        }
        if lost && !last {
            // Whoever asked is gone, and the vault was not told or has not heard of it.
            link.extend(v1::RelayGrant { relay, until: 0, stop: true });
        }
    }
}

impl VaultLink {
    /// Where the link is full, this is lost: the relay then ends because nothing comes on either side.
    fn extend(&self, grant: v1::RelayGrant) {
        let message = v1::LinkResponse { message: Some(v1::link_response::Message::Grant(grant)) };
        let _ = self.sender.try_send(Ok(message));
    }
}

fn sources(copy: &Copy, directory: &Directory) -> Vec<v1::CopySource> {
    let directory = directory.read();
    let sites = copy.from.iter().filter_map(|id| directory.sites.get(id));
    sites.map(|site| v1::CopySource { site_id: site.id.to_string(), address: site.vault.clone() }).collect()
}
