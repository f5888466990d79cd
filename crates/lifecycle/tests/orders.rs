//! What is bought begins now or not at all, and costs no more than was agreed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_ledger::{AccountKey, Price, Rate};
use sluice_lifecycle::model::{JobKind, JobSpec, JobState, Order, TaskEnd};
use sluice_lifecycle::{Answer, NodeReport, Refusal, TaskKey, UserCommand};
use sluice_types::{Credits, JobId, MilliGpu, Nanos, Reason};
use support::{Bench, WINDOW_COST, end, spec};

/// A whole device for ten windows.
fn leg(count: u32) -> JobSpec {
    let time = Nanos::from_secs(100);
    JobSpec { kind: JobKind::Rental, command: Vec::new(), checkpoint: None, tasks: count, ..spec(Some(time)) }
}

fn order(bench: &mut Bench, leg: JobSpec, limit: Option<i64>) -> Result<Answer, Refusal> {
    let (project, limit) = (bench.project, limit.map(Credits::new));
    bench.user(UserCommand::CreateOrder {
        project,
        name: None,
        legs: vec![Arc::new(leg)],
        limit,
        home: None,
        begins_at: None,
    })
}

/// The order and the job of its leg, as they are written down.
fn bought(bench: &mut Bench, leg: JobSpec, limit: Option<i64>) -> (Order, JobId) {
    let answer = order(bench, leg, limit).unwrap();
    let order = bench.rows.orders[0].clone();
    assert_eq!(answer.object, order.id.to_string());
    let job = order.legs[0];
    assert_eq!(bench.job(job).purchase.unwrap().order, order.id);
    (order, job)
}

fn set_price(bench: &mut Bench, window: i64) {
    let hour = Credits::new(window * 360);
    let rate = Rate { device_hour: hour, core_hour: Credits::ZERO, gib_hour: Credits::ZERO };
    let price = Price { class: "cpu".parse().unwrap(), isolation: None, site: None, rate };
    bench.user(UserCommand::SetPrices(vec![price])).unwrap();
}

fn held(bench: &Bench) -> i64 {
    let funds = bench.state.books().account(&AccountKey::Funds(bench.tenant));
    funds.balance() - funds.available()
}

fn begin(bench: &mut Bench, job: JobId) -> TaskKey {
    let key = bench.task(job);
    let started = bench.clock();
    bench.node_of(key, NodeReport::Running { key, started, step: 0, metrics: BTreeMap::new(), held: None });
    key
}

#[test]
fn a_rental_is_held_for_whole_and_expires() {
    let mut bench = Bench::new();
    let (_, job) = bought(&mut bench, leg(1), Some(10 * WINDOW_COST));
    bench.plan();
    assert_eq!((bench.job(job).state, held(&bench)), (JobState::Starting, 10 * WINDOW_COST));
    let key = begin(&mut bench, job);
    (0..10).for_each(|_| bench.window(key));
    let over = TaskEnd { exit_code: None, signal: 15, reason: Some(Reason::RunLimit), ..end(false) };
    bench.node_of(key, NodeReport::Ended { key, end: over, windows: 10, step: 0 });
    let row = bench.rows.jobs.iter().find(|row| row.id == job).unwrap().clone();
    assert_eq!((row.state, row.reason, row.failures), (JobState::Succeeded, Some(Reason::RunLimit), 0));
    assert_eq!((row.spent.units(), held(&bench)), (10 * WINDOW_COST, 0));
    bench.check_world();
}

#[test]
fn an_order_is_placed_as_it_was_quoted() {
    let mut bench = Bench::new();
    for _ in 0..2 {
        let offered = bench.offer(leg(4)).unwrap();
        assert_eq!((offered.hold.units(), offered.hourly.units()), (40 * WINDOW_COST, 4 * 360 * WINDOW_COST));
        let before = held(&bench);
        let pinned = JobSpec { sites: vec![offered.site], ..leg(4) };
        let (_, job) = bought(&mut bench, pinned, Some(offered.hold.units()));
        bench.plan();
        let attempt = bench.state.attempt(bench.job(job).current.unwrap()).unwrap();
        assert_eq!((attempt.site, held(&bench) - before), (offered.site, offered.hold.units()));
    }
    assert_eq!(bench.offer(leg(1)), Err(Reason::NoFreeShare));
    assert_eq!(bench.offer(leg(5)), Err(Reason::NeverFits));
    bench.check_world();
}

