//! What the gateway needs to know of committed rows: endpoints, models, and where replicas run.
//!
//! Written by the publisher alone, before anybody is answered; readers never wait for the writer.

#![allow(dead_code, reason = "places and changes are for the gateway")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use sluice_lifecycle::model::{
    Attempt, AttemptState, Endpoint, EndpointState, Goal, Job, JobState, Model, ModelState, TaskState,
};
use sluice_lifecycle::{Rows, State, TaskKey};
use sluice_types::{AttemptId, EndpointId, JobId, ModelId, Name, NodeId, ProjectId, SiteId};
use tokio::sync::watch;

/// A replica that takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its job.
    pub(crate) job: JobId,
    /// Its task: another attempt has another key, and knows nothing of what this one was told.
    pub(crate) key: TaskKey,
    /// Where it runs.
    pub(crate) node: NodeId,
    /// At which site.
    pub(crate) site: SiteId,
}

/// Committed endpoints, models and replicas.
#[derive(Debug)]
pub(crate) struct Serving {
    inner: RwLock<Inner>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    endpoints: BTreeMap<EndpointId, Arc<Endpoint>>,
    models: BTreeMap<ModelId, Arc<Model>>,
    names: BTreeMap<(ProjectId, Name), EndpointId>,
    replicas: BTreeMap<EndpointId, BTreeMap<JobId, Replica>>,
    /// Attempts of replicas that have not ended.
    attempts: BTreeMap<AttemptId, Attempt>,
}

#[derive(Debug, Clone, Copy)]
struct Replica {
    state: JobState,
    current: Option<AttemptId>,
}

impl Default for Serving {
    fn default() -> Self {
        Self { inner: RwLock::default(), changes: watch::Sender::new(0) }
    }
}

impl Serving {
    pub(crate) fn load(&self, state: &State) {
        let mut inner = Inner::default();
        let serves = |job| state.job(job).is_some_and(|job| job.endpoint.is_some());
        state.endpoints().for_each(|row| _ = inner.endpoint(row));
        state.models().for_each(|row| inner.model(row));
        state.jobs().for_each(|row| _ = inner.job(row));
        state.attempts().for_each(|row| _ = inner.attempt(row, serves(row.job)));
        *self.inner.write().unwrap_or_else(PoisonError::into_inner) = inner;
        self.changes.send_modify(|edition| *edition += 1);
    }

    pub(crate) fn apply(&self, rows: &Rows) {
        // Most groups are of jobs that serve nobody: they cost one look.
        let serving: BTreeSet<JobId> =
            rows.jobs.iter().filter(|job| job.endpoint.is_some()).map(|job| job.id).collect();
        let known = {
            let inner = self.read();
            rows.attempts.iter().any(|row| inner.attempts.contains_key(&row.id))
        };
        if rows.endpoints.is_empty() && rows.models.is_empty() && serving.is_empty() && !known {
            return;
        }
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = false;
        for row in &rows.endpoints {
            changed |= inner.endpoint(row);
        }
        rows.models.iter().for_each(|row| inner.model(row));
        for row in &rows.jobs {
            changed |= inner.job(row);
        }
        for row in &rows.attempts {
            changed |= inner.attempt(row, serving.contains(&row.job));
        }
        drop(inner);
        if changed {
            self.changes.send_modify(|edition| *edition += 1);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of every change of endpoints and replicas, but not of the sums of requests.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// An endpoint that is not deleted.
    pub(crate) fn endpoint(&self, id: EndpointId) -> Option<Arc<Endpoint>> {
        self.read().endpoints.get(&id).cloned()
    }

    /// An endpoint of a project that is not deleted.
    pub(crate) fn endpoint_named(&self, project: ProjectId, name: &Name) -> Option<Arc<Endpoint>> {
        let inner = self.read();
        let id = inner.names.get(&(project, name.clone()))?;
        inner.endpoints.get(id).cloned()
    }

    /// All endpoints that are not deleted, oldest first.
    pub(crate) fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.read().endpoints.values().cloned().collect()
    }

    /// Replicas of an endpoint that have not ended, oldest first.
    pub(crate) fn replicas(&self, endpoint: EndpointId) -> Vec<JobId> {
        self.read().replicas.get(&endpoint).into_iter().flatten().map(|(job, _)| *job).collect()
    }

    /// A model that is not deleted.
    pub(crate) fn model(&self, id: ModelId) -> Option<Arc<Model>> {
        self.read().models.get(&id).cloned()
    }

    /// The replicas of an endpoint that run, and whether each takes requests: one that was told to stop goes on with those
    /// that it has.
    pub(crate) fn holders(&self, endpoint: EndpointId) -> Vec<(Place, bool)> {
        let inner = self.read();
        let replicas = inner.replicas.get(&endpoint).into_iter().flatten();
        let running = replicas.filter_map(|(job, replica)| {
            let place = inner.running(*job, replica.current?)?;
            Some((place, inner.place(*job, replica).is_some()))
        });
        running.collect()
    }

    /// Where an attempt of a replica runs.
    pub(crate) fn holder(&self, attempt: AttemptId) -> Option<Place> {
        let inner = self.read();
        inner.running(inner.attempts.get(&attempt)?.job, attempt)
    }

    /// Whether the import of any model has not ended.
    pub(crate) fn imports(&self) -> bool {
        self.read().models.values().any(|row| row.state == ModelState::Importing)
    }

    /// The replicas of an endpoint that take requests now: they run, and were not told to stop.
    pub(crate) fn places(&self, endpoint: EndpointId) -> Vec<Place> {
        let inner = self.read();
        let replicas = inner.replicas.get(&endpoint).into_iter().flatten();
        replicas.filter_map(|(job, replica)| inner.place(*job, replica)).collect()
    }
}

impl Inner {
    /// Whether anything changed but its sums.
    fn endpoint(&mut self, row: &Endpoint) -> bool {
        if row.state == EndpointState::Deleted {
            self.names.remove(&(row.project, row.name.clone()));
            return self.endpoints.remove(&row.id).is_some();
        }
        self.names.insert((row.project, row.name.clone()), row.id);
        let before = self.endpoints.insert(row.id, Arc::new(row.clone()));
        before.is_none_or(|before| before.version != row.version)
    }

