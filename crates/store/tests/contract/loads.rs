//! What a writer starts from.

use sluice_ledger::AccountKey;
use sluice_lifecycle::Rows;
use sluice_lifecycle::model::{JobState, LeaseState, MigrationPhase};
use sluice_store::LoadBounds;
use sluice_types::{Nanos, Timestamp};

use super::Fixture;

/// Jobs by what keeps them alive. The history of each live one is loaded with it.
pub(crate) async fn what_can_still_change_is_loaded_and_nothing_else(mut fixture: Fixture) {
    let mut rows = fixture.sample.submits(5);
    let [pending, ended, unsettled, open_attempt, running] = [0, 1, 2, 3, 4];
    for n in [ended, unsettled, open_attempt] {
        rows.jobs[n].state = JobState::Succeeded;
    }
    for n in [pending, ended, open_attempt] {
        rows.leases[n].state = LeaseState::Settled;
    }
    for n in [pending, ended, unsettled, running] {
        rows.attempts[n].settled = true;
    }
    rows.leases[unsettled].state = LeaseState::Freed;
    rows.holds[ended].closed = true;
    let attempts = rows.attempts.clone();
    for attempt in &attempts {
        for (step, retired) in [(10, true), (20, false)] {
            let mut checkpoint = fixture.sample.checkpoint_row(attempt, step);
            checkpoint.retired = retired;
            rows.checkpoints.push(checkpoint);
        }
        for phase in [MigrationPhase::Failed, MigrationPhase::Done] {
            let mut migration = fixture.sample.migration_row(attempt);
            migration.phase = phase;
            rows.migrations.push(migration);
        }
    }
    rows.leases[running].keep_from = 2;
    for n in [ended, running, pending] {
        let lease = rows.leases[n].clone();
        rows.windows.extend((0..4).map(|sequence| fixture.sample.window_row(&lease, sequence)));
    }
    // A move of an ended job that is still open is kept by itself.
    rows.migrations[2].phase = MigrationPhase::Shipping;
    let (first, second) = (fixture.sample.prices_row(), fixture.sample.prices_row());
    rows.prices = vec![first, second.clone()];
    let mut secret = fixture.sample.secret_row("gone");
    secret.deleted = true;
    rows.secrets = vec![secret];
    fixture.commit(&rows).await;

    let loaded = fixture.loaded().await.rows;
    let pick = |places: &[usize]| places.to_vec();
    let live = pick(&[pending, unsettled, running]);
    assert_eq!(loaded.jobs, live.iter().map(|n| rows.jobs[*n].clone()).collect::<Vec<_>>());
    let expected = pick(&[pending, unsettled, open_attempt, running]);
    assert_eq!(loaded.attempts, expected.iter().map(|n| rows.attempts[*n].clone()).collect::<Vec<_>>());
    assert_eq!(loaded.leases, live.iter().map(|n| rows.leases[*n].clone()).collect::<Vec<_>>());
    let newer = |n: &usize| rows.checkpoints[2 * n + 1].clone();
    assert_eq!(loaded.checkpoints, live.iter().map(newer).collect::<Vec<_>>());
    let moves = [1, 2, 5, 9].map(|n| rows.migrations[n].clone());
    assert_eq!(loaded.migrations, moves);
    assert_eq!(loaded.prices, [second]);
    assert_eq!(loaded.secrets, []);
    assert_eq!(loaded.holds.len(), 4);
    // Of settled leases too, as long as their job lives: a loss may credit them. From the first one that is kept on.
    assert_eq!(loaded.windows, [&rows.windows[8..], &rows.windows[6..8]].concat());
    assert!(loaded.transfers.is_empty() && loaded.events.is_empty());
}

pub(crate) async fn deleted_uploads_and_done_discards_are_not_loaded(mut fixture: Fixture) {
    let mut rows = fixture.sample.world();
    fixture.commit(&rows).await;
    assert_eq!(fixture.loaded().await.rows.uploads, rows.uploads);
    rows.uploads[0].deleted = true;
    rows.discards[0].done = true;
    let gone = Rows { uploads: rows.uploads, discards: rows.discards, ..Rows::default() };
    fixture.commit(&gone).await;
    let loaded = fixture.loaded().await.rows;
    assert!(loaded.uploads.is_empty() && loaded.discards.is_empty());
}

pub(crate) async fn the_bounds_of_a_load_hold(mut fixture: Fixture) {
    let mut rows = Rows { tokens: vec![fixture.sample.token_row()], ..Rows::default() };
    rows.requests = (0..10).map(|_| fixture.sample.request_row()).collect();
    fixture.commit(&rows).await;
    let bounds = LoadBounds { max_requests: 3, ..LoadBounds::at(fixture.sample.now()) };
    let loaded = fixture.store.load(bounds).await.unwrap().rows;
    let newest: Vec<_> = rows.requests.iter().rev().take(3).cloned().collect();
    assert_eq!(loaded.requests, newest);
    assert_eq!(loaded.tokens, rows.tokens);

    let bounds = LoadBounds { request_age: Nanos::from_secs(60), ..LoadBounds::at(rows.requests[4].at) };
    let later = |span: u64| LoadBounds { now: bounds.now.after(Nanos::from_secs(span)), ..bounds };
    assert_eq!(fixture.store.load(later(60)).await.unwrap().rows.requests.len(), 6, "as old as the bound counts");
    assert_eq!(fixture.store.load(later(61)).await.unwrap().rows.requests.len(), 0);
    let long_after = LoadBounds { now: rows.tokens[0].expires.after(Nanos::from_secs(90_000)), ..bounds };
    assert_eq!(fixture.store.load(long_after).await.unwrap().rows.tokens, []);
    let never = LoadBounds::at(Timestamp::from_nanos(0));
    assert_eq!(fixture.store.load(never).await.unwrap().rows.requests.len(), 10);
}

pub(crate) async fn high_water_marks_are_over_all_tables(mut fixture: Fixture) {
    let before = fixture.loaded().await;
    assert_eq!((before.last_id, before.last_event), (fixture.sample.mint() - 1, 0));
    let job = fixture.sample.job_row("late");
    fixture.commit(&Rows { jobs: vec![job.clone()], ..Rows::default() }).await;
    assert_eq!(fixture.loaded().await.last_id, job.id.raw());
    let prices = fixture.sample.prices_row();
    fixture.commit(&Rows { prices: vec![prices.clone()], ..Rows::default() }).await;
    assert_eq!(fixture.loaded().await.last_id, prices.version.raw());
    let deposit = fixture.sample.deposit(5);
    fixture.commit(&deposit).await;
    assert_eq!(fixture.loaded().await.last_id, deposit.transfers[0].id.raw());
    let funds = fixture.store.accounts(&[AccountKey::Funds(fixture.sample.tenant)]).await.unwrap();
    assert_eq!(funds[0].balance(), 1_000_000_005);
}