#[test]
fn what_has_no_place_now_is_refused_and_costs_nothing() {
    let mut bench = Bench::new();
    // Each of the two nodes has four devices.
    let (_, job) = bought(&mut bench, leg(5), None);
    bench.plan();
    let row = bench.rows.jobs.iter().find(|row| row.id == job).unwrap().clone();
    assert_eq!((row.state, row.attempts, row.spent.units()), (JobState::Failed, 0, 0));
    assert_eq!(row.reason, Some(Reason::NeverFits));
    assert!(bench.state.job(job).is_none() && held(&bench) == 0, "it is over and forgotten");

    let (_, first) = bought(&mut bench, leg(4), None);
    bench.plan();
    let (_, second) = bought(&mut bench, leg(4), None);
    bench.plan();
    let (_, third) = bought(&mut bench, leg(1), None);
    bench.plan();
    assert!(bench.job(first).current.is_some() && bench.job(second).current.is_some());
    assert_eq!(bench.rows.jobs[0].reason, Some(Reason::NoFreeShare));
    assert!(bench.state.job(third).is_none());

    // The control: a job that asks for the same waits.
    let waits = bench.submit(Some(100));
    bench.plan();
    assert_eq!((bench.job(waits).state, bench.job(waits).reason), (JobState::Pending, Some(Reason::NoFreeShare)));
    bench.check_world();
}

#[test]
fn what_costs_more_than_was_agreed_is_refused() {
    let mut bench = Bench::new();
    for (window, limit, placed) in
        [(WINDOW_COST, 1000, true), (WINDOW_COST, 999, false), (WINDOW_COST + 1, 1000, false)]
    {
        set_price(&mut bench, window);
        let before = held(&bench);
        let (_, job) = bought(&mut bench, leg(1), Some(limit));
        bench.plan();
        assert_eq!(bench.state.job(job).is_some_and(|row| row.current.is_some()), placed, "{window} {limit}");
        if !placed {
            let row = bench.rows.jobs.iter().find(|row| row.id == job).unwrap();
            assert_eq!((row.state, row.reason), (JobState::Failed, Some(Reason::PriceAboveLimit)));
            assert_eq!(held(&bench), before);
        }
    }
    bench.check_world();
}

#[test]
fn a_rental_that_lost_its_place_goes_on_elsewhere_but_not_for_more() {
    let mut bench = Bench::new();
    let (_, job) = bought(&mut bench, leg(1), Some(10 * WINDOW_COST));
    bench.plan();
    let key = begin(&mut bench, job);
    (0..4).for_each(|_| bench.window(key));
    let node = bench.state.lease(key.lease).unwrap().device.node;
    bench.silence(node, 20);
    assert_eq!(bench.job(job).state, JobState::Pending, "it was placed before, so it waits");
    // Whatever is credited, what is left of its time would cost twice as much now.
    set_price(&mut bench, 2 * WINDOW_COST);
    bench.plan();
    let row = bench.job(job);
    assert_eq!((row.state, row.reason), (JobState::Suspended, Some(Reason::PriceAboveLimit)), "{}", row.message);
    set_price(&mut bench, WINDOW_COST);
    bench.user(UserCommand::Resume(job, None)).unwrap();
    bench.plan();
    assert_eq!(bench.job(job).state, JobState::Starting);
    bench.check_world();
}

