//! `EndpointService`: served models.

use sluice_lifecycle::model::{Endpoint, InferenceRequest, Job, JobKind, Project, RequestOutcome};
use sluice_lifecycle::{EndpointChange, NewEndpoint, Refusal, UserCommand};
use sluice_plan::{JobView, Purpose};
use sluice_proto::convert::{self, SiteNames};
use sluice_proto::error::refuse_field;
use sluice_proto::v1;
use sluice_proto::v1::endpoint_service_server::EndpointService;
use sluice_types::{EndpointId, JobId, Nanos, Reason, RequestId, SiteId, TaskResources};
use tonic::{Request, Response, Status};

use super::{Api, Mutation, digest, not_found, page, refused, store_status};
use crate::principal::Principal;

const DEFAULT_SEQUENCES: u32 = 8;
const DEFAULT_IDLE: Nanos = Nanos::from_secs(60);
/// Sites that an endpoint may name.
const MAX_SITES: usize = 64;

impl Api {
    /// "tenants/{tenant}/projects/{project}/endpoints/{endpoint}".
    async fn endpoint(&self, who: &Principal, field: &str, text: &str) -> Result<Endpoint, Status> {
        let form = "a name of the form tenants/{tenant}/projects/{project}/endpoints/{endpoint}";
        let (parent, name) = text.rsplit_once("/endpoints/").ok_or_else(|| refuse_field(field, form))?;
        let project = self.project(who, field, parent)?;
        let name = Self::fresh_name(field, name)?;
        let endpoint = self.store.endpoint_by_name(project.id, &name).await.map_err(store_status)?;
        endpoint.ok_or_else(|| not_found("endpoint"))
    }

    /// What a mutation made or changed, if it was made before and is remembered.
    pub(super) async fn done_before<M: prost::Message>(
        &self,
        mutation: &Mutation<'_, M>,
    ) -> Result<Option<String>, Status> {
        let caller = mutation.who.caller(mutation.request_id, digest(mutation.method, mutation.message))?;
        let known = self.remembered(Some(&caller)).await?;
        Ok(known.and_then(|known| match known.outcome {
            RequestOutcome::Object(id) => Some(id),
            RequestOutcome::Done => None,
        }))
    }

    async fn endpoint_answer(&self, object: &str) -> Result<Response<v1::Endpoint>, Status> {
        let id: EndpointId = object.parse().map_err(|_| not_found("endpoint"))?;
        let row = self.store.get_endpoint(id).await.map_err(store_status)?.ok_or_else(|| not_found("endpoint"))?;
        Ok(Response::new(self.show_endpoint(&row).await?))
    }

    /// An endpoint with its replicas.
    async fn show_endpoint(&self, row: &Endpoint) -> Result<v1::Endpoint, Status> {
        let ids: Vec<JobId> = self.directory.serving.replicas(row.id);
        let mut jobs = self.store.jobs_by_ids(&ids).await.map_err(store_status)?;
        jobs.sort_by_key(|job| job.id);
        let shown = self.show_placed(&jobs).await?;
        let replica = |(job, shown): (&Job, v1::Job)| v1::Replica {
            job: shown.name,
            state: job.state.as_str().to_owned(),
            reason: shown.reason,
            message: shown.message,
            site: shown.site,
        };
        let current = jobs.iter().zip(shown).filter(|(job, _)| !job.state.is_terminal()).map(replica).collect();
        self.show_bare(row, current).await
    }

    async fn show_bare(&self, row: &Endpoint, current: Vec<v1::Replica>) -> Result<v1::Endpoint, Status> {
        let known = self.directory.serving.model(row.model).map(|model| model.name.to_string());
        let model = match known {
            Some(name) => name,
            None => {
                let row = self.store.get_model(row.model).await.map_err(store_status)?;
                row.map(|row| row.name.to_string()).unwrap_or_default()
            }
        };
        let directory = self.directory.read();
        let parent = directory.project_path(row.project);
        Ok(convert::endpoint(row, &parent, format!("{parent}/models/{model}"), current, &*directory))
    }

