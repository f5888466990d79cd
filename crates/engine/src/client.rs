//! For whoever drives workers: many sequences over one connection. Needs no engine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use prost::Message as _;
use sluice_proto::v1::{
    EngineAdmitted, EngineCancel, EngineFinished, EngineGenerate, EngineLoad, EngineReady, EngineReply, EngineRequest,
    EngineTaken, EngineToken, engine_reply, engine_request,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::wire::{MESSAGE_BOUND, MessageReader, WireError, put};

/// How long a worker may take to say what it is.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// A worker tells its load every second; one that says nothing for so long is lost.
const SILENT_BOUND: Duration = Duration::from_secs(30);
/// Told of a sequence beside its tokens: that it was admitted, and that it is over.
const BESIDE_TOKENS: usize = 4;

/// Why a worker cannot be driven.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The bytes broke.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It said nothing for too long.
    #[error("the worker said nothing for {} s", .0.as_secs())]
    Silent(Duration),
    /// It left.
    #[error("the worker closed the connection")]
    Closed,
    /// It broke the protocol.
    #[error("the worker broke the protocol: {0}")]
    Protocol(&'static str),
    /// As many sequences are open as the worker allows.
    #[error("the worker allows {0} sequences on a connection, and as many are open")]
    Busy(u32),
    /// It is too long for a message.
    #[error("what is to be continued has {0} bytes as a message; it can have {MESSAGE_BOUND}")]
    TooLong(usize),
}

/// What happens to a sequence.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It was admitted.
    Admitted(EngineAdmitted),
    /// A token of it.
    Token(EngineToken),
    /// It is over; nothing follows.
    Finished(EngineFinished),
}

/// A worker's other end. Cheap to clone; the connection lives as long as one clone or one sequence does.
#[derive(Debug, Clone)]
pub struct Driver {
    handle: Arc<Handle>,
    ready: EngineReady,
    load: watch::Receiver<EngineLoad>,
}

/// A sequence. Dropped before it is over, it is cancelled.
#[derive(Debug)]
pub struct Sequence {
    number: u64,
    events: mpsc::Receiver<Event>,
    handle: Arc<Handle>,
}

/// When the last one goes, so does the connection.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.change(|table| table.left = true);
    }
}

/// What handles and the connection's task share. Everything in it is bounded by the sequences that are open.
#[derive(Debug, Default)]
struct Shared {
    table: Mutex<Table>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    /// Where the events of open sequences go.
    open: BTreeMap<u64, mpsc::Sender<Event>>,
    /// To be sent.
    generate: Vec<EngineGenerate>,
    cancel: BTreeSet<u64>,
    taken: BTreeMap<u64, u32>,
    /// The connection is over.
    over: bool,
    /// Nobody holds a handle any more.
    left: bool,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        let changed = change(&mut self.table());
        self.wake.notify_one();
        changed
    }
}

impl Driver {
    /// Takes a connection to a worker. The task that carries it ends with the connection, or when nobody holds this or a
    /// sequence of it any more; its result says why.
    ///
    /// # Errors
    ///
    /// Where what is on the other side is no worker.
    pub async fn connect<S>(stream: S) -> Result<(Self, JoinHandle<Result<(), DriveError>>), DriveError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (reader, writer) = tokio::io::split(stream);
        let mut reader = MessageReader::new(reader);
        let first = timeout(READY_WITHIN, reader.next::<EngineReply>()).await;
        let first = first.map_err(|_| DriveError::Silent(READY_WITHIN))??.ok_or(DriveError::Closed)?;
        let Some(engine_reply::Message::Ready(ready)) = first.message else {
            return Err(DriveError::Protocol("its first message does not say what it is"));
        };
        let (told, load) = watch::channel(EngineLoad::default());
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(carry(Arc::clone(&shared), reader, writer, told));
        Ok((Self { handle: Arc::new(Handle { shared }), ready, load }, task))
    }

    /// What the worker is.
    #[must_use]
    pub fn ready(&self) -> &EngineReady {
        &self.ready
    }

    /// How it stands, as it told last.
    #[must_use]
    pub fn load(&self) -> watch::Receiver<EngineLoad> {
        self.load.clone()
    }

    /// Whether the connection is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.handle.shared.table().over
    }

    /// Sequences that are open on the connection.
    #[must_use]
    pub fn open(&self) -> usize {
        self.handle.shared.table().open.len()
    }

    /// Opens a sequence; its number is chosen here, whatever `generate` has. Whoever reads it must tell how far they have taken
    /// it ([`Sequence::taken`]), or it pauses.
    ///
    /// # Errors
    ///
    /// Where the connection is over or carries as many as the worker allows, or where it is too long for a message.
    pub fn generate(&self, mut generate: EngineGenerate) -> Result<Sequence, DriveError> {
        // The number that it will get is a few bytes more.
        let length = generate.encoded_len() + 32;
        if length > MESSAGE_BOUND {
            return Err(DriveError::TooLong(length));
        }
        let most = self.ready.connection_sequences;
        let room = (self.ready.window as usize).saturating_add(BESIDE_TOKENS);
        let opened = self.handle.shared.change(|table| {
            if table.over {
                return Err(DriveError::Closed);
            }
            if table.open.len() >= most as usize {
                return Err(DriveError::Busy(most));
            }
            let (sender, events) = mpsc::channel(room);
            table.last += 1;
            generate.sequence = table.last;
            table.open.insert(table.last, sender);
            table.generate.push(generate);
            Ok((table.last, events))
        });
        let (number, events) = opened?;
        Ok(Sequence { number, events, handle: Arc::clone(&self.handle) })
    }
}

