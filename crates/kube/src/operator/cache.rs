//! The jobs that objects of this cluster manage, as the controller's watch tells them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use sluice_proto::v1;
use sluice_proto::v1::watch_jobs_response::Event;
use tokio::sync::{Notify, watch};
use tonic::Status;

use super::convert::has_ended;
use super::gate::Gate;
use super::identity::Cluster;

/// Pauses between two tries to watch.
const PAUSE: Duration = Duration::from_millis(500);

/// Jobs of one object, the oldest first: an id's text sorts by the time that it was made.
type Own = BTreeMap<String, v1::Job>;

#[derive(Debug, Default)]
struct Held {
    /// By the uid of the object. One object has one job; whoever may hand jobs over can make it more, and none of them
    /// displaces the first.
    jobs: BTreeMap<String, Own>,
    /// Uids by the job's name, so that a job that changes hands is noticed.
    uids: BTreeMap<String, String>,
    /// Jobs whose receipts are final.
    settled: BTreeSet<String>,
}

impl Held {
    fn all(&self) -> impl Iterator<Item = (&String, &v1::Job)> {
        self.jobs.iter().flat_map(|(uid, own)| own.values().map(move |job| (uid, job)))
    }

    fn drop_job(&mut self, uid: &str, name: &str) {
        if let Some(own) = self.jobs.get_mut(uid) {
            own.remove(id_of(name));
            if own.is_empty() {
                self.jobs.remove(uid);
            }
        }
    }
}

