//! What a writer starts from, read in one transaction.

use futures::StreamExt;
use serde::de::DeserializeOwned;
use sluice_lifecycle::{Rows, Snapshot};
use sqlx::Database;
use tokio::sync::mpsc;

use crate::engine::{Dialect, Engine};
use crate::tables;
use crate::value::{Query, Record, Statement, instant};
use crate::{LoadBounds, Result, StoreError};

/// Jobs that have not ended, or have a lease that is not settled.
const LIVE_JOBS: &str = "SELECT id FROM jobs WHERE live = 1 UNION SELECT job FROM leases WHERE live = 1";

/// Rows that are decoded at once, beside the database's own work.
const CHUNK: usize = 512;

impl<D: Dialect> Engine<D> {
    /// Reads the snapshot.
    pub(crate) async fn snapshot(&self, bounds: LoadBounds) -> Result<Snapshot> {
        let mut tx = self.readers.begin_with(D::BEGIN_READ).await?;
        let mut rows = Rows::default();
        fleet::<D>(&mut tx, bounds, &mut rows).await?;
        jobs::<D>(&mut tx, &mut rows).await?;
        money::<D>(&mut tx, bounds, &mut rows).await?;
        let last_id = one::<D>(&mut tx, &last_id_text()).await?;
        let last_event = one::<D>(&mut tx, "SELECT coalesce(max(sequence), 0) FROM events").await?;
        tx.rollback().await?;
        Ok(Snapshot { rows, last_id, last_event })
    }
}

type Conn<D> = <D as Database>::Connection;

async fn fleet<D: Dialect>(conn: &mut Conn<D>, bounds: LoadBounds, rows: &mut Rows) -> Result<()> {
    rows.tenants = bodies::<D, _>(conn, "tenants", "SELECT body FROM tenants ORDER BY id").await?;
    rows.projects = bodies::<D, _>(conn, "projects", "SELECT body FROM projects ORDER BY id").await?;
    rows.keys = bodies::<D, _>(conn, "api_keys", "SELECT body FROM api_keys ORDER BY id").await?;
    rows.secrets = bodies::<D, _>(conn, "secrets", "SELECT body FROM secrets WHERE live = 1 ORDER BY id").await?;
    rows.sites = bodies::<D, _>(conn, "sites", "SELECT body FROM sites ORDER BY id").await?;
    rows.nodes = bodies::<D, _>(conn, "nodes", "SELECT body FROM nodes ORDER BY id").await?;
    let ended = bounds.now.nanos().saturating_sub(bounds.token_grace.get());
    let ended = sluice_types::Timestamp::from_nanos(ended);
    let mut tokens = Query::new("SELECT body FROM join_tokens");
    tokens.bind(" WHERE expires >= ", instant(ended)).push(" ORDER BY hash");
    rows.tokens = collect::<D, _>(conn, tokens.build(), |row| row.body("join_tokens")).await?;
    Ok(())
}

async fn jobs<D: Dialect>(conn: &mut Conn<D>, rows: &mut Rows) -> Result<()> {
    let jobs = format!("SELECT body FROM jobs WHERE id IN ({LIVE_JOBS}) ORDER BY id");
    rows.jobs = bodies::<D, _>(conn, "jobs", &jobs).await?;
    let attempts = format!(
        "SELECT body FROM attempts WHERE id IN (SELECT id FROM attempts WHERE live = 1 \
         UNION SELECT a.id FROM ({LIVE_JOBS}) AS j JOIN attempts AS a ON a.job = j.id) ORDER BY id"
    );
    rows.attempts = bodies::<D, _>(conn, "attempts", &attempts).await?;
    // Also the settled ones of a job that lives: a loss may credit them yet.
    let leases = format!("SELECT body FROM leases WHERE job IN ({LIVE_JOBS}) ORDER BY id");
    rows.leases = bodies::<D, _>(conn, "leases", &leases).await?;
    let windows = format!(
        "SELECT w.body FROM leases AS l JOIN windows AS w ON w.lease = l.id AND w.sequence >= l.keep_from \
         WHERE l.job IN ({LIVE_JOBS}) ORDER BY w.lease, w.sequence"
    );
    rows.windows = bodies::<D, _>(conn, "windows", &windows).await?;
    let checkpoints = format!("SELECT body FROM checkpoints WHERE live = 1 AND job IN ({LIVE_JOBS}) ORDER BY id");
    rows.checkpoints = bodies::<D, _>(conn, "checkpoints", &checkpoints).await?;
    let migrations = format!(
        "SELECT body FROM migrations WHERE id IN (SELECT id FROM migrations WHERE live = 1 \
         UNION SELECT max(id) FROM migrations WHERE job IN ({LIVE_JOBS}) GROUP BY job) ORDER BY id"
    );
    rows.migrations = bodies::<D, _>(conn, "migrations", &migrations).await?;
    let uploads = "SELECT body FROM uploads WHERE live = 1 ORDER BY project, digest";
    rows.uploads = bodies::<D, _>(conn, "uploads", uploads).await?;
    let discards = "SELECT body FROM discards WHERE live = 1 ORDER BY site, manifest";
    rows.models = bodies::<D, _>(conn, "models", "SELECT body FROM models WHERE live = 1 ORDER BY id").await?;
    let endpoints = "SELECT body FROM endpoints WHERE live = 1 ORDER BY id";
    rows.endpoints = bodies::<D, _>(conn, "endpoints", endpoints).await?;
    let inference = "SELECT body FROM inference WHERE live = 1 ORDER BY id";
    rows.inference = bodies::<D, _>(conn, "inference", inference).await?;
    rows.discards = bodies::<D, _>(conn, "discards", discards).await?;
    Ok(())
}

