//! Clients that submit as fast as they are answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sluice_proto::v1;
use tokio::task::JoinSet;

use crate::client::{self, Jobs};

/// What one phase of load saw.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Jobs decided while it was measured.
    pub(crate) decided: u64,
    /// Those of them that were placed.
    pub(crate) placed: u64,
    /// How long each call took that ended while it was measured, in microseconds, shortest first.
    calls: Vec<u32>,
    /// How long it was measured.
    pub(crate) took: Duration,
}

impl Outcome {
    /// Jobs per second.
    pub(crate) fn rate(&self) -> f64 {
        self.decided as f64 / self.took.as_secs_f64()
    }

    /// The time, in milliseconds, within which so many of 1000 calls were answered.
    pub(crate) fn latency(&self, of_thousand: usize) -> f64 {
        let last = self.calls.len().saturating_sub(1);
        let place = (self.calls.len() * of_thousand / 1000).min(last);
        self.calls.get(place).map_or(0.0, |micros| f64::from(*micros) / 1000.0)
    }

    /// Jobs placed of 100 decided.
    pub(crate) fn share_placed(&self) -> f64 {
        100.0 * self.placed as f64 / self.decided.max(1) as f64
    }

    fn merge(&mut self, other: Self) {
        self.decided += other.decided;
        self.placed += other.placed;
        self.calls.extend(other.calls);
    }
}

/// What one call carries.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Call {
    /// One job.
    Single,
    /// So many jobs.
    Batch(usize),
}

/// Shared by all workers of one phase.
#[derive(Debug)]
struct Pace {
    next: AtomicU64,
    measuring: AtomicBool,
    ending: AtomicBool,
}

/// Runs `in_flight` workers on each connection: warm-up first, then `span` that is measured. `begin` and `end` are
/// called at both ends of it.
pub(crate) async fn run(
    clients: &[Jobs],
    in_flight: usize,
    call: Call,
    warm_up: Duration,
    span: Duration,
    mut look: impl FnMut(),
) -> anyhow::Result<Outcome> {
    let pace =
        Arc::new(Pace { next: AtomicU64::new(0), measuring: AtomicBool::new(false), ending: AtomicBool::new(false) });
    let mut workers = JoinSet::new();
    for client in clients {
        for _ in 0..in_flight {
            workers.spawn(work(client.clone(), call, Arc::clone(&pace)));
        }
    }
    tokio::time::sleep(warm_up).await;
    look();
    pace.measuring.store(true, Ordering::SeqCst);
    let begin = Instant::now();
    tokio::time::sleep(span).await;
    pace.measuring.store(false, Ordering::SeqCst);
    let took = begin.elapsed();
    look();
    pace.ending.store(true, Ordering::SeqCst);
    let mut all = Outcome { took, ..Outcome::default() };
    while let Some(worker) = workers.join_next().await {
        all.merge(worker.context("a worker ended")??);
    }
    all.calls.sort_unstable();
    Ok(all)
}

/// Submits exactly `jobs` jobs in batches of 100 and checks that each was accepted.
pub(crate) async fn fill(clients: &[Jobs], jobs: u64) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let left = Arc::new(AtomicU64::new(jobs / 100));
    let mut workers = JoinSet::new();
    for client in clients {
        let (mut client, left) = (client.clone(), Arc::clone(&left));
        workers.spawn(async move {
            while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                let first = left.load(Ordering::SeqCst) * 100;
                let (jobs, _) = one(&mut client, Call::Batch(100), first).await?;
                anyhow::ensure!(jobs == 100, "{jobs} of a batch of 100 were accepted");
            }
            Ok(())
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.context("a worker ended")??;
    }
    Ok(begin.elapsed())
}

async fn work(mut client: Jobs, call: Call, pace: Arc<Pace>) -> anyhow::Result<Outcome> {
    let mut seen = Outcome::default();
    let size = match call {
        Call::Single => 1,
        Call::Batch(size) => size as u64,
    };
    while !pace.ending.load(Ordering::Relaxed) {
        let number = pace.next.fetch_add(size, Ordering::Relaxed);
        let begin = Instant::now();
        let (decided, placed) = one(&mut client, call, number).await?;
        if pace.measuring.load(Ordering::Relaxed) {
            seen.decided += decided;
            seen.placed += placed;
            seen.calls.push(u32::try_from(begin.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
    }
    Ok(seen)
}

/// One call; how many jobs were decided and how many of them placed.
async fn one(client: &mut Jobs, call: Call, number: u64) -> anyhow::Result<(u64, u64)> {
    match call {
        Call::Single => {
            let job = client.submit_job(client::submit(number)?).await?.into_inner();
            Ok((1, u64::from(is_placed(&job))))
        }
        Call::Batch(size) => {
            let requests = (0..size as u64).map(|each| client::submit(number + each)).collect::<Result<_, _>>()?;
            let answer = client.batch_submit_jobs(v1::BatchSubmitJobsRequest { requests }).await?.into_inner();
            let jobs = answer.results.iter().filter_map(|result| match &result.result {
                Some(v1::submit_result::Result::Job(job)) => Some(job),
                _ => None,
            });
            let (decided, placed) =
                jobs.fold((0, 0), |(all, placed), job| (all + 1, placed + u64::from(is_placed(job))));
            anyhow::ensure!(decided == size as u64, "{decided} of a batch of {size} were accepted");
            Ok((decided, placed))
        }
    }
}

fn is_placed(job: &v1::Job) -> bool {
    job.state() == v1::JobState::Starting
}
