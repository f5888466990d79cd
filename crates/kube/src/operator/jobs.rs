//! Carries GpuJobs to the controller, and what becomes of them back.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use sluice_proto::v1;
use tonic::Code;

use super::convert::{has_ended, job_spec, job_status};
use super::decide::{DETACHED, JobSight, JobStep, job_standings, job_step};
use super::gate::{Refused, Said, said, timed};
use super::identity::request_id;
use super::index::Acts;
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
    /// Nothing is done for it, and nothing is told of a job: what its namespace may see of one is not its own any more.
    Refused(Standing),
    /// Whom its namespace acts for is not known yet: neither is anything done nor told.
    Waits,
    /// The object may go.
    LetGo,
}

impl Told {
    fn job(&self) -> Option<&v1::Job> {
        match self {
            Self::Job(job) | Self::But(job, _) => job.as_ref(),
            Self::Refused(_) | Self::Waits | Self::LetGo => None,
        }
    }
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
    if matches!(told, Told::LetGo) {
        write::let_go(&api, &*object).await?;
        context.jobs.forget(&uid);
        context.job_objects.remove(&uid);
        return Ok(Action::await_change());
    }
    if matches!(told, Told::Waits) {
        return Ok(Action::requeue(REFUSED));
    }
    let settled = told.job().is_some_and(|job| context.jobs.is_settled(&job.name));
    let status = status_of(&object, &told, settled, &write::now());
    write::status(&api, &*object, object.status.as_ref(), &status).await?;
    Ok(match told {
        Told::But(..) | Told::Refused(_) | Told::Waits => Action::requeue(REFUSED),
        Told::Job(Some(job)) if has_ended(job.state()) && settled => Action::await_change(),
        Told::Job(Some(job)) if has_ended(job.state()) => Action::requeue(SETTLING),
        Told::Job(Some(_)) => Action::requeue(RUNNING),
        Told::Job(None) | Told::LetGo => Action::await_change(),
    })
}

/// The status to write.
fn status_of(object: &GpuJob, told: &Told, settled: bool, now: &Time) -> GpuJobStatus {
    let job = told.job();
    let mut standings = match told {
        Told::Refused(_) => Vec::new(),
        _ => job_standings(object, job, settled),
    };
    if let Told::But(_, other) | Told::Refused(other) = told {
        standings.retain(|standing| standing.kind != other.kind && (job.is_some() || standing.kind != "Suspended"));
        standings.insert(0, other.clone());
    }
    let before = object.status.clone().unwrap_or_default();
    GpuJobStatus {
        observed_generation: object.metadata.generation,
        conditions: conditions(&standings, &before.conditions, object.metadata.generation, now),
        ..match job {
            Some(job) => job_status(job),
            // What was known of it stays.
            None => before,
        }
    }
}

