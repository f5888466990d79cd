//! What the parts of one running supervisor share: the task's present state and the ways to act on it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sluice_device::{DeviceError, process_start_ticks};
use sluice_types::{Nanos, NodeInstant, Reason};
use tokio::sync::{Notify, mpsc};

use super::folder::Folder;
use super::log::{Log, Stream};
use super::orders::{Orders, Stop};
use super::protocol::{Action, Announcement, Refusal};
use super::records::{Ordered, Outcome, Phase, StagedSummary, Status};
use super::sessions::{Place, Sessions};
use super::spec::{CheckpointMode, LaunchSpec, SandboxMode, TaskKind};
use super::staging::Stager;
use super::steps::StepMarks;
use super::{clock, task};

/// Staged checkpoints that a [`Status`] lists.
const LISTED: usize = 64;
/// How long killed processes may take to be gone.
pub(super) const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// One running supervisor; cheap to clone.
#[derive(Clone)]
pub(super) struct Live(Arc<Shared>);

struct Shared {
    folder: Folder,
    spec: LaunchSpec,
    log: Log,
    core: Mutex<Core>,
    /// Locked for as long as a checkpoint is being taken over, in blocking threads only.
    stager: Mutex<Stager>,
    events: mpsc::Sender<Event>,
    sessions: Sessions,
    /// Held by whoever has everything stand still for a while.
    stillness: Mutex<()>,
    /// Told when a task that is held at a step boundary may go on.
    released: Notify,
}

/// What the main loop has to do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Event {
    /// Ask the task to end, and kill it after the grace.
    Stop { grace: Nanos },
    /// Kill it now.
    Kill,
}

/// The present state. Every method is a short, complete change.
pub(super) struct Core {
    pub(super) phase: Phase,
    pub(super) child: Option<u32>,
    main: Option<Process>,
    pub(super) started_at: Option<NodeInstant>,
    pub(super) ended_at: Option<NodeInstant>,
    pub(super) start_failure: Option<String>,
    pub(super) last_step: Option<u64>,
    pub(super) steps: StepMarks,
    metrics: BTreeMap<String, f64>,
    staged: Vec<StagedSummary>,
    pub(super) orders: Orders,
    pub(super) ordered: Option<Ordered>,
    pub(super) order_sequence: Option<u64>,
    /// Why we ended it ourselves; decides what the exit is called.
    pub(super) verdict: Option<Outcome>,
}

/// The task's own program; the start tells it from a later process with the same number.
#[derive(Debug, Clone, Copy)]
struct Process {
    pid: u32,
    start_ticks: u64,
}

impl Live {
    pub(super) fn new(folder: Folder, spec: LaunchSpec, log: Log, events: mpsc::Sender<Event>) -> Self {
        let step = spec.resume.as_ref().map_or(0, |resume| resume.step);
        let policy = &spec.checkpoint;
        let every_steps = matches!(policy.mode, CheckpointMode::StateProvider).then_some(policy.every_steps).flatten();
        let every = policy.every.filter(|_| policy.mode != CheckpointMode::Disabled);
        let core = Core {
            phase: Phase::Starting,
            child: None,
            main: None,
            started_at: None,
            ended_at: None,
            start_failure: None,
            last_step: None,
            steps: StepMarks::default(),
            metrics: BTreeMap::new(),
            staged: Vec::new(),
            orders: Orders::new(every_steps, every, step, clock::boottime()),
            ordered: None,
            order_sequence: None,
            verdict: None,
        };
        let stager = Mutex::new(Stager::new(&folder, &spec));
        let sessions = Sessions::new(match spec.kind {
            TaskKind::Command => None,
            TaskKind::Sandbox { patience } | TaskKind::Engine { patience } => Some(patience),
        });
        let (core, released, stillness) = (Mutex::new(core), Notify::new(), Mutex::new(()));
        Self(Arc::new(Shared { folder, spec, log, core, stager, events, sessions, stillness, released }))
    }

    pub(super) fn folder(&self) -> &Folder {
        &self.0.folder
    }

    pub(super) fn spec(&self) -> &LaunchSpec {
        &self.0.spec
    }

