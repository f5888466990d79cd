//! Watches: the current jobs first, then every change, never a silent loss; and logs that follow.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sluice_lifecycle::model::Job;
use sluice_proto::v1;
use sluice_proto::v1::watch_jobs_response::Event as Told;
use sluice_store::{EventFilter, JobFilter, Page};
use sluice_types::{JobId, Nanos};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Api, store_status};
use crate::link::Answers;
use crate::principal::Principal;

/// A watcher that takes nothing for so long is cut off; it resumes with its token.
const QUEUE: usize = 256;
const BOOKMARK: Duration = Duration::from_secs(10);
/// A token so many events behind is answered with a resync: reading all jobs again is cheaper.
const TOO_OLD: u64 = 1_000_000;
const LOG_PIECE: usize = 64 << 10;
/// After a job has ended its last bytes may still be on their way, until its node has said that they were all, or so long.
const LOG_TAIL: Nanos = Nanos::from_secs(5);
/// How often it is looked whether that time is over.
const LOG_PAUSE: Duration = Duration::from_secs(1);

impl Api {
    pub(super) async fn watch(
        &self,
        who: &Principal,
        message: v1::WatchJobsRequest,
    ) -> Result<Answers<v1::WatchJobsResponse>, Status> {
        let (filter, only) = self.job_filter(who, &message.parent, "").await?;
        let begin = *self.events.borrow();
        let from = match message.resume_token.as_str() {
            "" => None,
            token => Some(self.open_token::<u64>("watch", token)?),
        };
        let (sender, receiver) = mpsc::channel(QUEUE);
        let watcher = Watcher { api: self.clone(), who: who.clone(), filter, only, sender };
        tokio::spawn(async move {
            let end = watcher.run(from, begin).await;
            last_word(&watcher.sender, end).await;
        });
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }

    pub(super) fn logs(
        &self,
        who: Principal,
        job: Job,
        message: v1::StreamLogsRequest,
    ) -> Answers<v1::StreamLogsResponse> {
        let (sender, receiver) = mpsc::channel(4);
        let api = self.clone();
        tokio::spawn(async move {
            let end = api.follow(&who, &job, &message, &sender).await;
            last_word(&sender, end).await;
        });
        Box::pin(ReceiverStream::new(receiver))
    }

    async fn follow(
        &self,
        who: &Principal,
        job: &Job,
        message: &v1::StreamLogsRequest,
        sender: &mpsc::Sender<Result<v1::StreamLogsResponse, Status>>,
    ) -> Result<(), Status> {
        let mut changes = self.logs.changes();
        let mut news = self.events.clone();
        let mut offset = message.offset;
        let mut whole = false;
        loop {
            who.still(&self.directory)?;
            let (logs, id, rank) = (Arc::clone(&self.logs), job.id, message.rank);
            let data = tokio::task::spawn_blocking(move || logs.read(id, rank, offset, LOG_PIECE)).await;
            let data = data.map_err(std::io::Error::other).and_then(|data| data).map_err(|error| {
                tracing::error!(%error, "a log cannot be read");
                sluice_proto::error::refuse(sluice_types::Reason::Unavailable, "the log cannot be read now")
            })?;
            if !data.is_empty() {
                let length = data.len() as u64;
                if sender.send(Ok(v1::StreamLogsResponse { offset, data })).await.is_err() {
                    return Ok(());
                }
                offset += length;
                continue;
            }
            if whole {
                return Ok(());
            }
            let row = self.store.get_job(job.id).await.map_err(store_status)?;
            let ended = row.as_ref().is_none_or(|row| row.state.is_terminal());
            if !message.follow && !ended {
                return Ok(());
            }
            whole = ended && self.is_log_whole(row.as_ref(), message.rank).await?;
            if whole {
                // What came between the last look and this answer is read yet.
                continue;
            }
            tokio::select! {
                () = grows(&mut changes, job.id, if ended { LOG_PAUSE } else { BOOKMARK }) => {}
                // The job may have ended: look again.
                _ = news.changed(), if !ended => {}
                () = sender.closed() => return Ok(()),
            };
        }
    }

    /// Whether all of an ended job's log is here, or nothing more is waited for.
    async fn is_log_whole(&self, job: Option<&Job>, rank: u32) -> Result<bool, Status> {
        let Some(job) = job.filter(|job| job.attempts > 0) else { return Ok(true) };
        let over = job.ended.is_none_or(|ended| self.clock.now().since(ended) >= LOG_TAIL);
        if over {
            return Ok(true);
        }
        let last = self.store.latest_attempt(job.id).await.map_err(store_status)?;
        Ok(last.is_none_or(|last| self.logs.is_complete(job.id, rank, last.id)))
    }
}

/// Says why a stream ends. Waits for room: a stream that just ends looks as if it was told to the end.
async fn last_word<T>(sender: &mpsc::Sender<Result<T, Status>>, end: Result<(), Status>) {
    if let Err(status) = end {
        // A receiver that has gone wants no reason.
        let _gone = sender.send(Err(status)).await;
    }
}

