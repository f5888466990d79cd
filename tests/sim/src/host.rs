//! A node as it is: its disk, its clock, its tasks and its agent's connection.

use std::collections::{BTreeMap, VecDeque};

use sluice_lifecycle::model::{Goal, TaskEnd};
use sluice_lifecycle::{NodeReport, StopStep, TaskKey, WindowReport};
use sluice_types::{BootId, Digest, Generation, JobId, LeaseId, NodeId, NodeInstant};

use crate::params::SECOND;

/// What the controller tells a node of one task.
#[derive(Debug, Clone)]
pub(crate) struct Assignment {
    pub(crate) key: TaskKey,
    pub(crate) goal: Goal,
    pub(crate) revision: u64,
    pub(crate) rank: u32,
    pub(crate) world: u32,
    pub(crate) resume: Option<(Digest, u64)>,
    pub(crate) stop: StopStep,
    /// The program is told by a signal, and its tasks agree among themselves where they stop.
    pub(crate) signalled: bool,
    pub(crate) job: JobId,
    /// Which program of the run.
    pub(crate) program: usize,
    pub(crate) device: u16,
    pub(crate) milli: u32,
    pub(crate) run_limit: Option<u64>,
    /// Of a replica: sequences that it computes at once.
    pub(crate) sequences: u32,
}

/// Where a task stands on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Fresh,
    Preparing,
    Prepared,
    Launching,
    Running,
    Finishing,
    Ended,
}

/// A captured state that is not sealed yet.
#[derive(Debug, Clone)]
pub(crate) struct Staged {
    pub(crate) step: u64,
    pub(crate) captured: u64,
    /// The first window behind the capture, once the agent has cut there.
    pub(crate) next_window: Option<u64>,
    /// Captured because of an order to stop.
    pub(crate) ordered: bool,
}

/// One task, from its assignment to the proof of its end. All of it is on the node's disk.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) wanted: Assignment,
    /// The controller does not list it.
    pub(crate) unlisted: bool,
    pub(crate) stage: Stage,
    /// Fences events of an older stage.
    pub(crate) epoch: u64,
    pub(crate) boot: BootId,
    /// Number of the open window.
    pub(crate) sequence: u64,
    /// Its begin on the node's clock.
    pub(crate) opened: u64,
    pub(crate) closed: bool,
    pub(crate) started: Option<u64>,
    pub(crate) step: u64,
    pub(crate) staged: VecDeque<Staged>,
    pub(crate) sealing: bool,
    pub(crate) sealed: Vec<NodeReport>,
    pub(crate) ordered: u64,
    /// Under that order, until it is over.
    pub(crate) order: Option<StopStep>,
    /// The last step it had told when it began to be held.
    pub(crate) held: Option<u64>,
    /// It exited by the order; whether its last state is sealed decides what that means.
    pub(crate) exited_by_order: bool,
    pub(crate) order_sealed: bool,
    pub(crate) end: Option<TaskEnd>,
    /// When its process ended, on the node's clock; `None` where nobody saw it.
    pub(crate) exit_at: Option<u64>,
    pub(crate) finish_by: u64,
    /// Its process lives.
    pub(crate) process: bool,
}

impl Task {
    pub(crate) fn goal(&self) -> Option<Goal> {
        if self.unlisted { None } else { Some(self.wanted.goal) }
    }

    /// Nothing it still does counts.
    pub(crate) fn is_fenced(&self) -> bool {
        matches!(self.goal(), None | Some(Goal::Release))
    }
}

/// An open stream, as the node sees it.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) id: u64,
    /// Known once welcomed.
    pub(crate) generation: Option<Generation>,
    pub(crate) shipped: u64,
    /// The last delivery in each direction: within a stream order holds.
    pub(crate) last_up: u64,
    pub(crate) last_down: u64,
    /// Since when nothing passes.
    pub(crate) stuck_since: Option<u64>,
    pub(crate) stuck: Vec<NodeReport>,
    /// Something for the node was lost: the stream cannot survive.
    pub(crate) lossy: bool,
}

