//! The controller: state, world, store and inbox, and everything that a crash of it takes away.

use std::rc::Rc;

use sluice_lifecycle::{Answer, Command, Copy, Mint, Refusal, Rows, State, step};
use sluice_plan::{Limits, World};
use sluice_types::{NodeId, Timestamp};

use crate::asks::Ask;
use crate::params::{EPOCH, MILLI, SECOND, TICK, settings};
use crate::requests::Gateway;
use crate::sim::{Event, Sim, ToHost, ToVault};
use crate::store::Store;
use crate::worker::{AWAY, Word};

/// Who waits for an answer.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Nobody,
    /// A request to an endpoint.
    Gateway(Rc<Ask>),
    Client(usize),
    Hello {
        host: usize,
        stream: u64,
    },
    Host {
        host: usize,
        stream: u64,
        journal: Option<u64>,
    },
}

/// Where the next commit crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CrashPoint {
    BeforeCommit,
    AfterCommit,
}

/// What a crash takes.
pub(crate) struct Memory {
    pub(crate) state: State,
    pub(crate) world: World,
    pub(crate) mint: Mint,
    inbox: Vec<(Command, Reply)>,
    round_planned: bool,
    decide_planned: bool,
    /// When the last plan reaches the writer. One channel carries them all: none overtakes another.
    last_plan: u64,
    /// The stream that is seated for each host.
    pub(crate) seats: Vec<Option<u64>>,
    pub(crate) rounds: u64,
    pub(crate) gateway: Gateway,
    /// The copies that are wanted, until rows change that they follow from.
    copies: Option<Rc<[Copy]>>,
}

/// The controller's host.
pub(crate) struct Controller {
    pub(crate) store: Store,
    pub(crate) memory: Option<Memory>,
    /// Fences events of an older incarnation.
    pub(crate) incarnation: u64,
    pub(crate) armed: Option<CrashPoint>,
    pub(crate) slow_planner: bool,
}

impl Controller {
    pub(crate) fn new() -> Self {
        Self { store: Store::default(), memory: None, incarnation: 0, armed: None, slow_planner: false }
    }
}

impl Sim {
    pub(crate) fn stamp(&self) -> Timestamp {
        Timestamp::from_nanos(EPOCH + self.now)
    }

    /// Starts from what the store has.
    pub(crate) fn start_controller(&mut self) {
        let now = self.stamp();
        let snapshot = self.controller.store.load();
        let mint = Mint::new(snapshot.last_id, self.dice.number());
        let state = State::load(snapshot, settings(), now);
        let mut world = World::new();
        state.world(now).iter().for_each(|delta| world.apply(delta));
        self.controller.incarnation += 1;
        let incarnation = self.controller.incarnation;
        self.controller.memory = Some(Memory {
            state,
            world,
            mint,
            inbox: Vec::new(),
            round_planned: false,
            decide_planned: false,
            last_plan: 0,
            seats: vec![None; self.hosts.len()],
            rounds: 0,
            gateway: Gateway::default(),
            copies: None,
        });
        self.agenda.plan(self.now + 1, Event::Tick { incarnation });
        self.plan_decide();
        for site in 0..self.sites.len() {
            self.agenda.plan(self.now + SECOND, Event::VaultBeat { site, incarnation });
        }
    }

    /// Everything in memory is gone; streams break.
    pub(crate) fn crash_controller(&mut self, down_for: u64) {
        if let Some(memory) = self.controller.memory.take() {
            self.oracle.crashed();
            // Nobody comes to the sessions of its gateway any more.
            for (replica, number, connection) in memory.gateway.sessions() {
                let close = Event::WorkerHears { replica, number, connection, word: Word::Close };
                self.agenda.plan(self.now + AWAY, close);
            }
        }
        self.trace.line(self.now, || "controller crashed".to_owned());
        self.controller.incarnation += 1;
        self.controller.armed = None;
        for host in 0..self.hosts.len() {
            self.break_stream(host);
        }
        self.agenda.plan(self.now + down_for, Event::StartController);
    }

    /// Puts a command into the writer's queue.
    pub(crate) fn enqueue(&mut self, command: Command, reply: Reply) {
        let at = self.now + self.dice.range(MILLI, 20 * MILLI);
        let incarnation = self.controller.incarnation;
        let Some(memory) = self.controller.memory.as_mut() else { return };
        memory.inbox.push((command, reply));
        if !std::mem::replace(&mut memory.round_planned, true) {
            self.agenda.plan(at, Event::Round { incarnation });
        }
    }

    pub(crate) fn tick(&mut self) {
        let incarnation = self.controller.incarnation;
        self.enqueue(Command::Tick, Reply::Nobody);
        self.serve_on();
        self.agenda.plan(self.now + TICK, Event::Tick { incarnation });
    }

