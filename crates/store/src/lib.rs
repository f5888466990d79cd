//! The durable truth: rows in SQLite or PostgreSQL. The only SQL of the project is here.
//!
//! [`open`] gives a [`Store`]. One writer takes the lead ([`Store::acquire_leader`]), starts from
//! [`Store::load`] and writes [`Rows`](sluice_lifecycle::Rows) by [`Store::commit`]; anybody may read beside it.
//! This room knows which columns make a query fast and which rows can still change; it decides nothing, rates nothing
//! and keeps no cache.
//!
//! How it is built, from the bottom: `value` is what goes through SQL (integers and texts); `engine` owns the pools
//! and the fenced transaction, with what differs between databases in `sqlite` and `postgres`; `tables` says how each
//! kind of row is written; `write`, `load` and `read` put these together.
//!
//! Laws, each tested on both databases:
//! * a commit is on disk before it is answered, whole or not at all, also when the process is killed;
//! * a commit under an older generation writes nothing;
//! * a cause posts once, a request and an event sequence are stored once;
//! * a row reads back as it was written.

mod api;
mod engine;
mod error;
mod fold;
mod load;
mod page;
mod postgres;
mod read;
mod sqlite;
mod tables;
#[cfg(feature = "testing")]
pub mod testing;
mod value;
mod write;

use std::sync::Arc;

pub use api::Store;
pub use error::{Result, StoreError};
pub use page::{EventFilter, JobFilter, LoadBounds, MAX_PAGE, Page, WindowPlace, WindowScope};

/// Opens `sqlite:PATH` (made if it is not there) or `postgres://USER@HOST/NAME` and brings the schema up to date.
///
/// # Errors
/// [`StoreError::Address`]; [`StoreError::Schema`] where a newer version has written to the database;
/// [`StoreError::Database`] where it cannot be reached.
pub async fn open(url: &str) -> Result<Arc<dyn Store>> {
    match url.split_once(':') {
        Some(("sqlite", path)) if !path.is_empty() => Ok(Arc::new(sqlite::open(url).await?)),
        Some(("postgres" | "postgresql", _)) => Ok(Arc::new(postgres::open(url).await?)),
        _ => Err(StoreError::Address(url.chars().take(64).collect())),
    }
}
