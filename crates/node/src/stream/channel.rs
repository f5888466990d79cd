//! Channels over the stream: logs ([`super::logs`]) and sessions ([`super::sandbox`]), opened by the controller.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_proto::v1;
use sluice_proto::v1::attach_request::Message as Up;
use sluice_proto::v1::channel_open::Purpose;
use sluice_types::Reason;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::logs::{last_frame, send_log};
use super::outbox::Outbox;
use super::sandbox::{Inlet, last_word, relay};
use crate::agent::Agent;
use crate::assignment::Key;
use crate::metrics::NodeMetrics;

/// Logs that are followed over one stream at a time: one for each task.
const LOGS: usize = 256;
/// Sessions over one stream at a time, those of engines included. The controller lets one tenant have a quarter of them,
/// so that nobody fills a node by himself.
const SESSIONS: usize = 1024;
/// Refusals that may wait to be sent.
const REFUSALS: usize = 256;

/// The open channels of one stream; dropped with it.
pub(super) struct Channels {
    agent: Arc<Agent>,
    up: Outbox,
    open: BTreeMap<u64, Open>,
}

struct Open {
    way: Way,
    task: AbortOnDropHandle<()>,
}

/// The way to the channel's task.
enum Way {
    /// Bytes of the log that the other end has taken.
    Log(watch::Sender<u64>),
    /// What the session's client says; `None` once it is gone.
    Session(Option<Inlet>),
    /// Nobody listens.
    Refused,
}

impl Channels {
    pub(super) fn new(agent: Arc<Agent>, up: Outbox) -> Self {
        Self { agent, up, open: BTreeMap::new() }
    }

    /// Opens a channel; what is wrong with the request is told on it.
    pub(super) fn open(&mut self, wanted: v1::ChannelOpen) {
        self.open.retain(|_, open| !open.task.is_finished());
        let number = wanted.channel;
        let refuse: fn(u64, Reason) -> Up = match &wanted.purpose {
            Some(Purpose::Session(_)) => |number, reason| last_word(number, reason, "this channel cannot be opened"),
            Some(Purpose::Log(_)) | None => |number, reason| last_frame(number, 0, reason.as_str()),
        };
        let (Some(key), Some(purpose)) = (Key::parse(wanted.key.as_ref()), wanted.purpose) else {
            return self.refuse(refuse(number, Reason::InvalidField));
        };
        let is_full = match &purpose {
            Purpose::Log(_) => self.count(|way| matches!(way, Way::Log(_))) >= LOGS,
            Purpose::Session(_) => self.count(|way| matches!(way, Way::Session(_))) >= SESSIONS,
        };
        if is_full || self.open.contains_key(&number) {
            return self.refuse(refuse(number, Reason::Overloaded));
        }
        NodeMetrics::add(&self.agent.shared.config.metrics.channels_opened, 1);
        let (agent, up) = (self.agent.clone(), self.up.clone());
        let (way, task) = match purpose {
            Purpose::Log(log) => {
                let (taken, acknowledged) = watch::channel(0);
                let task = async move { send_log(&agent, up, number, key, log.offset, acknowledged).await };
                (Way::Log(taken), tokio::spawn(task))
            }
            Purpose::Session(session) => {
                let (inlet, outlet) = Inlet::new();
                let start = session.start.unwrap_or_default();
                let task = async move { relay(&agent, up, number, key, start, outlet).await };
                (Way::Session(Some(inlet)), tokio::spawn(task))
            }
        };
        self.open.insert(number, Open { way, task: AbortOnDropHandle::new(task) });
    }

    fn count(&self, of: impl Fn(&Way) -> bool) -> usize {
        self.open.values().filter(|open| of(&open.way)).count()
    }

    fn refuse(&mut self, word: Up) {
        let up = self.up.clone();
        let task = tokio::spawn(async move {
            // If this does not get through either, the stream is gone and the channel with it.
            let _gone = up.send_bulk(word).await;
        });
        // Kept so that it is stopped with the stream; under a free key, the number itself may be taken.
        let place = (0..).map(|step| u64::MAX - step).find(|place| !self.open.contains_key(place)).unwrap_or(u64::MAX);
        if self.count(|way| matches!(way, Way::Refused)) < REFUSALS {
            self.open.insert(place, Open { way: Way::Refused, task: AbortOnDropHandle::new(task) });
        }
    }

    /// The other end of a log took bytes, or hangs up.
    pub(super) fn on_frame(&mut self, frame: &v1::ChannelFrame) {
        if let Some(Open { way: Way::Log(taken), .. }) = self.open.get(&frame.channel) {
            taken.send_if_modified(|taken| std::mem::replace(taken, frame.acknowledged.max(*taken)) < *taken);
            if frame.end {
                self.open.remove(&frame.channel);
            }
        }
    }

    /// A session's client says something, or is gone. Never waits: the stream has others to serve.
    pub(super) fn on_session(&mut self, said: v1::SessionDown) {
        let Some(Open { way: Way::Session(inlet), .. }) = self.open.get_mut(&said.channel) else { return };
        match (said.input, inlet.as_mut()) {
            (Some(input), Some(open)) => open.put(input),
            // What it said before still gets through; then the attachment ends, and the session waits for it.
            (None, _) => *inlet = None,
            (Some(_), None) => {}
        }
    }
}
