//! What goes into and comes out of SQL: 64-bit integers and texts, nothing else.

use std::borrow::Cow;
use std::num::NonZeroUsize;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sluice_types::Timestamp;

use crate::{Result, StoreError};

/// One bound or read value. An absent one keeps its type, because PostgreSQL wants to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Int(Option<i64>),
    Text(Option<String>),
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(Some(number))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Int(Some(i64::from(number)))
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Int(Some(i64::from(flag)))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(Some(text.to_owned()))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Some(text))
    }
}

/// An id of any kind: below 2^63 by construction.
pub(crate) fn id(raw: u64) -> Value {
    Value::from(raw.cast_signed())
}

/// An id that may be absent.
pub(crate) fn maybe_id(raw: Option<u64>) -> Value {
    Value::Int(raw.map(u64::cast_signed))
}

/// An instant that is only searched by: the latest ones are all the same.
pub(crate) fn instant(at: Timestamp) -> Value {
    Value::from(i64::try_from(at.nanos()).unwrap_or(i64::MAX))
}

/// A number that must come back as it went in.
pub(crate) fn exact(number: u64, what: &'static str) -> Result<Value> {
    i64::try_from(number).map(Value::from).map_err(|_| StoreError::Range(what))
}

/// A whole row.
pub(crate) fn body(table: &'static str, row: &impl Serialize) -> Result<Value> {
    // Most rows have between 200 and 800 bytes; the buffer lives only until the commit.
    let mut text = Vec::with_capacity(768);
    serde_json::to_writer(&mut text, row).map_err(|source| StoreError::Encode { table, source })?;
    String::from_utf8(text)
        .map(Value::from)
        .map_err(|_| StoreError::Corrupt { table, detail: "JSON that is not UTF-8".to_owned() })
}

/// One row as read, by the place of its columns in the statement.
#[derive(Debug)]
pub(crate) struct Record(pub(crate) Vec<Value>);

impl Record {
    /// An integer.
    pub(crate) fn int(&self, table: &'static str, column: usize) -> Result<i64> {
        self.maybe_int(column).ok_or_else(|| missing(table, column))
    }

    /// An integer that may be absent.
    pub(crate) fn maybe_int(&self, column: usize) -> Option<i64> {
        match self.0.get(column) {
            Some(Value::Int(number)) => *number,
            _ => None,
        }
    }

    /// An integer that was bound as an unsigned one.
    pub(crate) fn unsigned(&self, table: &'static str, column: usize) -> Result<u64> {
        let number = self.int(table, column)?;
        u64::try_from(number).map_err(|_| StoreError::Corrupt { table, detail: format!("{number} is negative") })
    }

    /// A text.
    pub(crate) fn text(&self, table: &'static str, column: usize) -> Result<&str> {
        match self.0.get(column) {
            Some(Value::Text(Some(text))) => Ok(text),
            _ => Err(missing(table, column)),
        }
    }

    /// A text of ours, such as an account's key.
    pub(crate) fn parse<T: std::str::FromStr>(&self, table: &'static str, column: usize) -> Result<T> {
        let text = self.text(table, column)?;
        text.parse().map_err(|_| StoreError::Corrupt { table, detail: format!("`{text}` in column {column}") })
    }

    /// The whole row, where the first column is its body.
    pub(crate) fn body<T: DeserializeOwned>(&self, table: &'static str) -> Result<T> {
        serde_json::from_str(self.text(table, 0)?)
            .map_err(|error| StoreError::Corrupt { table, detail: error.to_string() })
    }
}

fn missing(table: &'static str, column: usize) -> StoreError {
    StoreError::Corrupt { table, detail: format!("column {column} has another type") }
}

/// A statement with what is bound to it.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) sql: sqlx::SqlStr,
    pub(crate) values: Vec<Value>,
    /// Where the values are rows one after the other: how many columns each has.
    pub(crate) width: Option<NonZeroUsize>,
}

impl Statement {
    /// A text of ours with values for its places.
    pub(crate) fn fixed(text: &'static str, values: Vec<Value>) -> Self {
        Self { sql: sqlx::SqlStr::from_static(text), values, width: None }
    }
}

/// Builds a read: text with numbered places for values, which both databases understand.
#[derive(Debug, Default)]
pub(crate) struct Query {
    text: String,
    values: Vec<Value>,
}

impl Query {
    pub(crate) fn new(text: impl Into<Cow<'static, str>>) -> Self {
        Self { text: text.into().into_owned(), values: Vec::new() }
    }

    /// Appends text.
    pub(crate) fn push(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// Appends text and then a value.
    pub(crate) fn bind(&mut self, text: &str, value: impl Into<Value>) -> &mut Self {
        use std::fmt::Write;
        self.values.push(value.into());
        self.text.push_str(text);
        // Writing to a string does not fail.
        let _ = write!(self.text, "${}", self.values.len());
        self
    }

    /// Appends text and then a list of values in brackets. The list is filled up to a power of two by repeating its
    /// last value, so that few statements are prepared. An empty list holds nothing.
    pub(crate) fn bind_list(&mut self, text: &str, values: impl IntoIterator<Item = Value>) -> &mut Self {
        let mut values: Vec<Value> = values.into_iter().collect();
        let Some(last) = values.last().cloned() else {
            return self.push(text).push("(NULL)");
        };
        values.resize(values.len().next_power_of_two(), last);
        self.push(text);
        let mut before = "(";
        for value in values {
            self.bind(before, value);
            before = ", ";
        }
        self.push(")")
    }

    /// The statement.
    pub(crate) fn build(&mut self) -> Statement {
        // The text is made of literals of this crate; everything else is bound.
        let sql = sqlx::SqlSafeStr::into_sql_str(sqlx::AssertSqlSafe(std::mem::take(&mut self.text)));
        Statement { sql, values: std::mem::take(&mut self.values), width: None }
    }
}
