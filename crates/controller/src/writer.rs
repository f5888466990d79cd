//! The one writer: takes commands of many callers, steps the state, commits one transaction, then lets the world know.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sluice_lifecycle::model::{Job, JobState};
use sluice_lifecycle::{Answer, Command, Mint, Refusal, Rows, State, step};
use sluice_store::Store;
use sluice_types::{Generation, JobId, NodeId, Reason, Timestamp};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::error::ControllerError;
use crate::metrics::ControllerMetrics;
use crate::publish::Publisher;

/// Commands that may wait for the writer; beyond it callers are told to come back later.
const QUEUE: usize = 16 * 1024;
/// Reports that may wait; beyond it their senders wait, and so do the streams they read.
const URGENT: usize = 1024;
/// Commands in one transaction at most.
const GROUP: usize = 1024;
/// How often time is told.
const TICK: Duration = Duration::from_millis(200);
/// How often, and how many, old requests are deleted.
const PRUNE_EVERY: Duration = Duration::from_secs(60);
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
    pub(crate) state: State,
    pub(crate) mint: Mint,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) leader: Generation,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) publisher: Publisher,
    pub(crate) metrics: Arc<ControllerMetrics>,
    queue: mpsc::Receiver<Work>,
    urgent: mpsc::Receiver<Work>,
    deciding: HashMap<JobId, oneshot::Sender<Job>>,
}

/// Who waits for a command: for its answer, and for the first decision on the job that it submits.
type Waiters = (Option<oneshot::Sender<Result<Answer, Refusal>>>, Option<oneshot::Sender<Job>>);

/// What one round took from the queue.
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
}

/// The parts of a writer beside its queue.
pub(crate) struct WriterParts {
    pub(crate) state: State,
    pub(crate) mint: Mint,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) leader: Generation,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<ControllerMetrics>,
}

impl Writer {
    /// A handle, and the function that makes the writer once its publisher exists (which needs the handle).
    pub(crate) fn prepare(parts: WriterParts) -> (WriterHandle, impl FnOnce(Publisher) -> Self) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let (urgent, first) = mpsc::channel(URGENT);
        let make = move |publisher| Self {
            state: parts.state,
            mint: parts.mint,
            store: parts.store,
            leader: parts.leader,
            clock: parts.clock,
            publisher,
            metrics: parts.metrics,
            queue: receiver,
            urgent: first,
            deciding: HashMap::new(),
        };
        (WriterHandle { queue, urgent }, make)
    }

    /// Runs until `stop`, or until a commit fails.
    ///
    /// # Errors
    /// [`ControllerError::Store`]: what became of the last commit is unknown, so the process must end.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), ControllerError> {
        let mut next_tick = Instant::now();
        let mut next_pruning = Instant::now() + PRUNE_EVERY;
        let now = self.clock.now();
        self.publisher.start(&self.state, now);
        loop {
            let mut batch = Batch::default();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(work) = self.urgent.recv() => batch.add(work),
                Some(work) = self.queue.recv() => batch.add(work),
                () = tokio::time::sleep_until(next_tick) => {}
            }
            // However much waits: time goes on.
            if next_tick <= Instant::now() {
                batch.commands.push(Command::Tick);
                batch.replies.push((None, None));
                next_tick = Instant::now() + TICK;
            }
            while batch.commands.len() < GROUP
                && let Ok(work) = self.urgent.try_recv().or_else(|_| self.queue.try_recv())
            {
                batch.add(work);
            }
            self.round(batch).await?;
            if next_pruning <= Instant::now() {
                self.prune().await?;
                next_pruning = Instant::now() + PRUNE_EVERY;
            }
        }
    }

    /// Deletes some of the requests that are not remembered any more.
    async fn prune(&self) -> Result<(), ControllerError> {
        let remember = self.state.settings().remember;
        let now = self.clock.now();
        let before = Timestamp::from_nanos(now.nanos().saturating_sub(remember.get()));
        let gone = self.store.forget_requests(self.leader, before, PRUNE_AT_ONCE).await?;
        if gone > 0 {
            tracing::debug!(gone, "forgot old requests");
        }
        Ok(())
    }

    async fn round(&mut self, batch: Batch) -> Result<(), ControllerError> {
        let now = self.clock.now();
        let begin = std::time::Instant::now();
        let count = batch.commands.len();
        let (answers, rows) = step(&mut self.state, batch.commands, now, &mut self.mint);
        let stepped = begin.elapsed();
        if !rows.is_empty() {
            self.store.commit(self.leader, &rows).await?;
        }
        self.metrics.round(count, stepped, begin.elapsed());
        let rejected: Vec<_> = answers
            .iter()
            .filter_map(|answer| answer.as_ref().ok())
            .flat_map(|answer| answer.rejected.clone())
            .collect();
        // Who is answered may ask again at once, as the one that was just made.
        self.publisher.directory.apply(&rows);
        self.reply(answers, batch.replies);
        self.decided(&rows);
        self.publisher.committed(&self.state, &rows, rejected, now);
        for node in batch.refresh {
            self.publisher.refresh(&self.state, node, now);
        }
        if batch.copies {
            self.publisher.copies(&self.state, now);
        }
        Ok(())
    }

    fn reply(&mut self, answers: Vec<Result<Answer, Refusal>>, replies: Vec<Waiters>) {
        for (answer, (reply, decision)) in answers.into_iter().zip(replies) {
            if let (Ok(answer), Some(decision)) = (&answer, decision)
                && let Some(job) = answer.job.as_ref()
            {
                self.deciding.insert(job.id, decision);
            }
            if let Some(reply) = reply {
                // The caller may have gone; its request id brings it the same answer.
                let _ = reply.send(answer);
            }
        }
    }

    fn decided(&mut self, rows: &Rows) {
        if self.deciding.is_empty() {
            return;
        }
        for job in &rows.jobs {
            let decided = job.state != JobState::Pending || job.reason.is_some();
            if decided && let Some(waiter) = self.deciding.remove(&job.id) {
                let _ = waiter.send(job.clone());
            }
        }
        if self.deciding.len() > QUEUE {
            self.deciding.retain(|_, waiter| !waiter.is_closed());
        }
    }
}
