//! What quotas let in, what they borrow and lend, and what becomes of work that they do not cover any more.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use sluice_ledger::{Account, AccountKey, QuotaKey, QuotaLimits};
use sluice_lifecycle::model::{Goal, JobKind, JobSpec, JobState, QuotaPolicy};
use sluice_lifecycle::{Answer, Caller, Command, Managed, Refusal, SetQuota, UserCommand};
use sluice_types::{Bytes, CoreMilli, JobId, KeyId, MilliGpu, Nanos, ProjectId, Reason, TenantId};
use support::{Bench, spec};

/// A part of a device at the first site.
fn part(bench: &Bench, milli: u32) -> JobSpec {
    let mut part = JobSpec { sites: vec![bench.sites[0]], ..spec(None) };
    (part.resources.milli, part.resources.memory) = (MilliGpu::new(milli), Bytes::mib(16));
    part
}

fn key(bench: &Bench, tenant: TenantId) -> QuotaKey {
    QuotaKey { tenant, site: Some(bench.sites[0]), class: "cpu".parse().unwrap() }
}

fn set(
    bench: &mut Bench,
    tenant: TenantId,
    (nominal, borrow, lend): (i64, i64, i64),
    policy: QuotaPolicy,
) -> Result<Answer, Refusal> {
    let key = key(bench, tenant);
    let limits = QuotaLimits { nominal, borrow, lend };
    bench.user(UserCommand::SetQuota(SetQuota { key, limits, policy, version: None }))
}

/// Two tenants at a site: one lends a whole device, the other has none of its own and may borrow one.
struct Pair {
    bench: Bench,
    lender: (TenantId, ProjectId),
    borrower: (TenantId, ProjectId),
}

impl Pair {
    fn new() -> Self {
        let mut bench = Bench::new();
        let lender = (bench.tenant, bench.project);
        let borrower = bench.add_tenant("borrower");
        set(&mut bench, lender.0, (1000, 0, 1000), QuotaPolicy::Refuse).unwrap();
        set(&mut bench, borrower.0, (0, 1000, 0), QuotaPolicy::Refuse).unwrap();
        Self { bench, lender, borrower }
    }

    fn submit(&mut self, project: ProjectId, milli: u32) -> JobId {
        let spec = part(&self.bench, milli);
        self.bench.submit_to(project, spec)
    }

    fn run(&mut self, project: ProjectId, milli: u32) -> JobId {
        let job = self.submit(project, milli);
        self.bench.placed_and_running(job)
    }

    fn stands(&self, job: JobId) -> (JobState, Option<Reason>) {
        let row = self.bench.job(job);
        (row.state, row.reason)
    }

    /// What it was told to stop at is sealed, and it ends.
    fn stops(&mut self, job: JobId, number: u64) {
        let task = self.bench.task(job);
        self.bench.stop_at_checkpoint(task, number);
    }
}

#[test]
fn what_is_lent_is_borrowed_within_its_limit_and_no_further() {
    let mut pair = Pair::new();
    let first = pair.run(pair.borrower.1, 600);
    let second = pair.submit(pair.borrower.1, 600);
    let third = pair.submit(pair.borrower.1, 400);
    pair.bench.plan();
    assert_eq!(pair.stands(first).0, JobState::Running);
    assert_eq!(pair.stands(second), (JobState::Pending, Some(Reason::QuotaExceeded)));
    assert_eq!(pair.stands(third).0, JobState::Starting);
    let message = pair.bench.job(second).message;
    assert!(
        message.contains("200m") && message.contains("`site-0`") && message.contains("platform admin"),
        "{message}"
    );
    let cohort = pair.bench.state.cohort(&key(&pair.bench, pair.lender.0).cohort()).unwrap();
    assert_eq!((cohort.borrowed(pair.borrower.0), cohort.lent(pair.lender.0)), (1000, 1000));
    pair.bench.check_world();
}

#[test]
fn nobody_borrows_what_nobody_lends() {
    let mut pair = Pair::new();
    set(&mut pair.bench, pair.lender.0, (1000, 0, 300), QuotaPolicy::Refuse).unwrap();
    let job = pair.submit(pair.borrower.1, 400);
    pair.bench.plan();
    assert_eq!(pair.stands(job), (JobState::Pending, Some(Reason::QuotaExceeded)));
    assert!(pair.bench.job(job).message.contains("others lend 100m too little"), "{}", pair.bench.job(job).message);
    let own = pair.submit(pair.lender.1, 1000);
    pair.bench.plan();
    assert_eq!(pair.stands(own).0, JobState::Starting);
    pair.bench.check_world();
}

