//! Work that is done again after a loss is credited, whichever checkpoint the job goes on from.

mod support;

use sluice_lifecycle::model::{JobState, TaskEnd};
use sluice_lifecycle::{Command, NodeReport, TaskKey, UserCommand};
use sluice_types::{Digest, Reason};
use support::{Bench, WINDOW_COST, end};

fn seal(bench: &mut Bench, key: TaskKey, number: u8) {
    let report = NodeReport::Sealed {
        key,
        step: u64::from(number),
        manifest: Digest::from_bytes([number; 32]),
        size: 1,
        captured: bench.clock(),
        next_window: bench.state.lease(key.lease).map_or(0, |row| row.next_window),
    };
    bench.node_of(key, report);
}

#[test]
fn windows_are_kept_since_the_oldest_checkpoint_that_is_left() {
    let mut bench = Bench::new();
    let job = bench.run(None);
    let key = bench.task(job);
    let node = bench.state.lease(key.lease).unwrap().device.node;
    let site = bench.state.node(node).unwrap().site;
    let other = *bench.sites.iter().find(|other| **other != site).unwrap();
    bench.window(key);
    seal(&mut bench, key, 1);
    bench.command(Command::Copied { site: other, manifest: Digest::from_bytes([1; 32]) }).unwrap();
    // The target of a move prepares with the first checkpoint, which stays when the second makes it superfluous.
    bench.user(UserCommand::Migrate(job, other, None)).unwrap();
    bench.plan();
    bench.window(key);
    bench.window(key);
    seal(&mut bench, key, 2);
    bench.window(key);
    bench.silence(node, 20);
    bench.plan();
    let resume = bench.state.attempt(bench.task(job).attempt).unwrap().resume.unwrap();
    assert_eq!(bench.state.checkpoint(resume).unwrap().step, 1, "the second is at the lost site alone");
    assert_eq!(bench.state.lease(key.lease).unwrap().credited.units(), 3 * WINDOW_COST);
}

/// Its node is silent, or was there again and says so itself.
#[test]
fn a_target_that_is_lost_before_it_has_the_job_is_credited_at_once() {
    for silent in [true, false] {
        let mut bench = Bench::new();
        let job = bench.run(None);
        let key = bench.task(job);
        let site = bench.state.lease(key.lease).unwrap().site;
        let other = *bench.sites.iter().find(|other| **other != site).unwrap();
        bench.user(UserCommand::Migrate(job, other, None)).unwrap();
        bench.plan();
        let migration = bench.job(job).migration.unwrap();
        let target = bench.state.migration(migration).unwrap().target.unwrap();
        let attempt = bench.state.attempt(target).unwrap();
        let (task, generation) = (attempt.tasks[0].lease, attempt.generation);
        let prepares = TaskKey { attempt: target, lease: task, generation };
        bench.window(key);
        bench.window(prepares);
        let (source, node) = (key.lease, bench.state.lease(task).unwrap().device.node);
        assert_eq!(bench.state.lease(task).unwrap().amount.units(), WINDOW_COST);
        if silent {
            bench.silence(node, 20);
        } else {
            let lost = TaskEnd { exit_code: None, reason: Some(Reason::NodeLost), ..end(false) };
            bench.node_of(prepares, NodeReport::Ended { key: prepares, end: lost, step: 0, windows: 1 });
        }
        // The job goes on where it is, and is never placed again.
        assert_eq!(bench.job(job).state, JobState::Running);
        let credited = |bench: &Bench, lease| bench.state.lease(lease).unwrap().credited.units();
        assert_eq!((credited(&bench, task), credited(&bench, source)), (WINDOW_COST, 0));
        // What it tells of later is credited as it comes.
        if silent {
            bench.hello(node);
        }
        bench.window(prepares);
        assert_eq!(credited(&bench, task), bench.state.lease(task).unwrap().amount.units());
    }
}
