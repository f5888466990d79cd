//! `SessionService`: the way of a client to a session in one of its sandboxes.
//!
//! The controller passes messages on and keeps none: what is under way is bounded by both ends' windows, and what is cut
//! off begins again where the two ends say. Bytes that break the bounds end the attachment, never the session.

mod waiting;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::OptionFuture;
use sluice_lifecycle::TaskKey;
use sluice_lifecycle::model::{Attempt, Job, JobKind, JobState, TaskState};
use sluice_proto::error::{refuse, refuse_field};
use sluice_proto::v1;
use sluice_proto::v1::session_input::Message as Input;
use sluice_proto::v1::session_output::Message as Output;
use sluice_proto::v1::session_service_server::SessionService;
use sluice_types::{NodeId, Reason, TenantId};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use self::waiting::Waiting;
use super::{Api, store_status};
use crate::link::{Answers, SessionLink};
use crate::pace::Pace;
use crate::peer::Peer;
use crate::principal::Principal;

/// How long a client may take to say what it wants, and a sandbox to be there.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether the caller's key still opens doors.
const LOOK: Duration = Duration::from_secs(2);
/// Between two looks whether a sandbox is there, at least.
const PAUSE: Duration = Duration::from_millis(20);
/// What an attachment costs here and on its node, beside what it carries, as quarters of small reads: 80 a second for a
/// tenant that does nothing else.
const COST: usize = 200;
/// Bytes per second over all sessions of a tenant.
const RATE: u64 = 32 << 20;
/// Bytes of one message.
const PIECE: usize = 16 << 10;
/// Attachments of one tenant at a time: a quarter of what one node takes.
const PER_TENANT: usize = 256;
/// Attachments at a time.
const IN_ALL: usize = 2048;

type Answer = Result<v1::AttachSessionResponse, Status>;

/// What clients of sessions may cost the controller.
#[derive(Debug, Clone, Copy)]
pub struct ChannelLimits {
    /// Bytes per second, over all sessions of a tenant and in both directions.
    pub rate: u64,
    /// Bytes of input under way that a session has not told as taken.
    pub window: u64,
    /// Messages of input of one attachment that may wait for its node.
    pub waiting: usize,
    /// Messages of output of one attachment that may wait for its client.
    pub queue: usize,
    /// Whether a client is believed that it has read what it was not handed.
    pub credulous: bool,
    /// Reads of few bytes per second, in quarters, over all connections of a tenant.
    pub reads: u64,
}

impl ChannelLimits {
    /// None that can be reached: for the control of what they hold back.
    pub const NONE: Self = Self { rate: u64::MAX, reads: u64::MAX, ..Self::HOARDING };
    /// None of those on what waits in memory: for their control alone, as the others keep a flood from coming at all.
    pub const HOARDING: Self =
        Self { window: u64::MAX, waiting: usize::MAX, queue: 1 << 24, credulous: true, ..Self::USUAL };
    const USUAL: Self = Self {
        rate: RATE,
        window: 128 << 10,
        waiting: waiting::MOST,
        queue: 16,
        credulous: false,
        reads: crate::peer::READS,
    };
}

impl Default for ChannelLimits {
    fn default() -> Self {
        Self::USUAL
    }
}

/// How many attachments there are, by tenant, and how fast they are.
#[derive(Debug, Default)]
pub(crate) struct Attachments {
    limits: ChannelLimits,
    open: Mutex<HashMap<TenantId, (usize, Arc<Pace>)>>,
}

/// One of them.
struct Place {
    of: Arc<Attachments>,
    tenant: TenantId,
    pace: Arc<Pace>,
}

impl Attachments {
    pub(crate) fn new(limits: ChannelLimits) -> Arc<Self> {
        Arc::new(Self { limits, open: Mutex::default() })
    }

