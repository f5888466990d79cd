//! The scheduler beside the writer: a thread that owns the world, fed with committed deltas.

use std::sync::mpsc::{Receiver, Sender, channel};

use sluice_lifecycle::Command;
use sluice_plan::{Delta, Explanation, JobView, Limits, World};
use sluice_types::JobId;
use tokio::sync::oneshot;

use crate::error::ControllerError;
use crate::writer::WriterHandle;

enum Message {
    Deltas(Vec<Delta>, Vec<JobId>),
    Explain(JobId, oneshot::Sender<Option<Explanation>>),
    Admissible(Box<JobView>, oneshot::Sender<Result<(), Explanation>>),
    Pause,
}

/// The way to the scheduler. Cheap to clone. Its queue is unbounded, but the writer feeds it no faster than commits
/// and the scheduler only ever has one plan under way.
#[derive(Clone, Debug)]
pub struct PlannerHandle {
    queue: Sender<Message>,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Message")
    }
}

impl PlannerHandle {
    pub(crate) fn committed(&self, deltas: Vec<Delta>, rejected: Vec<JobId>) {
        if !deltas.is_empty() || !rejected.is_empty() {
            let _ = self.queue.send(Message::Deltas(deltas, rejected));
        }
    }

    /// Why a job waits; `None` where it does not.
    pub async fn explain(&self, job: JobId) -> Option<Explanation> {
        let (reply, answer) = oneshot::channel();
        self.queue.send(Message::Explain(job, reply)).ok()?;
        answer.await.ok().flatten()
    }

    /// Whether a job could ever run on what there is.
    ///
    /// # Errors
    /// The explanation why not.
    pub async fn admissible(&self, job: JobView) -> Result<(), Explanation> {
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
    (PlannerHandle { queue: sender }, PlannerQueue(receiver))
}

/// The receiving end.
pub(crate) struct PlannerQueue(Receiver<Message>);

/// Starts the thread. It ends when every handle is gone or the writer is.
///
/// # Errors
/// [`ControllerError::Stopped`] where the system gives no thread.
pub(crate) fn run(queue: PlannerQueue, writer: WriterHandle) -> Result<std::thread::JoinHandle<()>, ControllerError> {
    std::thread::Builder::new()
        .name("planner".to_owned())
        .spawn(move || decide(&queue.0, &writer))
        .map_err(|_| ControllerError::Stopped("the planner's thread"))
}

fn decide(queue: &Receiver<Message>, writer: &WriterHandle) {
    let mut world = World::new();
    let mut paused = false;
    loop {
        // With work left over nobody needs to be waited for.
        if !world.has_more() || paused {
            match queue.recv() {
                Ok(message) => take(&mut world, message, &mut paused),
                Err(_) => return,
            }
        }
        while let Ok(message) = queue.try_recv() {
            take(&mut world, message, &mut paused);
        }
        if paused {
            continue;
        }
        let plan = world.decide(Limits::default());
        let empty = plan.placements.is_empty() && plan.verdicts.is_empty();
        if !empty && !writer.submit_blocking(Command::Plan(plan)) {
            return;
        }
    }
}

fn take(world: &mut World, message: Message, paused: &mut bool) {
    match message {
        Message::Deltas(deltas, rejected) => {
            deltas.iter().for_each(|delta| world.apply(delta));
            rejected.into_iter().for_each(|job| world.reject(job));
        }
        Message::Explain(job, reply) => drop(reply.send(world.explain(job))),
        Message::Admissible(job, reply) => drop(reply.send(world.admissible(&job))),
        Message::Pause => *paused = true,
    }
}
