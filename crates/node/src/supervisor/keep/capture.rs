//! When a home folder is captured, and what becomes of the capture.
//!
//! By the policy's rhythm and on demand everything stands still for a moment and goes on behind it. Where the sandbox is to
//! end at a checkpoint, what can be copied before is copied, its users are told, and the capture is taken once it has ended:
//! nothing that was written before the end is missing in it. At every other end that was not a kill it is taken as well.

use std::time::Duration;

use sluice_types::{NodeInstant, Reason};
use tokio::task::JoinHandle;

use super::super::live::Live;
use super::super::protocol::Refusal;
use super::super::records::{Ordered, Phase, StagedSummary};
use super::super::remove::remove_tree;
use super::super::spec::{CheckpointMode, LaunchSpec};
use super::super::staging::Stager;
use super::blobs::Blobs;
use super::still::{Group, Over, Still};
use super::take::{Bounds, Problem, Taken, take, warm};

/// Captures that may wait for the site's vault before one is left out.
const WAITING: usize = 2;
/// How long anybody may stand still for a capture; one that would take longer is given up.
const STILL: Duration = Duration::from_secs(2);

/// Keeps the home folder of one sandbox.
pub(in crate::supervisor) struct HomeKeeper {
    /// `None` while a capture has it.
    blobs: Option<Blobs>,
    work: Option<JoinHandle<(Blobs, Done)>>,
}

/// What came of a piece of work.
enum Done {
    /// A capture, or none; which and why was told where it was taken.
    Captured,
    /// What can be copied before the end is copied, or can never be.
    Warmed(Result<(), Problem>),
}

/// What the main loop is to do.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::supervisor) enum Next {
    /// Nothing.
    Wait,
    /// End the sandbox; it is captured after that.
    End,
}

impl HomeKeeper {
    /// `None` for a task whose home is not kept.
    pub(in crate::supervisor) fn of(live: &Live) -> Option<Self> {
        let kept = live.spec().checkpoint.mode == CheckpointMode::Home;
        kept.then(|| Self { blobs: Some(Blobs::new(live.folder().copies())), work: None })
    }

    /// One look: takes what is done, and begins what is due.
    pub(in crate::supervisor) async fn look(&mut self, live: &Live, now: NodeInstant) -> Next {
        let mut next = Next::Wait;
        if self.work.as_ref().is_some_and(JoinHandle::is_finished) {
            match self.finish().await {
                // From here on it ends, and the capture at its end is what the order asked for.
                Some(Done::Warmed(Ok(()))) if live.core().orders.leave() => next = Next::End,
                Some(Done::Warmed(Ok(()))) => {}
                Some(Done::Warmed(Err(problem))) => {
                    live.say(&format!("the home folder cannot be kept, so this goes on: {problem}"));
                    live.core().orders.fail(&problem.to_string());
                }
                Some(Done::Captured) | None => {}
            }
        }
        self.begin(live, now);
        next
    }

    fn begin(&mut self, live: &Live, now: NodeInstant) {
        let Some(mut blobs) = self.blobs.take() else { return };
        let due = {
            let mut core = live.core();
            let runs = core.phase == Phase::Running && core.started_at.is_some();
            if runs { core.orders.signal_due(now, false).map(|_| core.orders.ends()) } else { None }
        };
        let Some(ends) = due else {
            self.blobs = Some(blobs);
            return;
        };
        let live = live.clone();
        self.work = Some(tokio::task::spawn_blocking(move || {
            let done = match ends {
                true => Done::Warmed(prepare(&live, &mut blobs)),
                false => {
                    capture_running(&live, &mut blobs);
                    Done::Captured
                }
            };
            (blobs, done)
        }));
    }

    async fn finish(&mut self) -> Option<Done> {
        let (blobs, done) = self.work.take()?.await.ok()?;
        self.blobs = Some(blobs);
        Some(done)
    }

    /// Nothing of the sandbox runs any more: its home is captured as it was left.
    pub(in crate::supervisor) async fn last(&mut self, live: &Live) {
        let _earlier = self.finish().await;
        let Some(mut blobs) = self.blobs.take() else { return };
        let wanted = {
            let core = live.core();
            core.started_at.is_some() && core.ordered != Some(Ordered::Kill)
        };
        let live = live.clone();
        let work = tokio::task::spawn_blocking(move || {
            if wanted {
                capture(&live, &mut blobs, &Over);
            }
            let _gone = remove_tree(&live.folder().copies());
        });
        let _done = work.await;
    }
}

