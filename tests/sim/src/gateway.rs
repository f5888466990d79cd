//! Endpoints, as their users and the controller's parts see them: what is served, the loads that are told, and what imports
//! found. What becomes of requests is in `requests`.

use sluice_lifecycle::model::{EndpointState, JobState, ModelInfo, ModelState, ReplicaBounds};
use sluice_lifecycle::{Command, EndpointChange, ModelFound, NewEndpoint, UserCommand};
use sluice_types::{Bytes, CoreMilli, Credits, EndpointId, MilliGpu, Nanos, TaskResources};

use crate::cluster::name;
use crate::controller::Reply;
use crate::params::MINUTE;
use crate::sim::Sim;

impl Sim {
    pub(crate) fn tell_load(&mut self, endpoint: EndpointId) {
        let Some(memory) = self.controller.memory.as_ref() else { return };
        let (queued, running) = memory.gateway.load(endpoint);
        self.enqueue(Command::EndpointLoad { endpoint, queued, running }, Reply::Nobody);
    }

    /// With every tick the gateway tells what is open, and the importer looks at imports.
    pub(crate) fn serve_on(&mut self) {
        self.keep_requests();
        let Some(memory) = self.controller.memory.as_ref() else { return };
        let busy = memory.gateway.busy();
        busy.into_iter().for_each(|endpoint| self.tell_load(endpoint));
        let store = &self.controller.store;
        let ended = |model: &&sluice_lifecycle::model::Model| {
            model.state == ModelState::Importing
                && store.jobs.get(&model.import).is_some_and(|job| job.state == JobState::Succeeded)
        };
        let found: Vec<_> = store.models.values().filter(ended).map(|model| (model.id, model.file)).collect();
        for (model, file) in found {
            let info = ModelInfo { context: 4096, ..ModelInfo::default() };
            self.enqueue(Command::ModelChecked(model, Ok(ModelFound { info, file })), Reply::Nobody);
        }
    }

    /// Somebody serves a model.
    pub(crate) fn new_endpoint(&mut self) -> Option<UserCommand> {
        let ready = self.controller.store.models.values().filter(|row| row.state == ModelState::Ready);
        let ready: Vec<_> = ready.map(|row| (row.id, row.project)).collect();
        let (model, project) = self.dice.pick(&ready).copied()?;
        let number = self.users.requests.len();
        let cpu = self.dice.chance(300);
        let price = self.dice.chance(800).then(|| sluice_ledger::TokenPrice {
            prompt: Credits::new(i64::try_from(self.dice.range(0, 60_000_000)).unwrap_or(0)),
            completion: Credits::new(i64::try_from(self.dice.range(1, 300_000_000)).unwrap_or(1)),
        });
        let wanted = NewEndpoint {
            project,
            name: name(&format!("chat-{number}")),
            model,
            replicas: self.bounds(),
            resources: TaskResources {
                class: name(if cpu { "cpu" } else { "gpu" }),
                milli: MilliGpu::new(*self.dice.pick(&[100u32, 200, 300]).unwrap_or(&100)),
                memory: Bytes::new(4 << 30),
                host_cores: CoreMilli::new(if cpu { 0 } else { 500 }),
                host_memory: Bytes::new(1 << 30),
            },
            sites: Vec::new(),
            context: 0,
            sequences: u32::try_from(self.dice.range(1, 3)).unwrap_or(1),
            public: self.dice.chance(900),
            price,
            idle: Nanos::new(self.dice.range(MINUTE, 10 * MINUTE)),
        };
        Some(UserCommand::CreateEndpoint(Box::new(wanted)))
    }

    fn bounds(&mut self) -> ReplicaBounds {
        let most = u32::try_from(self.dice.range(1, 4)).unwrap_or(1);
        ReplicaBounds { least: u32::from(self.dice.chance(250)), most }
    }

    /// Somebody changes an endpoint.
    pub(crate) fn changed_endpoint(&mut self) -> Option<UserCommand> {
        let endpoint = self.an_endpoint()?;
        let (replicas, public) = (Some(self.bounds()), Some(self.dice.chance(900)));
        Some(UserCommand::UpdateEndpoint(
            endpoint,
            None,
            EndpointChange { replicas, public, ..EndpointChange::default() },
        ))
    }

    /// Somebody serves no more.
    pub(crate) fn ended_endpoint(&mut self) -> Option<UserCommand> {
        self.an_endpoint().map(UserCommand::DeleteEndpoint)
    }

    fn an_endpoint(&mut self) -> Option<EndpointId> {
        let active = self.active_endpoints();
        self.dice.pick(&active).copied()
    }

    pub(crate) fn active_endpoints(&self) -> Vec<EndpointId> {
        let rows = self.controller.store.endpoints.values();
        rows.filter(|row| row.state == EndpointState::Active).map(|row| row.id).collect()
    }
}
