//! Some small days on every test run; `cargo run -p sluice-sim --release -- --seeds 0..500` runs the large ones.

use sluice_sim::{Day, Outcome, run};

fn check(seeds: std::ops::Range<u64>, day: Day) -> Vec<Outcome> {
    let outcomes: Vec<_> = seeds.map(|seed| run(seed, day, false)).collect();
    for outcome in &outcomes {
        assert!(outcome.failures.is_empty(), "seed {}: {:?}", outcome.seed, outcome.failures.first());
        assert!(outcome.succeeded > 0 && outcome.windows > 0);
    }
    outcomes
}

#[test]
fn small_days_with_faults_break_no_promise() {
    let outcomes = check(0..8, Day::SMALL);
    assert!(outcomes.iter().map(|outcome| outcome.crashes).sum::<u64>() > 10, "the controller is to be killed often");
    assert!(outcomes.iter().map(|outcome| outcome.replayed).sum::<u64>() > 0, "losses are to cost some steps");
}

#[test]
fn calm_days_break_no_promise() {
    check(0..2, Day::SMALL.calm());
}

#[test]
fn a_seed_is_a_run() {
    let [first, second] = [3, 3].map(|seed| run(seed, Day::SMALL, false));
    assert_eq!(format!("{first:?}"), format!("{second:?}"));
}
