//! 100,000 jobs: listed by pages, watched, loaded by a cold start, cancelled.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sluice_proto::v1;
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinSet;

use crate::client::{self, Door, Jobs};
use crate::database::Source;
use crate::kill::Victim;
use crate::report::{Goal, Report};
use crate::{SubmitArgs, load, process, server, world};

const JOBS: u64 = 100_000;
/// A watch that is told nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// How much more memory than before a phase may take, both ends together.
const BOUND_MIB: f64 = 256.0;

/// Runs all of it on one kind of database.
pub(crate) fn run(
    arguments: &SubmitArgs,
    source: &Source,
    calling: &Runtime,
    report: &mut Report,
) -> anyhow::Result<()> {
    let kind = source.name();
    let fresh = calling.block_on(source.fresh(arguments.folder.as_deref()))?;
    calling.block_on(server::furnish(&fresh, arguments.nodes))?;
    let (victim, address) = Victim::start(fresh.folder.path(), &fresh.url)?;
    let door = Door::new(address, fresh.folder.path())?;
    let clients = calling.block_on(door.enter_all(32))?;
    let took = calling.block_on(load::fill(&clients, JOBS))?;
    report.figure(format!("{kind}: 100,000 jobs submitted in batches of 100"), took.as_secs_f64(), "s");

    let both = [std::process::id(), victim.id()];
    let names = phase(report, kind, "listed by pages of 1000", both, || calling.block_on(list(&clients[0])))?;
    anyhow::ensure!(names.len() as u64 == JOBS, "{} jobs were listed", names.len());
    let seen = phase(report, kind, "watched to the first bookmark", both, || calling.block_on(watch(&clients[0])))?;
    anyhow::ensure!(seen == JOBS, "{seen} jobs were watched");
    drop(clients);
    drop(victim);

    let begin = Instant::now();
    let (victim, address) = Victim::start(fresh.folder.path(), &fresh.url)?;
    let door = Door::new(address, fresh.folder.path())?;
    let name = names.first().context("no job")?.clone();
    calling.block_on(async {
        door.enter().await?.get_job(v1::GetJobRequest { name }).await.map_err(anyhow::Error::from)
    })?;
    let serves = begin.elapsed().as_secs_f64();
    report.goal(
        format!("{kind}: start after kill -9 with 100,000 jobs until a call is answered"),
        serves,
        "s",
        Goal::AtMost(5.0),
    );

    let both = [std::process::id(), victim.id()];
    let clients = calling.block_on(door.enter_all(arguments.clients))?;
    let seen = phase(report, kind, "cancelled one by one and watched", both, || {
        calling.block_on(async {
            let watcher = door.enter().await?;
            let (ready, watching) = oneshot::channel();
            let watch = tokio::spawn(watch_cancels(watcher, ready));
            watching.await.context("the watch did not begin")?;
            cancel(&clients, arguments.in_flight, names).await?;
            watch.await.context("the watch ended")?
        })
    })?;
    anyhow::ensure!(seen == JOBS, "{seen} cancels were watched");
    Ok(())
}

/// Watches from now on until every job is on its way out; how many were seen to be.
async fn watch_cancels(mut client: Jobs, ready: oneshot::Sender<()>) -> anyhow::Result<u64> {
    use v1::watch_jobs_response::Event;
    let request = v1::WatchJobsRequest { parent: world::PARENT.to_owned(), resume_token: String::new() };
    let mut stream = client.watch_jobs(request).await?.into_inner();
    let (mut ready, mut seen) = (Some(ready), HashSet::new());
    let all = usize::try_from(JOBS)?;
    while seen.len() < all {
        let message = tokio::time::timeout(PATIENCE, stream.message()).await.context("nothing was told for long")??;
        match message.context("the watch ended")?.event {
            Some(Event::Job(job)) if is_leaving(&job) => drop(seen.insert(job.name)),
            Some(Event::Job(_)) => {}
            Some(Event::Bookmark(_)) => {
                if let Some(ready) = ready.take() {
                    // Nobody waits any more only when the run has failed.
                    let _ = ready.send(());
                }
            }
            Some(Event::Resync(_)) | None => anyhow::bail!("the watch was cut"),
        }
    }
    Ok(seen.len() as u64)
}

fn is_leaving(job: &v1::Job) -> bool {
    matches!(job.state(), v1::JobState::Cancelling | v1::JobState::Cancelled)
}

/// Times one phase and watches the memory of both ends.
fn phase<T>(
    report: &mut Report,
    kind: &str,
    what: &str,
    both: [u32; 2],
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    both.into_iter().for_each(process::forget_peak);
    let (before, begin) = (both.map(process::resident), Instant::now());
    let result = work()?;
    let took = begin.elapsed().as_secs_f64();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let peak = both.map(process::peak);
    let grown: u64 = peak.iter().zip(before).map(|(peak, before)| peak.saturating_sub(before)).sum();
    println!("{kind}: resident {:.0} MiB in the client, {:.0} MiB in the controller", mib(peak[0]), mib(peak[1]));
    report.figure(format!("{kind}: 100,000 jobs {what}"), took, "s");
    report.goal(format!("{kind}: memory while {what}"), mib(grown), "MiB", Goal::AtMost(BOUND_MIB));
    Ok(result)
}

async fn list(client: &Jobs) -> anyhow::Result<Vec<String>> {
    let mut client = client.clone();
    let mut names = Vec::new();
    let mut page_token = String::new();
    loop {
        let request =
            v1::ListJobsRequest { parent: world::PARENT.to_owned(), page_size: 1000, page_token, ..Default::default() };
        let page = client.list_jobs(request).await?.into_inner();
        names.extend(page.jobs.into_iter().map(|job| job.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(names);
        }
    }
}

/// Counts jobs up to the first bookmark.
async fn watch(client: &Jobs) -> anyhow::Result<u64> {
    use v1::watch_jobs_response::Event;
    let request = v1::WatchJobsRequest { parent: world::PARENT.to_owned(), resume_token: String::new() };
    let mut stream = client.clone().watch_jobs(request).await?.into_inner();
    let mut seen = 0;
    while let Some(message) = stream.message().await? {
        match message.event {
            Some(Event::Job(_)) => seen += 1,
            Some(Event::Bookmark(_)) => return Ok(seen),
            Some(Event::Resync(_)) | None => anyhow::bail!("the watch was cut"),
        }
    }
    anyhow::bail!("the watch ended")
}

async fn cancel(clients: &[Jobs], in_flight: usize, names: Vec<String>) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let left = Arc::new(Mutex::new(names));
    let mut workers = JoinSet::new();
    for client in clients {
        for _ in 0..in_flight {
            let (mut client, left) = (client.clone(), Arc::clone(&left));
            workers.spawn(async move {
                loop {
                    let Some(name) = left.lock().await.pop() else { return Ok(()) };
                    let request = v1::CancelJobRequest {
                        request_id: client::uuid_text(client::request_id()?),
                        name,
                        ..v1::CancelJobRequest::default()
                    };
                    let job = client.cancel_job(request).await?.into_inner();
                    anyhow::ensure!(is_leaving(&job), "{} is {:?} after its cancel", job.name, job.state());
                }
            });
        }
    }
    while let Some(worker) = workers.join_next().await {
        worker.context("a worker ended")??;
    }
    Ok(begin.elapsed())
}
