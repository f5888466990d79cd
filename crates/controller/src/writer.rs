//! The one writer: takes commands of many callers, steps the state, commits, then lets the world know.
//!
//! Steps go on while a commit is under way: what they change gathers in an open [`Group`], which is committed in one
//! transaction when the one before is on disk. So the scheduler, which is told of every step at once, mostly places a job
//! in the transaction that brings it. Nobody else learns of a step before its group is committed: answers, what hosts
//! should do, events and the directory wait for it. What the scheduler makes of a step comes back as a command, so it is
//! committed behind that step or with it; a commit that fails ends the process, and the scheduler's world with it.

use std::sync::Arc;
use std::time::Duration;

use sluice_lifecycle::model::Job;
use sluice_lifecycle::{Answer, Command, Mint, Refusal, State, step};
use sluice_store::{Store, StoreError};
use sluice_types::{Generation, NodeId, Reason, SiteId, Timestamp};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::error::ControllerError;
use crate::group::{Deciding, Group, Waiters};
use crate::metrics::ControllerMetrics;
use crate::own_thread::OwnThread;
use crate::publish::Publisher;

/// Commands that may wait for the writer; beyond it callers are told to come back later.
const QUEUE: usize = 16 * 1024;
/// Reports that may wait; beyond it their senders wait, and so do the streams they read.
const URGENT: usize = 1024;
/// Commands in one transaction at most.
const GROUP: usize = 1024;
/// While a commit is under way a step waits so long for company: what it changes cannot be committed before anyhow.
const GATHER: Duration = Duration::from_millis(1);
/// How often time is told.
const TICK: Duration = Duration::from_millis(200);
/// A commit that takes longer stands still.
const STALL: Duration = Duration::from_secs(1);
/// How often, and how many, old requests are deleted.
const PRUNE_EVERY: Duration = Duration::from_secs(60);
const PRUNE_AGAIN: Duration = Duration::from_millis(500);
const PRUNE_AT_ONCE: u32 = 10_000;

/// What waits in the writer's queue.
enum Work {
    Command(Box<Order>),
    /// Tell a node again what it should be doing.
    Refresh(NodeId),
    /// Tell the vaults again what to copy.
    Copies,
}

struct Order {
    command: Command,
    reply: Option<oneshot::Sender<Result<Answer, Refusal>>>,
    /// Wants to know the first decision on the job that this submits.
    decision: Option<oneshot::Sender<Job>>,
}

/// The way to the writer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WriterHandle {
    queue: mpsc::Sender<Work>,
    /// Served first: what nodes, vaults and the scheduler report must not wait behind what users want.
    urgent: mpsc::Sender<Work>,
}

fn gone() -> Refusal {
    Refusal::new(Reason::Unavailable, "the controller is stopping")
}

impl WriterHandle {
    /// Carries out a command; answered once its rows are durable.
    ///
    /// # Errors
    /// The command's refusal, [`Reason::Overloaded`] or [`Reason::Unavailable`].
    pub async fn submit(&self, command: Command) -> Result<Answer, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.send(Order { command, reply: Some(reply), decision: None })?;
        answer.await.map_err(|_| gone())?
    }

    /// Carries out a submit; the receiver gets the job as it is after the first decision on it.
    ///
    /// # Errors
    /// As [`WriterHandle::submit`].
    pub(crate) async fn submit_and_decide(
        &self,
        command: Command,
    ) -> Result<(Answer, oneshot::Receiver<Job>), Refusal> {
        let (reply, answer) = oneshot::channel();
        let (decision, decided) = oneshot::channel();
        self.send(Order { command, reply: Some(reply), decision: Some(decision) })?;
        Ok((answer.await.map_err(|_| gone())??, decided))
    }

    /// For nodes and vaults: waits for room instead of refusing, and is served before users.
    ///
    /// # Errors
    /// As [`WriterHandle::submit`], but never [`Reason::Overloaded`].
    pub(crate) async fn report(&self, command: Command) -> Result<Answer, Refusal> {
        let (reply, answer) = oneshot::channel();
        let order = Order { command, reply: Some(reply), decision: None };
        self.urgent.send(Work::Command(Box::new(order))).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    fn send(&self, order: Order) -> Result<(), Refusal> {
        self.queue.try_send(Work::Command(Box::new(order))).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Refusal::new(Reason::Overloaded, "too many commands are waiting"),
            mpsc::error::TrySendError::Closed(_) => gone(),
        })
    }

    /// For the scheduler's thread: waits for room, wants no answer.
    pub(crate) fn submit_blocking(&self, command: Command) -> bool {
        let order = Order { command, reply: None, decision: None };
        self.urgent.blocking_send(Work::Command(Box::new(order))).is_ok()
    }

    pub(crate) async fn refresh(&self, node: NodeId) {
        // A full queue means that a publication is on its way anyhow; a closed one that nobody cares any more.
        let _ = self.urgent.send(Work::Refresh(node)).await;
    }

    pub(crate) async fn refresh_copies(&self) {
        let _ = self.urgent.send(Work::Copies).await;
    }
}

