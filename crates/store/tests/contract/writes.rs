//! Commits: whole or not at all, by the leader only, and read back unchanged.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use sluice_ledger::AccountKey;
use sluice_lifecycle::Rows;
use sluice_lifecycle::model::{JobState, LeaseState, RequestOutcome};
use sluice_store::{EventFilter, Page, StoreError};
use sluice_types::{Credits, Generation, Timestamp};
use sqlx::Connection;

use super::Fixture;

/// One row of each kind that a placed job has, with a checkpoint, a move and windows.
fn job_with_all(fixture: &mut Fixture) -> Rows {
    let mut rows = fixture.sample.submits(1);
    let (attempt, lease) = (rows.attempts[0].clone(), rows.leases[0].clone());
    rows.checkpoints = vec![fixture.sample.checkpoint_row(&attempt, 40)];
    rows.migrations = vec![fixture.sample.migration_row(&attempt)];
    rows.windows = (0..3).map(|n| fixture.sample.window_row(&lease, n)).collect();
    rows
}

pub(crate) async fn every_kind_of_row_comes_back_as_it_was_written(mut fixture: Fixture) {
    let world = fixture.sample.world();
    fixture.commit(&world).await;
    let rows = job_with_all(&mut fixture);
    fixture.commit(&rows).await;
    let loaded = fixture.loaded().await.rows;

    let expected = Rows {
        tenants: world.tenants,
        projects: world.projects,
        keys: world.keys,
        secrets: world.secrets,
        sites: world.sites,
        nodes: world.nodes,
        tokens: world.tokens,
        prices: world.prices,
        budgets: world.budgets,
        quotas: world.quotas,
        uploads: world.uploads,
        discards: world.discards,
        counters: world.counters,
        jobs: rows.jobs.clone(),
        attempts: rows.attempts.clone(),
        leases: rows.leases.clone(),
        checkpoints: rows.checkpoints.clone(),
        migrations: rows.migrations.clone(),
        requests: rows.requests.clone(),
        windows: rows.windows.clone(),
        holds: rows.holds.clone(),
        accounts: fixture.sample.books.accounts().cloned().collect(),
        ..Rows::default()
    };
    let mut loaded = loaded;
    // Texts sort in one way in the database and keys in another in memory.
    loaded.accounts.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(loaded, expected);

    let store = &fixture.store;
    let lease = rows.leases[0].id;
    assert_eq!(store.windows_of_lease(lease, Page::first(10)).await.unwrap(), rows.windows);
    assert_eq!(store.list_events(EventFilter::default(), Page::first(10)).await.unwrap(), rows.events);
    let transfers = store.transfers_all(Page::first(10)).await.unwrap();
    assert_eq!(transfers[1..], rows.transfers);
    assert_eq!(store.transfer_by_cause(&rows.transfers[0].cause).await.unwrap().as_ref(), rows.transfers.first());
    assert_eq!(store.find_request(rows.requests[0].key).await.unwrap(), rows.requests.first().cloned());
}

pub(crate) async fn a_row_of_the_same_key_is_replaced(mut fixture: Fixture) {
    let mut rows = job_with_all(&mut fixture);
    fixture.commit(&rows).await;
    (rows.events, rows.requests, rows.transfers) = Default::default();
    rows.jobs[0].state = JobState::Running;
    rows.jobs[0].version = 2;
    rows.attempts[0].revision = 9;
    rows.leases[0].amount = Credits::new(375);
    rows.checkpoints[0].step = 41;
    rows.migrations[0].target = Some(rows.attempts[0].id);
    rows.windows[1].credited = Credits::new(125);
    rows.holds[0].remaining = 1;
    rows.accounts[0].line = 77;
    // The same key twice in one commit: the later one counts.
    let mut newest = rows.jobs[0].clone();
    newest.version = 3;
    rows.jobs.push(newest);
    fixture.commit(&rows).await;

    rows.jobs.remove(0);
    let store = &fixture.store;
    let job = rows.jobs[0].id;
    assert_eq!(store.get_job(job).await.unwrap(), rows.jobs.pop());
    assert_eq!(store.attempts_of(job, Page::first(9)).await.unwrap(), rows.attempts);
    assert_eq!(store.leases_of(job, Page::first(9)).await.unwrap(), rows.leases);
    assert_eq!(store.checkpoints_of(job, Page::first(9)).await.unwrap(), rows.checkpoints);
    assert_eq!(store.migrations_of(job, Page::first(9)).await.unwrap(), rows.migrations);
    assert_eq!(store.windows_of_lease(rows.leases[0].id, Page::first(9)).await.unwrap(), rows.windows);
    assert_eq!(store.holds(&[rows.holds[0].id]).await.unwrap(), rows.holds);
    let key = rows.accounts[0].key.clone();
    assert_eq!(store.accounts(&[key]).await.unwrap(), rows.accounts[..1]);
}

