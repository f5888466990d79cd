//! The simulated day: one agenda, one clock, and everything that lives on them.

use std::collections::BTreeMap;

use sluice_lifecycle::{Command, Copy, NodeReport, TaskKey};
use sluice_plan::Plan;
use sluice_proto::v1::engine_reply::Message;
use sluice_types::{AttemptId, Digest, Generation, LeaseId, NodeId, RequestId};

use crate::agenda::Agenda;
use crate::controller::{Controller, Reply};
use crate::dice::Dice;
use crate::faults::Fault;
use crate::host::{Assignment, Host};
use crate::oracle::{EVERY, Oracle, Sight};
use crate::params::{Day, HOUR, SECOND};
use crate::process::{Gang, Program};
use crate::trace::Trace;
use crate::users::{Act, Users};
use crate::vault::SiteSim;
use crate::worker::{Word, Worker};

/// What the controller tells a node.
#[derive(Debug)]
pub(crate) enum ToHost {
    Welcome { generation: Generation, settled: u64 },
    Desired(Vec<Assignment>),
    Release(Vec<TaskKey>),
    Ack(u64),
}

/// What the controller tells a vault.
#[derive(Debug)]
pub(crate) enum ToVault {
    Copies(Vec<Copy>),
}

/// What can happen.
#[derive(Debug)]
pub(crate) enum Event {
    StartController,
    Tick {
        incarnation: u64,
    },
    Round {
        incarnation: u64,
    },
    Decide {
        incarnation: u64,
    },
    Planned {
        incarnation: u64,
        plan: Plan,
    },
    Connect {
        host: usize,
    },
    Hello {
        host: usize,
        stream: u64,
        incarnation: u64,
    },
    Up {
        host: usize,
        stream: u64,
        generation: Generation,
        report: NodeReport,
        incarnation: u64,
    },
    Down {
        host: usize,
        stream: u64,
        message: ToHost,
    },
    Beat {
        host: usize,
        boot: u64,
    },
    Prepared {
        host: usize,
        lease: LeaseId,
        epoch: u64,
    },
    Launched {
        host: usize,
        lease: LeaseId,
        epoch: u64,
    },
    Kill {
        host: usize,
        lease: LeaseId,
        boot: u64,
    },
    RunLimit {
        host: usize,
        lease: LeaseId,
        boot: u64,
    },
    Step {
        attempt: AttemptId,
        rank: u32,
        step: u64,
    },
    HeldLong {
        host: usize,
        lease: LeaseId,
        ordered: u64,
    },
    SealDone {
        host: usize,
        lease: LeaseId,
        epoch: u64,
    },
    VaultBeat {
        site: usize,
        incarnation: u64,
    },
    VaultDown {
        site: usize,
        message: ToVault,
    },
    VaultUp {
        site: usize,
        manifest: Digest,
        incarnation: u64,
    },
    CopyDone {
        site: usize,
        from: usize,
        manifest: Digest,
    },
    User(Act),
    Uncordon {
        node: NodeId,
    },
    SendRequest {
        request: usize,
    },
    RequestArrives {
        request: usize,
        incarnation: u64,
    },
    Fault(Fault),
    /// A step of a replica's worker is over.
    Stepped {
        attempt: AttemptId,
        number: u64,
    },
    /// A worker hears something on a session.
    WorkerHears {
        replica: AttemptId,
        number: u64,
        connection: u64,
        word: Word,
    },
    /// The gateway hears what a worker says.
    EngineSays {
        replica: AttemptId,
        connection: u64,
        messages: Vec<Message>,
        incarnation: u64,
    },
    /// The gateway hears that a session is over.
    LinkOver {
        replica: AttemptId,
        connection: u64,
        incarnation: u64,
    },
    /// A client of an endpoint wants no more.
    ClientLeaves {
        request: RequestId,
        incarnation: u64,
    },
    /// The gateway notices it.
    LeftNoticed {
        request: RequestId,
        incarnation: u64,
    },
    /// The judge looks whether everything moves.
    Look,
    FreshHost {
        site: usize,
        class: &'static str,
    },
}

/// The world of one seed.
pub(crate) struct Sim {
    pub(crate) now: u64,
    pub(crate) day: Day,
    pub(crate) agenda: Agenda<Event>,
    pub(crate) controller: Controller,
    pub(crate) hosts: Vec<Host>,
    pub(crate) sites: Vec<SiteSim>,
    pub(crate) jobs: Vec<Program>,
    pub(crate) gangs: BTreeMap<AttemptId, Gang>,
    /// Of replicas that serve.
    pub(crate) workers: BTreeMap<AttemptId, Worker>,
    pub(crate) workers_begun: u64,
    pub(crate) users: Users,
    pub(crate) oracle: Oracle,
    pub(crate) dice: Dice,
    pub(crate) faults: Dice,
    /// Of requests to endpoints and of what computes them.
    pub(crate) asks: Dice,
    pub(crate) next_stream: u64,
    pub(crate) fault_count: usize,
    pub(crate) trace: Trace,
}

impl Sim {
    pub(crate) fn new(seed: u64, day: Day, tracing: bool) -> Self {
        let mut sim = Self {
            now: 0,
            day,
            agenda: Agenda::new(),
            controller: Controller::new(),
            hosts: Vec::new(),
            sites: Vec::new(),
            jobs: Vec::new(),
            gangs: BTreeMap::new(),
            workers: BTreeMap::new(),
            workers_begun: 0,
            users: Users::default(),
            oracle: Oracle::default(),
            dice: Dice::new(seed, 0),
            faults: Dice::new(seed, 1),
            asks: Dice::new(seed, 2),
            next_stream: 0,
            fault_count: 0,
            trace: Trace::new(tracing),
        };
        sim.jobs.extend(crate::process::system_programs());
        sim.set_up();
        sim.plan_users();
        sim.plan_faults();
        sim.agenda.plan(EVERY, Event::Look);
        sim
    }

