//! The home folder of a rental outlives it, and another one may begin with it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_ledger::{AccountKey, Price, Rate};
use sluice_lifecycle::model::{Capture, Checkpoint, CheckpointPolicy, JobKind, JobSpec, JobState, Order};
use sluice_lifecycle::{Answer, Command, KeptHome, NodeReport, Refusal, TaskKey, UserCommand};
use sluice_types::{Credits, Digest, JobId, Nanos, Reason, SiteId};
use support::{Bench, WINDOW_COST, end, spec};

const DAY: u64 = 24 * 3600;

/// A slice whose home is kept.
fn leg(count: u32) -> JobSpec {
    let policy =
        CheckpointPolicy { capture: Capture::Home, every_steps: 0, every: Nanos::from_secs(300), durable_sites: 0 };
    JobSpec { kind: JobKind::Rental, command: Vec::new(), checkpoint: Some(policy), tasks: count, ..spec(None) }
}

fn order(bench: &mut Bench, leg: JobSpec, home: Option<KeptHome>) -> Result<Answer, Refusal> {
    let project = bench.project;
    let home = home.map(Box::new);
    bench.user(UserCommand::CreateOrder {
        project,
        name: None,
        legs: vec![Arc::new(leg)],
        limit: None,
        home,
        begins_at: None,
    })
}

/// Buys, and lets it run.
fn begin(bench: &mut Bench, leg: JobSpec, home: Option<KeptHome>) -> (Order, TaskKey) {
    order(bench, leg, home).unwrap();
    let order = bench.rows.orders[0].clone();
    bench.plan();
    let key = bench.task(order.legs[0]);
    let started = bench.clock();
    bench.node_of(key, NodeReport::Running { key, started, step: 0, metrics: BTreeMap::new(), held: None });
    assert_eq!(bench.job(order.legs[0]).state, JobState::Running);
    (order, key)
}

fn seal(bench: &mut Bench, key: TaskKey, number: u64, byte: u8) {
    let next_window = bench.state.lease(key.lease).unwrap().next_window;
    let (manifest, captured) = (Digest::from_bytes([byte; 32]), bench.clock());
    bench.node_of(key, NodeReport::Sealed { key, step: number, manifest, size: 1, captured, next_window });
}

/// Releases it, with a last capture on the way; returns what the store has of its home.
fn release(bench: &mut Bench, order: &Order, key: TaskKey, byte: u8) -> KeptHome {
    bench.user(UserCommand::ReleaseOrder(order.id, order.legs.clone())).unwrap();
    seal(bench, key, 1000, byte);
    let stored = bench.rows.checkpoints.iter().find(|row| !row.retired).cloned();
    let windows = bench.state.lease(key.lease).unwrap().next_window;
    bench.node_of(key, NodeReport::Ended { key, end: end(false), windows, step: 0 });
    assert!(bench.state.job(order.legs[0]).is_none(), "it is over and forgotten");
    KeptHome { order: order.id, job: order.legs[0], stored }
}

fn lent(bench: &Bench, job: JobId) -> Checkpoint {
    bench.state.checkpoint(bench.job(job).checkpoint.unwrap()).unwrap().clone()
}

/// Manifests that the vault of a site is told to forget now.
fn forgets(bench: &Bench, site: SiteId) -> Vec<u8> {
    bench.state.discards(site, bench.now, 100).iter().map(|manifest| manifest.as_bytes()[0]).collect()
}

fn site_of(bench: &Bench, key: TaskKey) -> SiteId {
    bench.state.attempt(key.attempt).unwrap().site
}

#[test]
fn a_rental_begins_with_the_files_of_another_at_any_site() {
    let mut bench = Bench::new();
    for site in bench.sites.clone() {
        bench.command(Command::VaultAddress { site, address: "vault:1".to_owned() }).unwrap();
    }
    let (first, key) = begin(&mut bench, leg(1), None);
    let from = site_of(&bench, key);
    let other = *bench.sites.iter().find(|site| **site != from).unwrap();
    let home = KeptHome { order: first.id, job: first.legs[0], stored: None };
    let nothing = order(&mut bench, leg(1), Some(home.clone())).unwrap_err();
    assert_eq!((nothing.reason, nothing.field.as_deref()), (Reason::WrongState, Some("spec.home")));
    seal(&mut bench, key, 1, 1);
    // While it runs: what was captured last.
    let (second, taken) = begin(&mut bench, leg(1), Some(home.clone()));
    assert_eq!(bench.job(second.legs[0]).purchase.unwrap().home, Some(first.id));
    assert_eq!(lent(&bench, second.legs[0]).parts[&0].manifest, Digest::from_bytes([1; 32]));
    bench.user(UserCommand::ReleaseOrder(second.id, second.legs.clone())).unwrap();
    bench.end(taken);

    bench.user(UserCommand::ReleaseOrder(first.id, first.legs.clone())).unwrap();
    let early = order(&mut bench, leg(1), Some(home)).unwrap_err();
    assert!(early.reason == Reason::WrongState && early.message.contains("try again"), "{}", early.message);
    let home = release(&mut bench, &first, key, 2);
    let wrong = order(&mut bench, leg(2), Some(home.clone())).unwrap_err();
    assert_eq!((wrong.reason, wrong.field.as_deref()), (Reason::InvalidField, Some("spec.home")));

    // At the other site, whose vault does not have it yet: it is placed, starts from it, and it is copied there.
    let (third, key) = begin(&mut bench, JobSpec { sites: vec![other], ..leg(1) }, Some(home));
    assert_eq!(site_of(&bench, key), other);
    let kept = lent(&bench, third.legs[0]);
    assert_eq!((bench.state.attempt(key.attempt).unwrap().resume, kept.sites()), (Some(kept.id), vec![from]));
    let node = bench.state.lease(key.lease).unwrap().device.node;
    assert_eq!(bench.state.wishes(node)[0].resume, Some((Digest::from_bytes([2; 32]), 1000)));
    let copies = bench.state.copies();
    assert!(copies.iter().any(|copy| copy.to == other && copy.manifest == Digest::from_bytes([2; 32])), "{copies:?}");
    bench.check_world();
}