    fn sites(&self, names: &[String]) -> Result<Vec<SiteId>, Status> {
        if names.len() > MAX_SITES {
            return Err(refuse_field("sites", format!("at most {MAX_SITES} sites")));
        }
        let directory = self.directory.read();
        let known = |name: &String| directory.id(name.strip_prefix("sites/").unwrap_or(name));
        let ids: Option<Vec<_>> = names.iter().map(known).collect();
        ids.ok_or_else(|| refuse_field("sites", "one of the sites does not exist"))
    }

    async fn new_endpoint(&self, who: &Principal, message: &v1::CreateEndpointRequest) -> Result<NewEndpoint, Status> {
        let project = self.project(who, "parent", &message.parent)?;
        let name = Self::fresh_name("endpoint_id", &message.endpoint_id)?;
        let model = self.model(who, "model", &message.model).await?;
        let resources = resources(message.resources.as_ref())?;
        let new = NewEndpoint {
            project: project.id,
            name,
            model: model.id,
            replicas: convert::replica_bounds(message.replicas.unwrap_or(v1::Replicas { min: 0, max: 1 })),
            resources,
            sites: self.sites(&message.sites)?,
            context: message.context,
            sequences: if message.sequences == 0 { DEFAULT_SEQUENCES } else { message.sequences },
            public: message.public,
            price: message.price.map(convert::token_price),
            idle: idle(message.idle.as_ref())?.unwrap_or(DEFAULT_IDLE),
        };
        self.could_ever_run(&project, &new).await?;
        Ok(new)
    }

    /// Refuses what no replica could ever be placed for.
    async fn could_ever_run(&self, project: &Project, wanted: &NewEndpoint) -> Result<(), Status> {
        let view = JobView {
            id: JobId::from_raw(u64::MAX),
            version: 1,
            tenant: project.tenant,
            project: project.id,
            priority: 0,
            firm: JobKind::Replica.is_firm(),
            purpose: Purpose::Run,
            tasks: 1,
            resources: wanted.resources.clone(),
            sites: sluice_lifecycle::common_sites(&wanted.sites, &project.sites),
            state_at: Vec::new(),
            hold_time: Nanos::from_secs(1),
            budgets: Vec::new(),
        };
        let Err(never) = self.planner.admissible(view).await else { return Ok(()) };
        let reason = never.reason.unwrap_or(Reason::NeverFits);
        Err(refused(Refusal { field: Some("resources".to_owned()), ..Refusal::new(reason, never.message) }))
    }

    fn show_request(&self, who: &Principal, row: &InferenceRequest) -> v1::InferenceRequest {
        let directory = self.directory.read();
        let name = |tenant| directory.tenants.get(&tenant).map_or_else(String::new, |row| row.name.to_string());
        // An owner sells to whoever comes: who that is, is none of its business.
        let (caller, key) = match who.sees_tenant(row.tenant) {
            true => (name(row.tenant), row.key.to_string()),
            false => (String::new(), String::new()),
        };
        convert::inference_request(row, &name(row.owner), &caller, key)
    }
}

fn resources(wanted: Option<&v1::TaskResources>) -> Result<TaskResources, Status> {
    let wanted = wanted.ok_or_else(|| refused(convert::missing("resources")))?;
    convert::task_resources(wanted).map_err(of_resources)
}

/// A refusal of a job's resources in the words of the endpoint.
pub(super) fn of_resources(refusal: Refusal) -> Status {
    let field = refusal.field.map(|field| field.strip_prefix("spec.").unwrap_or(&field).to_owned());
    refused(Refusal { field, ..refusal })
}

fn idle(span: Option<&prost_types::Duration>) -> Result<Option<Nanos>, Status> {
    span.map(|span| convert::duration_back("idle", span)).transpose().map_err(refused)
}

