//! Some small days on every test run; `cargo run -p sluice-sim --release -- --seeds 0..500` runs the large ones.

use std::collections::BTreeSet;

use sluice_sim::{Day, Outcome, run};

fn check(seeds: std::ops::Range<u64>, day: Day) -> Vec<Outcome> {
    let days: Vec<_> = std::thread::scope(|scope| {
        let days: Vec<_> = seeds.map(|seed| scope.spawn(move || run(seed, day, false))).collect();
        days.into_iter().map(|day| day.join().expect("a failed day is an outcome")).collect()
    });
    for outcome in &days {
        assert!(outcome.failures.is_empty(), "seed {}: {:?}", outcome.seed, outcome.failures.first());
        assert!(outcome.succeeded > 0 && outcome.windows > 0);
        assert_eq!(outcome.accepted, day.jobs + day.rents, "every job and every order is taken");
    }
    days
}

#[test]
fn small_days_with_faults_break_no_promise() {
    let outcomes = check(0..6, Day::SMALL);
    let sum = |figure: fn(&Outcome) -> u64| outcomes.iter().map(figure).sum::<u64>();
    assert!(sum(|outcome| outcome.faults as u64) > 100, "faults are to strike");
    assert!(sum(|outcome| outcome.crashes) > 20, "the controller is to be killed often");
    assert!(sum(|outcome| outcome.replayed) > 0, "losses are to cost some steps");
    assert!(sum(|outcome| outcome.expired as u64) > 0, "some rentals are to have their time");
    assert!(sum(|outcome| outcome.settled as u64) > 50, "requests are to be answered");
    assert!(sum(|outcome| outcome.voided as u64) > 0, "some requests are to be cut");
    assert!(sum(|outcome| outcome.replicas as u64) > 20, "endpoints are to have replicas");
    assert!(sum(|outcome| outcome.tokens) > 1000, "clients are to receive tokens");
    assert!(sum(|outcome| outcome.moved) > 10, "answers are to go on at other replicas");
    assert!(sum(|outcome| outcome.put_out) > 0, "and sequences to give up their places");
    assert!(sum(|outcome| outcome.drained as u64) > 0, "some jobs are to be stopped for want of quota");
    assert!(sum(|outcome| outcome.resumed as u64) > 0, "and some of them to resume by themselves");
}

#[test]
fn calm_days_break_no_promise() {
    for outcome in check(0..2, Day::SMALL.calm()) {
        assert_eq!((outcome.faults, outcome.crashes), (0, 0));
    }
}

#[test]
fn a_seed_is_a_run_and_another_seed_is_another() {
    let digests: Vec<_> = [3, 3, 4].map(|seed| run(seed, Day::SMALL, false)).iter().map(|day| day.digest).collect();
    assert_eq!(digests[0], digests[1], "the same seed has the same trace");
    assert_eq!(digests.iter().collect::<BTreeSet<_>>().len(), 2, "another seed has another trace");
}
