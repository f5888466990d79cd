//! How each kind of row is written: its table, its columns, its key.

mod fleet;
mod job;
mod money;
mod people;

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Arc, OnceLock};

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use crate::Result;
use crate::engine::Places;
use crate::value::{Statement, Value};

pub(crate) use job::state_word;
pub(crate) use money::{account, halves, hold, transfer};

/// Rows per statement, largest first. Powers of two down to one, so that any number of rows takes few statements and
/// each of their texts is prepared once.
const CHUNKS: [usize; 7] = [64, 32, 16, 8, 4, 2, 1];

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
    texts: [[OnceLock<Arc<str>>; CHUNKS.len()]; 2],
}

impl Table {
    const fn new(
        name: &'static str,
        key: usize,
        columns: &'static [&'static str],
        on_conflict: OnConflict,
    ) -> Self {
        let texts = [const { [const { OnceLock::new() }; CHUNKS.len()] }; 2];
        Self { name, columns, key, on_conflict, texts }
    }

    /// The statement that writes `CHUNKS[chunk]` rows.
    fn text(&self, places: Places, chunk: usize) -> SqlStr {
        let slot = &self.texts[usize::from(places == Places::Numbered)][chunk];
        let text = slot.get_or_init(|| self.write_text(places, CHUNKS[chunk]).into());
        // Made of this crate's own literals and numbers.
        AssertSqlSafe(Arc::clone(text)).into_sql_str()
    }

    fn write_text(&self, places: Places, rows: usize) -> String {
        use std::fmt::Write;
        let mut text = format!("INSERT INTO {} ({}) VALUES ", self.name, self.columns.join(", "));
        let width = self.columns.len();
        for place in 0..rows * width {
            text.push_str(match (place % width, place) {
                (0, 0) => "(",
                (0, _) => "), (",
                _ => ", ",
            });
            // Writing to a string does not fail.
            let _ = match places {
                Places::Bare => text.write_str("?"),
                Places::Numbered => write!(text, "${}", place + 1),
            };
        }
        text.push(')');
        if self.on_conflict == OnConflict::Replace {
            let _ = write!(text, " ON CONFLICT ({}) DO UPDATE SET ", self.columns[..self.key].join(", "));
            let set: Vec<String> = self.columns[self.key..].iter().map(|name| format!("{name} = excluded.{name}")).collect();
            text.push_str(&set.join(", "));
        }
        text
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

/// Appends the statements that write `rows`.
pub(crate) fn write<T: Stored>(places: Places, rows: &[T], statements: &mut Vec<Statement>) -> Result<()> {
    let table = T::table();
    let rows = newest(table.on_conflict, rows);
    let mut rest = rows.as_slice();
    for (chunk, size) in CHUNKS.into_iter().enumerate() {
        while rest.len() >= size {
            let (now, later) = rest.split_at(size);
            rest = later;
            let mut values = Vec::with_capacity(size * table.columns.len());
            for row in now {
                row.put(&mut values)?;
            }
            debug_assert_eq!(values.len(), size * table.columns.len(), "one value per column of {}", table.name);
            statements.push(Statement { sql: table.text(places, chunk), values });
        }
    }
    Ok(())
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
