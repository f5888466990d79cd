//! A writer killed at any instruction: every commit is there whole or not at all, what was answered is there, and the
//! accounts are the sum of the transfers.
//!
//! The writer is this test binary again, started with an environment variable that names the database. It commits
//! without pause and prints a line per answered commit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_ledger::{Account, AccountKey, Books};
use sluice_store::testing::{Cluster, NoCluster, Sample};
use sluice_store::{EventFilter, LoadBounds, Page, Store};

const DATABASE: &str = "SLUICE_TEST_KILLED_DATABASE";
const ROUNDS: u32 = 6;
/// Submits in one commit. More than one statement of each kind.
const GROUP: usize = 90;

/// Not a test: the process that is killed. Without the variable it does nothing.
#[tokio::test]
async fn writer() {
    let Ok(url) = std::env::var(DATABASE) else { return };
    let store = sluice_store::open(&url).await.unwrap();
    let leader = store.acquire_leader("killed").await.unwrap();
    let loaded = store.load(LoadBounds::at(Sample::beyond(0, 0).now())).await.unwrap();
    let mut sample = Sample::beyond(loaded.last_id, loaded.last_event);
    sample.books = Books::from_rows(loaded.rows.accounts, loaded.rows.holds);
    loop {
        let deposit = sample.deposit(1_000_000);
        let mut rows = sample.submits(GROUP);
        rows.transfers.extend(deposit.transfers);
        rows.transfers.sort_by_key(|transfer| transfer.id);
        // The submits changed the tenant's account after the deposit did, and the later row counts.
        rows.accounts.splice(0..0, deposit.accounts);
        store.commit(leader, &rows).await.unwrap();
        // Told to the parent only now: this commit must be found.
        println!("answered {}", rows.events.last().unwrap().sequence);
    }
}

#[tokio::test]
async fn sqlite_keeps_commits_whole_when_the_writer_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    kill_and_check(&format!("sqlite:{}", folder.path().join("state.db").display())).await;
}

#[tokio::test]
async fn postgresql_keeps_commits_whole_when_the_writer_is_killed() {
    match Cluster::start() {
        Ok(cluster) => kill_and_check(&cluster.database("killed").await.unwrap()).await,
        Err(reason @ NoCluster::NoServer) => println!("SKIPPED: {reason}"),
        Err(error) => panic!("{error}"),
    }
}

async fn kill_and_check(url: &str) {
    let mut answered = 0;
    for round in 0..ROUNDS {
        answered = run_and_kill(url, round).max(answered);
        let store = sluice_store::open(url).await.unwrap();
        let found = check(&store).await;
        // At most one commit may be there that was not answered.
        let group = u64::try_from(GROUP).unwrap();
        assert!(found == answered || found == answered + group, "answered {answered}, found {found}");
        answered = found;
        store.close().await;
    }
    assert!(answered > 0);
}

/// Lets the writer answer a few commits and kills it at another place of the next one in each round. Returns the last
/// answered event.
fn run_and_kill(url: &str, round: u32) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer", "--nocapture"])
        .env(DATABASE, url)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let number = |line: String| line.rsplit_once("answered ").and_then(|(_, number)| number.parse::<u64>().ok());
    let first = lines.by_ref().filter_map(number).nth(3).unwrap();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_micros(u64::from(round) * 1_700) {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // Answers that were on their way.
    lines.filter_map(number).last().unwrap_or(first)
}

/// Every group of rows is whole, and the accounts follow from the transfers. Returns the last event.
async fn check(store: &Arc<dyn Store>) -> u64 {
    let loaded = store.load(LoadBounds::at(Sample::beyond(0, 0).now())).await.unwrap();
    let jobs = loaded.rows.jobs.len();
    assert_eq!(jobs % GROUP, 0, "a part of a commit");
    assert_eq!(u64::try_from(jobs).unwrap(), loaded.last_event);
    let counts = [loaded.rows.attempts.len(), loaded.rows.leases.len(), loaded.rows.holds.len()];
    assert_eq!(counts, [jobs; 3]);
    assert_eq!(loaded.rows.requests.len(), jobs);
    let last = Page::after(loaded.last_event.saturating_sub(1), 5);
    assert_eq!(store.list_events(EventFilter::default(), last).await.unwrap().len(), 1);

    let (mut books, mut after, mut transfers) = (Books::default(), None, 0);
    loop {
        let page = store.transfers_all(Page { after, limit: 1000 }).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        transfers += page.len();
        page.iter().for_each(|transfer| books.replay(transfer).unwrap());
    }
    books.audit().unwrap();
    assert_eq!(transfers, jobs + jobs / GROUP);
    let mut stored = loaded.rows.accounts;
    stored.sort_by(|a, b| a.key.cmp(&b.key));
    let replayed: Vec<Account> = books.accounts().cloned().collect();
    assert_eq!(stored, replayed, "accounts are the sum of the transfers");
    // Control: one transfer less is noticed.
    assert!(
        books
            .transfer(
                sluice_types::TransferId::from_raw(1),
                (AccountKey::Outside, AccountKey::Platform),
                1,
                String::new(),
                Sample::beyond(0, 0).now()
            )
            .is_ok()
    );
    assert_ne!(stored, books.accounts().cloned().collect::<Vec<_>>());
    loaded.last_event
}
