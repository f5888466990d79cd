//! Logs of tasks, kept beside the database so that they survive their nodes.
//!
//! One file per job, rank and attempt. The log of a rank is its attempts' files one after another, in the order of the
//! attempts. Once a newer attempt has written, older files take nothing more: offsets that a reader saw stay valid.

use std::collections::{HashSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use sluice_types::{AttemptId, JobId};
use tokio::sync::broadcast;

/// The most that is kept of one attempt's log.
const MAX_LOG: u64 = 256 << 20;

/// Jobs share so many locks.
const LOCKS: usize = 64;

/// Complete logs that are remembered: of tasks that ended just now, whose readers must not end too early.
const MOST_COMPLETE: usize = 16 * 1024;

/// All logs. Reads and appends block: callers keep them away from async threads.
#[derive(Debug)]
pub(crate) struct LogStore {
    folder: PathBuf,
    changes: broadcast::Sender<JobId>,
    // One writer per job at a time: two attempts of a rank must not both believe to be the newest.
    writing: [Mutex<()>; LOCKS],
    complete: Mutex<Complete>,
}

/// Tasks whose node has sent all of their log, the newest of them.
#[derive(Debug, Default)]
struct Complete {
    known: HashSet<(JobId, u32, AttemptId)>,
    /// In the order in which they were told.
    told: VecDeque<(JobId, u32, AttemptId)>,
}

impl LogStore {
    pub(crate) fn open(folder: &Path) -> std::io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let (changes, _) = broadcast::channel(1024);
        let writing = [const { Mutex::new(()) }; LOCKS];
        Ok(Self { folder: folder.to_owned(), changes, writing, complete: Mutex::default() })
    }

    /// Nothing more comes of a task's log.
    pub(crate) fn completed(&self, job: JobId, rank: u32, attempt: AttemptId) {
        let mut complete = self.complete.lock().unwrap_or_else(PoisonError::into_inner);
        if !complete.known.insert((job, rank, attempt)) {
            return;
        }
        complete.told.push_back((job, rank, attempt));
        if complete.told.len() > MOST_COMPLETE
            && let Some(oldest) = complete.told.pop_front()
        {
            complete.known.remove(&oldest);
        }
        drop(complete);
        // Nobody listening is fine.
        let _ = self.changes.send(job);
    }

    /// Whether nothing more comes, as far as is remembered.
    pub(crate) fn is_complete(&self, job: JobId, rank: u32, attempt: AttemptId) -> bool {
        self.complete.lock().unwrap_or_else(PoisonError::into_inner).known.contains(&(job, rank, attempt))
    }

    fn lock(&self, job: JobId) -> MutexGuard<'_, ()> {
        let place = usize::try_from(job.raw() % LOCKS as u64).unwrap_or(0);
        self.writing[place].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rank_folder(&self, job: JobId, rank: u32) -> PathBuf {
        self.folder.join(job.to_string()).join(rank.to_string())
    }

    /// Bytes kept of an attempt's log.
    pub(crate) fn length(&self, job: JobId, rank: u32, attempt: AttemptId) -> u64 {
        let path = self.rank_folder(job, rank).join(attempt.to_string());
        std::fs::metadata(path).map_or(0, |meta| meta.len())
    }

    /// Takes bytes that begin at `offset` of an attempt's log. What is there already is skipped; what leaves a gap, is
    /// beyond the bound or belongs to an attempt that was followed by another is dropped.
    pub(crate) fn append(
        &self,
        job: JobId,
        rank: u32,
        attempt: AttemptId,
        offset: u64,
        data: &[u8],
    ) -> std::io::Result<()> {
        let _one = self.lock(job);
        let folder = self.rank_folder(job, rank);
        std::fs::create_dir_all(&folder)?;
        let newest = self.attempts(job, rank)?.pop();
        if newest.is_some_and(|newest| newest > attempt) {
            return Ok(());
        }
        // Not even an empty file: it would close the older attempts' logs.
        let have = self.length(job, rank, attempt);
        let skip = have.saturating_sub(offset);
        let fresh = usize::try_from(skip).ok().and_then(|skip| data.get(skip..)).unwrap_or_default();
        if offset > have || fresh.is_empty() || have >= MAX_LOG {
            return Ok(());
        }
        let mut file = OpenOptions::new().create(true).append(true).open(folder.join(attempt.to_string()))?;
        file.write_all(fresh)?;
        // Nobody listening is fine.
        let _ = self.changes.send(job);
        Ok(())
    }

    fn attempts(&self, job: JobId, rank: u32) -> std::io::Result<Vec<AttemptId>> {
        let folder = match std::fs::read_dir(self.rank_folder(job, rank)) {
            Ok(folder) => folder,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let names = folder.filter_map(|entry| entry.ok()?.file_name().into_string().ok()?.parse().ok());
        let mut attempts: Vec<AttemptId> = names.collect();
        attempts.sort();
        Ok(attempts)
    }

    /// At most `limit` bytes of a rank's log from `offset` on; empty where there are none yet.
    pub(crate) fn read(&self, job: JobId, rank: u32, mut offset: u64, limit: usize) -> std::io::Result<Bytes> {
        for attempt in self.attempts(job, rank)? {
            let mut file = File::open(self.rank_folder(job, rank).join(attempt.to_string()))?;
            let length = file.metadata()?.len();
            if offset >= length {
                offset -= length;
                continue;
            }
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = Vec::new();
            file.take(limit as u64).read_to_end(&mut bytes)?;
            return Ok(bytes.into());
        }
        Ok(Bytes::new())
    }

    /// Jobs that have logs, in no order.
    pub(crate) fn jobs(&self) -> std::io::Result<Vec<JobId>> {
        let folder = std::fs::read_dir(&self.folder)?;
        Ok(folder.filter_map(|entry| entry.ok()?.file_name().into_string().ok()?.parse().ok()).collect())
    }

    /// Deletes all logs of a job.
    pub(crate) fn remove(&self, job: JobId) -> std::io::Result<()> {
        let _one = self.lock(job);
        std::fs::remove_dir_all(self.folder.join(job.to_string()))
    }

    /// Jobs whose logs grow, or are complete, from now on.
    pub(crate) fn changes(&self) -> broadcast::Receiver<JobId> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_late_and_gapped_pieces_leave_one_log() {
        let folder = tempfile::tempdir().unwrap();
        let logs = LogStore::open(folder.path()).unwrap();
        let job = JobId::from_raw(1);
        let (first, second) = (AttemptId::from_raw(10), AttemptId::from_raw(11));
        logs.append(job, 0, first, 0, b"hello ").unwrap();
        logs.append(job, 0, first, 3, b"lo world").unwrap();
        logs.append(job, 0, first, 100, b"gap").unwrap();
        assert_eq!(logs.length(job, 0, first), 11);
        logs.append(job, 0, second, 0, b"again").unwrap();
        logs.append(job, 0, first, 11, b" late").unwrap();
        assert_eq!(logs.read(job, 0, 6, 100).unwrap(), "world");
        assert_eq!(logs.read(job, 0, 11, 3).unwrap(), "aga");
        assert_eq!(logs.read(job, 0, 16, 3).unwrap(), "");
        assert_eq!(logs.read(job, 1, 0, 3).unwrap(), "");
    }
}
