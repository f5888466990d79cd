//! Models, endpoints and requests in the working set, and what is found by them.

use std::collections::{BTreeMap, BTreeSet};

use sluice_types::{Digest, EndpointId, JobId, ModelId, Name, Nanos, ProjectId, RequestId, TenantId, Timestamp};

use crate::Rows;
use crate::model::{Endpoint, EndpointState, InferenceRequest, InferenceState, Job, JobKind, Model, ModelState};
use crate::state::State;
use crate::table::Table;

/// A load that was not told for so long counts as none.
pub(crate) const LOAD_FORGOTTEN: Nanos = Nanos::from_secs(10);

/// What endpoints need of the working set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Serving {
    /// Those that are not deleted.
    pub(crate) models: Table<ModelId, Model>,
    /// Those that are not deleted.
    pub(crate) endpoints: Table<EndpointId, Endpoint>,
    /// Those that are open.
    pub(crate) requests: Table<RequestId, InferenceRequest>,
    pub(crate) model_names: BTreeMap<(ProjectId, Name), ModelId>,
    pub(crate) endpoint_names: BTreeMap<(ProjectId, Name), EndpointId>,
    /// Replicas that have not ended.
    pub(crate) replicas: BTreeMap<EndpointId, BTreeSet<JobId>>,
    /// Models whose import has not ended.
    pub(crate) imports: BTreeMap<JobId, ModelId>,
    /// Open requests of each tenant that called.
    pub(crate) open: BTreeMap<TenantId, usize>,
    /// Requests of a gateway before this start: nobody has them any more.
    pub(crate) lost: Vec<RequestId>,
    /// What endpoints have to do; kept by nobody.
    pub(crate) loads: BTreeMap<EndpointId, Load>,
}

/// What an endpoint has to do, and since when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Requests that wait or run, as they were told last.
    told: u64,
    at: Timestamp,
    /// Since when all its replicas together have had too little room.
    pub(crate) over: Option<Timestamp>,
    /// By a number of replicas: since when they would have been enough.
    enough: Vec<Option<Timestamp>>,
}

impl Load {
    pub(crate) fn tell(&mut self, requests: u64, now: Timestamp) {
        (self.told, self.at) = (requests, now);
    }

    /// What there is to do now.
    pub(crate) fn requests(&self, now: Timestamp) -> u64 {
        if now.since(self.at) > LOAD_FORGOTTEN { 0 } else { self.told }
    }

    /// Notes what numbers of replicas, up to `most`, are enough now.
    pub(crate) fn look(&mut self, sequences: u32, most: u32, now: Timestamp) {
        let requests = self.requests(now);
        let most = usize::try_from(most).unwrap_or(usize::MAX).max(self.enough.len().saturating_sub(1));
        self.enough.resize(most + 1, None);
        for (replicas, since) in (0u64..).zip(&mut self.enough) {
            let enough = requests <= replicas.saturating_mul(u64::from(sequences));
            *since = enough.then(|| since.unwrap_or(now));
        }
    }

    /// The smallest number of replicas that has been enough for all of `span`.
    pub(crate) fn sufficed(&self, span: Nanos, now: Timestamp) -> Option<u32> {
        let long = |since: &Option<Timestamp>| since.is_some_and(|since| now.since(since) >= span);
        self.enough.iter().position(long).and_then(|replicas| u32::try_from(replicas).ok())
    }
}

impl Serving {
    /// Rows as the store has them.
    pub(crate) fn load(models: Vec<Model>, endpoints: Vec<Endpoint>, requests: Vec<InferenceRequest>) -> Self {
        let mut serving = Self::default();
        for model in models.into_iter().filter(|row| row.state != ModelState::Deleted) {
            serving.name_model(&model);
            serving.models.load(model.id, model);
        }
        for endpoint in endpoints.into_iter().filter(|row| row.state != EndpointState::Deleted) {
            serving.endpoint_names.insert((endpoint.project, endpoint.name.clone()), endpoint.id);
            serving.endpoints.load(endpoint.id, endpoint);
        }
        for request in requests.into_iter().filter(|row| row.state == InferenceState::Open) {
            *serving.open.entry(request.tenant).or_default() += 1;
            serving.lost.push(request.id);
            serving.requests.load(request.id, request);
        }
        serving
    }

