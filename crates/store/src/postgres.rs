//! PostgreSQL: any server from version 13 on.

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{Column, Postgres, Row, TypeInfo};

use crate::Result;
use crate::engine::{Dialect, Engine, Places, bind_all, drive};
use crate::value::{Query, Record, Value};

/// Connections that read beside each other.
const READERS: u32 = 8;

impl Dialect for Postgres {
    const PLACES: Places = Places::Numbered;
    const BEGIN_WRITE: &'static str = "BEGIN";
    const BEGIN_READ: &'static str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

    drive!();

    fn has_label(query: &mut Query, key: &str, value: &str) {
        query.bind(" AND jobs.body::json -> 'spec' -> 'labels' ->> ", key).bind(" = ", value);
    }
}

fn bind(values: Vec<Value>) -> sqlx::Result<PgArguments> {
    bind_all(values)
}

fn record(row: &PgRow) -> sqlx::Result<Record> {
    let values = row.columns().iter().enumerate().map(|(place, column)| match column.type_info().name() {
        "INT8" => row.try_get(place).map(Value::Int),
        _ => row.try_get(place).map(Value::Text),
    });
    values.collect::<sqlx::Result<_>>().map(Record)
}

/// Connects to the database at `url` and brings its schema up to date.
pub(crate) async fn open(url: &str) -> Result<Engine<Postgres>> {
    let options = PgConnectOptions::from_str(url)?
        .application_name("sluice")
        .statement_cache_capacity(512)
        // A commit is answered after its log is on disk, whatever the server's default is.
        .options([("synchronous_commit", "on")]);
    let options = sqlx::ConnectOptions::disable_statement_logging(options);
    let writer = PgPoolOptions::new()
        .max_connections(1)
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(Duration::from_secs(10))
        .connect_with(options.clone())
        .await?;
    sqlx::migrate!("migrations/postgres").run(&writer).await?;
    let readers = PgPoolOptions::new()
        .max_connections(READERS)
        .acquire_timeout(Duration::from_secs(10))
        .connect_with(options)
        .await?;
    Ok(Engine { writer, readers })
}
