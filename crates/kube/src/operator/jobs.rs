//! Carries GpuJobs to the controller, and what becomes of them back.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt as _;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use sluice_proto::v1;
use tonic::Code;

use super::convert::{has_ended, job_spec, job_status};
use super::decide::{JobSight, JobStep, job_standings, job_step};
use super::gate::{Refused, Said, said, timed};
use super::identity::request_id;
use super::{Context, Error, write};
use crate::api::{GpuJob, GpuJobStatus, Standing, conditions};

/// Steps at one look: enough for finding that the job has changed meanwhile, and trying again.
const STEPS: u32 = 4;
/// A refusal may be of something that an admin changes.
const REFUSED: Duration = Duration::from_secs(20);
/// What a running job costs is read so often; the last windows of an ended one more often.
const RUNNING: Duration = Duration::from_secs(10);
const SETTLING: Duration = Duration::from_secs(1);

/// What came of one look.
enum Told {
    /// The job as it is, if there is one.
    Job(Option<v1::Job>),
    /// With a condition that is other than the job says.
    But(Option<v1::Job>, Standing),
    /// The object may go.
    LetGo,
}

/// Looks at one GpuJob and does what is next.
pub(crate) async fn reconcile(object: Arc<GpuJob>, context: Arc<Context>) -> Result<Action, Error> {
    let uid = object.uid().unwrap_or_default();
    context.job_objects.insert(&uid, ObjectRef::from_obj(&*object));
    let api = write::api_of(&context.client, &*object);
    let deleting = object.metadata.deletion_timestamp.is_some();
    if !write::is_kept(&*object) {
        if deleting {
            return Ok(Action::await_change());
        }
        write::keep(&api, &*object).await?;
    }
    let told = work(&object, &uid, &context).await?;
    let (job, other) = match told {
        Told::LetGo => {
            write::let_go(&api, &*object).await?;
            context.jobs.forget(&uid);
            context.job_objects.remove(&uid);
            return Ok(Action::await_change());
        }
        Told::Job(job) => (job, None),
        Told::But(job, standing) => (job, Some(standing)),
    };
    let settled = job.as_ref().is_some_and(|job| context.jobs.is_settled(&job.name));
    let mut standings = job_standings(&object, job.as_ref(), settled);
    if let Some(other) = &other {
        standings.retain(|standing| standing.kind != other.kind && (job.is_some() || standing.kind != "Suspended"));
        standings.insert(0, other.clone());
    }
    let before = object.status.clone().unwrap_or_default();
    let status = GpuJobStatus {
        observed_generation: object.metadata.generation,
        conditions: conditions(&standings, &before.conditions, object.metadata.generation, &write::now()),
        ..match &job {
            Some(job) => job_status(job),
            // What was known of it stays.
            None => before,
        }
    };
    write::status(&api, &*object, object.status.as_ref(), &status).await?;
    Ok(match job {
        _ if other.is_some() => Action::requeue(REFUSED),
        Some(job) if has_ended(job.state()) && settled => Action::await_change(),
        Some(job) if has_ended(job.state()) => Action::requeue(SETTLING),
        Some(_) => Action::requeue(RUNNING),
        None => Action::await_change(),
    })
}

async fn work(object: &GpuJob, uid: &str, context: &Context) -> Result<Told, Error> {
    let bound = context.bound(&object.namespace().unwrap_or_default());
    for _ in 0..STEPS {
        let mut job = context.jobs.of(uid);
        if let Some(known) = &job {
            job = Some(refresh(known, context).await?);
        }
        let settled = match &job {
            Some(job) => is_settled(job, context).await?,
            None => false,
        };
        let sight = JobSight { object, bound: bound.as_ref(), job: job.as_ref(), settled };
        let answer = match (job_step(&sight), &job) {
            (JobStep::LetGo, _) => return Ok(Told::LetGo),
            (JobStep::Refuse(standing), _) => return Ok(Told::But(job, standing)),
            (JobStep::Submit(project), _) => submit(object, uid, project, context).await?,
            (JobStep::Suspend, Some(job)) => change("suspend", object, uid, job, context).await?,
            (JobStep::Resume, Some(job)) => change("resume", object, uid, job, context).await?,
            (JobStep::Cancel, Some(job)) => change("cancel", object, uid, job, context).await?,
            _ => return Ok(Told::Job(job)),
        };
        match answer {
            Said::Yes(job) => drop(context.jobs.note(&job)),
            // It changed since it was looked at: look again.
            Said::No(refused) if refused.reason == "ETAG_MISMATCH" => {}
            Said::No(refused) if refused.reason == "WRONG_STATE" && job.as_ref().is_some_and(is_passing) => {
                return Ok(Told::Job(job));
            }
            Said::No(refused) => {
                let kind = if job.is_some() { "Suspended" } else { "Accepted" };
                return Ok(Told::But(job, Standing::new(kind, false, &refused.camel(), refused.message)));
            }
        }
    }
    Ok(Told::Job(context.jobs.of(uid)))
}

