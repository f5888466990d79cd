//! The controller was away: what happened meanwhile is told before any deadline counts.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;

use sluice_lifecycle::model::JobState;
use sluice_lifecycle::{Command, NodeReport, UserCommand};
use sluice_types::Nanos;
use support::Bench;

/// Nobody listens for five minutes; then time goes on before the first node speaks.
fn away(bench: &mut Bench) {
    bench.now = bench.now.after(Nanos::from_secs(300));
    bench.command(Command::Tick).unwrap();
}

#[test]
fn a_job_that_stopped_as_told_while_nobody_listened_is_suspended() {
    let mut bench = Bench::new();
    let job = bench.run(None);
    let key = bench.task(job);
    bench.user(UserCommand::Suspend(job, None)).unwrap();
    bench.pass(1);
    away(&mut bench);
    assert_eq!(bench.job(job).state, JobState::Suspending);
    bench.stop_at_checkpoint(key, 3);
    assert_eq!(bench.job(job).state, JobState::Suspended);
}

#[test]
fn a_job_that_began_while_nobody_listened_is_not_lost() {
    let mut bench = Bench::new();
    let job = bench.submit(None);
    bench.plan();
    let key = bench.task(job);
    bench.pass(1);
    away(&mut bench);
    let started = bench.clock();
    bench.node_of(key, NodeReport::Running { key, started, step: 9, metrics: BTreeMap::new(), held: None });
    assert_eq!((bench.job(job).state, bench.job(job).losses), (JobState::Running, 0));
}

/// The control: with somebody listening both deadlines count.
#[test]
fn deadlines_count_while_somebody_listens() {
    let mut bench = Bench::new();
    let told = bench.run(None);
    bench.user(UserCommand::Suspend(told, None)).unwrap();
    let waits = bench.submit(None);
    bench.plan();
    bench.pass(302);
    assert_eq!(bench.job(told).state, JobState::Running);
    assert_eq!(bench.job(waits).losses, 1);
}