pub(crate) async fn many_rows_of_one_kind_are_written_whole(mut fixture: Fixture) {
    // 1,000 needs full statements of the largest size and several smaller ones.
    let rows = fixture.sample.submits(1_000);
    fixture.commit(&rows).await;
    let loaded = fixture.loaded().await;
    assert_eq!(loaded.rows.jobs, rows.jobs);
    assert_eq!(loaded.rows.leases, rows.leases);
    assert_eq!(loaded.last_event, 1_000);
    assert_eq!(fixture.store.transfers_all(Page::first(5_000)).await.unwrap().len(), 1_000, "a page is bounded");
}

pub(crate) async fn an_older_generation_writes_nothing(mut fixture: Fixture) {
    let rival = sluice_store::open(&fixture.url).await.unwrap();
    let newer = rival.acquire_leader("rival").await.unwrap();
    assert_eq!(newer, fixture.leader.next());
    let rows = fixture.sample.submits(3);
    for stale in [fixture.leader, Generation::ZERO, newer.next()] {
        let refused = fixture.store.commit(stale, &rows).await;
        assert!(matches!(refused, Err(StoreError::NotLeader(generation)) if generation == stale), "{refused:?}");
    }
    assert!(fixture.loaded().await.rows.jobs.is_empty());
    // Control: the same rows by the leader.
    rival.commit(newer, &rows).await.unwrap();
    assert_eq!(fixture.loaded().await.rows.jobs, rows.jobs);
    rival.close().await;
}

pub(crate) async fn a_cause_posts_once_and_the_refused_commit_leaves_nothing(mut fixture: Fixture) {
    let first = fixture.sample.submits(1);
    fixture.commit(&first).await;
    let before = fixture.loaded().await;
    let mut second = fixture.sample.submits(70);
    second.transfers[69].cause = first.transfers[0].cause.clone();
    let refused = fixture.store.commit(fixture.leader, &second).await;
    assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");
    assert_eq!(fixture.loaded().await, before);
    assert_eq!(fixture.store.transfers_all(Page::first(100)).await.unwrap().len(), 2);
    // Control: another cause.
    second.transfers[69].cause.push('x');
    fixture.commit(&second).await;
    assert_eq!(fixture.store.transfers_all(Page::first(100)).await.unwrap().len(), 72);
}

pub(crate) async fn an_event_is_stored_once_and_a_request_takes_its_newest_answer(mut fixture: Fixture) {
    let first = fixture.sample.submits(1);
    fixture.commit(&first).await;
    let mut event = first.events[0].clone();
    event.kind = "Another".to_owned();
    let refused = fixture.store.commit(fixture.leader, &Rows { events: vec![event], ..Rows::default() }).await;
    assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");
    // A key that was forgotten after its time and is used again: the writer decides that, not the table.
    let mut request = first.requests[0].clone();
    request.outcome = RequestOutcome::Done;
    fixture.commit(&Rows { requests: vec![request.clone()], ..Rows::default() }).await;
    assert_eq!(fixture.store.find_request(first.requests[0].key).await.unwrap(), Some(request));
    assert_eq!(fixture.store.list_events(EventFilter::default(), Page::first(9)).await.unwrap(), first.events);
}

