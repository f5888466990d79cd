//! A session in a rental's sandbox over the stream: opened at the task's supervisor, which keeps everything. What is here
//! may be cut off at any instruction.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sluice_proto::v1;
use sluice_proto::v1::attach_request::Message as Up;
use sluice_types::Reason;
use tokio::sync::mpsc;

use super::outbox::Outbox;
use crate::agent::Agent;
use crate::assignment::Key;
use crate::supervisor::{SessionReader, SessionWriter, SupervisorClient, SupervisorError};

/// Messages of a client that may wait for the supervisor, which takes them at once unless the host is busy.
const MESSAGES: usize = 256;
/// Their bytes: what may be under way, and room for what is said beside it.
const BYTES: usize = 256 << 10;

/// How long the supervisor may take to hear the last that a client said.
const PARTING: Duration = Duration::from_secs(5);

/// Where the stream puts what a session's client says.
#[derive(Debug)]
pub(super) struct Inlet {
    to: mpsc::Sender<v1::SessionInput>,
    waiting: Arc<AtomicUsize>,
    broken: Option<mpsc::Sender<()>>,
}

/// Where the channel's task takes it.
#[derive(Debug)]
pub(super) struct Outlet {
    from: mpsc::Receiver<v1::SessionInput>,
    waiting: Arc<AtomicUsize>,
    broken: mpsc::Receiver<()>,
}

impl Inlet {
    pub(super) fn new() -> (Self, Outlet) {
        let ((to, from), (broken, breaks)) = (mpsc::channel(MESSAGES), mpsc::channel(1));
        let waiting = Arc::new(AtomicUsize::new(0));
        (Self { to, waiting: waiting.clone(), broken: Some(broken) }, Outlet { from, waiting, broken: breaks })
    }

    /// Puts a message, or breaks the attachment where that is more than may wait: bytes that were left out must not look
    /// like bytes that were taken.
    pub(super) fn put(&mut self, input: v1::SessionInput) {
        let Some(broken) = &self.broken else { return };
        let size = prost::Message::encoded_len(&input);
        let fits = self.waiting.fetch_add(size, Ordering::Relaxed) + size <= BYTES;
        if !fits || self.to.try_send(input).is_err() {
            // Full means that it was said before.
            let _said = broken.try_send(());
            self.broken = None;
        }
    }
}

impl Outlet {
    /// The next message; `None` where the client is gone.
    async fn next(&mut self) -> Result<Option<v1::SessionInput>, Overrun> {
        tokio::select! {
            biased;
            Some(()) = self.broken.recv() => Err(Overrun),
            input = self.from.recv() => {
                let size = input.as_ref().map_or(0, prost::Message::encoded_len);
                self.waiting.fetch_sub(size, Ordering::Relaxed);
                Ok(input)
            }
        }
    }
}

/// More was said than may wait.
#[derive(Debug)]
struct Overrun;

/// How an attachment came to its end.
enum End {
    /// Everything is said.
    Said,
    /// The client is gone.
    Left,
    /// This is still to be said.
    Reason(Reason, String),
}

/// Opens the session, or attaches to it, and carries messages until either side is done.
pub(super) async fn relay(agent: &Agent, up: Outbox, number: u64, key: Key, start: v1::StartSession, mut from: Outlet) {
    let end = match open(agent, &key, &start).await {
        Ok((mut reader, mut writer)) => {
            let end = tokio::select! {
                end = down(&mut writer, &mut from) => end,
                end = self::up(&up, number, &mut reader) => end,
            };
            if matches!(end, End::Left) {
                // A connection that is closed for what it has to say is not heard to its end.
                let _late = tokio::time::timeout(PARTING, reader.discard()).await;
            }
            end
        }
        Err((reason, message)) => End::Reason(reason, message),
    };
    if let End::Reason(reason, message) = end {
        // If this does not get through either, the stream is gone and the channel with it.
        let _gone = up.send_bulk(last_word(number, reason, &message)).await;
    }
}

async fn open(
    agent: &Agent,
    key: &Key,
    start: &v1::StartSession,
) -> Result<(SessionReader, SessionWriter), (Reason, String)> {
    let folder = agent.sandbox(key).map_err(|(reason, message)| (reason, message.to_owned()))?;
    let opened = SupervisorClient::new(&folder).session(start).await;
    opened.map_err(|error| match error {
        SupervisorError::Refused { reason, message } => (reason, message),
        // Nobody listens: before the start, or behind the end.
        SupervisorError::File { .. } if folder.exit().exists() => {
            (Reason::WrongState, "the rental has ended".to_owned())
        }
        SupervisorError::File { .. } => (Reason::WrongState, "the sandbox does not run yet".to_owned()),
        other => (other.reason(), other.in_one_line()),
    })
}

async fn down(writer: &mut SessionWriter, from: &mut Outlet) -> End {
    loop {
        let sent = match from.next().await {
            Ok(Some(input)) => writer.send(&input).await,
            Ok(None) => {
                // Heard when the supervisor is through with what was said before.
                let _gone = writer.finish().await;
                return End::Left;
            }
            Err(Overrun) => {
                let text = format!("more than {BYTES} bytes or {MESSAGES} messages wait to be taken");
                return End::Reason(Reason::Overloaded, text);
            }
        };
        if let Err(error) = sent {
            // Why it hung up is in what it said last, unless it was killed.
            tracing::debug!(error = error.in_one_line(), "a session's connection broke");
            return std::future::pending().await;
        }
    }
}

async fn up(up: &Outbox, number: u64, reader: &mut SessionReader) -> End {
    let mut ended = false;
    loop {
        let said = match reader.next().await {
            Ok(Some(said)) => said,
            Ok(None) | Err(_) if ended => return End::Said,
            Ok(None) | Err(_) => {
                return End::Reason(
                    Reason::Unavailable,
                    "the sandbox's supervisor is gone; the rental may be over".to_owned(),
                );
            }
        };
        let last = !said.reason.is_empty();
        ended |= said
            .output
            .as_ref()
            .is_some_and(|output| matches!(output.message, Some(v1::session_output::Message::End(_))));
        if up.send_bulk(Up::Session(v1::SessionUp { channel: number, ..said })).await.is_err() || last {
            return End::Said;
        }
    }
}

/// The end of a session's channel that is not the session's.
pub(super) fn last_word(channel: u64, reason: Reason, message: &str) -> Up {
    let (reason, message) = (reason.as_str().to_owned(), message.to_owned());
    Up::Session(v1::SessionUp { channel, reason, message, output: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(size: usize) -> v1::SessionInput {
        let data = v1::SessionData { data: vec![0; size].into(), ..v1::SessionData::default() };
        v1::SessionInput { message: Some(v1::session_input::Message::Data(data)) }
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_and_in_number() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for (size, most) in [(16 << 10, BYTES >> 14), (1, MESSAGES)] {
                let (mut inlet, mut outlet) = Inlet::new();
                for _ in 0..2 * most {
                    inlet.put(input(size));
                }
                assert!(outlet.broken.try_recv().is_ok(), "nothing told of {size}");
                drop(inlet);
                let mut held = 0;
                while let Ok(Some(_)) = outlet.next().await {
                    held += 1;
                }
                assert!(held <= most && held + 1 >= most, "{held} of {size}");
            }
            // The control: taken as it comes, nothing breaks.
            let (mut inlet, mut outlet) = Inlet::new();
            for _ in 0..10 * MESSAGES {
                inlet.put(input(16 << 10));
                assert!(outlet.next().await.unwrap().is_some());
            }
            assert!(outlet.broken.try_recv().is_err());
        });
    }
}
