//! Watching jobs: every change once, over any number of broken connections; and waiting for one change.

use std::time::Duration;

use sluice_proto::v1;
use tonic::{Status, Streaming};

use super::Invocation;
use crate::args::WaitFor;
use crate::connect::Backoff;
use crate::error::CliError;
use crate::reference::leaf;
use crate::view::{short_site, word};

/// A job's state as a word.
pub(super) fn state_word(job: &v1::Job) -> String {
    word(job.state().as_str_name(), "JOB_STATE_")
}

/// Whether a job will never change its state again.
pub(super) fn is_end(job: &v1::Job) -> bool {
    matches!(job.state(), v1::JobState::Succeeded | v1::JobState::Failed | v1::JobState::Cancelled)
}

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Waiting {
    /// An end with success.
    Success,
    /// Any end.
    End,
    /// The end that a cancellation makes, or any other that came before it.
    Cancelled,
    /// A state.
    State(String),
    /// The end of this migration, by its id.
    Moved(String),
}

impl Waiting {
    /// What `--wait` means after a submit.
    pub(super) fn after_submit(condition: &WaitFor) -> Self {
        Self::of(condition, Self::Success)
    }

    /// What `--wait` means where a command has its own idea of being done.
    pub(super) fn of(condition: &WaitFor, done: Self) -> Self {
        match condition {
            WaitFor::Done => done,
            WaitFor::End => Self::End,
            WaitFor::State(state) => Self::State(state.clone()),
        }
    }

    /// Whether the job is where it is waited for, or can no longer get there.
    fn is_over(&self, job: &v1::Job) -> bool {
        match self {
            Self::State(state) if state_word(job) == *state => true,
            Self::Moved(id) if job.migration.as_ref().is_some_and(|m| has_replaced(m, id)) => true,
            Self::Moved(id) if job.migration.as_ref().is_some_and(|m| m.id == *id && has_ended(m)) => true,
            _ => is_end(job),
        }
    }

    /// Whether it came as wanted.
    pub(super) fn judge(&self, job: &v1::Job) -> Result<(), CliError> {
        let wanted = match self {
            Self::Success => job.state() == v1::JobState::Succeeded,
            Self::End | Self::Cancelled => is_end(job),
            // A short job may have run and ended between two looks at it.
            Self::State(state) if state == "RUNNING" && job.state() == v1::JobState::Succeeded => true,
            Self::State(state) => state_word(job) == *state,
            Self::Moved(id) => job.migration.as_ref().is_some_and(|m| m.id == *id && m.phase == "done"),
        };
        if wanted {
            return Ok(());
        }
        let moves = job.migration.as_ref().filter(|_| matches!(self, Self::Moved(_)) && !is_end(job));
        Err(match (self, moves) {
            (Self::Moved(id), Some(other)) if has_replaced(other, id) => CliError::JobFailed {
                job: leaf(&job.name).to_owned(),
                state: format!("{}: the migration was replaced", state_word(job)),
                reason: String::new(),
                message: format!("another migration, to {}, took its place", short_site(&other.to_site)),
            },
            (_, Some(migration)) => CliError::JobFailed {
                job: leaf(&job.name).to_owned(),
                state: format!("{} at {}: the migration failed", state_word(job), short_site(&job.site)),
                reason: migration.reason.clone(),
                message: format!("it did not move to {}", short_site(&migration.to_site)),
            },
            _ => CliError::JobFailed {
                job: leaf(&job.name).to_owned(),
                state: state_word(job),
                reason: job.reason.clone(),
                message: job.message.clone(),
            },
        })
    }

    fn describe(&self, id: &str) -> String {
        match self {
            Self::Success | Self::End | Self::Cancelled => format!("the end of {id}"),
            Self::State(state) => format!("state {state} of {id}"),
            Self::Moved(_) => format!("the migration of {id}"),
        }
    }
}

/// Whether this migration came after the one of the id, which is over then, too. Ids are in the order of their making.
fn has_replaced(migration: &v1::Migration, id: &str) -> bool {
    migration.id.as_str() > id
}

fn has_ended(migration: &v1::Migration) -> bool {
    matches!(migration.phase.as_str(), "done" | "failed")
}

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Told {
    /// A job as it is now.
    Job(Box<v1::Job>),
    /// All that is current was told.
    Current,
    /// Changes may have been missed: the current jobs come again.
    Again,
}

/// A stream of changes that resumes where it broke.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    at: &'a Invocation,
    parent: String,
    token: String,
    stream: Option<Streaming<v1::WatchJobsResponse>>,
    backoff: Backoff,
}

