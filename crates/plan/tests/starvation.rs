//! A gang that small jobs pass again and again is placed in the end, and without the rule it is not.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Rows, book, funds, gpu, job, node, price, tenant};
use sluice_ledger::{Account, AccountKey, BudgetScope};
use sluice_plan::{Delta, JobView, LeaseView, Limits, World};
use sluice_types::{DeviceRef, JobId, LeaseId, NodeId, Reason, Timestamp};

const GANG: u64 = 5;

/// One node of four devices. Every round two small jobs arrive and the oldest lease ends, so that room is always left
/// for small jobs and never for the gang. Returns the round in which the gang is placed, and the reasons told.
fn rounds_until_placed(patience: u32, most: u64) -> (Option<u64>, Vec<Reason>) {
    rounds_until_placed_with(patience, most, |_| None)
}

/// The same, with changes of its own in some rounds.
fn rounds_until_placed_with(
    patience: u32,
    most: u64,
    mut news: impl FnMut(u64) -> Option<Vec<Delta>>,
) -> (Option<u64>, Vec<Reason>) {
    let mut rows = Rows::default();
    let mut world = World::with_patience(patience);
    let mut reasons = Vec::new();
    let first = [
        Delta::Node(node(1, 1, (0..4).map(|index| gpu(index, "a", 8)).collect())),
        Delta::Account(funds(1, 1 << 40)),
        Delta::Prices(book(1, vec![price("a", 1)])),
        Delta::Job(job(GANG, "a", 4, 1000)),
    ];
    // Eight halves run at the start.
    let halves = (0..8u64).map(|at| {
        let device = DeviceRef { node: NodeId::from_raw(1), index: u16::try_from(at / 2).unwrap() };
        Delta::Lease(LeaseView { id: LeaseId::from_raw(1 + at), device, resources: job(1, "a", 1, 500).resources })
    });
    for delta in first.into_iter().chain(halves) {
        rows.apply(&delta);
        world.apply(&delta);
    }
    let mut next = 100;
    for round in 0..most {
        let mut deltas: Vec<Delta> = rows.leases.keys().next().copied().map(Delta::LeaseGone).into_iter().collect();
        deltas.extend([0, 1].map(|other| Delta::Job(job(1000 + 2 * round + other, "a", 1, 500))));
        deltas.extend(news(round).into_iter().flatten());
        for delta in deltas {
            rows.apply(&delta);
            world.apply(&delta);
        }
        let plan = world.decide(Limits::default());
        reasons.extend(plan.verdicts.iter().map(|verdict| verdict.reason));
        for placement in plan.placements {
            if placement.job == JobId::from_raw(GANG) {
                return (Some(round), reasons);
            }
            for delta in rows.commit(&placement, &mut next) {
                world.apply(&delta);
            }
        }
    }
    (None, reasons)
}

#[test]
fn a_gang_that_is_passed_by_is_placed_after_its_patience_and_the_leases_in_its_way_end() {
    let (placed, reasons) = rounds_until_placed(World::PATIENCE, 500);
    // Eight rounds of patience, then at most one round per lease that has to end.
    assert!(placed.is_some_and(|round| round <= u64::from(World::PATIENCE) + 8), "{placed:?}");
    assert!(reasons.contains(&Reason::BehindOthers), "{reasons:?}");
}

#[test]
fn without_the_rule_it_starves() {
    let (placed, reasons) = rounds_until_placed(u32::MAX, 500);
    assert_eq!(placed, None);
    assert!(!reasons.contains(&Reason::BehindOthers));
}

#[test]
fn a_job_of_higher_priority_may_use_what_is_kept() {
    let mut world = World::with_patience(0);
    let mut busy = job(1, "a", 1, 500);
    busy.priority = 1;
    for delta in [
        Delta::Node(node(1, 1, vec![gpu(0, "a", 8), gpu(1, "a", 8)])),
        Delta::Account(funds(1, 1 << 40)),
        Delta::Prices(book(1, vec![price("a", 1)])),
        Delta::Lease(common::lease(1, 1, 0, &job(1, "a", 1, 500).resources)),
        Delta::Job(job(2, "a", 2, 1000)),
        Delta::Job(job(3, "a", 1, 500)),
        Delta::Job(busy),
    ] {
        world.apply(&delta);
    }
    let plan = world.decide(Limits::default());
    assert_eq!(plan.placements.iter().map(|placement| placement.job.raw()).collect::<Vec<_>>(), [1]);
    let told: Vec<_> = plan.verdicts.iter().map(|verdict| (verdict.job.raw(), verdict.reason)).collect();
    assert_eq!(told, [(2, Reason::GangDoesNotFit), (3, Reason::BehindOthers)]);
}

