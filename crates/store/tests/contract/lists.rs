//! Queries: filters, pages, order.

use std::sync::Arc;

use sluice_ledger::AccountKey;
use sluice_lifecycle::Rows;
use sluice_lifecycle::model::{JobState, LeaseState, Quota};
use sluice_store::{EventFilter, JobFilter, Page, WindowPlace, WindowScope};
use sluice_types::{AttemptId, JobId, KeyId, ProjectId, TenantId, Timestamp};

use super::Fixture;

const ALWAYS: std::ops::Range<Timestamp> = Timestamp::from_nanos(0)..Timestamp::from_nanos(u64::MAX);

pub(crate) async fn jobs_are_filtered(mut fixture: Fixture) {
    let mut jobs: Vec<_> = (0..8).map(|n| fixture.sample.job_row(if n % 2 == 0 { "even" } else { "odd" })).collect();
    jobs[1].state = JobState::Running;
    jobs[2].state = JobState::Failed;
    jobs[3].tenant = TenantId::from_raw(900);
    jobs[4].project = ProjectId::from_raw(901);
    Arc::make_mut(&mut jobs[5].spec).labels.insert("team".to_owned(), "100%".to_owned());
    Arc::make_mut(&mut jobs[6].spec).labels.insert("x.\"y'".to_owned(), String::new());
    fixture.commit(&Rows { jobs: jobs.clone(), ..Rows::default() }).await;

    let ours = JobFilter { tenant: Some(fixture.sample.tenant), ..JobFilter::default() };
    let label = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
    let table: [(JobFilter, &[usize]); 12] = [
        (JobFilter::default(), &[7, 6, 5, 4, 3, 2, 1, 0]),
        (ours.clone(), &[7, 6, 5, 4, 2, 1, 0]),
        (JobFilter { project: Some(ProjectId::from_raw(901)), ..ours.clone() }, &[4]),
        (
            JobFilter {
                tenant: Some(TenantId::from_raw(900)),
                project: Some(ProjectId::from_raw(901)),
                ..JobFilter::default()
            },
            &[],
        ),
        (JobFilter { states: vec![JobState::Running], ..ours.clone() }, &[1]),
        (JobFilter { states: vec![JobState::Running, JobState::Failed, JobState::Cancelled], ..ours.clone() }, &[2, 1]),
        (JobFilter { states: JobState::ALL.to_vec(), ..ours.clone() }, &[7, 6, 5, 4, 2, 1, 0]),
        (JobFilter { name: "odd".parse().ok(), ..ours.clone() }, &[7, 5, 1]),
        (JobFilter { labels: label("team", "100%"), ..ours.clone() }, &[5]),
        (JobFilter { labels: label("team", "100_"), ..ours.clone() }, &[]),
        (JobFilter { labels: label("x.\"y'", ""), ..ours.clone() }, &[6]),
        (JobFilter { labels: [label("x.\"y'", ""), label("team", "a/\"b\"")].concat(), ..ours.clone() }, &[6]),
    ];
    for (filter, expected) in table {
        let found = fixture.store.list_jobs(&filter, Page::first(100)).await.unwrap();
        let expected: Vec<_> = expected.iter().map(|n| jobs[*n].clone()).collect();
        assert_eq!(found, expected, "{filter:?}");
    }
    let ids = [jobs[5].id, JobId::from_raw(1), jobs[0].id];
    assert_eq!(fixture.store.jobs_by_ids(&ids).await.unwrap(), [jobs[5].clone(), jobs[0].clone()]);
    assert_eq!(fixture.store.jobs_by_ids(&[]).await.unwrap(), []);
    assert_eq!(fixture.store.get_job(JobId::from_raw(1)).await.unwrap(), None);
}