async fn money<D: Dialect>(conn: &mut Conn<D>, bounds: LoadBounds, rows: &mut Rows) -> Result<()> {
    rows.prices = bodies::<D, _>(conn, "prices", "SELECT body FROM prices ORDER BY version DESC LIMIT 1").await?;
    rows.budgets = bodies::<D, _>(conn, "budgets", "SELECT body FROM budgets ORDER BY scope").await?;
    let quotas = "SELECT body FROM quotas WHERE live = 1 ORDER BY tenant, site, class";
    rows.quotas = bodies::<D, _>(conn, "quotas", quotas).await?;
    let accounts = Query::new(
        "SELECT name, debits_pending, debits_posted, credits_pending, credits_posted, line FROM accounts ORDER BY name",
    )
    .build();
    rows.accounts = collect::<D, _>(conn, accounts, tables::account).await?;
    let holds = Query::new("SELECT id, debit, credit, remaining, live FROM holds WHERE live = 1 ORDER BY id").build();
    rows.holds = collect::<D, _>(conn, holds, tables::hold).await?;
    let oldest = bounds.now.nanos().saturating_sub(bounds.request_age.get());
    let requests = Query::new("SELECT body FROM requests")
        .bind(" WHERE at >= ", instant(sluice_types::Timestamp::from_nanos(oldest)))
        .bind(" ORDER BY at DESC LIMIT ", bounds.max_requests)
        .build();
    rows.requests = collect::<D, _>(conn, requests, |row| row.body("requests")).await?;
    rows.counters = bodies::<D, _>(conn, "counters", "SELECT body FROM counters WHERE id = 1").await?.pop();
    Ok(())
}

/// The highest of all ids; each part is one look at the end of an index.
fn last_id_text() -> String {
    let tables = [
        "tenants",
        "projects",
        "api_keys",
        "secrets",
        "sites",
        "nodes",
        "jobs",
        "orders",
        "attempts",
        "leases",
        "checkpoints",
        "migrations",
        "holds",
        "transfers",
        "models",
        "endpoints",
        "inference",
    ];
    let mut text = "SELECT max(id) FROM (SELECT coalesce(max(version), 0) AS id FROM prices".to_owned();
    for table in tables {
        text.push_str(" UNION ALL SELECT max(id) FROM ");
        text.push_str(table);
    }
    text.push_str(") AS ids");
    text
}

async fn one<D: Dialect>(conn: &mut Conn<D>, text: &str) -> Result<u64> {
    let numbers = collect::<D, _>(conn, Query::new(text.to_owned()).build(), |row| row.unsigned("ids", 0)).await?;
    Ok(numbers.first().copied().unwrap_or(0))
}

async fn bodies<D: Dialect, T>(conn: &mut Conn<D>, table: &'static str, text: &str) -> Result<Vec<T>>
where
    T: DeserializeOwned + Send + 'static,
{
    collect::<D, _>(conn, Query::new(text.to_owned()).build(), move |row| row.body(table)).await
}

/// All rows of a statement. They are decoded on another thread while the database finds the next ones.
async fn collect<D: Dialect, T>(
    conn: &mut Conn<D>,
    statement: Statement,
    decode: impl Fn(&Record) -> Result<T> + Send + 'static,
) -> Result<Vec<T>>
where
    T: Send + 'static,
{
    let (send, mut receive) = mpsc::channel::<Vec<Record>>(8);
    let decoder = tokio::task::spawn_blocking(move || {
        let mut rows = Vec::new();
        while let Some(chunk) = receive.blocking_recv() {
            for record in &chunk {
                rows.push(decode(record)?);
            }
        }
        Ok(rows)
    });
    let mut chunks = D::stream(conn, statement).chunks(CHUNK);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.into_iter().collect::<sqlx::Result<Vec<_>>>()?;
        if send.send(chunk).await.is_err() {
            // The decoder gave up; its error is the answer.
            break;
        }
    }
    drop(send);
    decoder.await.map_err(|error| StoreError::Corrupt { table: "snapshot", detail: error.to_string() })?
}