#[test]
fn a_tenant_without_a_quota_is_unlimited_until_there_is_a_cohort() {
    let mut bench = Bench::new();
    let before = bench.submit_spec(part(&bench, 1000));
    bench.placed_and_running(before);
    let (other, _) = bench.add_tenant("other");
    set(&mut bench, other, (500, 0, 0), QuotaPolicy::Refuse).unwrap();
    // What ran goes on, and counts.
    assert_eq!(bench.job(before).state, JobState::Running);
    assert_eq!(bench.state.cohort(&key(&bench, other).cohort()).unwrap().used(bench.tenant).total, 1000);
    let (here, elsewhere) = (part(&bench, 100), JobSpec { sites: vec![bench.sites[1]], ..part(&bench, 100) });
    let (here, elsewhere) = (bench.submit_spec(here), bench.submit_spec(elsewhere));
    bench.plan();
    assert_eq!((bench.job(here).state, bench.job(here).reason), (JobState::Pending, Some(Reason::QuotaExceeded)));
    assert!(bench.job(here).message.contains("its tenant has no quota"), "{}", bench.job(here).message);
    assert_eq!(bench.job(elsewhere).state, JobState::Starting, "another site is another cohort");
    // The last quota takes the cohort with it.
    bench.user(UserCommand::DeleteQuota(key(&bench, other), None)).unwrap();
    bench.plan();
    assert_eq!(bench.job(here).state, JobState::Starting);
    bench.check_world();
}

#[test]
fn the_first_quota_counts_what_runs_already() {
    let mut bench = Bench::new();
    let job = bench.submit_spec(part(&bench, 600));
    bench.placed_and_running(job);
    let tenant = bench.tenant;
    let refused = set(&mut bench, tenant, (500, 0, 0), QuotaPolicy::Refuse).unwrap_err();
    assert_eq!((refused.reason, refused.details["missing_milli"].as_str()), (Reason::QuotaInUse, "100"));
    assert_eq!(bench.state.quotas().count(), 0);
    set(&mut bench, tenant, (1000, 0, 0), QuotaPolicy::Refuse).unwrap();
    let (small, large) = (bench.submit_spec(part(&bench, 400)), bench.submit_spec(part(&bench, 401)));
    bench.plan();
    assert_eq!(bench.job(small).state, JobState::Starting);
    assert_eq!(bench.job(large).reason, Some(Reason::QuotaExceeded));
}

#[test]
fn what_a_task_takes_beside_its_share_counts() {
    let mut bench = Bench::new();
    let tenant = bench.tenant;
    set(&mut bench, tenant, (500, 0, 0), QuotaPolicy::Refuse).unwrap();
    let mut cores = part(&bench, 1);
    cores.resources.host_cores = CoreMilli::new(999);
    let mut memory = part(&bench, 1);
    memory.resources.memory = Bytes::mib(3072);
    let jobs = [bench.submit_spec(cores), bench.submit_spec(memory)];
    bench.plan();
    for (job, missing) in jobs.into_iter().zip(["500m", "250m"]) {
        assert_eq!(bench.job(job).reason, Some(Reason::QuotaExceeded));
        assert!(bench.job(job).message.contains(missing), "{}", bench.job(job).message);
    }
}

#[test]
fn a_quota_over_all_sites_adds_them_up() {
    let mut bench = Bench::new();
    let key = QuotaKey { site: None, ..key(&bench, bench.tenant) };
    let limits = QuotaLimits { nominal: 1000, ..QuotaLimits::default() };
    let wanted = SetQuota { key: key.clone(), limits, policy: QuotaPolicy::Refuse, version: Some(0) };
    bench.user(UserCommand::SetQuota(wanted.clone())).unwrap();
    let again = bench.user(UserCommand::SetQuota(wanted.clone())).unwrap_err();
    assert_eq!(again.reason, Reason::EtagMismatch, "it is there");
    let lends = SetQuota { limits: QuotaLimits { lend: 1, ..limits }, ..wanted };
    assert_eq!(bench.user(UserCommand::SetQuota(lends)).unwrap_err().field.as_deref(), Some("lend_milli"));
    let first = bench.submit_spec(part(&bench, 600));
    let job = bench.placed_and_running(first);
    let second = bench.submit_spec(JobSpec { sites: vec![bench.sites[1]], ..part(&bench, 600) });
    bench.plan();
    assert_eq!(bench.job(second).reason, Some(Reason::QuotaExceeded));
    // A move does not count twice.
    bench.user(UserCommand::Migrate(job, bench.sites[1], None)).unwrap_err();
    bench.check_world();
}

