//! The timeline of running jobs, step by step.

use std::collections::BTreeMap;

use sluice_lifecycle::StopStep;
use sluice_lifecycle::model::{JobKind, JobSpec, TaskEnd};
use sluice_types::{AttemptId, LeaseId, Reason};

use crate::agent::end_with;
use crate::host::{Assignment, Task};
use crate::params::{MINUTE, SECOND};
use crate::sim::{Event, Sim};

/// What a job does when it runs.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) steps: u64,
    /// Nanoseconds per step.
    pub(crate) pace: u64,
    /// Steps between captures; 0 = only when told.
    pub(crate) every: u64,
    pub(crate) prepare: u64,
    pub(crate) seal: u64,
    /// At which step the first attempt that gets there fails.
    pub(crate) fails_at: Option<u64>,
    /// Knows how to be captured.
    pub(crate) captures: bool,
}

/// What a rental's environment names its program by.
pub(crate) const PROGRAM: &str = "PROGRAM";

/// What replicas and imports run: the system's own programs.
const ENGINE: usize = 0;
const IMPORT: usize = 1;
/// The first step of an engine; then it serves.
const FIRST_STEP: u64 = 5 * SECOND;

/// The programs that no user brings.
pub(crate) fn system_programs() -> [Program; 2] {
    let engine = Program {
        steps: u64::MAX,
        pace: 2 * MINUTE,
        every: 0,
        prepare: 2 * SECOND,
        seal: SECOND,
        fails_at: None,
        captures: false,
    };
    [engine.clone(), Program { steps: 2, pace: 10 * SECOND, ..engine }]
}

/// Which program a job runs. A rental has no command: its environment says who works in it.
pub(crate) fn program_of(spec: &JobSpec) -> Option<usize> {
    let name = match spec.kind {
        JobKind::Batch => spec.command.get(1),
        JobKind::Rental => spec.env.get(PROGRAM),
        JobKind::Replica => return Some(ENGINE),
        JobKind::Import => return Some(IMPORT),
    };
    name?.parse().ok()
}

/// The processes of one attempt. They wait for each other within each step, as programs do that exchange gradients: a
/// step ends only after every task has begun it, and each task ends it at a moment of its own.
#[derive(Debug, Default)]
pub(crate) struct Gang {
    /// Host and lease, by rank.
    members: BTreeMap<u32, (usize, LeaseId)>,
    world: u32,
    program: usize,
    /// The step that each task has finished.
    done: BTreeMap<u32, u64>,
    /// The step that each task is in.
    within: BTreeMap<u32, u64>,
    /// Up to this step, ends are planned.
    planned: u64,
}

impl Sim {
    pub(crate) fn join_gang(&mut self, host: usize, wanted: &Assignment) {
        let gang = self.gangs.entry(wanted.key.attempt).or_default();
        gang.members.insert(wanted.rank, (host, wanted.key.lease));
        (gang.world, gang.program) = (wanted.world, wanted.program);
        let from = wanted.resume.map_or(0, |resume| resume.1);
        gang.done.insert(wanted.rank, from);
        gang.planned = gang.planned.max(from);
        // Nobody is asked before the first step.
        self.begin_step(wanted.key.attempt, wanted.rank, from + 1);
    }

    fn begin_step(&mut self, attempt: AttemptId, rank: u32, step: u64) {
        let Some(gang) = self.gangs.get_mut(&attempt) else { return };
        gang.within.insert(rank, step);
        let complete = u32::try_from(gang.members.len()).is_ok_and(|count| count == gang.world);
        if !complete || gang.planned >= step || gang.within.values().any(|within| *within != step) {
            return;
        }
        let hosts = &self.hosts;
        if !gang.members.values().all(|(host, lease)| hosts[*host].has_process(lease)) {
            return;
        }
        gang.planned = step;
        let ranks: Vec<_> = gang.members.keys().copied().collect();
        let begins = gang.program == ENGINE && step == 1;
        let pace = if begins { FIRST_STEP } else { self.jobs[gang.program].pace };
        for rank in ranks {
            let jitter = self.dice.range(0, pace / 20);
            self.agenda.plan(self.now + pace + jitter, Event::Step { attempt, rank, step });
        }
    }

