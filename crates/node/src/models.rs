//! Files of models on this node: fetched once from the site's vault, verified, shared by all tasks that use them.
//!
//! A file in use has a second name in the folder of each task that uses it, so that what is in use is read from the disk,
//! survives the agent, and taking away a file that is in use would free nothing. Where there is no room, the file goes that
//! was used last longest ago and that nobody uses. Several come at the same time: one that is far away keeps no other waiting.
//!
//! A file is used before it is on the disk: whoever waits for a model does not wait for the disk. Until it is, a mark beside
//! it names the boot that it was written in. After a crash of the machine it may be torn, and is fetched again.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use sluice_types::{BootId, Bytes, Digest};

use crate::depot::{Depot, DepotError};

/// What a file is called while it comes.
const PART: &str = "part";
/// The mark beside a file that may not be on the disk yet.
const MARK: &str = "unsynced";

/// The models of one node.
#[derive(Debug)]
pub(crate) struct Models {
    folder: PathBuf,
    bound: Bytes,
    boot: BootId,
    /// One task fetches a model, the others wait for it.
    fetching: Mutex<BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    /// Bytes that are on their way, by model. Whoever takes away, names or counts files has it locked.
    coming: Arc<Mutex<BTreeMap<Digest, u64>>>,
}

/// A model on its way; its room is free again where it does not come.
struct Coming<'a> {
    models: &'a Models,
    digest: Digest,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.models.coming().remove(&self.digest);
    }
}

impl Models {
    /// Those in `folder`, at most `bound` of them. `boot` is the machine's present one.
    pub(crate) fn new(folder: PathBuf, bound: Bytes, boot: BootId) -> Self {
        Self { folder, bound, boot, fetching: Mutex::default(), coming: Arc::default() }
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join(digest.to_string())
    }

    fn coming(&self) -> MutexGuard<'_, BTreeMap<Digest, u64>> {
        locked(&self.coming)
    }

    /// Whether a file is here, whole. One that a crash of the machine may have torn is taken away.
    fn is_here(&self, path: &Path) -> Result<bool, DepotError> {
        let mark = path.with_extension(MARK);
        match fs::read_to_string(&mark) {
            // What was written in this boot is what is read in it, on the disk or not.
            Ok(boot) if boot == self.boot.0 => Ok(path.exists()),
            Ok(_) => {
                gone(fs::remove_file(path))?;
                gone(fs::remove_file(mark))?;
                Ok(false)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.exists()),
            Err(error) => Err(error.into()),
        }
    }

    /// Brings a file to the disk, and takes its mark away. Nobody waits for it.
    fn sync(&self, path: PathBuf) {
        let coming = Arc::clone(&self.coming);
        tokio::task::spawn_blocking(move || {
            let synced = File::open(&path).and_then(|file| {
                file.sync_all()?;
                let _known = locked(&coming);
                // Another may have come in its place.
                let same =
                    fs::metadata(&path).is_ok_and(|data| file.metadata().is_ok_and(|own| own.ino() == data.ino()));
                if same { gone(fs::remove_file(path.with_extension(MARK))) } else { Ok(()) }
            });
            if let Err(error) = synced {
                tracing::warn!(model = %path.display(), %error, "is not on the disk: after a crash it is fetched again");
            }
        });
    }

    /// Gives a model the name `link`, which may be there already; fetches it where it is not here.
    ///
    /// # Errors
    /// It cannot be fetched, or there is no room for it.
    pub(crate) async fn give(
        &self,
        depot: &Arc<dyn Depot>,
        digest: Digest,
        size: Bytes,
        link: &Path,
    ) -> Result<(), DepotError> {
        let turn = {
            let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
            fetching.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(fetching.entry(digest).or_default())
        };
        let _turn = turn.lock().await;
        let path = self.path(digest);
        let coming = {
            let mut coming = self.coming();
            if self.is_here(&path)? {
                if path.with_extension(MARK).exists() {
                    // By an agent that was killed, or still on its way to the disk.
                    self.sync(path.clone());
                }
                return name(&path, link);
            }
            self.make_room(&coming, size)?;
            coming.insert(digest, size.get());
            Coming { models: self, digest }
        };
        let part = path.with_extension(PART);
        fs::create_dir_all(&self.folder)?;
        fs::set_permissions(&self.folder, Permissions::from_mode(0o700))?;
        depot.fetch_file(digest, &part).await?;
        // Read by the tasks' users through an open file, written by nobody.
        fs::set_permissions(&part, Permissions::from_mode(0o444))?;
        let known = self.coming();
        // In this order: a file system that keeps the name after a crash keeps the mark, which was there before it.
        fs::write(path.with_extension(MARK), &self.boot.0)?;
        fs::rename(&part, &path)?;
        // It has its name before it could be taken away, and is counted until then.
        let named = name(&path, link);
        drop(known);
        drop(coming);
        self.sync(path);
        named
    }

    /// Takes away what nobody uses until there is room for `size` beside what is on its way.
    fn make_room(&self, coming: &BTreeMap<Digest, u64>, size: Bytes) -> Result<(), DepotError> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder).into_iter().flatten() {
            let entry = entry?;
            let data = entry.metadata()?;
            let is_of = |digest: &Digest| entry.file_name().to_string_lossy().starts_with(&digest.to_string());
            if coming.keys().any(is_of) || is_a(&entry.path(), MARK) {
                continue;
            }
            if is_a(&entry.path(), PART) {
                // Of an agent that was killed. Whoever comes for it again begins anew.
                fs::remove_file(entry.path())?;
                continue;
            }
            files.push((data.modified()?, data.len(), data.nlink(), entry.path()));
        }
        files.sort();
        let mut used: u64 = files.iter().map(|(_, length, _, _)| length).chain(coming.values()).sum();
        let most = self.bound.get();
        for (_, length, names, path) in files {
            if used.saturating_add(size.get()) <= most {
                return Ok(());
            }
            if names == 1 {
                fs::remove_file(&path)?;
                gone(fs::remove_file(path.with_extension(MARK)))?;
                used -= length;
            }
        }
        let fits = used.saturating_add(size.get()) <= most;
        if fits { Ok(()) } else { Err(DepotError::NoRoom { size, used: Bytes::new(used), bound: self.bound }) }
    }
}