#[test]
fn orders_use_the_nominal_only_whatever_is_lent() {
    let mut pair = Pair::new();
    set(&mut pair.bench, pair.borrower.0, (300, 1000, 0), QuotaPolicy::Refuse).unwrap();
    let order = |pair: &mut Pair, milli| {
        let time = Some(Nanos::from_secs(100));
        let leg = JobSpec {
            kind: JobKind::Rental,
            command: Vec::new(),
            checkpoint: None,
            max_run_time: time,
            ..part(&pair.bench, milli)
        };
        let (project, legs) = (pair.borrower.1, vec![Arc::new(leg)]);
        pair.bench
            .user(UserCommand::CreateOrder { project, name: None, legs, limit: None, begins_at: None, home: None })
            .unwrap();
        let job = pair.bench.rows.orders[0].legs[0];
        pair.bench.plan();
        pair.bench.rows.jobs.iter().find(|row| row.id == job).cloned().unwrap()
    };
    // Batch jobs borrow all there is, and leave the nominal to orders.
    let borrowed = pair.run(pair.borrower.1, 1000);
    let large = order(&mut pair, 301);
    assert_eq!((large.state, large.reason), (JobState::Failed, Some(Reason::QuotaExceeded)));
    assert!(large.message.contains("own part lacks 1m"), "{}", large.message);
    let small = order(&mut pair, 300);
    assert_eq!(small.state, JobState::Starting);
    // Below what orders hold no policy lowers it, and they are no victims.
    let refused = set(&mut pair.bench, pair.borrower.0, (200, 0, 0), QuotaPolicy::Drain).unwrap_err();
    assert_eq!((refused.reason, refused.details["level"].as_str()), (Reason::QuotaInUse, "nominal"));
    set(&mut pair.bench, pair.borrower.0, (300, 0, 0), QuotaPolicy::Drain).unwrap();
    assert_eq!(pair.stands(borrowed), (JobState::Suspending, Some(Reason::QuotaReclaimed)));
    assert_eq!(pair.stands(small.id).0, JobState::Starting);
}

#[test]
fn a_lowered_limit_drains_the_newest_and_raised_again_they_resume() {
    let mut pair = Pair::new();
    let jobs: Vec<_> = (0..3).map(|_| pair.run(pair.borrower.1, 300)).collect();
    let refused = set(&mut pair.bench, pair.borrower.0, (0, 600, 0), QuotaPolicy::Refuse).unwrap_err();
    assert_eq!(refused.reason, Reason::QuotaInUse);
    let of = |name: &str| refused.details[name].as_str();
    let quota = "tenants/borrower/quotas/site-0/cpu";
    assert_eq!((of("quota"), of("level"), of("missing_milli"), of("who")), (quota, "limit", "300", "platform admins"));
    let words = [quota, "level limit", "300m", "platform admins"];
    assert!(words.iter().all(|word| refused.message.contains(word)), "{}", refused.message);
    set(&mut pair.bench, pair.borrower.0, (0, 500, 0), QuotaPolicy::Drain).unwrap();
    assert_eq!(pair.stands(jobs[0]).0, JobState::Running, "the oldest stays");
    for job in &jobs[1..] {
        assert_eq!(pair.stands(*job), (JobState::Suspending, Some(Reason::QuotaReclaimed)));
        let attempt = pair.bench.job(*job).current.unwrap();
        assert_eq!(pair.bench.state.attempt(attempt).unwrap().goal, Goal::Checkpoint);
    }
    // Until they are gone nothing new is let in.
    let entitled = AccountKey::Entitled(pair.borrower.0, Some(pair.bench.sites[0]), "cpu".parse().unwrap());
    assert_eq!(pair.bench.state.books().available(&entitled), 0);
    jobs[1..].iter().for_each(|job| pair.stops(*job, 5));
    assert_eq!(pair.stands(jobs[1]), (JobState::Suspended, Some(Reason::QuotaReclaimed)));
    let words = [quota, "level limit", "400m", "platform admins"];
    let said = &pair.bench.job(jobs[1]).message;
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    assert_eq!(pair.bench.state.books().available(&entitled), 200);
    pair.bench.pass(5);
    assert_eq!(pair.stands(jobs[1]).0, JobState::Suspended, "it is not covered yet");
    set(&mut pair.bench, pair.borrower.0, (0, 600, 0), QuotaPolicy::Drain).unwrap();
    assert_eq!((pair.stands(jobs[1]).0, pair.stands(jobs[2]).0), (JobState::Pending, JobState::Suspended));
    pair.bench.plan();
    let resumed = pair.bench.state.attempt(pair.bench.job(jobs[1]).current.unwrap()).unwrap();
    assert_eq!(pair.bench.state.checkpoint(resumed.resume.unwrap()).unwrap().step, 5);
    pair.bench.check_world();
}