fn bounds(spec: &LaunchSpec) -> Bounds {
    let bytes = spec.limits.work.get().min(spec.limits.stage.get());
    Bounds { bytes, files: spec.limits.files, still: STILL }
}

/// Whether the home can be kept at all, and most of the copying while it still runs.
fn prepare(live: &Live, blobs: &mut Blobs) -> Result<(), Problem> {
    let group = Group { group: &live.spec().group, stays: &|| false };
    warm(blobs, &live.spec().work_dir, &group, bounds(live.spec()))
}

fn capture_running(live: &Live, blobs: &mut Blobs) {
    let stays = || live.core().phase == Phase::Frozen;
    // Whoever is told to freeze or thaw the sandbox meanwhile waits until it goes on.
    let _alone = live.stillness();
    let waiting = live.stager().waiting();
    if waiting >= WAITING {
        // There must be room for the one at the end.
        let why = format!("{waiting} captures wait to be stored");
        live.say(&format!("the home folder was not captured: {why}"));
        live.core().orders.fail(&why);
    } else if live.core().phase == Phase::Running {
        capture(live, blobs, &Group { group: &live.spec().group, stays: &stays });
    }
}

/// Takes a capture and stages it. What came of it is told in the log and to the orders.
fn capture(live: &Live, blobs: &mut Blobs, still: &impl Still) {
    // As with every checkpoint: the state is changed before the stager is free again.
    let mut stager = live.stager();
    match stage(live, blobs, still, &mut stager) {
        Ok(summary) => {
            // Whether it ends with it is known to whoever ends it.
            let _ends = live.on_staged(summary);
        }
        Err(refusal) => {
            // Makes it empty.
            let _room = stager.room();
            live.say(&format!("the home folder was not captured: {}", refusal.message));
            live.core().orders.fail(&refusal.message);
        }
    }
}

fn stage(live: &Live, blobs: &mut Blobs, still: &impl Still, stager: &mut Stager) -> Result<StagedSummary, Refusal> {
    let room = stager.room()?;
    let mut captured = None;
    let stopped = || captured = Some(live.captured_at());
    let taken = take(blobs, &live.spec().work_dir, &room, still, bounds(live.spec()), stopped);
    let taken = taken.map_err(|problem| Refusal::new(reason(&problem), problem.to_string()))?;
    live.say(&told(&taken));
    let resumed = live.spec().resume.as_ref().map_or(0, |resume| resume.step);
    let step = resumed.saturating_add(stager.sequence());
    let note = serde_json::json!({"home": {
        "files": taken.nodes, "bytes": taken.bytes, "leftOut": taken.left_out.count,
        "stillMillis": u64::try_from(taken.still.as_millis()).unwrap_or(u64::MAX),
    }});
    let at = captured.unwrap_or_else(|| live.captured_at());
    stager.seal(&room, step, note, HOME.to_owned(), taken.pieces, at)
}

/// What wrote the checkpoint, as its `code` says.
pub(in crate::supervisor) const HOME: &str = "sluice-home-1";

fn reason(problem: &Problem) -> Reason {
    match problem {
        Problem::TooLarge(_) => Reason::TooLarge,
        Problem::NotStill(_) | Problem::WentOn | Problem::TooSlow(_) => Reason::Overloaded,
        Problem::Io(..) | Problem::Tree(_) => Reason::Internal,
    }
}

fn told(taken: &Taken) -> String {
    let Taken { nodes, bytes, still, copied, left_out, .. } = taken;
    let mut text = format!(
        "the home folder was captured: {nodes} files and folders of {bytes} bytes; everything stood still for {} ms, {copied} \
         of them were copied in that time",
        still.as_millis()
    );
    if left_out.count > 0 {
        let names = left_out.names.join(", ");
        text.push_str(&format!("; left out: {} sockets, pipes, devices or mounts ({names})", left_out.count));
    }
    text
}
