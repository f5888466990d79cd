//! Keeps the step logs of all attempts of a running system, also of those whose node was killed.
//!
//! A node removes an attempt's folder when its outputs are stored, and only the newest attempt's outputs can be
//! downloaded. So each log is linked into a folder of the judge as soon as it is there: the attempt goes on writing
//! into the very file that the judge reads in the end.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;

use crate::judge::Log;

/// Shorter than any attempt that executed a step lives.
const PAUSE: Duration = Duration::from_millis(10);

/// A thread that links logs as they appear.
#[derive(Debug)]
pub(crate) struct Collector {
    folder: PathBuf,
    /// Leases whose logs were taken.
    taken: BTreeSet<String>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    /// Collects from the data folder of a system into `folder`, which must be on the same file system.
    pub(crate) fn start(data: &Path, folder: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&folder).context("cannot make the judge's folder")?;
        let stop = Arc::new(AtomicBool::new(false));
        let (sites, into, stopped) = (data.join("sites"), folder.clone(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                link_all(&sites, &into);
                std::thread::sleep(PAUSE);
            }
        });
        Ok(Self { folder, taken: BTreeSet::new(), stop, thread: Some(thread) })
    }

    /// The logs that came since the last call: those of the one job that ran meanwhile, once it has ended.
    pub(crate) fn take(&mut self) -> anyhow::Result<Vec<Log>> {
        let mut logs = Vec::new();
        for entry in std::fs::read_dir(&self.folder).context("cannot list the judge's folder")? {
            let path = entry.context("cannot list the judge's folder")?.path();
            let lease = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if self.taken.insert(lease) {
                logs.push(Log::read(&path)?);
            }
        }
        Ok(logs)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Folders come and go while they are listed: what cannot be read now is tried again at the next round.
fn link_all(sites: &Path, into: &Path) {
    for node in folders(sites).iter().flat_map(|site| folders(site)) {
        for attempt in folders(&node.join("agent/attempts")) {
            let Some(lease) = attempt.file_name() else { continue };
            let to = into.join(lease).with_extension("jsonl");
            if !to.exists() {
                let _ = std::fs::hard_link(attempt.join("outputs/steps.jsonl"), &to);
            }
        }
    }
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}