#[test]
fn patience_is_not_lost_when_a_budgets_period_ends() {
    let budget = |period| AccountKey::Budget(BudgetScope::Tenant(tenant(1)), period);
    let (placed, _) = rounds_until_placed_with(World::PATIENCE, 500, |round| {
        let mut gang = job(GANG, "a", 4, 1000);
        gang.budgets = vec![budget(round / 4)];
        let granted = Account { credits_posted: 1 << 40, ..Account::empty(budget(round / 4)) };
        (round % 4 == 0).then(|| vec![Delta::Account(granted), Delta::Job(gang)])
    });
    assert!(placed.is_some_and(|round| round <= u64::from(World::PATIENCE) + 12), "{placed:?}");
}

#[test]
fn devices_are_kept_no_longer_than_it_helps() {
    const HOUR: u64 = 3600;
    let mut world = World::with_patience(1);
    let endless = job(1, "a", 1, 1000).resources;
    for delta in [
        Delta::Node(node(1, 1, vec![gpu(0, "a", 8), gpu(1, "a", 8)])),
        Delta::Account(funds(1, 1 << 40)),
        Delta::Prices(book(1, vec![price("a", 1)])),
        Delta::Lease(common::lease(1, 1, 0, &endless)),
        Delta::Job(job(GANG, "a", 2, 1000)),
    ] {
        world.apply(&delta);
    }
    // A small job an hour, which runs for less than an hour: 1 where it was placed.
    let hours = (1..=60u64).map(|hour| {
        let small = job(100 + hour, "a", 1, 500);
        world.apply(&Delta::Now(Timestamp::from_nanos(hour * HOUR * 1_000_000_000)));
        world.apply(&Delta::Job(small.clone()));
        let placed = world.decide(Limits::default()).placements.len();
        world.apply(&Delta::JobGone(small.id));
        placed
    });
    let hours: Vec<usize> = hours.collect();
    let kept = |span: std::ops::Range<usize>| hours[span].iter().all(|placed| *placed == 0);
    // One passes; then the other device is kept for 12 hours, to no end, and then given to others for as long.
    assert_eq!(hours[0], 1, "{hours:?}");
    assert!(kept(1..14), "{hours:?}");
    assert_eq!(hours[14..25], [1; 11], "{hours:?}");
    assert!(kept(25..38), "{hours:?}");
}

#[test]
fn devices_are_kept_for_one_job_of_a_tenant_at_a_time() {
    let mut world = World::with_patience(0);
    let half = job(1, "a", 1, 500).resources;
    let mut deltas = vec![
        Delta::Account(funds(1, 1 << 40)),
        Delta::Account(funds(2, 1 << 40)),
        Delta::Prices(book(1, vec![price("a", 1)])),
    ];
    for at in 1..=3 {
        deltas.push(Delta::Node(node(at, at, vec![gpu(0, "a", 8), gpu(1, "a", 8)])));
        deltas.push(Delta::Lease(common::lease(at, at, 0, &half)));
    }
    // Three gangs, each wants both devices of a node: two of one tenant, one of another's.
    for (id, owner, milli) in [(1, 1, 1000), (2, 1, 999), (3, 2, 1000)] {
        deltas.push(Delta::Job(JobView { tenant: tenant(owner), ..job(id, "a", 2, milli) }));
    }
    // Of the three nodes two are kept: a small job still finds the third.
    deltas.push(Delta::Job(job(4, "a", 1, 500)));
    deltas.iter().for_each(|delta| world.apply(delta));
    let plan = world.decide(Limits::default());
    assert_eq!(plan.placements.iter().map(|placement| placement.job.raw()).collect::<Vec<_>>(), [4]);
}
