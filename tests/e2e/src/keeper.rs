//! Keeps evidence while a system runs: hard links to journals, logs and outputs.
//!
//! A node lets settled journal segments and ended tasks go. A hard link made while the file grows shows all that is
//! written later too, so a short look now and then is enough. Links are made on the same file system, beside the data.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const LOOK: Duration = Duration::from_millis(40);

/// Where the evidence lies.
#[derive(Debug, Clone)]
pub struct Kept(PathBuf);

impl Kept {
    /// Evidence in a folder.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// Beside a data folder.
    #[must_use]
    pub fn beside(data: &Path) -> Self {
        let name = data.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self(data.with_file_name(format!("{name}-kept")))
    }

    /// The folder itself.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Folders of journals, with SITE/NODE.
    #[must_use]
    pub fn journals(&self) -> Vec<(String, PathBuf)> {
        let sites = children(&self.0.join("journals"));
        let nodes = sites.iter().flat_map(|site| children(site).into_iter().map(|node| (name(site), node)));
        nodes.map(|(site, node)| (format!("{site}/{}", name(&node)), node)).collect()
    }

    /// Folders of outputs, one per lease.
    #[must_use]
    pub fn outputs(&self) -> Vec<PathBuf> {
        children(&self.0.join("outputs"))
    }

    /// Logs, one per lease.
    #[must_use]
    pub fn logs(&self) -> Vec<PathBuf> {
        children(&self.0.join("logs"))
    }

    /// Notes that a node (SITE/NODE) was killed for good.
    pub fn note_dead(&self, node: &str) {
        let dead = self.0.join("dead");
        let noted = fs::create_dir_all(&dead).and_then(|()| fs::write(dead.join(node.replace('/', "~")), ""));
        noted.expect("invariant: the folder of evidence can be written");
    }

    /// Nodes (SITE/NODE) killed for good.
    #[must_use]
    pub fn dead(&self) -> Vec<String> {
        children(&self.0.join("dead")).iter().map(|path| name(path).replace('~', "/")).collect()
    }

    /// The same evidence in another folder, without the journal of one node: what a judge must not be content with.
    ///
    /// # Errors
    /// The other folder cannot be filled.
    pub fn without_journal(&self, node: &str, folder: &Path) -> std::io::Result<Self> {
        fn copy(from: &Path, to: &Path, left_out: &Path) -> std::io::Result<()> {
            fs::create_dir_all(to)?;
            for child in children(from).iter().filter(|child| child.as_path() != left_out) {
                let to = to.join(name(child));
                if child.is_dir() { copy(child, &to, left_out)? } else { fs::hard_link(child, to)? }
            }
            Ok(())
        }
        copy(&self.0, folder, &self.0.join("journals").join(node))?;
        Ok(Self(folder.to_owned()))
    }

    /// Looks once through a data folder and links what is new.
    pub fn look(&self, data: &Path) {
        for site in children(&data.join("sites")) {
            for node in children(&site).into_iter().filter(|node| node.join("agent").is_dir()) {
                let agent = node.join("agent");
                let journal = self.0.join("journals").join(name(&site)).join(name(&node));
                for segment in children(&agent.join("journal")) {
                    link(&segment, &journal.join(name(&segment)));
                }
                for log in children(&agent.join("logs")) {
                    link(&log, &self.0.join("logs").join(name(&log)));
                }
                for attempt in children(&agent.join("attempts")) {
                    let lease = name(&attempt);
                    link(&attempt.join("log"), &self.0.join("logs").join(format!("{lease}.log")));
                    for output in children(&attempt.join("outputs")) {
                        link(&output, &self.0.join("outputs").join(&lease).join(name(&output)));
                    }
                }
            }
        }
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    all.sort();
    all
}

/// What cannot be linked is not there yet, not there any more, or linked before.
fn link(from: &Path, to: &Path) {
    if to.exists() || !from.is_file() {
        return;
    }
    let _ = to.parent().map(fs::create_dir_all);
    let _ = fs::hard_link(from, to);
}

/// Keeps evidence until dropped.
#[derive(Debug)]
pub struct Keeper {
    kept: Kept,
    data: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts to keep what appears in `data`.
    ///
    /// # Errors
    /// No thread.
    pub fn start(data: &Path) -> std::io::Result<Self> {
        let (kept, stop) = (Kept::beside(data), Arc::new(AtomicBool::new(false)));
        let (own, data_of, stopped) = (kept.clone(), data.to_owned(), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("keeper".to_owned()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                own.look(&data_of);
                std::thread::sleep(LOOK);
            }
        })?;
        Ok(Self { kept, data: data.to_owned(), stop, thread: Some(thread) })
    }

    /// What is kept so far, after one more look.
    #[must_use]
    pub fn kept(&self) -> &Kept {
        self.kept.look(&self.data);
        &self.kept
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}