fn locked(coming: &Mutex<BTreeMap<Digest, u64>>) -> MutexGuard<'_, BTreeMap<Digest, u64>> {
    // Whoever panicked left whole entries.
    coming.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_a(path: &Path, kind: &str) -> bool {
    path.extension().is_some_and(|extension| extension == kind)
}

/// What is not there needs not be taken away.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Gives a file that is used now another name.
fn name(path: &Path, link: &Path) -> Result<(), DepotError> {
    File::open(path)?.set_modified(SystemTime::now())?;
    gone(fs::remove_file(link))?;
    Ok(fs::hard_link(path, link)?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_trait::async_trait;
    use sluice_vault::Materialised;

    use super::*;
    use crate::depot::{OutputsOwner, Sealed};
    use crate::home::StoredOutputs;
    use crate::supervisor::StagedManifest;

    /// Has every file of 100 bytes.
    #[derive(Debug, Default)]
    struct Vault {
        fetched: Mutex<Vec<Digest>>,
    }

    #[async_trait]
    impl Depot for Vault {
        async fn fetch_file(&self, digest: Digest, to: &Path) -> Result<(), DepotError> {
            // One is very far away.
            let far = if digest == Digest::from_bytes([99; 32]) { 3_600_000 } else { 5 };
            tokio::time::sleep(Duration::from_millis(far)).await;
            self.fetched.lock().unwrap().push(digest);
            Ok(fs::write(to, [7; 100])?)
        }
        async fn fetch(&self, _: Digest, _: &Path, _: &str, _: &Path) -> Result<(), DepotError> {
            unreachable!()
        }
        async fn fetch_checkpoint(&self, _: Digest, _: u32, _: &Path) -> Result<Materialised, DepotError> {
            unreachable!()
        }
        async fn store_checkpoint(
            &self,
            _: &Path,
            _: &StagedManifest,
            _: u32,
            _: Option<Digest>,
        ) -> Result<Sealed, DepotError> {
            unreachable!()
        }
        async fn store_outputs(
            &self,
            _: &Path,
            _: &Path,
            _: OutputsOwner,
        ) -> Result<Option<StoredOutputs>, DepotError> {
            unreachable!()
        }
    }

    fn digest(number: u8) -> Digest {
        Digest::from_bytes([number; 32])
    }

    /// Waits for what a thread of its own does some time.
    async fn until(done: impl Fn() -> bool) {
        let looks = async {
            while !done() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), looks).await.unwrap();
    }

    fn mk_models(root: &Path, boot: &str) -> Models {
        Models::new(root.join("models"), Bytes::new(250), BootId(boot.to_owned()))
    }

    #[tokio::test]
    async fn what_a_crash_of_the_machine_may_have_torn_is_fetched_again() {
        let root = tempfile::tempdir().unwrap();
        let vault = Arc::new(Vault::default());
        let depot: Arc<dyn Depot> = vault.clone();
        let give = async |boot: &str| {
            let models = mk_models(root.path(), boot);
            models.give(&depot, digest(1), Bytes::new(100), &root.path().join("link")).await.unwrap();
            fs::read(root.path().join("link")).unwrap()
        };
        let fetched = || vault.fetched.lock().unwrap().len();
        give("before").await;
        let file = mk_models(root.path(), "").path(digest(1));
        let mark = file.with_extension(MARK);
        until(|| !mark.exists()).await;
        give("after").await;
        assert_eq!(fetched(), 1, "it was on the disk before the crash");
        // The agent was killed before the file was on the disk: the machine has it all the same.
        fs::write(&mark, "after").unwrap();
        give("after").await;
        until(|| !mark.exists()).await;
        assert_eq!(fetched(), 1);
        // The machine crashed then: of the mark too only its name may be left.
        for known in ["after", ""] {
            fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
            fs::write(&file, "torn").unwrap();
            fs::write(&mark, known).unwrap();
            assert_eq!(give("later").await, [7; 100]);
            until(|| !mark.exists()).await;
        }
        assert_eq!(fetched(), 3);
    }

    #[tokio::test]
    async fn a_model_is_fetched_once_kept_while_used_and_the_oldest_unused_goes() {
        let root = tempfile::tempdir().unwrap();
        let models = mk_models(root.path(), "now");
        let vault = Arc::new(Vault::default());
        let depot: Arc<dyn Depot> = vault.clone();
        let size = Bytes::new(100);
        let link = |name: &str| root.path().join(name);
        let all = (0..5).map(|n| format!("a{n}")).collect::<Vec<_>>();
        let links: Vec<_> = all.iter().map(|name| link(name)).collect();
        let given = links.iter().map(|link| models.give(&depot, digest(1), size, link));
        futures::future::try_join_all(given).await.unwrap();
        assert_eq!(*vault.fetched.lock().unwrap(), [digest(1)]);
        let mode = fs::metadata(link("a0")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o444);
        models.give(&depot, digest(2), size, &link("b")).await.unwrap();
        let full = models.give(&depot, digest(3), size, &link("c")).await.unwrap_err();
        assert!(matches!(full, DepotError::NoRoom { .. }) && !full.is_final(), "{full}");
        // The second is not used any more, the first is.
        fs::remove_file(link("b")).unwrap();
        fs::write(models.path(digest(9)).with_extension(PART), "left by one that was killed").unwrap();
        models.give(&depot, digest(3), size, &link("c")).await.unwrap();
        models.give(&depot, digest(1), size, &link("a0")).await.unwrap();
        assert_eq!(*vault.fetched.lock().unwrap(), [1, 2, 3].map(digest));
        // Each is on the disk some time, and unmarked then.
        let left = || fs::read_dir(root.path().join("models")).unwrap().map(|entry| entry.unwrap().path());
        until(|| !left().any(|path| is_a(&path, MARK))).await;
        assert_eq!(left().count(), 2);
        for name in &all {
            fs::remove_file(link(name)).unwrap();
        }
        models.give(&depot, digest(2), size, &link("b")).await.unwrap();
        assert!(!models.path(digest(1)).exists() && models.path(digest(3)).exists());
    }

    #[tokio::test]
    async fn one_that_is_far_away_keeps_no_other_waiting_and_its_room_is_its_own() {
        let root = tempfile::tempdir().unwrap();
        let models = Arc::new(mk_models(root.path(), "now"));
        let depot: Arc<dyn Depot> = Arc::new(Vault::default());
        let (size, link) = (Bytes::new(100), |name: &str| root.path().join(name));
        let far = {
            let (models, depot, link) = (Arc::clone(&models), Arc::clone(&depot), link("far"));
            tokio::spawn(async move { models.give(&depot, digest(99), size, &link).await })
        };
        tokio::task::yield_now().await;
        let near = link("near");
        let near = tokio::time::timeout(Duration::from_secs(5), models.give(&depot, digest(1), size, &near));
        near.await.unwrap().unwrap();
        let full = models.give(&depot, digest(2), size, &link("more")).await.unwrap_err();
        assert!(matches!(full, DepotError::NoRoom { .. }), "{full}");
        // Given up, its room is free.
        far.abort();
        assert!(far.await.is_err());
        models.give(&depot, digest(2), size, &link("more")).await.unwrap();
    }
}
