//! The jobs that objects of this cluster manage, as the controller's watch tells them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sluice_proto::v1;
use sluice_proto::v1::watch_jobs_response::Event;
use tokio::sync::{mpsc, watch};
use tonic::Status;

use super::gate::Gate;
use super::identity::Cluster;

/// Pauses between two tries to watch.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
struct Held {
    /// By the uid of the object.
    jobs: BTreeMap<String, v1::Job>,
    /// Uids by the job's name, so that a job that changes hands is noticed.
    uids: BTreeMap<String, String>,
    /// Jobs whose receipts are final.
    settled: BTreeSet<String>,
}

/// What is known of jobs. One look-up, which costs no call.
#[derive(Debug)]
pub(crate) struct Jobs {
    cluster: Cluster,
    held: Mutex<Held>,
    /// Whether everything that was there at the begin has been told.
    whole: watch::Sender<bool>,
    /// Uids of objects whose jobs changed.
    changed: mpsc::Sender<String>,
}

impl Jobs {
    /// Nothing is known yet. Uids of changed jobs go to `changed`.
    pub(crate) fn new(cluster: Cluster, changed: mpsc::Sender<String>) -> Self {
        Self { cluster, held: Mutex::default(), whole: watch::Sender::new(false), changed }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Whoever panicked left whole entries: each is replaced at once.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all jobs are known.
    pub(crate) async fn ready(&self) {
        let mut whole = self.whole.subscribe();
        // The sender lives as long as this.
        let _known = whole.wait_for(|whole| *whole).await;
    }

    /// The job that an object manages.
    pub(crate) fn of(&self, uid: &str) -> Option<v1::Job> {
        self.held().jobs.get(uid).cloned()
    }

    /// All uids with a job that has not ended, and the job.
    pub(crate) fn live(&self) -> Vec<(String, v1::Job)> {
        let held = self.held();
        let live = held.jobs.iter().filter(|(_, job)| !super::convert::has_ended(job.state()));
        live.map(|(uid, job)| (uid.clone(), job.clone())).collect()
    }

    /// All jobs of a tenant.
    pub(crate) fn of_tenant(&self, tenant: &str) -> Vec<(String, v1::Job)> {
        let prefix = format!("{tenant}/");
        let held = self.held();
        let own = held.jobs.iter().filter(|(_, job)| job.name.starts_with(&prefix));
        own.map(|(uid, job)| (uid.clone(), job.clone())).collect()
    }

    /// Takes note of a job. Returns the uid of the object that it is of.
    pub(crate) fn note(&self, job: &v1::Job) -> Option<String> {
        let uid = self.cluster.object(&job.manager).map(str::to_owned);
        let mut held = self.held();
        let before = held.uids.get(&job.name).cloned();
        if before.is_some() && before != uid {
            held.uids.remove(&job.name);
            before.iter().for_each(|uid| drop(held.jobs.remove(uid)));
        }
        let Some(uid) = uid else { return before };
        // What it runs is in the manifest, and where its tasks are in nobody's status.
        let small =
            v1::Job { spec: None, tasks: Vec::new(), metrics: BTreeMap::default(), checkpoint: None, ..job.clone() };
        held.uids.insert(job.name.clone(), uid.clone());
        held.jobs.insert(uid.clone(), small);
        Some(uid)
    }

    /// The object is gone, and nothing is owed for its job.
    pub(crate) fn forget(&self, uid: &str) {
        let mut held = self.held();
        if let Some(job) = held.jobs.remove(uid) {
            held.uids.remove(&job.name);
            held.settled.remove(&job.name);
        }
    }

    /// Whether the job's receipt is known to be final.
    pub(crate) fn is_settled(&self, job: &str) -> bool {
        self.held().settled.contains(job)
    }

    /// The job's receipt is final.
    pub(crate) fn settle(&self, job: &str) {
        self.held().settled.insert(job.to_owned());
    }

    /// Watches for ever.
    pub(crate) async fn watch(&self, gate: &Gate) {
        let mut token = String::new();
        loop {
            if let Err(status) = self.follow(gate, &mut token).await {
                tracing::info!(message = status.message(), "the watch of jobs broke off");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn follow(&self, gate: &Gate, token: &mut String) -> Result<(), Status> {
        let request = v1::WatchJobsRequest { parent: "tenants/-".to_owned(), resume_token: token.clone() };
        let mut stream = gate.jobs().watch_jobs(request).await?.into_inner();
        while let Some(told) = stream.message().await? {
            match told.event {
                Some(Event::Job(job)) => {
                    if let Some(uid) = self.note(&job) {
                        // Nobody listens any more: this ends with its listener.
                        let _gone = self.changed.send(uid).await;
                    }
                }
                Some(Event::Bookmark(_)) => drop(self.whole.send_replace(true)),
                Some(Event::Resync(_)) => {
                    token.clear();
                    return Ok(());
                }
                None => {}
            }
            // A token in the midst of the first list would resume behind what is not told yet.
            if *self.whole.borrow() {
                *token = told.resume_token;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_job(name: &str, manager: &str) -> v1::Job {
        v1::Job { name: name.to_owned(), manager: manager.to_owned(), ..v1::Job::default() }
    }

    #[test]
    fn jobs_are_known_by_the_objects_of_this_cluster_alone() {
        let (changed, _listener) = mpsc::channel(1);
        let jobs = Jobs::new(Cluster::new("c1"), changed);
        assert_eq!(jobs.note(&mk_job("a", "kubernetes/c2/u")), None);
        assert_eq!(jobs.note(&mk_job("b", "")), None);
        assert_eq!(jobs.note(&mk_job("tenants/acme/x", "kubernetes/c1/u")).as_deref(), Some("u"));
        assert_eq!(jobs.of("u").map(|job| job.name), Some("tenants/acme/x".to_owned()));
        assert_eq!((jobs.of_tenant("tenants/acme").len(), jobs.of_tenant("tenants/ac").len()), (1, 0));
    }

    #[test]
    fn a_job_that_was_detached_is_the_objects_no_more_and_it_is_told() {
        let (changed, _listener) = mpsc::channel(1);
        let jobs = Jobs::new(Cluster::new("c1"), changed);
        jobs.note(&mk_job("a", "kubernetes/c1/u"));
        assert_eq!(jobs.note(&mk_job("a", "")).as_deref(), Some("u"));
        assert_eq!(jobs.of("u"), None);
        jobs.note(&mk_job("a", "kubernetes/c1/v"));
        jobs.settle("a");
        jobs.forget("v");
        assert!(jobs.of("v").is_none() && !jobs.is_settled("a"));
    }
}
