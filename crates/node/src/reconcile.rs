//! What to do next, from what should be and what is. Pure and level-triggered: called again with the same input it gives
//! the same answer, so any action may be lost, repeated or interrupted.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sluice_types::LeaseId;

/// What the controller wants of a task; what it has not listed must go as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Goal {
    /// Fetch everything, start nothing.
    Prepare,
    /// Run.
    Run,
    /// Stop at a checkpoint.
    Checkpoint,
    /// Stop with grace, keep the outputs.
    Stop,
    /// Kill and forget, but prove the end.
    Release,
    /// The controller does not know it: kill and forget.
    Unlisted,
}

impl Goal {
    /// Whether nothing the task still does counts.
    pub(crate) fn is_fenced(self) -> bool {
        matches!(self, Self::Release | Self::Unlisted)
    }
}

/// Where a task stands on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Accepted, nothing fetched.
    Fresh,
    /// Fetching and unpacking.
    Preparing,
    /// Could start at once.
    Prepared,
    /// The supervisor is being started.
    Launching,
    /// The supervisor lives.
    Running,
    /// The process is gone; results are being stored, the slice released.
    Finishing,
    /// The ended report stands.
    Ended,
}

/// What is, as far as decisions need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Local {
    /// Where it stands.
    pub(crate) stage: Stage,
    /// The newest revision for which a checkpoint was ordered; 0 = none.
    pub(crate) ordered: u64,
    /// Such an order is open.
    pub(crate) order_open: bool,
    /// It was told to stop.
    pub(crate) stopped: bool,
    /// It was told to be killed.
    pub(crate) killed: bool,
    /// Finishing stores nothing.
    pub(crate) dropping: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing until something changes.
    Wait,
    /// Fetch and unpack.
    Prepare,
    /// Grant the slice and start the supervisor.
    Launch,
    /// Order a checkpoint with the end after it.
    OrderCheckpoint,
    /// Take that order back.
    TakeBackOrder,
    /// Ask it to end.
    Stop,
    /// Kill it.
    Kill,
    /// End a task that never started.
    EndUnstarted,
    /// Store no more of an ended task.
    DropResults,
    /// Delete every trace.
    Forget,
}

/// The next action for one task.
pub(crate) fn reconcile(goal: Goal, revision: u64, local: &Local) -> Action {
    use Goal::{Checkpoint, Prepare, Release, Run, Stop, Unlisted};
    match (local.stage, goal) {
        (Stage::Fresh, Prepare | Run | Checkpoint) => Action::Prepare,
        (Stage::Prepared, Run | Checkpoint) => Action::Launch,
        (Stage::Fresh | Stage::Preparing | Stage::Prepared, Stop | Release | Unlisted) => Action::EndUnstarted,
        (Stage::Running, Checkpoint) if local.ordered < revision && !local.stopped => Action::OrderCheckpoint,
        (Stage::Running, Prepare | Run) if local.order_open => Action::TakeBackOrder,
        (Stage::Running, Stop) if !local.stopped && !local.killed => Action::Stop,
        (Stage::Running, Release | Unlisted) if !local.killed => Action::Kill,
        (Stage::Finishing, Release | Unlisted) if !local.dropping => Action::DropResults,
        (Stage::Ended, Unlisted) => Action::Forget,
        // On its way, or as it should be. A start under way is finished first: then it can be stopped in one way only.
        (Stage::Preparing, Prepare | Run | Checkpoint)
        | (Stage::Prepared, Prepare)
        | (Stage::Launching | Stage::Running | Stage::Finishing, _)
        | (Stage::Ended, Prepare | Run | Checkpoint | Stop | Release) => Action::Wait,
    }
}

/// One difference between a list of assignments and the tasks of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// A task that is new here.
    Accept(LeaseId),
    /// A newer version of an assignment, or the same one again with its secrets.
    Update(LeaseId),
    /// A task that was never here has to be gone: the proof is given at once.
    Prove(LeaseId),
    /// Known here, but not to the controller.
    Unlist(LeaseId),
}

