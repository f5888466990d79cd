//! Why the store refused or failed.

use sluice_types::Generation;

/// What can go wrong. After [`StoreError::NotLeader`] and [`StoreError::Conflict`] nothing was written; after any
/// other error of a commit its outcome is unknown, and the writer must load again before it goes on.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another writer has taken over.
    #[error("generation {0} does not lead any more")]
    NotLeader(Generation),
    /// A row that must be new or unique is there already.
    #[error("a row breaks the unique rule `{rule}`")]
    Conflict {
        /// The database's name for the rule.
        rule: String,
    },
    /// A number does not fit SQL's signed 64 bits.
    #[error("{0} of a row is beyond 2^63")]
    Range(&'static str),
    /// A stored row cannot be read: another version wrote it, or the file is damaged.
    #[error("a row of `{table}` cannot be read: {detail}")]
    Corrupt {
        /// Where it is.
        table: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// A row cannot be written as JSON.
    #[error("a row of `{table}` cannot be written")]
    Encode {
        /// Where it would go.
        table: &'static str,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// The address names no database that we know.
    #[error("`{0}` is no database address: use sqlite:PATH or postgres://USER@HOST/NAME")]
    Address(String),
    /// The schema in the database is not one that this version can use or upgrade.
    #[error("the schema of the database does not fit this version")]
    Schema(#[source] Box<sqlx::migrate::MigrateError>),
    /// The database failed or cannot be reached.
    #[error("the database failed")]
    Database(#[source] sqlx::Error),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error.as_database_error() {
            Some(database) if database.is_unique_violation() => Self::Conflict {
                rule: database.constraint().map_or_else(|| database.message().to_owned(), str::to_owned),
            },
            _ => Self::Database(error),
        }
    }
}

impl From<sqlx::migrate::MigrateError> for StoreError {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        Self::Schema(Box::new(error))
    }
}

/// What every call answers.
pub type Result<T> = std::result::Result<T, StoreError>;
