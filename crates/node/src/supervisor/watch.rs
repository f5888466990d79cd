//! Programs that know nothing of Sluice: complete sets in a watched directory become staged checkpoints.
//!
//! The program owns the directory and goes on changing it, so a set is copied, and taken only if nothing about it
//! changed meanwhile. Nothing outside the working directory can be reached: every folder is opened relative to the one
//! above it, without following links.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;
use sluice_types::{Digest, NodeInstant};

use super::protocol::Refusal;
use super::records::StagedSummary;
use super::spec::Completion;
use super::staging::{Piece, Stager};

/// Bounds of one set, and of one listing.
const DEPTH_BOUND: usize = 16;
const FILES_BOUND: usize = 65_536;
/// Sets taken at one look; the others wait for the next.
const AT_ONCE: usize = 16;

/// Finds complete sets in one directory.
#[derive(Debug)]
pub(crate) struct Watcher {
    work: PathBuf,
    path: String,
    completion: Completion,
    /// What was taken, refused or there before the start, by name.
    known: BTreeMap<String, Mark>,
    /// Names that the program is going to find restored; the first look at them is no news.
    restored: Vec<String>,
    counter: u64,
}

/// Tells one state of a set from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Mark {
    fn of(file: &File) -> io::Result<Self> {
        let data = file.metadata()?;
        Ok(Self { inode: data.ino(), size: data.len(), modified: (data.mtime(), data.mtime_nsec()) })
    }
}

/// A complete set that is not known yet, opened.
struct Candidate {
    /// Name in the watched directory; empty for the directory itself.
    name: String,
    mark: Mark,
    root: Root,
}

enum Root {
    Folder(OwnedFd),
    File(File),
}

impl Watcher {
    /// Begins watching; sets that are there already belong to the program's input. `restored` names those that are put
    /// back before the program starts, `step` is the step they hold.
    pub(crate) fn new(work: &Path, path: &str, completion: Completion, restored: Vec<String>, step: u64) -> Self {
        let (work, path) = (work.to_owned(), path.to_owned());
        let mut watcher = Self { work, path, completion, known: BTreeMap::new(), restored, counter: step };
        let there = watcher.news().unwrap_or_default();
        watcher.known.extend(there);
        watcher
    }

    /// Stages every complete set that is new. A set that changes while it is read is left for the next look.
    ///
    /// # Errors
    /// A set that can never be taken (too large, too many files); it is then known and not tried again.
    pub(crate) fn look(&mut self, stager: &mut Stager, now: NodeInstant) -> Vec<Result<StagedSummary, Refusal>> {
        let mut taken = Vec::new();
        // The directory may not exist yet, or be replaced this very moment.
        let mut news = self.news().unwrap_or_default();
        news.retain(|(name, mark)| {
            let restored = self.restored.iter().position(|restored| restored == name);
            if let Some(place) = restored {
                self.restored.swap_remove(place);
                self.known.insert(name.clone(), *mark);
            }
            restored.is_none()
        });
        for (name, mark) in news.into_iter().take(AT_ONCE) {
            // Gone again, or another by now.
            let Some(found) = self.candidate(&name).ok().filter(|found| found.mark == mark) else { continue };
            match self.stage(&found, stager, now) {
                Ok(None) => {}
                Ok(Some(summary)) => {
                    self.known.insert(found.name, found.mark);
                    taken.push(Ok(summary));
                }
                Err(refusal) => {
                    let later = refusal.reason == sluice_types::Reason::Overloaded;
                    taken.push(Err(refusal));
                    if later {
                        break;
                    }
                    self.known.insert(found.name, found.mark);
                }
            }
        }
        taken
    }

    fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let work = nix::fcntl::open(&self.work, flags | OFlag::O_NOFOLLOW, Mode::empty())?;
        if self.path.is_empty() {
            return Ok(work);
        }
        let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        Ok(openat2(&work, self.path.as_str(), how)?)
    }

    /// Complete sets that are not known as they are, oldest first, so that sequence numbers follow the program's own order.
    /// None is held open, as there may be more of them than descriptors; names that are gone are forgotten.
    fn news(&mut self) -> io::Result<Vec<(String, Mark)>> {
        let watched = self.open()?;
        let mut listed = names(&watched)?;
        if matches!(self.completion, Completion::CompletionFile(_)) {
            // The directory itself may be a set.
            listed.insert(0, String::new());
        }
        self.known.retain(|name, _| listed.binary_search(name).is_ok());
        let mut found = Vec::new();
        for name in listed {
            // Not complete, not a set, or gone again.
            let Ok(set) = self.candidate_in(&watched, &name) else { continue };
            if self.known.get(&name) != Some(&set.mark) {
                found.push((name, set.mark));
            }
        }
        found.sort_by(|a, b| (a.1.modified, &a.0).cmp(&(b.1.modified, &b.0)));
        Ok(found)
    }

    fn candidate(&self, name: &str) -> io::Result<Candidate> {
        self.candidate_in(&self.open()?, name)
    }

    /// Opens a set of this name, if there is one and it is complete.
    fn candidate_in(&self, watched: &OwnedFd, name: &str) -> io::Result<Candidate> {
        let (mark, root) = match &self.completion {
            Completion::CompletionFile(marker) => {
                let folder = open_folder(watched, if name.is_empty() { "." } else { name })?;
                (Mark::of(&open_file(&folder, marker)?)?, Root::Folder(folder))
            }
            Completion::AtomicRename(pattern) if matches(pattern, name) => open_either(watched, name)?,
            Completion::AtomicRename(_) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Candidate { name: name.to_owned(), mark, root })
    }

    fn stage(
        &mut self,
        set: &Candidate,
        stager: &mut Stager,
        now: NodeInstant,
    ) -> Result<Option<StagedSummary>, Refusal> {
        let room = stager.room()?;
        let fail =
            |error: io::Error| Refusal::new(sluice_types::Reason::Internal, format!("set `{}`: {error}", set.name));
        let files = match &set.root {
            Root::File(file) => vec![(set.name.clone(), file.try_clone().map_err(fail)?)],
            Root::Folder(folder) => {
                let mut files = Vec::new();
                match list(folder, &set.name, 0, &mut files) {
                    Ok(()) => files,
                    Err(Trouble::Changed) => return Ok(None),
                    Err(Trouble::Refused(refusal)) => return Err(refusal),
                }
            }
        };
        fs::create_dir(&room).map_err(fail)?;
        let result = copy_all(&files, &room, stager.bound());
        let pieces = match result {
            Ok(pieces) if self.is_still(set) => pieces,
            Ok(_) | Err(Trouble::Changed) => {
                let _left = fs::remove_dir_all(&room);
                return Ok(None);
            }
            Err(Trouble::Refused(refusal)) => {
                let _left = fs::remove_dir_all(&room);
                return Err(refusal);
            }
        };
        self.counter = step_of(&set.name).unwrap_or(self.counter + 1);
        stager.seal(&room, self.counter, serde_json::Value::Null, String::new(), pieces, now).map(Some)
    }

    /// Whether the set is there as it was when it was found.
    fn is_still(&self, set: &Candidate) -> bool {
        self.candidate(&set.name).is_ok_and(|found| found.mark == set.mark)
    }
}

/// Why a set was not copied.
enum Trouble {
    /// It is being changed: look again later.
    Changed,
    /// Never.
    Refused(Refusal),
}

impl From<io::Error> for Trouble {
    fn from(_: io::Error) -> Self {
        // Files that vanish or shrink under us are the usual cause; a broken disk shows up as sets never taken.
        Self::Changed
    }
}

fn names(folder: &impl AsFd) -> io::Result<Vec<String>> {
    let again = openat(folder, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut dir = Dir::from_fd(again)?;
    let mut found = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        // Names that are not UTF-8 could not be put back under the same name from a manifest.
        if let Ok(name) = entry.file_name().to_str()
            && name != "."
            && name != ".."
        {
            found.push(name.to_owned());
        }
        if found.len() > FILES_BOUND {
            return Err(io::Error::other("too many files"));
        }
    }
    found.sort();
    Ok(found)
}

fn open_folder(above: &impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(above, name, flags, Mode::empty())?)
}

