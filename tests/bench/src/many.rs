//! 100,000 jobs: listed by pages, watched, loaded by a cold start, cancelled.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sluice_proto::v1;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::client::{self, Door, Jobs};
use crate::database::Source;
use crate::report::{Goal, Report};
use crate::{SubmitArgs, load, process, server, world};

const JOBS: u64 = 100_000;
/// How much more memory than before a phase may take, both ends together.
const BOUND_MIB: f64 = 256.0;

/// Runs all of it on one kind of database.
pub(crate) fn run(
    arguments: &SubmitArgs,
    source: &Source,
    (serving, calling): (&Runtime, &Runtime),
    report: &mut Report,
) -> anyhow::Result<()> {
    let kind = source.name();
    let fresh = calling.block_on(source.fresh(arguments.folder.as_deref()))?;
    calling.block_on(server::furnish(&fresh, arguments.nodes))?;
    let server = server::start(serving, fresh.folder.path(), &fresh.url)?;
    let door = Door::new(server.address, fresh.folder.path())?;
    let clients = calling.block_on(door.enter_all(32))?;
    let took = calling.block_on(load::fill(&clients, JOBS))?;
    report.figure(format!("{kind}: 100,000 jobs submitted in batches of 100"), took.as_secs_f64(), "s");

    let names = phase(report, kind, "listed by pages of 1000", || calling.block_on(list(&clients[0])))?;
    anyhow::ensure!(names.len() as u64 == JOBS, "{} jobs were listed", names.len());
    let seen = phase(report, kind, "watched to the first bookmark", || calling.block_on(watch(&clients[0])))?;
    anyhow::ensure!(seen == JOBS, "{seen} jobs were watched");
    drop(clients);
    server.stop(serving)?;

    let begin = Instant::now();
    let server = server::start(serving, fresh.folder.path(), &fresh.url)?;
    let started = begin.elapsed();
    let door = Door::new(server.address, fresh.folder.path())?;
    let name = names.first().context("no job")?.clone();
    calling.block_on(async {
        door.enter().await?.get_job(v1::GetJobRequest { name }).await.map_err(anyhow::Error::from)
    })?;
    let serves = begin.elapsed().as_secs_f64();
    println!("{kind}: the controller started in {:.2} s", started.as_secs_f64());
    report.goal(
        format!("{kind}: cold start with 100,000 jobs until a call is answered"),
        serves,
        "s",
        Goal::AtMost(5.0),
    );

    let clients = calling.block_on(door.enter_all(arguments.clients))?;
    phase(report, kind, "cancelled one by one", || calling.block_on(cancel(&clients, arguments.in_flight, names)))?;
    drop(clients);
    server.stop(serving)
}

/// Times one phase and watches its memory.
fn phase<T>(
    report: &mut Report,
    kind: &str,
    what: &str,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    process::forget_peak();
    let (before, begin) = (process::resident(), Instant::now());
    let result = work()?;
    let took = begin.elapsed().as_secs_f64();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let grown = mib(process::peak().saturating_sub(before));
    println!("{kind}: resident {:.0} MiB before, {:.0} MiB after", mib(before), mib(process::resident()));
    report.figure(format!("{kind}: 100,000 jobs {what}"), took, "s");
    report.goal(format!("{kind}: memory while {what}"), grown, "MiB", Goal::AtMost(BOUND_MIB));
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
                        etag: String::new(),
                    };
                    let job = client.cancel_job(request).await?.into_inner();
                    let ends = matches!(job.state(), v1::JobState::Cancelling | v1::JobState::Cancelled);
                    anyhow::ensure!(ends, "{} is {:?} after its cancel", job.name, job.state());
                }
            });
        }
    }
    while let Some(worker) = workers.join_next().await {
        worker.context("a worker ended")??;
    }
    Ok(begin.elapsed())
}