#[test]
fn what_does_not_stop_at_a_checkpoint_in_time_is_stopped_as_it_is() {
    let mut pair = Pair::new();
    let job = pair.run(pair.borrower.1, 300);
    set(&mut pair.bench, pair.borrower.0, (0, 0, 0), QuotaPolicy::Drain).unwrap();
    let task = pair.bench.task(job);
    let goal = |pair: &Pair| pair.bench.state.attempt(task.attempt).unwrap().goal;
    pair.bench.pass(59);
    assert_eq!(goal(&pair), Goal::Checkpoint);
    pair.bench.pass(3);
    assert_eq!(goal(&pair), Goal::Stop);
    pair.bench.end(task);
    assert_eq!(pair.stands(job), (JobState::Suspended, Some(Reason::QuotaReclaimed)));
}

#[test]
fn a_suspend_under_way_is_not_taken_back_where_the_quota_is_wanted() {
    let mut pair = Pair::new();
    let job = pair.run(pair.borrower.1, 300);
    pair.bench.user(UserCommand::Suspend(job, None)).unwrap();
    set(&mut pair.bench, pair.borrower.0, (0, 0, 0), QuotaPolicy::Drain).unwrap();
    let task = pair.bench.task(job);
    pair.bench.pass(62);
    assert_eq!(
        pair.bench.state.attempt(task.attempt).unwrap().goal,
        Goal::Stop,
        "its user wanted it, and so do others"
    );
    pair.bench.end(task);
    set(&mut pair.bench, pair.borrower.0, (0, 1000, 0), QuotaPolicy::Drain).unwrap();
    assert_eq!(pair.stands(job), (JobState::Suspended, Some(Reason::SuspendedByUser)), "who suspends it resumes it");
}

#[test]
fn a_user_who_suspends_what_was_drained_keeps_it_suspended() {
    for drained_first in [true, false] {
        let mut pair = Pair::new();
        let job = pair.run(pair.borrower.1, 300);
        set(&mut pair.bench, pair.borrower.0, (0, 0, 0), QuotaPolicy::Drain).unwrap();
        if drained_first {
            pair.stops(job, 5);
        }
        pair.bench.user(UserCommand::Suspend(job, None)).unwrap();
        if !drained_first {
            pair.stops(job, 5);
        }
        set(&mut pair.bench, pair.borrower.0, (0, 1000, 0), QuotaPolicy::Drain).unwrap();
        pair.bench.pass(2);
        assert_eq!(pair.stands(job), (JobState::Suspended, Some(Reason::SuspendedByUser)));
        pair.bench.user(UserCommand::Resume(job, None)).unwrap();
        assert_eq!(pair.stands(job).0, JobState::Pending);
    }
}

#[test]
fn a_lender_gets_its_own_back_from_the_newest_borrowers() {
    let mut pair = Pair::new();
    let (old, new) = (pair.run(pair.borrower.1, 400), pair.run(pair.borrower.1, 400));
    let own = pair.submit(pair.lender.1, 500);
    pair.bench.plan();
    assert_eq!(pair.stands(own), (JobState::Pending, Some(Reason::QuotaLent)));
    assert!(pair.bench.job(own).message.contains("300m are lent"), "{}", pair.bench.job(own).message);
    pair.bench.pass(1);
    assert_eq!(pair.stands(new), (JobState::Suspending, Some(Reason::QuotaReclaimed)));
    pair.bench.pass(3);
    assert_eq!(pair.stands(old).0, JobState::Running, "no more are stopped than it takes");
    // A borrower that waits, and was there before, does not take what is called back.
    let greedy = pair.submit(pair.borrower.1, 200);
    pair.bench.plan();
    pair.stops(new, 5);
    let first = pair.bench.user(UserCommand::Resume(new, None)).map(|_| ());
    assert!(first.is_ok());
    pair.bench.plan();
    assert_eq!(pair.stands(own).0, JobState::Starting);
    assert_eq!((pair.stands(new).0, pair.stands(greedy).0), (JobState::Pending, JobState::Pending));
    // When the lender is done they have it again.
    let task = pair.bench.running(own);
    pair.bench.end(task);
    pair.bench.plan();
    assert_eq!((pair.stands(new).0, pair.stands(greedy).0), (JobState::Starting, JobState::Starting));
    pair.bench.check_world();
}

