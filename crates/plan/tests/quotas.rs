//! Quotas in the scheduler: each level by its name, and what is called back for a lender is kept for it.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::quota::{held, quota};
use common::{Rows, book, funds, gpu, job, node, price, site, tenant};
use sluice_ledger::QuotaLevel;
use sluice_plan::{ChangeKind, Delta, JobView, Limits, World};
use sluice_types::{Bytes, JobId, Reason};

/// One site with four devices, and two tenants with money.
fn rows(quotas: impl IntoIterator<Item = Delta>) -> Rows {
    let mut rows = Rows::default();
    rows.apply(&Delta::Node(node(1, 1, (0..4).map(|index| gpu(index, "a", 1 << 30)).collect())));
    rows.apply(&Delta::Prices(book(1, vec![price("a", 1000)])));
    for raw in 1..=2 {
        rows.apply(&Delta::Account(funds(raw, 1_000_000_000)));
    }
    quotas.into_iter().for_each(|delta| rows.apply(&delta));
    rows
}

fn of(raw: u64, id: u64, milli: u32) -> JobView {
    JobView { tenant: tenant(raw), ..job(id, "a", 1, milli) }
}

fn told(world: &mut World, id: u64) -> Option<Reason> {
    let plan = world.decide(Limits::NONE);
    plan.verdicts.iter().find(|verdict| verdict.job == JobId::from_raw(id)).map(|verdict| verdict.reason)
}

#[test]
fn each_level_of_a_quota_is_named_when_it_binds() {
    let firm = |view: JobView| JobView { firm: true, ..view };
    let cases = [
        // What the first tenant has, what it holds, what it asks for: the level, what is missing, and the smallest raises.
        (None, (0, 0), of(1, 9, 500), QuotaLevel::None, 500, Some(500), None),
        (Some((300, 0, 0)), (100, 0), of(1, 9, 500), QuotaLevel::Nominal, 300, Some(300), Some(300)),
        (Some((300, 900, 0)), (300, 300), firm(of(1, 9, 500)), QuotaLevel::Nominal, 500, Some(500), None),
        (Some((300, 100, 0)), (100, 0), of(1, 9, 500), QuotaLevel::Limit, 200, Some(200), Some(200)),
        (Some((300, 900, 0)), (300, 0), of(1, 9, 900), QuotaLevel::Pool, 100, Some(100), None),
    ];
    for (limits, held_now, view, level, missing, raise, borrow) in cases {
        let own = limits.map(|limits| quota(1, 1, "a", limits));
        let lender = quota(2, 1, "a", (800, 0, 800));
        let mut rows = rows(own.into_iter().chain([lender]).chain(held(1, 1, "a", held_now)));
        rows.apply(&Delta::Job(view.clone()));
        let mut world = rows.world(World::PATIENCE);
        assert_eq!(told(&mut world, 9), Some(Reason::QuotaExceeded), "{level:?}");
        let why = world.explain(view.id).unwrap();
        let short = why.quota.unwrap();
        assert_eq!((short.level, short.missing, short.asked), (level, missing, i64::from(view.resources.milli.get())));
        assert_eq!(short.site_name.unwrap().as_str(), "site-1");
        let amount = |kind| why.changes.iter().find(|change| change.kind == kind).map(|change| change.amount);
        assert_eq!(amount(ChangeKind::MoreQuota), raise, "{level:?}");
        assert_eq!(amount(ChangeKind::MoreBorrowing), borrow, "{level:?}");
        assert!(why.message.contains("`site-1`") && why.message.contains("platform admins"), "{}", why.message);
    }
}

