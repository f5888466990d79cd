//! Taking over a checkpoint that a task has written: rename, check, hash, fsync, and only then the final name.
//!
//! The task may be hostile and still running. The folder is renamed out of its reach and given to ourselves before
//! anything in it is looked at; every file is opened without following links and checked through its descriptor. A
//! descriptor that the task kept open can still change bytes: that spoils the task's own checkpoint and nothing else,
//! because whoever stores it hashes again and refuses what differs from the manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use sluice_types::{AttemptId, Digest, Generation, JobId, Nanos, NodeInstant, Reason};

use super::folder::{self, Folder};
use super::protocol::{Announcement, MANIFEST, Refusal};
use super::records::{StagedEntry, StagedManifest, StagedSummary};
use super::remove::remove_tree;
use super::{LaunchSpec, SupervisorError, clock};

/// Checkpoints that may wait for the agent to take them; after that, tasks are told to go on without.
const WAITING_BOUND: usize = 8;
const CHUNK: usize = 1 << 20;
/// Refusals that took longer are followed by a pause of so many times as long: hashing for nothing is at the host's cost.
const COSTLY: Nanos = Nanos::from_millis(200);
const PAUSE_FACTOR: u64 = 9;

/// Makes staged checkpoints of one task, one at a time.
#[derive(Debug)]
pub(crate) struct Stager {
    folder: Folder,
    job: JobId,
    attempt: AttemptId,
    generation: Generation,
    rank: u32,
    /// Bytes of one checkpoint.
    bound: u64,
    next: u64,
    /// Nothing is taken over before.
    not_before: NodeInstant,
}

/// A file of a checkpoint to be.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<u64>,
    pub(crate) file: String,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) blake3: Digest,
}

impl Stager {
    pub(crate) fn new(folder: &Folder, spec: &LaunchSpec) -> Self {
        Self {
            folder: folder.clone(),
            job: spec.job,
            attempt: spec.attempt,
            generation: spec.generation,
            rank: spec.rank,
            bound: spec.limits.stage.get(),
            next: 1,
            not_before: NodeInstant::default(),
        }
    }

    /// Bytes that one checkpoint may have.
    pub(crate) fn bound(&self) -> u64 {
        self.bound
    }

    /// Checkpoints that wait for the agent.
    pub(crate) fn waiting(&self) -> usize {
        fs::read_dir(self.folder.staged()).map(Iterator::count).unwrap_or(0)
    }

    /// Number of the next checkpoint.
    pub(crate) fn sequence(&self) -> u64 {
        self.next
    }

    /// Takes over an announced folder. Whatever is refused is also removed: the task writes a new one.
    pub(crate) fn take(&mut self, said: &Announcement, now: NodeInstant) -> Result<StagedSummary, Refusal> {
        if now < self.not_before {
            let text = "the last checkpoint took long and was not acceptable; wait before the next";
            return Err(Refusal::new(Reason::Overloaded, text));
        }
        let begun = clock::boottime();
        let room = self.room()?;
        let from = self.folder.stage().join(&said.dir);
        let taken = fs::rename(&from, &room);
        taken.map_err(|error| Refusal::field(format!("folder `{}` cannot be taken over: {error}", said.dir)))?;
        let result = self.take_over(said, &room, now);
        if result.is_err() {
            // What cannot be removed now is removed with the attempt's folder.
            let _left = remove_tree(&room);
            self.not_before = now.after(pause_after_refusal(clock::boottime().since(begun)));
        }
        result
    }

    /// An empty place for the next checkpoint.
    pub(crate) fn room(&self) -> Result<PathBuf, Refusal> {
        let waiting = self.waiting();
        if waiting >= WAITING_BOUND {
            return Err(Refusal::new(Reason::Overloaded, format!("{waiting} checkpoints wait to be stored")));
        }
        let room = self.folder.staging().join(self.next.to_string());
        let _nothing_there = remove_tree(&room);
        Ok(room)
    }

