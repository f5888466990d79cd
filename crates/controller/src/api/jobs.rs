//! `JobService`: what users do with jobs, and see of them.

use std::sync::Arc;
use std::time::Duration;

use sluice_lifecycle::model::{Checkpoint, Event, Job, JobKind, JobState};
use sluice_lifecycle::{Caller, Command, Refusal, UserCommand};
use sluice_plan::{Change, ChangeKind, Explanation};
use sluice_proto::convert::{self, SiteNames};
use sluice_proto::error::{refuse, refuse_field, status};
use sluice_proto::v1;
use sluice_proto::v1::job_service_server::JobService;
use sluice_store::{EventFilter, JobFilter};
use sluice_types::{Bytes, CheckpointId, JobId, Name, Reason, SiteId};
use tonic::{Request, Response, Status, Streaming};

use super::names::Parent;
use super::{Api, Mutation, digest, not_found, page, refused, store_status};
use crate::link::Answers;
use crate::principal::Principal;

const MAX_BATCH: usize = 1000;
/// How long a submit waits for the first decision; after it the job is answered as it is.
const DECISION: Duration = Duration::from_secs(10);

/// One checked submit.
struct Draft {
    command: UserCommand,
    preview: Job,
}

impl Api {
    /// Checks a submit as far as it can be checked without the writer.
    async fn draft(
        &self,
        who: &Principal,
        message: v1::SubmitJobRequest,
        caller: Option<&Caller>,
    ) -> Result<Draft, Status> {
        let project = self.project(who, "parent", &message.parent)?;
        let name: Option<Name> = match message.display_name.as_str() {
            "" => None,
            text => Some(Self::fresh_name("display_name", text)?),
        };
        let spec = message.spec.ok_or_else(|| refused(convert::missing("spec")))?;
        let spec = {
            let directory = self.directory.read();
            convert::job_spec(spec, &*directory).map_err(refused)?
        };
        if spec.kind != JobKind::Batch {
            return Err(refuse_field("spec.kind", "batch jobs are submitted, rentals are ordered"));
        }
        sluice_lifecycle::validate::spec(&spec).map_err(refused)?;
        let spec = Arc::new(spec);
        let preview = sluice_lifecycle::draft(&project, name.clone(), Arc::clone(&spec), who.key.id, self.clock.now());
        if message.validate_only {
            // What a submit is told by the writer itself.
            let caller = Caller::of(who.key.id);
            let check = UserCommand::Validate(project.id, Arc::clone(&spec));
            self.writer.submit(Command::User(caller, check)).await.map_err(refused)?;
        }
        let view = sluice_lifecycle::draft_view(&preview, &project);
        // A retry is answered as the first try was, whatever became of the fleet meanwhile: the writer remembers it.
        if let Err(never) = self.planner.admissible(view).await
            && self.remembered(caller).await?.is_none()
        {
            let reason = never.reason.unwrap_or(Reason::NeverFits);
            return Err(status(&Refusal { field: Some("spec".to_owned()), ..Refusal::new(reason, never.message) }));
        }
        let command = UserCommand::Submit { project: project.id, name, spec };
        Ok(Draft { command, preview })
    }

    async fn submit(&self, who: &Principal, message: v1::SubmitJobRequest) -> Result<v1::Job, Status> {
        who.speaks_for(&message.manager)?;
        if message.validate_only {
            let draft = self.draft(who, message, None).await?;
            return Ok(self.show_brief(&draft.preview, None));
        }
        let means = digest("sluice.v1.JobService/SubmitJob", &message);
        let waits = message.wait_for_decision;
        let mut caller = who.caller(&message.request_id, means)?;
        message.manager.clone_into(&mut caller.manager);
        let draft = self.draft(who, message, Some(&caller)).await?;
        let command = Command::User(caller, draft.command);
        if !waits {
            let answer = self.writer.submit(command).await.map_err(refused)?;
            return self.submitted(answer).await;
        }
        let (answer, decided) = self.writer.submit_and_decide(command).await.map_err(refused)?;
        if answer.replayed {
            return self.submitted(answer).await;
        }
        match tokio::time::timeout(DECISION, decided).await {
            Ok(Ok(job)) => Ok(self.show_brief(&job, None)),
            _ => self.submitted(answer).await,
        }
    }

