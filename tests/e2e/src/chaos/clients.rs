//! Clients that want their jobs run, whatever happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use sluice_proto::v1;
use tokio::time::{Instant, sleep};

use crate::checker;
use crate::client::{Client, PROJECT};
use crate::random::request_id;

const CLIENTS: u32 = 8;
/// The pause between two tries of one request.
const AGAIN: Duration = Duration::from_millis(100);
/// How long one request is tried.
const GIVE_UP: Duration = Duration::from_secs(120);
/// One in so many requests is sent once more after it was answered.
const ASK_AGAIN: u32 = 5;

/// What the clients know.
#[derive(Debug, Default)]
pub(super) struct Submitted {
    /// Names of their jobs.
    pub(super) names: Vec<String>,
    /// Tries that got no answer.
    pub(super) retries: u64,
    /// Answered requests that were sent again.
    pub(super) repeated: u64,
    /// Of these, the ones answered with another job.
    pub(super) other_answers: u64,
}

#[derive(Default)]
struct Shared {
    next: AtomicU32,
    retries: AtomicU64,
    repeated: AtomicU64,
    other_answers: AtomicU64,
}

fn spec(number: u32) -> v1::JobSpec {
    let resources = v1::TaskResources {
        device_class: "cpu".to_owned(),
        milli: 200,
        memory_bytes: 64 << 20,
        ..v1::TaskResources::default()
    };
    let seconds = format!("0.{}", 2 + number % 7);
    v1::JobSpec {
        command: vec!["/bin/sh".to_owned(), "-c".to_owned(), checker::script(&seconds)],
        tasks: 1,
        resources: Some(resources),
        retry: Some(v1::RetryPolicy { on_failure: 0, on_loss: None }),
        ..v1::JobSpec::default()
    }
}

/// Submits `jobs` jobs, spread over most of `span`.
pub(super) async fn submit_all(client: Client, jobs: u32, span: Duration) -> anyhow::Result<Submitted> {
    let shared = Arc::new(Shared::default());
    let (begin, pace) = (Instant::now(), span.mul_f64(0.85) / jobs.max(1));
    let one = |_| tokio::spawn(one_client(client.clone(), Arc::clone(&shared), jobs, begin, pace));
    let clients: Vec<_> = (0..CLIENTS).map(one).collect();
    let mut names = Vec::new();
    for client in clients {
        names.extend(client.await??);
    }
    let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
    Ok(Submitted {
        names,
        retries: read(&shared.retries),
        repeated: read(&shared.repeated),
        other_answers: read(&shared.other_answers),
    })
}

async fn one_client(
    client: Client,
    shared: Arc<Shared>,
    jobs: u32,
    begin: Instant,
    pace: Duration,
) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    loop {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        if number >= jobs {
            return Ok(names);
        }
        tokio::time::sleep_until(begin + pace * number).await;
        let request = v1::SubmitJobRequest {
            request_id: request_id(),
            parent: PROJECT.to_owned(),
            display_name: format!("chaos-{number}"),
            spec: Some(spec(number)),
            validate_only: false,
            wait_for_decision: false,
            manager: String::new(),
        };
        let name = submit(&client, &shared, &request).await?;
        if number.is_multiple_of(ASK_AGAIN) {
            shared.repeated.fetch_add(1, Ordering::Relaxed);
            if submit(&client, &shared, &request).await? != name {
                shared.other_answers.fetch_add(1, Ordering::Relaxed);
            }
        }
        names.push(name);
    }
}

/// Tries one request until it is answered.
async fn submit(client: &Client, shared: &Shared, request: &v1::SubmitJobRequest) -> anyhow::Result<String> {
    let deadline = Instant::now() + GIVE_UP;
    loop {
        match client.jobs().submit_job(request.clone()).await {
            Ok(answer) => return Ok(answer.into_inner().name),
            Err(status) => {
                let refused = matches!(status.code(), tonic::Code::InvalidArgument | tonic::Code::PermissionDenied);
                if refused || Instant::now() > deadline {
                    return Err(status).context("a job could not be submitted");
                }
                shared.retries.fetch_add(1, Ordering::Relaxed);
            }
        }
        sleep(AGAIN).await;
    }
}