    fn take_over(&mut self, said: &Announcement, room: &Path, now: NodeInstant) -> Result<StagedSummary, Refusal> {
        let inner =
            |error: io::Error| Refusal::new(Reason::Internal, format!("the checkpoint cannot be read: {error}"));
        let data = fs::symlink_metadata(room).map_err(inner)?;
        if !data.is_dir() {
            return Err(Refusal::field(format!("`{}` is not a folder", said.dir)));
        }
        seize(room, 0o700).map_err(inner)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = open(room, flags, Mode::empty()).map_err(|error| inner(error.into()))?;
        let mut files: BTreeMap<&str, File> = BTreeMap::new();
        for entry in &said.entries {
            if !files.contains_key(entry.file.as_str()) {
                files.insert(&entry.file, open_plain(&dir, &entry.file)?);
            }
        }
        self.check_sizes(said, &files)?;
        let mut pieces = Vec::with_capacity(said.entries.len());
        for entry in &said.entries {
            let blake3 = hash(&files[entry.file.as_str()], entry.offset, entry.length);
            pieces.push(Piece {
                name: entry.name.clone(),
                dtype: entry.dtype.clone(),
                shape: entry.shape.clone(),
                file: entry.file.clone(),
                offset: entry.offset,
                length: entry.length,
                blake3: blake3.map_err(|error| Refusal::field(format!("entry `{}`: {error}", entry.name)))?,
            });
        }
        files.values().try_for_each(File::sync_all).map_err(inner)?;
        let named: BTreeSet<&str> = files.keys().copied().collect();
        keep_only(room, &named).map_err(inner)?;
        let (cursor, code) = (said.cursor.clone(), said.code.clone());
        self.seal(room, said.step, cursor, code, pieces, now)
    }

    fn check_sizes(&self, said: &Announcement, files: &BTreeMap<&str, File>) -> Result<(), Refusal> {
        let mut sizes = BTreeMap::new();
        for (name, file) in files {
            let data = file.metadata().map_err(|error| Refusal::field(format!("file `{name}`: {error}")))?;
            sizes.insert(*name, data.len());
        }
        let mut total: u64 = 0;
        for entry in &said.entries {
            let size = sizes[entry.file.as_str()];
            if entry.offset + entry.length > size {
                return Err(Refusal::field(format!(
                    "entry `{}` ends at byte {} of file `{}`, which has {size}",
                    entry.name,
                    entry.offset + entry.length,
                    entry.file
                )));
            }
            total = total.saturating_add(entry.length);
        }
        // Entries may overlap; counting each bounds the hashing as well as the bytes.
        let whole = total.max(sizes.values().fold(0, |sum: u64, size| sum.saturating_add(*size)));
        if whole > self.bound {
            let text = format!("a checkpoint of {whole} bytes is larger than the bound of {}", self.bound);
            return Err(Refusal::new(Reason::TooLarge, text));
        }
        Ok(())
    }

    /// Writes the manifest and gives the folder its final name; from then on it is a staged checkpoint.
    pub(crate) fn seal(
        &mut self,
        room: &Path,
        step: u64,
        cursor: serde_json::Value,
        code: String,
        pieces: Vec<Piece>,
        now: NodeInstant,
    ) -> Result<StagedSummary, Refusal> {
        let sequence = self.next;
        let entries = pieces.into_iter().map(|piece| StagedEntry {
            name: piece.name,
            dtype: piece.dtype,
            shape: piece.shape,
            file: piece.file,
            offset: piece.offset,
            length: piece.length,
            blake3: piece.blake3,
        });
        let manifest = StagedManifest {
            job: self.job,
            attempt: self.attempt,
            generation: self.generation,
            rank: self.rank,
            sequence,
            step,
            cursor,
            code,
            captured_at: now,
            entries: entries.collect(),
        };
        let inner = |error: SupervisorError| Refusal::new(Reason::Internal, error.in_one_line());
        let fail =
            |error: io::Error| Refusal::new(Reason::Internal, format!("the checkpoint cannot be staged: {error}"));
        folder::write_json(&room.join(MANIFEST), &manifest).map_err(inner)?;
        fs::rename(room, self.folder.staged_set(sequence)).map_err(fail)?;
        folder::sync_folder(&self.folder.staged()).map_err(fail)?;
        self.next += 1;
        Ok(StagedSummary { sequence, step, bytes: manifest.bytes(), captured_at: now })
    }
}

/// How long nothing is taken over after a refusal that took so long.
fn pause_after_refusal(took: Nanos) -> Nanos {
    if took > COSTLY { Nanos::new(took.get().saturating_mul(PAUSE_FACTOR)) } else { Nanos::ZERO }
}

