//! The scheduler beside the writer: a thread that owns the world, fed with the deltas of every step.
//!
//! Questions of users wait behind deltas and decisions: between two decisions at most one is explained, and few may
//! wait. What was once found to fit somewhere is remembered until the inventory changes, so that most submits ask nobody.

use std::collections::{HashSet, VecDeque};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, PoisonError, RwLock};

use sluice_lifecycle::{Command, Refusal};
use sluice_plan::{Delta, Explanation, JobView, Limits, Offered, World};
use sluice_types::{JobId, Reason, SiteId, TaskResources};
use tokio::sync::{Semaphore, oneshot};

use crate::error::ControllerError;
use crate::writer::WriterHandle;

/// Explanations that may wait; beyond it callers are told to come back later. One may take as long as some decisions.
const QUESTIONS: usize = 16;
/// Requests that are remembered to fit somewhere.
const FITTING: usize = 4096;

enum Message {
    Deltas(Vec<Delta>, Vec<JobId>),
    Explain(JobId, oneshot::Sender<Option<Explanation>>),
    Offer(Box<JobView>, oneshot::Sender<Result<Offered, (Reason, String)>>),
    Admissible(Box<JobView>, oneshot::Sender<Result<(), Box<Explanation>>>),
    Pause,
}

/// All of a job that decides whether it could ever run.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Ask {
    resources: TaskResources,
    tasks: u32,
    sites: Vec<SiteId>,
}

impl Ask {
    fn of(job: &JobView) -> Self {
        Self { resources: job.resources.clone(), tasks: job.tasks, sites: job.sites.clone() }
    }
}

/// What fits somewhere on the inventory as it is. Filled and cleared by the scheduler's thread alone.
type Fitting = Arc<RwLock<HashSet<Ask>>>;

/// The way to the scheduler. Cheap to clone. Its queue is unbounded, but the writer feeds it no faster than it steps,
/// the scheduler only ever has one plan under way, and callers wait for their answers.
#[derive(Clone, Debug)]
pub struct PlannerHandle {
    queue: Sender<Message>,
    questions: Arc<Semaphore>,
    fitting: Fitting,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Message")
    }
}

impl PlannerHandle {
    pub(crate) fn stepped(&self, deltas: Vec<Delta>, rejected: Vec<JobId>) {
        if !deltas.is_empty() || !rejected.is_empty() {
            let _ = self.queue.send(Message::Deltas(deltas, rejected));
        }
    }