/// Waits until the job's log grew or was completed, or may have been, or `wait` passed.
async fn grows(changes: &mut broadcast::Receiver<JobId>, job: JobId, wait: Duration) {
    let grown = async {
        loop {
            match changes.recv().await {
                Ok(changed) if changed != job => {}
                Ok(_) | Err(_) => return,
            }
        }
    };
    // Late or not: whoever waits looks again.
    let _late = tokio::time::timeout(wait, grown).await;
}

/// Whether a token of event `at` can be resumed where `last` is the last event. One ahead of it is of a history that is no
/// more, as after a restore: what was told since is told again, from the begin.
const fn resumes(at: u64, last: u64) -> bool {
    at <= last && last - at <= TOO_OLD
}

struct Watcher {
    api: Api,
    who: Principal,
    filter: JobFilter,
    only: Option<JobId>,
    sender: mpsc::Sender<Result<v1::WatchJobsResponse, Status>>,
}

impl Watcher {
    async fn run(&self, from: Option<u64>, begin: u64) -> Result<(), Status> {
        let mut at = match from {
            Some(at) if !resumes(at, begin) => {
                self.tell(Told::Resync(v1::Resync {}), begin).await?;
                return Ok(());
            }
            Some(at) => at,
            None => {
                self.current(begin).await?;
                begin
            }
        };
        self.tell(Told::Bookmark(v1::Bookmark {}), at).await?;
        let mut news = self.api.events.clone();
        loop {
            at = self.changes(at).await?;
            let changed = tokio::select! {
                // A watcher that has gone is not found out at the next event only.
                () = self.sender.closed() => return Ok(()),
                changed = tokio::time::timeout(BOOKMARK, news.changed()) => changed,
            };
            match changed {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Ok(()),
                Err(_) => self.tell(Told::Bookmark(v1::Bookmark {}), at).await?,
            }
        }
    }

    /// All jobs as they are, page by page.
    async fn current(&self, at: u64) -> Result<(), Status> {
        if let Some(only) = self.only {
            let job = self.api.store.get_job(only).await.map_err(store_status)?;
            return match job {
                Some(job) => self.jobs(&[job], at).await,
                None => Ok(()),
            };
        }
        let mut page = Page::first(500);
        loop {
            let rows = self.api.store.list_jobs(&self.filter, page).await.map_err(store_status)?;
            self.jobs(&rows, at).await?;
            match rows.last() {
                Some(last) if rows.len() == 500 => page = Page::after(last.id, 500),
                _ => return Ok(()),
            }
        }
    }

    /// Jobs with an event after `at`, each once and as it is now. Returns where it stopped.
    async fn changes(&self, mut at: u64) -> Result<u64, Status> {
        let filter = EventFilter { tenant: self.filter.tenant, project: self.filter.project, job: self.only };
        loop {
            let events = self.api.store.list_events(filter, Page::after(at, 500)).await.map_err(store_status)?;
            let Some(last) = events.last().map(|event| event.sequence) else { return Ok(at) };
            let changed: BTreeSet<_> = events.iter().map(|event| event.job).collect();
            let changed: Vec<_> = changed.into_iter().collect();
            let jobs = self.api.store.jobs_by_ids(&changed).await.map_err(store_status)?;
            self.jobs(&jobs, last).await?;
            at = last;
        }
    }

    async fn jobs(&self, jobs: &[Job], at: u64) -> Result<(), Status> {
        let shown = match (self.only, jobs) {
            (Some(_), [job]) => vec![self.api.show_job(job).await?],
            _ => self.api.show_placed(jobs).await?,
        };
        for job in shown {
            self.tell(Told::Job(job), at).await?;
        }
        Ok(())
    }

    async fn tell(&self, event: Told, at: u64) -> Result<(), Status> {
        self.who.still(&self.api.directory)?;
        let resume_token = self.api.next_token("watch", Some(at.to_string()));
        let message = v1::WatchJobsResponse { event: Some(event), resume_token };
        let gone = |_| sluice_proto::error::refuse(sluice_types::Reason::Unavailable, "the watcher is gone");
        self.sender.send(Ok(message)).await.map_err(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_another_history_or_of_long_ago_is_not_resumed() {
        for (at, last, right) in
            [(7, 7, true), (0, TOO_OLD, true), (0, TOO_OLD + 1, false), (8, 7, false), (u64::MAX, 0, false)]
        {
            assert_eq!(resumes(at, last), right, "{at} of {last}");
        }
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_says_so_however_slow_its_reader_is() {
        let (sender, mut receiver) = mpsc::channel(1);
        sender.send(Ok("a piece")).await.unwrap();
        let end = Err(Status::unavailable("the log cannot be read now"));
        let says = tokio::spawn(async move { last_word(&sender, end).await });
        // The channel is full until the reader comes.
        tokio::task::yield_now().await;
        assert!(receiver.recv().await.unwrap().is_ok());
        assert!(receiver.recv().await.unwrap().is_err(), "it does not end as if it was whole");
        assert!(receiver.recv().await.is_none());
        says.await.unwrap();
    }
}