    /// Runs until the end of the day, or until the oracle has seen enough.
    pub(crate) fn run(&mut self) {
        let end = self.day.hours * HOUR;
        while let Some((at, event)) = self.agenda.next() {
            if at > end || self.oracle.has_failed() {
                break;
            }
            self.now = at;
            self.trace.word(at);
            self.handle(event);
            if self.is_over() {
                break;
            }
        }
        if !self.oracle.has_failed() {
            let state = self.controller.memory.as_ref().map(|memory| &memory.state);
            self.oracle.finish(self.now, state, &self.controller.store, &self.users, &self.jobs, &self.hosts);
        }
    }

    /// After the busy part: nothing is left to happen to any job.
    fn is_over(&self) -> bool {
        let Some(memory) = self.controller.memory.as_ref() else { return false };
        self.now > self.day.least_hours * HOUR
            && memory.state.jobs().next().is_none()
            && memory.gateway.is_empty()
            && self.users.requests.iter().all(|request| request.answer.is_some())
    }

    fn handle(&mut self, event: Event) {
        if self.is_stale(&event) {
            return;
        }
        match event {
            Event::StartController => self.start_controller(),
            Event::Tick { .. } => self.tick(),
            Event::Round { .. } => self.round(),
            Event::Decide { .. } => self.decide(),
            Event::Planned { plan, .. } => self.enqueue(Command::Plan(plan), Reply::Nobody),
            Event::Connect { host } => self.connect(host),
            Event::Hello { host, stream, .. } => self.on_hello(host, stream),
            Event::Up { host, stream, generation, report, .. } => self.on_up(host, stream, generation, report),
            Event::Down { host, stream, message } => self.on_down(host, stream, message),
            Event::Beat { host, boot } => self.beat(host, boot),
            Event::Prepared { host, lease, epoch } => self.on_prepared(host, lease, epoch),
            Event::Launched { host, lease, epoch } => self.on_launched(host, lease, epoch),
            Event::Kill { host, lease, boot } => self.on_kill(host, lease, boot),
            Event::RunLimit { host, lease, boot } => self.on_run_limit(host, lease, boot),
            Event::Step { attempt, rank, step } => self.on_step(attempt, rank, step),
            Event::HeldLong { host, lease, ordered } => self.on_held_long(host, lease, ordered),
            Event::SealDone { host, lease, epoch } => self.on_seal_done(host, lease, epoch),
            Event::VaultBeat { site, .. } => self.vault_beat(site),
            Event::VaultDown { site, message: ToVault::Copies(copies) } => self.on_copies(site, copies),
            Event::VaultUp { site, manifest, .. } => {
                let site = self.sites[site].id;
                self.enqueue(Command::Copied { site, manifest }, Reply::Nobody);
            }
            Event::CopyDone { site, from, manifest } => self.on_copy_done(site, from, manifest),
            Event::User(act) => self.on_user(act),
            Event::Uncordon { node } => self.uncordon(node),
            Event::SendRequest { request } => self.send_request(request),
            Event::RequestArrives { request, .. } => self.request_arrives(request),
            Event::Fault(fault) => self.on_fault(fault),
            Event::Stepped { attempt, number } => self.on_stepped(attempt, number),
            Event::WorkerHears { replica, number, connection, word } => {
                self.worker_hears(replica, number, connection, word);
            }
            Event::EngineSays { replica, connection, messages, .. } => {
                self.on_engine_says(replica, connection, messages);
            }
            Event::LinkOver { replica, connection, .. } => self.on_link_over(replica, connection),
            Event::ClientLeaves { request, .. } => self.on_client_leaves(request),
            Event::LeftNoticed { request, .. } => self.on_left_noticed(request),
            Event::Look => self.look(),
            Event::FreshHost { site, class } => self.fresh_host(site, class),
        }
    }

    /// Meant for a controller that has died since.
    fn is_stale(&self, event: &Event) -> bool {
        match event {
            Event::Tick { incarnation }
            | Event::Round { incarnation }
            | Event::Decide { incarnation }
            | Event::Planned { incarnation, .. }
            | Event::Hello { incarnation, .. }
            | Event::Up { incarnation, .. }
            | Event::VaultBeat { incarnation, .. }
            | Event::VaultUp { incarnation, .. }
            | Event::EngineSays { incarnation, .. }
            | Event::LinkOver { incarnation, .. }
            | Event::ClientLeaves { incarnation, .. }
            | Event::LeftNoticed { incarnation, .. }
            | Event::RequestArrives { incarnation, .. } => *incarnation != self.controller.incarnation,
            _ => false,
        }
    }

    fn look(&mut self) {
        self.agenda.plan(self.now + EVERY, Event::Look);
        let controller = &self.controller;
        let sight = Sight {
            incarnation: controller.memory.as_ref().map(|_| controller.incarnation),
            store: &controller.store,
            hosts: &self.hosts,
            sites: &self.sites,
        };
        self.oracle.look(self.now, &sight);
    }

    fn fresh_host(&mut self, site: usize, class: &'static str) {
        if self.controller.memory.is_some() {
            self.add_host(site, class);
        } else {
            self.agenda.plan(self.now + 10 * SECOND, Event::FreshHost { site, class });
        }
    }

    pub(crate) fn host_of(&self, node: NodeId) -> Option<usize> {
        self.hosts.iter().position(|host| host.node == node)
    }
}