impl<'a> Watch<'a> {
    /// Of a project, a tenant, all tenants or one job.
    pub(super) fn new(at: &'a Invocation, parent: String) -> Self {
        Self { at, parent, token: String::new(), stream: None, backoff: at.api.stream_backoff() }
    }

    /// The next change.
    pub(super) async fn next(&mut self) -> Result<Told, CliError> {
        use v1::watch_jobs_response::Event;
        loop {
            match self.message().await {
                Err(status) => {
                    self.stream = None;
                    let doing = "watch the jobs";
                    self.backoff.after(status).await.map_err(|status| CliError::refused(doing, status))?;
                }
                Ok(message) => {
                    self.backoff.progress();
                    self.token = message.resume_token;
                    match message.event {
                        Some(Event::Job(job)) => return Ok(Told::Job(Box::new(job))),
                        Some(Event::Bookmark(_)) => return Ok(Told::Current),
                        Some(Event::Resync(_)) => {
                            self.token.clear();
                            self.stream = None;
                            return Ok(Told::Again);
                        }
                        None => {}
                    }
                }
            }
        }
    }

    async fn message(&mut self) -> Result<v1::WatchJobsResponse, Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let request = v1::WatchJobsRequest { parent: self.parent.clone(), resume_token: self.token.clone() };
                none.insert(self.at.api.jobs().watch_jobs(request).await?.into_inner())
            }
        };
        // A watch has no end of its own: a closed stream is a server that stops.
        stream.message().await?.ok_or_else(|| Status::unavailable("the server closed the watch"))
    }
}

/// Waits until the job is where it is wanted; tells its steps on stderr.
pub(super) async fn wait_for(
    at: &Invocation,
    job: &str,
    waiting: Waiting,
    timeout: Option<Duration>,
) -> Result<v1::Job, CliError> {
    let id = leaf(job).to_owned();
    let what = waiting.describe(&id);
    let wait = async {
        let mut watch = Watch::new(at, job.to_owned());
        let mut last = String::new();
        loop {
            let Told::Job(job) = watch.next().await? else { continue };
            let progress = progress_line(&id, &job);
            if progress != last {
                at.console.note(&progress);
                last = progress;
            }
            if waiting.is_over(&job) {
                return waiting.judge(&job).map(|()| *job);
            }
        }
    };
    let bounded = async {
        match timeout {
            None => wait.await,
            Some(after) => tokio::time::timeout(after, wait).await.unwrap_or(Err(CliError::TimedOut { what, after })),
        }
    };
    tokio::select! {
        done = bounded => done,
        _ = tokio::signal::ctrl_c() => Err(CliError::Interrupted(format!("no longer waited for; {id} goes on"))),
    }
}

fn progress_line(id: &str, job: &v1::Job) -> String {
    let mut text = format!("{id} {}", state_word(job));
    if !job.site.is_empty() {
        text.push_str(&format!(" at {}", short_site(&job.site)));
    }
    if let Some(migration) = job.migration.as_ref().filter(|m| !has_ended(m) || m.phase == "failed") {
        text.push_str(&format!(
            ", {} -> {}: {}",
            short_site(&migration.from_site),
            short_site(&migration.to_site),
            migration.phase
        ));
    }
    if !job.reason.is_empty() {
        text.push_str(&format!(" ({})", job.reason));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moving(id: &str, phase: &str) -> v1::Job {
        let migration = v1::Migration {
            id: id.to_owned(),
            phase: phase.to_owned(),
            to_site: "sites/b".to_owned(),
            ..v1::Migration::default()
        };
        let mut job = v1::Job { name: "jobs/job-1".to_owned(), migration: Some(migration), ..v1::Job::default() };
        job.set_state(v1::JobState::Running);
        job
    }

    #[test]
    fn a_migration_is_waited_for_until_it_ends_or_another_takes_its_place() {
        let waiting = Waiting::Moved("mig-1".to_owned());
        assert!(!waiting.is_over(&moving("mig-1", "shipping")));
        assert!(!waiting.is_over(&moving("mig-0", "done")), "an earlier one");
        let done = moving("mig-1", "done");
        assert!(waiting.is_over(&done) && waiting.judge(&done).is_ok());
        let failed = moving("mig-1", "failed");
        assert!(waiting.is_over(&failed) && waiting.judge(&failed).unwrap_err().to_string().contains("failed"));
        // What became of the first is not known, so it does not count as done even where the second is.
        for phase in ["shipping", "done"] {
            let replaced = moving("mig-2", phase);
            assert!(waiting.is_over(&replaced), "{phase}");
            let told = waiting.judge(&replaced).unwrap_err().to_string();
            assert!(told.contains("replaced"), "{told}");
        }
    }
}
