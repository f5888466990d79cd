//! The gateway's part of a request: from its hold to its bill, over as many replicas as it takes. The rules are those of
//! `controller::gateway` (its `pool` and `request`), in virtual time; all of it is lost with the controller.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use sluice_engine::runner::Origin;
use sluice_lifecycle::Command;
use sluice_lifecycle::model::{AttemptState, Goal, JobState};
use sluice_proto::v1::engine_reply::Message;
use sluice_proto::v1::{EngineFinish, EngineFinished, EngineToken};
use sluice_types::{AttemptId, EndpointId, Reason, RequestId, TenantId};

use crate::asks::Ask;
use crate::controller::Reply;
use crate::params::{MILLI, MINUTE, SECOND};
use crate::sim::{Event, Sim};
use crate::worker::{AWAY, Word};

/// A request waits for a replica at most so long, each time.
const PATIENCE: u64 = 20 * MINUTE;
/// Replicas that may be lost under a request without a token in between: it may be what they are lost by.
const LOST: u32 = 3;
/// Times that workers may refuse it for now.
const REFUSED: u32 = 8;
/// A worker that says nothing for so long, or a node that cannot be reached for so long, is left.
const SILENCE: u64 = 12 * SECOND;

/// A request that is open.
#[derive(Debug)]
struct Course {
    ask: Rc<Ask>,
    /// Since when it waits, while it does.
    since: u64,
    generated: Vec<u32>,
    /// The text of an answer that comes whole.
    text: Vec<u8>,
    /// Tokens of the prompt, as the first worker that had a place for it said.
    prompt: Option<u64>,
    lost: u32,
    refused: u32,
    at: Option<Spot>,
    /// Its client has left, and nobody has noticed.
    gone: bool,
}

/// A sequence at a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spot {
    replica: AttemptId,
    sequence: u64,
}

/// The way to one replica's worker.
#[derive(Debug)]
struct Link {
    connection: u64,
    host: usize,
    /// The worker's number.
    worker: u64,
    endpoint: EndpointId,
    places: u32,
    sequences: u64,
    courses: BTreeMap<u64, RequestId>,
    /// Since when its node cannot be reached.
    away: Option<u64>,
    /// When the last word that was sent arrives.
    last: u64,
    /// Words that could not be sent.
    unsaid: Vec<Word>,
}

/// Requests under way.
#[derive(Debug, Default)]
pub(crate) struct Gateway {
    open: BTreeMap<RequestId, Course>,
    links: BTreeMap<AttemptId, Link>,
}

impl Gateway {
    /// Endpoints that have requests.
    pub(crate) fn busy(&self) -> BTreeSet<EndpointId> {
        self.open.values().map(|course| course.ask.endpoint).collect()
    }