#[test]
fn nothing_is_called_back_for_a_job_that_could_not_start_anyway() {
    let mut pair = Pair::new();
    let (poor, project) = pair.bench.add_tenant("poor");
    set(&mut pair.bench, pair.lender.0, (0, 0, 0), QuotaPolicy::Refuse).unwrap();
    set(&mut pair.bench, poor, (1000, 0, 1000), QuotaPolicy::Refuse).unwrap();
    let borrowed = pair.run(pair.borrower.1, 800);
    let mut dear = part(&pair.bench, 500);
    dear.max_run_time = Some(Nanos::from_secs(300 * 86_400));
    let own = pair.bench.submit_to(project, dear);
    pair.bench.plan();
    assert_eq!(pair.stands(own), (JobState::Pending, Some(Reason::InsufficientFunds)));
    pair.bench.pass(3);
    assert_eq!(pair.stands(borrowed).0, JobState::Running);
}

/// What is on its way out already is no reason to stop less.
#[test]
fn lowered_again_while_it_drains_stops_as_much_more() {
    let mut pair = Pair::new();
    let jobs: Vec<_> = (0..5).map(|_| pair.run(pair.borrower.1, 200)).collect();
    let going = |pair: &Pair| jobs.iter().filter(|job| pair.stands(**job).0 == JobState::Suspending).count();
    set(&mut pair.bench, pair.lender.0, (1000, 0, 600), QuotaPolicy::Drain).unwrap();
    assert_eq!(going(&pair), 2);
    set(&mut pair.bench, pair.lender.0, (1000, 0, 200), QuotaPolicy::Drain).unwrap();
    assert_eq!(going(&pair), 4);
    jobs[1..].iter().for_each(|job| pair.stops(*job, 5));
    let cohort = pair.bench.state.cohort(&key(&pair.bench, pair.lender.0).cohort()).unwrap();
    assert_eq!((cohort.overdrawn(), cohort.borrowed(pair.borrower.0)), (0, 200));
}

/// It is called back where its job can use it, and nowhere else.
#[test]
fn what_is_lent_is_called_back_at_a_site_that_takes_the_lenders_job() {
    let mut pair = Pair::new();
    let second = QuotaKey { site: Some(pair.bench.sites[1]), ..key(&pair.bench, pair.lender.0) };
    for (tenant, nominal, borrow, lend) in [(pair.lender.0, 1000, 0, 1000), (pair.borrower.0, 0, 1000, 0)] {
        let (key, limits) = (QuotaKey { tenant, ..second.clone() }, QuotaLimits { nominal, borrow, lend });
        let wanted = SetQuota { key, limits, policy: QuotaPolicy::Refuse, version: None };
        pair.bench.user(UserCommand::SetQuota(wanted)).unwrap();
    }
    let here = pair.run(pair.borrower.1, 1000);
    let elsewhere = JobSpec { sites: vec![pair.bench.sites[1]], ..part(&pair.bench, 1000) };
    let there = pair.bench.submit_to(pair.borrower.1, elsewhere);
    pair.bench.placed_and_running(there);
    let node = pair.bench.nodes[0].0;
    let close = UserCommand::SetNode { node, cordoned: true, draining: None, reason: String::new() };
    pair.bench.user(close).unwrap();
    let own = JobSpec { sites: Vec::new(), ..part(&pair.bench, 500) };
    let own = pair.bench.submit_to(pair.lender.1, own);
    pair.bench.plan();
    assert_eq!(pair.stands(own), (JobState::Pending, Some(Reason::QuotaLent)));
    pair.bench.pass(3);
    assert_eq!(pair.stands(here).0, JobState::Running, "nothing starts at its site");
    assert_eq!(pair.stands(there), (JobState::Suspending, Some(Reason::QuotaReclaimed)));
}

/// A rental of before the cohort keeps what the lender wants: stopping a borrower would give the lender nothing.
#[test]
fn nobody_stops_for_a_lender_who_would_not_get_enough() {
    let mut bench = Bench::new();
    let leg = JobSpec {
        kind: JobKind::Rental,
        command: Vec::new(),
        checkpoint: None,
        max_run_time: Some(Nanos::from_secs(1000)),
        ..part(&bench, 400)
    };
    let legs = vec![Arc::new(leg)];
    let project = bench.project;
    let order = UserCommand::CreateOrder { project, name: None, legs, limit: None, begins_at: None, home: None };
    bench.user(order).unwrap();
    bench.plan();
    let (lender, lenders) = bench.add_tenant("lender");
    let (borrower, borrowers) = bench.add_tenant("borrower");
    set(&mut bench, lender, (500, 0, 500), QuotaPolicy::Refuse).unwrap();
    set(&mut bench, borrower, (0, 100, 0), QuotaPolicy::Refuse).unwrap();
    let borrowed = bench.submit_to(borrowers, part(&bench, 100));
    bench.placed_and_running(borrowed);
    let own = bench.submit_to(lenders, part(&bench, 300));
    bench.plan();
    assert_eq!((bench.job(own).state, bench.job(own).reason), (JobState::Pending, Some(Reason::QuotaLent)));
    bench.pass(3);
    assert_eq!(bench.job(borrowed).state, JobState::Running);
}

