//! How many submits per second the store can make durable, and how fast a controller starts.
//!
//! `cargo run --release -p sluice-store --features testing --example commit_rate [-- [sqlite|postgres] [COMMITS]]`
//!
//! Every commit holds 256 submits: for each a job, an attempt, a lease, a hold, a transfer, an event and a request,
//! with real JSON bodies; the accounts once. Rows are made beforehand, so the figure is the store's alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sluice_store::testing::{Cluster, NoCluster, RequestIds, Sample};
use sluice_store::{LoadBounds, Store};

const GROUP: usize = 256;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let only = args.next().unwrap_or_default();
    let commits: usize = args.next().map_or(Ok(400), |text| text.parse())?;
    if only != "postgres" {
        for (ids, name) in [(RequestIds::Ordered, "ordered"), (RequestIds::Random, "random")] {
            let folder = tempfile::tempdir()?;
            let url = format!("sqlite:{}", folder.path().join("state.db").display());
            measure(&format!("sqlite, {name} request ids"), &url, ids, commits).await?;
        }
    }
    if only != "sqlite" {
        match Cluster::start() {
            Ok(cluster) => {
                for (ids, name) in [(RequestIds::Ordered, "ordered"), (RequestIds::Random, "random")] {
                    let url = cluster.database(name).await?;
                    measure(&format!("postgres, {name} request ids"), &url, ids, commits).await?;
                }
            }
            Err(NoCluster::NoServer) => println!("postgres: SKIPPED: {}", NoCluster::NoServer),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

async fn measure(database: &str, url: &str, ids: RequestIds, commits: usize) -> anyhow::Result<()> {
    let store: Arc<dyn Store> = sluice_store::open(url).await?;
    let leader = store.acquire_leader("rate").await?;
    let mut sample = Sample::beyond(0, 0);
    sample.request_ids = ids;
    let world = sample.world();
    store.commit(leader, &world).await?;
    let deposit = sample.deposit(1_000_000_000_000);
    store.commit(leader, &deposit).await?;
    let groups: Vec<_> = (0..commits).map(|_| sample.submits(GROUP)).collect();

    let mut each = Vec::with_capacity(commits);
    let (begin, cpu) = (Instant::now(), processor_time());
    for rows in &groups {
        let begin = Instant::now();
        store.commit(leader, rows).await?;
        each.push(begin.elapsed());
    }
    let (took, cpu) = (begin.elapsed(), processor_time() - cpu);
    each.sort();
    let jobs = commits * GROUP;
    println!(
        "{database}: {jobs} jobs in {:.2} s = {:.0} jobs/s, {:.1} us of this process's processor time per job; commit of {GROUP}: median {:.2} ms, p99 {:.2} ms, longest {:.2} ms",
        took.as_secs_f64(),
        jobs as f64 / took.as_secs_f64(),
        cpu * 1e6 / jobs as f64,
        millis(each[each.len() / 2]),
        millis(each[each.len() * 99 / 100]),
        millis(*each.last().context("at least one commit")?),
    );
    store.close().await;

    let begin = Instant::now();
    let store = sluice_store::open(url).await?;
    let snapshot = store.load(LoadBounds::at(sample.now())).await?;
    println!(
        "{database}: opened and loaded {} live jobs, {} leases, {} requests in {:.2} s",
        snapshot.rows.jobs.len(),
        snapshot.rows.leases.len(),
        snapshot.rows.requests.len(),
        begin.elapsed().as_secs_f64(),
    );
    store.close().await;
    Ok(())
}

/// Seconds, in steps of 10 ms: tells the store's own cost also where other programs share the machine.
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}