#[tonic::async_trait]
impl EndpointService for Api {
    async fn create_endpoint(
        &self,
        request: Request<v1::CreateEndpointRequest>,
    ) -> Result<Response<v1::Endpoint>, Status> {
        let method = "sluice.v1.EndpointService/CreateEndpoint";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        if let Some(object) = self.done_before(&mutation).await? {
            return self.endpoint_answer(&object).await;
        }
        let new = self.new_endpoint(&who, &message).await?;
        let answer = self.change(mutation, UserCommand::CreateEndpoint(Box::new(new))).await?;
        self.endpoint_answer(&answer.object).await
    }

    async fn update_endpoint(
        &self,
        request: Request<v1::UpdateEndpointRequest>,
    ) -> Result<Response<v1::Endpoint>, Status> {
        let method = "sluice.v1.EndpointService/UpdateEndpoint";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let row = self.endpoint(&who, "name", &message.name).await?;
        let version = match message.etag.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| refuse_field("etag", "an etag from an endpoint that you read"))?),
        };
        let change = EndpointChange {
            replicas: message.replicas.map(convert::replica_bounds),
            public: message.public,
            price: message.price.map(convert::token_price),
            idle: idle(message.idle.as_ref())?,
        };
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        let answer = self.change(mutation, UserCommand::UpdateEndpoint(row.id, version, change)).await?;
        self.endpoint_answer(&answer.object).await
    }

    async fn get_endpoint(&self, request: Request<v1::GetEndpointRequest>) -> Result<Response<v1::Endpoint>, Status> {
        let who = self.who(&request, "sluice.v1.EndpointService/GetEndpoint")?;
        let row = self.endpoint(&who, "name", &request.into_inner().name).await?;
        Ok(Response::new(self.show_endpoint(&row).await?))
    }

    async fn list_endpoints(
        &self,
        request: Request<v1::ListEndpointsRequest>,
    ) -> Result<Response<v1::ListEndpointsResponse>, Status> {
        let who = self.who(&request, "sluice.v1.EndpointService/ListEndpoints")?;
        let message = request.into_inner();
        let project = self.project(&who, "parent", &message.parent)?;
        let page = self.page::<EndpointId>("endpoints", message.page_size, &message.page_token)?;
        let rows = self.store.list_endpoints(project.id, page).await.map_err(store_status)?;
        let next_page_token = self.next_token("endpoints", page::last(&rows, page.limit, |row| row.id));
        let mut endpoints = Vec::with_capacity(rows.len());
        for row in &rows {
            endpoints.push(self.show_bare(row, Vec::new()).await?);
        }
        Ok(Response::new(v1::ListEndpointsResponse { endpoints, next_page_token }))
    }

    async fn delete_endpoint(
        &self,
        request: Request<v1::DeleteEndpointRequest>,
    ) -> Result<Response<v1::Endpoint>, Status> {
        let method = "sluice.v1.EndpointService/DeleteEndpoint";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        // A retry may find the name gone, and the request remembered.
        if let Some(object) = self.done_before(&mutation).await? {
            return self.endpoint_answer(&object).await;
        }
        let row = self.endpoint(&who, "name", &message.name).await?;
        let answer = self.change(mutation, UserCommand::DeleteEndpoint(row.id)).await?;
        self.endpoint_answer(&answer.object).await
    }

    async fn list_requests(
        &self,
        request: Request<v1::ListRequestsRequest>,
    ) -> Result<Response<v1::ListRequestsResponse>, Status> {
        let who = self.who(&request, "sluice.v1.EndpointService/ListRequests")?;
        let message = request.into_inner();
        let page = self.page::<RequestId>("requests", message.page_size, &message.page_token)?;
        let rows = if message.parent.contains("/endpoints/") {
            let endpoint = self.endpoint(&who, "parent", &message.parent).await?;
            self.store.inference_of(endpoint.id, page).await
        } else {
            let project = self.project(&who, "parent", &message.parent)?;
            self.store.inference_by(project.id, page).await
        };
        let rows = rows.map_err(store_status)?;
        let next_page_token = self.next_token("requests", page::last(&rows, page.limit, |row| row.id));
        let requests = rows.iter().map(|row| self.show_request(&who, row)).collect();
        Ok(Response::new(v1::ListRequestsResponse { requests, next_page_token }))
    }
}
