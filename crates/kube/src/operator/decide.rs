//! What to do next for an object, from what is wanted and what is seen. Pure: the same input, the same decision.

use sluice_proto::v1;
use sluice_types::Reason;

use super::convert::{goes_on, has_ended};
use super::index::Bound;
use crate::api::{GpuJob, Standing};

/// A condition of a GpuJob says so: it was suspended because its manifest asks for it.
pub(crate) const REQUESTED: &str = "Requested";
/// The reason of what was taken away from its object, in Sluice.
pub(crate) const DETACHED: &str = "Detached";

/// What is said of an object whose namespace acts for nobody.
pub(crate) fn not_bound() -> Standing {
    let message =
        "no Tenant that Sluice accepted has this namespace: whoever keeps tenants adds it to spec.namespaces of one";
    Standing::new("Accepted", false, "NamespaceNotBound", message)
}

/// What is known when a GpuJob is looked at.
#[derive(Debug, Clone, Copy)]
pub struct JobSight<'a> {
    /// The object.
    pub object: &'a GpuJob,
    /// Whom its namespace acts for.
    pub bound: Option<&'a Bound>,
    /// The job that this object manages.
    pub job: Option<&'a v1::Job>,
    /// Whether the job's receipt is final.
    pub settled: bool,
}

/// What is done for a GpuJob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobStep {
    /// Nothing but telling.
    Tell,
    /// Submit it in this project.
    Submit(String),
    /// Stop it at a checkpoint.
    Suspend,
    /// Queue it again.
    Resume,
    /// End it for good.
    Cancel,
    /// The object may go: nothing is owed any more.
    LetGo,
    /// Its namespace acts for nobody, or for somebody else than the job's tenant.
    Refuse(Standing),
}

/// Decides on a GpuJob.
#[must_use]
pub fn job_step(sight: &JobSight<'_>) -> JobStep {
    let JobSight { object, bound, job, settled } = *sight;
    if object.metadata.deletion_timestamp.is_some() {
        return match job {
            // Nothing was submitted, or it was so long ago that nothing is kept of it.
            None => JobStep::LetGo,
            Some(job) if goes_on(job.state()) => JobStep::Cancel,
            Some(job) if has_ended(job.state()) && settled => JobStep::LetGo,
            Some(_) => JobStep::Tell,
        };
    }
    let Some(bound) = bound else {
        return JobStep::Refuse(not_bound());
    };
    let elsewhere = |name: &str| !name.starts_with(&format!("{}/jobs/", bound.project_name()));
    let told = object.status.as_ref().and_then(|status| status.job.as_deref());
    let Some(job) = job else {
        // A job that is not there any more is not run again, and no other tenant pays for its second run.
        if told.is_some() {
            let told = told.unwrap_or_default();
            let message = format!("its job {told} is not its own any more: it was detached in Sluice, or is not kept");
            return JobStep::Refuse(Standing::new("Accepted", false, "JobGone", message));
        }
        return if object.spec.suspend { JobStep::Tell } else { JobStep::Submit(bound.project_name()) };
    };
    if elsewhere(&job.name) {
        let message = format!("its job {} belongs to another project than its namespace now", job.name);
        return JobStep::Refuse(Standing::new("Accepted", false, "NamespaceMoved", message));
    }
    run_step(object, job)
}

/// Decides between running and not, for a job of the tenant that the namespace acts for.
fn run_step(object: &GpuJob, job: &v1::Job) -> JobStep {
    use v1::JobState as State;
    let by_user = job.reason == Reason::SuspendedByUser.as_str();
    match (object.spec.suspend, job.state()) {
        (true, State::Pending | State::Running) => JobStep::Suspend,
        // What would resume by itself is made to stay.
        (true, State::Suspended | State::Suspending) if job.reason == "QUOTA_RECLAIMED" => JobStep::Suspend,
        (false, State::Suspended) if by_user => JobStep::Resume,
        // Whoever asked for it to stop and then to go on has seen why it had stopped.
        (false, State::Suspended) if was_requested(object) => JobStep::Resume,
        _ => JobStep::Tell,
    }
}