pub(crate) async fn pages_neither_repeat_nor_lose_under_inserts(mut fixture: Fixture) {
    let rows = fixture.sample.submits(50);
    fixture.commit(&rows).await;
    let (mut jobs, mut events) = (Vec::new(), Vec::new());
    let (mut job, mut event) = (None, None);
    for _ in 0..20 {
        let page = fixture.store.list_jobs(&JobFilter::default(), Page { after: job, limit: 7 }).await.unwrap();
        job = page.last().map(|row| row.id).or(job);
        jobs.extend(page);
        let page = fixture.store.list_events(EventFilter::default(), Page { after: event, limit: 7 }).await.unwrap();
        event = page.last().map(|row| row.sequence).or(event);
        events.extend(page);
        let more = fixture.sample.submits(2);
        fixture.commit(&more).await;
    }
    // Newest first: what was added later is not seen. In order: it is.
    let expected: Vec<_> = rows.jobs.iter().rev().cloned().collect();
    assert_eq!(jobs, expected);
    assert!(events.iter().map(|row| row.sequence).eq(1..=u64::try_from(events.len()).unwrap()));
    assert!(events.len() > 80);
    assert_eq!(fixture.store.list_jobs(&JobFilter::default(), Page::first(0)).await.unwrap(), []);
}

