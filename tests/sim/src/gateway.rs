//! The gateway and the importer that live in the controller: requests that are open, the loads that are told, and what
//! imports found. All of it is lost with the controller, but for what is in rows.

use std::collections::BTreeMap;

use sluice_lifecycle::model::{EndpointState, JobState, ModelInfo, ModelState, ReplicaBounds};
use sluice_lifecycle::{Command, EndpointChange, ModelFound, NewEndpoint, OpenRequest, UserCommand};
use sluice_types::{Bytes, CoreMilli, Credits, EndpointId, KeyId, MilliGpu, Nanos, Reason, RequestId, TaskResources};

use crate::cluster::name;
use crate::controller::Reply;
use crate::params::{MINUTE, SECOND};
use crate::sim::{Event, Sim};

/// A request waits for a replica at most so long.
const PATIENCE: u64 = 20 * MINUTE;

/// What a client asked, and will be given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    endpoint: EndpointId,
    prompt: u64,
    completion: u64,
    since: u64,
}

/// Requests under way.
#[derive(Debug, Default)]
pub(crate) struct Gateway {
    open: BTreeMap<RequestId, Asked>,
}

impl Sim {
    /// A client of any tenant asks an endpoint.
    pub(crate) fn ask(&mut self) {
        let active = self.controller.store.endpoints.values().filter(|row| row.state == EndpointState::Active);
        let active: Vec<_> = active.map(|row| row.id).collect();
        let Some(endpoint) = self.dice.pick(&active).copied() else { return };
        let place = self.dice.index(self.users.tenants.len());
        let (tenant, project) = self.users.tenants[place];
        let (prompt_ceiling, completion_ceiling) = (self.dice.range(1, 4000), self.dice.range(1, 2000));
        let asked = Asked {
            endpoint,
            // Now and then an engine says that it did more than was reserved.
            prompt: self.dice.range(0, prompt_ceiling + prompt_ceiling / 50),
            completion: self.dice.range(0, completion_ceiling + completion_ceiling / 50),
            since: self.now,
        };
        let key = KeyId::from_raw(9);
        let request = OpenRequest { endpoint, tenant, project, key, prompt_ceiling, completion_ceiling };
        self.enqueue(Command::OpenRequest(request), Reply::Gateway(asked));
    }

    /// What is held for a request is on disk: it begins.
    pub(crate) fn asked(&mut self, request: RequestId, asked: Asked) {
        let at = self.now + self.dice.range(2 * SECOND, 2 * MINUTE);
        let incarnation = self.controller.incarnation;
        let Some(memory) = self.controller.memory.as_mut() else { return };
        memory.gateway.open.insert(request, asked);
        self.agenda.plan(at, Event::Answered { request, incarnation });
        self.tell_load(asked.endpoint);
    }

    /// All of an answer has come, if anybody was there to give it.
    pub(crate) fn on_answered(&mut self, request: RequestId) {
        let incarnation = self.controller.incarnation;
        let Some(memory) = self.controller.memory.as_ref() else { return };
        let Some(asked) = memory.gateway.open.get(&request).copied() else { return };
        let served = memory.state.replicas(asked.endpoint).any(|job| job.state == JobState::Running);
        let command = if served && !self.dice.chance(30) {
            let Asked { prompt, completion, .. } = asked;
            let cached_tokens = prompt / 3;
            Command::SettleRequest { id: request, prompt_tokens: prompt, completion_tokens: completion, cached_tokens }
        } else if served || self.now - asked.since > PATIENCE {
            Command::VoidRequest(request, Reason::NodeLost)
        } else {
            self.agenda.plan(self.now + 10 * SECOND, Event::Answered { request, incarnation });
            return;
        };
        if let Some(memory) = self.controller.memory.as_mut() {
            memory.gateway.open.remove(&request);
        }
        self.enqueue(command, Reply::Nobody);
        self.tell_load(asked.endpoint);
    }

    fn tell_load(&mut self, endpoint: EndpointId) {
        let Some(memory) = self.controller.memory.as_ref() else { return };
        let open = memory.gateway.open.values().filter(|asked| asked.endpoint == endpoint).count();
        let open = u32::try_from(open).unwrap_or(u32::MAX);
        let served = memory.state.replicas(endpoint).any(|job| job.state == JobState::Running);
        let (queued, running) = if served { (0, open) } else { (open, 0) };
        self.enqueue(Command::EndpointLoad { endpoint, queued, running }, Reply::Nobody);
    }

    /// With every tick the gateway tells what is open, and the importer looks at imports.
    pub(crate) fn serve_on(&mut self) {
        let Some(memory) = self.controller.memory.as_ref() else { return };
        let busy: std::collections::BTreeSet<_> = memory.gateway.open.values().map(|asked| asked.endpoint).collect();
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
            prompt: Credits::new(i64::try_from(self.dice.range(0, 3_000_000)).unwrap_or(0)),
            completion: Credits::new(i64::try_from(self.dice.range(1, 9_000_000)).unwrap_or(1)),
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
