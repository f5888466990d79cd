//! Workers: the real step loop of the engine in every replica that serves, over the simulated engine and in virtual time.
//!
//! A worker begins when its replica has loaded, and is gone with its process. A step is an event: what it does is done where
//! it begins, and metered and told where it ends, so that a worker that dies within it has told nothing of it. What it hears
//! meanwhile it heeds between two steps, as the worker's thread does. Its sessions are the supervisor's: they outlive the
//! node's agent and its stream, but not the process, and end some time after nobody takes what they say.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use sluice_engine::clock::Clock as _;
use sluice_engine::cost::CostModel;
use sluice_engine::engine::Facts;
use sluice_engine::meter::Meter;
use sluice_engine::runner::{self, Bounds, Origin, Runner, Submission};
use sluice_engine::schedule::Rules;
use sluice_engine::simulated::{SimulatedEngine, SimulatedVocabulary, VirtualClock};
use sluice_proto::v1::EngineMetered;
use sluice_proto::v1::engine_reply::Message;
use sluice_types::{AttemptId, LeaseId, Reason};

use crate::agent::end_with;
use crate::asks::CONTEXT;
use crate::params::{MILLI, SECOND};
use crate::sim::{Event, Sim};

/// Tokens that a worker may be ahead of its reader.
pub(crate) const WINDOW: u32 = 8;
/// Before it is looked again whether anything can be computed, where nothing could.
const STALLED: u64 = SECOND;
/// A session to which nobody comes for so long is closed.
pub(crate) const AWAY: u64 = 10 * SECOND;

/// What a worker hears on a session.
#[derive(Debug)]
pub(crate) enum Word {
    Submit(Box<Submission>),
    Cancel(u64),
    /// A reader has so many tokens of a sequence.
    Taken(u64, u32),
    /// The session is over.
    Close,
}

/// What a step wrote down; read when it ends.
#[derive(Debug, Clone, Default)]
struct Records(Rc<RefCell<Written>>);

#[derive(Debug, Default)]
struct Written {
    records: Vec<EngineMetered>,
    /// The disk takes so many records, then one not.
    good: Option<u64>,
}

impl Meter for Records {
    fn append(&mut self, record: EngineMetered) -> io::Result<()> {
        let mut written = self.0.borrow_mut();
        written.good = match written.good {
            Some(0) => {
                written.good = None;
                return Err(io::ErrorKind::StorageFull.into());
            }
            good => good.map(|left| left - 1),
        };
        written.records.push(record);
        Ok(())
    }
}

/// A session of one gateway with a worker.
#[derive(Debug, Default)]
struct Session {
    /// Of the gateway's controller.
    incarnation: u64,
    /// When the last of what was sent arrives.
    last: u64,
    /// What nobody could be sent.
    held: Vec<Message>,
}

/// The worker of one replica's attempt.
pub(crate) struct Worker {
    pub(crate) host: usize,
    lease: LeaseId,
    /// Its own: no other worker has it.
    pub(crate) number: u64,
    /// Sequences that it computes at once.
    pub(crate) sequences: u32,
    runner: Runner,
    clock: VirtualClock,
    written: Records,
    /// A step is under way, and will tell this.
    within: Option<Vec<runner::Reply>>,
    heard: Vec<(u64, Word)>,
    /// Since when, and until when, its process does not run.
    pub(crate) frozen: Option<(u64, u64)>,
    sessions: BTreeMap<u64, Session>,
}

