//! Every reason, the order in which they bind, and the report of one plan as a golden transcript.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fmt::Write;

use common::quota::quota;
use common::{Rows, book, budget, core, funds, gpu, job, lease, node, price, site, tenant};
use sluice_ledger::{AccountKey, BudgetScope};
use sluice_plan::{Delta, JobView, Limits, Plan, Purpose, World};
use sluice_types::{Bytes, CoreMilli, JobId, Reason};

/// Two sites: site 1 with one node of two devices of class `a` and a cpu node, site 2 with a closed node.
fn rows() -> Rows {
    let mut rows = Rows::default();
    let mut closed = node(3, 2, vec![gpu(0, "a", 1 << 30), gpu(1, "a", 1 << 30), gpu(2, "a", 1 << 30)]);
    closed.open = false;
    for delta in [
        Delta::Node(node(1, 1, vec![gpu(0, "a", 1 << 30), gpu(1, "a", 1 << 30)])),
        Delta::Node(node(2, 1, vec![core(0, 1 << 30)])),
        Delta::Node(closed),
        Delta::Node(node(4, 1, vec![gpu(0, "free", 1 << 30)])),
        Delta::Prices(book(1, vec![price("a", 1000), price("cpu", 10)])),
        Delta::Account(funds(1, 5000)),
        Delta::Lease(lease(1, 1, 0, &job(1, "a", 1, 600).resources)),
        Delta::Lease(lease(2, 2, 0, &job(1, "cpu", 1, 900).resources)),
    ] {
        rows.apply(&delta);
    }
    rows.credit(budget(1), 2500);
    rows.apply(&quota(1, 0, "a", (2400, 0, 0)));
    rows
}

fn with(mut job: JobView, change: impl FnOnce(&mut JobView)) -> JobView {
    change(&mut job);
    job
}

/// One job per reason, each as it is told alone.
fn cases() -> Vec<(Reason, JobView)> {
    vec![
        (Reason::UnknownClass, job(10, "zzz", 1, 100)),
        (Reason::NeverFits, with(job(11, "a", 1, 100), |job| job.resources.memory = Bytes::new(1 << 31))),
        (Reason::NeverFits, job(12, "a", 40, 1000)),
        (Reason::NeverFits, job(13, "a", 0, 1000)),
        (Reason::NoAllowedSite, with(job(14, "cpu", 1, 100), |job| job.sites = vec![site(2)])),
        (Reason::CheckpointUnreachable, with(job(15, "cpu", 1, 100), |job| job.state_at = vec![site(2)])),
        (Reason::NodesUnavailable, with(job(16, "a", 1, 100), |job| job.sites = vec![site(2)])),
        (Reason::NoPrice, job(17, "free", 1, 100)),
        (Reason::QuotaExceeded, job(18, "a", 2, 1000)),
        (
            Reason::BudgetExhausted,
            with(job(19, "a", 1, 1000), |job| {
                job.budgets = vec![budget(1)];
                job.hold_time = sluice_types::Nanos::from_secs(3 * 3600);
            }),
        ),
        (
            Reason::InsufficientFunds,
            with(job(20, "a", 1, 1000), |job| {
                job.hold_time = sluice_types::Nanos::from_secs(6 * 3600);
            }),
        ),
        (Reason::NoFreeShare, job(21, "cpu", 1, 200)),
        (Reason::NoFreeMemory, with(job(22, "cpu", 1, 50), |job| job.resources.memory = Bytes::new(1 << 30))),
        (
            Reason::NoFreeCores,
            with(job(23, "a", 1, 100), |job| {
                job.resources.host_cores = CoreMilli::new(64_000);
                job.hold_time = sluice_types::Nanos::from_secs(1800);
            }),
        ),
        (Reason::GangDoesNotFit, job(24, "a", 3, 500)),
    ]
}

#[test]
fn each_constraint_is_named_when_it_binds() {
    let mut rows = rows();
    rows.apply(&quota(1, 0, "a", (1500, 0, 0)));
    // The memory of the cpu device is half taken, and a host core of the first node.
    let memory = |job: &mut JobView| job.resources.memory = Bytes::new(1 << 29);
    rows.apply(&Delta::Lease(lease(3, 2, 0, &with(job(1, "cpu", 1, 1), memory).resources)));
    let cores = |job: &mut JobView| job.resources.host_cores = CoreMilli::new(1);
    rows.apply(&Delta::Lease(lease(4, 1, 0, &with(job(1, "a", 1, 1), cores).resources)));
    for (reason, job) in cases() {
        let mut world = rows.world(World::PATIENCE);
        world.apply(&Delta::Job(job.clone()));
        let plan = world.decide(Limits::default());
        let told: Vec<_> = plan.verdicts.iter().map(|verdict| (verdict.job, verdict.reason)).collect();
        assert_eq!(told, [(job.id, reason)], "{:?}", plan);
        let why = world.explain(job.id).unwrap();
        assert_eq!((why.reason, &why.message), (Some(reason), &plan.verdicts[0].message));
        let never = matches!(reason, Reason::UnknownClass | Reason::NeverFits | Reason::NoAllowedSite);
        assert_eq!((why.never, world.admissible(&job).is_err()), (never, never));
    }
}

#[test]
fn a_migration_does_not_take_quota_a_second_time() {
    let mut rows = rows();
    rows.apply(&quota(1, 0, "a", (0, 0, 0)));
    for (purpose, placed) in [(Purpose::Run, 0), (Purpose::Migrate, 1)] {
        let mut world = rows.world(World::PATIENCE);
        world.apply(&Delta::Job(with(job(1, "a", 1, 100), |job| {
            job.purpose = purpose;
            job.sites = vec![site(1)];
        })));
        assert_eq!(world.decide(Limits::default()).placements.len(), placed);
    }
}