    fn take(self: &Arc<Self>, tenant: TenantId) -> Result<Place, Status> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = open.values().map(|(count, _)| count).sum();
        let (own, pace) = open.entry(tenant).or_insert_with(|| (0, Arc::new(Pace::new(self.limits.rate))));
        if *own >= PER_TENANT || all >= IN_ALL {
            return Err(refuse(Reason::Overloaded, format!("{PER_TENANT} sessions of a tenant are attached at most")));
        }
        *own += 1;
        Ok(Place { of: Arc::clone(self), tenant, pace: Arc::clone(pace) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.of.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((own, _)) = open.get_mut(&self.tenant) {
            *own -= 1;
            if *own == 0 {
                open.remove(&self.tenant);
            }
        }
    }
}

#[tonic::async_trait]
impl SessionService for Api {
    type AttachSessionStream = Answers<v1::AttachSessionResponse>;

    async fn attach_session(
        &self,
        request: Request<Streaming<v1::AttachSessionRequest>>,
    ) -> Result<Response<Self::AttachSessionStream>, Status> {
        let who = self.who(&request, "sluice.v1.SessionService/AttachSession")?;
        if let Some(peer) = request.extensions().get::<Peer>() {
            peer.pays(COST);
        }
        let mut inbound = request.into_inner();
        let first = tokio::time::timeout(PATIENCE, inbound.message()).await;
        let first = first.map_err(|_| refuse(Reason::DeadlineExceeded, "the first message did not come"))??;
        let start = match first.and_then(|first| first.message) {
            Some(v1::attach_session_request::Message::Start(start)) => start,
            _ => return Err(refuse_field("start", "the first message is start")),
        };
        let job = self.job(&who, "start.job", &start.job).await?;
        let place = self.attachments.take(job.tenant)?;
        check(&start, &job)?;
        let (sender, receiver) = mpsc::channel(self.attachments.limits.queue);
        let handed = Handed::new(start.output_offset);
        let (api, way) = (self.clone(), Way { sender, handed: handed.clone(), place });
        tokio::spawn(async move {
            let end = api.attach(&who, job, start, inbound, &way).await;
            if let Err(status) = end {
                // A client that has gone wants no reason.
                let _gone = way.sender.send(Err(status)).await;
            }
        });
        let answers = ReceiverStream::new(receiver).inspect(move |answer| handed.note(answer));
        Ok(Response::new(Box::pin(answers)))
    }
}

/// How far the output was handed to the client's connection. What the client says that it has is believed up to here: one
/// that took note of bytes it never read would have the session send on, and all of it wait in our memory.
#[derive(Debug, Clone)]
struct Handed(Arc<AtomicU64>);

impl Handed {
    fn new(offset: u64) -> Self {
        Self(Arc::new(AtomicU64::new(offset)))
    }

    fn note(&self, answer: &Answer) {
        let message = answer.as_ref().ok().and_then(|answer| answer.output.as_ref()?.message.as_ref());
        if let Some(Output::Data(data)) = message {
            self.0.fetch_max(data.offset.saturating_add(data.data.len() as u64), Ordering::Relaxed);
        }
    }

    fn covers(&self, offset: u64) -> bool {
        offset <= self.0.load(Ordering::Relaxed)
    }
}

/// The way to a client.
struct Way {
    sender: mpsc::Sender<Answer>,
    handed: Handed,
    place: Place,
}

/// What can be seen without the node.
fn check(start: &v1::StartSession, job: &Job) -> Result<(), Status> {
    if job.spec.kind != JobKind::Rental {
        return Err(refuse(Reason::WrongState, "sessions are opened in rentals; a job has none: see sluice rent"));
    }
    if start.rank >= job.spec.tasks {
        return Err(refuse_field("start.rank", format!("the leg has {} sandboxes", job.spec.tasks)));
    }
    let program = start.program.as_ref().and_then(|program| program.program.as_ref());
    if matches!(program, Some(v1::session_program::Program::Engine(_))) {
        return Err(refuse_field("start.program", "engines are the gateway's; ask them through it"));
    }
    let id = &start.session_id;
    if id.is_empty() || id.len() > 36 || !id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        return Err(refuse_field("start.session_id", "a UUID"));
    }
    Ok(())
}

