//! Sessions on their way between clients and nodes. What they carry is nobody's state: it is passed on, bounded, and
//! forgotten.
//!
//! Down, sessions have a queue of their own on each node's stream, which comes behind what the node is told to do. Up,
//! each session has a queue ([`super::upward`]) that the node may not overrun: one that does is cut off, and its client
//! attaches again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sluice_lifecycle::TaskKey;
use sluice_proto::convert;
use sluice_proto::v1;
use sluice_proto::v1::attach_response::Message as Down;
use sluice_types::NodeId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::hub::Hub;
use super::upward::Upward;

/// Messages to the sessions of one node that may wait for its stream.
pub(super) const DOWN: usize = 64;
/// Channels of sessions are numbered from here on, those of logs from one.
const FIRST: u64 = 1 << 62;

/// Messages down to the sessions of one node.
pub(super) type SessionSender = mpsc::Sender<v1::AttachResponse>;

/// Where what comes up goes.
#[derive(Default)]
pub(super) struct Sessions {
    open: Mutex<HashMap<u64, (NodeId, Arc<Upward>)>>,
}

impl Sessions {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, (NodeId, Arc<Upward>)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One client's way to a session; dropped, the node is told that the client is gone.
pub(crate) struct SessionLink {
    hub: Arc<Hub>,
    channel: u64,
    down: SessionSender,
    /// Cancelled when the node's stream ends.
    pub(crate) stop: CancellationToken,
    /// What comes from the session.
    up: Arc<Upward>,
}

impl SessionLink {
    /// What the session says next; `None` where it said more than may be under way. Dropped before it is ready, it loses
    /// nothing.
    pub(crate) async fn next(&self) -> Option<v1::SessionUp> {
        self.up.next().await
    }

    /// Room for one message of the client, once there is some. `None` where the node is gone.
    pub(crate) fn room(&self) -> impl Future<Output = Option<Room>> + use<> {
        let (down, stop, channel) = (self.down.clone(), self.stop.clone(), self.channel);
        async move {
            tokio::select! {
                permit = down.reserve_owned() => Some(Room { permit: permit.ok()?, channel }),
                () = stop.cancelled() => None,
            }
        }
    }
}

/// Room for one message in the queue to a node.
pub(crate) struct Room {
    permit: mpsc::OwnedPermit<v1::AttachResponse>,
    channel: u64,
}

impl Room {
    /// Sends what a client says.
    pub(crate) fn send(self, input: v1::SessionInput) {
        self.permit.send(down(self.channel, Some(input)));
    }
}

impl Drop for SessionLink {
    fn drop(&mut self) {
        self.hub.sessions.open().remove(&self.channel);
        hang_up(&self.down, self.stop.clone(), self.channel);
    }
}

/// Tells a node that nobody listens to a session any more; once there is room where there is none now, as a session that
/// says nothing would keep its channel, and stay attached to, for ever.
fn hang_up(to: &SessionSender, stop: CancellationToken, channel: u64) {
    let Err(mpsc::error::TrySendError::Full(word)) = to.try_send(down(channel, None)) else { return };
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    let to = to.clone();
    runtime.spawn(async move {
        tokio::select! {
            _gone = to.send(word) => {}
            () = stop.cancelled() => {}
        }
    });
}

fn down(channel: u64, input: Option<v1::SessionInput>) -> v1::AttachResponse {
    v1::AttachResponse { message: Some(Down::Session(v1::SessionDown { channel, input })) }
}

impl Hub {
    /// Asks a node for a session; `None` where the node is not connected.
    pub(crate) async fn open_session(
        self: &Arc<Self>,
        node: NodeId,
        key: &TaskKey,
        start: v1::StartSession,
    ) -> Option<SessionLink> {
        let (sender, stop) = self.session_sender(node)?;
        let channel = FIRST + self.number();
        let up = Arc::new(Upward::default());
        self.sessions.open().insert(channel, (node, up.clone()));
        let link = SessionLink { hub: Arc::clone(self), channel, down: sender, stop, up };
        let purpose = Some(v1::channel_open::Purpose::Session(v1::SessionChannel { start: Some(start) }));
        let open = v1::ChannelOpen { channel, key: Some(convert::task_key_back(key)), purpose };
        let message = v1::AttachResponse { message: Some(Down::Open(open)) };
        let sent = tokio::select! {
            sent = link.down.send(message) => sent.is_ok(),
            () = link.stop.cancelled() => false,
        };
        sent.then_some(link)
    }

    /// Something came from a session of this node.
    pub(crate) fn session_up(&self, node: NodeId, message: v1::SessionUp) {
        let channel = message.channel;
        let known = self.sessions.open().get(&channel).filter(|(of, _)| *of == node).map(|(_, up)| up.clone());
        if known.is_some_and(|up| up.put(message)) {
            return;
        }
        // Its client is gone, or more came than may be under way; the client hears of that and drops its end.
        if let Some((sender, _)) = self.session_sender(node) {
            let _ = sender.try_send(down(channel, None));
        }
    }
}
