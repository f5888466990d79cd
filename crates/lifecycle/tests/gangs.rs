//! Gangs that are told to stop: all tasks at one step, and what becomes of them when they do not.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_lifecycle::model::{Goal, JobState, StopCause};
use sluice_lifecycle::{Command, Held, NodeReport, StopStep, TaskKey, UserCommand};
use sluice_types::{Digest, JobId, Nanos, Reason};
use support::{Bench, end, spec};

/// A gang of two that has its slices.
fn placed() -> (Bench, JobId, [TaskKey; 2]) {
    let mut bench = Bench::new();
    let (job, keys) = place(&mut bench);
    (bench, job, keys)
}

fn place(bench: &mut Bench) -> (JobId, [TaskKey; 2]) {
    let spec = Arc::new(sluice_lifecycle::model::JobSpec { tasks: 2, ..spec(None) });
    let submit = UserCommand::Submit { project: bench.project, name: None, spec };
    let job: JobId = bench.user(submit).unwrap().object.parse().unwrap();
    bench.plan();
    let attempt = bench.state.attempt(bench.job(job).current.unwrap()).unwrap().clone();
    let keys = [0, 1].map(|rank: usize| TaskKey {
        attempt: attempt.id,
        lease: attempt.tasks[rank].lease,
        generation: attempt.generation,
    });
    (job, keys)
}

/// A gang of two that runs.
fn gang(bench: &mut Bench) -> (JobId, [TaskKey; 2]) {
    let (job, keys) = place(bench);
    for key in keys {
        at(bench, key, 0, None);
    }
    assert_eq!(bench.job(job).state, JobState::Running);
    (job, keys)
}

fn at(bench: &mut Bench, key: TaskKey, step: u64, held: Option<Held>) {
    let started = bench.clock();
    bench.node_of(key, NodeReport::Running { key, started, step, metrics: BTreeMap::new(), held });
}

/// What the node of a task is told.
fn told(bench: &Bench, key: TaskKey) -> (Goal, u64, StopStep) {
    let node = bench.state.lease(key.lease).unwrap().device.node;
    let wishes = bench.state.wishes(node);
    let wish = wishes.iter().find(|wish| wish.key == key).unwrap();
    (wish.goal, wish.revision, wish.stop)
}

/// It stops at a checkpoint of this step, and its part is sealed.
fn stops(bench: &mut Bench, key: TaskKey, step: u64, name: u8) {
    let (captured, manifest) = (bench.clock(), Digest::from_bytes([name; 32]));
    bench.node_of(key, NodeReport::Sealed { key, step, manifest, size: 1, captured, next_window: 0 });
    bench.node_of(key, NodeReport::Ended { key, end: end(true), windows: 0, step });
}

#[test]
fn a_gang_stops_at_the_first_step_that_no_task_has_passed() {
    let mut bench = Bench::new();
    let (job, [first, second]) = gang(&mut bench);
    bench.user(UserCommand::Suspend(job, None)).unwrap();
    let (_, revision, stop) = told(&bench, first);
    assert_eq!(stop, StopStep::Hold);
    at(&mut bench, first, 7, Some(Held { revision, step: 7 }));
    // Repeated, and of an order that was taken back: neither is the other task's word.
    at(&mut bench, first, 7, Some(Held { revision, step: 7 }));
    at(&mut bench, second, 3, Some(Held { revision: revision - 1, step: 3 }));
    assert_eq!(told(&bench, second), (Goal::Checkpoint, revision, StopStep::Hold));
    at(&mut bench, second, 8, Some(Held { revision, step: 8 }));
    for key in [first, second] {
        assert_eq!(told(&bench, key), (Goal::Checkpoint, revision + 1, StopStep::From(9)));
    }
    // Told again, as nodes do: the step stands.
    at(&mut bench, second, 8, Some(Held { revision, step: 8 }));
    assert_eq!(told(&bench, first).2, StopStep::From(9));
    stops(&mut bench, first, 9, 1);
    assert_eq!(bench.job(job).state, JobState::Suspending);
    stops(&mut bench, second, 9, 2);
    let row = bench.job(job);
    assert_eq!((row.state, row.losses), (JobState::Suspended, 0));
    assert_eq!(bench.state.checkpoint(row.checkpoint.unwrap()).unwrap().step, 9);
}

#[test]
fn a_task_that_ended_by_itself_lets_the_others_go_to_their_end() {
    let mut bench = Bench::new();
    let (job, [first, second]) = gang(&mut bench);
    bench.user(UserCommand::Suspend(job, None)).unwrap();
    let (_, revision, _) = told(&bench, first);
    at(&mut bench, first, 9, Some(Held { revision, step: 9 }));
    bench.end(second);
    assert_eq!(told(&bench, first).2, StopStep::From(u64::MAX));
    bench.end(first);
    let row = bench.rows.jobs.iter().find(|row| row.id == job).unwrap();
    assert_eq!(row.state, JobState::Succeeded);
}