/// The job's own part of its name.
fn id_of(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// An etag is the number of the job's version.
fn version(job: &v1::Job) -> u64 {
    job.etag.parse().unwrap_or(0)
}

/// Uids of objects whose jobs changed and that nobody looked at since, each once. So nothing has to wait for whoever looks,
/// and there are at most as many as objects.
#[derive(Debug, Default)]
struct Changed {
    uids: Mutex<BTreeSet<String>>,
    news: Notify,
}

impl Changed {
    fn uids(&self) -> MutexGuard<'_, BTreeSet<String>> {
        // Whoever panicked left a whole set.
        self.uids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of jobs. One look-up, which costs no call.
#[derive(Debug)]
pub(crate) struct Jobs {
    cluster: Cluster,
    held: Mutex<Held>,
    /// Whether everything that was there at the begin has been told.
    whole: watch::Sender<bool>,
    changed: Changed,
}

impl Jobs {
    /// Nothing is known yet.
    pub(crate) fn new(cluster: Cluster) -> Self {
        Self { cluster, held: Mutex::default(), whole: watch::Sender::new(false), changed: Changed::default() }
    }

    /// Waits until jobs have changed since the last call; the uids of their objects. For one listener.
    pub(crate) async fn changes(&self) -> BTreeSet<String> {
        loop {
            let uids = std::mem::take(&mut *self.changed.uids());
            if !uids.is_empty() {
                return uids;
            }
            self.changed.news.notified().await;
        }
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

    /// The job that an object manages: the oldest, where it has several.
    pub(crate) fn of(&self, uid: &str) -> Option<v1::Job> {
        self.held().jobs.get(uid).and_then(|own| own.values().next().cloned())
    }

    /// All uids with a job that has not ended, and the job.
    pub(crate) fn live(&self) -> Vec<(String, v1::Job)> {
        let held = self.held();
        let live = held.all().filter(|(_, job)| !has_ended(job.state()));
        live.map(|(uid, job)| (uid.clone(), job.clone())).collect()
    }

    /// All jobs of a tenant.
    pub(crate) fn of_tenant(&self, tenant: &str) -> Vec<(String, v1::Job)> {
        let prefix = format!("{tenant}/");
        let held = self.held();
        let own = held.all().filter(|(_, job)| job.name.starts_with(&prefix));
        own.map(|(uid, job)| (uid.clone(), job.clone())).collect()
    }

    /// Takes note of a job. Returns the uid of the object that it is of.
    pub(crate) fn note(&self, job: &v1::Job) -> Option<String> {
        self.note_in(&mut self.held(), job)
    }

    fn note_in(&self, held: &mut Held, job: &v1::Job) -> Option<String> {
        let uid = self.cluster.object(&job.manager).map(str::to_owned);
        let before = held.uids.get(&job.name).cloned();
        if before.is_some() && before != uid {
            held.uids.remove(&job.name);
            before.iter().for_each(|uid| held.drop_job(uid, &job.name));
        }
        let Some(uid) = uid else { return before };
        // What it cost is no event, so nothing would ever correct a settled job that a late word of the watch displaced.
        let known = held.jobs.get(&uid).and_then(|own| own.get(id_of(&job.name)));
        if known.is_some_and(|known| held.settled.contains(&job.name) && version(job) <= version(known)) {
            return Some(uid);
        }
        // What it runs is in the manifest, and where its tasks are in nobody's status.
        let small =
            v1::Job { spec: None, tasks: Vec::new(), metrics: BTreeMap::default(), checkpoint: None, ..job.clone() };
        held.uids.insert(job.name.clone(), uid.clone());
        held.jobs.entry(uid.clone()).or_default().insert(id_of(&job.name).to_owned(), small);
        Some(uid)
    }

    /// The object is gone, and nothing is owed for its job. What still runs in its name is not forgotten: it is ended.
    pub(crate) fn forget(&self, uid: &str) {
        let mut held = self.held();
        let over = held.jobs.get(uid).into_iter().flat_map(Own::values).filter(|job| has_ended(job.state()));
        for name in over.map(|job| job.name.clone()).collect::<Vec<_>>() {
            held.drop_job(uid, &name);
            held.uids.remove(&name);
            held.settled.remove(&name);
        }
    }

    /// Whether the job's receipt is known to be final.
    pub(crate) fn is_settled(&self, job: &str) -> bool {
        self.held().settled.contains(job)
    }

    /// The job's receipt is final, and this is the job since then, where it is still kept.
    pub(crate) fn settle(&self, name: &str, last: Option<&v1::Job>) {
        let mut held = self.held();
        if let Some(last) = last {
            self.note_in(&mut held, last);
        }
        held.settled.insert(name.to_owned());
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
        let stream = gate.jobs().watch_jobs(request).await?.into_inner();
        self.take(stream, token).await
    }

    /// Takes one stream to its end. `token` is where the next one resumes; empty: at the begin.
    async fn take(
        &self,
        stream: impl Stream<Item = Result<v1::WatchJobsResponse, Status>>,
        token: &mut String,
    ) -> Result<(), Status> {
        // A token in the midst of a list would resume behind what is not told yet. What was whole once says nothing of
        // this stream: after a resync it lists again.
        let mut listed = !token.is_empty();
        let mut stream = std::pin::pin!(stream);
        while let Some(told) = stream.next().await.transpose()? {
            match told.event {
                Some(Event::Job(job)) => {
                    if let Some(uid) = self.note(&job) {
                        self.changed.uids().insert(uid);
                        self.changed.news.notify_one();
                    }
                }
                Some(Event::Bookmark(_)) => {
                    listed = true;
                    self.whole.send_replace(true);
                }
                Some(Event::Resync(_)) => {
                    token.clear();
                    return Ok(());
                }
                None => {}
            }
            if listed {
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
        let jobs = Jobs::new(Cluster::new("c1"));
        assert_eq!(jobs.note(&mk_job("a", "kubernetes/c2/u")), None);
        assert_eq!(jobs.note(&mk_job("b", "")), None);
        assert_eq!(jobs.note(&mk_job("tenants/acme/x", "kubernetes/c1/u")).as_deref(), Some("u"));
        assert_eq!(jobs.of("u").map(|job| job.name), Some("tenants/acme/x".to_owned()));
        assert_eq!((jobs.of_tenant("tenants/acme").len(), jobs.of_tenant("tenants/ac").len()), (1, 0));
    }

    #[test]
    fn a_job_that_was_detached_is_the_objects_no_more_and_it_is_told() {
        let jobs = Jobs::new(Cluster::new("c1"));
        jobs.note(&mk_job("a", "kubernetes/c1/u"));
        assert_eq!(jobs.note(&mk_job("a", "")).as_deref(), Some("u"));
        assert_eq!(jobs.of("u"), None);
        jobs.note(&v1::Job { state: v1::JobState::Cancelled.into(), ..mk_job("a", "kubernetes/c1/v") });
        jobs.settle("a", None);
        jobs.forget("v");
        assert!(jobs.of("v").is_none() && !jobs.is_settled("a"));
    }

    #[test]
    fn a_settled_job_is_not_displaced_by_late_news_of_it() {
        let jobs = Jobs::new(Cluster::new("c1"));
        let job = |etag: &str, state: v1::JobState, spent_credits| v1::Job {
            etag: etag.to_owned(),
            state: state.into(),
            spent_credits,
            ..mk_job("a", "kubernetes/c1/u")
        };
        use v1::JobState::{Cancelled, Cancelling};
        let spent = || jobs.of("u").map(|job| (job.state(), job.spent_credits));
        jobs.note(&job("10", Cancelled, 5));
        jobs.settle("a", Some(&job("10", Cancelled, 9)));
        assert_eq!(spent(), Some((Cancelled, 9)), "its last windows came after it was read");
        for late in [job("9", Cancelling, 4), job("10", Cancelled, 5)] {
            jobs.note(&late);
            assert_eq!(spent(), Some((Cancelled, 9)));
        }
        jobs.note(&job("11", Cancelled, 8));
        assert_eq!(spent(), Some((Cancelled, 8)), "a newer one is told");
        jobs.note(&v1::Job { manager: String::new(), ..job("11", Cancelled, 8) });
        assert_eq!(spent(), None, "whoever manages it");
    }

    #[test]
    fn a_second_job_of_an_object_never_displaces_the_first() {
        let jobs = Jobs::new(Cluster::new("c1"));
        let (first, second) = ("tenants/zeta/projects/p/jobs/job-1", "tenants/acme/projects/p/jobs/job-2");
        let note = |name, state: v1::JobState| {
            jobs.note(&v1::Job { state: state.into(), ..mk_job(name, "kubernetes/c1/u") });
        };
        let of = || jobs.of("u").map(|job| job.name);
        // In whichever order they are told.
        note(second, v1::JobState::Running);
        note(first, v1::JobState::Running);
        note(second, v1::JobState::Running);
        assert_eq!(of().as_deref(), Some(first));
        assert_eq!((jobs.live().len(), jobs.of_tenant("tenants/acme").len()), (2, 1));
        // The first ends, is settled, and its object goes: what still runs in its name is known until it has ended.
        note(first, v1::JobState::Succeeded);
        assert_eq!(of().as_deref(), Some(first));
        jobs.forget("u");
        assert_eq!(jobs.live().into_iter().map(|(_, job)| job.name).collect::<Vec<_>>(), [second]);
        jobs.note(&mk_job(second, ""));
        assert_eq!((of(), jobs.live().len()), (None, 0));
    }

    #[tokio::test]
    async fn a_list_that_breaks_off_is_begun_again_also_after_a_resync() {
        let jobs = Jobs::new(Cluster::new("c1"));
        let told = |event, resume_token: &str| {
            Ok(v1::WatchJobsResponse { event: Some(event), resume_token: resume_token.to_owned() })
        };
        let job = || Event::Job(mk_job("a", "kubernetes/c1/u"));
        let bookmark = || Event::Bookmark(v1::Bookmark {});
        let broken = || Err(Status::unavailable("gone"));
        let mut token = String::new();
        let mut take = async |events: Vec<_>| {
            let _end = jobs.take(tokio_stream::iter(events), &mut token).await;
            token.clone()
        };
        assert_eq!(take(vec![told(job(), "1"), broken()]).await, "", "in the midst of the first list");
        assert_eq!(take(vec![told(job(), "1"), told(bookmark(), "2"), broken()]).await, "2");
        assert_eq!(take(vec![told(job(), "3"), broken()]).await, "3", "it had resumed behind a list");
        assert_eq!(take(vec![told(Event::Resync(v1::Resync {}), "4")]).await, "");
        assert_eq!(take(vec![told(job(), "5"), broken()]).await, "", "in the midst of the list after it");
        assert_eq!(take(vec![told(job(), "5"), told(bookmark(), "6")]).await, "6");
    }

    #[tokio::test]
    async fn a_list_of_any_length_is_taken_before_anybody_looks_at_it() {
        let jobs = Jobs::new(Cluster::new("c1"));
        let told = |event| Ok(v1::WatchJobsResponse { event: Some(event), resume_token: "1".to_owned() });
        let each = |number: u32| told(Event::Job(mk_job(&format!("j{number}"), &format!("kubernetes/c1/u{number}"))));
        let list = (0..5000).map(each).chain([told(Event::Bookmark(v1::Bookmark {}))]);
        let mut token = String::new();
        let took = jobs.take(tokio_stream::iter(list), &mut token);
        tokio::time::timeout(Duration::from_secs(60), took).await.unwrap().unwrap();
        jobs.ready().await;
        assert_eq!(jobs.changes().await.len(), 5000);
        // Once for all its changes, and only what is new.
        let same = || told(Event::Job(mk_job("j7", "kubernetes/c1/u7")));
        let _end = jobs.take(tokio_stream::iter([same(), same()]), &mut token).await;
        assert_eq!(jobs.changes().await, BTreeSet::from(["u7".to_owned()]));
        let nothing = tokio::time::timeout(Duration::from_millis(50), jobs.changes()).await;
        assert!(nothing.is_err(), "{nothing:?}");
    }
}