    fn model(&mut self, row: &Model) {
        if row.state == ModelState::Deleted {
            self.models.remove(&row.id);
        } else {
            self.models.insert(row.id, Arc::new(row.clone()));
        }
    }

    fn job(&mut self, row: &Job) -> bool {
        let Some(endpoint) = row.endpoint else { return false };
        let known = self.replicas.entry(endpoint).or_default();
        if row.state.is_terminal() {
            known.remove(&row.id);
        } else {
            known.insert(row.id, Replica { state: row.state, current: row.current });
        }
        if known.is_empty() {
            self.replicas.remove(&endpoint);
        }
        true
    }

    /// Those of other jobs are not kept. An attempt is placed with a row of its job beside it.
    fn attempt(&mut self, row: &Attempt, serves: bool) -> bool {
        let known = self.attempts.contains_key(&row.id);
        if row.state == AttemptState::Ended {
            return self.attempts.remove(&row.id).is_some();
        }
        if known || serves {
            self.attempts.insert(row.id, row.clone());
            return true;
        }
        false
    }

    fn running(&self, job: JobId, attempt: AttemptId) -> Option<Place> {
        let attempt = self.attempts.get(&attempt)?;
        let task = attempt.tasks.first().filter(|task| task.state == TaskState::Running)?;
        let key = TaskKey { attempt: attempt.id, lease: task.lease, generation: attempt.generation };
        Some(Place { job, key, node: task.device.node, site: attempt.site })
    }

    fn place(&self, job: JobId, replica: &Replica) -> Option<Place> {
        let attempt = self.attempts.get(&replica.current?)?;
        let takes =
            replica.state == JobState::Running && attempt.state == AttemptState::Running && attempt.goal == Goal::Run;
        self.running(job, attempt.id).filter(|_| takes)
    }
}

#[cfg(test)]
mod tests {
    use sluice_store::testing::Sample;

    use super::*;

    /// A running replica of `endpoint`, as its rows say.
    fn replica(sample: &mut Sample, endpoint: EndpointId) -> Rows {
        let mut rows = sample.submits(1);
        (rows.jobs[0].endpoint, rows.jobs[0].state) = (Some(endpoint), JobState::Running);
        (rows.attempts[0].state, rows.attempts[0].tasks[0].state) = (AttemptState::Running, TaskState::Running);
        rows
    }

    fn only(rows: Rows, jobs: bool) -> Rows {
        let (jobs, attempts) = if jobs { (rows.jobs, Vec::new()) } else { (Vec::new(), rows.attempts) };
        Rows { jobs, attempts, ..Rows::default() }
    }

    #[test]
    fn a_replica_takes_requests_while_it_runs_and_was_not_told_to_stop() {
        let mut sample = Sample::beyond(0, 0);
        sample.deposit(1_000_000);
        let (serving, endpoint) = (Serving::default(), EndpointId::from_raw(7));
        let mut changes = serving.changes();
        let mut rows = replica(&mut sample, endpoint);
        // Others' jobs are nobody's replicas.
        serving.apply(&sample.submits(3));
        assert!(!changes.has_changed().unwrap());
        serving.apply(&rows);
        let place = serving.places(endpoint)[0];
        assert_eq!((place.job, place.key.attempt), (rows.jobs[0].id, rows.attempts[0].id));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        rows.attempts[0].goal = Goal::Stop;
        serving.apply(&only(rows.clone(), false));
        assert_eq!(serving.places(endpoint), []);
        assert!(changes.has_changed().unwrap());
        rows.attempts[0].goal = Goal::Run;
        serving.apply(&only(rows.clone(), false));
        assert_eq!(serving.places(endpoint).len(), 1);
        rows.jobs[0].state = JobState::Cancelling;
        serving.apply(&only(rows.clone(), true));
        assert_eq!(serving.places(endpoint), []);
        rows.jobs[0].state = JobState::Cancelled;
        rows.attempts[0].state = AttemptState::Ended;
        serving.apply(&rows);
        let inner = serving.read();
        assert!(inner.replicas.is_empty() && inner.attempts.is_empty(), "nothing is kept of what ended");
    }
}