/// Whether the status tells that the manifest had asked for the suspension.
fn was_requested(object: &GpuJob) -> bool {
    let conditions = object.status.iter().flat_map(|status| &status.conditions);
    conditions.filter(|condition| condition.type_ == "Suspended").any(|condition| condition.reason == REQUESTED)
}

/// The conditions of a GpuJob, from its job.
#[must_use]
pub fn job_standings(object: &GpuJob, job: Option<&v1::Job>, settled: bool) -> Vec<Standing> {
    use v1::JobState as State;
    let Some(job) = job else {
        let message = "it is submitted when spec.suspend is false";
        return vec![
            Standing::new("Accepted", true, "Waits", "the manifest can be submitted"),
            Standing::new("Suspended", true, REQUESTED, message),
        ];
    };
    let state = job.state();
    let reason = |otherwise: &str| match job.reason.as_str() {
        "" => otherwise.to_owned(),
        reason => super::gate::camel(reason),
    };
    let suspended = match (state, object.spec.suspend) {
        (State::Suspended, true) => Standing::new("Suspended", true, REQUESTED, job.message.clone()),
        (State::Suspended, false) => Standing::new("Suspended", true, &reason("Suspended"), job.message.clone()),
        (State::Suspending, _) => Standing::new("Suspended", false, "Suspending", "it stops at its next checkpoint"),
        _ => Standing::new("Suspended", false, "NotSuspended", ""),
    };
    let running = state == State::Running;
    let why = if running { "Running".to_owned() } else { reason(super::convert::phase(state)) };
    let settlement = match (has_ended(state), settled) {
        (false, _) => Standing::new("Settled", false, "NotEnded", "it is billed while it runs"),
        (true, false) => Standing::new("Settled", false, "WindowsOutstanding", "the last windows are not in yet"),
        (true, true) => Standing::new("Settled", true, "ReceiptFinal", "nothing more is billed"),
    };
    let failed = matches!(state, State::Failed | State::Cancelled);
    vec![
        Standing::new("Accepted", true, "Submitted", job.name.clone()),
        Standing::new("Running", running, &why, if running { String::new() } else { job.message.clone() }),
        suspended,
        Standing::new("Complete", state == State::Succeeded, super::convert::phase(state), ""),
        Standing::new(
            "Failed",
            failed,
            &reason(super::convert::phase(state)),
            if failed { job.message.clone() } else { String::new() },
        ),
        settlement,
    ]
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::api::{Condition, GpuJobStatus, conditions};

    fn mk_object(suspend: bool) -> GpuJob {
        let spec = json!({ "suspend": suspend, "command": ["/bin/true"], "resources": { "share": "500m" } });
        GpuJob::new("train", serde_json::from_value(spec).unwrap())
    }

    fn mk_bound(tenant: &str) -> Bound {
        Bound { tenant: tenant.to_owned(), project: "p".to_owned() }
    }

    fn mk_job(state: v1::JobState, reason: &str) -> v1::Job {
        let name = "tenants/acme/projects/p/jobs/j".to_owned();
        v1::Job { name, state: state.into(), reason: reason.to_owned(), ..v1::Job::default() }
    }

    fn step(object: &GpuJob, bound: Option<&Bound>, job: Option<&v1::Job>, settled: bool) -> JobStep {
        job_step(&JobSight { object, bound, job, settled })
    }

    fn now() -> Time {
        Time(Timestamp::from_second(1).unwrap())
    }

    #[test]
    fn a_job_is_submitted_where_its_namespace_is_bound() {
        let (run, wait, acme) = (mk_object(false), mk_object(true), mk_bound("acme"));
        assert_eq!(step(&run, Some(&acme), None, false), JobStep::Submit("tenants/acme/projects/p".into()));
        assert_eq!(step(&wait, Some(&acme), None, false), JobStep::Tell);
        let JobStep::Refuse(why) = step(&run, None, None, false) else { panic!("not bound") };
        assert_eq!(why.reason, "NamespaceNotBound");
    }

    #[test]
    fn a_namespace_that_moved_acts_on_no_job_of_its_former_tenant() {
        use v1::JobState as State;
        let beta = mk_bound("beta");
        for suspend in [true, false] {
            for state in [State::Pending, State::Running, State::Suspended] {
                let job = mk_job(state, "SUSPENDED_BY_USER");
                let JobStep::Refuse(why) = step(&mk_object(suspend), Some(&beta), Some(&job), false) else {
                    panic!("{state:?}")
                };
                assert_eq!(why.reason, "NamespaceMoved");
            }
        }
        // Nor does it run a second one at the new tenant's cost.
        let mut known = mk_object(false);
        known.status = Some(GpuJobStatus { job: Some(mk_job(State::Running, "").name), ..GpuJobStatus::default() });
        assert!(matches!(step(&known, Some(&beta), None, false), JobStep::Refuse(_)));
    }

    #[test]
    fn drift_is_repaired_and_what_stopped_for_money_is_not_pushed() {
        use v1::JobState as State;
        let acme = mk_bound("acme");
        for (suspend, state, reason, wanted) in [
            (true, State::Running, "", JobStep::Suspend),
            (true, State::Pending, "", JobStep::Suspend),
            (true, State::Starting, "", JobStep::Tell),
            (true, State::Suspended, "SUSPENDED_BY_USER", JobStep::Tell),
            (true, State::Suspended, "QUOTA_RECLAIMED", JobStep::Suspend),
            (false, State::Suspended, "SUSPENDED_BY_USER", JobStep::Resume),
            (false, State::Suspended, "SUSPENDED_FOR_MONEY", JobStep::Tell),
            (false, State::Suspended, "QUOTA_RECLAIMED", JobStep::Tell),
            (false, State::Running, "", JobStep::Tell),
            (false, State::Failed, "", JobStep::Tell),
        ] {
            let job = mk_job(state, reason);
            assert_eq!(step(&mk_object(suspend), Some(&acme), Some(&job), false), wanted, "{state:?} {reason}");
        }
        let job = mk_job(State::Suspended, "SUSPENDED_FOR_MONEY");
        let mut seen = mk_object(true);
        let told: Vec<Condition> = conditions(&job_standings(&seen, Some(&job), false), &[], None, &now());
        seen.status = Some(GpuJobStatus { conditions: told, ..GpuJobStatus::default() });
        seen.spec.suspend = false;
        assert_eq!(step(&seen, Some(&acme), Some(&job), false), JobStep::Resume);
    }

    #[test]
    fn an_object_goes_when_its_job_has_ended_and_is_settled() {
        use v1::JobState as State;
        let mut object = mk_object(false);
        object.metadata.deletion_timestamp = Some(now());
        let (running, ended) = (mk_job(State::Running, ""), mk_job(State::Cancelled, ""));
        let cancelling = mk_job(State::Cancelling, "");
        // Whoever its namespace acts for now: the job is this object's, and only it can end it.
        for bound in [None, Some(&mk_bound("beta"))] {
            assert_eq!(step(&object, bound, Some(&running), false), JobStep::Cancel);
            // One end is ordered once, though the job's version goes on.
            assert_eq!(step(&object, bound, Some(&cancelling), false), JobStep::Tell);
            assert_eq!(step(&object, bound, Some(&ended), false), JobStep::Tell);
            assert_eq!(step(&object, bound, Some(&ended), true), JobStep::LetGo);
            assert_eq!(step(&object, bound, None, false), JobStep::LetGo);
        }
    }
}
