//! What jobs want, interned: jobs that want the same share one check.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sluice_ledger::AccountKey;
use sluice_types::{JobId, Nanos, ProjectId, Reason, SiteId, TaskResources, TenantId, Timestamp};

use crate::hash::Lookup;
use crate::terms::Terms;
use crate::view::{JobView, Purpose};

/// The order of service: higher priority, then older.
pub(crate) type Order = (Reverse<i32>, JobId);

/// Everything of a job that decides whether and where it can be placed, except its turn.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Want {
    pub(crate) tenant: TenantId,
    pub(crate) purpose: Purpose,
    pub(crate) tasks: u32,
    pub(crate) task: Arc<TaskResources>,
    pub(crate) sites: Vec<SiteId>,
    pub(crate) state_at: Vec<SiteId>,
    pub(crate) hold_time: Nanos,
    /// It may hold nothing but its tenant's nominal quota.
    pub(crate) firm: bool,
    budgets: Vec<AccountKey>,
}

impl Want {
    pub(crate) fn of(job: &JobView, task: Arc<TaskResources>) -> Self {
        Self {
            tenant: job.tenant,
            purpose: job.purpose,
            tasks: job.tasks,
            task,
            sites: job.sites.clone(),
            state_at: job.state_at.clone(),
            hold_time: job.hold_time,
            firm: job.firm,
            budgets: job.budgets.clone(),
        }
    }

    /// The budgets, each once.
    pub(crate) fn budgets(&self) -> impl Iterator<Item = &AccountKey> {
        self.budgets.iter().enumerate().filter(|(at, key)| !self.budgets[..*at].contains(key)).map(|(_, key)| key)
    }

    /// Whether both ask for the same, whatever pays for it and wherever it has been.
    fn asks_as(&self, other: &Self) -> bool {
        let part = |want: &Self| (want.tenant, want.purpose, want.tasks, want.firm);
        part(self) == part(other) && self.task == other.task && self.sites == other.sites
    }

    /// Whether the request or its policy allows the site.
    pub(crate) fn allows(&self, site: SiteId) -> bool {
        self.sites.is_empty() || self.sites.contains(&site)
    }

    /// Whether its state is there, or it has none.
    pub(crate) fn has_state_at(&self, site: SiteId) -> bool {
        self.state_at.is_empty() || self.state_at.contains(&site)
    }
}

/// A job that waits or is being placed.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) version: u64,
    pub(crate) project: ProjectId,
    pub(crate) priority: i32,
    pub(crate) shape: u32,
    /// The reason it was last told.
    pub(crate) told: Option<Reason>,
    /// Whether a placement of it is in flight; then it is in no queue.
    pub(crate) flying: bool,
}

/// All jobs that want the same, in order of service.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) want: Arc<Want>,
    pub(crate) queue: BTreeSet<Order>,
    members: u32,
    /// Those of the queue that have not been told `verdict`.
    pub(crate) untold: BTreeSet<Order>,
    pub(crate) verdict: Option<Reason>,
    pub(crate) terms: Option<Arc<Terms>>,
    /// In how many rounds others were placed where this shape waits for room.
    pub(crate) passed: u32,
    /// Tasks ever placed where it waits, when it was last found blocked in this round.
    pub(crate) stamp: Option<u64>,
    /// How devices have been kept for it, where they are.
    pub(crate) kept: Option<Kept>,
    /// Until when none are.
    pub(crate) rests_until: Option<Timestamp>,
}

/// Devices are kept for a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Since when what its best plan lacks has been this much.
    pub(crate) since: Timestamp,
    pub(crate) lacks: u64,
}

/// All jobs, by what they want.
#[derive(Debug, Clone, Default)]
pub(crate) struct Queue {
    pub(crate) jobs: Lookup<JobId, Waiting>,
    shapes: Vec<Option<Shape>>,
    vacant: Vec<u32>,
    by_want: Lookup<Arc<Want>, u32>,
    heads: BTreeMap<Order, u32>,
}

impl PartialEq for Queue {
    fn eq(&self, other: &Self) -> bool {
        let facts = |queue: &'_ Self| -> BTreeMap<JobId, (u64, ProjectId, i32, Arc<Want>)> {
            let row =
                |job: &Waiting| (job.version, job.project, job.priority, Arc::clone(&queue.shape(job.shape).want));
            queue.jobs.iter().map(|(id, job)| (*id, row(job))).collect()
        };
        facts(self) == facts(other)
    }
}