pub(crate) async fn names_are_unique_where_the_model_says_so(mut fixture: Fixture) {
    let world = fixture.sample.world();
    fixture.commit(&world).await;
    let secret = fixture.sample.secret_row("wandb");
    let node = fixture.sample.node_row("n1");
    for rows in
        [Rows { secrets: vec![secret.clone()], ..Rows::default() }, Rows { nodes: vec![node], ..Rows::default() }]
    {
        let refused = fixture.store.commit(fixture.leader, &rows).await;
        assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");
    }
    // A deleted secret's name is free again.
    let mut deleted = world.secrets[0].clone();
    deleted.deleted = true;
    fixture.commit(&Rows { secrets: vec![deleted, secret.clone()], ..Rows::default() }).await;
    let found = fixture.store.secret_by_name(fixture.sample.project, &secret.name).await.unwrap();
    assert_eq!(found, Some(secret));
}

pub(crate) async fn old_requests_are_forgotten(mut fixture: Fixture) {
    let rows = fixture.sample.submits(10);
    fixture.commit(&rows).await;
    let before = rows.requests[6].at;
    assert_eq!(fixture.store.forget_requests(fixture.leader, before, 4).await.unwrap(), 4);
    assert_eq!(fixture.store.forget_requests(fixture.leader, before, 4).await.unwrap(), 2);
    assert_eq!(fixture.store.forget_requests(fixture.leader, before, 4).await.unwrap(), 0);
    assert_eq!(fixture.store.find_request(rows.requests[5].key).await.unwrap(), None);
    assert!(fixture.store.find_request(rows.requests[6].key).await.unwrap().is_some());
    let stale = fixture.store.forget_requests(Generation::ZERO, Timestamp::from_nanos(u64::MAX), 9).await;
    assert!(matches!(stale, Err(StoreError::NotLeader(_))));
}

pub(crate) async fn a_newer_schema_is_refused(fixture: Fixture) {
    fixture.store.close().await;
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 SELECT 999, 'from the future', success, checksum, 0 FROM _sqlx_migrations WHERE version = 1";
    if fixture.url.starts_with("sqlite") {
        let mut conn = sqlx::SqliteConnection::connect(&fixture.url).await.unwrap();
        sqlx::query(newer).execute(&mut conn).await.unwrap();
        conn.close().await.unwrap();
    } else {
        let mut conn = sqlx::PgConnection::connect(&fixture.url).await.unwrap();
        sqlx::query(newer).execute(&mut conn).await.unwrap();
        conn.close().await.unwrap();
    }
    let refused = sluice_store::open(&fixture.url).await.map(drop);
    assert!(matches!(refused, Err(StoreError::Schema(_))), "{refused:?}");
}

pub(crate) async fn any_text_survives(mut fixture: Fixture) {
    let mut runner = TestRunner::deterministic();
    let texts = prop::collection::vec(any::<String>(), 40).new_tree(&mut runner).unwrap().current();
    let mut rows = fixture.sample.submits(texts.len() + 1);
    for (job, text) in rows.jobs.iter_mut().zip(texts) {
        job.message = text.clone();
        let spec = std::sync::Arc::make_mut(&mut job.spec);
        spec.env.insert(text.clone(), text.clone());
        spec.labels.insert(text.clone(), text);
    }
    rows.jobs.last_mut().unwrap().message = "\0 \u{1f} ' \" \\ $1 ?1 ; -- \u{fffd} \u{10ffff}".to_owned();
    rows.leases[0].state = LeaseState::Ending;
    rows.accounts.retain(|account| account.key != AccountKey::Outside);
    fixture.commit(&rows).await;
    assert_eq!(fixture.loaded().await.rows.jobs, rows.jobs);
}
