//! The timeline of running jobs: the tasks of an attempt do their steps together.

use std::collections::BTreeMap;

use sluice_lifecycle::model::TaskEnd;
use sluice_types::{AttemptId, LeaseId, Reason};

use crate::agent::end_with;
use crate::host::{Assignment, Stage};
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

/// The processes of one attempt.
#[derive(Debug, Default)]
pub(crate) struct Gang {
    /// Host and lease, by rank.
    members: BTreeMap<u32, (usize, LeaseId)>,
    world: u32,
    program: usize,
    step: u64,
    moving: bool,
}

impl Sim {
    pub(crate) fn join_gang(&mut self, host: usize, wanted: &Assignment) {
        let gang = self.gangs.entry(wanted.key.attempt).or_default();
        gang.members.insert(wanted.rank, (host, wanted.key.lease));
        (gang.world, gang.program) = (wanted.world, wanted.program);
        gang.step = gang.step.max(wanted.resume.map_or(0, |resume| resume.1));
        self.go_on(wanted.key.attempt);
    }

    /// Plans the next step where every task's process lives.
    pub(crate) fn go_on(&mut self, attempt: AttemptId) {
        let Some(gang) = self.gangs.get_mut(&attempt) else { return };
        let complete = u32::try_from(gang.members.len()).is_ok_and(|count| count == gang.world);
        let hosts = &self.hosts;
        let lives = |(host, lease): &(usize, LeaseId)| {
            hosts[*host].power && hosts[*host].tasks.get(lease).is_some_and(|task| task.process)
        };
        if !complete || gang.moving || !gang.members.values().all(lives) {
            return;
        }
        gang.moving = true;
        let pace = self.jobs[gang.program].pace;
        let jitter = self.dice.range(0, pace / 20);
        self.agenda.plan(self.now + pace + jitter, Event::Step { attempt });
    }

    /// A step is complete on every task.
    pub(crate) fn on_step(&mut self, attempt: AttemptId) {
        let Some(gang) = self.gangs.get_mut(&attempt) else { return };
        gang.moving = false;
        let hosts = &self.hosts;
        let lives = |(host, lease): &(usize, LeaseId)| {
            hosts[*host].power && hosts[*host].tasks.get(lease).is_some_and(|task| task.process)
        };
        if !gang.members.values().all(lives) {
            return;
        }
        gang.step += 1;
        let (step, program) = (gang.step, gang.program);
        let members: Vec<_> = gang.members.iter().map(|(rank, at)| (*rank, *at)).collect();
        for (rank, (host, lease)) in &members {
            if let Some(task) = self.hosts[*host].tasks.get_mut(lease) {
                task.step = step;
                self.oracle.stepped(self.now, &task.wanted, *rank, step);
            }
        }
        let members: Vec<_> = members.into_iter().map(|(_, at)| at).collect();
        self.after_step(&members, program, step);
        self.go_on(attempt);
    }

    fn after_step(&mut self, members: &[(usize, LeaseId)], program: usize, step: u64) {
        let plan = self.jobs[program].clone();
        if plan.fails_at == Some(step) {
            self.jobs[program].fails_at = None;
            let failed = TaskEnd { exit_code: Some(1), ..end_with(Some(Reason::ExitStatus), "exit status 1") };
            if let Some((host, lease)) = members.first() {
                self.process_ended(*host, *lease, failed);
            }
            return;
        }
        if step >= plan.steps {
            for (host, lease) in members {
                self.process_ended(*host, *lease, end_with(None, ""));
            }
            return;
        }
        let ordered = |(host, lease): &(usize, LeaseId)| {
            self.hosts[*host].tasks.get(lease).is_some_and(|task| task.order_open && task.stage == Stage::Running)
        };
        let stop = plan.captures && members.iter().all(ordered);
        let due = plan.captures && plan.every > 0 && step.is_multiple_of(plan.every);
        if !stop && !due {
            return;
        }
        for (host, lease) in members {
            self.capture(*host, *lease, step, stop);
            if stop {
                if let Some(task) = self.hosts[*host].tasks.get_mut(lease) {
                    (task.order_open, task.exited_by_order) = (false, true);
                }
                self.process_ended(*host, *lease, end_with(None, ""));
            }
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