impl Api {
    /// Finds the sandbox, opens the way to its node and passes messages on until either end is gone.
    async fn attach(
        &self,
        who: &Principal,
        job: Job,
        start: v1::StartSession,
        inbound: Streaming<v1::AttachSessionRequest>,
        way: &Way,
    ) -> Result<(), Status> {
        let rank = start.rank;
        let (node, key) = tokio::select! {
            found = self.sandbox(job, rank) => found?,
            () = way.sender.closed() => return Ok(()),
        };
        let start = v1::StartSession { job: String::new(), rank: 0, ..start };
        let away = || refuse(Reason::Unavailable, "the node of the sandbox is not connected; attach again");
        let link = self.hub.open_session(node, &key, start).await.ok_or_else(away)?;
        Relay { api: self, who, link, way, taken: 0, waiting: Waiting::new(way.place.of.limits.waiting) }
            .run(inbound)
            .await
    }

    /// Where a leg's sandbox runs; waits for it while it is on its way.
    async fn sandbox(&self, mut job: Job, rank: u32) -> Result<(NodeId, TaskKey), Status> {
        let mut news = self.events.clone();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(id) = job.current
                && let Some(attempt) = self.store.attempts_by_ids(&[id]).await.map_err(store_status)?.pop()
                && let Some(found) = running(&attempt, rank)
            {
                return Ok(found);
            }
            let coming =
                matches!(job.state, JobState::Pending | JobState::Starting | JobState::Running | JobState::Migrating);
            if !coming {
                let message = format!("the rental is {}; there is nothing to attach to", job.state.as_str());
                return Err(refuse(Reason::WrongState, message));
            }
            // What changes is told by an event, but so is what changes elsewhere.
            tokio::time::sleep(PAUSE).await;
            let pause = deadline.min(Instant::now() + LOOK);
            if deadline <= Instant::now() {
                return Err(refuse(Reason::Unavailable, "the sandbox is not there yet; attach again"));
            }
            let _late = tokio::time::timeout_at(pause, news.changed()).await;
            let row = self.store.get_job(job.id).await.map_err(store_status)?;
            job = row.ok_or_else(|| super::not_found("job"))?;
        }
    }
}

/// The task of a rank, where it runs.
fn running(attempt: &Attempt, rank: u32) -> Option<(NodeId, TaskKey)> {
    let task = attempt.tasks.get(usize::try_from(rank).ok()?)?;
    let key = TaskKey { attempt: attempt.id, lease: task.lease, generation: attempt.generation };
    (task.state == TaskState::Running).then_some((task.device.node, key))
}

/// One attachment.
struct Relay<'a> {
    api: &'a Api,
    who: &'a Principal,
    link: SessionLink,
    way: &'a Way,
    /// Bytes of input that the session has told as taken.
    taken: u64,
    /// Input that its node has no room for yet.
    waiting: Waiting,
}

