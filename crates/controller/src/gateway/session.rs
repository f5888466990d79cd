//! The way to a replica's worker: a session in its sandbox, over whatever connections there are to its node.
//!
//! A session outlives the node's agent and its connection: what was not taken is said again from where the sandbox's
//! supervisor says, and what comes is asked for from where we are. What a session does not outlive is its supervisor,
//! [`AWAY`] without us, and another gateway that comes while we are away.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use sluice_lifecycle::TaskKey;
use sluice_proto::v1;
use sluice_proto::v1::session_input::Message as In;
use sluice_proto::v1::session_output::Message as Out;
use sluice_types::{NodeId, Reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, split};
use tokio::time::Instant;

use crate::link::{Hub, SessionLink};

/// Bytes on their way in each direction here.
const BUFFER: usize = 64 << 10;
/// Bytes of one message.
const PIECE: usize = 16 << 10;
/// Bytes under way to the session that it has not taken.
const WINDOW: usize = 128 << 10;
/// Bytes and pieces from it that are not acknowledged at once: of either, much less than may be under way.
const UNSAID: (u64, u32) = (16 << 10, 64);
/// Between two tries to attach.
const PAUSE: Duration = Duration::from_millis(100);
/// Nobody is attached for so long: the supervisor has closed it.
const AWAY: Duration = Duration::from_secs(12);

/// Opens a way to the engine of a task. It ends when the session does, and the session when it is dropped.
pub(super) fn open(hub: Arc<Hub>, node: NodeId, key: TaskKey, id: String) -> DuplexStream {
    let (near, far) = tokio::io::duplex(BUFFER);
    let (taken, waiting, received) = (0, VecDeque::new(), 0);
    let session = Session { hub, node, key, id, opened: false, taken, waiting, received, told: 0, pieces: 0 };
    tokio::spawn(session.run(far));
    near
}

struct Session {
    hub: Arc<Hub>,
    node: NodeId,
    key: TaskKey,
    id: String,
    /// It was open once: where it is not any more it is over.
    opened: bool,
    /// Bytes that it has taken.
    taken: u64,
    /// Bytes behind those that it may not have.
    waiting: VecDeque<u8>,
    /// Bytes that came from it.
    received: u64,
    /// How many of them were acknowledged.
    told: u64,
    /// Pieces that came since.
    pieces: u32,
}

/// How an attachment ended.
enum End {
    /// It is over.
    Over,
    /// It is to be attached to again; whether it had been.
    Cut { attached: bool },
}