fn open_file(above: &impl AsFd, name: &str) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(openat(above, name, flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

fn open_either(above: &impl AsFd, name: &str) -> io::Result<(Mark, Root)> {
    if let Ok(folder) = open_folder(above, name) {
        let file = File::from(folder);
        return Ok((Mark::of(&file)?, Root::Folder(OwnedFd::from(file))));
    }
    let file = open_file(above, name)?;
    Ok((Mark::of(&file)?, Root::File(file)))
}

fn list(folder: &OwnedFd, prefix: &str, depth: usize, files: &mut Vec<(String, File)>) -> Result<(), Trouble> {
    if depth > DEPTH_BOUND {
        return Err(Trouble::Refused(Refusal::field(format!("set `{prefix}` is deeper than {DEPTH_BOUND} folders"))));
    }
    for name in names(folder)? {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        if let Ok(below) = open_folder(folder, &name) {
            list(&below, &path, depth + 1, files)?;
        } else if let Ok(file) = open_file(folder, &name) {
            files.push((path, file));
        }
        // Links, sockets and pipes are no state.
        if files.len() > 512 {
            return Err(Trouble::Refused(Refusal::field(format!("set `{prefix}` has more than 512 files"))));
        }
    }
    Ok(())
}

fn copy_all(files: &[(String, File)], room: &Path, bound: u64) -> Result<Vec<Piece>, Trouble> {
    if files.is_empty() {
        return Err(Trouble::Changed);
    }
    let (mut pieces, mut left) = (Vec::new(), bound);
    for (place, (name, file)) in files.iter().enumerate() {
        let before = Mark::of(file)?;
        if before.size > left {
            let text = format!("a set is larger than the bound of {bound} bytes");
            return Err(Trouble::Refused(Refusal::new(sluice_types::Reason::TooLarge, text)));
        }
        let to = format!("f{place:05}");
        let blake3 = copy(file, &room.join(&to), before.size)?;
        if Mark::of(file)? != before {
            return Err(Trouble::Changed);
        }
        left -= before.size;
        let (name, dtype, shape) = (name.clone(), "file".to_owned(), Vec::new());
        pieces.push(Piece { name, dtype, shape, file: to, offset: 0, length: before.size, blake3 });
    }
    Ok(pieces)
}

/// Copies a file and leaves its holes: what is not there of a sparse file must not fill the disk.
fn copy(from: &File, to: &Path, size: u64) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut into = fs::OpenOptions::new().create_new(true).write(true).mode(0o400).open(to)?;
    let mut from = from.take(size);
    let mut buffer = vec![0; 1 << 20];
    let mut copied = 0;
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        copied += u64::try_from(read).unwrap_or(0);
        if buffer[..read].iter().all(|byte| *byte == 0) {
            into.seek(SeekFrom::Start(copied))?;
        } else {
            into.write_all(&buffer[..read])?;
        }
    }
    if copied != size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // A hole at the end.
    into.set_len(size)?;
    into.sync_all()?;
    Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
}

/// The number at the end of a set's name (before a file's extension), for example 500 of `checkpoint-500`.
fn step_of(name: &str) -> Option<u64> {
    let digits_at_end = |text: &str| {
        let start = text.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        text[start..].parse().ok()
    };
    digits_at_end(name).or_else(|| digits_at_end(name.rsplit_once('.')?.0))
}

/// Whether `name` matches a pattern of `*` (any characters) and `?` (one character).
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => (p, n) = (p + 1, n + 1),
            _ => {
                // Let the last star take one character more; without one there is no match.
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                (p, n) = (at + 1, taken + 1);
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_gone_are_forgotten_and_what_is_known_is_no_news() {
        let root = tempfile::tempdir().unwrap();
        let make = |name: &str| fs::create_dir(root.path().join(name)).unwrap();
        make("step-1");
        let completion = Completion::AtomicRename("step-*".to_owned());
        let mut watcher = Watcher::new(root.path(), "", completion, Vec::new(), 0);
        make("step-2");
        make("other");
        let names: Vec<_> = watcher.news().unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["step-2"]);
        assert_eq!(watcher.known.len(), 1);
        fs::remove_dir(root.path().join("step-1")).unwrap();
        watcher.news().unwrap();
        assert!(watcher.known.is_empty());
    }

    #[test]
    fn a_sparse_file_is_copied_with_its_holes() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        let file = File::options().create_new(true).read(true).write(true).open(&from).unwrap();
        let size = (9 << 20) + 5;
        std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 4 << 20).unwrap();
        file.set_len(size).unwrap();
        let digest = copy(&file, &to, size).unwrap();
        let written = fs::read(&to).unwrap();
        assert!(written == fs::read(&from).unwrap());
        assert_eq!(digest.as_bytes(), blake3::hash(&written).as_bytes());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 2 << 20);
    }

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, name, wanted) in [
            ("checkpoint-*", "checkpoint-500", true),
            ("checkpoint-*", "tmp-checkpoint-500", false),
            ("*.pt", "a.b.pt", true),
            ("*.pt", "a.pt.tmp", false),
            ("a?c*", "abc", true),
            ("a?c", "ac", false),
            ("**", "", true),
            ("a*b*c", "axxbyyc", true),
        ] {
            assert_eq!(matches(pattern, name), wanted, "{pattern} {name}");
        }
    }

    #[test]
    fn the_step_is_the_number_at_the_end() {
        for (name, step) in
            [("checkpoint-500", Some(500)), ("m_7.pt", Some(7)), ("final", None), ("", None), ("v2.x", Some(2))]
        {
            assert_eq!(step_of(name), step, "{name}");
        }
    }
}