impl Relay<'_> {
    async fn run(mut self, mut inbound: Streaming<v1::AttachSessionRequest>) -> Result<(), Status> {
        let mut look = tokio::time::interval(LOOK);
        let mut speaks = true;
        // Kept from turn to turn: whoever asks for room anew stands at the end of the queue.
        let mut asked = None;
        // A client that takes nothing is heard all the same, and so is what its key may still do.
        let (way, mut going) = (self.way, None);
        // Until when no byte passes in either direction.
        let mut held: Option<Instant> = None;
        loop {
            if asked.is_none() && !self.waiting.is_empty() {
                asked = Some(Box::pin(self.link.room()));
            }
            tokio::select! {
                up = self.link.next(), if going.is_none() && held.is_none() => {
                    let Some(up) = up else {
                        return Err(refuse(Reason::Overloaded, "the session said more than may be under way; attach again"));
                    };
                    let message = self.take_up(up)?;
                    if let Output::Data(data) = &message {
                        held = way.place.pace.pass(data.data.len(), Instant::now());
                    }
                    going = Some(message);
                }
                room = way.sender.reserve(), if going.is_some() => {
                    // Without room the client is gone.
                    let (Ok(room), Some(message)) = (room, going.take()) else { return Ok(()) };
                    let last = matches!(message, Output::End(_));
                    let output = Some(v1::SessionOutput { message: Some(message) });
                    room.send(Ok(v1::AttachSessionResponse { output }));
                    if last {
                        return Ok(());
                    }
                }
                // Read always: behind input that the session does not take yet may stand what it waits for.
                said = inbound.message(), if speaks => match said? {
                    Some(said) => self.take_down(said)?,
                    // It listens on: half a connection is one.
                    None => speaks = false,
                },
                Some(room) = OptionFuture::from(asked.as_mut()), if held.is_none() => {
                    asked = None;
                    let room = room.ok_or_else(away)?;
                    if let Some(input) = self.waiting.next() {
                        if let Some(Input::Data(data)) = &input.message {
                            held = way.place.pace.pass(data.data.len(), Instant::now());
                        }
                        room.send(input);
                    }
                }
                () = tokio::time::sleep_until(held.unwrap_or_else(Instant::now)), if held.is_some() => held = None,
                _ = look.tick() => self.who.still(&self.api.directory)?,
                () = self.link.stop.cancelled() => return Err(away()),
                () = self.way.sender.closed() => return Ok(()),
            }
        }
    }

    /// Checks what comes from the session.
    fn take_up(&mut self, up: v1::SessionUp) -> Result<Output, Status> {
        let Some(message) = up.output.and_then(|output| output.message) else {
            let reason = up.reason.parse().unwrap_or(Reason::Unavailable);
            return Err(refuse(reason, up.message));
        };
        match &message {
            Output::Opened(v1::SessionOpened { taken, .. }) | Output::Taken(taken) => {
                self.taken = self.taken.max(*taken)
            }
            Output::Data(data) if data.data.len() > PIECE => {
                return Err(refuse(Reason::TooLarge, "the session sent a piece that is too large"));
            }
            Output::Data(_) | Output::End(_) | Output::Notice(_) => {}
        }
        Ok(message)
    }

    /// Checks what the client says and keeps it until its node has room.
    fn take_down(&mut self, said: v1::AttachSessionRequest) -> Result<(), Status> {
        let wrong = || refuse_field("input", "every message but the first is input");
        let Some(v1::attach_session_request::Message::Input(input)) = said.message else { return Err(wrong()) };
        match input.message.as_ref().ok_or_else(wrong)? {
            Input::Data(data) => {
                if data.data.len() > PIECE {
                    return Err(refuse(Reason::TooLarge, format!("at most {PIECE} bytes in one message")));
                }
                let end = data.offset.saturating_add(data.data.len() as u64);
                let window = self.way.place.of.limits.window;
                if end > self.taken.saturating_add(window) {
                    return Err(refuse(Reason::TooLarge, format!("at most {window} bytes that were not taken")));
                }
            }
            Input::Acknowledged(offset) if !self.way.place.of.limits.credulous && !self.way.handed.covers(*offset) => {
                return Err(refuse_field("input.acknowledged", "more was told as taken than was sent"));
            }
            Input::Signal(signal) if signal.len() > 16 => return Err(refuse_field("input.signal", "a signal's name")),
            _ => {}
        }
        let full = || refuse(Reason::Overloaded, "the sandbox's node takes nothing at present; attach again");
        self.waiting.add(input).then_some(()).ok_or_else(full)
    }
}

fn away() -> Status {
    refuse(Reason::Unavailable, "the connection to the node of the sandbox ended; attach again")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: u64, size: usize) -> Answer {
        let data = v1::SessionData { offset, data: vec![7; size].into(), ..Default::default() };
        Ok(v1::AttachSessionResponse { output: Some(v1::SessionOutput { message: Some(Output::Data(data)) }) })
    }

    #[test]
    fn what_was_not_handed_to_a_client_is_not_taken_for_read() {
        let handed = Handed::new(100);
        assert!(handed.covers(100) && !handed.covers(101));
        handed.note(&piece(100, 50));
        assert!(handed.covers(150) && !handed.covers(151));
        // What comes again takes nothing back, and a refusal is no output.
        handed.note(&piece(100, 10));
        handed.note(&Err(away()));
        assert!(handed.covers(150) && !handed.covers(151));
    }
}