    pub(super) fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    /// The task's own program: process and start.
    pub(super) fn main(&self) -> Option<(u32, u64)> {
        self.core().main.map(|main| (main.pid, main.start_ticks))
    }

    /// Where sessions run, while something runs there that is not being ended.
    pub(super) fn place(&self) -> Option<Place> {
        let runs = matches!(self.core().phase, Phase::Running | Phase::Frozen);
        let init = self.main().filter(|_| runs)?;
        let enforced = self.spec().sandbox.mode == SandboxMode::Enforced;
        Some(Place { init, owner: enforced.then_some((self.spec().uid, self.spec().gid)) })
    }

    pub(super) fn log(&self) -> &Log {
        &self.0.log
    }

    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        // Changes are plain assignments; a panic between two of them cannot happen.
        self.0.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stager(&self) -> MutexGuard<'_, Stager> {
        self.0.stager.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody else has everything stand still; in blocking threads only.
    pub(super) fn stillness(&self) -> MutexGuard<'_, ()> {
        self.0.stillness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says something in the task's log.
    pub(super) fn say(&self, text: &str) {
        self.0.log.record(Stream::System, true, text.as_bytes());
    }

    /// Asks the main loop for something. It is asked rarely, and a full queue means that it was asked already.
    pub(super) fn ask(&self, event: Event) {
        let _asked_already = self.0.events.try_send(event);
    }

    pub(super) fn status(&self) -> Status {
        let core = self.core();
        let from = core.staged.len().saturating_sub(LISTED);
        Status {
            phase: core.phase,
            child: core.child,
            main: core.main.map(|main| main.pid),
            started_at: core.started_at,
            ended_at: core.ended_at,
            last_step: core.last_step,
            steps: core.steps.clone(),
            metrics: core.metrics.clone(),
            staged: core.staged[from..].to_vec(),
            order: core.orders.status(),
            log_bytes: self.0.log.bytes(),
        }
    }

    /// The last program before the task's own says that it becomes the task.
    pub(super) fn on_started(&self, pid: Option<u32>) {
        let mut core = self.core();
        if core.started_at.is_some() {
            return;
        }
        core.started_at = Some(clock::boottime());
        core.phase = if core.phase == Phase::Starting { Phase::Running } else { core.phase };
        let found = pid.and_then(|pid| Some(Process { pid, start_ticks: process_start_ticks(pid)? }));
        core.main = found;
    }

    /// A step is complete. Returns when the task may go on, at once unless it is held there.
    pub(super) async fn on_step(&self, step: u64, metrics: BTreeMap<String, f64>) -> Result<Action, Refusal> {
        self.note_step(step, metrics)?;
        if self.spec().checkpoint.mode == CheckpointMode::Home {
            // What runs in a rental may speak the protocol, but its checkpoints are nobody's order.
            return Ok(Action::Continue);
        }
        loop {
            let released = self.0.released.notified();
            let action = self.core().orders.on_step(step, clock::boottime());
            match action {
                Some(action) => return Ok(action),
                None => released.await,
            }
        }
    }

    /// A task that is held looks again whether it may go on.
    pub(super) fn let_go(&self) {
        self.0.released.notify_waiters();
    }

    fn note_step(&self, step: u64, metrics: BTreeMap<String, f64>) -> Result<(), Refusal> {
        let mut core = self.core();
        if let Some(last) = core.last_step.filter(|last| step < *last) {
            return Err(Refusal::field(format!("step {step} after step {last}: steps only grow")));
        }
        if core.last_step != Some(step) {
            core.steps.mark(clock::boottime(), step);
        }
        core.last_step = Some(step);
        core.metrics = metrics;
        Ok(())
    }

    /// The sandbox's outer process was waited for: its number may be another's from here on.
    pub(super) fn on_end(&self, ended_at: NodeInstant) {
        let mut core = self.core();
        core.child = None;
        core.ended_at = Some(ended_at);
    }

    /// When a checkpoint that is taken over now counts as captured: never behind the end.
    pub(super) fn captured_at(&self) -> NodeInstant {
        let now = clock::boottime();
        self.core().ended_at.map_or(now, |ended_at| ended_at.min(now))
    }

