//! What the controller should know of each task: written by the tasks, read by whichever stream is open.
//!
//! Level-triggered: a stream remembers up to which version it has told, a new one begins at zero and tells all.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sluice_proto::v1::attach_request::Message;
use sluice_proto::v1::task_report::State;
use sluice_proto::v1::{SealedReport, TaskReport};
use sluice_types::LeaseId;
use tokio::sync::watch;

use crate::assignment::Key;
use crate::metrics::NodeMetrics;
use crate::reconcile::Stage;

/// Newest sealed reports of a task that are told again however certain it is that they were received.
const ALWAYS: usize = 4;

/// The board.
#[derive(Debug)]
pub(crate) struct Board {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    version: u64,
    posts: BTreeMap<LeaseId, Post>,
}

#[derive(Debug)]
struct Post {
    key: Key,
    stage: Stage,
    state: Option<(u64, State)>,
    sealed: Vec<(u64, SealedReport)>,
}

impl Inner {
    fn next(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn post(&mut self, key: Key, stage: Stage) -> &mut Post {
        self.posts.entry(key.lease).or_insert(Post { key, stage, state: None, sealed: Vec::new() })
    }
}

impl Board {
    /// An empty board.
    pub(crate) fn new() -> Self {
        Self { inner: Mutex::default(), changed: watch::channel(0).0 }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change below is complete before it could panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a task stands. `state` is what is told of it; `None` leaves what was told last.
    pub(crate) fn put(&self, key: Key, stage: Stage, state: Option<State>) {
        let mut inner = self.inner();
        let version = inner.version + 1;
        let post = inner.post(key, stage);
        post.stage = stage;
        let Some(state) = state else { return };
        if post.state.as_ref().is_some_and(|(_, told)| *told == state) {
            return;
        }
        post.state = Some((version, state));
        self.changed.send_replace(inner.next());
    }

    /// A checkpoint is sealed, or was and may not have been heard of.
    pub(crate) fn seal(&self, key: Key, stage: Stage, report: SealedReport) {
        let mut inner = self.inner();
        let version = inner.next();
        inner.post(key, stage).sealed.push((version, report));
        self.changed.send_replace(version);
    }

    /// Nothing of it is told any more.
    pub(crate) fn forget(&self, lease: LeaseId) {
        self.inner().posts.remove(&lease);
    }

    /// Whether a sealed report is still to be told again.
    pub(crate) fn holds(&self, lease: LeaseId, manifest: &str) -> bool {
        let inner = self.inner();
        inner.posts.get(&lease).is_some_and(|post| post.sealed.iter().any(|(_, report)| report.manifest == manifest))
    }

    /// Where a task stands.
    pub(crate) fn stage(&self, lease: LeaseId) -> Option<Stage> {
        self.inner().posts.get(&lease).map(|post| post.stage)
    }

    /// Leases on the board.
    pub(crate) fn leases(&self) -> Vec<LeaseId> {
        self.inner().posts.keys().copied().collect()
    }

    /// Tells of each change.
    pub(crate) fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Everything newer than `version`, a task's checkpoints before its state; and the version that it leads to.
    pub(crate) fn since(&self, version: u64) -> (u64, Vec<Message>) {
        let inner = self.inner();
        let mut messages = Vec::new();
        for post in inner.posts.values() {
            let sealed = post.sealed.iter().filter(|(at, _)| *at > version);
            messages.extend(sealed.map(|(_, report)| Message::Sealed(report.clone())));
            if let Some((_, state)) = post.state.as_ref().filter(|(at, _)| *at > version) {
                messages.push(Message::Task(TaskReport { key: Some(post.key.wire()), state: Some(state.clone()) }));
            }
        }
        (inner.version, messages)
    }

    /// The controller has certainly seen everything up to `version`: older sealed reports need not be told again.
    pub(crate) fn confirm(&self, version: u64) {
        for post in self.inner().posts.values_mut() {
            let old = post.sealed.len().saturating_sub(ALWAYS);
            let mut place = 0;
            post.sealed.retain(|(at, _)| {
                place += 1;
                place > old || *at > version
            });
        }
    }

    /// Sets the gauges of tasks by stage.
    pub(crate) fn measure(&self, metrics: &NodeMetrics) {
        let inner = self.inner();
        let count = |wanted: &[Stage]| {
            let found = inner.posts.values().filter(|post| wanted.contains(&post.stage)).count();
            u64::try_from(found).unwrap_or(u64::MAX)
        };
        NodeMetrics::set(&metrics.tasks_preparing, count(&[Stage::Fresh, Stage::Preparing]));
        NodeMetrics::set(&metrics.tasks_prepared, count(&[Stage::Prepared, Stage::Launching]));
        NodeMetrics::set(&metrics.tasks_running, count(&[Stage::Running]));
        NodeMetrics::set(&metrics.tasks_ended, count(&[Stage::Finishing, Stage::Ended]));
    }
}

#[cfg(test)]
mod tests {
    use sluice_proto::v1::{TaskEnded, TaskPrepared};
    use sluice_types::{AttemptId, Generation};

    use super::*;

    fn key(lease: u64) -> Key {
        Key { attempt: AttemptId::from_raw(1), lease: LeaseId::from_raw(lease), generation: Generation::new(1) }
    }

    #[test]
    fn a_stream_hears_each_change_once_and_a_new_one_hears_all() {
        let board = Board::new();
        board.put(key(1), Stage::Prepared, Some(State::Prepared(TaskPrepared {})));
        let (first, told) = board.since(0);
        assert_eq!(told.len(), 1);
        board.put(key(1), Stage::Prepared, Some(State::Prepared(TaskPrepared {})));
        assert_eq!(board.since(first), (first, Vec::new()));
        board.seal(key(1), Stage::Finishing, SealedReport { step: 3, ..SealedReport::default() });
        board.put(key(1), Stage::Ended, Some(State::Ended(TaskEnded::default())));
        let (_, told) = board.since(first);
        assert!(matches!(told[..], [Message::Sealed(_), Message::Task(_)]), "the checkpoint comes before the end");
        assert_eq!(board.since(0).1.len(), 2);
        board.forget(key(1).lease);
        assert!(board.since(0).1.is_empty());
    }

    #[test]
    fn sealed_reports_are_kept_until_they_are_surely_known() {
        let board = Board::new();
        for step in 0..10 {
            board.seal(
                key(1),
                Stage::Running,
                SealedReport { step, manifest: step.to_string(), ..SealedReport::default() },
            );
        }
        board.confirm(3);
        assert_eq!(board.since(0).1.len(), 7);
        board.confirm(10);
        assert_eq!(board.since(0).1.len(), ALWAYS);
        assert!(board.holds(key(1).lease, "9") && !board.holds(key(1).lease, "5"));
    }
}
