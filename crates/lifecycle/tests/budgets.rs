//! Budgets bind what is admitted and what runs, period by period.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use sluice_lifecycle::model::{BudgetPolicy, JobState, TaskEnd};
use sluice_lifecycle::{NodeReport, Settings, UserCommand};
use sluice_types::{Credits, Nanos, Reason};
use support::{Bench, WINDOW_COST, end};

#[test]
fn a_strict_budget_stops_its_job_before_it_is_overdrawn() {
    let mut bench = Bench::new();
    bench.budget(15, 0, BudgetPolicy::Suspend);
    let job = bench.run(None);
    let key = bench.task(job);
    let mut windows = 0;
    while bench.job(job).state == JobState::Running {
        bench.window(key);
        windows += 1;
    }
    assert_eq!(bench.job(job).reason, Some(Reason::SuspendedForMoney));
    // Two windows are left for the way to the checkpoint.
    assert_eq!(windows, 13);
    bench.window(key);
    bench.stop_at_checkpoint(key, 14);
    assert_eq!(bench.job(job).state, JobState::Suspended);
    let (account, spent) = bench.budget_now();
    assert_eq!((spent, account.available()), (14 * WINDOW_COST, WINDOW_COST));
}

/// A slice is paid for from the moment that it is kept for a job, also while what the job starts from is fetched.
#[test]
fn a_job_that_prepares_for_too_long_is_stopped_before_it_overdraws() {
    let mut bench = Bench::new();
    bench.budget(8, 0, BudgetPolicy::Suspend);
    let job = bench.submit(None);
    bench.plan();
    let key = bench.task(job);
    let mut windows = 0;
    while bench.job(job).state == JobState::Starting {
        bench.window(key);
        windows += 1;
    }
    assert_eq!(windows, 6, "two windows are left for the way to its end");
    let unstarted = TaskEnd { exit_code: None, ..end(false) };
    bench.node_of(key, NodeReport::Ended { key, end: unstarted, windows, step: 0 });
    let row = bench.job(job);
    assert_eq!((row.state, row.reason), (JobState::Suspended, Some(Reason::SuspendedForMoney)));
    let (account, spent) = bench.budget_now();
    assert_eq!((spent, account.available()), (6 * WINDOW_COST, 2 * WINDOW_COST));
    assert_eq!(bench.state.lease(key.lease).unwrap().uncollected.units(), 0);
}

/// What a slow checkpoint costs beyond the budget was never promised by the tenant.
#[test]
fn a_slow_checkpoint_costs_the_platform_and_not_the_budget() {
    let mut bench = Bench::new();
    bench.budget(8, 0, BudgetPolicy::Suspend);
    let job = bench.run(None);
    let key = bench.task(job);
    (0..10).for_each(|_| bench.window(key));
    let (account, spent) = bench.budget_now();
    assert_eq!((spent, account.available()), (8 * WINDOW_COST, 0));
    let lease = bench.state.lease(key.lease).unwrap();
    assert_eq!((lease.amount.units(), lease.uncollected.units()), (8 * WINDOW_COST, 2 * WINDOW_COST));
}

#[test]
fn a_running_job_spends_from_the_period_that_it_is() {
    let mut bench = Bench::new();
    // A period of 100 s begins with the epoch; 8 windows of each may be used.
    bench.budget(8, 100, BudgetPolicy::Suspend);
    let first = bench.state.budgets().next().unwrap().period(bench.now);
    let job = bench.run(None);
    let key = bench.task(job);
    (0..5).for_each(|_| bench.window(key));
    bench.pass(50);
    let (old, spent) = bench.budget_of(first);
    assert_eq!((spent, old.debits_pending), (5 * WINDOW_COST, 0), "nothing of a period that is over is kept");
    (0..3).for_each(|_| bench.window(key));
    let (new, spent) = bench.budget_of(first + 1);
    assert_eq!((spent, new.debits_pending), (3 * WINDOW_COST, 5 * WINDOW_COST));
    assert_eq!(bench.job(job).state, JobState::Running);
}

