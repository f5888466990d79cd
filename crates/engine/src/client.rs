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

#[cfg(test)]
mod tests {
    use sluice_proto::v1::{EngineFinish, engine_request};
    use tokio::io::DuplexStream;

    use super::*;

    /// A worker that says what a test lets it say.
    struct Fake {
        reader: MessageReader<ReadHalf<DuplexStream>>,
        writer: WriteHalf<DuplexStream>,
    }

    type Task = JoinHandle<Result<(), DriveError>>;

    impl Fake {
        async fn connect() -> (Self, Driver, Task) {
            let (ours, theirs) = tokio::io::duplex(1 << 20);
            let (reader, writer) = tokio::io::split(theirs);
            let mut fake = Self { reader: MessageReader::new(reader), writer };
            let ready = EngineReady { window: 2, connection_sequences: 3, ..EngineReady::default() };
            fake.say(engine_reply::Message::Ready(ready)).await;
            let (driver, task) = Driver::connect(ours).await.unwrap();
            (fake, driver, task)
        }

        async fn say(&mut self, message: engine_reply::Message) {
            let mut bytes = BytesMut::new();
            put(&EngineReply { message: Some(message) }, &mut bytes).unwrap();
            self.writer.write_all(&bytes).await.unwrap();
        }

        async fn token(&mut self, sequence: u64, position: u32) {
            let token = EngineToken { sequence, position, ..EngineToken::default() };
            self.say(engine_reply::Message::Token(token)).await;
        }

        async fn asked(&mut self) -> engine_request::Message {
            self.reader.next::<EngineRequest>().await.unwrap().unwrap().message.unwrap()
        }
    }

    fn finished(sequence: u64) -> engine_reply::Message {
        let finish = EngineFinish::Length.into();
        engine_reply::Message::Finished(EngineFinished { sequence, finish, ..EngineFinished::default() })
    }

    #[tokio::test]
    async fn sequences_share_a_connection_and_get_their_own_events() {
        let (mut fake, driver, _task) = Fake::connect().await;
        let mut first = driver.generate(EngineGenerate::default()).unwrap();
        let mut second = driver.generate(EngineGenerate::default()).unwrap();
        for number in [1, 2] {
            assert!(matches!(fake.asked().await, engine_request::Message::Generate(asked) if asked.sequence == number));
        }
        fake.token(2, 0).await;
        fake.token(1, 0).await;
        fake.token(7, 0).await;
        fake.say(finished(1)).await;
        assert!(matches!(first.next().await, Some(Event::Token(token)) if token.sequence == 1));
        assert!(matches!(first.next().await, Some(Event::Finished(_))));
        assert_eq!(first.next().await, None);
        assert!(matches!(second.next().await, Some(Event::Token(token)) if token.sequence == 2));
        // Of one that is over nothing is said any more.
        first.taken(1);
        drop(first);
        second.taken(1);
        assert!(
            matches!(fake.asked().await, engine_request::Message::Taken(taken) if (taken.sequence, taken.tokens) == (2, 1))
        );
        drop(second);
        assert!(matches!(fake.asked().await, engine_request::Message::Cancel(cancel) if cancel.sequence == 2));
    }

    #[tokio::test]
    async fn the_connection_ends_with_its_last_handle() {
        let (mut fake, driver, task) = Fake::connect().await;
        let sequence = driver.generate(EngineGenerate::default()).unwrap();
        drop(driver);
        fake.asked().await;
        drop(sequence);
        assert!(matches!(fake.asked().await, engine_request::Message::Cancel(_)));
        task.await.unwrap().unwrap();
        assert!(fake.reader.next::<EngineRequest>().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_lost_worker_ends_events_and_refuses_new_sequences() {
        let (fake, driver, task) = Fake::connect().await;
        let mut sequence = driver.generate(EngineGenerate::default()).unwrap();
        drop(fake);
        assert_eq!(sequence.next().await, None);
        assert!(task.await.unwrap().is_err());
        assert!(driver.is_over());
        assert!(matches!(driver.generate(EngineGenerate::default()), Err(DriveError::Closed)));
    }

    #[tokio::test]
    async fn a_worker_beyond_its_window_fills_no_memory() {
        let (mut fake, driver, task) = Fake::connect().await;
        let _sequence = driver.generate(EngineGenerate::default()).unwrap();
        for position in 0..7 {
            fake.token(1, position).await;
        }
        assert!(matches!(task.await.unwrap(), Err(DriveError::Protocol(_))));
    }

    #[tokio::test]
    async fn what_the_worker_has_no_room_for_is_refused_here() {
        let (_fake, driver, _task) = Fake::connect().await;
        let _open: Vec<Sequence> = (0..3).map(|_| driver.generate(EngineGenerate::default()).unwrap()).collect();
        assert!(matches!(driver.generate(EngineGenerate::default()), Err(DriveError::Busy(3))));
        let long = EngineGenerate { tenant: "t".repeat(MESSAGE_BOUND), ..EngineGenerate::default() };
        assert!(matches!(driver.generate(long), Err(DriveError::TooLong(_))));
    }

    #[tokio::test]
    async fn what_is_no_worker_is_told_from_one() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        theirs.write_all(b"HTTP/1.1 400 Bad Request\r\n").await.unwrap();
        drop(theirs);
        assert!(matches!(Driver::connect(ours).await, Err(DriveError::Wire(_))));
        let (ours, theirs) = tokio::io::duplex(64);
        drop(theirs);
        assert!(matches!(Driver::connect(ours).await, Err(DriveError::Closed)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_says_nothing_is_lost() {
        let (mut fake, driver, task) = Fake::connect().await;
        fake.say(engine_reply::Message::Load(EngineLoad { running: 4, ..EngineLoad::default() })).await;
        driver.load().wait_for(|load| load.running == 4).await.unwrap();
        assert!(matches!(task.await.unwrap(), Err(DriveError::Silent(_))));
    }
}
