//! Byte channels over the stream: so far, logs. A channel reads its file only as fast as its other end takes it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use sluice_proto::v1;
use sluice_proto::v1::attach_request::Message as Up;
use sluice_types::Reason;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::session::Outbox;
use crate::agent::Agent;
use crate::assignment::Key;
use crate::metrics::NodeMetrics;

/// Channels of one stream at a time.
const CHANNELS: usize = 256;
/// Bytes that may be unacknowledged.
const WINDOW: u64 = 1 << 20;
const FRAME: usize = 64 << 10;
/// How often a log is looked at for more.
const PAUSE: Duration = Duration::from_millis(200);

/// The open channels of one stream; dropped with it.
pub(super) struct Channels {
    agent: Arc<Agent>,
    up: Outbox,
    open: BTreeMap<u64, Open>,
}

struct Open {
    /// Bytes that the other end has taken.
    taken: watch::Sender<u64>,
    task: AbortOnDropHandle<()>,
}

/// Why a channel ended early.
enum Trouble {
    Reason(Reason),
    /// Nobody is there to be told.
    Gone,
}

impl Channels {
    pub(super) fn new(agent: Arc<Agent>, up: Outbox) -> Self {
        Self { agent, up, open: BTreeMap::new() }
    }

    /// Opens a channel; what is wrong with the request is told on it.
    pub(super) fn open(&mut self, wanted: v1::ChannelOpen) {
        self.open.retain(|_, open| !open.task.is_finished());
        let number = wanted.channel;
        let full = self.open.len() >= CHANNELS;
        let key = Key::parse(wanted.key.as_ref());
        let Some(v1::channel_open::Purpose::Log(log)) = wanted.purpose else {
            return self.refuse(number, Reason::InvalidField);
        };
        let Some(key) = key else { return self.refuse(number, Reason::InvalidField) };
        if full || self.open.contains_key(&number) {
            return self.refuse(number, Reason::Overloaded);
        }
        NodeMetrics::add(&self.agent.shared.config.metrics.channels_opened, 1);
        let (taken, acknowledged) = watch::channel(0);
        let (agent, up) = (self.agent.clone(), self.up.clone());
        let task = tokio::spawn(async move {
            let mut follower = Follower { number, up: up.clone(), acknowledged, sent: 0 };
            if let Err(Trouble::Reason(reason)) = follower.follow(&agent, key, log.offset).await {
                // If this does not get through either, the stream is gone and the channel with it.
                let _gone = up.send(last_frame(number, follower.sent, reason.as_str())).await;
            }
        });
        self.open.insert(number, Open { taken, task: AbortOnDropHandle::new(task) });
    }

    fn refuse(&mut self, number: u64, reason: Reason) {
        let up = self.up.clone();
        let (taken, _) = watch::channel(0);
        let task = tokio::spawn(async move {
            // As above.
            let _gone = up.send(last_frame(number, 0, reason.as_str())).await;
        });
        // Kept so that it is stopped with the stream; under a free key, the number itself may be taken.
        let place = (0..).map(|step| u64::MAX - step).find(|place| !self.open.contains_key(place)).unwrap_or(u64::MAX);
        if self.open.len() < 2 * CHANNELS {
            self.open.insert(place, Open { taken, task: AbortOnDropHandle::new(task) });
        }
    }

    /// The other end took bytes, or hangs up.
    pub(super) fn on_frame(&mut self, frame: &v1::ChannelFrame) {
        if let Some(open) = self.open.get(&frame.channel) {
            open.taken.send_if_modified(|taken| std::mem::replace(taken, frame.acknowledged.max(*taken)) < *taken);
        }
        if frame.end {
            self.open.remove(&frame.channel);
        }
    }
}

fn last_frame(channel: u64, offset: u64, reason: &str) -> Up {
    Up::Frame(v1::ChannelFrame { channel, offset, end: true, reason: reason.to_owned(), ..v1::ChannelFrame::default() })
}

/// Sends one log.
struct Follower {
    number: u64,
    up: Outbox,
    acknowledged: watch::Receiver<u64>,
    sent: u64,
}

impl Follower {
    /// Sends the log from `begin` on until it is complete.
    async fn follow(&mut self, agent: &Agent, key: Key, begin: u64) -> Result<(), Trouble> {
        let mut file: Option<Arc<File>> = None;
        loop {
            // Asked before the read: what is complete now has no bytes behind those that the read finds.
            let place = agent.log(&key);
            if let (None, Some(place)) = (&file, &place) {
                file = open(&place.path)?;
            }
            let more = match &file {
                Some(file) => self.drain(file, begin).await?,
                None => false,
            };
            match place {
                None if file.is_none() => return Err(Trouble::Reason(Reason::NotFound)),
                // Forgotten while it was read: complete.
                None => break,
                // Moved between the look and the opening: it is found at its new place.
                Some(place) if place.exists && file.is_none() => continue,
                Some(place) if place.complete && !more => break,
                Some(_) => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.send(last_frame(self.number, self.sent, "")).await
    }

    /// Sends everything up to the present end; `true` where there was something.
    async fn drain(&mut self, file: &Arc<File>, begin: u64) -> Result<bool, Trouble> {
        let mut any = false;
        loop {
            let sent = self.sent;
            let wait = self.acknowledged.wait_for(|taken| sent.saturating_sub(*taken) + (FRAME as u64) <= WINDOW).await;
            drop(wait.map_err(|_| Trouble::Gone)?);
            let (file, at) = (file.clone(), begin.saturating_add(self.sent));
            let read = tokio::task::spawn_blocking(move || read_at(&file, at)).await;
            let data = read.map_err(io::Error::other).and_then(|read| read);
            let data = data.map_err(|_| Trouble::Reason(Reason::Internal))?;
            if data.is_empty() {
                return Ok(any);
            }
            any = true;
            let size = u64::try_from(data.len()).unwrap_or(0);
            let frame = v1::ChannelFrame {
                channel: self.number,
                offset: self.sent,
                data: data.into(),
                ..v1::ChannelFrame::default()
            };
            self.send(Up::Frame(frame)).await?;
            self.sent += size;
        }
    }

    async fn send(&self, message: Up) -> Result<(), Trouble> {
        self.up.send(message).await.map_err(|_| Trouble::Gone)
    }
}

fn open(path: &std::path::Path) -> Result<Option<Arc<File>>, Trouble> {
    match File::open(path) {
        Ok(file) => Ok(Some(Arc::new(file))),
        // Not begun yet, or moved this very moment.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(_) => Err(Trouble::Reason(Reason::Internal)),
    }
}

fn read_at(file: &File, at: u64) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; FRAME];
    // Beyond the largest offset there is nothing.
    let read = if at > i64::MAX.cast_unsigned() { 0 } else { file.read_at(&mut buffer, at)? };
    buffer.truncate(read);
    Ok(buffer)
}