/// A state that a job leaves by itself.
fn is_passing(job: &v1::Job) -> bool {
    use v1::JobState as State;
    matches!(job.state(), State::Starting | State::Suspending | State::Migrating | State::Cancelling)
}

/// The job as it is now: what it costs is no event.
async fn refresh(known: &v1::Job, context: &Context) -> Result<v1::Job, Error> {
    if has_ended(known.state()) && context.jobs.is_settled(&known.name) {
        return Ok(known.clone());
    }
    let request = v1::GetJobRequest { name: known.name.clone() };
    match said(context.gate.jobs().get_job(timed(request)).await)? {
        Said::Yes(job) => {
            context.jobs.note(&job);
            Ok(job)
        }
        Said::No(_) => Ok(known.clone()),
    }
}

/// Whether everything of an ended job is billed.
pub(crate) async fn is_settled(job: &v1::Job, context: &Context) -> Result<bool, Error> {
    if !has_ended(job.state()) {
        return Ok(false);
    }
    if context.jobs.is_settled(&job.name) {
        return Ok(true);
    }
    let request = v1::GetReceiptRequest { job: job.name.clone() };
    let settled = match said(context.gate.money().get_receipt(timed(request)).await)? {
        Said::Yes(receipt) => receipt.r#final,
        // What is not kept any more is owed by nobody.
        Said::No(Refused { code: Code::NotFound, .. }) => true,
        Said::No(_) => false,
    };
    if settled {
        // Its last windows may have come after it was read.
        let request = v1::GetJobRequest { name: job.name.clone() };
        if let Said::Yes(job) = said(context.gate.jobs().get_job(timed(request)).await)? {
            context.jobs.note(&job);
        }
        context.jobs.settle(&job.name);
    }
    Ok(settled)
}

async fn submit(object: &GpuJob, uid: &str, project: String, context: &Context) -> Result<Said<v1::Job>, Error> {
    let spec = match job_spec(&object.spec) {
        Ok(spec) => spec,
        Err(error) => {
            let (reason, message) = ("INVALID_FIELD".to_owned(), error.to_string());
            return Ok(Said::No(Refused { code: Code::InvalidArgument, reason, message }));
        }
    };
    let name = object.name_any();
    let request = v1::SubmitJobRequest {
        // What is submitted cannot change, so it is one request whatever the generation is.
        request_id: request_id(uid, "submit", 0, &project),
        parent: project,
        display_name: if name.parse::<sluice_types::Name>().is_ok() { name } else { String::new() },
        spec: Some(spec),
        validate_only: false,
        wait_for_decision: false,
        manager: context.cluster.manager(uid),
    };
    Ok(said(context.gate.jobs().submit_job(timed(request)).await)?)
}

async fn change(
    what: &str,
    object: &GpuJob,
    uid: &str,
    job: &v1::Job,
    context: &Context,
) -> Result<Said<v1::Job>, Error> {
    let id = request_id(uid, what, object.metadata.generation.unwrap_or(0), &job.etag);
    order(what, id, job, context).await
}

/// Orders a job to stop, go on or end, at the version that was looked at.
pub(crate) async fn order(
    what: &str,
    request_id: String,
    job: &v1::Job,
    context: &Context,
) -> Result<Said<v1::Job>, Error> {
    let (name, etag, manager) = (job.name.clone(), job.etag.clone(), job.manager.clone());
    let mut jobs = context.gate.jobs();
    let answer = match what {
        "suspend" => jobs.suspend_job(timed(v1::SuspendJobRequest { request_id, name, etag, manager })).await,
        "resume" => jobs.resume_job(timed(v1::ResumeJobRequest { request_id, name, etag, manager })).await,
        _ => jobs.cancel_job(timed(v1::CancelJobRequest { request_id, name, etag, manager })).await,
    };
    Ok(said(answer)?)
}
