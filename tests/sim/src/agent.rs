//! What a node's agent does: takes lists, prepares, launches, orders, seals, meters, proves.

use std::collections::{BTreeSet, VecDeque};

use sluice_lifecycle::model::{Capture, Goal, TaskEnd};
use sluice_lifecycle::{Held, NodeReport, State, StopStep, TaskKey, Wish};
use sluice_types::{Digest, LeaseId, NodeInstant, Reason};

use crate::host::{Assignment, Stage, Staged, Task};
use crate::params::{FINISH, MILLI, SECOND, settings};
use crate::process::program_of;
use crate::sim::{Event, Sim};

/// A wish with what its job says, as the controller sends it.
pub(crate) fn assignment(state: &State, wish: &Wish) -> Option<Assignment> {
    let attempt = state.attempt(wish.key.attempt)?;
    let job = state.job(attempt.job)?;
    let lease = state.lease(wish.key.lease)?;
    Some(Assignment {
        key: wish.key,
        goal: wish.goal,
        revision: wish.revision,
        rank: wish.rank,
        world: job.spec.tasks,
        resume: wish.resume,
        stop: wish.stop,
        signalled: job.spec.checkpoint.as_ref().is_some_and(|policy| policy.capture != Capture::StateProvider),
        job: job.id,
        program: program_of(&job.spec)?,
        device: lease.device.index,
        milli: lease.resources.milli.get(),
        run_limit: attempt.run_limit.map(|limit| limit.get()),
        sequences: job.spec.model.as_ref().map_or(0, |model| model.sequences),
    })
}

/// The name of one part: no two captures share it.
pub(crate) fn manifest(key: TaskKey, rank: u32, step: u64) -> Digest {
    let mut bytes = [0u8; 32];
    bytes[..8].copy_from_slice(&key.attempt.raw().to_be_bytes());
    bytes[8..16].copy_from_slice(&key.lease.raw().to_be_bytes());
    bytes[16..20].copy_from_slice(&rank.to_be_bytes());
    bytes[20..28].copy_from_slice(&step.to_be_bytes());
    Digest::from_bytes(bytes)
}

pub(crate) fn end_with(reason: Option<Reason>, message: &str) -> TaskEnd {
    TaskEnd {
        exit_code: reason.is_none().then_some(0),
        signal: 0,
        reason,
        message: message.to_owned(),
        at_checkpoint: false,
        outputs: None,
        outputs_manifest: None,
    }
}

impl Sim {
    fn accept(&mut self, host: usize, wanted: Assignment) {
        let now = self.now;
        let row = &mut self.hosts[host];
        let task = Task {
            unlisted: false,
            stage: Stage::Fresh,
            epoch: 0,
            boot: row.boot_id(),
            sequence: 0,
            opened: row.clock(now),
            closed: false,
            started: None,
            step: wanted.resume.map_or(0, |resume| resume.1),
            staged: VecDeque::new(),
            sealing: false,
            sealed: Vec::new(),
            ordered: 0,
            order: None,
            held: None,
            exited_by_order: false,
            order_sealed: false,
            end: None,
            exit_at: None,
            finish_by: 0,
            process: false,
            wanted,
        };
        row.tasks.insert(task.wanted.key.lease, task);
    }

    /// Takes a list of what should be.
    pub(crate) fn apply_desired(&mut self, host: usize, list: Vec<Assignment>) {
        let listed: BTreeSet<LeaseId> = list.iter().map(|wanted| wanted.key.lease).collect();
        self.hosts[host].proofs.retain(|lease, _| listed.contains(lease));
        let gone: Vec<_> = self.hosts[host].tasks.keys().filter(|lease| !listed.contains(lease)).copied().collect();
        for wanted in list {
            self.apply_one(host, wanted);
        }
        for lease in gone {
            if let Some(task) = self.hosts[host].tasks.get_mut(&lease) {
                task.unlisted = true;
            }
            self.act(host, lease);
        }
    }

    fn apply_one(&mut self, host: usize, wanted: Assignment) {
        let lease = wanted.key.lease;
        let Some(task) = self.hosts[host].tasks.get_mut(&lease) else {
            if matches!(wanted.goal, Goal::Stop | Goal::Release) {
                return self.prove(host, wanted.key);
            }
            self.accept(host, wanted);
            return self.act(host, lease);
        };
        if wanted.revision < task.wanted.revision {
            return;
        }
        let changed = task.goal() != Some(wanted.goal);
        let moved = task.wanted.resume != wanted.resume && matches!(task.stage, Stage::Preparing | Stage::Prepared);
        task.unlisted = false;
        task.wanted = wanted;
        if moved {
            task.stage = Stage::Fresh;
            task.step = task.wanted.resume.map_or(0, |resume| resume.1);
        }
        if changed {
            self.cut_now(host, lease);
        }
        self.act(host, lease);
    }