#[test]
fn a_task_that_stopped_by_an_order_taken_back_takes_its_gang_along() {
    let mut bench = Bench::new();
    let (job, [first, second]) = gang(&mut bench);
    bench.user(UserCommand::Suspend(job, None)).unwrap();
    let (_, revision, _) = told(&bench, first);
    for key in [first, second] {
        at(&mut bench, key, 4, Some(Held { revision, step: 4 }));
    }
    // The order's time is over, and just then one has stopped all the same: the other would wait for it for ever.
    bench.pass(120);
    assert_eq!((told(&bench, second).0, bench.job(job).state), (Goal::Run, JobState::Running));
    stops(&mut bench, first, 5, 1);
    assert_eq!(told(&bench, second).0, Goal::Stop);
    let mut killed = end(false);
    (killed.signal, killed.exit_code, killed.reason) = (15, None, Some(Reason::Signalled));
    bench.node_of(second, NodeReport::Ended { key: second, end: killed, windows: 0, step: 4 });
    let row = bench.job(job);
    assert_eq!((row.state, row.failures), (JobState::Pending, 0));
}

#[test]
fn tasks_that_stop_apart_leave_the_last_whole_checkpoint_and_no_loss_of_the_platform() {
    for (by_tenant, state) in [(true, JobState::Suspended), (false, JobState::Pending)] {
        let mut bench = Bench::new();
        let (job, [first, second]) = gang(&mut bench);
        bench.window(first);
        if by_tenant {
            bench.user(UserCommand::Suspend(job, None)).unwrap();
        } else {
            bench.command(Command::Quiesce).unwrap();
        }
        stops(&mut bench, first, 4, 1);
        stops(&mut bench, second, 5, 2);
        let row = bench.job(job);
        assert_eq!((row.state, row.losses, row.credited.units(), row.checkpoint), (state, 0, 0, None));
    }
}

#[test]
fn a_gang_cannot_be_captured_by_the_clocks_of_its_tasks() {
    let mut bench = Bench::new();
    let mut wanted = spec(None);
    wanted.checkpoint.as_mut().unwrap().every = Nanos::from_secs(30);
    for (tasks, fine) in [(1, true), (2, false)] {
        let spec = Arc::new(sluice_lifecycle::model::JobSpec { tasks, ..wanted.clone() });
        let answer = bench.user(UserCommand::Submit { project: bench.project, name: None, spec });
        assert_eq!(answer.is_ok(), fine);
        if let Err(refusal) = answer {
            assert_eq!(refusal.field.as_deref(), Some("spec.checkpoint.every"));
        }
    }
}

#[test]
fn one_task_alone_stops_at_its_next_step() {
    let mut bench = Bench::new();
    let job = bench.run(None);
    bench.user(UserCommand::Suspend(job, None)).unwrap();
    let key = bench.task(job);
    assert_eq!(told(&bench, key).2, StopStep::Next);
    let attempt = bench.state.attempt(key.attempt).unwrap();
    assert_eq!(attempt.order.unwrap().kind, StopCause::Suspend);
}

#[test]
fn a_gang_whose_short_task_is_done_before_the_last_one_begins_runs() {
    let (mut bench, job, [long, short]) = placed();
    at(&mut bench, long, 0, None);
    bench.end(short);
    assert_eq!(bench.job(job).state, JobState::Running);
    let (mut bench, job, [long, short]) = placed();
    bench.end(short);
    assert_eq!(bench.job(job).state, JobState::Starting);
    at(&mut bench, long, 0, None);
    assert_eq!(bench.job(job).state, JobState::Running);
    bench.pass(400);
    assert_eq!((bench.job(job).state, bench.job(job).losses), (JobState::Running, 0));
}

/// It cannot stop at one step any more; nothing of it is thrown away for that.
#[test]
fn a_gang_of_which_a_task_is_done_goes_on_to_its_end_whoever_wants_it_stopped() {
    let mut bench = Bench::new();
    let (job, [first, second]) = gang(&mut bench);
    bench.end(second);
    bench.user(UserCommand::Suspend(job, None)).unwrap();
    let (_, revision, _) = told(&bench, first);
    at(&mut bench, first, 9, Some(Held { revision, step: 9 }));
    bench.pass(120);
    assert_eq!((told(&bench, first).0, bench.job(job).state), (Goal::Run, JobState::Running));
    let node = bench.state.lease(first.lease).unwrap().device.node;
    bench
        .user(UserCommand::SetNode { node, cordoned: true, draining: Some(Nanos::ZERO), reason: String::new() })
        .unwrap();
    bench.pass(120);
    assert_eq!((told(&bench, first).0, bench.job(job).state), (Goal::Run, JobState::Running));
    bench.end(first);
    let row = bench.rows.jobs.iter().find(|row| row.id == job).unwrap();
    assert_eq!(row.state, JobState::Succeeded);
}
