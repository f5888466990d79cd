//! A gang that small jobs pass again and again is placed in the end, and without the rule it is not.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Rows, book, funds, gpu, job, node, price};
use sluice_plan::{Delta, LeaseView, Limits, World};
use sluice_types::{DeviceRef, JobId, LeaseId, NodeId, Reason};

const GANG: u64 = 5;

/// One node of four devices. Every round two small jobs arrive and the oldest lease ends, so that room is always left
/// for small jobs and never for the gang. Returns the round in which the gang is placed, and the reasons told.
fn rounds_until_placed(patience: u32, most: u64) -> (Option<u64>, Vec<Reason>) {
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