    /// Tasks that nobody knows must go; those that were never here are proven gone at once.
    pub(crate) fn apply_release(&mut self, host: usize, keys: Vec<TaskKey>) {
        for key in keys {
            match self.hosts[host].tasks.get_mut(&key.lease) {
                Some(task) => {
                    task.wanted.goal = Goal::Release;
                    self.act(host, key.lease);
                }
                None => self.prove(host, key),
            }
        }
    }

    /// A task that was never here is gone. Told once per stream, however often it is asked for.
    fn prove(&mut self, host: usize, key: TaskKey) {
        if self.hosts[host].proofs.insert(key.lease, key) != Some(key) {
            self.send_up(host, never_here(key));
        }
    }

    /// Does the next thing for one task, as far as nothing has to be waited for.
    pub(crate) fn act(&mut self, host: usize, lease: LeaseId) {
        if !self.hosts[host].runs_agent() {
            return;
        }
        let Some(task) = self.hosts[host].tasks.get_mut(&lease) else { return };
        let goal = task.goal();
        match (task.stage, goal) {
            (Stage::Fresh, Some(Goal::Prepare | Goal::Run | Goal::Checkpoint)) => {
                task.stage = Stage::Preparing;
                task.epoch += 1;
                let epoch = task.epoch;
                let program = task.wanted.program;
                let span = self.jobs[program].prepare + self.dice.range(0, 2 * SECOND);
                self.agenda.plan(self.now + span, Event::Prepared { host, lease, epoch });
            }
            (Stage::Prepared, Some(Goal::Run | Goal::Checkpoint)) => {
                task.stage = Stage::Launching;
                task.epoch += 1;
                let epoch = task.epoch;
                let span = self.dice.range(200 * MILLI, SECOND);
                self.agenda.plan(self.now + span, Event::Launched { host, lease, epoch });
            }
            (Stage::Fresh | Stage::Preparing | Stage::Prepared, None | Some(Goal::Stop | Goal::Release)) => {
                task.end = Some(end_with(Some(Reason::Signalled), "told to end before it started"));
                self.begin_finish(host, lease);
            }
            (Stage::Running, Some(Goal::Checkpoint)) if task.ordered < task.wanted.revision => {
                task.ordered = task.wanted.revision;
                task.order = Some(task.wanted.stop);
                task.held = (task.wanted.stop == StopStep::Hold).then_some(task.step);
                if task.held.is_some() {
                    let ordered = task.ordered;
                    let late = self.now + settings().stop_deadline.get();
                    self.agenda.plan(late, Event::HeldLong { host, lease, ordered });
                    self.tell_running(host, lease);
                }
                self.at_boundary(host, lease);
            }
            (Stage::Running, Some(Goal::Prepare | Goal::Run)) => {
                (task.order, task.held) = (None, None);
                self.at_boundary(host, lease);
            }
            (Stage::Running, None | Some(Goal::Stop | Goal::Release)) => {
                let most = if goal == Some(Goal::Stop) { 8 * SECOND } else { 2 * SECOND };
                let at = self.now + self.dice.range(200 * MILLI, most);
                self.agenda.plan(at, Event::Kill { host, lease, boot: self.hosts[host].boot });
            }
            (Stage::Finishing, None | Some(Goal::Release)) => {
                task.staged.clear();
                self.finish(host, lease);
            }
            (Stage::Ended, None) => {
                self.hosts[host].tasks.remove(&lease);
            }
            _ => {}
        }
    }

    pub(crate) fn on_prepared(&mut self, host: usize, lease: LeaseId, epoch: u64) {
        let site = self.hosts[host].site;
        let Some(task) = self.task_at(host, lease, Stage::Preparing, epoch) else { return };
        let there = task.wanted.resume.is_none_or(|(manifest, _)| self.sites[site].has(&manifest));
        if !there || (!self.sites[site].up && self.hosts[host].tasks[&lease].wanted.resume.is_some()) {
            // The vault is away, or does not have it: tried again.
            self.agenda.plan(self.now + 5 * SECOND, Event::Prepared { host, lease, epoch });
            return;
        }
        let Some(task) = self.hosts[host].tasks.get_mut(&lease) else { return };
        task.stage = Stage::Prepared;
        let key = task.wanted.key;
        self.oracle.prepared(key.lease);
        self.send_up(host, NodeReport::Prepared(key));
        self.act(host, lease);
    }