    /// Why a job waits; `None` where it does not.
    ///
    /// # Errors
    /// [`Reason::Overloaded`] where too many ask at once.
    pub async fn explain(&self, job: JobId) -> Result<Option<Explanation>, Refusal> {
        let busy = |_| Refusal::new(Reason::Overloaded, "too many explanations are being made; try again");
        let _place = self.questions.try_acquire().map_err(busy)?;
        let (reply, answer) = oneshot::channel();
        let gone = || Refusal::new(Reason::Unavailable, "the controller is stopping");
        self.queue.send(Message::Explain(job, reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }

    /// What a job would be placed for now; the inner error is why it would not be.
    ///
    /// # Errors
    /// [`Reason::Overloaded`] where too many ask at once.
    pub async fn offer(&self, job: JobView) -> Result<Result<Offered, (Reason, String)>, Refusal> {
        let busy = |_| Refusal::new(Reason::Overloaded, "too many quotes are being made; try again");
        let _place = self.questions.try_acquire().map_err(busy)?;
        let (reply, answer) = oneshot::channel();
        let gone = || Refusal::new(Reason::Unavailable, "the controller is stopping");
        self.queue.send(Message::Offer(Box::new(job), reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }

    /// Whether a job could ever run on what there is.
    ///
    /// # Errors
    /// The explanation why not.
    pub async fn admissible(&self, job: JobView) -> Result<(), Box<Explanation>> {
        if self.fitting.read().unwrap_or_else(PoisonError::into_inner).contains(&Ask::of(&job)) {
            return Ok(());
        }
        let (reply, answer) = oneshot::channel();
        if self.queue.send(Message::Admissible(Box::new(job), reply)).is_err() {
            return Ok(());
        }
        answer.await.unwrap_or(Ok(()))
    }

    /// Places nothing more: the system stops.
    pub(crate) fn pause(&self) {
        let _ = self.queue.send(Message::Pause);
    }
}

/// A handle and its queue; the thread starts with [`run`] once the writer exists.
pub(crate) fn prepare() -> (PlannerHandle, PlannerQueue) {
    let (sender, receiver) = channel();
    let fitting = Fitting::default();
    let handle =
        PlannerHandle { queue: sender, questions: Arc::new(Semaphore::new(QUESTIONS)), fitting: Arc::clone(&fitting) };
    (handle, PlannerQueue { messages: receiver, fitting })
}

/// The receiving end.
pub(crate) struct PlannerQueue {
    messages: Receiver<Message>,
    fitting: Fitting,
}

/// Starts the thread. It ends when every handle is gone or the writer is; then, or if it panics, the receiver hears.
///
/// # Errors
/// [`ControllerError::Stopped`] where the system gives no thread.
pub(crate) fn run(queue: PlannerQueue, writer: WriterHandle) -> Result<oneshot::Receiver<()>, ControllerError> {
    let (ended, end) = oneshot::channel();
    let thread = std::thread::Builder::new().name("planner".to_owned()).spawn(move || {
        // Dropped however the thread ends.
        let _ended: oneshot::Sender<()> = ended;
        Planner::new(queue).run(&writer);
    });
    // The thread is not joined: it blocks in its queue, and its end is heard through the channel.
    thread.map(drop).map_err(|_| ControllerError::Stopped("the planner's thread"))?;
    Ok(end)
}

struct Planner {
    queue: PlannerQueue,
    world: World,
    paused: bool,
    questions: VecDeque<(JobId, oneshot::Sender<Option<Explanation>>)>,
}

impl Planner {
    fn new(queue: PlannerQueue) -> Self {
        Self { queue, world: World::new(), paused: false, questions: VecDeque::new() }
    }

    fn run(&mut self, writer: &WriterHandle) {
        loop {
            // With work left over nobody needs to be waited for.
            let idle = (self.paused || !self.world.has_more()) && self.questions.is_empty();
            if idle {
                match self.queue.messages.recv() {
                    Ok(message) => self.take(message),
                    Err(_) => return,
                }
            }
            while let Ok(message) = self.queue.messages.try_recv() {
                self.take(message);
            }
            if let Some((job, reply)) = self.questions.pop_front()
                && !reply.is_closed()
            {
                drop(reply.send(self.world.explain(job)));
            }
            if self.paused {
                continue;
            }
            let plan = self.world.decide(Limits::default());
            let empty = plan.placements.is_empty() && plan.verdicts.is_empty();
            if !empty && !writer.submit_blocking(Command::Plan(plan)) {
                return;
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Deltas(deltas, rejected) => {
                let edition = self.world.inventory_edition();
                deltas.iter().for_each(|delta| self.world.apply(delta));
                if self.world.inventory_edition() != edition {
                    self.queue.fitting.write().unwrap_or_else(PoisonError::into_inner).clear();
                }
                rejected.into_iter().for_each(|job| self.world.reject(job));
            }
            Message::Explain(job, reply) => self.questions.push_back((job, reply)),
            Message::Offer(job, reply) => drop(reply.send(self.world.offer(&job))),
            Message::Admissible(job, reply) => {
                let answer = self.world.admissible(&job);
                if answer.is_ok() {
                    self.remember(Ask::of(&job));
                }
                drop(reply.send(answer));
            }
            Message::Pause => self.paused = true,
        }
    }

    fn remember(&self, ask: Ask) {
        let mut fitting = self.queue.fitting.write().unwrap_or_else(PoisonError::into_inner);
        if fitting.len() >= FITTING {
            fitting.clear();
        }
        fitting.insert(ask);
    }
}