/// One host.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) site: usize,
    pub(crate) node: NodeId,
    pub(crate) power: bool,
    /// Never comes back.
    pub(crate) gone: bool,
    pub(crate) agent: bool,
    pub(crate) boot: u64,
    pub(crate) boot_at: u64,
    pub(crate) base: u64,
    pub(crate) skew_ppm: i64,
    pub(crate) cut: bool,
    pub(crate) slow: u64,
    pub(crate) stream: Option<Stream>,
    pub(crate) connecting: bool,
    /// Reports of broken streams that are still somewhere in the network.
    pub(crate) ghosts: Vec<(u64, Generation, NodeReport)>,
    pub(crate) tasks: BTreeMap<LeaseId, Task>,
    /// Proofs for tasks that were never here, until a list asks no more; in the agent's memory only.
    pub(crate) proofs: BTreeMap<LeaseId, TaskKey>,
    pub(crate) journal: Vec<WindowReport>,
    pub(crate) next_journal: u64,
    pub(crate) class: &'static str,
    pub(crate) devices: u16,
    pub(crate) host_cores: u32,
}

impl Host {
    pub(crate) fn boot_id(&self) -> BootId {
        BootId(format!("{}-boot-{}", self.node, self.boot))
    }

    /// The node's boot-time clock at the true instant `now`.
    pub(crate) fn clock(&self, now: u64) -> u64 {
        let span = i128::from(now.saturating_sub(self.boot_at));
        let skewed = span + span * i128::from(self.skew_ppm) / 1_000_000;
        self.base + u64::try_from(skewed).unwrap_or(0)
    }

    pub(crate) fn instant(&self, now: u64) -> NodeInstant {
        NodeInstant::from_nanos(self.clock(now))
    }

    /// A task's process lives.
    pub(crate) fn has_process(&self, lease: &LeaseId) -> bool {
        self.power && self.tasks.get(lease).is_some_and(|task| task.process)
    }

    pub(crate) fn runs_agent(&self) -> bool {
        self.power && self.agent
    }

    pub(crate) fn is_welcome(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.generation.is_some())
    }

    /// Writes one window into the journal and opens the next.
    pub(crate) fn close_window(&mut self, lease: LeaseId, end: u64) -> Option<WindowReport> {
        let task = self.tasks.get_mut(&lease)?;
        if task.closed || end <= task.opened {
            return None;
        }
        let record = WindowReport {
            journal: self.next_journal,
            key: task.wanted.key,
            sequence: task.sequence,
            boot: task.boot.clone(),
            start: NodeInstant::from_nanos(task.opened),
            end: NodeInstant::from_nanos(end),
            used_ns: (end - task.opened) / 2,
            memory_byte_seconds: (end - task.opened) / SECOND,
            last_step: task.step,
            advisory: false,
        };
        self.next_journal += 1;
        task.sequence += 1;
        task.opened = end;
        self.journal.push(record.clone());
        Some(record)
    }

    /// Closes every window whose full length has passed by `until`, and cuts at each capture.
    pub(crate) fn catch_up(&mut self, lease: LeaseId, until: u64, length: u64) -> Vec<WindowReport> {
        let mut records = Vec::new();
        let Some(task) = self.tasks.get(&lease) else { return records };
        let captures: Vec<_> = task.staged.iter().map(|staged| (staged.captured, staged.next_window)).collect();
        for (place, (captured, known)) in captures.into_iter().enumerate() {
            if known.is_some() {
                continue;
            }
            self.close_due(lease, captured, length, &mut records);
            records.extend(self.close_window(lease, captured));
            let Some(task) = self.tasks.get_mut(&lease) else { return records };
            let sequence = task.sequence;
            if let Some(staged) = task.staged.get_mut(place) {
                staged.next_window = Some(sequence);
            }
        }
        self.close_due(lease, until, length, &mut records);
        records
    }

    fn close_due(&mut self, lease: LeaseId, until: u64, length: u64, records: &mut Vec<WindowReport>) {
        while let Some(task) = self.tasks.get(&lease)
            && !task.closed
            && task.opened + length <= until
        {
            let end = task.opened + length;
            records.extend(self.close_window(lease, end));
        }
    }
}