/// Makes a file or folder ours and unreachable for others.
fn seize(path: &Path, mode: u32) -> io::Result<()> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    if fs::symlink_metadata(path)?.uid() != uid.as_raw() {
        std::os::unix::fs::lchown(path, Some(uid.as_raw()), Some(gid.as_raw()))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Opens a regular file of one name in a folder that is ours, and makes it ours too.
fn open_plain(dir: &impl std::os::fd::AsFd, name: &str) -> Result<File, Refusal> {
    // Non-blocking: opening a pipe must not wait for a writer that never comes.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = openat(dir, name, flags, Mode::empty());
    let file = File::from(file.map_err(|error| Refusal::field(format!("file `{name}` cannot be opened: {error}")))?);
    let inner = |error: io::Error| Refusal::new(Reason::Internal, format!("file `{name}`: {error}"));
    let data = file.metadata().map_err(inner)?;
    if !data.is_file() {
        return Err(Refusal::field(format!("`{name}` is not a regular file")));
    }
    if data.nlink() != 1 {
        // Another name would keep a way to change it.
        return Err(Refusal::field(format!("file `{name}` has more than one name")));
    }
    if data.uid() != nix::unistd::geteuid().as_raw() {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        nix::unistd::fchown(&file, Some(uid), Some(gid)).map_err(|error| inner(error.into()))?;
    }
    file.set_permissions(fs::Permissions::from_mode(0o400)).map_err(inner)?;
    Ok(file)
}

/// BLAKE3 of a range of a file; a file that is shorter is an error.
fn hash(file: &File, offset: u64, length: u64) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK];
    let (mut at, mut left) = (offset, length);
    while left > 0 {
        let size = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        file.read_exact_at(&mut buffer[..size], at)?;
        hasher.update(&buffer[..size]);
        let size = u64::try_from(size).unwrap_or(0);
        (at, left) = (at + size, left - size);
    }
    Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
}