/// What a list changes. `listed` is the goal and revision by lease, `local` the revision of each task here.
pub(crate) fn differences(
    full: bool,
    listed: &BTreeMap<LeaseId, (Goal, u64)>,
    local: &BTreeMap<LeaseId, u64>,
) -> Vec<Change> {
    let mut changes = Vec::new();
    for (lease, (goal, revision)) in listed {
        match local.get(lease) {
            Some(known) if revision >= known => changes.push(Change::Update(*lease)),
            Some(_) => {}
            None if matches!(goal, Goal::Stop | Goal::Release) => changes.push(Change::Prove(*lease)),
            None => changes.push(Change::Accept(*lease)),
        }
    }
    if full {
        let listed: BTreeSet<_> = listed.keys().collect();
        changes.extend(local.keys().filter(|lease| !listed.contains(lease)).map(|lease| Change::Unlist(*lease)));
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Goal; 6] = [Goal::Prepare, Goal::Run, Goal::Checkpoint, Goal::Stop, Goal::Release, Goal::Unlisted];

    fn local(stage: Stage) -> Local {
        Local { stage, ordered: 0, order_open: false, stopped: false, killed: false, dropping: false }
    }

    #[test]
    fn every_stage_and_goal_has_its_action() {
        use Action::*;
        let table = [
            (Stage::Fresh, [Prepare, Prepare, Prepare, EndUnstarted, EndUnstarted, EndUnstarted]),
            (Stage::Preparing, [Wait, Wait, Wait, EndUnstarted, EndUnstarted, EndUnstarted]),
            (Stage::Prepared, [Wait, Launch, Launch, EndUnstarted, EndUnstarted, EndUnstarted]),
            (Stage::Launching, [Wait; 6]),
            (Stage::Running, [Wait, Wait, OrderCheckpoint, Stop, Kill, Kill]),
            (Stage::Finishing, [Wait, Wait, Wait, Wait, DropResults, DropResults]),
            (Stage::Ended, [Wait, Wait, Wait, Wait, Wait, Forget]),
        ];
        for (stage, actions) in table {
            let found = ALL.map(|goal| reconcile(goal, 5, &local(stage)));
            assert_eq!(found, actions, "{stage:?}");
        }
    }

    #[test]
    fn orders_are_given_once_per_revision_and_taken_back() {
        let running = local(Stage::Running);
        let ordered = Local { ordered: 5, order_open: true, ..running };
        assert_eq!(reconcile(Goal::Checkpoint, 5, &ordered), Action::Wait);
        assert_eq!(reconcile(Goal::Checkpoint, 6, &ordered), Action::OrderCheckpoint);
        assert_eq!(reconcile(Goal::Run, 6, &ordered), Action::TakeBackOrder);
        // Failed by its deadline: it goes on until the controller decides.
        let failed = Local { order_open: false, ..ordered };
        assert_eq!(reconcile(Goal::Checkpoint, 5, &failed), Action::Wait);
        assert_eq!(reconcile(Goal::Run, 6, &failed), Action::Wait);
        assert_eq!(reconcile(Goal::Checkpoint, 7, &failed), Action::OrderCheckpoint);
        let stopped = Local { stopped: true, ..running };
        assert_eq!(reconcile(Goal::Stop, 5, &stopped), Action::Wait);
        assert_eq!(reconcile(Goal::Checkpoint, 6, &stopped), Action::Wait);
        assert_eq!(reconcile(Goal::Release, 6, &stopped), Action::Kill);
        let killed = Local { killed: true, ..stopped };
        assert_eq!(reconcile(Goal::Release, 6, &killed), Action::Wait);
    }

    #[test]
    fn lists_are_compared_by_revision_and_full_lists_are_everything() {
        let lease = LeaseId::from_raw;
        let listed = BTreeMap::from([
            (lease(1), (Goal::Run, 4)),
            (lease(2), (Goal::Run, 1)),
            (lease(3), (Goal::Prepare, 1)),
            (lease(4), (Goal::Release, 9)),
            (lease(5), (Goal::Checkpoint, 2)),
        ]);
        let local = BTreeMap::from([(lease(1), 3), (lease(2), 2), (lease(7), 1)]);
        let part =
            [Change::Update(lease(1)), Change::Accept(lease(3)), Change::Prove(lease(4)), Change::Accept(lease(5))];
        assert_eq!(differences(false, &listed, &local), part);
        let all = [&part[..], &[Change::Unlist(lease(7))]].concat();
        assert_eq!(differences(true, &listed, &local), all);
        // The same revision again is taken: it may carry the secrets that a restart has lost.
        let again = BTreeMap::from([(lease(1), 4)]);
        assert_eq!(differences(false, &listed, &again)[0], Change::Update(lease(1)));
    }
}