impl Sim {
    /// A replica has loaded its model: from now on it serves.
    pub(crate) fn start_worker(&mut self, attempt: AttemptId, host: usize, lease: LeaseId) {
        let Some(task) = self.hosts[host].tasks.get(&lease) else { return };
        let sequences = task.wanted.sequences.max(1);
        // With less room than all of them may need, places are given up and read again.
        let facts = Facts {
            context: CONTEXT,
            cells: CONTEXT + 24 * sequences,
            slots: sequences + 1,
            batch: 256,
            threads: 1,
            kernels: "simulated".to_owned(),
        };
        let clock = VirtualClock::default();
        // A token takes most of a second, a prompt some seconds: few tokens make a long answer.
        let cost = CostModel::new(0.3e9, 0.2e9, 0.01e9, 0.05e9);
        let mut engine = SimulatedEngine::new(facts, cost, clock.clone());
        engine.fail_in = self.asks.chance(200).then(|| u32::try_from(self.asks.range(1, 100)).unwrap_or(1));
        let written = Records::default();
        written.0.borrow_mut().good = self.asks.chance(100).then(|| self.asks.range(0, 100));
        let rules = Rules { step: 1.5e9, quiet: 3e9, ..Rules::default() };
        let bounds = Bounds { spare: 1, window: WINDOW, rules, ..Bounds::default() };
        self.workers_begun += 1;
        let number = self.workers_begun;
        let guess = CostModel::new(0.1e9, 0.1e9, 0.005e9, 0.0);
        let meter = Box::new(written.clone());
        let runner = Runner::new(Box::new(engine), Arc::new(SimulatedVocabulary), meter, guess, bounds, number);
        let (within, heard, frozen, sessions) = (None, Vec::new(), None, BTreeMap::new());
        let worker = Worker { host, lease, number, sequences, runner, clock, written, within, heard, frozen, sessions };
        self.workers.insert(attempt, worker);
        self.oracle.engines.begins(self.now, number);
    }

    /// A worker's process is gone, and its sessions with it. `seen` says whether its node saw it end.
    pub(crate) fn end_worker(&mut self, attempt: AttemptId, seen: bool) {
        let Some(worker) = self.workers.remove(&attempt) else { return };
        self.oracle.engines.ends(worker.number);
        if !seen || !self.reaches(worker.host) {
            return;
        }
        for (connection, session) in worker.sessions {
            let at = (self.now + self.delay(worker.host)).max(session.last + 1);
            let incarnation = session.incarnation;
            self.agenda.plan(at, Event::LinkOver { replica: attempt, connection, incarnation });
        }
    }

    /// A worker does not run for a while: its host stopped it, or had no time for it.
    pub(crate) fn freeze_worker(&mut self, attempt: AttemptId) {
        let until = self.now + self.asks.range(5 * SECOND, 60 * SECOND);
        if let Some(worker) = self.workers.get_mut(&attempt) {
            worker.frozen = Some((self.now, until));
        }
    }

    /// A gateway's session with a worker begins.
    pub(crate) fn open_session(&mut self, attempt: AttemptId, connection: u64) {
        let incarnation = self.controller.incarnation;
        if let Some(worker) = self.workers.get_mut(&attempt) {
            worker.sessions.insert(connection, Session { incarnation, ..Session::default() });
        }
    }

    /// A worker hears something, unless it is another one by now.
    pub(crate) fn worker_hears(&mut self, attempt: AttemptId, number: u64, connection: u64, word: Word) {
        let Some(worker) = self.workers.get_mut(&attempt).filter(|worker| worker.number == number) else { return };
        worker.heard.push((connection, word));
        if worker.within.is_none() {
            self.turn(attempt);
        }
    }

    /// A step is over: it is metered, then told, then the next one begins.
    pub(crate) fn on_stepped(&mut self, attempt: AttemptId, number: u64) {
        let Some(worker) = self.workers.get_mut(&attempt).filter(|worker| worker.number == number) else { return };
        let host = worker.host;
        if let Some((_, until)) = worker.frozen.filter(|(_, until)| *until > self.now) {
            return self.agenda.plan(until, Event::Stepped { attempt, number });
        }
        worker.frozen = None;
        // What it computes may be what it dies of: before it is written down, or before it is told.
        let dies = self.asks.chance(3).then(|| self.asks.chance(500));
        if dies != Some(false) {
            let records = std::mem::take(&mut worker.written.0.borrow_mut().records);
            records.iter().for_each(|record| self.oracle.metered(self.now, number, record));
        }
        if dies.is_some() {
            let lease = worker.lease;
            let died = sluice_lifecycle::model::TaskEnd {
                exit_code: None,
                signal: 11,
                ..end_with(Some(Reason::Signalled), "ended by signal 11")
            };
            return self.process_ended(host, lease, died);
        }
        let replies = worker.within.take().unwrap_or_default();
        self.tell(attempt, replies);
        self.turn(attempt);
    }