/// The new period cannot carry what runs: the promise of the old one pays the way to the checkpoint.
#[test]
fn a_period_that_is_too_small_suspends_without_overdraft() {
    let mut bench = Bench::new();
    bench.budget(8, 100, BudgetPolicy::Suspend);
    let first = bench.state.budgets().next().unwrap().period(bench.now);
    let job = bench.run(None);
    let key = bench.task(job);
    bench.window(key);
    bench.budget(8, 100, BudgetPolicy::Suspend);
    // From the next period on it is two windows only; set just before that period begins.
    bench.pass(85);
    let held = bench.budget_of(first).0.debits_pending;
    bench.budget(2, 100, BudgetPolicy::Suspend);
    bench.pass(10);
    assert_eq!(bench.budget_now().1, 0);
    assert_eq!(bench.job(job).state, JobState::Running, "what is held of the old period still pays");
    (0..3).for_each(|_| bench.window(key));
    assert_eq!(bench.job(job).state, JobState::Suspending);
    // What is left of the promise fits the new period by now, and is carried by it.
    let (old, spent) = bench.budget_of(first);
    assert_eq!((spent, old.debits_pending), (4 * WINDOW_COST, 0));
    assert_eq!(held, 5 * WINDOW_COST);
    (0..3).for_each(|_| bench.window(key));
    let (new, spent) = bench.budget_now();
    assert_eq!((spent, new.available()), (2 * WINDOW_COST, 0));
    assert_eq!(bench.state.lease(key.lease).unwrap().uncollected.units(), WINDOW_COST);
}

#[test]
fn a_budget_set_during_a_run_binds_it() {
    let mut bench = Bench::new();
    let job = bench.run(None);
    let key = bench.task(job);
    bench.window(key);
    bench.budget(2, 0, BudgetPolicy::Suspend);
    assert_eq!(bench.job(job).state, JobState::Suspending);
    // What runs until the checkpoint was promised by the funds before the budget was set: it is paid, and shown as spent.
    (0..3).for_each(|_| bench.window(key));
    let (account, spent) = bench.budget_now();
    assert_eq!((spent, account.available()), (3 * WINDOW_COST, 0));
    assert_eq!(bench.state.lease(key.lease).unwrap().uncollected, Credits::ZERO);
}

/// Control: a budget with room lets it run on, and counts it.
#[test]
fn a_wide_budget_set_during_a_run_counts_it() {
    let mut bench = Bench::new();
    let job = bench.run(None);
    let key = bench.task(job);
    bench.window(key);
    bench.budget(100, 0, BudgetPolicy::Suspend);
    (0..4).for_each(|_| bench.window(key));
    assert_eq!(bench.job(job).state, JobState::Running);
    assert_eq!(bench.budget_now().1, 4 * WINDOW_COST);
}

#[test]
fn an_admission_budget_lets_jobs_run_on_and_shows_all_they_spend() {
    let mut bench = Bench::new();
    bench.budget(7, 0, BudgetPolicy::AdmissionOnly);
    let job = bench.run(None);
    let key = bench.task(job);
    (0..20).for_each(|_| bench.window(key));
    assert_eq!(bench.job(job).state, JobState::Running);
    let (account, spent) = bench.budget_now();
    assert_eq!((spent, account.available()), (20 * WINDOW_COST, 0));
    let other = bench.submit(None);
    bench.plan();
    assert_eq!(bench.job(other).reason, Some(Reason::BudgetExhausted));
}

/// A job with a run limit was promised all of it when it was admitted: a later period that cannot carry it does not break
/// that promise, and is not overdrawn by it.
#[test]
fn a_job_with_a_run_limit_keeps_what_it_was_promised() {
    let mut bench = Bench::new();
    bench.budget(30, 100, BudgetPolicy::Suspend);
    let first = bench.state.budgets().next().unwrap().period(bench.now);
    let job = bench.run(Some(300));
    let key = bench.task(job);
    (0..9).for_each(|_| bench.window(key));
    bench.budget(5, 100, BudgetPolicy::Suspend);
    (0..21).for_each(|_| bench.window(key));
    assert_eq!(bench.job(job).state, JobState::Running);
    assert_eq!(bench.state.lease(key.lease).unwrap().uncollected, Credits::ZERO);
    let spent: Vec<_> = (first..first + 4).map(|period| bench.budget_of(period).1 / WINDOW_COST).collect();
    assert_eq!(spent, [25, 0, 4, 1]);
}