#[test]
fn nobody_begins_with_the_files_of_another_project() {
    let mut bench = Bench::new();
    let (first, key) = begin(&mut bench, leg(1), None);
    seal(&mut bench, key, 1, 1);
    let made = bench.user(UserCommand::CreateProject(bench.tenant, "other".parse().unwrap())).unwrap();
    let home = KeptHome { order: first.id, job: first.legs[0], stored: None };
    bench.project = made.object.parse().unwrap();
    assert_eq!(order(&mut bench, leg(1), Some(home)).unwrap_err().reason, Reason::NotFound);
}

#[test]
fn what_a_rental_began_with_is_kept_for_both() {
    let mut bench = Bench::new();
    let (first, key) = begin(&mut bench, leg(1), None);
    let site = site_of(&bench, key);
    let home = release(&mut bench, &first, key, 1);
    bench.skip(6 * DAY);
    let (second, key) = begin(&mut bench, JobSpec { sites: vec![site], ..leg(1) }, Some(home.clone()));
    bench.skip(2 * DAY);
    // The first one's week is over, the second one has nothing else yet.
    assert_eq!(forgets(&bench, site), [0u8; 0]);
    seal(&mut bench, key, 900, 2);
    assert_eq!(forgets(&bench, site), [1], "now nobody needs it");
    assert!(order(&mut bench, leg(1), Some(home)).unwrap_err().message.contains("too long ago"));

    // A later one gives up what it began with at once: it stays for the rest of the week.
    let home = release(&mut bench, &second, key, 3);
    assert!(forgets(&bench, site).contains(&2));
    bench.skip(DAY);
    let (third, key) = begin(&mut bench, JobSpec { sites: vec![site], ..leg(1) }, Some(home.clone()));
    seal(&mut bench, key, 1001, 4);
    assert!(!forgets(&bench, site).contains(&3));
    let (_, fourth) = begin(&mut bench, JobSpec { sites: vec![site], ..leg(1) }, Some(home.clone()));
    // One that ends without a capture of its own keeps it for a week from then.
    bench.skip(5 * DAY);
    let order = bench.job(bench.state.attempt(fourth.attempt).unwrap().job).purchase.unwrap().order;
    let legs = vec![bench.state.attempt(fourth.attempt).unwrap().job];
    bench.user(UserCommand::ReleaseOrder(order, legs)).unwrap();
    bench.end(fourth);
    bench.skip(3 * DAY);
    assert!(!forgets(&bench, site).contains(&3));
    bench.skip(5 * DAY);
    assert!(forgets(&bench, site).contains(&3));
    drop(third);
    bench.check_world();
}

#[test]
fn a_rental_that_lost_its_place_goes_on_elsewhere_with_its_newest_files() {
    let mut bench = Bench::new();
    let (order, key) = begin(&mut bench, leg(1), None);
    let job = order.legs[0];
    (0..3).for_each(|_| bench.window(key));
    seal(&mut bench, key, 1, 1);
    // Copied, so that the loss of the site is none of the files.
    let from = site_of(&bench, key);
    let other = *bench.sites.iter().find(|site| **site != from).unwrap();
    bench.command(Command::Copied { site: other, manifest: Digest::from_bytes([1; 32]) }).unwrap();
    (0..2).for_each(|_| bench.window(key));
    let node = bench.state.lease(key.lease).unwrap().device.node;
    bench.silence(node, 20);
    // Only what came after the capture is done again, and only that is credited.
    assert_eq!((bench.job(job).state, bench.job(job).credited.units()), (JobState::Pending, 2 * WINDOW_COST));
    bench.plan();
    let key = bench.task(job);
    let attempt = bench.state.attempt(key.attempt).unwrap();
    assert_eq!((attempt.site, attempt.resume), (other, bench.job(job).checkpoint));
    bench.check_world();
}

