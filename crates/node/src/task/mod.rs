//! One task of one attempt on this node, from its assignment to the proof of its end.
//!
//! A loop over three things: look at what is ([`observe`]), account for it ([`account`]), do the next thing that
//! [`crate::reconcile`] names ([`act`]). Long work runs beside the loop, one piece at a time, so that meters and orders
//! never wait for a vault. Everything that must survive the agent is in the task's [`Record`]; everything else is found
//! again from the supervisor's folder.

mod account;
mod act;
mod finish;
mod launch;
mod observe;
mod prepare;

use std::collections::BTreeMap;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use sluice_proto::v1;
use sluice_proto::v1::task_report::State;
use sluice_types::NodeInstant;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::assignment::Assignment;
use crate::depot::{DepotError, Sealed};
use crate::error::{Failure, in_one_line};
use crate::home::{Home, Phase, Record, StoredOutputs};
use crate::meter::Meter;
use crate::reconcile::{Goal, Local, Stage, reconcile};
use crate::shared::Shared;
use crate::supervisor::{self, ExitRecord, OrderState, StagedManifest, Status, StepMarks, SupervisorClient};

/// How often a task that was just launched is looked at, and for how long: somebody waits for its start.
const BEGINNING: Duration = Duration::from_millis(15);
const BEGINS: Duration = Duration::from_secs(5);
/// How often a task in motion is looked at.
const QUICK: Duration = Duration::from_millis(100);
/// How often the end of a running task is looked for.
const STEADY: Duration = Duration::from_millis(250);
/// How often a running task is looked at, and everything else.
const USUAL: Duration = Duration::from_millis(1000);
const LONGEST_RETRY: Duration = Duration::from_secs(15);

/// What the agent tells a task.
#[derive(Debug, Clone)]
pub(crate) struct Desire {
    pub(crate) assignment: Arc<Assignment>,
    /// The assignment came from the controller since this agent started, so its secrets are here.
    pub(crate) fresh: bool,
    /// The controller does not list the task.
    pub(crate) unlisted: bool,
}

impl Desire {
    fn goal(&self) -> Goal {
        if self.unlisted { Goal::Unlisted } else { self.assignment.goal }
    }
}

/// How a task's process ended, or why there never was one.
#[derive(Debug, Clone)]
enum End {
    Exit(Box<ExitRecord>),
    Unstarted(Failure),
}

/// Work that came to its end.
enum Done {
    /// For this manifest to resume from.
    Prepared(String, Result<(), Failure>),
    Launched(Result<Child, Failure>),
    Settled(Result<Option<ExitRecord>, Failure>),
    Killed(Result<(), Failure>),
    Sealed(u64, Result<Sealed, DepotError>),
    Outputs(Result<Option<StoredOutputs>, DepotError>),
    Released(Result<(), Failure>),
}

/// What is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Prepare,
    Launch,
    Settle,
    Kill,
    Seal,
    Outputs,
    Release,
}

struct Work {
    kind: Kind,
    handle: AbortOnDropHandle<Done>,
}

/// The actor.
pub(crate) struct Task {
    shared: Arc<Shared>,
    home: Home,
    record: Record,
    desire: watch::Receiver<Desire>,
    /// What the last look at `desire` saw.
    wanted: Desire,
    meter: Meter,
    client: SupervisorClient,
    child: Option<Child>,
    /// A supervisor was started, or found, by this agent.
    supervised: bool,
    launched_at: Option<Instant>,
    status: Option<Status>,
    /// When steps were finished, as far as it was told.
    steps: StepMarks,
    /// Until when the supervisor's view is known: windows are closed up to here.
    seen_until: NodeInstant,
    looked_at: Option<Instant>,
    end: Option<End>,
    work: Option<Work>,
    /// Checkpoints to be sealed, by sequence.
    staged: BTreeMap<u64, StagedManifest>,
    /// After the end: no staged checkpoint is missing there.
    all_found: bool,
    finish_by: Option<Instant>,
    retry_at: Instant,
    retry_pause: Duration,
    /// What could not be stored, for the ended report.
    given_up: finish::GivenUp,
    stopped: bool,
    killed: bool,
    forgotten: bool,
}