/// A tenant with many jobs that are not covered keeps no other tenant's from being looked at.
#[test]
fn many_that_are_not_covered_hold_up_no_other_tenants() {
    let mut pair = Pair::new();
    let (other, others) = pair.bench.add_tenant("other");
    set(&mut pair.bench, other, (500, 0, 0), QuotaPolicy::Refuse).unwrap();
    let mut small = part(&pair.bench, 3);
    small.resources.memory = Bytes::mib(4);
    let run = |_| {
        let job = pair.bench.submit_to(pair.borrower.1, small.clone());
        pair.bench.placed_and_running(job)
    };
    let many: Vec<_> = (0..300).map(run).collect();
    let one = pair.run(others, 300);
    set(&mut pair.bench, pair.borrower.0, (0, 0, 0), QuotaPolicy::Drain).unwrap();
    set(&mut pair.bench, other, (0, 0, 0), QuotaPolicy::Drain).unwrap();
    many.iter().chain([&one]).for_each(|job| pair.stops(*job, 5));
    set(&mut pair.bench, other, (500, 0, 0), QuotaPolicy::Drain).unwrap();
    assert_eq!(pair.stands(one).0, JobState::Pending);
    assert!(many.iter().all(|job| pair.stands(*job).0 == JobState::Suspended));
}

/// Nor keep many that are not covered a smaller one of the same tenant from it, whether they ask for the same or for as many
/// things as there are of them.
#[test]
fn one_that_is_covered_resumes_behind_many_that_are_not() {
    for differ in [0, 1] {
        let mut pair = Pair::new();
        let (tenant, project) = pair.borrower;
        set(&mut pair.bench, tenant, (4000, 0, 0), QuotaPolicy::Refuse).unwrap();
        let run = |pair: &mut Pair, milli: u32| {
            let mut spec = part(&pair.bench, milli);
            spec.resources.memory = Bytes::mib(4);
            let job = pair.bench.submit_to(project, spec);
            pair.bench.placed_and_running(job)
        };
        let many: Vec<_> = (0..40).map(|number| run(&mut pair, 20 + number * differ)).collect();
        let one = run(&mut pair, 5);
        set(&mut pair.bench, tenant, (0, 0, 0), QuotaPolicy::Drain).unwrap();
        many.iter().chain([&one]).for_each(|job| pair.stops(*job, 5));
        set(&mut pair.bench, tenant, (10, 0, 0), QuotaPolicy::Drain).unwrap();
        for _ in 0..5 {
            pair.bench.pass(1);
            pair.bench.command(Command::Tick).unwrap();
        }
        assert_ne!(pair.stands(one).0, JobState::Suspended);
        assert!(many.iter().all(|job| pair.stands(*job).0 == JobState::Suspended));
    }
}

#[test]
fn a_move_needs_quota_where_it_goes_and_is_given_up_where_it_is_drained() {
    let mut pair = Pair::new();
    let borrower = pair.borrower.0;
    let elsewhere = JobSpec { sites: Vec::new(), ..part(&pair.bench, 400) };
    set(&mut pair.bench, borrower, (0, 0, 0), QuotaPolicy::Refuse).unwrap();
    let job = pair.bench.submit_to(pair.borrower.1, elsewhere);
    pair.bench.placed_and_running(job);
    let here = pair.bench.sites[0];
    pair.bench.user(UserCommand::Migrate(job, here, None)).unwrap();
    pair.bench.plan();
    let target = |pair: &Pair| pair.bench.state.migration(pair.bench.job(job).migration.unwrap()).unwrap().target;
    assert_eq!(target(&pair), None, "no quota at the site");
    set(&mut pair.bench, borrower, (0, 400, 0), QuotaPolicy::Refuse).unwrap();
    pair.bench.plan();
    assert!(target(&pair).is_some());
    set(&mut pair.bench, borrower, (0, 0, 0), QuotaPolicy::Drain).unwrap();
    assert_eq!(pair.stands(job).0, JobState::Running, "it goes on where it was");
    let cohort = pair.bench.state.cohort(&key(&pair.bench, borrower).cohort()).unwrap();
    assert_eq!(cohort.used(borrower).total, 0);
    pair.bench.check_world();
}