    fn task_at(&self, host: usize, lease: LeaseId, stage: Stage, epoch: u64) -> Option<&Task> {
        let row = &self.hosts[host];
        if !row.runs_agent() {
            return None;
        }
        row.tasks.get(&lease).filter(|task| task.stage == stage && task.epoch == epoch)
    }

    pub(crate) fn on_launched(&mut self, host: usize, lease: LeaseId, epoch: u64) {
        if self.task_at(host, lease, Stage::Launching, epoch).is_none() {
            return;
        }
        let now = self.now;
        let clock = self.hosts[host].clock(now);
        let boot = self.hosts[host].boot;
        let Some(task) = self.hosts[host].tasks.get_mut(&lease) else { return };
        task.stage = Stage::Running;
        task.process = true;
        task.started = Some(clock);
        let wanted = task.wanted.clone();
        if let Some(limit) = wanted.run_limit {
            self.agenda.plan(now + limit, Event::RunLimit { host, lease, boot });
        }
        self.oracle.launched(now, host, &wanted, &self.hosts);
        self.cut_now(host, lease);
        self.tell_running(host, lease);
        self.join_gang(host, &wanted);
        self.act(host, lease);
    }

    pub(crate) fn tell_running(&mut self, host: usize, lease: LeaseId) {
        let Some(report) = self.hosts[host].tasks.get(&lease).and_then(running) else { return };
        self.send_up(host, report);
    }

    /// Closes the open window now, because something that is billed or credited differently begins.
    fn cut_now(&mut self, host: usize, lease: LeaseId) {
        let clock = self.hosts[host].clock(self.now);
        if self.hosts[host].tasks.get(&lease).is_some_and(|task| task.end.is_some()) {
            return;
        }
        let mut records = self.hosts[host].catch_up(lease, clock, settings().window.get());
        records.extend(self.hosts[host].close_window(lease, clock));
        self.journalled(host, records);
    }

    pub(crate) fn journalled(&mut self, host: usize, records: Vec<sluice_lifecycle::WindowReport>) {
        let node = self.hosts[host].node;
        records.into_iter().for_each(|record| self.oracle.journalled(node, record));
        self.ship(host);
    }

    /// Closes windows whose time has passed.
    pub(crate) fn meter(&mut self, host: usize) {
        let clock = self.hosts[host].clock(self.now);
        let leases: Vec<_> = self.hosts[host].tasks.keys().copied().collect();
        let mut records = Vec::new();
        for lease in leases {
            let open = self.hosts[host].tasks.get(&lease).is_some_and(|task| task.end.is_none());
            if open {
                records.extend(self.hosts[host].catch_up(lease, clock, settings().window.get()));
            }
        }
        self.journalled(host, records);
    }

    /// The state at the end of a step is captured.
    pub(crate) fn capture(&mut self, host: usize, lease: LeaseId, step: u64, ordered: bool) {
        let captured = self.hosts[host].clock(self.now);
        let agent = self.hosts[host].runs_agent();
        let Some(task) = self.hosts[host].tasks.get_mut(&lease) else { return };
        task.staged.push_back(Staged { step, captured, next_window: None, ordered });
        if agent {
            let records = self.hosts[host].catch_up(lease, captured, settings().window.get());
            self.journalled(host, records);
            self.seal_next(host, lease);
        }
    }

    /// The process is gone.
    pub(crate) fn process_ended(&mut self, host: usize, lease: LeaseId, end: TaskEnd) {
        let clock = self.hosts[host].clock(self.now);
        let Some(task) = self.hosts[host].tasks.get_mut(&lease).filter(|task| task.process) else { return };
        task.process = false;
        task.end = Some(end);
        task.exit_at = Some(clock);
        let attempt = task.wanted.key.attempt;
        self.oracle.process_gone(self.now, lease);
        self.end_worker(attempt, true);
        if self.hosts[host].runs_agent() {
            self.begin_finish(host, lease);
        }
    }

    /// Closes the last window; then what is staged is sealed.
    pub(crate) fn begin_finish(&mut self, host: usize, lease: LeaseId) {
        let clock = self.hosts[host].clock(self.now);
        let same_boot = self.hosts[host].tasks.get(&lease).is_some_and(|task| task.boot == self.hosts[host].boot_id());
        let mut records = Vec::new();
        if same_boot {
            let until = self.hosts[host].tasks.get(&lease).and_then(|task| task.exit_at).unwrap_or(clock);
            records = self.hosts[host].catch_up(lease, until, settings().window.get());
            records.extend(self.hosts[host].close_window(lease, until));
        }
        let finish_by = self.now + FINISH;
        if let Some(task) = self.hosts[host].tasks.get_mut(&lease) {
            task.closed = true;
            task.stage = Stage::Finishing;
            task.finish_by = finish_by;
            task.sealing = false;
            task.epoch += 1;
        }
        self.journalled(host, records);
        self.finish(host, lease);
    }