/// Everything the loop owns.
pub(crate) struct Writer {
    state: State,
    mint: Mint,
    store: Arc<dyn Store>,
    leader: Generation,
    clock: Arc<dyn Clock>,
    publisher: Publisher,
    metrics: Arc<ControllerMetrics>,
    /// Where commits are made.
    committer: OwnThread,
    queue: mpsc::Receiver<Work>,
    urgent: mpsc::Receiver<Work>,
    /// What was stepped and is not being committed yet.
    open: Group,
    commit: Option<JoinHandle<Result<Written, StoreError>>>,
    /// When the commit under way began.
    committing: Instant,
    deciding: Deciding,
    next_tick: Instant,
    next_pruning: Instant,
    /// Until when the next step waits for company.
    gather: Instant,
}

/// What a transaction was about.
enum Written {
    Group(Box<Group>),
    /// So many old requests were deleted.
    Pruned(u64),
}

/// What one step takes from the queues.
#[derive(Default)]
struct Batch {
    commands: Vec<Command>,
    replies: Vec<Waiters>,
    refresh: Vec<NodeId>,
    copies: bool,
}

impl Batch {
    fn add(&mut self, work: Work) {
        match work {
            Work::Command(order) => {
                self.commands.push(order.command);
                self.replies.push((order.reply, order.decision));
            }
            Work::Refresh(node) => self.refresh.push(node),
            Work::Copies => self.copies = true,
        }
    }

    /// A command that nobody waits for.
    fn say(&mut self, command: Command) {
        self.commands.push(command);
        self.replies.push((None, None));
    }

    fn is_empty(&self) -> bool {
        self.commands.is_empty() && self.refresh.is_empty() && !self.copies
    }
}

/// The parts of a writer beside its queue.
pub(crate) struct WriterParts {
    pub(crate) state: State,
    pub(crate) mint: Mint,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) leader: Generation,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<ControllerMetrics>,
    pub(crate) committer: OwnThread,
}