#[test]
fn what_is_managed_elsewhere_is_changed_there() {
    let mut pair = Pair::new();
    let (tenant, key) = (pair.lender.0, key(&pair.bench, pair.lender.0));
    let operator = Caller { manager: "kubernetes/7".to_owned(), ..Caller::of(KeyId::from_raw(1)) };
    let limits = QuotaLimits { nominal: 900, borrow: 0, lend: 900 };
    let wanted = SetQuota { key: key.clone(), limits, policy: QuotaPolicy::Refuse, version: None };
    let as_operator = |pair: &mut Pair, command| pair.bench.command(Command::User(operator.clone(), command));
    as_operator(&mut pair, UserCommand::SetQuota(wanted.clone())).unwrap();
    assert_eq!(pair.bench.state.quota(&key).unwrap().manager, "kubernetes/7", "it takes what nobody manages");
    let others = [
        UserCommand::SetQuota(wanted),
        UserCommand::DeleteQuota(key.clone(), None),
        UserCommand::SetManager { object: Managed::Quota(key.clone()), manager: String::new(), detach: false },
    ];
    for command in others {
        let refused = pair.bench.user(command).unwrap_err();
        assert_eq!((refused.reason, refused.details["manager"].as_str()), (Reason::ManagedElsewhere, "kubernetes/7"));
        assert!(refused.message.contains("kubernetes/7"), "{}", refused.message);
    }
    let job = pair.submit(pair.lender.1, 100);
    let adopt = |object| UserCommand::SetManager { object, manager: "kubernetes/7".to_owned(), detach: false };
    pair.bench.user(adopt(Managed::Job(job))).unwrap();
    pair.bench.user(adopt(Managed::Tenant(tenant))).unwrap();
    let (cancel, suspend) = (UserCommand::Cancel(job, None), UserCommand::Suspend(job, None));
    for command in [cancel.clone(), suspend, UserCommand::Resume(job, None)] {
        assert_eq!(pair.bench.user(command).unwrap_err().reason, Reason::ManagedElsewhere);
    }
    // No other door has a word for money.
    pair.bench.user(UserCommand::SetCreditLine(tenant, sluice_types::Credits::new(1))).unwrap();
    as_operator(&mut pair, cancel).unwrap();
    let detach = UserCommand::SetManager { object: Managed::Quota(key.clone()), manager: String::new(), detach: true };
    pair.bench.user(detach).unwrap();
    pair.bench.user(UserCommand::DeleteQuota(key, None)).unwrap();
}

/// Whoever decided while it still managed a job comes too late, and those that watch hear of it.
#[test]
fn a_detached_job_refuses_its_former_manager_and_tells_that_it_was_detached() {
    let mut pair = Pair::new();
    let job = pair.submit(pair.lender.1, 100);
    let former = Caller { manager: "kubernetes/7".to_owned(), ..Caller::of(KeyId::from_raw(1)) };
    let hand = |manager: &str, detach| UserCommand::SetManager {
        object: Managed::Job(job),
        manager: manager.to_owned(),
        detach,
    };
    let told = |pair: &Pair| {
        let events = pair.bench.rows.events.iter();
        events.map(|event| (event.job, event.kind.clone(), event.message.clone())).collect::<Vec<_>>()
    };
    let version = pair.bench.job(job).version;
    pair.bench.user(hand("kubernetes/7", false)).unwrap();
    assert_eq!(told(&pair), [(job, "Adopted".to_owned(), "kubernetes/7".to_owned())]);
    pair.bench.user(hand("", true)).unwrap();
    assert_eq!(told(&pair), [(job, "Detached".to_owned(), "kubernetes/7".to_owned())]);
    pair.bench.user(hand("", true)).unwrap();
    assert_eq!(told(&pair), [], "nothing changed");
    assert_eq!(pair.bench.job(job).version, version, "the scheduler's view of it stays valid");
    let to = pair.bench.sites[1];
    for command in [
        UserCommand::Cancel(job, None),
        UserCommand::Suspend(job, None),
        UserCommand::Resume(job, None),
        UserCommand::Migrate(job, to, None),
    ] {
        let refused = pair.bench.command(Command::User(former.clone(), command)).unwrap_err();
        assert_eq!((refused.reason, refused.details["manager"].as_str()), (Reason::ManagedElsewhere, ""));
        assert!(refused.message.contains("kubernetes/7"), "{}", refused.message);
    }
    assert_eq!(pair.bench.job(job).state, JobState::Pending);
    // The control: its own tenant, who speaks for no manager, ends it.
    pair.bench.user(UserCommand::Cancel(job, None)).unwrap();
}