impl Task {
    /// A task that was just accepted, or found on disk.
    pub(crate) fn new(shared: Arc<Shared>, home: Home, record: Record, desire: watch::Receiver<Desire>) -> Self {
        let wanted = desire.borrow().clone();
        Self {
            client: SupervisorClient::new(&home.folder),
            meter: Meter::new(record.chain.clone()),
            seen_until: record.chain.start,
            shared,
            home,
            record,
            desire,
            wanted,
            child: None,
            supervised: false,
            launched_at: None,
            status: None,
            steps: StepMarks::default(),
            looked_at: None,
            end: None,
            work: None,
            staged: BTreeMap::new(),
            all_found: false,
            finish_by: None,
            retry_at: Instant::now(),
            retry_pause: Duration::ZERO,
            given_up: finish::GivenUp::default(),
            stopped: false,
            killed: false,
            forgotten: false,
        }
    }

    /// Runs until the task is forgotten or the agent stops; in the latter case its process goes on.
    pub(crate) async fn run(mut self) {
        self.find_again().await;
        while !self.forgotten {
            self.observe().await;
            self.account().await;
            self.act().await;
            self.tell();
            if self.forgotten || !self.wait().await {
                break;
            }
        }
    }

    /// Waits for the next thing to look at; `false` when the agent stops.
    async fn wait(&mut self) -> bool {
        let pause = self.pause();
        let shared = self.shared.clone();
        let finished = async {
            match &mut self.work {
                Some(work) => (&mut work.handle).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return false,
            done = finished => {
                self.work = None;
                match done {
                    Ok(done) => self.on_done(done).await,
                    Err(error) => tracing::error!(lease = %self.record.key.lease, %error, "work on a task was lost"),
                }
            }
            changed = self.desire.changed() => {
                // The agent drops its side only when it stops.
                if changed.is_err() {
                    return false;
                }
                self.on_desire().await;
            }
            () = tokio::time::sleep(pause) => {}
        }
        true
    }

    fn pause(&self) -> Duration {
        let begins = || self.record.started.is_none() && self.launched_at.is_some_and(|at| at.elapsed() < BEGINS);
        match self.stage() {
            Stage::Running if !self.is_in_motion() => STEADY,
            Stage::Running if begins() => BEGINNING,
            Stage::Running | Stage::Launching => QUICK,
            Stage::Finishing => self.retry_at.saturating_duration_since(Instant::now()).clamp(QUICK, USUAL),
            _ => USUAL,
        }
    }

    /// Something about the running task is expected to change any moment.
    fn is_in_motion(&self) -> bool {
        self.record.started.is_none() || self.order_open() || self.stopped || self.killed
    }

    async fn on_desire(&mut self) {
        let new = self.desire.borrow_and_update().clone();
        let changed = new.goal() != self.wanted.goal();
        if new.assignment.revision != self.wanted.assignment.revision || !self.wanted.fresh {
            let (home, assignment) = (self.home.clone(), new.assignment.clone());
            let written = blocking(move || home.write_assignment(&assignment)).await;
            if let Err(error) = written {
                // The controller sends it again after a restart.
                tracing::warn!(lease = %self.record.key.lease, error = in_one_line(&error), "assignment not kept");
            }
        }
        // A hand-over names another checkpoint than the one that was prepared.
        let stale = new.assignment.resume_manifest() != self.wanted.assignment.resume_manifest();
        if stale && self.record.phase == Phase::Prepared && self.work.is_none() {
            self.record.phase = Phase::Accepted;
        }
        self.wanted = new;
        if changed {
            self.retry_at = Instant::now();
            self.retry_pause = Duration::ZERO;
            self.cut_now().await;
        }
    }

    fn stage(&self) -> Stage {
        let under_way = self.work.as_ref().map(|work| work.kind);
        if self.record.ended.is_some() {
            return Stage::Ended;
        }
        if self.end.is_some() {
            return Stage::Finishing;
        }
        match (self.record.phase, under_way) {
            (_, Some(Kind::Launch)) => Stage::Launching,
            (Phase::Launched, _) if self.supervised => Stage::Running,
            (_, Some(Kind::Prepare)) => Stage::Preparing,
            (Phase::Prepared | Phase::Launched, _) => Stage::Prepared,
            (Phase::Accepted, _) => Stage::Fresh,
        }
    }

    fn order_open(&self) -> bool {
        let order = self.status.as_ref().and_then(|status| status.order.as_ref());
        order.is_some_and(|order| order.exit && matches!(order.state, OrderState::Waiting | OrderState::Told { .. }))
    }

    fn local(&self) -> Local {
        Local {
            stage: self.stage(),
            ordered: self.record.ordered,
            order_open: self.order_open(),
            stopped: self.stopped,
            killed: self.killed,
            dropping: !matches!(self.work, Some(Work { kind: Kind::Seal | Kind::Outputs, .. })),
        }
    }

    fn next_action(&self) -> crate::reconcile::Action {
        reconcile(self.wanted.goal(), self.wanted.assignment.revision, &self.local())
    }

    /// Puts on the board where the task stands.
    fn tell(&self) {
        let stage = self.stage();
        let state = match stage {
            Stage::Prepared => Some(State::Prepared(v1::TaskPrepared {})),
            Stage::Running => self.record.started.map(|started| {
                let metrics = self.status.as_ref().map(|status| status.metrics.clone()).unwrap_or_default();
                State::Running(v1::TaskRunning {
                    started_ns: started.nanos(),
                    step: self.record.last_step,
                    metrics: metrics.into_iter().collect(),
                    held: self.record.held.map(|step| v1::TaskHeld { revision: self.record.ordered, step }),
                })
            }),
            Stage::Ended => self.record.ended.as_ref().map(|ended| State::Ended(ended.wire())),
            _ => None,
        };
        if !self.forgotten {
            self.shared.board.put(self.record.key, stage, state);
        }
    }

    /// Keeps the record; `false` where it could not be written. The next change writes it again.
    async fn save(&mut self) -> bool {
        let (board, lease) = (&self.shared.board, self.record.key.lease);
        self.record.sealed.retain(|note| board.holds(lease, &note.manifest.to_string()));
        self.record.chain = self.meter.chain().clone();
        let (home, record) = (self.home.clone(), self.record.clone());
        let written = blocking(move || home.write_record(&record)).await;
        if let Err(error) = &written {
            tracing::error!(%lease, error = in_one_line(error), "the task's record could not be written");
        }
        written.is_ok()
    }

    fn start(&mut self, kind: Kind, work: impl Future<Output = Done> + Send + 'static) {
        self.work = Some(Work { kind, handle: AbortOnDropHandle::new(tokio::spawn(work)) });
    }

    /// Later, and later still after each failure.
    fn back_off(&mut self) {
        self.retry_pause = (self.retry_pause * 2).clamp(Duration::from_millis(250), LONGEST_RETRY);
        let now = Instant::now();
        self.retry_at = now + self.retry_pause;
        // When the time to finish is over, what could not be stored is given up at once.
        if let Some(finish_by) = self.finish_by.filter(|by| *by > now) {
            self.retry_at = self.retry_at.min(finish_by);
        }
    }

    /// The clock of the task's own boot; `None` where that boot is over.
    fn now(&self) -> Option<NodeInstant> {
        (self.record.boot == self.shared.boot).then(supervisor::boottime)
    }
}

/// Short file work off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.expect("invariant: file work neither panics nor is aborted")
}