#[test]
fn identical_jobs_are_told_once_and_only_news() {
    let mut world = rows().world(World::PATIENCE);
    (1..=1000).for_each(|id| world.apply(&Delta::Job(job(id, "cpu", 1, 200))));
    assert_eq!(world.decide(Limits { placements: 10, examined: 402 }).verdicts.len(), 400);
    assert!(world.has_more());
    assert_eq!(world.decide(Limits::default()).verdicts.len(), 600);
    assert!(!world.has_more());
    assert_eq!(world.decide(Limits::default()), Plan::default());
    // The same version is not told again, also when a budget's period is another one. A new version is: what its row
    // says may have been cleared, by a suspension that was taken back in the same commit.
    let period = |period| AccountKey::Budget(BudgetScope::Tenant(tenant(1)), period);
    world.apply(&rows().credit(period(1), 1 << 40));
    world.apply(&Delta::Job(with(job(6, "cpu", 1, 200), |job| job.budgets = vec![period(1)])));
    world.apply(&Delta::Job(with(job(7, "cpu", 1, 200), |job| job.version = 2)));
    world.apply(&Delta::Job(with(job(8, "cpu", 1, 201), |job| job.version = 2)));
    let told: Vec<_> = world.decide(Limits::default()).verdicts.iter().map(|verdict| verdict.job.raw()).collect();
    assert_eq!(told, [7, 8]);
}

#[test]
fn a_period_that_is_not_granted_yet_pays_for_nothing() {
    let mut world = rows().world(World::PATIENCE);
    let ungranted = AccountKey::Budget(BudgetScope::Tenant(tenant(1)), 8);
    world.apply(&Delta::Job(with(job(1, "a", 1, 100), |job| job.budgets = vec![ungranted.clone()])));
    let plan = world.decide(Limits::default());
    // The writer would refuse the placement, and the scheduler would place it again, without end.
    assert_eq!(plan.placements, []);
    assert_eq!(plan.verdicts.iter().map(|verdict| verdict.reason).collect::<Vec<_>>(), [Reason::BudgetExhausted]);
    assert!(!plan.verdicts[0].message.contains("/8"), "the period is no news: {}", plan.verdicts[0].message);
    world.apply(&rows().credit(ungranted, 1 << 40));
    assert_eq!(world.decide(Limits::default()).placements.len(), 1);
}

#[test]
fn a_placement_in_flight_is_not_decided_again_until_it_is_answered() {
    let mut world = rows().world(World::PATIENCE);
    world.apply(&Delta::Job(job(1, "a", 1, 1000)));
    assert_eq!(world.decide(Limits::default()).placements.len(), 1);
    world.apply(&Delta::Job(job(1, "a", 1, 1000)));
    assert_eq!((world.decide(Limits::default()), world.in_flight()), (Plan::default(), 1));
    assert_eq!(world.explain(JobId::from_raw(1)).unwrap().reason, None);
    world.reject(JobId::from_raw(1));
    assert_eq!(world.decide(Limits::default()).placements.len(), 1);
    world.apply(&Delta::Job(with(job(1, "a", 1, 1000), |job| job.version = 2)));
    assert_eq!(world.decide(Limits::default()).placements[0].version, 2);
    world.apply(&Delta::JobGone(JobId::from_raw(1)));
    assert_eq!((world.waiting(), world.in_flight()), (0, 0));
}

#[test]
fn a_lease_of_an_unknown_node_counts_when_the_node_appears() {
    let rows = rows();
    let mut world = World::new();
    for delta in rows.deltas().into_iter().filter(|delta| !matches!(delta, Delta::Node(_))) {
        world.apply(&delta);
    }
    let at = rows.leases.values().next().unwrap().device;
    assert_eq!(world.free_of(at), None);
    rows.nodes.values().for_each(|node| world.apply(&Delta::Node(node.clone())));
    assert_eq!(world.free_of(at).unwrap().milli.get(), 400);
    world.apply(&Delta::NodeGone(at.node));
    world.apply(&Delta::Node(rows.nodes[&at.node].clone()));
    assert_eq!(world.free_of(at).unwrap().milli.get(), 400);
}

#[test]
fn the_report_of_a_plan() {
    let mut world = rows().world(0);
    world.apply(&Delta::Job(job(1, "a", 2, 400)));
    world.apply(&Delta::Job(with(job(2, "a", 1, 300), |job| job.priority = 1)));
    world.apply(&Delta::Job(job(3, "a", 2, 500)));
    world.apply(&Delta::Job(job(4, "a", 1, 50)));
    cases().into_iter().for_each(|(_, job)| world.apply(&Delta::Job(job)));
    let plan = world.decide(Limits::default());
    let mut report = String::new();
    for placement in &plan.placements {
        writeln!(report, "place {} v{} at {} for {}", placement.job, placement.version, placement.site, placement.hold)
            .unwrap();
        for (rank, task) in placement.tasks.iter().enumerate() {
            let (device, isolation, billed) = (task.device, task.isolation, task.billed);
            writeln!(report, "  {rank}: {}/{} {isolation} billed {billed}", device.node, device.index).unwrap();
        }
    }
    for verdict in &plan.verdicts {
        writeln!(report, "wait {} {}: {}", verdict.job, verdict.reason, verdict.message).unwrap();
        for change in world.explain(verdict.job).unwrap().changes {
            writeln!(report, "  or {:?} {}", change.kind, change.amount).unwrap();
        }
    }
    insta::assert_snapshot!(report);
}
