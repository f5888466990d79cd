//! What nodes report, behind the fences.

use std::collections::BTreeMap;

use sluice_types::{AttemptId, Generation, Nanos, NodeId, NodeInstant, Reason};

use super::Step;
use super::fleet::Inventory;
use crate::command::{Answer, Held, NodeReport, Refusal, TaskKey};
use crate::model::{Attempt, AttemptState, Goal, JobState, MigrationPhase, NodeState, StopOrder, TaskState};
use crate::state::Happened;

const MAX_METRICS: usize = 16;

impl Step<'_> {
    pub(super) fn report(
        &mut self,
        node: NodeId,
        generation: Generation,
        report: NodeReport,
    ) -> Result<Answer, Refusal> {
        let row = self.state.nodes.get(&node).ok_or_else(|| Refusal::not_found("node"))?;
        let stale = generation != row.generation;
        let lost = row.state == NodeState::Lost;
        match report {
            NodeReport::Hello { boot, devices, host_cores, host_memory, advisory, clock, address } => {
                self.hello(node, Inventory { boot, devices, host_cores, host_memory, advisory, clock, address })
            }
            _ if stale => {
                self.state.count(|counters| &mut counters.stale_streams);
                Err(Refusal::new(Reason::StaleGeneration, "a newer stream of this node is open"))
            }
            // Silent for too long, its stream open all the while: it has to say again what it has and runs.
            _ if lost => Err(Refusal::new(Reason::NodeLost, "the node was taken for lost; it must connect again")),
            NodeReport::Heartbeat(clock) => {
                self.heartbeat(node, clock);
                Ok(Answer::default())
            }
            NodeReport::Prepared(key) => self.task(node, key, |step, key| step.prepared(key)),
            NodeReport::Running { key, started, step: number, metrics, held } => self.task(node, key, |step, key| {
                step.running(key, started, number, metrics);
                held.into_iter().for_each(|held| step.held(key, held));
            }),
            NodeReport::Ended { key, end, windows, step: number } => {
                self.task(node, key, |step, key| step.ended(key, end, windows, number))
            }
            NodeReport::Sealed { key, step: number, manifest, size, captured, next_window } => {
                self.task(node, key, |step, key| step.sealed(node, key, number, manifest, size, captured, next_window))
            }
            NodeReport::Windows(records) => {
                records.into_iter().for_each(|record| self.window(node, record));
                Ok(Answer::default())
            }
        }
    }

    /// Runs `act` if the task is known, on this node, and of this fence. What nobody knows must be released.
    fn task(&mut self, node: NodeId, key: TaskKey, act: impl FnOnce(&mut Self, TaskKey)) -> Result<Answer, Refusal> {
        let lease = self.state.leases.get(&key.lease);
        let known = lease.is_some_and(|row| {
            row.attempt == key.attempt && row.generation == key.generation && row.device.node == node
        });
        if known {
            act(self, key);
            return Ok(Answer::default());
        }
        self.state.count(|counters| &mut counters.stale_reports);
        Ok(Answer { release: vec![key], ..Answer::default() })
    }

    /// The attempt still counts: it owns its job, or prepares to.
    fn is_live(&self, key: TaskKey) -> bool {
        self.state.attempts.get(&key.attempt).is_some_and(|row| row.state != AttemptState::Ended)
    }

    fn prepared(&mut self, key: TaskKey) {
        if !self.is_live(key) {
            self.state.count(|counters| &mut counters.stale_reports);
            return;
        }
        if self.advance_task(key, TaskState::Prepared) {
            self.attempt_prepared(key);
        }
    }

    /// All tasks are prepared: a migration may go on.
    fn attempt_prepared(&mut self, key: TaskKey) {
        let Some(row) = self.state.attempts.get_mut(&key.attempt) else { return };
        let all = row.tasks.iter().all(|task| task.state >= TaskState::Prepared);
        if !all || row.goal != Goal::Prepare || row.state != AttemptState::Assigned {
            return;
        }
        row.state = AttemptState::Prepared;
        let job = row.job;
        self.migration_prepared(job, key.attempt);
    }

    fn running(&mut self, key: TaskKey, started: NodeInstant, number: u64, metrics: BTreeMap<String, f64>) {
        if !self.is_live(key) {
            self.state.count(|counters| &mut counters.stale_reports);
            return;
        }
        if self.state.leases.get(&key.lease).is_some_and(|row| row.started.is_none())
            && let Some(row) = self.state.leases.get_mut(&key.lease)
        {
            row.started = Some(started);
            let (node, job, rank) = (row.device.node, row.job, row.rank);
            self.credit_preparation(key.lease);
            // Windows may be here before it is known that they were of its run.
            let ran = self.state.windows.range((key.lease, 0)..=(key.lease, u64::MAX)).map(|(_, window)| window);
            let ran = ran.filter(|window| window.start >= started).map(|window| window.end.since(window.start));
            let ran = ran.fold(Nanos::ZERO, Nanos::plus);
            if rank == 0
                && ran > Nanos::ZERO
                && let Some(row) = self.state.jobs.get_mut(&job)
            {
                row.run_time = row.run_time.plus(ran);
            }
            if self.state.nodes.get(&node).is_some_and(|row| row.failed_starts > 0)
                && let Some(row) = self.state.nodes.get_mut(&node)
            {
                row.failed_starts = 0;
            }
        }
        self.progress(key, number, metrics);
        if self.advance_task(key, TaskState::Running) {
            self.attempt_running(key.attempt);
        }
    }

    /// A task of a gang is held. Once all are, they are told the step at which none of them has arrived yet.
    fn held(&mut self, key: TaskKey, held: Held) {
        let rank = self.state.leases.get(&key.lease).map_or(0, |row| row.rank);
        let Some(row) = self.state.attempts.get(&key.attempt) else { return };
        let waits = row.goal == Goal::Checkpoint && row.order.is_some_and(|order| order.stop_step.is_none());
        // What a task told of an order that was taken back since says nothing of where it is now.
        if row.state == AttemptState::Ended || row.revision != held.revision || !waits || !self.state.meets(row) {
            return;
        }
        let Some(row) = self.state.attempts.get_mut(&key.attempt) else { return };
        let Some(task) = usize::try_from(rank).ok().and_then(|rank| row.tasks.get_mut(rank)) else { return };
        task.held = Some(held.step);
        self.agree_on_step(key.attempt);
    }

    /// If every task left is held: a step that none of them has passed. One that ended by itself will stop nowhere any
    /// more, so then the others are let go to their end.
    pub(super) fn agree_on_step(&mut self, id: AttemptId) {
        let waits = |row: &&Attempt| row.order.is_some_and(|order| order.stop_step.is_none());
        let Some(row) = self.state.attempts.get(&id).filter(waits) else { return };
        let over = row.tasks.iter().any(|task| task.state == TaskState::Ended);
        let live = row.tasks.iter().filter(|task| task.state != TaskState::Ended);
        let held: Option<Vec<u64>> = live.map(|task| task.held).collect();
        let Some(last) = held.and_then(|held| held.into_iter().max()) else { return };
        if let Some(row) = self.state.attempts.get_mut(&id) {
            row.order = row.order.map(|order| {
                let step = if over { u64::MAX } else { last.saturating_add(1) };
                StopOrder { stop_step: Some(step), ..order }
            });
            row.revision += 1;
        }
    }

    /// Steps and metrics are of rank 0, and of the owner.
    fn progress(&mut self, key: TaskKey, number: u64, metrics: BTreeMap<String, f64>) {
        let Some(lease) = self.state.leases.get(&key.lease).filter(|row| row.rank == 0) else { return };
        let Some(row) = self.state.jobs.get_quietly(&lease.job) else { return };
        if row.current != Some(key.attempt) || (row.step == number && row.metrics == metrics) {
            return;
        }
        row.step = number;
        row.metrics = metrics.into_iter().filter(|(_, value)| value.is_finite()).take(MAX_METRICS).collect();
        let id = row.id;
        self.state.jobs.mark(&id);
    }

    /// Every task runs, or has run: a short one may end before the last begins.
    pub(super) fn attempt_running(&mut self, attempt: AttemptId) {
        let now = self.now;
        let Some(row) = self.state.attempts.get_mut(&attempt) else { return };
        if row.state != AttemptState::Assigned || row.tasks.iter().any(|task| task.state < TaskState::Running) {
            return;
        }
        row.state = AttemptState::Running;
        row.started = Some(now);
        let (id, site, generation) = (row.job, row.site, row.generation);
        let name = self.site_name(site);
        let Some(job) = self.state.jobs.get(&id).cloned() else { return };
        if job.current != Some(attempt) {
            return;
        }
        let what = Happened::new("Running", format!("at {name}, generation {generation}"), "node");
        match job.state {
            JobState::Starting => {
                self.set_state(id, JobState::Running, None, String::new(), what);
                // The one in whose place it serves may go at once.
                if let Some(endpoint) = job.endpoint.filter(|_| job.replaces.is_some()) {
                    self.scale(endpoint);
                }
            }
            JobState::Migrating => {
                self.end_migration(id, MigrationPhase::Done, None);
                self.set_state(id, JobState::Running, None, String::new(), what);
            }
            _ => {}
        }
    }

    /// Moves a task forward; reports that arrive late or twice change nothing. True if it moved.
    pub(super) fn advance_task(&mut self, key: TaskKey, to: TaskState) -> bool {
        let Some(rank) = self.state.leases.get(&key.lease).and_then(|lease| usize::try_from(lease.rank).ok()) else {
            return false;
        };
        let standing = self.state.attempts.get(&key.attempt).and_then(|row| row.tasks.get(rank)).map(|task| task.state);
        if standing.is_none_or(|standing| standing >= to) {
            return false;
        }
        if let Some(task) = self.state.attempts.get_mut(&key.attempt).and_then(|row| row.tasks.get_mut(rank)) {
            task.state = to;
        }
        true
    }
}