#[test]
fn credits_go_back_to_the_period_they_came_from() {
    let mut bench = Bench::new();
    bench.budget(8, 100, BudgetPolicy::Suspend);
    let first = bench.state.budgets().next().unwrap().period(bench.now);
    let job = bench.run(None);
    let key = bench.task(job);
    (0..4).for_each(|_| bench.window(key));
    bench.pass(65);
    bench.window(key);
    let now = bench.budget_now();
    assert_eq!((bench.budget_of(first).1, now.1), (4 * WINDOW_COST, WINDOW_COST));
    // Its node falls silent: no checkpoint holds any of its five windows.
    let lost = bench.state.lease(key.lease).unwrap().device.node;
    bench.nodes.retain(|(node, _)| *node != lost);
    bench.pass(20);
    assert_eq!(bench.job(job).credited.units(), 5 * WINDOW_COST);
    assert_eq!((bench.budget_of(first).1, bench.budget_of(first + 1).1), (0, 0));
    let (account, _) = bench.budget_of(first + 1);
    assert!(account.available() + account.debits_pending <= 8 * WINDOW_COST, "{account:?}");
}

#[test]
fn a_lowered_budget_is_not_refilled_by_credits() {
    let mut bench = Bench::new();
    bench.budget(20, 0, BudgetPolicy::AdmissionOnly);
    let job = bench.run(None);
    let key = bench.task(job);
    (0..10).for_each(|_| bench.window(key));
    bench.budget(1, 0, BudgetPolicy::AdmissionOnly);
    let lost = bench.state.lease(key.lease).unwrap().device.node;
    bench.nodes.retain(|(node, _)| *node != lost);
    bench.pass(20);
    assert_eq!(bench.job(job).credited.units(), 10 * WINDOW_COST);
    let (account, spent) = bench.budget_now();
    assert!(spent + account.debits_pending + account.available() <= WINDOW_COST.max(spent + account.debits_pending));
    assert_eq!(spent, 0);
}

#[test]
fn a_period_without_a_grant_admits_nothing() {
    let mut bench = Bench::new();
    bench.budget(8, 100, BudgetPolicy::Suspend);
    let job = bench.submit(None);
    // The period changes between the planner's look and the writer's.
    bench.now = bench.now.after(Nanos::from_secs(100));
    bench.plan();
    assert_eq!(bench.job(job).state, JobState::Pending);
    bench.pass(1);
    bench.plan();
    assert_eq!(bench.job(job).state, JobState::Starting);
    assert!(bench.user(UserCommand::Cancel(job, None)).is_ok());
}

/// A budget that stopped to be strict for a while was passed; made strict again it stops the job, and what ran is paid.
#[test]
fn what_ran_beyond_a_budget_that_was_lenient_is_paid_when_it_is_strict_again() {
    let mut bench = Bench::new();
    bench.budget(8, 0, BudgetPolicy::Suspend);
    let job = bench.run(None);
    let key = bench.task(job);
    bench.budget(8, 0, BudgetPolicy::AdmissionOnly);
    (0..10).for_each(|_| bench.window(key));
    bench.budget(8, 0, BudgetPolicy::Suspend);
    assert_eq!(bench.job(job).state, JobState::Suspending);
    bench.window(key);
    assert_eq!(bench.state.lease(key.lease).unwrap().uncollected, Credits::ZERO);
    assert_eq!(bench.budget_now().1, 11 * WINDOW_COST);
}

/// What runs from the last posted window until a loss is noticed was promised, however short the windows are beside it.
#[test]
fn a_hold_reaches_until_a_loss_is_noticed() {
    let held = |loss: u64| {
        let settings = Settings { loss_timeout: Nanos::from_secs(loss), ..Settings::default() };
        let mut bench = Bench::with(settings);
        let job = bench.run(None);
        let attempt = bench.state.attempt(bench.task(job).attempt).unwrap();
        bench.state.books().hold(attempt.funds).unwrap().remaining / WINDOW_COST
    };
    assert_eq!((held(15), held(120)), (6, 14));
}

#[test]
fn a_budget_whose_period_is_changed_and_changed_back_is_followed() {
    let mut bench = Bench::new();
    bench.budget(100, 86_400, BudgetPolicy::Suspend);
    let job = bench.run(None);
    let key = bench.task(job);
    for seconds in [3_600, 86_400, 3_600, 86_400] {
        bench.window(key);
        bench.budget(100, seconds, BudgetPolicy::Suspend);
    }
    bench.window(key);
    assert_eq!(bench.job(job).state, JobState::Running);
    assert_eq!(bench.state.lease(key.lease).unwrap().uncollected.units(), 0);
}

