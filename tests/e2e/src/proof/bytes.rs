//! What lies in a site's vault, read from its disk: which bytes another site's vault had to send.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Deserialize;

/// Shorter than any checkpoint stays.
const LOOK: Duration = Duration::from_millis(50);

/// A task's checkpoint, as far as the judge needs it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Manifest {
    job: String,
    generation: u64,
    pub(super) step: u64,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Deserialize)]
struct Entry {
    digest: String,
    length: u64,
}

/// Blobs and manifests by digest, with their sizes.
#[derive(Debug, Clone, Default)]
pub(super) struct Stored {
    blobs: BTreeMap<String, u64>,
    manifests: BTreeMap<String, (u64, Manifest)>,
}

impl Stored {
    /// Adds what lies in a vault's folder now.
    fn look(&mut self, folder: &Path) {
        for (digest, path) in files(&folder.join("blobs")) {
            if !self.blobs.contains_key(&digest)
                && let Ok(meta) = path.metadata()
            {
                self.blobs.insert(digest, meta.len());
            }
        }
        for (digest, path) in files(&folder.join("manifests")) {
            if self.manifests.contains_key(&digest) {
                continue;
            }
            // Those of gangs are others, and a file may be gone again.
            let bytes = fs::read(&path).unwrap_or_default();
            if let Ok(manifest) = serde_json::from_slice(&bytes) {
                self.manifests.insert(digest, (bytes.len() as u64, manifest));
            }
        }
    }

    /// A job's checkpoints of its first attempt.
    fn first_attempt(&self, job: &str) -> Vec<(&String, &(u64, Manifest))> {
        let of_job = || self.manifests.iter().filter(|(_, (_, manifest))| manifest.job == job);
        let first = of_job().map(|(_, (_, manifest))| manifest.generation).min();
        of_job().filter(|(_, (_, manifest))| Some(manifest.generation) == first).collect()
    }

    /// The step of a job's newest checkpoint here.
    pub(super) fn newest(&self, job: &str) -> u64 {
        let steps = self.manifests.values().filter(|(_, manifest)| manifest.job == job).map(|(_, it)| it.step);
        steps.max().unwrap_or(0)
    }

    /// Bytes of a job's checkpoints of its first attempt that came here and were not here `before`: each manifest, and
    /// each blob once. One that was superseded as it came may have been here for no look, but was seen where it was
    /// `sealed`: it came if all of its blobs did.
    pub(super) fn missing(&self, job: &str, before: &Self, sealed: &Self) -> u64 {
        let there = |digest: &str| self.blobs.contains_key(digest) || before.blobs.contains_key(digest);
        let came = |manifest: &Manifest| manifest.entries.iter().all(|entry| there(&entry.digest));
        let passed = sealed.first_attempt(job).into_iter().filter(|(_, (_, manifest))| came(manifest));
        let all: BTreeMap<_, _> = self.first_attempt(job).into_iter().chain(passed).collect();
        let mut blobs = BTreeMap::new();
        let mut manifests = 0;
        for (digest, (size, manifest)) in all {
            if !before.manifests.contains_key(digest) {
                manifests += size;
            }
            let lacking = manifest.entries.iter().filter(|entry| !before.blobs.contains_key(&entry.digest));
            blobs.extend(lacking.map(|entry| (entry.digest.clone(), entry.length)));
        }
        manifests + blobs.values().sum::<u64>()
    }

    /// The same where every checkpoint came as a whole.
    pub(super) fn whole(&self, job: &str) -> u64 {
        let sums = self
            .first_attempt(job)
            .into_iter()
            .map(|(_, (size, manifest))| size + manifest.entries.iter().map(|entry| entry.length).sum::<u64>());
        sums.sum()
    }
}

fn files(folder: &Path) -> Vec<(String, PathBuf)> {
    let below = |folder: &Path| -> Vec<PathBuf> {
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let all = below(folder).into_iter().flat_map(|fan| below(&fan));
    all.filter_map(|path| Some((path.file_name()?.to_str()?.to_owned(), path))).collect()
}

/// Looks into a vault until dropped: what it forgets meanwhile counts too.
pub(super) struct StoreWatch {
    folder: PathBuf,
    all: Arc<Mutex<Stored>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl StoreWatch {
    /// Of the vault in a site's folder.
    pub(super) fn start(site: &Path) -> std::io::Result<Self> {
        let folder = site.join("vault/blobs");
        let (all, stop) = (Arc::new(Mutex::new(Stored::default())), Arc::new(AtomicBool::new(false)));
        let (seen, stopped, from) = (Arc::clone(&all), Arc::clone(&stop), folder.clone());
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                seen.lock().unwrap_or_else(PoisonError::into_inner).look(&from);
                std::thread::sleep(LOOK);
            }
        })?;
        Ok(Self { folder, all, stop, thread: Some(thread) })
    }

    /// What is there now.
    pub(super) fn now(&self) -> Stored {
        let mut now = Stored::default();
        now.look(&self.folder);
        now
    }

    /// What was ever there.
    pub(super) fn ever(&self) -> Stored {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.look(&self.folder);
        all.clone()
    }
}

impl Drop for StoreWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(generation: u64, step: u64, entries: &[(&str, u64)]) -> (u64, Manifest) {
        let entry = |(digest, length): &(&str, u64)| Entry { digest: (*digest).to_owned(), length: *length };
        let entries = entries.iter().map(entry).collect();
        (10, Manifest { job: "j".to_owned(), generation, step, entries })
    }

    #[test]
    fn each_missing_blob_counts_once_and_what_was_there_not_at_all() {
        let manifests = [
            ("m1".to_owned(), manifest(1, 20, &[("frozen", 100), ("x1", 7)])),
            ("m2".to_owned(), manifest(1, 40, &[("frozen", 100), ("x2", 7)])),
            ("m3".to_owned(), manifest(2, 60, &[("x3", 7)])),
        ];
        let stored = Stored { blobs: BTreeMap::new(), manifests: manifests.into() };
        let (nothing, nowhere) = (Stored::default(), Stored::default());
        assert_eq!(stored.missing("j", &nothing, &nowhere), 10 + 10 + 100 + 7 + 7);
        assert_eq!(stored.whole("j"), 2 * (10 + 107));
        let before = Stored { blobs: [("frozen".to_owned(), 100)].into(), ..Stored::default() };
        assert_eq!(stored.missing("j", &before, &nowhere), 10 + 10 + 7 + 7);
        // One came and went between two looks; of another one nothing ever came.
        let passing = ("m4".to_owned(), manifest(1, 50, &[("frozen", 100), ("x4", 7)]));
        let never = ("m5".to_owned(), manifest(1, 55, &[("frozen", 100), ("x5", 7)]));
        let sealed = Stored { blobs: BTreeMap::new(), manifests: [passing, never].into() };
        let stored = Stored { blobs: [("frozen".to_owned(), 100), ("x4".to_owned(), 7)].into(), ..stored };
        assert_eq!(stored.missing("j", &before, &sealed), 10 + 10 + 7 + 7 + 10 + 7);
        assert_eq!((stored.newest("j"), stored.newest("other")), (60, 0));
    }
}