#[test]
fn what_is_called_back_is_kept_from_borrowers_until_its_lender_has_it() {
    let quotas = [quota(1, 1, "a", (1000, 0, 1000)), quota(2, 1, "a", (0, 2000, 0))];
    let mut rows = rows(quotas.into_iter().chain(held(2, 1, "a", (1000, 0))));
    // A borrower that is in front of the lender, and one behind.
    let borrowers = [JobView { priority: 5, ..of(2, 1, 300) }, of(2, 8, 300)];
    for view in borrowers.iter().chain([&of(1, 5, 700)]) {
        rows.apply(&Delta::Job(view.clone()));
    }
    let mut world = rows.world(World::PATIENCE);
    assert_eq!(told(&mut world, 5), Some(Reason::QuotaLent));
    // What is given back is no borrower's, whoever is in front; also while the lender's job waits for room.
    for delta in held(2, 1, "a", (300, 0)) {
        world.apply(&delta);
    }
    let mut control = world.clone();
    let placed = |world: &mut World| -> Vec<u64> {
        world.decide(Limits::NONE).placements.iter().map(|placement| placement.job.raw()).collect()
    };
    let closed = common::node(1, 1, vec![gpu(0, "a", 1 << 30)]);
    let full = common::lease(1, 1, 0, &job(1, "a", 1, 600).resources);
    control.apply(&Delta::Node(closed));
    control.apply(&Delta::Lease(full));
    assert_eq!(placed(&mut control), Vec::<u64>::new(), "it waits for a device, and so do they");
    assert_eq!(placed(&mut world), [5]);
    // The control: without the lender's job nobody keeps anything from them.
    let mut alone = rows.world(World::PATIENCE);
    alone.apply(&Delta::JobGone(JobId::from_raw(5)));
    for delta in held(2, 1, "a", (300, 0)) {
        alone.apply(&delta);
    }
    assert_eq!(placed(&mut alone), [1, 8]);
}

#[test]
fn a_site_whose_quota_is_used_up_is_passed_over_for_one_that_has_some() {
    let mut rows = rows([quota(1, 1, "a", (500, 0, 0)), quota(1, 0, "a", (900, 0, 0))]);
    rows.apply(&Delta::Node(node(2, 2, vec![gpu(0, "a", 1 << 30)])));
    // Dearer, but not used up.
    let mut prices = vec![price("a", 1000)];
    prices.push(sluice_ledger::Price { site: Some(site(2)), ..price("a", 2000) });
    rows.apply(&Delta::Prices(book(2, prices)));
    for id in 1..=3 {
        rows.apply(&Delta::Job(of(1, id, 400)));
    }
    let mut world = rows.world(World::PATIENCE);
    let plan = world.decide(Limits::NONE);
    let sites: Vec<_> = plan.placements.iter().map(|placement| (placement.job.raw(), placement.site)).collect();
    assert_eq!(sites, [(1, site(1)), (2, site(2))]);
    assert_eq!(plan.verdicts[0].reason, Reason::QuotaExceeded);
    assert!(plan.verdicts[0].message.contains("over all sites") || plan.verdicts[0].message.contains("`site-1`"));
    // The memory of a device counts like its share.
    let mut fat = of(1, 9, 1);
    fat.resources.memory = Bytes::new(1 << 30);
    rows.apply(&Delta::Job(fat));
    let why = rows.world(World::PATIENCE).explain(JobId::from_raw(9)).unwrap();
    assert_eq!(why.quota.unwrap().asked, 1000);
}

#[test]
fn nobody_is_stopped_for_a_lender_who_could_not_pay_for_what_it_would_find() {
    let quotas = [quota(1, 1, "a", (1000, 0, 1000)), quota(2, 1, "a", (0, 2000, 0))];
    let mut rows = rows(quotas.into_iter().chain(held(2, 1, "a", (1000, 0))));
    // The site of its quota is dear; at the cheap one, where everybody may take what there is, nothing is left.
    rows.apply(&Delta::Node(node(2, 2, vec![gpu(0, "a", 1 << 30)])));
    rows.apply(&Delta::Lease(common::lease(1, 2, 0, &job(1, "a", 1, 1000).resources)));
    let mut prices = vec![price("a", 1000)];
    prices.push(sluice_ledger::Price { site: Some(site(1)), ..price("a", 2000) });
    rows.apply(&Delta::Prices(book(2, prices)));
    rows.apply(&Delta::Job(of(1, 5, 700)));
    // What 700 thousandths cost here is 700, and there 1400.
    for (amount, reason) in [(1399, Reason::NoFreeShare), (1400, Reason::QuotaLent), (699, Reason::InsufficientFunds)] {
        rows.apply(&Delta::Account(funds(1, amount)));
        assert_eq!(told(&mut rows.world(World::PATIENCE), 5), Some(reason), "{amount}");
    }
    // Where it may run at the dear site alone, it is told that its money does not do for that.
    let only = JobView { sites: vec![site(1)], ..of(1, 5, 700) };
    rows.apply(&Delta::Job(only));
    for (amount, reason) in [(1399, Reason::InsufficientFunds), (1400, Reason::QuotaLent)] {
        rows.apply(&Delta::Account(funds(1, amount)));
        assert_eq!(told(&mut rows.world(World::PATIENCE), 5), Some(reason), "{amount}");
    }
}