async fn work(object: &GpuJob, uid: &str, context: &Context) -> Result<Told, Error> {
    for _ in 0..STEPS {
        let acts = context.acts(&object.namespace().unwrap_or_default());
        // What is deleted ends whomever its namespace acts for.
        if acts == Acts::Unknown && object.metadata.deletion_timestamp.is_none() {
            return Ok(Told::Waits);
        }
        let bound = acts.bound();
        let mut job = context.jobs.of(uid);
        if let Some(known) = &job {
            job = refresh(known, uid, context).await?;
        }
        let settled = match &job {
            Some(job) => is_settled(job, context).await?,
            None => false,
        };
        let sight = JobSight { object, bound: bound.as_ref(), job: job.as_ref(), settled };
        let answer = match (job_step(&sight), &job) {
            (JobStep::LetGo, _) => return Ok(Told::LetGo),
            (JobStep::Refuse(standing), _) => return Ok(Told::Refused(standing)),
            (JobStep::Submit(project), _) => match submit(object, uid, project, context).await? {
                Some(answer) => answer,
                None => continue,
            },
            (JobStep::Suspend, Some(job)) => change("suspend", object, uid, job, context).await?,
            (JobStep::Resume, Some(job)) => change("resume", object, uid, job, context).await?,
            (JobStep::Cancel, Some(job)) => change("cancel", object, uid, job, context).await?,
            _ => return Ok(Told::Job(job)),
        };
        match answer {
            Said::Yes(now) => {
                context.jobs.note(&now);
                if job.is_none() && own(&now, uid, context).is_none() {
                    let message = format!("its job {} was detached in Sluice", now.name);
                    return Ok(Told::But(None, Standing::new("Accepted", false, DETACHED, message)));
                }
            }
            // It changed since it was looked at, or changed hands: look again.
            Said::No(refused) if matches!(refused.reason.as_str(), "ETAG_MISMATCH" | "MANAGED_ELSEWHERE") => {}
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

/// The job as it is now: what it costs is no event. `None`: it is not this object's any more.
async fn refresh(known: &v1::Job, uid: &str, context: &Context) -> Result<Option<v1::Job>, Error> {
    if has_ended(known.state()) && context.jobs.is_settled(&known.name) {
        return Ok(Some(known.clone()));
    }
    let request = v1::GetJobRequest { name: known.name.clone() };
    Ok(match said(context.gate.jobs().get_job(timed(request)).await)?.found()? {
        Some(job) => {
            context.jobs.note(&job);
            own(&job, uid, context)
        }
        None => Some(known.clone()),
    })
}

/// The job, if the object manages it.
fn own(job: &v1::Job, uid: &str, context: &Context) -> Option<v1::Job> {
    (context.cluster.object(&job.manager) == Some(uid)).then(|| job.clone())
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
        match said(context.gate.jobs().get_job(timed(request)).await)? {
            Said::Yes(last) => context.jobs.settle(&job.name, Some(&last)),
            Said::No(_) => context.jobs.settle(&job.name, None),
        }
    }
    Ok(settled)
}

/// `None`: its namespace acts for another project by now.
async fn submit(
    object: &GpuJob,
    uid: &str,
    project: String,
    context: &Context,
) -> Result<Option<Said<v1::Job>>, Error> {
    let spec = match job_spec(&object.spec) {
        Ok(spec) => spec,
        Err(error) => {
            let (reason, message) = ("INVALID_FIELD".to_owned(), error.to_string());
            return Ok(Some(Said::No(Refused { code: Code::InvalidArgument, reason, message })));
        }
    };
    // Until the job is known: whoever ends a Tenant waits for it, and then sees all its jobs.
    let _submits = context.submits.read().await;
    let bound = context.acts(&object.namespace().unwrap_or_default()).bound();
    if bound.is_none_or(|bound| bound.project_name() != project) {
        return Ok(None);
    }
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
    let answer = said(context.gate.jobs().submit_job(timed(request)).await)?;
    if let Said::Yes(job) = &answer {
        context.jobs.note(job);
    }
    Ok(Some(answer))
}

async fn change(
    what: &str,
    object: &GpuJob,
    uid: &str,
    job: &v1::Job,
    context: &Context,
) -> Result<Said<v1::Job>, Error> {
    order(what, (uid, object.metadata.generation.unwrap_or(0)), job, context).await
}

/// Orders a job of the object of this uid to stop, go on or end, at the version that was looked at. It speaks for the object,
/// whoever manages the job now: what was detached meanwhile refuses.
pub(crate) async fn order(
    what: &str,
    (uid, generation): (&str, i64),
    job: &v1::Job,
    context: &Context,
) -> Result<Said<v1::Job>, Error> {
    let request_id = request_id(uid, what, generation, &job.etag);
    let (name, etag, manager) = (job.name.clone(), job.etag.clone(), context.cluster.manager(uid));
    let mut jobs = context.gate.jobs();
    let answer = match what {
        "suspend" => jobs.suspend_job(timed(v1::SuspendJobRequest { request_id, name, etag, manager })).await,
        "resume" => jobs.resume_job(timed(v1::ResumeJobRequest { request_id, name, etag, manager })).await,
        _ => jobs.cancel_job(timed(v1::CancelJobRequest { request_id, name, etag, manager })).await,
    };
    Ok(said(answer)?)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::super::gate::Gate;
    use super::*;
    use crate::api::{Binding, Tenant, TenantSpec};

    fn mk_object() -> GpuJob {
        let spec = json!({ "command": ["/bin/true"], "resources": { "share": "500m" } });
        let mut object = GpuJob::new("train", serde_json::from_value(spec).unwrap());
        object.metadata.namespace = Some("team-a".to_owned());
        object
    }

    fn mk_job(manager: &str) -> v1::Job {
        let name = "tenants/acme/projects/p/jobs/j".to_owned();
        let state = v1::JobState::Running.into();
        v1::Job { name, state, manager: manager.to_owned(), spent_credits: 9, ..v1::Job::default() }
    }

    #[test]
    fn a_namespace_that_moved_is_told_nothing_new_of_its_former_tenants_job() {
        let now = Time(Timestamp::from_second(1).unwrap());
        let mut object = mk_object();
        let told = Told::Job(Some(mk_job("kubernetes/c1/u")));
        let before = GpuJobStatus { spent_credits: Some(5), ..status_of(&object, &told, false, &now) };
        object.status = Some(before.clone());
        let refused = Told::Refused(Standing::new("Accepted", false, "NamespaceMoved", ""));
        let status = status_of(&object, &refused, false, &now);
        assert_eq!(status.spent_credits, Some(5));
        let reasons: Vec<_> = status.conditions.iter().map(|condition| condition.reason.as_str()).collect();
        assert_eq!(reasons, ["NamespaceMoved"]);
        assert_eq!(GpuJobStatus { conditions: before.conditions.clone(), ..status }, before);
        // The control: its own job is told.
        assert_eq!(status_of(&object, &told, false, &now).spent_credits, Some(9));
    }

    #[tokio::test]
    async fn a_job_that_changed_hands_is_not_the_objects() {
        let context = Context::mk(Gate::mk("127.0.0.1:1"));
        assert!(own(&mk_job("kubernetes/c1/u"), "u", &context).is_some());
        for other in ["", "kubernetes/c1/v", "kubernetes/c2/u", "terraform/7"] {
            assert!(own(&mk_job(other), "u", &context).is_none(), "{other}");
        }
    }

    #[tokio::test]
    async fn a_submit_is_made_where_its_namespace_acts_still_and_is_waited_for() {
        // It takes connections and answers nothing.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let context = Context::mk(Gate::mk(&silent.local_addr().unwrap().to_string()));
        let (object, project) = (mk_object(), "tenants/acme/projects/team-a");
        let submit = || submit(&object, "u", project.to_owned(), &context);
        assert!(submit().await.unwrap().is_none(), "its namespace acts for nobody");
        let binding = Binding { name: "team-a".to_owned(), project: None };
        let mut tenant = Tenant::new("acme", TenantSpec { namespaces: vec![binding] });
        tenant.metadata.uid = Some("t".to_owned());
        context.index(|index| index.apply(&tenant));
        assert!(submit().await.unwrap().is_none(), "Sluice has not answered its Tenant yet");
        assert!(matches!(work(&object, "u", &context).await, Ok(Told::Waits)));
        context.index(|index| index.answer(&tenant, false));
        assert!(submit().await.unwrap().is_none(), "Sluice refused its Tenant");
        assert!(matches!(work(&object, "u", &context).await, Ok(Told::Refused(_))));
        context.index(|index| index.answer(&tenant, true));
        {
            let mut under_way = std::pin::pin!(submit());
            assert!(tokio::time::timeout(Duration::from_millis(200), &mut under_way).await.is_err());
            assert!(context.submits.try_write().is_err(), "whoever ends a Tenant waits for it");
        }
        assert!(context.submits.try_write().is_ok());
        context.index(|index| index.end(&tenant));
        assert!(submit().await.unwrap().is_none());
    }
}
