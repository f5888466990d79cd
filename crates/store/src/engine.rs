//! The one piece of code that talks to a database: pools, the fenced transaction, reads.
//!
//! Everything above it is the same text and the same values for both databases. A [`Dialect`] says what differs.

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{TryStreamExt, join};
use sluice_types::Generation;
use sqlx::pool::Pool;
use sqlx::{Connection, Database};

use crate::fold::Folder;
use crate::value::{Query, Record, Statement, Value};
use crate::{Result, StoreError};

/// How a statement that writes many rows is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `VALUES (?, ?), (?, ?), …`. The places have no numbers, because SQLite searches the names of numbered ones
    /// linearly, which costs more than the insert.
    Values,
    /// `SELECT * FROM UNNEST($1, $2)` with one array per column: one text and one plan for any number of rows.
    Arrays,
}

/// What differs between the databases.
pub(crate) trait Dialect: Database {
    /// How many rows are written by one statement.
    const LAYOUT: Layout;
    /// Begins a transaction that will write.
    const BEGIN_WRITE: &'static str;
    /// Begins a transaction whose reads all see the same instant.
    const BEGIN_READ: &'static str;

    /// Runs a statement and returns how many rows it touched.
    fn execute(conn: &mut Self::Connection, statement: Statement) -> BoxFuture<'_, sqlx::Result<u64>>;

    /// Runs a statement and returns its rows as they come.
    fn stream(conn: &mut Self::Connection, statement: Statement) -> BoxStream<'_, sqlx::Result<Record>>;

    /// Appends the condition that a job has a label with a value.
    fn has_label(query: &mut Query, key: &str, value: &str);
}

/// Implements the parts of [`Dialect`] that are the same text for every driver but need its concrete types. The
/// caller has `bind`, from values to the driver's arguments, and `record`, from the driver's row to ours.
macro_rules! drive {
    () => {
        fn execute(
            conn: &mut Self::Connection,
            statement: crate::value::Statement,
        ) -> futures::future::BoxFuture<'_, sqlx::Result<u64>> {
            Box::pin(async move {
                let arguments = bind(statement.values, statement.width)?;
                Ok(sqlx::query_with::<Self, _>(statement.sql, arguments).execute(conn).await?.rows_affected())
            })
        }

        fn stream(
            conn: &mut Self::Connection,
            statement: crate::value::Statement,
        ) -> futures::stream::BoxStream<'_, sqlx::Result<crate::value::Record>> {
            use futures::StreamExt;
            match bind(statement.values, statement.width) {
                Ok(arguments) => sqlx::query_with::<Self, _>(statement.sql, arguments)
                    .fetch(conn)
                    .map(|row| row.and_then(|row| record(&row)))
                    .boxed(),
                Err(error) => futures::stream::once(async { Err(error) }).boxed(),
            }
        }
    };
}
pub(crate) use drive;

/// Binds values one after the other. Generic over the driver's arguments.
pub(crate) fn bind_all<A>(values: Vec<Value>) -> sqlx::Result<A>
where
    A: sqlx::Arguments,
    Option<i64>: for<'q> sqlx::Encode<'q, A::Database> + sqlx::Type<A::Database>,
    Option<String>: for<'q> sqlx::Encode<'q, A::Database> + sqlx::Type<A::Database>,
{
    let mut arguments = A::default();
    arguments.reserve(values.len(), values.len() * 16);
    for value in values {
        match value {
            Value::Int(number) => arguments.add(number),
            Value::Text(text) => arguments.add(text),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

/// Compare-and-count: touches the one row only while the generation leads, and keeps others from taking over until
/// the transaction ends.
const FENCE: &str = "UPDATE leader SET commits = commits + 1 WHERE id = 1 AND generation = $1";

const LEAD: &str = "UPDATE leader SET generation = generation + 1, holder = $1 WHERE id = 1 RETURNING generation";

/// The pools of one database.
#[derive(Debug)]
pub(crate) struct Engine<D: Dialect> {
    /// One connection that only the writer uses.
    pub(crate) writer: Pool<D>,
    /// The others.
    pub(crate) readers: Pool<D>,
    /// Keeps SQLite's log short.
    pub(crate) folder: Option<Folder>,
}

impl<D: Dialect> Engine<D> {
    /// The next generation.
    pub(crate) async fn lead(&self, holder: &str) -> Result<Generation> {
        let mut tx = self.writer.begin_with(D::BEGIN_WRITE).await?;
        let row = D::stream(&mut tx, Statement::fixed(LEAD, vec![Value::from(holder)])).try_next().await?;
        let row = row.ok_or(StoreError::Corrupt { table: "leader", detail: "it has no row".to_owned() })?;
        let generation = row.unsigned("leader", 0)?;
        tx.commit().await?;
        Ok(Generation::new(generation))
    }

    /// Runs the statements in one transaction if `leader` still leads, and returns how many rows the last touched.
    /// Each statement is made while the database works on the one before.
    pub(crate) async fn write(
        &self,
        leader: Generation,
        mut statements: impl Iterator<Item = Result<Statement>>,
    ) -> Result<u64> {
        let mut tx = self.writer.begin_with(D::BEGIN_WRITE).await?;
        let written = async {
            let fence = Statement::fixed(FENCE, vec![Value::from(leader.get().cast_signed())]);
            let (fenced, mut next) = join!(D::execute(&mut tx, fence), async { statements.next() });
            if fenced? != 1 {
                return Err(StoreError::NotLeader(leader));
            }
            let mut touched = 0;
            while let Some(statement) = next {
                let (done, following) = join!(D::execute(&mut tx, statement?), async { statements.next() });
                (touched, next) = (done?, following);
            }
            Ok(touched)
        };
        match written.await {
            Ok(touched) => {
                tx.commit().await?;
                if let Some(folder) = &self.folder {
                    folder.committed();
                }
                Ok(touched)
            }
            Err(error) => {
                tx.rollback().await?;
                Err(error)
            }
        }
    }

    /// All rows of a statement, decoded.
    pub(crate) async fn read<T>(&self, query: &mut Query, decode: fn(&Record) -> Result<T>) -> Result<Vec<T>> {
        let mut conn = self.readers.acquire().await?;
        let records: Vec<Record> = D::stream(&mut conn, query.build()).try_collect().await?;
        drop(conn);
        records.iter().map(decode).collect()
    }

    /// The only row of a statement, decoded.
    pub(crate) async fn read_one<T>(&self, query: &mut Query, decode: fn(&Record) -> Result<T>) -> Result<Option<T>> {
        Ok(self.read(query, decode).await?.into_iter().next())
    }

    pub(crate) async fn ping(&self) -> Result<()> {
        Ok(self.readers.acquire().await?.ping().await?)
    }

    pub(crate) async fn close(&self) {
        if let Some(folder) = &self.folder {
            folder.stop().await;
        }
        self.readers.close().await;
        self.writer.close().await;
    }
}