    /// Takes over an announced checkpoint; blocks for as long as hashing and writing take.
    pub(super) fn stage(&self, said: &Announcement) -> Result<u64, Refusal> {
        if matches!(self.spec().checkpoint.mode, CheckpointMode::Disabled | CheckpointMode::Home) {
            return Err(Refusal::new(Reason::WrongState, "checkpoints are disabled for this job"));
        }
        // The state is changed before the stager is free again, so that the end of the task, which waits for it, sees it.
        let mut stager = self.stager();
        let summary = stager.take(said, self.captured_at())?;
        let sequence = summary.sequence;
        self.on_staged(summary);
        Ok(sequence)
    }

    /// A checkpoint is staged; returns whether an order to end was fulfilled by it.
    pub(super) fn on_staged(&self, summary: StagedSummary) -> bool {
        let mut core = self.core();
        let ends = core.orders.on_staged(summary.step, summary.sequence, clock::boottime());
        if ends {
            core.ordered = Some(Ordered::CheckpointAndExit);
            core.order_sequence = Some(summary.sequence);
        }
        core.staged.push(summary);
        if core.staged.len() > 2 * LISTED {
            core.staged.drain(..LISTED);
        }
        ends
    }

    /// A new order of the agent; returns its number.
    pub(super) fn order(&self, exit: bool, stop: Stop, deadline: Option<Nanos>) -> Result<u64, Refusal> {
        let grace = match &self.spec().checkpoint.mode {
            CheckpointMode::Disabled => {
                return Err(Refusal::new(Reason::WrongState, "checkpoints are disabled for this job"));
            }
            CheckpointMode::StateProvider | CheckpointMode::Home => None,
            CheckpointMode::Directory { grace, .. } => Some(*grace),
        };
        let mut core = self.core();
        if !matches!(core.phase, Phase::Starting | Phase::Running) {
            return Err(Refusal::new(Reason::WrongState, format!("the task is {:?}", core.phase).to_lowercase()));
        }
        let now = clock::boottime();
        let order = core.orders.order(exit, stop, deadline.or(grace).map(|span| now.after(span)));
        drop(core);
        self.let_go();
        Ok(order)
    }

    /// Holds the task at its next step boundary; returns the last step that it told, or resumed from.
    pub(super) fn hold(&self, deadline: Nanos) -> Result<u64, Refusal> {
        if self.spec().checkpoint.mode != CheckpointMode::StateProvider {
            return Err(Refusal::new(Reason::WrongState, "the task does not tell its steps"));
        }
        self.order(true, Stop::Hold, Some(deadline))?;
        let resumed = self.spec().resume.as_ref().map_or(0, |resume| resume.step);
        Ok(self.core().last_step.unwrap_or(resumed))
    }

    /// Sends a signal to the task's own program, if it still runs. `false` where there is none.
    pub(super) fn signal(&self, signal: Signal) -> bool {
        let main = self.core().main;
        let Some(main) = main.filter(|main| process_start_ticks(main.pid) == Some(main.start_ticks)) else {
            return false;
        };
        i32::try_from(main.pid).is_ok_and(|pid| kill(Pid::from_raw(pid), signal).is_ok())
    }

    /// Kills everything of the task and waits until it is gone; blocks.
    pub(super) fn kill_all(&self) -> Result<(), DeviceError> {
        let child = self.core().child;
        // Without control groups a process that has not joined yet is found by its number only.
        if let Some(pid) = child.and_then(|pid| i32::try_from(pid).ok()) {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        self.spec().group.kill(KILL_PATIENCE)
    }

    /// The checkpoint to resume from as the protocol tells it; `null` for a fresh start.
    pub(super) fn resume_reply(&self) -> serde_json::Value {
        let resume = self.spec().resume.as_ref().filter(|_| self.spec().checkpoint.mode != CheckpointMode::Home);
        let Some(resume) = resume else { return serde_json::Value::Null };
        let entries = resume.entries.iter().map(|entry| {
            let file = task::resume_path(self.spec(), self.folder(), &entry.file);
            serde_json::json!({
                "name": entry.name, "dtype": entry.dtype, "shape": entry.shape,
                "file": file, "offset": entry.offset, "length": entry.length,
            })
        });
        serde_json::json!({"step": resume.step, "cursor": resume.cursor, "entries": entries.collect::<Vec<_>>()})
    }
}
