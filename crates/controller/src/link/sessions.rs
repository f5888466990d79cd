//! Sessions on their way between clients and nodes. What they carry is nobody's state: it is passed on, bounded, and
//! forgotten.
//!
//! Down, sessions have a queue of their own on each node's stream, which comes behind what the node is told to do. Up,
//! each session has a queue that the node may not overrun: one that does is cut off, and its client attaches again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sluice_lifecycle::TaskKey;
use sluice_proto::convert;
use sluice_proto::v1;
use sluice_proto::v1::attach_response::Message as Down;
use sluice_types::NodeId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::hub::Hub;

/// Messages to the sessions of one node that may wait for its stream.
pub(super) const DOWN: usize = 64;
/// Messages of one session that may wait for its client: twice what a node sends unacknowledged in whole pieces.
const UP: usize = 64;
/// Channels of sessions are numbered from here on, those of logs from one.
const FIRST: u64 = 1 << 62;

/// Messages down to the sessions of one node.
pub(super) type SessionSender = mpsc::Sender<v1::AttachResponse>;

/// Where what comes up goes.
#[derive(Default)]
pub(super) struct Sessions {
    open: Mutex<HashMap<u64, (NodeId, mpsc::Sender<v1::SessionUp>)>>,
}

impl Sessions {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, (NodeId, mpsc::Sender<v1::SessionUp>)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One client's way to a session; dropped, the node is told that the client is gone.
pub(crate) struct SessionLink {
    hub: std::sync::Arc<Hub>,
    channel: u64,
    down: SessionSender,
    /// Cancelled when the node's stream ends.
    pub(crate) stop: CancellationToken,
    /// What comes from the session.
    pub(crate) up: mpsc::Receiver<v1::SessionUp>,
}

impl SessionLink {
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
        // Where the queue is full the node hears nothing of it now, and at the session's next words finds nobody.
        let _ = self.down.try_send(down(self.channel, None));
    }
}

fn down(channel: u64, input: Option<v1::SessionInput>) -> v1::AttachResponse {
    v1::AttachResponse { message: Some(Down::Session(v1::SessionDown { channel, input })) }
}

impl Hub {
    /// Asks a node for a session; `None` where the node is not connected.
    pub(crate) async fn open_session(
        self: &std::sync::Arc<Self>,
        node: NodeId,
        key: &TaskKey,
        start: v1::StartSession,
    ) -> Option<SessionLink> {
        let (sender, stop) = self.session_sender(node)?;
        let channel = FIRST + self.number();
        let (to, up) = mpsc::channel(UP);
        self.sessions.open().insert(channel, (node, to));
        let link = SessionLink { hub: std::sync::Arc::clone(self), channel, down: sender, stop, up };
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
        let mut open = self.sessions.open();
        let known = open.get(&channel).filter(|(of, _)| *of == node);
        let taken = known.is_some_and(|(_, sender)| sender.try_send(message).is_ok());
        if taken {
            return;
        }
        if known.is_some() {
            open.remove(&channel);
        }
        drop(open);
        // Its client is gone, or more came than may be under way.
        if let Some((sender, _)) = self.session_sender(node) {
            let _ = sender.try_send(down(channel, None));
        }
    }
}