    /// A step is complete on one task.
    pub(crate) fn on_step(&mut self, attempt: AttemptId, rank: u32, step: u64) {
        let Some(gang) = self.gangs.get_mut(&attempt) else { return };
        let (hosts, done) = (&self.hosts, &gang.done);
        // A peer that died within the step takes it along; one that has finished it does not.
        let there = |(other, (host, lease)): (&u32, &(usize, LeaseId))| {
            hosts[*host].has_process(lease) || (*other != rank && done.get(other).is_some_and(|done| *done >= step))
        };
        if !gang.members.iter().all(there) {
            return;
        }
        gang.within.remove(&rank);
        gang.done.insert(rank, step);
        let program = gang.program;
        let Some((host, lease)) = gang.members.get(&rank).copied() else { return };
        if let Some(task) = self.hosts[host].tasks.get_mut(&lease) {
            task.step = step;
            self.oracle.stepped(self.now, &task.wanted, rank, step);
        }
        let plan = self.jobs[program].clone();
        // Engines die now and then, and some at once.
        if program == ENGINE && self.dice.chance(if step == 1 { 100 } else { 15 }) {
            let died =
                TaskEnd { exit_code: None, signal: 11, ..end_with(Some(Reason::Signalled), "ended by signal 11") };
            return self.process_ended(host, lease, died);
        }
        if program == ENGINE && step == 1 {
            self.start_worker(attempt, host, lease);
        } else if program == ENGINE && self.asks.chance(100) {
            self.freeze_worker(attempt);
        }
        if plan.fails_at == Some(step) && rank == 0 {
            self.jobs[program].fails_at = None;
            let failed = TaskEnd { exit_code: Some(1), ..end_with(Some(Reason::ExitStatus), "exit status 1") };
            return self.process_ended(host, lease, failed);
        }
        if step >= plan.steps {
            return self.process_ended(host, lease, end_with(None, ""));
        }
        let free = self.hosts[host].tasks.get(&lease).is_some_and(|task| task.order.is_none());
        if free && plan.captures && plan.every > 0 && step.is_multiple_of(plan.every) {
            self.capture(host, lease, step, false);
        }
        self.at_boundary(host, lease);
    }

    /// A task between two steps: it goes on, waits, or stops with its state captured, as it is told.
    pub(crate) fn at_boundary(&mut self, host: usize, lease: LeaseId) {
        let Some(task) = self.hosts[host].tasks.get(&lease).filter(|task| task.process) else { return };
        let (attempt, rank) = (task.wanted.key.attempt, task.wanted.rank);
        let Some(gang) = self.gangs.get(&attempt).filter(|gang| !gang.within.contains_key(&rank)) else { return };
        let Some(step) = gang.done.get(&rank).copied() else { return };
        let captures = self.jobs[gang.program].captures;
        match task.order.filter(|_| captures) {
            Some(StopStep::Hold) => return,
            Some(StopStep::From(from)) if step < from => {}
            Some(StopStep::Next) if task.wanted.signalled && !self.agree(&task.wanted, step) => {}
            Some(StopStep::Next | StopStep::From(_)) => return self.stop_here(host, lease, step),
            None => {}
        }
        self.begin_step(attempt, rank, step + 1);
    }

    /// The other tasks of a gang, each with the step it is in.
    fn peers(&self, wanted: &Assignment) -> Vec<(&Task, Option<u64>)> {
        let Some(gang) = self.gangs.get(&wanted.key.attempt) else { return Vec::new() };
        let others = gang.members.iter().filter(|(rank, _)| **rank != wanted.rank);
        let task = |(rank, (host, lease)): (&u32, &(usize, LeaseId))| {
            Some((self.hosts[*host].tasks.get(lease)?, gang.within.get(rank).copied()))
        };
        others.filter_map(task).collect()
    }

    /// What programs do that are told by a signal: they stop once all are told, where none is further.
    fn agree(&self, wanted: &Assignment, step: u64) -> bool {
        let told = |task: &Task| task.exited_by_order || (task.process && task.order == Some(StopStep::Next));
        self.peers(wanted).into_iter().all(|(peer, within)| told(peer) && within.is_none_or(|within| within <= step))
    }

    fn stop_here(&mut self, host: usize, lease: LeaseId, step: u64) {
        let Some(task) = self.hosts[host].tasks.get(&lease) else { return };
        let wanted = task.wanted.clone();
        let peers = self.peers(&wanted);
        let told = peers.into_iter().filter(|(peer, _)| peer.process && peer.ordered == task.ordered);
        let within: Vec<_> = told.filter_map(|(_, within)| within).collect();
        self.oracle.stops(self.now, &wanted, step, &within);
        self.capture(host, lease, step, true);
        if let Some(task) = self.hosts[host].tasks.get_mut(&lease) {
            (task.order, task.exited_by_order) = (None, true);
        }
        self.process_ended(host, lease, end_with(None, ""));
    }

    /// Nobody told in time where a held task stops: it goes on.
    pub(crate) fn on_held_long(&mut self, host: usize, lease: LeaseId, ordered: u64) {
        let held = |task: &&mut Task| task.ordered == ordered && task.order == Some(StopStep::Hold);
        if let Some(task) = self.hosts[host].tasks.get_mut(&lease).filter(held) {
            task.order = None;
            self.oracle.let_go(task.wanted.key.attempt);
            self.at_boundary(host, lease);
        }
    }

    /// A signal reaches a process.
    pub(crate) fn on_kill(&mut self, host: usize, lease: LeaseId, boot: u64) {
        let told = self.hosts[host].tasks.get(&lease).is_some_and(|task| {
            use sluice_lifecycle::model::Goal;
            matches!(task.goal(), None | Some(Goal::Stop | Goal::Release))
        });
        if told && self.hosts[host].boot == boot {
            let end =
                TaskEnd { exit_code: None, signal: 15, ..end_with(Some(Reason::Signalled), "ended by signal 15") };
            self.process_ended(host, lease, end);
        }
    }

    pub(crate) fn on_run_limit(&mut self, host: usize, lease: LeaseId, boot: u64) {
        if self.hosts[host].boot == boot {
            let end = TaskEnd { exit_code: None, signal: 9, ..end_with(Some(Reason::RunLimit), "ran too long") };
            self.process_ended(host, lease, end);
        }
    }
}
