//! `cancel`, `suspend`, `resume` and `migrate`.

use sluice_proto::v1;

use super::Invocation;
use super::watch::{Waiting, state_word, wait_for};
use crate::args::{CancelArgs, JobWaitArgs, MigrateArgs, WaitFlags};
use crate::error::CliError;
use crate::reference::{leaf, site};
use crate::request_id::new_request_id;
use crate::view::JobView;

pub(super) async fn cancel(at: &Invocation, args: CancelArgs) -> Result<(), CliError> {
    let mut names = Vec::new();
    for job in &args.jobs {
        names.push(at.job(job).await?);
    }
    let ids: Vec<&str> = names.iter().map(|name| leaf(name)).collect();
    at.console.confirm(args.yes, &format!("End for good: {}", ids.join(", ")))?;
    let mut ended = Vec::new();
    for name in names {
        let request = v1::CancelJobRequest { request_id: new_request_id()?, name, ..Default::default() };
        let job = at.api.unary("cancel the job", request, async |r| at.api.jobs().cancel_job(r).await).await?;
        at.console.note(&format!("{} is {}", leaf(&job.name), state_word(&job)));
        ended.push(job);
    }
    let mut views = Vec::new();
    for job in ended {
        views.push(JobView::from(&finish(at, job, &args.wait, Waiting::Cancelled).await?));
    }
    match views.as_slice() {
        _ if at.console.is_human() => Ok(()),
        [one] => at.console.one(one),
        several => at.console.list(several),
    }
}

pub(super) async fn suspend(at: &Invocation, args: JobWaitArgs) -> Result<(), CliError> {
    let name = at.job(&args.job).await?;
    let request = v1::SuspendJobRequest { request_id: new_request_id()?, name, ..Default::default() };
    let job = at.api.unary("suspend the job", request, async |r| at.api.jobs().suspend_job(r).await).await?;
    told(at, job, &args.wait, Waiting::State("SUSPENDED".into())).await
}

pub(super) async fn resume(at: &Invocation, args: JobWaitArgs) -> Result<(), CliError> {
    let name = at.job(&args.job).await?;
    let request = v1::ResumeJobRequest { request_id: new_request_id()?, name, ..Default::default() };
    let job = at.api.unary("resume the job", request, async |r| at.api.jobs().resume_job(r).await).await?;
    told(at, job, &args.wait, Waiting::State("RUNNING".into())).await
}

pub(super) async fn migrate(at: &Invocation, args: MigrateArgs) -> Result<(), CliError> {
    let to_site = site(&args.to)?;
    let name = at.job(&args.job).await?;
    let request = v1::MigrateJobRequest { request_id: new_request_id()?, name, to_site, ..Default::default() };
    let job = at.api.unary("migrate the job", request, async |r| at.api.jobs().migrate_job(r).await).await?;
    let migration = job.migration.clone().unwrap_or_default();
    told(at, job, &args.wait, Waiting::Moved(migration.id)).await
}

/// Says what came of it, waits where asked to, and prints the job for programs.
async fn told(at: &Invocation, job: v1::Job, wait: &WaitFlags, done: Waiting) -> Result<(), CliError> {
    at.console.note(&format!("{} is {}", leaf(&job.name), state_word(&job)));
    let job = finish(at, job, wait, done).await?;
    if at.console.is_human() { Ok(()) } else { at.console.one(&JobView::from(&job)) }
}

async fn finish(at: &Invocation, job: v1::Job, wait: &WaitFlags, done: Waiting) -> Result<v1::Job, CliError> {
    match &wait.wait {
        None => Ok(job),
        Some(condition) => wait_for(at, &job.name, Waiting::of(condition, done), wait.timeout).await,
    }
}