    async fn submitted(&self, answer: sluice_lifecycle::Answer) -> Result<v1::Job, Status> {
        match answer.job {
            Some(job) => Ok(self.show_brief(&job, None)),
            None => {
                let id: JobId = answer.object.parse().map_err(|_| not_found("job"))?;
                let job = self.store.get_job(id).await.map_err(store_status)?.ok_or_else(|| not_found("job"))?;
                self.show_job(&job).await
            }
        }
    }

    /// Finds the job, checks the etag's form, sends the command and answers with the job as it is then.
    async fn change_job<M: prost::Message>(
        &self,
        mutation: Mutation<'_, M>,
        (name, etag, manager): (&str, &str, &str),
        command: impl FnOnce(JobId, Option<u64>) -> UserCommand,
    ) -> Result<Response<v1::Job>, Status> {
        mutation.who.speaks_for(manager)?;
        let job = self.job(mutation.who, "name", name).await?;
        let version = match etag {
            "" => None,
            text => Some(text.parse().map_err(|_| refuse_field("etag", "an etag from a job that you read"))?),
        };
        let answer = self.change_as(mutation, manager, command(job.id, version)).await?;
        let row = match answer.job {
            Some(job) => *job,
            None => self.store.get_job(job.id).await.map_err(store_status)?.ok_or_else(|| not_found("job"))?,
        };
        Ok(Response::new(self.show_job(&row).await?))
    }

    /// The filter that parent and filter text ask for, within what the caller may see.
    pub(super) async fn job_filter(
        &self,
        who: &Principal,
        parent: &str,
        text: &str,
    ) -> Result<(JobFilter, Option<JobId>), Status> {
        let mut filter = parse_filter(text)?;
        // Whatever was asked, a key sees its own tenant and project only.
        (filter.tenant, filter.project) = (who.key.tenant, who.key.project);
        let mut only = None;
        match self.parent(who, "parent", parent).await? {
            Parent::All => {}
            Parent::Tenant(tenant) => filter.tenant = Some(tenant.id),
            Parent::Project(project) => {
                (filter.tenant, filter.project) = (Some(project.tenant), Some(project.id));
            }
            Parent::Job(job) => only = Some(job.id),
        }
        Ok((filter, only))
    }
}

/// Terms joined by AND: `state=RUNNING`, `display_name=x`, `labels.k=v`.
fn parse_filter(text: &str) -> Result<JobFilter, Status> {
    let mut filter = JobFilter::default();
    if text.len() > 4096 {
        return Err(refuse_field("filter", "at most 4096 bytes"));
    }
    // No name or label has them, and databases differ in what they make of them.
    if text.contains(char::is_control) {
        return Err(refuse_field("filter", "no control characters"));
    }
    for term in text.split(" AND ").map(str::trim).filter(|term| !term.is_empty()) {
        let wrong = || refuse_field("filter", "terms are state=…, display_name=… or labels.key=…, joined by AND");
        let (field, value) = term.split_once('=').ok_or_else(wrong)?;
        let (field, value) = (field.trim(), value.trim().trim_matches('"'));
        match field {
            "state" => {
                let name = value.to_ascii_lowercase();
                let state = JobState::ALL.into_iter().find(|state| state.as_str() == name);
                filter.states.push(state.ok_or_else(|| refuse_field("filter", "an unknown state"))?);
            }
            "display_name" => filter.name = Some(Api::fresh_name("filter", value)?),
            _ => {
                let key = field.strip_prefix("labels.").ok_or_else(wrong)?;
                filter.labels.push((key.to_owned(), value.to_owned()));
            }
        }
    }
    if filter.labels.len() > 32 || filter.states.len() > 10 {
        return Err(refuse_field("filter", "too many terms"));
    }
    Ok(filter)
}