impl Queue {
    pub(crate) fn shape(&self, shape: u32) -> &Shape {
        self.shapes[shape as usize].as_ref().expect("invariant: a shape lives while a job has it")
    }

    pub(crate) fn shape_mut(&mut self, shape: u32) -> &mut Shape {
        self.shapes[shape as usize].as_mut().expect("invariant: a shape lives while a job has it")
    }

    /// A shape that may be gone.
    pub(crate) fn find_shape_mut(&mut self, shape: u32) -> Option<&mut Shape> {
        self.shapes.get_mut(shape as usize)?.as_mut()
    }

    pub(crate) fn shapes(&self) -> impl Iterator<Item = &Shape> {
        self.shapes.iter().flatten()
    }

    /// The next head of a shape's queue after `cursor`. A shape whose head lies behind the cursor is passed over: it
    /// was found blocked, and so would the rest of it be.
    pub(crate) fn next_head(&self, cursor: Option<Order>) -> Option<(Order, u32)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = cursor.map_or(Unbounded, Excluded);
        self.heads.range((from, Unbounded)).next().map(|(order, shape)| (*order, *shape))
    }

    /// Takes a job's new state. What it was last told is remembered for as long as it is the same version of the same
    /// request, and its patience also when a budget's period, what is held or where its state is have changed.
    pub(crate) fn set(&mut self, job: &JobView, task: Arc<TaskResources>) {
        let want = Want::of(job, task);
        let known = self.by_want.get(&want).copied();
        let before = self.jobs.get(&job.id).filter(|before| self.shape(before.shape).want.asks_as(&want));
        let told = before.filter(|before| before.version == job.version).and_then(|before| before.told);
        let patience = before.map(|before| self.shape(before.shape)).map(|row| (row.passed, row.kept, row.rests_until));
        let shape = known.unwrap_or_else(|| {
            let shape = self.new_shape(want);
            if let Some(patience) = patience {
                let row = self.shape_mut(shape);
                (row.passed, row.kept, row.rests_until) = patience;
            }
            shape
        });
        self.shape_mut(shape).members += 1;
        self.remove(job.id);
        let (version, project, priority) = (job.version, job.project, job.priority);
        self.jobs.insert(job.id, Waiting { version, project, priority, shape, told, flying: false });
        self.enqueue(job.id);
    }

    /// Forgets a job.
    pub(crate) fn remove(&mut self, id: JobId) {
        self.dequeue(id);
        let Some(job) = self.jobs.remove(&id) else { return };
        let shape = self.shape_mut(job.shape);
        shape.members -= 1;
        if shape.members == 0 {
            let want = Arc::clone(&shape.want);
            self.by_want.remove(&want);
            self.shapes[job.shape as usize] = None;
            self.vacant.push(job.shape);
        }
    }

    /// Puts a known job into its queue.
    pub(crate) fn enqueue(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.flying = false;
        let (order, at, told) = ((Reverse(job.priority), id), job.shape, job.told);
        let shape = self.shape_mut(at);
        let head = shape.queue.first().copied();
        shape.queue.insert(order);
        if told.is_none() || told != shape.verdict {
            shape.untold.insert(order);
        }
        if head.is_none_or(|head| order < head) {
            if let Some(head) = head {
                self.heads.remove(&head);
            }
            self.heads.insert(order, at);
        }
    }

    /// Takes a known job out of its queue.
    pub(crate) fn dequeue(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let (order, at) = ((Reverse(job.priority), id), job.shape);
        let shape = self.shape_mut(at);
        if !shape.queue.remove(&order) {
            return;
        }
        shape.untold.remove(&order);
        let head = shape.queue.first().copied();
        if self.heads.remove(&order).is_some()
            && let Some(head) = head
        {
            self.heads.insert(head, at);
        }
    }

    fn new_shape(&mut self, want: Want) -> u32 {
        let want = Arc::new(want);
        let shape = Shape {
            want: Arc::clone(&want),
            queue: BTreeSet::new(),
            members: 0,
            untold: BTreeSet::new(),
            verdict: None,
            terms: None,
            passed: 0,
            stamp: None,
            kept: None,
            rests_until: None,
        };
        let at = self.vacant.pop().unwrap_or_else(|| {
            self.shapes.push(None);
            u32::try_from(self.shapes.len() - 1).expect("invariant: fewer than 2^32 shapes fit in memory")
        });
        self.shapes[at as usize] = Some(shape);
        self.by_want.insert(want, at);
        at
    }
}
