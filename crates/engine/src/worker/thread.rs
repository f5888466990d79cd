//! The thread that owns the engine. Commands come to it by one bounded channel; what it makes goes to each connection's own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sluice_proto::v1::{EngineLoad, engine_reply::Message};
use tokio::sync::{mpsc, watch};

use crate::clock::{Clock, HostClock};
use crate::cost::CostModel;
use crate::engine::{Engine, EngineError, Facts, Vocabulary};
use crate::meter::Meter;
use crate::runner::{Bounds, Origin, Reply, Runner, Submission};

/// Commands that wait at most; whoever has more waits.
const COMMANDS: usize = 1_024;
/// Commands that are taken between two steps at most.
const COMMANDS_AT_ONCE: usize = 256;

/// Where nothing could be computed although something is open, the next look is so much later.
const STALLED: Duration = Duration::from_millis(2);

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Command {
    /// A connection, and where its replies go.
    Open(u64, mpsc::Sender<Vec<Message>>),
    /// A connection is gone.
    Close(u64),
    /// A sequence begins.
    Submit(Box<Submission>),
    /// One ends.
    Cancel(Origin),
    /// A reader has so many tokens.
    Taken(Origin, u32),
    /// Compute with so many threads.
    Resize(u32),
    /// Time passed: look after slow readers.
    Tick,
}

/// An engine with its vocabulary, as it is made on the thread that owns it.
pub struct Made {
    /// Computes.
    pub engine: Box<dyn Engine>,
    /// Its tokens.
    pub vocabulary: Arc<dyn Vocabulary>,
}

/// The running thread's other end.
#[derive(Clone)]
pub(super) struct EngineThread {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) load: watch::Receiver<EngineLoad>,
    pub(super) vocabulary: Arc<dyn Vocabulary>,
    pub(super) facts: Facts,
}

/// Starts the thread and waits until its engine is loaded. It ends when nobody can command it any more.
pub(super) async fn start(
    make: impl FnOnce() -> Result<Made, EngineError> + Send + 'static,
    meter: Box<dyn Meter + Send>,
    bounds: Bounds,
    worker: u64,
) -> Result<EngineThread, EngineError> {
    let (commands, received) = mpsc::channel(COMMANDS);
    let (told, load) = watch::channel(EngineLoad::default());
    let (loaded, loading) = tokio::sync::oneshot::channel();
    let run = move || {
        let made = match make() {
            Ok(made) => made,
            Err(error) => {
                let _ = loaded.send(Err(error));
                return;
            }
        };
        let facts = made.engine.facts();
        let _ = loaded.send(Ok((facts, Arc::clone(&made.vocabulary))));
        // A guess of a small model on one core; the first steps correct it.
        let cost = CostModel::new(4e6, 4e6, 2e6, 0.5e6);
        let runner = Runner::new(made.engine, made.vocabulary, meter, cost, bounds, worker);
        Loop { runner, received, told, connections: BTreeMap::new(), clock: HostClock::default() }.run();
    };
    std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(run)
        .map_err(|error| EngineError::Load(format!("no thread for it: {error}")))?;
    let ended = |_| EngineError::Load("its thread ended while it was loaded".to_owned());
    let (facts, vocabulary) = loading.await.map_err(ended)??;
    Ok(EngineThread { commands, load, vocabulary, facts })
}

struct Loop {
    runner: Runner,
    received: mpsc::Receiver<Command>,
    told: watch::Sender<EngineLoad>,
    connections: BTreeMap<u64, mpsc::Sender<Vec<Message>>>,
    clock: HostClock,
}

impl Loop {
    fn run(mut self) {
        loop {
            if self.runner.idle() {
                let Some(command) = self.received.blocking_recv() else { return };
                self.obey(command);
            }
            for _ in 0..COMMANDS_AT_ONCE {
                match self.received.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => return,
                }
            }
            let replies = self.runner.step(&self.clock);
            self.tell(replies);
            self.told.send_replace(self.runner.load());
            if !self.runner.idle() && !self.runner.computed() {
                std::thread::sleep(STALLED);
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Open(connection, replies) => {
                self.connections.insert(connection, replies);
            }
            Command::Close(connection) => {
                self.connections.remove(&connection);
                self.runner.disconnect(connection);
            }
            Command::Submit(submission) => {
                // Of a connection that is gone already nobody would ever cancel it.
                if self.connections.contains_key(&submission.origin.connection) {
                    self.runner.submit(*submission);
                }
            }
            Command::Cancel(origin) => self.runner.cancel(origin),
            Command::Taken(origin, tokens) => self.runner.taken(origin, tokens),
            Command::Resize(threads) => self.runner.resize(threads),
            Command::Tick => self.runner.end_slow_readers(self.clock.monotonic()),
        }
    }

    fn tell(&mut self, replies: Vec<Reply>) {
        let mut by_connection: BTreeMap<u64, Vec<Message>> = BTreeMap::new();
        for Reply { connection, message } in replies {
            by_connection.entry(connection).or_default().push(message);
        }
        for (connection, messages) in by_connection {
            let told = self.connections.get(&connection).map(|replies| replies.try_send(messages));
            // Windows bound what can be under way: a connection that has no room for it is broken or gone.
            if !matches!(told, Some(Ok(()))) {
                self.connections.remove(&connection);
                self.runner.disconnect(connection);
            }
        }
    }
}
