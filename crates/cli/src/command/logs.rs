//! `logs`: a job's log, byte for byte, over any number of broken connections.

use std::time::Duration;

use sluice_proto::v1;
use tonic::{Code, Status};

use super::Invocation;
use super::get::read_job;
use super::watch::is_end;
use crate::args::LogsArgs;
use crate::error::CliError;
use crate::records::Decoder;

/// Between two looks at a job whose log has nothing yet.
const PAUSE: Duration = Duration::from_millis(500);

/// A place in the log of one task.
#[derive(Debug, Clone)]
pub(super) struct Tail {
    pub(super) job: String,
    pub(super) rank: u32,
    /// Bytes of the whole log that were printed or skipped.
    pub(super) offset: u64,
    pub(super) decoder: Decoder,
}

pub(super) async fn logs(at: &Invocation, args: LogsArgs) -> Result<(), CliError> {
    let job = at.job(&args.job).await?;
    let mut tail = Tail::of(job, &args);
    if args.follow {
        return follow_to_end(at, tail).await.map(|_| ());
    }
    let mut backoff = at.api.call_backoff();
    loop {
        let before = tail.offset;
        match pass_on(at, &mut tail, Follow::No).await? {
            Ok(()) => return Ok(()),
            Err(status) => {
                if tail.offset > before {
                    backoff.progress();
                }
                backoff.after(status).await.map_err(|status| CliError::refused("read the log", status))?;
            }
        }
    }
}

/// Prints the log as it grows, until the job has ended and all of it is printed; gives the job as it ended.
pub(super) async fn follow_to_end(at: &Invocation, mut tail: Tail) -> Result<v1::Job, CliError> {
    let mut backoff = at.api.stream_backoff();
    let mut ended: Option<v1::Job> = None;
    loop {
        let before = tail.offset;
        let outcome = pass_on(at, &mut tail, Follow::Yes).await?;
        if tail.offset > before {
            backoff.progress();
        }
        match outcome {
            Ok(()) => {
                // The state is read before the last look at the log, so what came between is not missed.
                if let Some(job) = ended {
                    return Ok(job);
                }
                backoff.progress();
            }
            Err(status) if is_too_early(&status) => {
                if let Some(job) = ended {
                    return Ok(job);
                }
            }
            Err(status) => {
                backoff.after(status).await.map_err(|status| CliError::refused("follow the log", status))?;
                continue;
            }
        }
        let job = read_job(at, &tail.job).await?;
        if job.spec.as_ref().is_some_and(|spec| tail.rank >= spec.tasks.max(1)) {
            return Err(CliError::field("--rank", format!("the job has no task {}", tail.rank)));
        }
        if is_end(&job) {
            ended = Some(job);
        } else {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Before a task has run, a server may have no log to stream.
fn is_too_early(status: &Status) -> bool {
    matches!(status.code(), Code::FailedPrecondition | Code::NotFound)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follow {
    Yes,
    No,
}

/// One stream, from the offset on; the offset moves with what was printed.
async fn pass_on(at: &Invocation, tail: &mut Tail, follow: Follow) -> Result<Result<(), Status>, CliError> {
    let request = v1::StreamLogsRequest {
        name: tail.job.clone(),
        rank: tail.rank,
        follow: follow == Follow::Yes,
        offset: tail.offset,
    };
    let mut stream = match at.api.jobs().stream_logs(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    loop {
        let part = match stream.message().await {
            Ok(Some(part)) => part,
            Ok(None) => {
                let rest = tail.decoder.finish();
                at.console.bytes(&rest)?;
                return Ok(Ok(()));
            }
            Err(status) => return Ok(Err(status)),
        };
        if part.offset > tail.offset {
            at.console.warn(&format!("bytes {} to {} of the log are missing", tail.offset, part.offset));
            tail.offset = part.offset;
        }
        let known = usize::try_from(tail.offset - part.offset).unwrap_or(usize::MAX).min(part.data.len());
        let shown = tail.decoder.push(&part.data[known..]);
        at.console.bytes(&shown)?;
        tail.offset = tail.offset.saturating_add(u64::try_from(part.data.len() - known).unwrap_or(0));
    }
}