impl Session {
    async fn run(mut self, io: DuplexStream) {
        let (mut from, mut to) = split(io);
        let mut until = Instant::now() + AWAY;
        while let End::Cut { attached } = self.attach(&mut from, &mut to).await {
            if attached {
                until = Instant::now() + AWAY;
            } else if Instant::now() > until {
                tracing::info!(node = %self.node, attempt = %self.key.attempt, "a replica was not reached in time");
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Attaches, and carries bytes until the attachment ends.
    async fn attach(&mut self, from: &mut ReadHalf<DuplexStream>, to: &mut WriteHalf<DuplexStream>) -> End {
        let engine = v1::session_program::Program::Engine(v1::SessionEngine {});
        let start = v1::StartSession {
            session_id: self.id.clone(),
            program: (!self.opened).then_some(v1::SessionProgram { program: Some(engine) }),
            output_offset: self.received,
            ..v1::StartSession::default()
        };
        let Some(link) = self.hub.open_session(self.node, &self.key, start).await else {
            return End::Cut { attached: false };
        };
        let (mut attached, mut buffer) = (false, vec![0; PIECE]);
        loop {
            let room = WINDOW.saturating_sub(self.waiting.len()).min(PIECE);
            tokio::select! {
                up = link.next() => {
                    let Some(up) = up else { return End::Cut { attached } };
                    match self.on_up(up, &link, to, attached).await {
                        Ok(is) => attached = is,
                        Err(end) => return end,
                    }
                }
                read = from.read(&mut buffer[..room]), if attached && room > 0 => match read {
                    Ok(size @ 1..) => {
                        let offset = self.taken + self.waiting.len() as u64;
                        self.waiting.extend(&buffer[..size]);
                        if !send(&link, offset, buffer[..size].to_vec()).await {
                            return End::Cut { attached };
                        }
                    }
                    Ok(0) | Err(_) => {
                        // Nobody wants it any more.
                        let _gone = say(&link, In::Close(true)).await;
                        return End::Over;
                    }
                },
                () = link.stop.cancelled() => return End::Cut { attached },
            }
        }
    }

    /// Takes what the session says; whether it is attached to.
    async fn on_up(
        &mut self,
        up: v1::SessionUp,
        link: &SessionLink,
        to: &mut WriteHalf<DuplexStream>,
        attached: bool,
    ) -> Result<bool, End> {
        let Some(message) = up.output.and_then(|output| output.message) else {
            // Not there yet, or the way to it broke; what was there and is gone stays so.
            let reason: Reason = up.reason.parse().unwrap_or(Reason::Unavailable);
            let gone = self.opened && matches!(reason, Reason::NotFound | Reason::WrongState);
            return Err(if gone { End::Over } else { End::Cut { attached } });
        };
        match message {
            Out::Opened(opened) => {
                self.opened = true;
                self.on_taken(opened.taken)?;
                self.say_again(link).await?;
                return Ok(true);
            }
            Out::Taken(taken) => self.on_taken(taken)?,
            Out::Data(data) => self.on_data(data, link, to).await?,
            Out::End(_) => return Err(End::Over),
            Out::Notice(_) => {}
        }
        Ok(attached)
    }

    fn on_taken(&mut self, taken: u64) -> Result<(), End> {
        let news = taken.saturating_sub(self.taken);
        // More than was sent, or less than it had: another session under this name. It cannot be gone on with.
        let news = usize::try_from(news).ok().filter(|news| *news <= self.waiting.len());
        let (Some(news), true) = (news, taken >= self.taken) else { return Err(End::Over) };
        self.waiting.drain(..news);
        self.taken = taken;
        Ok(())
    }

    async fn say_again(&mut self, link: &SessionLink) -> Result<(), End> {
        let mut offset = self.taken;
        for piece in self.waiting.make_contiguous().chunks(PIECE) {
            if !send(link, offset, piece.to_vec()).await {
                return Err(End::Cut { attached: true });
            }
            offset += piece.len() as u64;
        }
        Ok(())
    }

    async fn on_data(
        &mut self,
        data: v1::SessionData,
        link: &SessionLink,
        to: &mut WriteHalf<DuplexStream>,
    ) -> Result<(), End> {
        // What we have comes again where the acknowledgement was lost; a gap never comes.
        let known = self.received.checked_sub(data.offset).and_then(|known| usize::try_from(known).ok());
        let Some(known) = known else { return Err(End::Cut { attached: true }) };
        let Some(new) = data.data.get(known..).filter(|new| !new.is_empty()) else { return Ok(()) };
        // Of what the program says on its error stream nothing is for us, but it counts.
        if data.stream() == v1::SessionStream::Unspecified && to.write_all(new).await.is_err() {
            let _gone = say(link, In::Close(true)).await;
            return Err(End::Over);
        }
        self.received += new.len() as u64;
        self.pieces += 1;
        if self.received - self.told >= UNSAID.0 || self.pieces >= UNSAID.1 {
            (self.told, self.pieces) = (self.received, 0);
            let told = say(link, In::Acknowledged(self.received)).await;
            return if told { Ok(()) } else { Err(End::Cut { attached: true }) };
        }
        Ok(())
    }
}

async fn send(link: &SessionLink, offset: u64, data: Vec<u8>) -> bool {
    let data = v1::SessionData { offset, data: data.into(), ..v1::SessionData::default() };
    say(link, In::Data(data)).await
}

/// Says something, once there is room; `false` where the node is gone.
async fn say(link: &SessionLink, message: In) -> bool {
    let room = link.room().await;
    room.map(|room| room.send(v1::SessionInput { message: Some(message) })).is_some()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use sluice_proto::v1::attach_response::Message as Down;
    use sluice_types::{AttemptId, Generation, LeaseId};
    use tokio::sync::mpsc;

    use super::*;

    const NODE: NodeId = NodeId::from_raw(5);
    const KEY: TaskKey =
        TaskKey { attempt: AttemptId::from_raw(1), lease: LeaseId::from_raw(2), generation: Generation::new(3) };

    /// A sandbox's supervisor: it has an engine that says back what it is told, and outlives connections to its node.
    #[derive(Default)]
    struct Supervisor {
        open: bool,
        /// What the engine took, and said: the same bytes.
        taken: Vec<u8>,
    }

    /// One connection of the node. It carries so many messages of the client, then breaks: what is under way is lost.
    async fn connection(hub: Arc<Hub>, supervisor: Arc<Mutex<Supervisor>>, messages: usize) {
        let (sessions, mut from) = mpsc::channel(64);
        let _seat = hub.seat_node(NODE, mpsc::channel(1).0, sessions);
        let mut channel = 0;
        let mut sent = 0;
        for _ in 0..messages {
            let Some(message) = from.recv().await.and_then(|message: v1::AttachResponse| message.message) else {
                return;
            };
            let say = |output| {
                hub.session_up(NODE, v1::SessionUp { channel, output: Some(output), ..v1::SessionUp::default() })
            };
            let say = |message| say(v1::SessionOutput { message: Some(message) });
            match message {
                Down::Open(open) => {
                    channel = open.channel;
                    let Some(v1::channel_open::Purpose::Session(session)) = open.purpose else { panic!() };
                    let start = session.start.unwrap();
                    let mut supervisor = supervisor.lock().unwrap();
                    assert!(supervisor.open || start.program.is_some());
                    let created = !std::mem::replace(&mut supervisor.open, true);
                    sent = usize::try_from(start.output_offset).unwrap();
                    let taken = supervisor.taken.len() as u64;
                    let opened = v1::SessionOutput { message: Some(Out::Opened(v1::SessionOpened { taken, created })) };
                    hub.session_up(NODE, v1::SessionUp { channel, output: Some(opened), ..v1::SessionUp::default() });
                }
                Down::Session(v1::SessionDown { input: Some(input), .. }) => match input.message.unwrap() {
                    In::Data(data) => {
                        let mut supervisor = supervisor.lock().unwrap();
                        let offset = usize::try_from(data.offset).unwrap();
                        assert!(offset <= supervisor.taken.len(), "a gap");
                        let new = data.data.slice(supervisor.taken.len() - offset..);
                        supervisor.taken.extend(&new);
                        say(Out::Taken(supervisor.taken.len() as u64));
                    }
                    In::Acknowledged(_) | In::Close(_) => {}
                    other => panic!("{other:?}"),
                },
                Down::Session(_) => {}
                other => panic!("{other:?}"),
            }
            let supervisor = supervisor.lock().unwrap();
            if channel > 0 && sent < supervisor.taken.len() {
                let data = supervisor.taken[sent..].to_vec();
                let offset = sent as u64;
                sent = supervisor.taken.len();
                let data = v1::SessionData { offset, data: data.into(), ..v1::SessionData::default() };
                let output = Some(v1::SessionOutput { message: Some(Out::Data(data)) });
                hub.session_up(NODE, v1::SessionUp { channel, output, ..v1::SessionUp::default() });
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_byte_is_lost_or_repeated_wherever_the_connection_to_the_node_breaks() {
        for messages in 1..12 {
            let hub = Hub::new(Arc::default());
            let supervisor = Arc::<Mutex<Supervisor>>::default();
            let (near, mut far) = (Arc::clone(&hub), open(Arc::clone(&hub), NODE, KEY, "id".to_owned()));
            let node = tokio::spawn(async move {
                // The first word opens and carries nothing, so that one message alone never gets anywhere.
                for round in 0.. {
                    connection(Arc::clone(&near), Arc::clone(&supervisor), messages + round % 3).await;
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
            });
            let said: Vec<u8> = (0..60_000_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
            for piece in said.chunks(1777) {
                far.write_all(piece).await.unwrap();
                let mut back = vec![0; piece.len()];
                far.read_exact(&mut back).await.unwrap();
                assert_eq!(back, piece, "{messages}");
            }
            node.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_does_not_come_back_is_given_up() {
        let hub = Hub::new(Arc::default());
        let supervisor = Arc::<Mutex<Supervisor>>::default();
        let mut far = open(Arc::clone(&hub), NODE, KEY, "id".to_owned());
        let begun = Instant::now();
        assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0, "nobody is there");
        assert!((AWAY..AWAY * 2).contains(&begun.elapsed()));
        let mut far = open(Arc::clone(&hub), NODE, KEY, "id".to_owned());
        // It is opened, and then the node is gone.
        connection(Arc::clone(&hub), Arc::clone(&supervisor), 1).await;
        far.write_all(b"lost").await.unwrap();
        assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0);
    }
}
