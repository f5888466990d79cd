//! The log of a task over the stream. It is read only as fast as its other end takes it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use sluice_proto::v1;
use sluice_proto::v1::attach_request::Message as Up;
use sluice_types::Reason;
use tokio::sync::watch;

use super::outbox::Outbox;
use crate::agent::Agent;
use crate::assignment::Key;

/// Bytes that may be unacknowledged.
const WINDOW: u64 = 1 << 20;
const FRAME: usize = 64 << 10;
/// How often a log is looked at for more.
const PAUSE: Duration = Duration::from_millis(200);

/// Why a log ended early.
enum Trouble {
    Reason(Reason),
    /// Nobody is there to be told.
    Gone,
}

/// Sends a log from `begin` on until it is complete. `acknowledged` tells how far the other end has taken it.
pub(super) async fn send_log(
    agent: &Agent,
    up: Outbox,
    number: u64,
    key: Key,
    begin: u64,
    acknowledged: watch::Receiver<u64>,
) {
    let mut follower = Follower { number, up: up.clone(), acknowledged, sent: 0 };
    if let Err(Trouble::Reason(reason)) = follower.follow(agent, key, begin).await {
        // If this does not get through either, the stream is gone and the channel with it.
        let _gone = up.send_bulk(last_frame(number, follower.sent, reason.as_str())).await;
    }
}

/// The end of a log's channel.
pub(super) fn last_frame(channel: u64, offset: u64, reason: &str) -> Up {
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
        self.up.send_bulk(message).await.map_err(|_| Trouble::Gone)
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