#[test]
fn a_rental_without_an_end_stops_before_it_costs_more_than_was_agreed() {
    for (limit, stops) in [(Some(12 * WINDOW_COST), true), (None, false)] {
        let mut bench = Bench::new();
        let (_, job) = bought(&mut bench, JobSpec { max_run_time: None, ..leg(1) }, limit);
        bench.plan();
        let key = begin(&mut bench, job);
        let mut windows = 0;
        while bench.job(job).state == JobState::Running && windows < 30 {
            bench.window(key);
            windows += 1;
        }
        // Control: without an agreement it goes on.
        assert_eq!((windows < 12, bench.job(job).state == JobState::Suspending), (stops, stops), "{windows} windows");
        let most = limit.unwrap_or(i64::MAX);
        assert!(bench.job(job).spent.units() + held(&bench) <= most, "what is held is agreed, too");
        // It has no checkpoint: it is stopped as it is, and cannot be gone on with for more.
        bench.end(key);
        if stops {
            let row = bench.job(job);
            assert_eq!((row.state, row.reason), (JobState::Suspended, Some(Reason::SuspendedForMoney)));
            bench.user(UserCommand::Resume(job, None)).unwrap();
            bench.plan();
            assert_eq!(bench.job(job).reason, Some(Reason::PriceAboveLimit));
        }
        bench.check_world();
    }
}

#[test]
fn what_a_rental_prepares_is_not_paid_for() {
    let mut bench = Bench::new();
    let (_, job) = bought(&mut bench, leg(1), Some(10 * WINDOW_COST));
    bench.plan();
    let key = bench.task(job);
    // As long as its whole time is, so that the hold is used up before it begins.
    (0..3).for_each(|_| bench.window(key));
    begin(&mut bench, job);
    let row = bench.job(job);
    assert_eq!((row.spent.units(), row.net_paid().units()), (3 * WINDOW_COST, 0));
    (0..10).for_each(|_| bench.window(key));
    assert_eq!((bench.job(job).state, bench.job(job).net_paid().units()), (JobState::Running, 10 * WINDOW_COST));
    bench.check_world();
}

#[test]
fn a_release_gives_back_what_was_not_used() {
    let mut bench = Bench::new();
    let (order, job) = bought(&mut bench, leg(1), None);
    bench.plan();
    let key = begin(&mut bench, job);
    bench.window(key);
    for _ in 0..2 {
        bench.user(UserCommand::ReleaseOrder(order.id, order.legs.clone())).unwrap();
        assert_eq!(bench.job(job).state, JobState::Cancelling);
    }
    bench.end(key);
    let row = bench.rows.jobs.iter().find(|row| row.id == job).unwrap().clone();
    assert_eq!((row.state, row.spent.units(), held(&bench)), (JobState::Cancelled, WINDOW_COST, 0));
    bench.user(UserCommand::ReleaseOrder(order.id, order.legs)).unwrap();
}

#[test]
fn rentals_are_ordered_and_jobs_are_submitted() {
    let mut bench = Bench::new();
    let project = bench.project;
    let rental = UserCommand::Submit { project, name: None, spec: Arc::new(leg(1)) };
    assert_eq!(bench.user(rental).unwrap_err().field.as_deref(), Some("spec.kind"));
    let wrong = [
        ("spec.kind", spec(None)),
        ("spec.command", JobSpec { command: vec!["train".to_owned()], ..leg(1) }),
        ("spec.checkpoint.capture", JobSpec { checkpoint: spec(None).checkpoint, ..leg(1) }),
        ("spec.tasks", leg(0)),
    ];
    for (field, leg) in wrong {
        assert_eq!(order(&mut bench, leg, None).unwrap_err().field.as_deref(), Some(field));
        assert!(bench.rows.is_empty());
    }
    let two = UserCommand::CreateOrder {
        project,
        name: None,
        legs: vec![Arc::new(leg(1)), Arc::new(leg(1))],
        limit: None,
        home: None,
        begins_at: None,
    };
    assert_eq!(bench.user(two).unwrap_err().field.as_deref(), Some("legs"));
    let mut small = leg(1);
    small.resources.milli = MilliGpu::new(1);
    assert!(order(&mut bench, small, None).is_ok());
}
