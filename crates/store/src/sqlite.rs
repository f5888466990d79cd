//! SQLite: one file, its log beside it, one connection that writes.

use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Row, Sqlite, Type, TypeInfo, ValueRef};

use crate::Result;
use crate::engine::{Dialect, Engine, Layout, bind_all, drive};
use crate::fold::Folder;
use crate::value::{Query, Record, Value};

/// Connections that read beside each other.
const READERS: u32 = 8;

impl Dialect for Sqlite {
    const LAYOUT: Layout = Layout::Values;
    // Takes the write lock at once: a transaction that began as a reader could not be upgraded.
    const BEGIN_WRITE: &'static str = "BEGIN IMMEDIATE";
    const BEGIN_READ: &'static str = "BEGIN DEFERRED";

    drive!();

    fn has_label(query: &mut Query, key: &str, value: &str) {
        query
            .bind(" AND EXISTS (SELECT 1 FROM json_each(jobs.body, '$.spec.labels') AS label WHERE label.key = ", key)
            .bind(" AND label.value = ", value)
            .push(")");
    }
}

fn bind(values: Vec<Value>, _width: Option<NonZeroUsize>) -> sqlx::Result<SqliteArguments> {
    bind_all(values)
}

/// SQLite's values know their types themselves.
fn record(row: &SqliteRow) -> sqlx::Result<Record> {
    let values = (0..row.len()).map(|column| {
        let raw = row.try_get_raw(column)?;
        if *raw.type_info() == <i64 as Type<Sqlite>>::type_info() || raw.type_info().name() == "NULL" {
            row.try_get(column).map(Value::Int)
        } else {
            row.try_get(column).map(Value::Text)
        }
    });
    values.collect::<sqlx::Result<_>>().map(Record)
}

/// Opens or makes the file at `url` (`sqlite:PATH`) and brings its schema up to date.
pub(crate) async fn open(url: &str) -> Result<Engine<Sqlite>> {
    let options = SqliteConnectOptions::from_str(url)?
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // A commit is answered after its log is on disk.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(10))
        .statement_cache_capacity(512)
        // A job's row has about 1 KiB: three of them would waste a quarter of a page of 4 KiB.
        .page_size(8192)
        .pragma("temp_store", "memory")
        .pragma("cache_size", "-65536")
        .pragma("wal_autocheckpoint", "8192")
        .pragma("journal_size_limit", "67108864");
    let options = sqlx::ConnectOptions::disable_statement_logging(options);
    let writer = SqlitePoolOptions::new()
        .max_connections(1)
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .connect_with(options.clone().thread_name(|_| "store-writer".to_owned()))
        .await?;
    sqlx::migrate!("migrations/sqlite").run(&writer).await?;
    let folding = SqlitePoolOptions::new()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options.clone().thread_name(|_| "store-folder".to_owned()))
        .await?;
    let readers = SqlitePoolOptions::new()
        .max_connections(READERS)
        .test_before_acquire(false)
        .connect_with(
            options.pragma("query_only", "1").row_buffer_size(512).thread_name(|n| format!("store-reader-{n}")),
        )
        .await?;
    Ok(Engine { writer, readers, folder: Some(Folder::start(folding)) })
}