impl Sequence {
    /// What happens next; `None` after [`Event::Finished`], or where the connection was lost before it.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// So many tokens of it are taken, those of earlier workers included.
    pub fn taken(&self, tokens: u32) {
        self.handle.shared.change(|table| {
            if table.open.contains_key(&self.number) {
                table.taken.insert(self.number, tokens);
            }
        });
    }

    /// Ends it; [`Event::Finished`] still comes.
    pub fn cancel(&self) {
        self.handle.shared.change(|table| {
            if table.open.contains_key(&self.number) {
                table.cancel.insert(self.number);
            }
        });
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Carries a connection to its end.
async fn carry<S>(
    shared: Arc<Shared>,
    mut reader: MessageReader<ReadHalf<S>>,
    mut writer: WriteHalf<S>,
    load: watch::Sender<EngineLoad>,
) -> Result<(), DriveError>
where
    S: AsyncRead + AsyncWrite,
{
    let read = async {
        loop {
            let reply = timeout(SILENT_BOUND, reader.next::<EngineReply>()).await;
            let reply = reply.map_err(|_| DriveError::Silent(SILENT_BOUND))??.ok_or(DriveError::Closed)?;
            hand_out(&shared, reply, &load)?;
        }
    };
    let write = async {
        loop {
            let (bytes, left) = to_send(&shared)?;
            if !bytes.is_empty() {
                writer.write_all(&bytes).await.map_err(WireError::from)?;
                writer.flush().await.map_err(WireError::from)?;
            } else if left {
                return Ok(());
            } else {
                shared.wake.notified().await;
            }
        }
    };
    let ended = tokio::select! {
        ended = read => ended,
        ended = write => ended,
    };
    let mut table = shared.table();
    // Sequences see the end of their events.
    (table.over, table.open) = (true, BTreeMap::new());
    ended
}

/// What is to be sent, and whether nobody is there any more.
fn to_send(shared: &Shared) -> Result<(BytesMut, bool), DriveError> {
    use engine_request::Message;
    let mut table = shared.table();
    let mut bytes = BytesMut::new();
    let generate = std::mem::take(&mut table.generate).into_iter().map(Message::Generate);
    let taken = std::mem::take(&mut table.taken).into_iter();
    let taken = taken.map(|(sequence, tokens)| Message::Taken(EngineTaken { sequence, tokens }));
    let cancel = std::mem::take(&mut table.cancel).into_iter();
    let cancel = cancel.map(|sequence| Message::Cancel(EngineCancel { sequence }));
    for message in generate.chain(taken).chain(cancel) {
        put(&EngineRequest { message: Some(message) }, &mut bytes)?;
    }
    Ok((bytes, table.left))
}

fn hand_out(shared: &Shared, reply: EngineReply, load: &watch::Sender<EngineLoad>) -> Result<(), DriveError> {
    use engine_reply::Message;
    let (number, event) = match reply.message {
        Some(Message::Load(told)) => {
            load.send_replace(told);
            return Ok(());
        }
        Some(Message::Ready(_)) | None => return Err(DriveError::Protocol("it said twice what it is")),
        Some(Message::Admitted(admitted)) => (admitted.sequence, Event::Admitted(admitted)),
        Some(Message::Token(token)) => (token.sequence, Event::Token(token)),
        Some(Message::Finished(finished)) => (finished.sequence, Event::Finished(finished)),
    };
    let mut table = shared.table();
    let over = matches!(event, Event::Finished(_));
    let Some(sender) = table.open.get(&number) else { return Ok(()) };
    // Nobody reads it any more: a cancel is on its way. But a worker that is beyond its window must not fill our memory.
    if let Err(mpsc::error::TrySendError::Full(_)) = sender.try_send(event) {
        return Err(DriveError::Protocol("a sequence is further ahead than its window"));
    }
    if over {
        table.open.remove(&number);
        table.taken.remove(&number);
        table.cancel.remove(&number);
    }
    Ok(())
}
