//! How each kind of row is written: its table, its columns, its key.

mod blob;
mod fleet;
mod job;
mod money;
mod people;
mod serving;

use std::collections::HashSet;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use crate::Result;
use crate::engine::Layout;
use crate::value::{Statement, Value};

pub(crate) use job::state_word;
pub(crate) use money::{account, halves, hold, site, transfer};
pub(crate) use serving::model_word;

/// Rows per statement, largest first. Powers of two down to one, so that any number of rows takes few statements and
/// each of their texts is prepared once.
const CHUNKS: [usize; 9] = [256, 128, 64, 32, 16, 8, 4, 2, 1];

/// Rows per statement where one text serves any number: a bound on what is in memory at once.
const MOST_ROWS: usize = 1024;

/// What happens to a row whose key is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnConflict {
    /// It is replaced.
    Replace,
    /// The whole commit is refused.
    Refuse,
}

/// A table as the writer sees it.
#[derive(Debug)]
pub(crate) struct Table {
    name: &'static str,
    /// All columns; the key is the first `key` of them.
    columns: &'static [&'static str],
    key: usize,
    on_conflict: OnConflict,
    values: [OnceLock<Arc<str>>; CHUNKS.len()],
    arrays: OnceLock<Arc<str>>,
}

impl Table {
    const fn new(name: &'static str, key: usize, columns: &'static [&'static str], on_conflict: OnConflict) -> Self {
        let values = [const { OnceLock::new() }; CHUNKS.len()];
        Self { name, columns, key, on_conflict, values, arrays: OnceLock::new() }
    }

    /// How many of `rows` the next statement writes, and its text; `first` is the first row's values.
    fn text(&self, layout: Layout, rows: usize, first: &[Value]) -> (usize, SqlStr) {
        let (size, text) = match layout {
            Layout::Values => {
                let chunk = CHUNKS.iter().position(|size| *size <= rows).unwrap_or(CHUNKS.len() - 1);
                (CHUNKS[chunk], self.values[chunk].get_or_init(|| self.values_text(CHUNKS[chunk]).into()))
            }
            Layout::Arrays => (rows.min(MOST_ROWS), self.arrays.get_or_init(|| self.arrays_text(first).into())),
        };
        // Made of this crate's own literals and numbers.
        (size, AssertSqlSafe(Arc::clone(text)).into_sql_str())
    }

    fn values_text(&self, rows: usize) -> String {
        let row = format!("({})", vec!["?"; self.columns.len()].join(", "));
        // The whole transaction is given up for one row that is refused, so SQLite need not be able to take back the
        // statement alone: it would copy every page that the statement changes.
        let verb = if self.on_conflict == OnConflict::Refuse { "INSERT OR FAIL" } else { "INSERT" };
        let head = format!("{verb} INTO {} ({}) VALUES ", self.name, self.columns.join(", "));
        head + &vec![row; rows].join(", ") + &self.replace_text()
    }

    fn arrays_text(&self, first: &[Value]) -> String {
        let array = |(place, value): (usize, &Value)| match value {
            Value::Int(_) => format!("${}::bigint[]", place + 1),
            Value::Text(_) => format!("${}::text[]", place + 1),
        };
        let arrays: Vec<String> = first.iter().enumerate().map(array).collect();
        let (name, columns) = (self.name, self.columns.join(", "));
        format!("INSERT INTO {name} ({columns}) SELECT * FROM UNNEST({})", arrays.join(", ")) + &self.replace_text()
    }

    fn replace_text(&self) -> String {
        if self.on_conflict == OnConflict::Refuse {
            return String::new();
        }
        let (key, rest) = self.columns.split_at(self.key);
        let set: Vec<String> = rest.iter().map(|name| format!("{name} = excluded.{name}")).collect();
        format!(" ON CONFLICT ({}) DO UPDATE SET {}", key.join(", "), set.join(", "))
    }
}

/// A kind of row.
pub(crate) trait Stored {
    /// What tells its rows apart.
    type Key: Eq + Hash;

    /// Where it is kept.
    fn table() -> &'static Table;

    /// This row's key.
    fn key(&self) -> Self::Key;

    /// Appends one value per column.
    fn put(&self, values: &mut Vec<Value>) -> Result<()>;
}

/// The statements that write `rows`, each made when it is asked for.
pub(crate) fn write<T: Stored>(layout: Layout, rows: &[T]) -> impl Iterator<Item = Result<Statement>> {
    let table = T::table();
    let rows = newest(table.on_conflict, rows);
    let mut done = 0;
    std::iter::from_fn(move || {
        let rest = &rows[done..];
        let (first, others) = rest.split_first()?;
        let mut make = || {
            let width = table.columns.len();
            let mut values = Vec::with_capacity(width * rest.len().min(CHUNKS[0]));
            first.put(&mut values)?;
            let (size, sql) = table.text(layout, rest.len(), &values);
            for row in &others[..size - 1] {
                row.put(&mut values)?;
            }
            assert_eq!(values.len(), size * width, "one value per column of {}", table.name);
            done += size;
            Ok(Statement { sql, values, width: NonZeroUsize::new(width) })
        };
        Some(make())
    })
}

/// Of rows of the same key only the last: PostgreSQL refuses to replace a row twice in one statement. Rows that may
/// not be replaced are left as they are, so that the database finds the fault.
fn newest<T: Stored>(on_conflict: OnConflict, rows: &[T]) -> Vec<&T> {
    let mut kept: Vec<&T> = rows.iter().collect();
    if on_conflict == OnConflict::Replace && rows.len() > 1 {
        let mut seen = HashSet::with_capacity(rows.len());
        kept.reverse();
        kept.retain(|row| seen.insert(row.key()));
        kept.reverse();
    }
    kept
}