    /// Between two steps: what was heard is heeded, and the next step begins where there is something to do.
    fn turn(&mut self, attempt: AttemptId) {
        let Some(worker) = self.workers.get_mut(&attempt) else { return };
        let number = worker.number;
        if let Some((_, until)) = worker.frozen.filter(|(_, until)| *until > self.now) {
            worker.within = Some(Vec::new());
            return self.agenda.plan(until, Event::Stepped { attempt, number });
        }
        for (connection, word) in std::mem::take(&mut worker.heard) {
            let origin = |sequence| Origin { connection, sequence };
            if !worker.sessions.contains_key(&connection) {
                continue; // of a session that is over already nobody would ever cancel it
            }
            match word {
                Word::Submit(submission) => {
                    self.oracle.engines.submitted(self.now, number, &submission);
                    worker.runner.submit(*submission);
                }
                Word::Cancel(sequence) => {
                    self.oracle.engines.silenced(number, origin(sequence));
                    worker.runner.cancel(origin(sequence));
                }
                Word::Taken(sequence, tokens) => {
                    self.oracle.engines.taken(number, origin(sequence), tokens);
                    worker.runner.taken(origin(sequence), tokens);
                }
                Word::Close => {
                    worker.sessions.remove(&connection);
                    self.oracle.engines.closed(number, connection);
                    worker.runner.disconnect(connection);
                }
            }
        }
        if worker.runner.idle() {
            let replies = worker.runner.replies();
            return self.tell(attempt, replies);
        }
        // Its clock stood still while it had nothing to do.
        worker.clock.pass(self.now.saturating_sub(worker.clock.monotonic()));
        let replies = worker.runner.step(&worker.clock);
        let at = if worker.runner.computed() { worker.clock.monotonic().max(self.now + 1) } else { self.now + STALLED };
        worker.within = Some(replies);
        self.agenda.plan(at, Event::Stepped { attempt, number });
    }

    /// Says what a step made, on the session of each.
    fn tell(&mut self, attempt: AttemptId, replies: Vec<runner::Reply>) {
        let Some(worker) = self.workers.get_mut(&attempt) else { return };
        let mut told = Vec::new();
        for runner::Reply { connection, message } in replies {
            if let Message::Finished(finished) = &message {
                let origin = Origin { connection, sequence: finished.sequence };
                self.oracle.engines.silenced(worker.number, origin);
            }
            let Some(session) = worker.sessions.get_mut(&connection) else { continue };
            session.held.push(message);
            told.push(connection);
        }
        told.dedup();
        told.into_iter().for_each(|connection| self.flush(attempt, connection));
    }

    /// Sends what a session holds, where there is a way.
    pub(crate) fn flush(&mut self, attempt: AttemptId, connection: u64) {
        let Some(host) = self.workers.get(&attempt).map(|worker| worker.host).filter(|host| self.reaches(*host)) else {
            return;
        };
        let delay = self.delay(host);
        let Some(worker) = self.workers.get_mut(&attempt) else { return };
        let Some(session) = worker.sessions.get_mut(&connection).filter(|session| !session.held.is_empty()) else {
            return;
        };
        let messages = std::mem::take(&mut session.held);
        session.last = (self.now + delay.max(MILLI)).max(session.last + 1);
        let incarnation = session.incarnation;
        self.agenda.plan(session.last, Event::EngineSays { replica: attempt, connection, messages, incarnation });
    }
}
