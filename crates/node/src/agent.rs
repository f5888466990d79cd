//! All tasks of one node: accepts, updates and forgets them as the controller lists them, and finds them again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use sluice_proto::v1;
use sluice_proto::v1::task_report::State;
use sluice_types::{LeaseId, NodeInstant, Reason};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::assignment::{Assignment, Key};
use crate::error::{NodeError, in_one_line};
use crate::home::{EndedNote, Home, Record};
use crate::meter::Chain;
use crate::reconcile::{Change, Stage, differences};
use crate::shared::Shared;
use crate::supervisor::{self, Folder};
use crate::task::{Desire, Task};

/// The tasks of this node.
pub(crate) struct Agent {
    pub(crate) shared: Arc<Shared>,
    tasks: Mutex<BTreeMap<LeaseId, Entry>>,
}

struct Entry {
    desire: watch::Sender<Desire>,
    uid: u32,
    task: JoinHandle<()>,
}

/// Where a task's log is, and whether nothing will be added to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogPlace {
    pub(crate) path: PathBuf,
    /// It was there a moment ago; else the task has none yet, or never had one.
    pub(crate) exists: bool,
    pub(crate) complete: bool,
}

impl Agent {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, tasks: Mutex::default() }
    }

    fn tasks(&self) -> MutexGuard<'_, BTreeMap<LeaseId, Entry>> {
        // Entries are inserted and removed whole.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the tasks of an earlier agent. `journal` is what the journal still holds: windows whose note beside the task
    /// was not written before that agent was killed.
    pub(crate) fn find_again(&self, journal: &[v1::WindowRecord]) -> Result<(), NodeError> {
        let attempts = self.shared.attempts();
        fs::create_dir_all(&attempts).map_err(NodeError::file("creating", &attempts))?;
        for entry in fs::read_dir(&attempts).map_err(NodeError::file("reading", &attempts))? {
            let entry = entry.map_err(NodeError::file("reading", &attempts))?;
            let Some(lease) = entry.file_name().to_str().and_then(|name| name.parse::<LeaseId>().ok()) else {
                continue;
            };
            let home = Home::new(&attempts, lease);
            match home.read() {
                Ok(Some((assignment, mut record))) => {
                    continue_chain(&mut record.chain, &record.key, journal);
                    self.adopt(home, assignment, record);
                }
                Ok(None) => {
                    // Nothing was started before the first record was on disk.
                    supervisor::remove_tree(home.root()).map_err(NodeError::file("removing", home.root()))?;
                }
                Err(error) => {
                    tracing::error!(%lease, error = in_one_line(&error), "a task's folder is damaged and left alone");
                }
            }
        }
        Ok(())
    }

    /// Groups of this node that belong to no task any more are killed and removed.
    pub(crate) async fn reap_leftovers(&self) {
        let known: BTreeSet<String> = self.tasks().keys().map(LeaseId::to_string).collect();
        let (backend, patience) = (self.shared.config.backend.clone(), self.shared.config.limits.kill_patience);
        let reaped = tokio::task::spawn_blocking(move || {
            for left in backend.leftovers()?.into_iter().filter(|left| !known.contains(&left.key)) {
                tracing::warn!(key = left.key, processes = left.processes.len(), "a group without a task is removed");
                if let Err(error) = backend.release(&left.key, patience) {
                    // One that cannot be removed must not keep the others.
                    tracing::error!(key = left.key, error = in_one_line(&error), "it could not be removed");
                }
            }
            Ok::<_, sluice_device::DeviceError>(())
        });
        if let Ok(Err(error)) = reaped.await {
            tracing::error!(error = in_one_line(&error), "groups without a task could not be listed");
        }
    }

    fn adopt(&self, home: Home, assignment: Assignment, record: Record) {
        let desire = Desire { assignment: Arc::new(assignment), fresh: false, unlisted: false };
        self.insert(home, record, desire);
    }

    fn insert(&self, home: Home, record: Record, desire: Desire) {
        let (sender, receiver) = watch::channel(desire);
        let (lease, uid) = (record.key.lease, record.uid);
        let task = tokio::spawn(Task::new(self.shared.clone(), home, record, receiver).run());
        self.tasks().insert(lease, Entry { desire: sender, uid, task });
    }

    /// Makes the tasks be what the controller lists.
    pub(crate) fn apply(&self, desired: v1::Desired) {
        self.reap();
        let mut assignments = BTreeMap::new();
        for wire in desired.assignments {
            match Assignment::parse(wire) {
                Some(assignment) => drop(assignments.insert(assignment.key.lease, assignment)),
                None => tracing::error!("an assignment without a key or a known goal is ignored"),
            }
        }
        let listed = assignments.iter().map(|(lease, it)| (*lease, (it.goal, it.revision))).collect();
        let local = {
            let tasks = self.tasks();
            tasks.iter().map(|(lease, entry)| (*lease, entry.desire.borrow().assignment.revision)).collect()
        };
        for change in differences(desired.full, &listed, &local) {
            match change {
                Change::Accept(lease) => assignments.remove(&lease).into_iter().for_each(|it| self.accept(it)),
                Change::Update(lease) => assignments.remove(&lease).into_iter().for_each(|it| self.update(it)),
                Change::Prove(lease) => assignments.remove(&lease).into_iter().for_each(|it| self.prove(&it.key)),
                Change::Unlist(lease) => self.unlist(lease),
            }
        }
        if desired.full {
            self.forget_proofs(&listed);
        }
    }

    fn update(&self, assignment: Assignment) {
        if let Some(entry) = self.tasks().get(&assignment.key.lease) {
            let assignment = Arc::new(assignment);
            entry.desire.send_replace(Desire { assignment, fresh: true, unlisted: false });
        }
    }

    fn unlist(&self, lease: LeaseId) {
        if let Some(entry) = self.tasks().get(&lease) {
            entry.desire.send_if_modified(|desire| !std::mem::replace(&mut desire.unlisted, true));
        }
    }

    fn accept(&self, assignment: Assignment) {
        let now = supervisor::boottime();
        let lease = assignment.key.lease;
        if self.shared.board.stage(lease) == Some(Stage::Ended) {
            // Refused before, and its end was told: what ended never begins, whatever a later list still has.
            return;
        }
        if self.tasks().len() >= self.shared.config.limits.tasks {
            return self.refuse(&assignment.key, now, "this node has as many tasks as it may");
        }
        let Some(uid) = self.free_uid() else {
            return self.refuse(&assignment.key, now, "no user is free for it on this node");
        };
        let home = Home::new(&self.shared.attempts(), lease);
        let record = Record::new(&assignment, self.shared.boot.clone(), uid, now);
        // Short: two small files. It must be on disk before anything of the task exists.
        if let Err(error) = home.accept(&assignment, &record) {
            return self.refuse(&assignment.key, now, &in_one_line(&error));
        }
        tracing::info!(%lease, attempt = %assignment.key.attempt, goal = ?assignment.goal, "accepted");
        let desire = Desire { assignment: Arc::new(assignment), fresh: true, unlisted: false };
        self.insert(home, record, desire);
    }

    /// A user that no task here has; tasks that ended keep theirs until they are forgotten, since their files do.
    fn free_uid(&self) -> Option<u32> {
        if self.shared.config.sandbox.mode == supervisor::SandboxMode::Advisory {
            return Some(nix::unistd::geteuid().as_raw());
        }
        let used: BTreeSet<u32> = self.tasks().values().map(|entry| entry.uid).collect();
        self.shared.config.uids.clone().find(|uid| !used.contains(uid))
    }

    fn refuse(&self, key: &Key, now: NodeInstant, message: &str) {
        tracing::error!(lease = %key.lease, message, "refused");
        self.post_end(key, Reason::HostFailed, message, now);
    }

    /// A task that was never here is gone.
    fn prove(&self, key: &Key) {
        self.post_end(key, Reason::Signalled, "it was never started on this node", NodeInstant::default());
    }

    fn post_end(&self, key: &Key, reason: Reason, message: &str, ended: NodeInstant) {
        let note = EndedNote {
            exit_code: None,
            signal: 0,
            reason: Some(reason),
            message: message.chars().take(1024).collect(),
            ended,
            outputs: None,
            at_checkpoint: false,
            windows: 0,
            step: 0,
        };
        self.shared.board.put(*key, Stage::Ended, Some(State::Ended(note.wire())));
    }

    /// Proofs of tasks that have no folder go once the controller lists them no more.
    fn forget_proofs<T>(&self, listed: &BTreeMap<LeaseId, T>) {
        let tasks = self.tasks();
        for lease in self.shared.board.leases() {
            if !listed.contains_key(&lease) && !tasks.contains_key(&lease) {
                self.shared.board.forget(lease);
            }
        }
    }

    /// Drops entries of tasks that are forgotten.
    pub(crate) fn reap(&self) {
        self.tasks().retain(|_, entry| !entry.task.is_finished());
        self.shared.board.measure(&self.shared.config.metrics);
    }

    /// Waits for all tasks after the stop was told; their processes go on.
    pub(crate) async fn join(&self) {
        let tasks = std::mem::take(&mut *self.tasks());
        for (lease, entry) in tasks {
            if let Err(error) = entry.task.await {
                tracing::error!(%lease, %error, "a task's actor failed");
            }
        }
    }

    /// Where the log of a task is; `None` where nothing is known of it.
    pub(crate) fn log(&self, key: &Key) -> Option<LogPlace> {
        let home = Home::new(&self.shared.attempts(), key.lease);
        let ended = self.shared.board.stage(key.lease) == Some(Stage::Ended);
        let complete = ended || home.folder.exit().exists();
        let (path, kept) = (home.folder.log(), self.shared.logs().join(format!("{}.log", key.lease)));
        // It is moved before the rest of the folder is removed, so it is looked for in this order.
        if path.exists() {
            return Some(LogPlace { path, exists: true, complete });
        }
        if kept.exists() {
            return Some(LogPlace { path: kept, exists: true, complete: true });
        }
        home.root().is_dir().then_some(LogPlace { path, exists: false, complete })
    }

    /// The folder of a rental's sandbox.
    ///
    /// # Errors
    /// `NOT_FOUND` where this node has no such task, `WRONG_STATE` where it is none with sessions.
    pub(crate) fn sandbox(&self, key: &Key) -> Result<Folder, (Reason, &'static str)> {
        let tasks = self.tasks();
        let desire = tasks.get(&key.lease).map(|entry| entry.desire.borrow());
        match desire.filter(|desire| desire.assignment.key == *key) {
            None => Err((Reason::NotFound, "this node has no such task")),
            Some(desire) if !desire.assignment.hosts_sessions() => {
                Err((Reason::WrongState, "the task is neither a rental nor a replica"))
            }
            Some(_) => Ok(Home::new(&self.shared.attempts(), key.lease).folder),
        }
    }

    /// Removes logs that are too old or too many, oldest first.
    pub(crate) fn prune_logs(&self) {
        let limits = &self.shared.config.limits;
        let entries = fs::read_dir(self.shared.logs()).into_iter().flatten().flatten();
        let mut logs: Vec<(SystemTime, u64, PathBuf)> = entries
            .filter_map(|entry| {
                let data = entry.metadata().ok()?;
                Some((data.modified().ok()?, data.len(), entry.path()))
            })
            .collect();
        logs.sort();
        let mut bytes: u64 = logs.iter().map(|(_, size, _)| size).sum();
        for (modified, size, path) in logs {
            let age = modified.elapsed().unwrap_or(Duration::ZERO);
            if age <= limits.log_age && bytes <= limits.log_bytes.get() {
                break;
            }
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "an old log could not be removed");
            }
            bytes -= size;
        }
    }
}

/// Catches up with windows that are in the journal and not yet in the task's record.
fn continue_chain(chain: &mut Chain, key: &Key, journal: &[v1::WindowRecord]) {
    let wire = key.wire();
    for record in journal.iter().filter(|record| record.key.as_ref() == Some(&wire)) {
        chain.continue_behind(record.sequence, NodeInstant::from_nanos(record.end_ns), record.used_ns);
    }
}