pub(crate) async fn histories_of_a_job_are_listed(mut fixture: Fixture) {
    let mut rows = fixture.sample.submits(2);
    let (job, other) = (rows.jobs[0].clone(), rows.jobs[1].id);
    let attempt = rows.attempts[0].clone();
    rows.checkpoints = (1..=4).map(|step| fixture.sample.checkpoint_row(&attempt, step)).collect();
    rows.migrations = (0..3).map(|_| fixture.sample.migration_row(&attempt)).collect();
    rows.events.push(fixture.sample.event_row(job.id, "Moved"));
    fixture.commit(&rows).await;
    let store = &fixture.store;

    let newest = store.checkpoints_of(job.id, Page::first(2)).await.unwrap();
    assert_eq!(newest.iter().map(|row| row.step).collect::<Vec<_>>(), [4, 3]);
    let older = store.checkpoints_of(job.id, Page::after(newest[1].id, 9)).await.unwrap();
    assert_eq!(older.iter().map(|row| row.step).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(store.get_checkpoint(older[0].id).await.unwrap().as_ref(), older.first());
    let moves = store.migrations_of(job.id, Page::first(9)).await.unwrap();
    assert_eq!(moves, rows.migrations.iter().rev().cloned().collect::<Vec<_>>());
    assert_eq!(store.get_migration(moves[0].id).await.unwrap().as_ref(), moves.first());
    assert_eq!(store.attempts_of(other, Page::first(9)).await.unwrap(), rows.attempts[1..]);
    let mut found =
        store.attempts_by_ids(&[rows.attempts[1].id, rows.attempts[0].id, AttemptId::from_raw(1)]).await.unwrap();
    found.sort_by_key(|row| row.id);
    assert_eq!(found, rows.attempts[..2]);
    assert_eq!(store.latest_attempt(other).await.unwrap(), rows.attempts.last().cloned());
    let open: Vec<_> = rows.attempts[1..].iter().rev().filter(|row| !row.settled).cloned().collect();
    assert_eq!(store.open_attempts_of(other).await.unwrap(), open);
    let open: Vec<_> = rows.leases[1..].iter().rev().filter(|row| row.state != LeaseState::Settled).cloned().collect();
    assert_eq!(store.open_leases_of(other).await.unwrap(), open);
    assert_eq!(store.leases_of(other, Page::first(9)).await.unwrap(), rows.leases[1..]);
    assert_eq!(store.get_lease(rows.leases[1].id).await.unwrap().as_ref(), rows.leases.last());

    let of = |filter| store.list_events(filter, Page::first(9));
    let ours = of(EventFilter::of_job(job.id)).await.unwrap();
    assert_eq!(ours.iter().map(|row| row.sequence).collect::<Vec<_>>(), [1, 3]);
    let tenant = EventFilter { tenant: Some(job.tenant), project: Some(job.project), job: None };
    assert_eq!(of(tenant).await.unwrap().len(), 3);
    let foreign = EventFilter { tenant: Some(TenantId::from_raw(999)), ..EventFilter::of_job(job.id) };
    assert_eq!(of(foreign).await.unwrap(), []);
    let late = store.list_events(EventFilter::default(), Page::after(u64::MAX, 9)).await.unwrap();
    assert_eq!(late, []);
}

pub(crate) async fn windows_are_listed_in_the_order_of_posting(mut fixture: Fixture) {
    let mut rows = fixture.sample.submits(2);
    let leases = rows.leases.clone();
    for sequence in 0..6 {
        for lease in &leases {
            rows.windows.push(fixture.sample.window_row(lease, sequence));
        }
    }
    // One commit stamps all its windows with one instant.
    let at = rows.windows[4].at;
    rows.windows[4..8].iter_mut().for_each(|window| window.at = at);
    rows.windows.sort_by_key(|window| WindowPlace::from(window));
    fixture.commit(&rows).await;
    let store = &fixture.store;

    for scope in [WindowScope::Tenant(fixture.sample.tenant), WindowScope::Project(fixture.sample.project)] {
        let (mut seen, mut place) = (Vec::new(), None);
        loop {
            let page = store.windows_of(scope, ALWAYS, Page { after: place, limit: 5 }).await.unwrap();
            let Some(last) = page.last() else { break };
            place = Some(WindowPlace::from(last));
            seen.extend(page);
        }
        assert_eq!(seen, rows.windows);
    }
    let one: Vec<_> = rows.windows.iter().filter(|window| window.lease == leases[0].id).cloned().collect();
    let of_job = store.windows_of(WindowScope::Job(leases[0].job), ALWAYS, Page::first(99)).await.unwrap();
    assert_eq!(of_job, one);
    let span = one[1].at..one[4].at;
    let within = store.windows_of(WindowScope::Job(leases[0].job), span.clone(), Page::first(99)).await.unwrap();
    assert_eq!(within, one.iter().filter(|window| span.contains(&window.at)).cloned().collect::<Vec<_>>());
    assert_eq!(store.windows_of_lease(leases[0].id, Page::after(2, 2)).await.unwrap(), one[3..5]);
}

pub(crate) async fn transfers_of_accounts_are_merged(mut fixture: Fixture) {
    let rows = fixture.sample.submits(20);
    fixture.commit(&rows).await;
    let store = &fixture.store;
    let keys =
        [AccountKey::Funds(fixture.sample.tenant), AccountKey::Revenue(fixture.sample.site), AccountKey::Platform];
    let all = store.transfers_all(Page::first(100)).await.unwrap();
    let newest_first: Vec<_> = all.iter().rev().cloned().collect();
    // Each hold touches two of the three accounts and is listed once.
    assert_eq!(store.transfers_of(&keys, Page::first(100)).await.unwrap(), newest_first);
    let page = store.transfers_of(&keys, Page::after(newest_first[4].id, 3)).await.unwrap();
    assert_eq!(page, newest_first[5..8]);
    let deposits = store.transfers_of(&[AccountKey::Outside], Page::first(9)).await.unwrap();
    assert_eq!(deposits, all[..1]);
    assert_eq!(store.transfers_of(&[], Page::first(9)).await.unwrap(), []);

    let tenant = fixture.sample.tenant;
    let funds = AccountKey::Funds(tenant);
    let of_tenant = store.accounts_of(tenant, Page::first(9)).await.unwrap();
    assert!(of_tenant.iter().map(|row| &row.key).eq([&funds]));
    assert_eq!(store.accounts_of(tenant, Page::after(funds, 9)).await.unwrap(), []);
    let mut seen = Vec::new();
    while let page = store.accounts_all(Page { after: seen.last().cloned(), limit: 2 }).await.unwrap()
        && !page.is_empty()
    {
        seen.extend(page.into_iter().map(|row| row.key));
    }
    seen.sort();
    assert!(seen.iter().eq(fixture.sample.books.accounts().map(|account| &account.key)));
}

pub(crate) async fn people_and_fleet_are_found(mut fixture: Fixture) {
    let world = fixture.sample.world();
    fixture.commit(&world).await;
    let (store, tenant, project) = (&fixture.store, fixture.sample.tenant, fixture.sample.project);
    let name = |text: &str| text.parse().unwrap();

    assert_eq!(store.list_tenants(Page::first(9)).await.unwrap(), world.tenants);
    assert_eq!(store.get_tenant(tenant).await.unwrap().as_ref(), world.tenants.first());
    assert_eq!(store.tenant_by_name(&name("acme")).await.unwrap().as_ref(), world.tenants.first());
    assert_eq!(store.tenant_by_name(&name("nobody")).await.unwrap(), None);
    assert_eq!(store.list_projects(Some(tenant), Page::first(9)).await.unwrap(), world.projects);
    assert_eq!(store.list_projects(Some(TenantId::from_raw(99)), Page::first(9)).await.unwrap(), []);
    assert_eq!(store.list_projects(None, Page::first(9)).await.unwrap(), world.projects);
    assert_eq!(store.get_project(project).await.unwrap().as_ref(), world.projects.first());
    assert_eq!(store.project_by_name(tenant, &name("vision")).await.unwrap().as_ref(), world.projects.first());
    assert_eq!(store.project_by_name(TenantId::from_raw(99), &name("vision")).await.unwrap(), None);
    assert_eq!(store.list_keys(Some(tenant), Page::first(9)).await.unwrap(), world.keys);
    assert_eq!(store.list_keys(None, Page::after(world.keys[0].id, 9)).await.unwrap(), []);
    assert_eq!(store.get_key(world.keys[0].id).await.unwrap().as_ref(), world.keys.first());
    assert_eq!(store.get_key(KeyId::from_raw(1)).await.unwrap(), None);
    assert_eq!(store.list_secrets(project, Page::first(9)).await.unwrap(), world.secrets);
    assert_eq!(store.secret_by_name(project, &name("wandb")).await.unwrap().as_ref(), world.secrets.first());
    assert_eq!(store.list_sites(Page::first(9)).await.unwrap(), world.sites);
    assert_eq!(store.get_site(world.sites[0].id).await.unwrap().as_ref(), world.sites.first());
    assert_eq!(store.list_nodes(Some(world.sites[0].id), Page::first(9)).await.unwrap(), world.nodes);
    assert_eq!(store.list_nodes(None, Page::first(0)).await.unwrap(), []);
    assert_eq!(store.get_node(world.nodes[0].id).await.unwrap().as_ref(), world.nodes.first());
    assert_eq!(store.latest_prices().await.unwrap().as_ref(), world.prices.first());
    assert_eq!(store.prices(world.prices[0].version).await.unwrap().as_ref(), world.prices.first());
    assert_eq!(store.budgets_of(tenant, Page::first(9)).await.unwrap(), world.budgets);
    assert_eq!(store.budgets_of(tenant, Page::after(world.budgets[0].scope.clone(), 9)).await.unwrap(), []);
    let quotas = &world.quotas;
    assert_eq!(store.quotas_of(tenant).await.unwrap(), *quotas);
    assert_eq!(store.get_quota(&quotas[1].key).await.unwrap().as_ref(), quotas.last());
    let (site, class) = (world.sites[0].id, &quotas[1].key.class);
    assert_eq!(store.quotas_at(site, class, Page::first(9)).await.unwrap(), quotas[1..]);
    assert_eq!(store.quotas_at(site, class, Page::after(tenant, 9)).await.unwrap(), []);
    let gone = Quota { deleted: true, ..quotas[1].clone() };
    let rows = Rows { quotas: vec![gone], ..Rows::default() };
    store.commit(fixture.leader, &rows).await.unwrap();
    assert_eq!(store.quotas_of(tenant).await.unwrap(), quotas[..1]);
    assert_eq!(store.get_quota(&quotas[1].key).await.unwrap(), None);
    assert_eq!(Some(store.counters().await.unwrap()), world.counters);
    store.ping().await.unwrap();
}

/// Reads are answered while a commit is under way, from before it or after it, never from the middle.
pub(crate) async fn readers_do_not_wait_for_the_writer(mut fixture: Fixture) {
    let groups: Vec<_> = (0..10).map(|_| fixture.sample.submits(300)).collect();
    let writer = {
        let (store, leader) = (fixture.store.clone(), fixture.leader);
        tokio::spawn(async move {
            for rows in &groups {
                store.commit(leader, rows).await.unwrap();
            }
        })
    };
    let mut counts = Vec::new();
    while !writer.is_finished() {
        let page = fixture.store.list_jobs(&JobFilter::default(), Page::first(1)).await.unwrap();
        let place = page.first().map_or(0, |job| job.id.raw());
        counts.push(place);
    }
    writer.await.unwrap();
    assert!(counts.is_sorted());
    assert_eq!(fixture.loaded().await.rows.jobs.len(), 3_000);
}