#[tonic::async_trait]
impl JobService for Api {
    type WatchJobsStream = Answers<v1::WatchJobsResponse>;
    type StreamLogsStream = Answers<v1::StreamLogsResponse>;
    type DownloadOutputsStream = Answers<v1::DownloadOutputsResponse>;

    async fn submit_job(&self, request: Request<v1::SubmitJobRequest>) -> Result<Response<v1::Job>, Status> {
        let who = self.who(&request, "sluice.v1.JobService/SubmitJob")?;
        Ok(Response::new(self.submit(&who, request.into_inner()).await?))
    }

    async fn batch_submit_jobs(
        &self,
        request: Request<v1::BatchSubmitJobsRequest>,
    ) -> Result<Response<v1::BatchSubmitJobsResponse>, Status> {
        let who = self.who(&request, "sluice.v1.JobService/BatchSubmitJobs")?;
        let message = request.into_inner();
        if message.requests.len() > MAX_BATCH {
            return Err(refuse(Reason::TooLarge, format!("at most {MAX_BATCH} jobs in one batch")));
        }
        let parent = message.requests.first().map(|first| first.parent.clone()).unwrap_or_default();
        if message.requests.iter().any(|one| one.parent != parent) {
            return Err(refuse_field("requests.parent", "all jobs of a batch have one parent"));
        }
        // All at once, so that they share the writer's commits.
        let results = futures::future::join_all(message.requests.into_iter().map(|one| self.submit(&who, one))).await;
        let results = results.into_iter().map(|result| v1::SubmitResult {
            result: Some(match result {
                Ok(job) => v1::submit_result::Result::Job(job),
                Err(status) => v1::submit_result::Result::Refusal(refusal(&status)),
            }),
        });
        Ok(Response::new(v1::BatchSubmitJobsResponse { results: results.collect() }))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::Job>, Status> {
        let who = self.who(&request, "sluice.v1.JobService/GetJob")?;
        let job = self.job(&who, "name", &request.into_inner().name).await?;
        Ok(Response::new(self.show_job(&job).await?))
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsResponse>, Status> {
        let who = self.who(&request, "sluice.v1.JobService/ListJobs")?;
        let message = request.into_inner();
        let (filter, only) = self.job_filter(&who, &message.parent, &message.filter).await?;
        if only.is_some() {
            return Err(refuse_field("parent", "a tenant or project"));
        }
        let page = self.page::<JobId>("jobs", message.page_size, &message.page_token)?;
        let rows = self.store.list_jobs(&filter, page).await.map_err(store_status)?;
        let next_page_token = self.next_token("jobs", page::last(&rows, page.limit, |row| row.id));
        let jobs = self.show_placed(&rows).await?;
        Ok(Response::new(v1::ListJobsResponse { jobs, next_page_token }))
    }

    async fn watch_jobs(
        &self,
        request: Request<v1::WatchJobsRequest>,
    ) -> Result<Response<Self::WatchJobsStream>, Status> {
        let who = self.who(&request, "sluice.v1.JobService/WatchJobs")?;
        let message = request.into_inner();
        self.watch(&who, message).await.map(Response::new)
    }

    async fn cancel_job(&self, request: Request<v1::CancelJobRequest>) -> Result<Response<v1::Job>, Status> {
        let method = "sluice.v1.JobService/CancelJob";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        self.change_job(mutation, (&message.name, &message.etag, &message.manager), UserCommand::Cancel).await
    }

    async fn suspend_job(&self, request: Request<v1::SuspendJobRequest>) -> Result<Response<v1::Job>, Status> {
        let method = "sluice.v1.JobService/SuspendJob";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        self.change_job(mutation, (&message.name, &message.etag, &message.manager), UserCommand::Suspend).await
    }

    async fn resume_job(&self, request: Request<v1::ResumeJobRequest>) -> Result<Response<v1::Job>, Status> {
        let method = "sluice.v1.JobService/ResumeJob";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        self.change_job(mutation, (&message.name, &message.etag, &message.manager), UserCommand::Resume).await
    }

    async fn migrate_job(&self, request: Request<v1::MigrateJobRequest>) -> Result<Response<v1::Job>, Status> {
        let method = "sluice.v1.JobService/MigrateJob";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let site = self.site("to_site", &message.to_site)?.id;
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        let command = |job, version| UserCommand::Migrate(job, site, version);
        self.change_job(mutation, (&message.name, &message.etag, &message.manager), command).await
    }

    async fn explain_job(
        &self,
        request: Request<v1::ExplainJobRequest>,
    ) -> Result<Response<v1::ExplainJobResponse>, Status> {
        let who = self.who(&request, "sluice.v1.JobService/ExplainJob")?;
        let job = self.job(&who, "name", &request.into_inner().name).await?;
        let Some(explanation) = self.planner.explain(job.id).await.map_err(refused)? else {
            let message = format!("the job does not wait for a placement: it is {}", job.state.as_str());
            let reason = job.reason.map(|reason| reason.to_string()).unwrap_or_default();
            return Ok(Response::new(v1::ExplainJobResponse { reason, message, ..v1::ExplainJobResponse::default() }));
        };
        let directory = self.directory.read();
        let tenant = directory.tenant_path(job.tenant);
        Ok(Response::new(explained(explanation, &job, &tenant, &*directory)))
    }

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<v1::ListEventsResponse>, Status> {
        let who = self.who(&request, "sluice.v1.JobService/ListEvents")?;
        let message = request.into_inner();
        let job = self.job(&who, "parent", &message.parent).await?;
        let page = self.page::<u64>("events", message.page_size, &message.page_token)?;
        let rows = self.store.list_events(EventFilter::of_job(job.id), page).await.map_err(store_status)?;
        let next_page_token = self.next_token("events", page::last(&rows, page.limit, |row: &Event| row.sequence));
        let parent = self.directory.read().project_path(job.project);
        let events = rows.iter().map(|row| convert::event(row, &parent)).collect();
        Ok(Response::new(v1::ListEventsResponse { events, next_page_token }))
    }

    async fn list_checkpoints(
        &self,
        request: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        let who = self.who(&request, "sluice.v1.JobService/ListCheckpoints")?;
        let message = request.into_inner();
        let job = self.job(&who, "parent", &message.parent).await?;
        let page = self.page::<CheckpointId>("checkpoints", message.page_size, &message.page_token)?;
        let rows = self.store.checkpoints_of(job.id, page).await.map_err(store_status)?;
        let next_page_token = self.next_token("checkpoints", page::last(&rows, page.limit, |row| row.id));
        let durable: Vec<_> = rows.iter().map(|row: &Checkpoint| self.is_durable(&job, row)).collect();
        let directory = self.directory.read();
        let rows = rows.iter().zip(durable).filter(|(row, _)| row.is_complete());
        let checkpoints = rows.map(|(row, durable)| convert::checkpoint(row, durable, &*directory)).collect();
        Ok(Response::new(v1::ListCheckpointsResponse { checkpoints, next_page_token }))
    }

    async fn stream_logs(
        &self,
        request: Request<v1::StreamLogsRequest>,
    ) -> Result<Response<Self::StreamLogsStream>, Status> {
        let who = self.who(&request, "sluice.v1.JobService/StreamLogs")?;
        let message = request.into_inner();
        let job = self.job(&who, "name", &message.name).await?;
        Ok(Response::new(self.logs(who, job, message)))
    }

    async fn upload_blob(
        &self,
        request: Request<Streaming<v1::UploadBlobRequest>>,
    ) -> Result<Response<v1::UploadBlobResponse>, Status> {
        let who = self.who(&request, "sluice.v1.JobService/UploadBlob")?;
        self.upload(&who, request.into_inner()).await.map(Response::new)
    }

    async fn download_outputs(
        &self,
        request: Request<v1::DownloadOutputsRequest>,
    ) -> Result<Response<Self::DownloadOutputsStream>, Status> {
        let who = self.who(&request, "sluice.v1.JobService/DownloadOutputs")?;
        let message = request.into_inner();
        let job = self.job(&who, "name", &message.name).await?;
        self.outputs(who, &job, message.rank).await.map(Response::new)
    }
}

fn refusal(status: &Status) -> v1::Refusal {
    use tonic_types::StatusExt as _;
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.clone()).unwrap_or_default();
    let field = details.bad_request().and_then(|bad| bad.field_violations.first()).map(|one| one.field.clone());
    v1::Refusal { reason, message: status.message().to_owned(), field: field.unwrap_or_default() }
}

fn explained(explanation: Explanation, job: &Job, tenant: &str, sites: &impl SiteNames) -> v1::ExplainJobResponse {
    let memory = job.spec.resources.memory.get();
    // What would not be taken at submit is no advice.
    let possible = |change: &&Change| {
        let left = memory.saturating_sub(u64::try_from(change.amount).unwrap_or(u64::MAX));
        change.kind != ChangeKind::LessMemory || Bytes::new(left) >= sluice_lifecycle::validate::LEAST_MEMORY
    };
    let message = match (&explanation.reason, explanation.never) {
        (None, _) => "it will be placed at the next decision".to_owned(),
        (Some(_), true) => format!("it can never run on what there is: {}", explanation.message),
        (Some(_), false) => explanation.message,
    };
    v1::ExplainJobResponse {
        reason: explanation.reason.map(|reason| reason.to_string()).unwrap_or_default(),
        message,
        changes: explanation.changes.iter().filter(possible).map(|change| described(change, sites)).collect(),
        ahead: explanation.ahead,
        quota: explanation.quota.map(|short| v1::QuotaShortage {
            quota: format!(
                "{tenant}/quotas/{}/{}",
                short.site_name.as_ref().map_or("-", sluice_types::Name::as_str),
                short.key.class
            ),
            level: short.level.as_str().to_owned(),
            asked_milli: short.asked,
            missing_milli: short.missing,
        }),
    }
}

fn described(change: &Change, sites: &impl SiteNames) -> v1::Change {
    let amount = change.amount;
    let (what, message) = match change.kind {
        ChangeKind::LessMilli => ("milli", format!("ask for {amount}m less per task")),
        ChangeKind::LessMemory => ("memory_bytes", format!("ask for {amount} bytes less memory per task")),
        ChangeKind::LessHostCores => ("host_core_milli", format!("ask for {amount}m fewer host cores per task")),
        ChangeKind::LessHostMemory => {
            ("host_memory_bytes", format!("ask for {amount} bytes less host memory per task"))
        }
        ChangeKind::FewerTasks => ("tasks", format!("ask for {amount} tasks fewer")),
        ChangeKind::MoreFunds => ("funds", format!("deposit {}", sluice_types::Credits::new(amount))),
        ChangeKind::MoreBudget => ("budget", format!("raise the budget by {}", sluice_types::Credits::new(amount))),
        ChangeKind::MoreQuota => ("quota", format!("a platform admin raises its tenant's nominal quota by {amount}m")),
        ChangeKind::MoreBorrowing => ("borrow", format!("a platform admin lets its tenant borrow {amount}m more")),
        ChangeKind::OtherSite => {
            let site = u64::try_from(amount).map(SiteId::from_raw).map(|site| sites.name(site)).unwrap_or_default();
            ("site", format!("allow the site {site}"))
        }
        ChangeKind::OpenNodes => {
            ("node", format!("{amount} nodes that are lost, cordoned or without a vault come back"))
        }
    };
    v1::Change { what: what.to_owned(), amount, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_has_no_characters_that_a_database_chokes_on() {
        assert_eq!(parse_filter("labels.team=a b AND state=RUNNING").unwrap().labels.len(), 1);
        for text in ["labels.team=a\0b", "labels.te\0am=a", "labels.team=\u{1b}[1m", "state=RUNNING\n"] {
            assert_eq!(parse_filter(text).unwrap_err().code(), tonic::Code::InvalidArgument, "{text:?}");
        }
    }
}
