//! What every database must keep, run on both: each case gets an empty database.
//!
//! SQLite always; PostgreSQL on a private cluster where a server is installed, else the reason for skipping is
//! printed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod lists;
mod loads;
mod serving;
mod writes;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use sluice_lifecycle::Rows;
use sluice_store::testing::{Cluster, NoCluster, Sample};
use sluice_store::{LoadBounds, Store};
use sluice_types::Generation;

type Case = fn(Fixture) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// An open, empty database with a leader and a sample that has been deposited to.
struct Fixture {
    url: String,
    store: Arc<dyn Store>,
    leader: Generation,
    sample: Sample,
}

impl Fixture {
    async fn at(url: String) -> Self {
        let store = sluice_store::open(&url).await.unwrap();
        let leader = store.acquire_leader("test").await.unwrap();
        let mut this = Self { url, store, leader, sample: Sample::beyond(0, 0) };
        let deposit = this.sample.deposit(1_000_000_000);
        this.commit(&deposit).await;
        this
    }

    async fn commit(&self, rows: &Rows) {
        self.store.commit(self.leader, rows).await.unwrap();
    }

    async fn loaded(&self) -> sluice_lifecycle::Snapshot {
        self.store.load(LoadBounds::at(self.sample.now())).await.unwrap()
    }
}

macro_rules! cases {
    ($($module:ident :: $case:ident,)+) => {
        mod sqlite {
            use super::Fixture;
            $(#[tokio::test]
            async fn $case() {
                let folder = tempfile::tempdir().unwrap();
                let url = format!("sqlite:{}", folder.path().join("state.db").display());
                super::$module::$case(Fixture::at(url).await).await;
            })+
        }

        const CASES: &[(&str, Case)] = &[$((stringify!($case), |fixture| Box::pin($module::$case(fixture))),)+];
    };
}

cases! {
    writes::every_kind_of_row_comes_back_as_it_was_written,
    writes::a_row_of_the_same_key_is_replaced,
    writes::many_rows_of_one_kind_are_written_whole,
    writes::an_older_generation_writes_nothing,
    writes::a_cause_posts_once_and_the_refused_commit_leaves_nothing,
    writes::an_event_is_stored_once_and_a_request_takes_its_newest_answer,
    writes::names_are_unique_where_the_model_says_so,
    writes::old_requests_are_forgotten,
    writes::a_newer_schema_is_refused,
    writes::any_text_survives,
    loads::what_can_still_change_is_loaded_and_nothing_else,
    loads::deleted_uploads_and_done_discards_are_not_loaded,
    loads::the_bounds_of_a_load_hold,
    loads::high_water_marks_are_over_all_tables,
    lists::jobs_are_filtered,
    lists::pages_neither_repeat_nor_lose_under_inserts,
    lists::histories_of_a_job_are_listed,
    lists::windows_are_listed_in_the_order_of_posting,
    lists::transfers_of_accounts_are_merged,
    lists::people_and_fleet_are_found,
    lists::readers_do_not_wait_for_the_writer,
    serving::models_and_endpoints_are_found_until_they_are_deleted,
    serving::requests_are_listed_by_endpoint_and_by_caller_and_forgotten,
}

#[tokio::test]
async fn postgresql_keeps_the_same_contract() {
    let cluster = match Cluster::start() {
        Ok(cluster) => cluster,
        Err(reason @ NoCluster::NoServer) => return println!("SKIPPED: {reason}"),
        Err(error) => panic!("{error}"),
    };
    for (name, case) in CASES {
        println!("postgresql: {name}");
        let name: String = name.chars().take(60).collect();
        let url = cluster.database(&name).await.unwrap();
        case(Fixture::at(url).await).await;
    }
}

#[test]
fn both_schemas_are_one_text() {
    // Cargo runs tests in their package's folder; what it noted while building may be another clone's.
    let folder = std::path::Path::new("migrations");
    let names = |kind: &str| {
        let mut names: Vec<_> = folder.join(kind).read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names("sqlite"), names("postgres"));
    for name in names("sqlite") {
        let text = |kind: &str| std::fs::read_to_string(folder.join(kind).join(&name)).unwrap();
        // Comments may name the database.
        let code = |text: String| -> String { text.lines().filter(|line| !line.starts_with("--")).collect() };
        let translated = text("sqlite").replace("INTEGER", "BIGINT").replace("COLLATE BINARY", "COLLATE \"C\"");
        assert_eq!(code(translated), code(text("postgres")), "{name:?}");
    }
}

#[tokio::test]
async fn an_address_of_another_kind_is_refused() {
    for address in ["", "state.db", "mysql://host/db", "sqlite:", "http://x"] {
        let refused = sluice_store::open(address).await.map(drop).unwrap_err();
        assert!(matches!(refused, sluice_store::StoreError::Address(_)), "{address}: {refused}");
    }
}
