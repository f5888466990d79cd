//! The one thread that owns the journal, so that appends of many tasks share an fsync and no async thread waits for a disk.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use sluice_proto::v1::WindowRecord;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Journal, JournalError};
use crate::error::in_one_line;
use crate::metrics::NodeMetrics;

/// Requests that may wait.
const QUEUE: usize = 256;
/// Records of one read.
const READ: usize = 512;

enum Request {
    Append(Vec<WindowRecord>, oneshot::Sender<Result<(), JournalError>>),
    Read { after: u64, answer: oneshot::Sender<Result<Vec<WindowRecord>, JournalError>> },
    Settle(u64),
    Close,
}

/// The way to the journal; cheap to clone.
#[derive(Clone)]
pub(crate) struct JournalHandle {
    requests: mpsc::Sender<Request>,
    last: watch::Receiver<u64>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl JournalHandle {
    /// Opens the journal and starts its thread. Also returns every record that is still there.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn open(dir: &Path, metrics: Arc<NodeMetrics>) -> Result<(Self, Vec<WindowRecord>), JournalError> {
        let journal = Journal::open(dir)?;
        let known = journal.read_after(0, usize::MAX)?;
        NodeMetrics::set(&metrics.journal_bytes, journal.bytes());
        let (requests, inbox) = mpsc::channel(QUEUE);
        let (told, last) = watch::channel(journal.last());
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || serve(journal, inbox, &told, &metrics))
            .map_err(JournalError::file("starting a thread for", dir))?;
        Ok((Self { requests, last, thread: Arc::new(Mutex::new(Some(thread))) }, known))
    }

    /// Writes records; numbers them. On disk when this returns.
    ///
    /// # Errors
    /// The disk; then nothing was written and the same may be tried again.
    pub(crate) async fn append(&self, records: Vec<WindowRecord>) -> Result<(), JournalError> {
        let (answer, done) = oneshot::channel();
        self.requests.send(Request::Append(records, answer)).await.map_err(|_| JournalError::Closed)?;
        done.await.map_err(|_| JournalError::Closed)?
    }

    /// Reads up to 512 records behind `after`.
    ///
    /// # Errors
    /// The disk.
    pub(crate) async fn read(&self, after: u64) -> Result<Vec<WindowRecord>, JournalError> {
        let (answer, done) = oneshot::channel();
        self.requests.send(Request::Read { after, answer }).await.map_err(|_| JournalError::Closed)?;
        done.await.map_err(|_| JournalError::Closed)?
    }

    /// Lets records up to `number` go.
    pub(crate) async fn settle(&self, number: u64) {
        // A journal that is closing keeps them; the controller tells it again at the next start.
        let _closing = self.requests.send(Request::Settle(number)).await;
    }

    /// Number of the newest record, as it grows.
    pub(crate) fn last(&self) -> watch::Receiver<u64> {
        self.last.clone()
    }

    /// Writes what was asked for so far, then ends the thread; later calls are refused.
    pub(crate) async fn close(&self) {
        // Closed before: then there is no thread to wait for either.
        let _closed = self.requests.send(Request::Close).await;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("the journal's thread panicked");
        }
    }
}

fn serve(mut journal: Journal, mut inbox: mpsc::Receiver<Request>, told: &watch::Sender<u64>, metrics: &NodeMetrics) {
    let mut open = true;
    while open && let Some(first) = inbox.blocking_recv() {
        let mut next = Some(first);
        let mut appends = Vec::new();
        while let Some(request) = next.take() {
            match request {
                Request::Append(records, answer) => appends.push((records, answer)),
                Request::Read { after, answer } => {
                    flush(&mut journal, &mut appends, told, metrics);
                    let _stopped = answer.send(journal.read_after(after, READ));
                }
                Request::Settle(number) => {
                    flush(&mut journal, &mut appends, told, metrics);
                    settle(&mut journal, number, metrics);
                }
                Request::Close => open = false,
            }
            next = if open { inbox.try_recv().ok() } else { None };
        }
        flush(&mut journal, &mut appends, told, metrics);
        NodeMetrics::set(&metrics.journal_bytes, journal.bytes());
    }
}

type Append = (Vec<WindowRecord>, oneshot::Sender<Result<(), JournalError>>);

/// Writes all waiting batches with one fsync; where that fails, each by itself, so that everybody hears of his own.
fn flush(journal: &mut Journal, appends: &mut Vec<Append>, told: &watch::Sender<u64>, metrics: &NodeMetrics) {
    let mut all: Vec<WindowRecord> = appends.iter().flat_map(|(records, _)| records.iter().cloned()).collect();
    let together = journal.append(&mut all);
    for (mut records, answer) in appends.drain(..) {
        let written = if together.is_ok() { Ok(()) } else { journal.append(&mut records) };
        match &written {
            Ok(()) => NodeMetrics::add(&metrics.windows_journalled, u64::try_from(records.len()).unwrap_or(0)),
            Err(error) => {
                NodeMetrics::add(&metrics.journal_failures, 1);
                tracing::error!(error = in_one_line(error), "windows could not be journalled and stay open");
            }
        }
        // Whoever asked may have been stopped meanwhile; a restart finds the records.
        let _stopped = answer.send(written);
    }
    told.send_if_modified(|last| std::mem::replace(last, journal.last()) != journal.last());
}

fn settle(journal: &mut Journal, number: u64, metrics: &NodeMetrics) {
    NodeMetrics::set(&metrics.windows_acknowledged, number);
    if let Err(error) = journal.settle(number) {
        tracing::error!(error = in_one_line(&error), "settled journal records could not be removed");
    }
}
