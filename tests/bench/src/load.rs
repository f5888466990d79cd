//! Clients that submit as fast as they are answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sluice_proto::v1;
use sluice_types::JobId;
use tokio::task::JoinSet;
use tonic::Status;

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
    /// Every job that a client was told is placed, measured or not.
    pub(crate) told: Vec<JobId>,
    /// Calls that the controller's end cut off.
    pub(crate) cut: u64,
}

/// How long a phase takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Length {
    pub(crate) warm_up: Duration,
    pub(crate) span: Duration,
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
        self.told.extend(other.told);
        self.cut += other.cut;
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

/// A controller whose calls do not end for so long is measured all the same: as one that decided nothing.
const STANDS_STILL: Duration = Duration::from_secs(60);

/// Shared by all workers of one phase.
#[derive(Debug)]
struct Pace {
    next: AtomicU64,
    /// Calls that ended while it was measured.
    ended: AtomicU64,
    measuring: AtomicBool,
    /// The controller may be gone from now on.
    closing: AtomicBool,
    ending: AtomicBool,
}

/// Runs `in_flight` workers on each connection: warm-up first, then what is measured. `look` is called at both ends of
/// it, and may end the controller.
pub(crate) async fn run(
    clients: &[Jobs],
    in_flight: usize,
    call: Call,
    length: Length,
    mut look: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Outcome> {
    let pace = Arc::new(Pace {
        next: AtomicU64::new(0),
        ended: AtomicU64::new(0),
        measuring: AtomicBool::new(false),
        closing: AtomicBool::new(false),
        ending: AtomicBool::new(false),
    });
    let mut workers = JoinSet::new();
    for client in clients {
        for _ in 0..in_flight {
            workers.spawn(work(client.clone(), call, Arc::clone(&pace)));
        }
    }
    tokio::time::sleep(length.warm_up).await;
    look()?;
    pace.measuring.store(true, Ordering::SeqCst);
    let begin = Instant::now();
    tokio::time::sleep(length.span).await;
    // Where commits stand still nothing is measured yet.
    while pace.ended.load(Ordering::Relaxed) == 0 && begin.elapsed() < STANDS_STILL {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    pace.measuring.store(false, Ordering::SeqCst);
    let took = begin.elapsed();
    pace.closing.store(true, Ordering::SeqCst);
    look()?;
    pace.ending.store(true, Ordering::SeqCst);
    let mut all = Outcome { took, ..Outcome::default() };
    while let Some(worker) = workers.join_next().await {
        all.merge(worker.context("a worker ended")??);
    }
    all.calls.sort_unstable();
    Ok(all)
}

/// How many of the same calls per second are only carried there and back: refused for their key, with nothing done.
pub(crate) async fn carried(clients: &[Jobs], in_flight: usize, span: Duration) -> anyhow::Result<(u64, Duration)> {
    let begin = Instant::now();
    let mut workers = JoinSet::new();
    for client in clients {
        for _ in 0..in_flight {
            let mut client = client.clone();
            workers.spawn(async move {
                let mut calls = 0;
                while begin.elapsed() < span {
                    match client.submit_job(client::submit(calls)?).await {
                        Err(status) if status.code() == tonic::Code::Unauthenticated => calls += 1,
                        other => anyhow::bail!("a stranger was answered {other:?}"),
                    }
                }
                Ok(calls)
            });
        }
    }
    let mut calls = 0;
    while let Some(worker) = workers.join_next().await {
        calls += worker.context("a worker ended")??;
    }
    Ok((calls, begin.elapsed()))
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
                let jobs = one(&mut client, Call::Batch(100), first).await??;
                anyhow::ensure!(jobs.len() == 100, "{} of a batch of 100 were accepted", jobs.len());
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
        let jobs = match one(&mut client, call, number).await? {
            Ok(jobs) => jobs,
            // The controller was killed: what was in flight is not known to anybody.
            Err(_) if pace.closing.load(Ordering::SeqCst) => {
                seen.cut += 1;
                return Ok(seen);
            }
            Err(status) => return Err(status.into()),
        };
        let before = seen.told.len();
        for job in jobs.iter().filter(|job| is_placed(job)) {
            let id = job.name.rsplit('/').next().unwrap_or_default();
            seen.told.push(id.parse()?);
        }
        if pace.measuring.load(Ordering::Relaxed) {
            pace.ended.fetch_add(1, Ordering::Relaxed);
            seen.decided += jobs.len() as u64;
            seen.placed += (seen.told.len() - before) as u64;
            seen.calls.push(u32::try_from(begin.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
    }
    Ok(seen)
}

/// One call: the jobs that it brought, or how it was refused.
async fn one(client: &mut Jobs, call: Call, number: u64) -> anyhow::Result<Result<Vec<v1::Job>, Status>> {
    match call {
        Call::Single => {
            let answer = client.submit_job(client::submit(number)?).await;
            Ok(answer.map(|job| vec![job.into_inner()]))
        }
        Call::Batch(size) => {
            let requests = (0..size as u64).map(|each| client::submit(number + each)).collect::<Result<_, _>>()?;
            let answer = match client.batch_submit_jobs(v1::BatchSubmitJobsRequest { requests }).await {
                Ok(answer) => answer.into_inner(),
                Err(status) => return Ok(Err(status)),
            };
            let jobs: Vec<_> = answer
                .results
                .into_iter()
                .filter_map(|result| match result.result {
                    Some(v1::submit_result::Result::Job(job)) => Some(job),
                    _ => None,
                })
                .collect();
            anyhow::ensure!(jobs.len() == size, "{} of a batch of {size} were accepted", jobs.len());
            Ok(Ok(jobs))
        }
    }
}

fn is_placed(job: &v1::Job) -> bool {
    job.state() == v1::JobState::Starting
}