impl Writer {
    /// A handle, and the function that makes the writer once its publisher exists (which needs the handle).
    pub(crate) fn prepare(parts: WriterParts) -> (WriterHandle, impl FnOnce(Publisher) -> Self) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let (urgent, first) = mpsc::channel(URGENT);
        let make = move |publisher| {
            let now = Instant::now();
            Self {
                state: parts.state,
                mint: parts.mint,
                store: parts.store,
                leader: parts.leader,
                clock: parts.clock,
                publisher,
                metrics: parts.metrics,
                committer: parts.committer,
                queue: receiver,
                urgent: first,
                open: Group::default(),
                commit: None,
                committing: now,
                deciding: Deciding::default(),
                next_tick: now,
                next_pruning: now + PRUNE_EVERY,
                gather: now,
            }
        };
        (WriterHandle { queue, urgent }, make)
    }

    /// Runs until `stop`, or until a commit fails.
    ///
    /// # Errors
    /// [`ControllerError::Store`]: what became of the last commit is unknown, so the process must end.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), ControllerError> {
        let now = self.clock.now();
        self.publisher.start(&self.state, now);
        self.metrics.refused(*self.state.counters());
        loop {
            let mut batch = Batch::default();
            let full = self.open.commands >= GROUP;
            let waits = self.commit.is_some() && self.gather > Instant::now();
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.finish().await,
                written = ended(&mut self.commit) => {
                    self.commit = None;
                    self.written(written?)?;
                }
                () = tokio::time::sleep_until(self.gather), if waits => continue,
                Some(work) = self.urgent.recv(), if !full && !waits => batch.add(work),
                Some(work) = self.queue.recv(), if !full && !waits => batch.add(work),
                () = tokio::time::sleep_until(self.next_tick), if !full && !waits => {}
            }
            let room = GROUP.saturating_sub(self.open.commands);
            self.fill(&mut batch, room);
            if !batch.is_empty() {
                self.step(batch);
            }
            self.begin();
        }
    }

    /// Takes what waits, and tells the time if it is due, however much waits.
    fn fill(&mut self, batch: &mut Batch, room: usize) {
        let now = Instant::now();
        if self.next_tick <= now && room > 0 {
            self.next_tick = now + TICK;
            // Nodes are answered behind the commit, and tell no more until then: their silence is ours.
            let stalls = self.commit.is_some() && self.committing + STALL < now;
            if !stalls {
                batch.say(Command::Tick);
                self.vaults_away().into_iter().for_each(|site| batch.say(Command::VaultAway { site }));
            }
        }
        while batch.commands.len() < room
            && let Ok(work) = self.urgent.try_recv().or_else(|_| self.queue.try_recv())
        {
            batch.add(work);
        }
    }

    /// Sites whose vault is gone for longer than a node may be silent, and that are not known for it yet.
    fn vaults_away(&self) -> Vec<SiteId> {
        let span = Duration::from_nanos(self.state.settings().loss_timeout.get());
        let had = self.state.sites().filter(|site| !site.vault_away && site.has_vault()).map(|site| site.id);
        had.filter(|site| self.publisher.hub.is_vault_away(*site, span)).collect()
    }

    /// Steps the state. The scheduler learns of it at once, everybody else when the group is on disk.
    fn step(&mut self, batch: Batch) {
        let now = self.clock.now();
        let begin = std::time::Instant::now();
        let count = batch.commands.len();
        let (answers, rows) = step(&mut self.state, batch.commands, now, &mut self.mint);
        let rejected = answers.iter().flatten().flat_map(|answer| answer.rejected.clone()).collect();
        self.publisher.stepped(&self.state, &rows, rejected, now);
        self.open.add(count, rows, answers.into_iter().zip(batch.replies));
        self.open.refresh.extend(batch.refresh);
        self.open.copies |= batch.copies;
        self.metrics.stepped(count, begin.elapsed());
        self.gather = Instant::now() + GATHER;
    }

    /// Begins to commit what is open, unless a commit is under way.
    fn begin(&mut self) {
        while self.commit.is_none() && !self.open.is_empty() {
            let mut group = Box::new(std::mem::take(&mut self.open));
            // The state is now what it will be when this group is on disk, neither more nor less.
            group.messages = self.publisher.messages(&self.state, &group, self.clock.now());
            if group.rows.is_empty() {
                self.tell(*group);
                continue;
            }
            let (store, leader, metrics) = (Arc::clone(&self.store), self.leader, Arc::clone(&self.metrics));
            self.committing = Instant::now();
            self.commit = Some(self.committer.spawn(async move {
                let begin = std::time::Instant::now();
                store.commit(leader, &group.rows).await?;
                metrics.committed(begin.elapsed());
                Ok(Written::Group(group))
            }));
        }
        if self.commit.is_none() && self.next_pruning <= Instant::now() {
            self.prune();
        }
    }

    /// Begins to delete some of the requests that are not remembered any more.
    fn prune(&mut self) {
        let remember = self.state.settings().remember;
        let now = self.clock.now();
        let ago = |span: sluice_types::Nanos| Timestamp::from_nanos(now.nanos().saturating_sub(span.get()));
        let (before, served) = (ago(remember), ago(self.state.settings().keep_inference));
        let (store, leader) = (Arc::clone(&self.store), self.leader);
        self.committing = Instant::now();
        self.next_pruning = self.committing + PRUNE_EVERY;
        self.commit = Some(self.committer.spawn(async move {
            let gone = store.forget_requests(leader, before, PRUNE_AT_ONCE).await?;
            let inference = store.forget_inference(leader, served, PRUNE_AT_ONCE).await?;
            Ok(Written::Pruned(gone.max(inference)))
        }));
    }

    fn written(&mut self, written: Result<Written, StoreError>) -> Result<(), ControllerError> {
        match written? {
            Written::Group(group) => self.tell(*group),
            Written::Pruned(gone) => {
                if gone >= u64::from(PRUNE_AT_ONCE) {
                    // More than a minute brings: there are more of them.
                    self.next_pruning = Instant::now() + PRUNE_AGAIN;
                }
                tracing::debug!(gone, "forgot old requests");
            }
        }
        Ok(())
    }

    /// The group is on disk: those who asked are answered, then everybody else learns of it.
    fn tell(&mut self, mut group: Group) {
        if let Some(counters) = group.rows.counters {
            self.metrics.refused(counters);
        }
        // Who is answered may ask again at once, as the one that was just made.
        self.publisher.directory.apply(&group.rows);
        // Before answers: a host that is answered may take a new seat, where older messages have no business.
        self.publisher.committed(&mut group);
        group.reply(&mut self.deciding);
        self.deciding.decided(&group.rows.jobs);
    }

    /// What is being committed is committed and answered; what is only stepped never was.
    async fn finish(&mut self) -> Result<(), ControllerError> {
        if self.commit.is_some() {
            let written = ended(&mut self.commit).await?;
            self.commit = None;
            self.written(written)?;
        }
        Ok(())
    }
}

/// Waits for the commit under way; for ever where there is none.
async fn ended(
    commit: &mut Option<JoinHandle<Result<Written, StoreError>>>,
) -> Result<Result<Written, StoreError>, ControllerError> {
    match commit {
        // A commit that panicked leaves its outcome unknown, as one that failed does.
        Some(task) => task.await.map_err(|_| ControllerError::Stopped("a commit")),
        None => std::future::pending().await,
    }
}