#[test]
fn a_drained_rental_moves_with_its_files() {
    let mut bench = Bench::new();
    let (order, key) = begin(&mut bench, leg(1), None);
    let (job, from) = (order.legs[0], site_of(&bench, key));
    let node = bench.state.lease(key.lease).unwrap().device.node;
    bench
        .user(UserCommand::SetNode { node, cordoned: true, draining: Some(Nanos::ZERO), reason: String::new() })
        .unwrap();
    bench.pass(1);
    assert_eq!(bench.job(job).state, JobState::Migrating);
    bench.plan();
    let migration = bench.state.migration(bench.job(job).migration.unwrap()).unwrap().clone();
    let target = bench.state.attempt(migration.target.unwrap()).unwrap().clone();
    let next = TaskKey { attempt: target.id, lease: target.tasks[0].lease, generation: target.generation };
    bench.node_of(next, NodeReport::Prepared(next));
    assert_eq!(bench.state.wishes(node)[0].goal, sluice_lifecycle::model::Goal::Checkpoint);
    bench.stop_at_checkpoint(key, 1);
    bench.command(Command::Copied { site: target.site, manifest: Digest::from_bytes([9; 32]) }).unwrap();
    let attempt = bench.state.attempt(target.id).unwrap();
    assert!(attempt.site != from && attempt.resume == bench.job(job).checkpoint);
    assert_eq!(bench.job(job).current, Some(target.id));
    bench.check_world();
}

/// Buys 100 s at so much an hour; returns what is held for them.
fn begin_priced(bench: &mut Bench, hour: i64, limit: Option<Credits>) -> (Order, i64) {
    let rate = Rate { device_hour: Credits::new(hour), core_hour: Credits::ZERO, gib_hour: Credits::ZERO };
    let price = Price { class: "cpu".parse().unwrap(), isolation: None, site: None, rate };
    bench.user(UserCommand::SetPrices(vec![price])).unwrap();
    let project = bench.project;
    let legs = vec![Arc::new(JobSpec { max_run_time: Some(Nanos::from_secs(100)), ..leg(1) })];
    let command = UserCommand::CreateOrder { project, name: None, legs, limit, home: None, begins_at: None };
    bench.user(command).unwrap();
    let order = bench.rows.orders[0].clone();
    bench.plan();
    let funds = bench.state.books().account(&AccountKey::Funds(bench.tenant));
    (order, funds.balance() - funds.available())
}

#[test]
fn roundings_do_not_keep_a_rental_where_it_is() {
    for hour in 1000..1060 {
        // What a quote says: all of its time, rounded up.
        let (_, quoted) = begin_priced(&mut Bench::new(), hour, None);
        let mut bench = Bench::new();
        let (order, _) = begin_priced(&mut bench, hour, Some(Credits::new(quoted)));
        let (job, key) = (order.legs[0], bench.task(order.legs[0]));
        // What is credited for the preparation is rounded, what it cost went on to the next window, and the price of the
        // rest is rounded up.
        bench.window(key);
        let started = bench.clock();
        bench.node_of(key, NodeReport::Running { key, started, step: 0, metrics: BTreeMap::new(), held: None });
        (0..4).for_each(|_| bench.window(key));
        let node = bench.state.lease(key.lease).unwrap().device.node;
        bench
            .user(UserCommand::SetNode { node, cordoned: true, draining: Some(Nanos::ZERO), reason: String::new() })
            .unwrap();
        bench.pass(1);
        bench.plan();
        let migration = bench.state.migration(bench.job(job).migration.unwrap()).unwrap();
        assert_eq!(migration.reason, None, "at {hour} an hour");
        let funds = bench.state.attempt(migration.target.unwrap()).unwrap().funds;
        let whole = bench.job(job).net_paid().units() + bench.state.books().hold(funds).unwrap().remaining;
        assert!(whole <= quoted, "{whole} of {quoted} at {hour} an hour");
    }
}

#[test]
fn a_rental_begins_where_it_was_quoted_and_goes_on_anywhere() {
    for quoted in 0..2 {
        let mut bench = Bench::new();
        let site = bench.sites[quoted];
        let buy = |bench: &mut Bench, count| {
            let (project, legs) = (bench.project, vec![Arc::new(leg(count))]);
            let begins_at = Some(site);
            let command = UserCommand::CreateOrder { project, name: None, legs, limit: None, home: None, begins_at };
            bench.user(command).unwrap();
            let order = bench.rows.orders[0].clone();
            bench.plan();
            order
        };
        let order = buy(&mut bench, 1);
        let key = bench.task(order.legs[0]);
        assert_eq!(site_of(&bench, key), site);
        // The other site has room for four, this one for three.
        let refused = buy(&mut bench, 4);
        assert!(bench.state.job(refused.legs[0]).is_none());
        let started = bench.clock();
        bench.node_of(key, NodeReport::Running { key, started, step: 0, metrics: BTreeMap::new(), held: None });
        let node = bench.state.lease(key.lease).unwrap().device.node;
        bench.silence(node, 20);
        bench.plan();
        let key = bench.task(order.legs[0]);
        assert_ne!(site_of(&bench, key), site);
        bench.check_world();
    }
}