    pub(crate) fn name_model(&mut self, model: &Model) {
        self.model_names.insert((model.project, model.name.clone()), model.id);
        if model.state == ModelState::Importing {
            self.imports.insert(model.import, model.id);
        }
    }

    /// Keeps the replicas up to date with a job that is new or changed.
    pub(crate) fn job(&mut self, job: &Job) {
        let Some(endpoint) = job.endpoint else { return };
        let known = self.replicas.entry(endpoint).or_default();
        if job.state.is_terminal() {
            known.remove(&job.id);
        } else {
            known.insert(job.id);
        }
        if known.is_empty() {
            self.replicas.remove(&endpoint);
        }
    }

    /// Drops what can change no more, once its rows say so.
    pub(crate) fn forget(&mut self, rows: &Rows) {
        rows.jobs.iter().filter(|row| row.spec.kind == JobKind::Replica).for_each(|row| self.job(row));
        for row in rows.models.iter().filter(|row| row.state == ModelState::Deleted) {
            self.models.evict(&row.id);
        }
        for row in rows.endpoints.iter().filter(|row| row.state == EndpointState::Deleted) {
            self.endpoints.evict(&row.id);
            self.endpoint_names.remove(&(row.project, row.name.clone()));
            self.loads.remove(&row.id);
        }
        for row in rows.inference.iter().filter(|row| row.state != InferenceState::Open) {
            self.requests.evict(&row.id);
        }
    }
}

impl State {
    /// A model that is not deleted.
    #[must_use]
    pub fn model(&self, id: ModelId) -> Option<&Model> {
        self.serving.models.get(&id)
    }

    /// All models that are not deleted, oldest first.
    pub fn models(&self) -> impl Iterator<Item = &Model> {
        self.serving.models.values()
    }

    /// An endpoint that is not deleted.
    #[must_use]
    pub fn endpoint(&self, id: EndpointId) -> Option<&Endpoint> {
        self.serving.endpoints.get(&id)
    }

    /// All endpoints that are not deleted, oldest first.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.serving.endpoints.values()
    }

    /// A request that is open.
    #[must_use]
    pub fn inference_request(&self, id: RequestId) -> Option<&InferenceRequest> {
        self.serving.requests.get(&id)
    }

    /// All open requests, oldest first.
    pub fn inference_requests(&self) -> impl Iterator<Item = &InferenceRequest> {
        self.serving.requests.values()
    }

    /// Replicas of an endpoint that have not ended, oldest first.
    pub fn replicas(&self, endpoint: EndpointId) -> impl Iterator<Item = &Job> {
        let ids = self.serving.replicas.get(&endpoint).into_iter().flatten();
        ids.filter_map(|id| self.jobs.get(id)).filter(|job| !job.state.is_terminal())
    }

    /// A replica that waits only because others ended soon after their start.
    pub(crate) fn is_held_back(&self, job: &Job) -> bool {
        let endpoint = job.endpoint.and_then(|id| self.serving.endpoints.get(&id));
        endpoint.is_some_and(|row| row.retry_at.is_some())
    }

    /// An upload is named once more.
    pub(crate) fn keep_upload(&mut self, project: ProjectId, digest: Digest) {
        *self.uses.entry((project, digest)).or_default() += 1;
    }

    /// An upload is named once less: from now on it is kept for a while.
    pub(crate) fn release_upload(&mut self, project: ProjectId, digest: Digest, now: Timestamp) {
        let key = (project, digest);
        if let Some(row) = self.uploads.get_mut(&key) {
            row.used = now;
        }
        let left = self.uses.get(&key).copied().unwrap_or(0).saturating_sub(1);
        match left {
            0 => self.uses.remove(&key),
            left => self.uses.insert(key, left),
        };
    }
}