    fn finish(&mut self, host: usize, lease: LeaseId) {
        let now = self.now;
        let Some(task) = self.hosts[host].tasks.get_mut(&lease) else { return };
        if task.stage != Stage::Finishing {
            return;
        }
        if task.is_fenced() || now >= task.finish_by {
            task.staged.clear();
        }
        if !task.staged.is_empty() {
            return self.seal_next(host, lease);
        }
        task.stage = Stage::Ended;
        if task.exited_by_order
            && let Some(end) = task.end.as_mut()
        {
            end.at_checkpoint = task.order_sealed;
            if !task.order_sealed {
                *end = end_with(Some(Reason::NodeLost), "its last checkpoint could not be stored");
            }
        }
        self.tell_ended(host, lease);
        self.act(host, lease);
    }

    fn tell_ended(&mut self, host: usize, lease: LeaseId) {
        let Some(report) = self.hosts[host].tasks.get(&lease).and_then(ended) else { return };
        self.send_up(host, report);
    }

    pub(crate) fn seal_next(&mut self, host: usize, lease: LeaseId) {
        let Some(task) = self.hosts[host].tasks.get_mut(&lease) else { return };
        if task.sealing || task.staged.is_empty() || task.is_fenced() {
            return;
        }
        task.sealing = true;
        let epoch = task.epoch;
        let span = self.jobs[task.wanted.program].seal + self.dice.range(0, SECOND);
        self.agenda.plan(self.now + span, Event::SealDone { host, lease, epoch });
    }

    pub(crate) fn on_seal_done(&mut self, host: usize, lease: LeaseId, epoch: u64) {
        let site = self.hosts[host].site;
        if !self.hosts[host].runs_agent() {
            return;
        }
        let up = self.sites[site].up;
        let now = self.now;
        let size = 1 << 20;
        let Some(task) = self.hosts[host].tasks.get_mut(&lease).filter(|task| task.epoch == epoch && task.sealing)
        else {
            return;
        };
        if !(up || (task.stage == Stage::Finishing && now >= task.finish_by)) {
            self.agenda.plan(now + 5 * SECOND, Event::SealDone { host, lease, epoch });
            return;
        }
        task.sealing = false;
        if up
            && !task.is_fenced()
            && let Some(staged) = task.staged.pop_front()
        {
            let (key, rank) = (task.wanted.key, task.wanted.rank);
            let name = manifest(key, rank, staged.step);
            task.order_sealed |= staged.ordered;
            let next_window = staged.next_window.unwrap_or(task.sequence);
            let captured = NodeInstant::from_nanos(staged.captured);
            let report = NodeReport::Sealed { key, step: staged.step, manifest: name, size, captured, next_window };
            task.sealed.push(report.clone());
            let wanted = task.wanted.clone();
            self.sites[site].seal(name);
            self.oracle.stored(self.sites[site].id, name);
            self.oracle.sealed(name, &wanted, staged.step, next_window);
            self.send_up(host, report);
        }
        self.finish(host, lease);
        self.seal_next(host, lease);
    }

    /// Everything that the controller should know of the tasks, for a new stream.
    pub(crate) fn tell_all(&mut self, host: usize) {
        let mut reports = Vec::new();
        for task in self.hosts[host].tasks.values() {
            reports.extend(task.sealed.iter().cloned());
            reports.extend(match task.stage {
                Stage::Prepared => Some(NodeReport::Prepared(task.wanted.key)),
                Stage::Running => running(task),
                Stage::Ended => ended(task),
                _ => None,
            });
        }
        reports.extend(self.hosts[host].proofs.values().copied().map(never_here));
        reports.into_iter().for_each(|report| self.send_up(host, report));
    }
}

fn never_here(key: TaskKey) -> NodeReport {
    let end = end_with(Some(Reason::Signalled), "was never here");
    NodeReport::Ended { key, end, windows: 0, step: 0 }
}

fn running(task: &Task) -> Option<NodeReport> {
    Some(NodeReport::Running {
        key: task.wanted.key,
        started: NodeInstant::from_nanos(task.started?),
        step: task.step,
        metrics: std::collections::BTreeMap::new(),
        held: task.held.map(|step| Held { revision: task.ordered, step }),
    })
}

fn ended(task: &Task) -> Option<NodeReport> {
    let end = task.end.clone()?;
    Some(NodeReport::Ended { key: task.wanted.key, end, windows: task.sequence, step: task.step })
}