    /// One group commit.
    pub(crate) fn round(&mut self) {
        let now = self.stamp();
        let Some(memory) = self.controller.memory.as_mut() else { return };
        memory.round_planned = false;
        memory.rounds += 1;
        let (commands, replies): (Vec<_>, Vec<_>) = std::mem::take(&mut memory.inbox).into_iter().unzip();
        let (answers, rows) = step(&mut memory.state, commands.clone(), now, &mut memory.mint);
        if !rows.is_empty() {
            match self.controller.armed.take() {
                Some(CrashPoint::BeforeCommit) => return self.crash_in_commit("before"),
                armed => {
                    self.judge_commit(&commands, &answers, &rows);
                    if armed.is_some() {
                        return self.crash_in_commit("after");
                    }
                }
            }
        } else {
            self.oracle.heard(self.now, &commands, &answers);
        }
        let Some(memory) = self.controller.memory.as_mut() else { return };
        if moves_copies(&rows) {
            memory.copies = None;
        }
        let rejected = answers.iter().flatten().flat_map(|answer| answer.rejected.clone());
        let deltas = memory.state.deltas(&rows, now);
        deltas.iter().for_each(|delta| memory.world.apply(delta));
        let rejected: Vec<_> = rejected.collect();
        rejected.iter().for_each(|job| memory.world.reject(*job));
        let changed = !deltas.is_empty() || !rejected.is_empty();
        self.check_laws(&commands);
        for (answer, reply) in answers.into_iter().zip(replies) {
            self.answer(answer, reply);
        }
        self.publish(&rows);
        if changed {
            self.plan_decide();
        }
    }

    fn crash_in_commit(&mut self, when: &str) {
        self.fault_count += 1;
        self.trace.line(self.now, || format!("crash {when} the commit"));
        let down = self.dice.range(SECOND, 20 * SECOND);
        self.crash_controller(down);
    }

    fn judge_commit(&mut self, commands: &[Command], answers: &[Result<Answer, Refusal>], rows: &Rows) {
        if let Err(broken) = self.controller.store.commit(rows) {
            self.oracle.fail(self.now, broken);
        }
        self.trace.committed(self.now, rows);
        self.oracle.committed(self.now, commands, answers, rows, &self.hosts);
    }

    /// Incremental world = world from rows; now and then, and loaded state = state.
    fn check_laws(&mut self, commands: &[Command]) {
        let now = self.stamp();
        let Some(memory) = self.controller.memory.as_ref() else { return };
        // Between the begin of a budget's period and the first tick in it, views name the period before.
        let ticked = commands.iter().any(|command| matches!(command, Command::Tick));
        if !ticked || !(memory.rounds < 3 || self.dice.chance(4)) {
            return;
        }
        let mut rebuilt = World::new();
        memory.state.world(now).iter().for_each(|delta| rebuilt.apply(delta));
        if rebuilt != memory.world {
            self.oracle.fail(self.now, "the world differs from the one rebuilt from rows".to_owned());
        }
        assert!(
            memory.copies.as_ref().is_none_or(|known| **known == *memory.state.copies()),
            "copies are kept too long"
        );
        let loaded = State::load(self.controller.store.load(), settings(), now);
        if let Some(what) = crate::oracle::difference(&memory.state, &loaded, now) {
            self.oracle.fail(self.now, format!("the state loaded from the store differs: {what}"));
        }
    }

    /// What a restart at this instant would begin with is what is in memory.
    pub(crate) fn check_restart(&mut self) {
        let now = self.stamp();
        let Some(memory) = self.controller.memory.as_ref() else { return };
        let loaded = State::load(self.controller.store.load(), settings(), now);
        if let Some(what) = crate::oracle::difference(&memory.state, &loaded, now) {
            self.oracle.fail(self.now, format!("the state loaded at a restart differs: {what}"));
        }
    }

    fn answer(&mut self, answer: Result<Answer, Refusal>, reply: Reply) {
        match reply {
            Reply::Nobody => {}
            Reply::Gateway(ask) => {
                if let Some(request) = answer.ok().and_then(|answer| answer.object.parse().ok()) {
                    self.asked(request, ask);
                }
            }
            Reply::Client(request) => self.reply_client(request, answer),
            Reply::Hello { host, stream } => {
                let Ok(answer) = answer else { return };
                let Some(memory) = self.controller.memory.as_mut() else { return };
                if memory.seats.len() <= host {
                    memory.seats.resize(host + 1, None);
                }
                memory.seats[host] = Some(stream);
                let settled = memory.state.node(self.hosts[host].node).map_or(0, |row| row.settled_journal);
                self.send_down(host, stream, ToHost::Welcome { generation: answer.generation, settled });
                self.refresh(host);
            }
            Reply::Host { host, stream, journal } => {
                let Ok(answer) = answer else {
                    // A refusal ends the stream it came on.
                    if self.hosts[host].stream.as_ref().is_some_and(|open| open.id == stream) {
                        self.break_stream(host);
                    }
                    return;
                };
                if let Some(journal) = journal {
                    self.send_down(host, stream, ToHost::Ack(journal));
                }
                if !answer.release.is_empty() {
                    self.send_down(host, stream, ToHost::Release(answer.release));
                }
            }
        }
    }