/// A job that never stops where it is told to, and is told again each time it is let go.
#[test]
fn a_job_under_one_order_after_the_other_goes_on_paying() {
    let mut bench = Bench::new();
    let job = bench.run(None);
    let key = bench.task(job);
    for _ in 0..5 {
        bench.user(UserCommand::Suspend(job, None)).unwrap();
        while bench.job(job).state == JobState::Suspending {
            bench.window(key);
        }
    }
    let lease = bench.state.lease(key.lease).unwrap();
    assert!(lease.next_window > 20);
    assert_eq!((lease.amount.units(), lease.uncollected.units()), (i64::try_from(lease.next_window).unwrap() * 100, 0));
}

#[test]
fn an_order_under_which_the_money_ends_lets_the_job_go_on_no_more() {
    for moves in [false, true] {
        let mut bench = Bench::new();
        bench.budget(8, 0, BudgetPolicy::Suspend);
        let job = bench.run(None);
        let key = bench.task(job);
        (0..5).for_each(|_| bench.window(key));
        let here = bench.state.lease(key.lease).unwrap().site;
        let other = *bench.sites.iter().find(|site| **site != here).unwrap();
        let order = if moves { UserCommand::Migrate(job, other, None) } else { UserCommand::Suspend(job, None) };
        bench.user(order).unwrap();
        bench.window(key);
        let row = bench.job(job);
        assert_eq!((row.state, row.reason), (JobState::Suspending, Some(Reason::SuspendedForMoney)), "{moves}");
        bench.stop_at_checkpoint(key, 14);
        let row = bench.job(job);
        assert_eq!((row.state, row.reason), (JobState::Suspended, Some(Reason::SuspendedForMoney)), "{moves}");
        assert_eq!(bench.budget_now().1, 6 * WINDOW_COST);
    }
}

/// The limit is of the run; what comes before it is paid beside it.
#[test]
fn preparing_takes_nothing_of_a_run_limit() {
    let mut bench = Bench::new();
    let job = bench.submit(Some(60));
    bench.plan();
    let key = bench.task(job);
    (0..4).for_each(|_| bench.window(key));
    assert_eq!(bench.job(job).run_time, Nanos::ZERO);
    let started = bench.clock();
    // Of its run, before it is told of it.
    bench.window(key);
    bench.node_of(key, NodeReport::Running { key, started, step: 0, metrics: BTreeMap::new(), held: None });
    assert_eq!(bench.job(job).run_time, Nanos::from_secs(10));
    (0..5).for_each(|_| bench.window(key));
    assert_eq!(bench.job(job).run_time, Nanos::from_secs(60));
    let lease = bench.state.lease(key.lease).unwrap();
    assert_eq!((lease.amount.units(), lease.uncollected.units()), (10 * WINDOW_COST, 0));
}

/// What one tenant sets, however large and however often, must not be able to use up what another's grants need.
#[test]
fn budgets_of_different_owners_and_periods_share_no_account() {
    let mut bench = Bench::new();
    bench.budget(8, 100, BudgetPolicy::Suspend);
    let made = bench.user(UserCommand::CreateTenant("other".parse().unwrap())).unwrap();
    let other = made.object.parse().unwrap();
    let budget = UserCommand::SetBudget {
        tenant: other,
        project: None,
        amount: Credits::new(7),
        period_seconds: 100,
        policy: BudgetPolicy::Suspend,
    };
    bench.user(budget).unwrap();
    bench.skip(100);
    bench.skip(100);
    let mut of: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for account in bench.state.books().accounts() {
        let name = account.key.to_string();
        let parts: Vec<&str> = name.split('/').collect();
        if let ["budget" | "spent" | "grants", rest @ ..] = parts.as_slice() {
            of.entry(rest.join("/")).or_default().insert(name.clone());
        }
    }
    assert!(of.len() >= 4, "two owners, two periods each: {of:?}");
    for (period, accounts) in &of {
        assert!(accounts.contains(&format!("budget/{period}")) && accounts.contains(&format!("grants/{period}")));
    }
}