/// Removes everything else from a folder that is ours.
fn keep_only(room: &Path, names: &BTreeSet<&str>) -> io::Result<()> {
    for entry in fs::read_dir(room)? {
        let entry = entry?;
        if !entry.file_name().to_str().is_some_and(|name| names.contains(name)) {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::protocol::AnnouncedEntry;
    use super::super::records::read_staged;
    use super::*;

    fn stager(root: &Path, bound: u64) -> (Stager, Folder) {
        let folder = Folder::new(root);
        for path in [folder.stage(), folder.staging(), folder.staged()] {
            fs::create_dir(path).unwrap();
        }
        let (job, attempt) = (JobId::from_raw(1), AttemptId::from_raw(2));
        let generation = Generation::new(3);
        let not_before = NodeInstant::default();
        (Stager { folder: folder.clone(), job, attempt, generation, rank: 0, bound, next: 1, not_before }, folder)
    }

    fn said(entries: &[(&str, &str, u64, u64)]) -> Announcement {
        let entry = |(name, file, offset, length): &(&str, &str, u64, u64)| AnnouncedEntry {
            name: (*name).to_owned(),
            dtype: "u8".to_owned(),
            shape: vec![*length],
            file: (*file).to_owned(),
            offset: *offset,
            length: *length,
        };
        let entries = entries.iter().map(entry).collect();
        Announcement {
            step: 7,
            dir: "d".to_owned(),
            cursor: serde_json::json!({"at": 9}),
            code: "c".to_owned(),
            entries,
        }
    }

    #[test]
    fn a_good_folder_becomes_a_staged_checkpoint() {
        let root = tempfile::tempdir().unwrap();
        let (mut stager, folder) = stager(root.path(), 100);
        let dir = folder.stage().join("d");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("a.bin"), b"0123456789").unwrap();
        fs::write(dir.join("extra"), b"not named").unwrap();
        let summary =
            stager.take(&said(&[("x", "a.bin", 0, 4), ("y", "a.bin", 4, 6)]), NodeInstant::default()).unwrap();
        assert_eq!((summary.sequence, summary.step, summary.bytes.get()), (1, 7, 10));
        assert!(!dir.exists());
        let manifest = &read_staged(&folder).unwrap()[0];
        assert_eq!(manifest.entries[1].blake3.as_bytes(), blake3::hash(b"456789").as_bytes());
        assert_eq!(manifest.cursor["at"], 9);
        let mut names: Vec<_> = fs::read_dir(folder.staged_set(1))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["a.bin", "manifest.json"]);
    }

    #[test]
    fn torn_linked_strange_and_oversized_input_is_refused_and_the_next_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let (mut stager, folder) = stager(root.path(), 100);
        let dir = folder.stage().join("d");
        let secret = root.path().join("secret");
        fs::write(&secret, b"0123456789").unwrap();
        type Make<'a> = &'a dyn Fn();
        let plain: Make<'_> = &|| fs::write(dir.join("a"), b"0123456789").unwrap();
        let linked: Make<'_> = &|| symlink(&secret, dir.join("a")).unwrap();
        let doubled: Make<'_> = &|| fs::hard_link(&secret, dir.join("a")).unwrap();
        let folded: Make<'_> = &|| fs::create_dir(dir.join("a")).unwrap();
        let piped: Make<'_> = &|| nix::unistd::mkfifo(&dir.join("a"), Mode::S_IRWXU).unwrap();
        let large: Make<'_> = &|| fs::write(dir.join("a"), [0; 101]).unwrap();
        let cases: [(Make<'_>, u64, &str); 7] = [
            (plain, 11, "which has 10"),
            (linked, 10, "cannot be opened"),
            (doubled, 10, "more than one name"),
            (folded, 1, "not a regular file"),
            (piped, 1, "not a regular file"),
            (large, 1, "larger than the bound"),
            (&|| (), 1, "cannot be opened"),
        ];
        for (make, length, word) in cases {
            fs::create_dir(&dir).unwrap();
            make();
            let refusal = stager.take(&said(&[("x", "a", 0, length)]), NodeInstant::default()).unwrap_err();
            assert!(refusal.message.contains(word), "{refusal}");
            assert!(!dir.exists() && read_staged(&folder).unwrap().is_empty());
        }
        symlink(root.path(), &dir).unwrap();
        let refusal = stager.take(&said(&[("x", "secret", 0, 1)]), NodeInstant::default()).unwrap_err();
        assert!(refusal.message.contains("not a folder"), "{refusal}");
        assert!(stager.take(&said(&[("x", "a", 0, 1)]), NodeInstant::default()).is_err(), "no folder at all");
        assert!(secret.exists());
        fs::create_dir(&dir).unwrap();
        plain();
        assert_eq!(stager.take(&said(&[("x", "a", 0, 10)]), NodeInstant::default()).unwrap().sequence, 1);
    }

    #[test]
    fn hashing_for_nothing_is_paid_for_with_waiting() {
        for (took, pause) in [(0, 0), (200, 0), (201, 1809), (60_000, 540_000)] {
            assert_eq!(pause_after_refusal(Nanos::from_millis(took)), Nanos::from_millis(pause), "{took}");
        }
        let root = tempfile::tempdir().unwrap();
        let (mut stager, folder) = stager(root.path(), 100);
        let dir = folder.stage().join("d");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("a"), b"x").unwrap();
        let at = NodeInstant::from_nanos;
        stager.not_before = at(10);
        let refusal = stager.take(&said(&[("x", "a", 0, 1)]), at(9)).unwrap_err();
        assert!(refusal.reason == Reason::Overloaded && dir.exists(), "{refusal}");
        assert!(stager.take(&said(&[("x", "a", 0, 1)]), at(10)).is_ok());
    }

    #[test]
    fn checkpoints_that_nobody_takes_do_not_pile_up() {
        let root = tempfile::tempdir().unwrap();
        let (mut stager, folder) = stager(root.path(), 100);
        for round in 0..=WAITING_BOUND {
            fs::create_dir(folder.stage().join("d")).unwrap();
            fs::write(folder.stage().join("d/a"), b"x").unwrap();
            let result = stager.take(&said(&[("x", "a", 0, 1)]), NodeInstant::default());
            assert_eq!(result.is_ok(), round < WAITING_BOUND);
        }
        fs::remove_dir_all(folder.staged_set(1)).unwrap();
        assert_eq!(stager.take(&said(&[("x", "a", 0, 1)]), NodeInstant::default()).unwrap().sequence, 9);
    }
}