    /// Tells nodes and vaults what is committed.
    fn publish(&mut self, rows: &Rows) {
        let touched = rows.attempts.iter().flat_map(|row| row.tasks.iter().map(|task| task.device.node));
        let touched: std::collections::BTreeSet<NodeId> = touched.chain(rows.nodes.iter().map(|row| row.id)).collect();
        for node in touched {
            if let Some(host) = self.host_of(node) {
                self.refresh(host);
            }
        }
        if !(rows.checkpoints.is_empty() && rows.migrations.is_empty() && rows.sites.is_empty()) {
            self.send_all_copies();
        }
    }

    /// Sends the full list to a host that is seated.
    fn refresh(&mut self, host: usize) {
        let Some(memory) = self.controller.memory.as_ref() else { return };
        let Some(stream) = memory.seats.get(host).copied().flatten() else { return };
        let state = &memory.state;
        let wishes = state.wishes(self.hosts[host].node);
        let list = wishes.iter().filter_map(|wish| crate::agent::assignment(state, wish)).collect();
        self.send_down(host, stream, ToHost::Desired(list));
    }

    pub(crate) fn send_copies(&mut self, site: usize) {
        let copies = self.copies();
        self.send_copies_of(site, &copies);
    }

    fn copies(&mut self) -> Rc<[Copy]> {
        let Some(memory) = self.controller.memory.as_mut() else { return Rc::default() };
        let state = &memory.state;
        Rc::clone(memory.copies.get_or_insert_with(|| state.copies().into()))
    }

    fn send_all_copies(&mut self) {
        let copies = self.copies();
        (0..self.sites.len()).for_each(|site| self.send_copies_of(site, &copies));
    }

    fn send_copies_of(&mut self, site: usize, copies: &[Copy]) {
        let id = self.sites[site].id;
        let copies: Vec<_> = copies.iter().filter(|copy| copy.to == id).cloned().collect();
        if !copies.is_empty() && !self.sites[site].cut {
            let at = self.now + self.dice.range(MILLI, 30 * MILLI);
            self.agenda.plan(at, Event::VaultDown { site, message: ToVault::Copies(copies) });
        }
    }

    fn plan_decide(&mut self) {
        let longest = if self.controller.slow_planner { 60 * SECOND } else { 15 * SECOND };
        let at = self.now + self.dice.range(MILLI, longest);
        let incarnation = self.controller.incarnation;
        let Some(memory) = self.controller.memory.as_mut() else { return };
        if !std::mem::replace(&mut memory.decide_planned, true) {
            self.agenda.plan(at, Event::Decide { incarnation });
        }
    }

    /// The scheduler decides on what it knows; its plan reaches the writer later.
    pub(crate) fn decide(&mut self) {
        let Some(memory) = self.controller.memory.as_mut() else { return };
        memory.decide_planned = false;
        let plan = memory.world.decide(Limits::default());
        let more = memory.world.has_more();
        if !(plan.placements.is_empty() && plan.verdicts.is_empty()) {
            // Now and then a plan comes late, and what it rests on has changed.
            let late = self.controller.slow_planner || self.dice.chance(300);
            let longest = if late { 10 * SECOND } else { 20 * MILLI };
            memory.last_plan = memory.last_plan.max(self.now + self.dice.range(MILLI, longest));
            let at = memory.last_plan;
            self.agenda.plan(at, Event::Planned { incarnation: self.controller.incarnation, plan });
        }
        if more {
            self.plan_decide();
        }
    }

    /// For the set-up of a run: a command whose answer is needed at once.
    pub(crate) fn command_now(&mut self, command: Command) -> Answer {
        let now = self.stamp();
        let commands = vec![command];
        let Some(memory) = self.controller.memory.as_mut() else { return Answer::default() };
        let (mut answers, rows) = step(&mut memory.state, commands.clone(), now, &mut memory.mint);
        memory.state.deltas(&rows, now).iter().for_each(|delta| memory.world.apply(delta));
        memory.copies = None;
        self.judge_commit(&commands, &answers, &rows);
        match answers.pop() {
            Some(Ok(answer)) => answer,
            refused => {
                self.oracle.fail(self.now, format!("the set-up was refused: {refused:?}"));
                Answer::default()
            }
        }
    }
}

/// Whether other copies may be wanted after these rows.
fn moves_copies(rows: &Rows) -> bool {
    let still = rows.checkpoints.is_empty()
        && rows.migrations.is_empty()
        && rows.sites.is_empty()
        && rows.projects.is_empty()
        && rows.events.is_empty();
    !still
}