#[test]
fn an_old_quota_becomes_one_over_all_sites() {
    let mut bench = Bench::new();
    let class: sluice_types::DeviceClassName = "cpu".parse().unwrap();
    let old = AccountKey::Quota(bench.tenant, class.clone());
    let job = bench.submit_spec(part(&bench, 300));
    bench.placed_and_running(job);
    bench.restart_with(|rows| {
        let mut account = Account { credits_posted: 700, ..Account::empty(old.clone()) };
        account.debits_posted = 0;
        let capacity = Account { debits_posted: 700, ..Account::empty(AccountKey::Capacity) };
        rows.accounts.extend([account, capacity]);
        // Attempts of that time do not say what they take.
        rows.attempts.iter_mut().for_each(|row| row.charge = 0);
    });
    bench.pass(1);
    let key = QuotaKey { tenant: bench.tenant, site: None, class };
    assert_eq!(bench.state.quota(&key).unwrap().limits.nominal, 700);
    assert_eq!(bench.state.books().account(&old).balance(), 0, "it is kept in one place only");
    let (fits, not) = (bench.submit_spec(part(&bench, 400)), bench.submit_spec(part(&bench, 401)));
    bench.plan();
    assert_eq!(bench.job(fits).state, JobState::Starting);
    assert_eq!(bench.job(not).reason, Some(Reason::QuotaExceeded));
}

/// A day of two tenants, as a die has it: whatever happens, the judge behind every command has nothing to say, and the
/// scheduler's world is the one that rows would build.
#[test]
fn any_day_of_a_cohort_keeps_its_rules() {
    let (mut drained, mut resumed) = (0, 0);
    for seed in 0..40u64 {
        let mut pair = Pair::new();
        let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut roll = move |most: u64| {
            dice ^= dice >> 12;
            dice ^= dice << 25;
            dice ^= dice >> 27;
            (dice.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % most
        };
        let mut jobs: Vec<JobId> = Vec::new();
        for _ in 0..80 {
            let (tenant, project) = if roll(2) == 0 { pair.lender } else { pair.borrower };
            match roll(10) {
                0..=2 => {
                    let milli = 100 + 50 * u32::try_from(roll(10)).unwrap();
                    jobs.push(pair.submit(project, milli));
                }
                3 | 4 => {
                    let nominal = 250 * i64::try_from(roll(9)).unwrap();
                    let borrow = 250 * i64::try_from(roll(7)).unwrap();
                    let lend = nominal * i64::try_from(roll(3)).unwrap() / 2;
                    let policy = if roll(3) == 0 { QuotaPolicy::Refuse } else { QuotaPolicy::Drain };
                    let _refused_or_not = set(&mut pair.bench, tenant, (nominal, borrow, lend), policy);
                }
                5 => {
                    let key = key(&pair.bench, tenant);
                    let _refused_or_not = pair.bench.user(UserCommand::DeleteQuota(key, None));
                }
                6 => pair.bench.pass(1 + roll(3)),
                _ => {
                    if let Some(job) = jobs.get(usize::try_from(roll(jobs.len().max(1) as u64)).unwrap()).copied() {
                        let state = pair.bench.state.job(job).map(|row| row.state);
                        match (state, roll(3)) {
                            (Some(JobState::Starting), _) => drop(pair.bench.running(job)),
                            (Some(JobState::Suspending), _) => pair.stops(job, 1 + roll(9)),
                            (Some(JobState::Running), 0) => {
                                let task = pair.bench.task(job);
                                pair.bench.end(task);
                            }
                            (Some(_), 1) => drop(pair.bench.user(UserCommand::Suspend(job, None))),
                            (Some(_), 2) => drop(pair.bench.user(UserCommand::Resume(job, None))),
                            _ => {}
                        }
                    }
                }
            }
            let jobs = || pair.bench.state.jobs();
            drained += jobs().filter(|job| job.reason == Some(Reason::QuotaReclaimed)).count();
            resumed += jobs().filter(|job| job.message == "its quota covers it again").count();
            pair.bench.plan();
        }
        pair.bench.check_world();
        pair.bench.restart_with(|_| {});
        pair.bench.pass(1);
    }
    assert!(drained > 100 && resumed > 10, "{drained} were drained, {resumed} resumed");
}