    /// Requests of an endpoint that wait, and that have a place.
    pub(crate) fn load(&self, endpoint: EndpointId) -> (u32, u32) {
        let of = self.open.values().filter(|course| course.ask.endpoint == endpoint);
        of.fold((0, 0), |(waiting, placed), course| match course.at {
            None => (waiting + 1, placed),
            Some(_) => (waiting, placed + 1),
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    fn count(&self, link: &Link, tenant: Option<TenantId>) -> u32 {
        let of = link.courses.values().filter_map(|id| self.open.get(id));
        let count = of.filter(|course| tenant.is_none_or(|tenant| course.ask.tenant == tenant)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// The next that gets a place, and where: of the tenant with the fewest, those that had a place first; at the least
    /// loaded of the replicas that `take` something. One tenant never has all places of one that has several.
    fn choose(&self, endpoint: EndpointId, take: &BTreeSet<AttemptId>) -> Option<(RequestId, AttemptId)> {
        let room = |tenant| {
            let members = self.links.iter().filter(|(replica, _)| take.contains(replica));
            let open = members.filter(|(_, link)| {
                let share = if link.places < 2 { link.places } else { link.places - (link.places / 8).max(1) };
                link.endpoint == endpoint
                    && link.away.is_none()
                    && self.count(link, None) < link.places
                    && self.count(link, Some(tenant)) < share
            });
            let load = |link: &Link| u64::from(self.count(link, None)) * 1_000_000 / u64::from(link.places.max(1));
            open.min_by_key(|(replica, link)| (load(link), **replica)).map(|(replica, _)| *replica)
        };
        let here = || self.links.values().filter(|link| link.endpoint == endpoint);
        let running = |tenant| here().map(|link| self.count(link, Some(tenant))).sum::<u32>();
        let waiting = self.open.iter().filter(|(_, course)| course.ask.endpoint == endpoint && course.at.is_none());
        let mut waiting: Vec<_> = waiting
            .map(|(id, course)| {
                let again = course.prompt.is_some() || course.refused > 0;
                (running(course.ask.tenant), !again, *id, course.ask.tenant)
            })
            .collect();
        waiting.sort_unstable();
        waiting.into_iter().find_map(|(_, _, id, tenant)| Some((id, room(tenant)?)))
    }

    /// The sessions that end with it: replica, number of its worker, connection.
    pub(crate) fn sessions(&self) -> Vec<(AttemptId, u64, u64)> {
        self.links.iter().map(|(replica, link)| (*replica, link.worker, link.connection)).collect()
    }
}

impl Sim {
    fn gateway(&mut self) -> Option<&mut Gateway> {
        self.controller.memory.as_mut().map(|memory| &mut memory.gateway)
    }

    fn course(&mut self, request: RequestId) -> Option<&mut Course> {
        self.gateway()?.open.get_mut(&request)
    }

    /// What is held for a request is on disk: it begins.
    pub(crate) fn asked(&mut self, request: RequestId, ask: Rc<Ask>) {
        let (now, incarnation) = (self.now, self.controller.incarnation);
        let endpoint = ask.endpoint;
        self.oracle.engines.asked(request, Rc::clone(&ask));
        if let Some(after) = ask.leaves {
            self.agenda.plan(now + after, Event::ClientLeaves { request, incarnation });
        }
        let course = Course {
            ask,
            since: now,
            generated: Vec::new(),
            text: Vec::new(),
            prompt: None,
            lost: 0,
            refused: 0,
            at: None,
            gone: false,
        };
        if let Some(gateway) = self.gateway() {
            gateway.open.insert(request, course);
        }
        self.dispatch(endpoint);
        self.tell_load(endpoint);
    }

    /// Replicas of an endpoint that run and were not told to stop, by the controller's rows.
    fn serving(&self, endpoint: EndpointId) -> BTreeSet<AttemptId> {
        let Some(memory) = self.controller.memory.as_ref() else { return BTreeSet::new() };
        let running = memory.state.replicas(endpoint).filter(|job| job.state == JobState::Running);
        let attempts = running.filter_map(|job| memory.state.attempt(job.current?));
        attempts.filter(|row| row.state == AttemptState::Running && row.goal == Goal::Run).map(|row| row.id).collect()
    }

    /// Gives out the places that are free.
    fn dispatch(&mut self, endpoint: EndpointId) {
        let waits = |gateway: &mut Gateway| {
            gateway.open.values().any(|course| course.ask.endpoint == endpoint && course.at.is_none())
        };
        if !self.gateway().is_some_and(waits) {
            return;
        }
        let take = self.serving(endpoint);
        take.iter().for_each(|replica| self.connect_worker(*replica, endpoint));
        while let Some((request, replica)) = self.gateway().and_then(|gateway| gateway.choose(endpoint, &take)) {
            self.place(request, replica);
        }
    }

    /// Opens the way to a worker that has none.
    fn connect_worker(&mut self, replica: AttemptId, endpoint: EndpointId) {
        let Some(worker) = self.workers.get(&replica) else { return };
        let (host, number, places) = (worker.host, worker.number, worker.sequences * 2);
        let known = self.gateway().is_none_or(|gateway| gateway.links.contains_key(&replica));
        if known || !self.reaches(host) {
            return;
        }
        self.next_stream += 1;
        let link = Link {
            connection: self.next_stream,
            host,
            worker: number,
            endpoint,
            places,
            sequences: 0,
            courses: BTreeMap::new(),
            away: None,
            last: self.now,
            unsaid: Vec::new(),
        };
        self.open_session(replica, link.connection);
        if let Some(gateway) = self.gateway() {
            gateway.links.insert(replica, link);
        }
    }

    fn place(&mut self, request: RequestId, replica: AttemptId) {
        let Some(gateway) = self.gateway() else { return };
        let (Some(course), Some(link)) = (gateway.open.get_mut(&request), gateway.links.get_mut(&replica)) else {
            return;
        };
        link.sequences += 1;
        let (connection, sequence) = (link.connection, link.sequences);
        link.courses.insert(sequence, request);
        course.at = Some(Spot { replica, sequence });
        let origin = Origin { connection, sequence };
        let submission = course.ask.submission(request, origin, course.generated.clone());
        let generated = course.generated.len();
        self.trace.line(self.now, || format!("{request} goes to {replica}, behind {generated} tokens"));
        self.say(replica, Word::Submit(Box::new(submission)));
    }

    /// Says something to a worker.
    fn say(&mut self, replica: AttemptId, word: Word) {
        if let Some(link) = self.gateway().and_then(|gateway| gateway.links.get_mut(&replica)) {
            link.unsaid.push(word);
            self.send_unsaid(replica);
        }
    }

    /// Sends what a worker was not told yet, where its node can be reached.
    fn send_unsaid(&mut self, replica: AttemptId) {
        let link = self.gateway().and_then(|gateway| gateway.links.get(&replica));
        let host = link.filter(|link| !link.unsaid.is_empty()).map(|link| link.host);
        let Some(host) = host.filter(|host| self.reaches(*host)) else { return };
        let at = self.now + self.delay(host).max(MILLI);
        let Some(link) = self.gateway().and_then(|gateway| gateway.links.get_mut(&replica)) else { return };
        let (number, connection, first) = (link.worker, link.connection, at.max(link.last + 1));
        let words = std::mem::take(&mut link.unsaid);
        link.last = first + words.len() as u64;
        for (at, word) in (first..).zip(words) {
            self.agenda.plan(at, Event::WorkerHears { replica, number, connection, word });
        }
    }

    /// What a worker says has come.
    pub(crate) fn on_engine_says(&mut self, replica: AttemptId, connection: u64, messages: Vec<Message>) {
        for message in messages {
            let sequence = match &message {
                Message::Admitted(admitted) => admitted.sequence,
                Message::Token(token) => token.sequence,
                Message::Finished(finished) => finished.sequence,
                Message::Ready(_) | Message::Load(_) => continue,
            };
            let link = self.gateway().and_then(|gateway| gateway.links.get(&replica));
            let Some(link) = link.filter(|link| link.connection == connection) else { return };
            // Of one that was cancelled something may still come.
            let Some(request) = link.courses.get(&sequence).copied() else { continue };
            match message {
                Message::Admitted(admitted) => {
                    if let Some(course) = self.course(request) {
                        course.prompt.get_or_insert(admitted.prompt_tokens.into());
                    }
                }
                Message::Token(token) => self.on_token(request, token),
                Message::Finished(finished) => self.on_finished(request, finished),
                Message::Ready(_) | Message::Load(_) => {}
            }
        }
    }

    fn on_token(&mut self, request: RequestId, token: EngineToken) {
        let Some(course) = self.course(request) else { return };
        let expected = u32::try_from(course.generated.len()).unwrap_or(u32::MAX);
        if token.position != expected || expected >= course.ask.max_tokens || course.prompt.is_none() {
            course.lost += 1;
            return self.go_on(request, true);
        }
        course.generated.push(token.token);
        course.lost = 0;
        let (gone, slow, spot) = (course.gone, course.ask.slow, course.at);
        if course.ask.cut_at == Some(expected) {
            return self.cut(request, Reason::TooLarge);
        }
        if !course.ask.stream {
            course.text.extend_from_slice(&token.text);
        } else if gone {
            // It was put into a connection of which nobody is at the other end: that tells.
            return self.leave(request);
        } else {
            self.trace.word(request.raw() ^ u64::from(token.token) << 32 ^ u64::from(token.position));
            self.oracle.got(self.now, request, token.position, token.token, &token.text);
        }
        if let Some(spot) = spot.filter(|_| !slow) {
            self.take(spot, expected + 1);
        }
    }

    /// A worker is told how far its reader is. That takes no time: it would be as many events as there are tokens.
    fn take(&mut self, spot: Spot, tokens: u32) {
        let link = self.gateway().and_then(|gateway| gateway.links.get(&spot.replica));
        let Some((host, number, connection)) = link.map(|link| (link.host, link.worker, link.connection)) else {
            return;
        };
        if self.reaches(host) {
            self.worker_hears(spot.replica, number, connection, Word::Taken(spot.sequence, tokens));
        }
    }

    fn on_finished(&mut self, request: RequestId, finished: EngineFinished) {
        let Some(course) = self.course(request) else { return };
        let generated = u32::try_from(course.generated.len()).unwrap_or(u32::MAX);
        match finished.finish() {
            EngineFinish::Stop | EngineFinish::Length if finished.generated_tokens == generated => {
                course.prompt.get_or_insert(finished.prompt_tokens.into());
                if course.gone {
                    return self.leave(request);
                }
                self.complete(request, &finished);
            }
            EngineFinish::Error if course.refused < REFUSED => {
                course.refused += 1;
                self.go_on(request, false);
            }
            EngineFinish::Error => {
                self.oracle.refused(self.now, request, &finished.message);
                self.cut(request, Reason::Unavailable);
            }
            // Ended with another count than came, or cancelled by nobody.
            _ => {
                course.lost += 1;
                self.go_on(request, false);
            }
        }
    }

    /// A whole answer has come: its client is told, and behind that it is billed.
    fn complete(&mut self, request: RequestId, finished: &EngineFinished) {
        let Some(course) = self.course(request) else { return };
        let (ask, generated) = (Rc::clone(&course.ask), course.generated.clone());
        let text = [std::mem::take(&mut course.text), finished.text.to_vec()].concat();
        let mut prompt_tokens = course.prompt.unwrap_or(0);
        let mut completion_tokens = generated.len() as u64;
        if !ask.stream {
            for (position, token) in (0..).zip(&generated) {
                self.oracle.got(self.now, request, position, *token, &[]);
            }
        }
        self.oracle.answered(self.now, request, finished.finish(), &text);
        // Now and then an engine says that it did more than was reserved, and this gateway believes it.
        if self.asks.chance(30) {
            prompt_tokens = ask.prompt_ceiling + self.asks.range(1, 50);
            if completion_tokens == u64::from(ask.max_tokens) {
                completion_tokens += self.asks.range(0, 20);
            }
        }
        let cached_tokens = finished.cached_tokens.into();
        self.close(request, Command::SettleRequest { id: request, prompt_tokens, completion_tokens, cached_tokens });
    }

    /// The client is gone: what it was sent is billed, if anything was begun.
    fn leave(&mut self, request: RequestId) {
        let Some(course) = self.course(request) else { return };
        let sent = if course.ask.stream { course.generated.len() as u64 } else { 0 };
        let command = match course.prompt {
            Some(prompt_tokens) => {
                Command::SettleRequest { id: request, prompt_tokens, completion_tokens: sent, cached_tokens: 0 }
            }
            None => Command::VoidRequest(request, Reason::Signalled),
        };
        self.free(request, true);
        self.close(request, command);
    }

    /// The platform ends it: it is credited whole.
    fn cut(&mut self, request: RequestId, why: Reason) {
        self.free(request, true);
        self.close(request, Command::VoidRequest(request, why));
    }

    fn close(&mut self, request: RequestId, command: Command) {
        self.free(request, false);
        let Some(course) = self.gateway().and_then(|gateway| gateway.open.remove(&request)) else { return };
        self.trace.line(self.now, || format!("{request} is over: {command:?}, {} tokens", course.generated.len()));
        self.enqueue(command, Reply::Nobody);
        self.dispatch(course.ask.endpoint);
        self.tell_load(course.ask.endpoint);
    }

    /// It has no place any more; the worker is told where it does not know.
    fn free(&mut self, request: RequestId, tell: bool) {
        let Some(spot) = self.course(request).and_then(|course| course.at.take()) else { return };
        if let Some(link) = self.gateway().and_then(|gateway| gateway.links.get_mut(&spot.replica)) {
            link.courses.remove(&spot.sequence);
        }
        if tell {
            self.say(spot.replica, Word::Cancel(spot.sequence));
        }
    }

    /// It goes on at another replica, or there once more.
    fn go_on(&mut self, request: RequestId, tell: bool) {
        self.free(request, tell);
        let now = self.now;
        let Some(course) = self.course(request) else { return };
        course.since = now;
        if course.lost > LOST {
            return self.cut(request, Reason::Unavailable);
        }
        let endpoint = course.ask.endpoint;
        self.dispatch(endpoint);
    }

    /// A client is gone. The gateway notices in a moment, or where it sends it something.
    pub(crate) fn on_client_leaves(&mut self, request: RequestId) {
        let incarnation = self.controller.incarnation;
        let Some(course) = self.course(request) else { return };
        course.gone = true;
        self.oracle.engines.left(request);
        let at = self.now + self.asks.range(MILLI, 2 * SECOND);
        self.agenda.plan(at, Event::LeftNoticed { request, incarnation });
    }

    pub(crate) fn on_left_noticed(&mut self, request: RequestId) {
        self.leave(request);
    }

    /// A session with a worker is over: what ran on it goes on elsewhere.
    pub(crate) fn on_link_over(&mut self, replica: AttemptId, connection: u64) {
        let Some(gateway) = self.gateway() else { return };
        if gateway.links.get(&replica).is_none_or(|link| link.connection != connection) {
            return;
        }
        let Some(link) = gateway.links.remove(&replica) else { return };
        let Link { worker: number, endpoint, courses, .. } = link;
        // If it still runs, its supervisor notices that nobody comes any more.
        self.agenda.plan(self.now + AWAY, Event::WorkerHears { replica, number, connection, word: Word::Close });
        let now = self.now;
        let mut given_up = Vec::new();
        for request in courses.into_values() {
            let Some(course) = self.course(request) else { continue };
            (course.at, course.since) = (None, now);
            course.lost += 1;
            if course.lost > LOST {
                given_up.push(request);
            }
        }
        self.trace.line(self.now, || format!("the way to {replica} is over"));
        given_up.into_iter().for_each(|request| self.cut(request, Reason::Unavailable));
        self.dispatch(endpoint);
        self.tell_load(endpoint);
    }

    /// With every tick: who is silent is left, what can be sent again is sent, who waited too long is cut.
    pub(crate) fn keep_requests(&mut self) {
        let now = self.now;
        let Some(gateway) = self.gateway() else { return };
        let links: Vec<_> =
            gateway.links.iter().map(|(replica, link)| (*replica, link.connection, link.host, link.worker)).collect();
        for (replica, connection, host, number) in links {
            let reached = self.reaches(host);
            let worker = self.workers.get(&replica).filter(|worker| worker.number == number);
            let frozen = worker.and_then(|worker| worker.frozen).filter(|(_, until)| *until > now);
            let (there, frozen) = (worker.is_some(), frozen.map(|(since, _)| since));
            let Some(link) = self.gateway().and_then(|gateway| gateway.links.get_mut(&replica)) else { continue };
            link.away = if reached { None } else { link.away.or(Some(now)) };
            let silent = link.away.or(frozen).is_some_and(|since| now - since > SILENCE);
            if silent || (reached && !there) {
                self.on_link_over(replica, connection);
            } else if reached {
                self.flush(replica, connection);
                self.send_unsaid(replica);
            }
        }
        let Some(gateway) = self.gateway() else { return };
        let late = gateway.open.iter().filter(|(_, course)| course.at.is_none() && now - course.since > PATIENCE);
        let late: Vec<_> = late.map(|(id, _)| *id).collect();
        let slow = gateway.open.values().filter(|course| course.ask.slow);
        let slow: Vec<_> = slow.filter_map(|course| Some((course.at?, course.generated.len()))).collect();
        late.into_iter().for_each(|request| self.cut(request, Reason::NodeLost));
        slow.into_iter().for_each(|(spot, tokens)| self.take(spot, u32::try_from(tokens).unwrap_or(u32::MAX)));
        let busy = self.gateway().map(|gateway| gateway.busy()).unwrap_or_default();
        busy.into_iter().for_each(|endpoint| self.dispatch(endpoint));
    }
}
