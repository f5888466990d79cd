//! PostgreSQL: any server from version 13 on.

use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{Arguments, Column, Postgres, Row, TypeInfo};

use crate::Result;
use crate::engine::{Dialect, Engine, Layout, bind_all, drive};
use crate::value::{Query, Record, Value};

/// Connections that read beside each other.
const READERS: u32 = 8;

impl Dialect for Postgres {
    const LAYOUT: Layout = Layout::Arrays;
    const BEGIN_WRITE: &'static str = "BEGIN";
    const BEGIN_READ: &'static str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

    drive!();

    fn has_label(query: &mut Query, key: &str, value: &str) {
        query.bind(" AND jobs.body::json -> 'spec' -> 'labels' ->> ", key).bind(" = ", value);
    }
}

fn bind(values: Vec<Value>, width: Option<NonZeroUsize>) -> sqlx::Result<PgArguments> {
    match width {
        None => bind_all(values),
        Some(width) => bind_columns(values, width.get()),
    }
}

/// One array per column.
fn bind_columns(values: Vec<Value>, width: usize) -> sqlx::Result<PgArguments> {
    enum Column {
        Ints(Vec<Option<i64>>),
        Texts(Vec<Option<String>>),
    }
    let rows = values.len() / width;
    let mut columns: Vec<Column> = values[..width.min(values.len())]
        .iter()
        .map(|value| match value {
            Value::Int(_) => Column::Ints(Vec::with_capacity(rows)),
            Value::Text(_) => Column::Texts(Vec::with_capacity(rows)),
        })
        .collect();
    for (place, value) in values.into_iter().enumerate() {
        match (&mut columns[place % width], value) {
            (Column::Ints(column), Value::Int(number)) => column.push(number),
            (Column::Texts(column), Value::Text(text)) => column.push(text),
            _ => return Err(sqlx::Error::Protocol("a column has one type in all rows".to_owned())),
        }
    }
    let mut arguments = PgArguments::default();
    for column in columns {
        match column {
            Column::Ints(column) => arguments.add(column),
            Column::Texts(column) => arguments.add(column),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
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
    Ok(Engine { writer, readers, folder: None })
}
