//! One capture of a home folder.
//!
//! First everything that changed is copied while programs go on. Then they stand still, and what changed since is copied
//! again: that is all they wait for. After it they go on, and what was copied is hashed and staged. Where nobody is left to
//! wait, everything is copied once, for as long as it takes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

use super::super::staging::Piece;
use super::blobs::{self, Blobs, Mark};
use super::still::Still;
use super::tree::{DEPTH_BOUND, NODES_BOUND, Node, RUNS_BOUND, Run, TREE, Text, Tree, TreeError, What, blob_name};

/// A file that was changed so short a time before it was looked at may change again without another change time: clocks
/// of file systems tick every few milliseconds.
const DOUBT: Duration = Duration::from_secs(1);
/// Names of what was left out that are told.
const TOLD: usize = 3;

/// What a capture may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Bytes of all files, without holes.
    pub(super) bytes: u64,
    /// Files, folders and links.
    pub(super) files: u64,
    /// How long anybody may stand still.
    pub(super) still: Duration,
}

/// Why there is no capture.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    /// They could not be stopped.
    #[error("what runs in it could not be stopped: {0}")]
    NotStill(String),
    /// They were let go, or ended, before it was complete.
    #[error("what runs in it went on, or ended, before everything was copied")]
    WentOn,
    /// They would have stood still for too long.
    #[error("what changed in the last moment could not be copied within {0:?}")]
    TooSlow(Duration),
    /// Over a bound.
    #[error("the home folder has more than {0}")]
    TooLarge(String),
    /// The file system.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
    /// The names.
    #[error("its names cannot be kept: {0}")]
    Tree(#[from] TreeError),
}

/// A capture, its bytes in a folder.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) pieces: Vec<Piece>,
    /// Bytes of all files, and how many nodes.
    pub(super) bytes: u64,
    pub(super) nodes: usize,
    /// How long everything stood still.
    pub(super) still: Duration,
    /// Files that had to be copied while it did.
    pub(super) copied: usize,
    /// Sockets, pipes and devices.
    pub(super) left_out: LeftOut,
}

/// What is no part of a capture.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    pub(super) count: usize,
    pub(super) names: Vec<String>,
}

impl LeftOut {
    fn add(&mut self, name: &CStr) {
        self.count += 1;
        if self.names.len() < TOLD {
            self.names.push(name.to_string_lossy().chars().take(64).collect());
        }
    }
}

/// Takes a capture of `home` into the new folder `room`. `stopped` is told the moment at which everything stands still.
pub(super) fn take(
    blobs: &mut Blobs,
    home: &Path,
    room: &Path,
    still: &impl Still,
    bounds: Bounds,
    stopped: impl FnOnce(),
) -> Result<Taken, Problem> {
    blobs.prepare().map_err(|error| Problem::Io("making room for what is kept".to_owned(), error))?;
    if still.waits() {
        warm(blobs, home, still, bounds)?;
    }
    let begun = Instant::now();
    let walked = still.stop().map_err(Problem::NotStill).and_then(|()| {
        stopped();
        let mapped = still.mapped();
        let end = still.waits().then(|| begun + bounds.still);
        let walk = Walk::new(blobs, bounds, mapped, While::Still(end)).all(home);
        if still.is_still() { walk } else { walk.and(Err(Problem::WentOn)) }
    });
    still.go();
    let stood = begun.elapsed();
    let result = walked.and_then(|walked| stage(blobs, walked, room, stood));
    if result.is_err() {
        let _left = blobs.sweep();
    }
    result
}

/// Copies what changed while everything goes on. What is torn by that has changed since, and is copied again.
///
/// # Errors
/// Bounds. What vanishes or cannot be read is no trouble yet.
pub(super) fn warm(blobs: &mut Blobs, home: &Path, still: &impl Still, bounds: Bounds) -> Result<(), Problem> {
    blobs.prepare().map_err(|error| Problem::Io("making room for what is kept".to_owned(), error))?;
    // One that is mapped now may be changed without a mark until everything stands still, even if it is not mapped then.
    match Walk::new(blobs, bounds, still.mapped(), While::Running).all(home) {
        Err(error @ Problem::TooLarge(_)) => Err(error),
        Err(Problem::Io(what, error)) if error.kind() == io::ErrorKind::StorageFull => Err(Problem::Io(what, error)),
        _ => Ok(()),
    }
}

/// Everything in the folder.
struct Walked {
    nodes: Vec<Node>,
    /// Nodes that are files, with their inodes.
    files: Vec<(usize, u64)>,
    bytes: u64,
    copied: usize,
    left_out: LeftOut,
}

/// What goes on during a walk.
#[derive(Debug, Clone, Copy)]
enum While {
    /// Files come and go.
    Running,
    /// Nothing changes, so every failure counts; until when it must be done, where somebody stands still for it.
    Still(Option<Instant>),
}

impl While {
    fn end(self) -> Option<Instant> {
        match self {
            Self::Running => None,
            Self::Still(end) => end,
        }
    }
}

struct Walk<'a> {
    blobs: &'a mut Blobs,
    bounds: Bounds,
    /// Inodes whose marks say nothing; `None` is all of them.
    mapped: Option<BTreeSet<u64>>,
    during: While,
    now: SystemTime,
    device: u64,
    /// Files with several names, by inode.
    names: BTreeMap<u64, u32>,
    walked: Walked,
}

const FOLDER: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
const FILE: OFlag = OFlag::O_RDONLY.union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK).union(OFlag::O_CLOEXEC);

impl<'a> Walk<'a> {
    fn new(blobs: &'a mut Blobs, bounds: Bounds, mapped: Option<BTreeSet<u64>>, during: While) -> Self {
        let walked = Walked { nodes: Vec::new(), files: Vec::new(), bytes: 0, copied: 0, left_out: LeftOut::default() };
        let (now, names) = (SystemTime::now(), BTreeMap::new());
        Self { blobs, bounds, mapped, during, now, device: 0, names, walked }
    }

    fn all(mut self, home: &Path) -> Result<Walked, Problem> {
        let fail = |error: Errno| Problem::Io("opening the home folder".to_owned(), error.into());
        let root = nix::fcntl::open(home, FOLDER, Mode::empty()).map_err(fail)?;
        let data = fstat(&root).map_err(fail)?;
        self.device = data.st_dev;
        self.add(0, c"", &data, What::Folder)?;
        self.folder(root, 0, 1)?;
        Ok(self.walked)
    }

    fn folder(&mut self, folder: OwnedFd, place: u32, depth: usize) -> Result<(), Problem> {
        if depth > DEPTH_BOUND {
            return Err(Problem::TooLarge(format!("{DEPTH_BOUND} folders inside each other")));
        }
        for name in self.or_none(c".", names(&folder))?.unwrap_or_default() {
            let Some(data) = self.or_none(&name, fstatat(&folder, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW))?
            else {
                continue;
            };
            if data.st_dev != self.device {
                self.walked.left_out.add(&name);
                continue;
            }
            match data.st_mode & libc::S_IFMT {
                libc::S_IFDIR => {
                    let opened = openat(&folder, name.as_c_str(), FOLDER, Mode::empty());
                    let Some(below) = self.or_none(&name, opened)? else { continue };
                    let at = self.add(place, &name, &data, What::Folder)?;
                    self.folder(below, at, depth + 1)?;
                }
                libc::S_IFREG => self.file(&folder, place, &name, &data)?,
                libc::S_IFLNK => {
                    let Some(target) = self.or_none(&name, readlinkat(&folder, name.as_c_str()))? else { continue };
                    let target = Text::of(target.as_bytes());
                    self.add(place, &name, &data, What::Link { target })?;
                }
                _ => self.walked.left_out.add(&name),
            }
        }
        Ok(())
    }

    fn file(&mut self, folder: &OwnedFd, place: u32, name: &CStr, data: &FileStat) -> Result<(), Problem> {
        if let Some(file) = self.names.get(&data.st_ino).copied() {
            self.add(place, name, data, What::Same { file })?;
            return Ok(());
        }
        let (mark, doubtful) = (mark(data), self.is_doubtful(data));
        let mapped = self.mapped.as_ref().is_none_or(|mapped| mapped.contains(&data.st_ino));
        let known = self.blobs.find(data.st_ino, &mark).map(sum).filter(|_| !mapped);
        let bytes = match known {
            Some(bytes) => bytes,
            None => {
                let opened = openat(folder, name, FILE, Mode::empty()).map(File::from);
                let Some(file) = self.or_none(name, opened)? else { return Ok(()) };
                match self.copy(name, &file, data, mark, doubtful || mapped)? {
                    Some(bytes) => bytes,
                    None => return Ok(()),
                }
            }
        };
        self.count(bytes)?;
        let size = mark.size;
        let at = self.add(place, name, data, What::File { size, runs: Vec::new() })?;
        self.walked.files.push((at as usize, data.st_ino));
        if data.st_nlink > 1 {
            self.names.insert(data.st_ino, at);
        }
        Ok(())
    }

    /// Copies a file that changed; `None` where it is gone.
    fn copy(
        &mut self,
        name: &CStr,
        file: &File,
        data: &FileStat,
        mark: Mark,
        doubt: bool,
    ) -> Result<Option<u64>, Problem> {
        let Some(opened) = self.or_none(name, fstat(file))? else { return Ok(None) };
        if opened.st_ino != data.st_ino || opened.st_mode & libc::S_IFMT != libc::S_IFREG {
            // Another by now; only where nothing stands still.
            return Ok(None);
        }
        let left = self.bounds.bytes.saturating_sub(self.walked.bytes);
        let copied = self.blobs.copy(data.st_ino, mark, doubt, file, (left, self.during.end()));
        self.walked.copied += 1;
        match copied {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Err(self.too_large()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(Problem::TooSlow(self.bounds.still)),
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Err(trouble(name, error)),
            other => self.or_none(name, other),
        }
    }

    /// Whether its change time may stay the same at its next change. One of the future says nothing either.
    fn is_doubtful(&self, data: &FileStat) -> bool {
        let seconds = u64::try_from(data.st_ctime).unwrap_or(0);
        let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, u32::try_from(data.st_ctime_nsec).unwrap_or(0));
        self.now.duration_since(changed).map_or(true, |age| age < DOUBT)
    }

    fn add(&mut self, parent: u32, name: &CStr, data: &FileStat, what: What) -> Result<u32, Problem> {
        let nodes = self.walked.nodes.len();
        if nodes as u64 >= self.bounds.files || nodes >= NODES_BOUND {
            return Err(Problem::TooLarge(format!("{} files", self.bounds.files.min(NODES_BOUND as u64))));
        }
        if self.during.end().is_some_and(|end| Instant::now() >= end) {
            return Err(Problem::TooSlow(self.bounds.still));
        }
        let modified = (data.st_mtime, u32::try_from(data.st_mtime_nsec).unwrap_or(0));
        self.walked.nodes.push(Node {
            parent,
            name: Text::of(name.to_bytes()),
            mode: data.st_mode & 0o7777,
            modified,
            what,
        });
        u32::try_from(nodes).map_err(|_| Problem::TooLarge("2^32 files".to_owned()))
    }

    fn count(&mut self, bytes: u64) -> Result<(), Problem> {
        self.walked.bytes = self.walked.bytes.saturating_add(bytes);
        if self.walked.bytes > self.bounds.bytes { Err(self.too_large()) } else { Ok(()) }
    }

    fn too_large(&self) -> Problem {
        Problem::TooLarge(format!("{} bytes, or a file of it more than {RUNS_BOUND} holes", self.bounds.bytes))
    }

    /// While programs go on, files come and go and that is no failure; once they stand still it is one.
    fn or_none<T, E: Into<io::Error>>(&self, name: &CStr, result: Result<T, E>) -> Result<Option<T>, Problem> {
        match (result, self.during) {
            (Ok(found), _) => Ok(Some(found)),
            (Err(_), While::Running) => Ok(None),
            (Err(error), While::Still(_)) => Err(trouble(name, error.into())),
        }
    }
}

fn trouble(name: &CStr, error: io::Error) -> Problem {
    Problem::Io(name.to_string_lossy().chars().take(64).collect(), error)
}

fn sum(runs: &[Run]) -> u64 {
    runs.iter().map(|run| run.length).sum()
}

fn mark(data: &FileStat) -> Mark {
    Mark {
        size: u64::try_from(data.st_size).unwrap_or(0),
        modified: (data.st_mtime, data.st_mtime_nsec),
        changed: (data.st_ctime, data.st_ctime_nsec),
    }
}

/// Names in a folder, sorted, so that the same folder gives the same tree.
fn names(folder: &impl AsFd) -> nix::Result<Vec<CString>> {
    let mut dir = Dir::from_fd(openat(folder, ".", FOLDER, Mode::empty())?)?;
    let mut found = Vec::new();
    for entry in dir.iter() {
        let name = entry?.file_name().to_owned();
        if name.as_c_str() != c"." && name.as_c_str() != c".." {
            found.push(name);
        }
        if found.len() > NODES_BOUND {
            return Err(Errno::EFBIG);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Writes the tree and links the blobs it names into the new folder `room`, all of it on disk.
fn stage(blobs: &mut Blobs, walked: Walked, room: &Path, still: Duration) -> Result<Taken, Problem> {
    let fail = |error| Problem::Io("storing what was copied".to_owned(), error);
    let Walked { mut nodes, files, bytes, copied, left_out } = walked;
    blobs.close(&files.iter().map(|(_, inode)| *inode).collect()).map_err(fail)?;
    let mut named = BTreeSet::new();
    for (at, inode) in files {
        if let What::File { runs, .. } = &mut nodes[at].what {
            *runs = blobs.runs(inode).to_vec();
            named.extend(runs.iter().map(|run| run.blob));
        }
    }
    let count = nodes.len();
    let tree = Tree::new(nodes).encode()?;
    fs::create_dir(room).map_err(fail)?;
    let mut pieces = vec![piece(TREE, tree.len() as u64, blake3::hash(&tree).into())];
    write(&room.join(TREE), &tree).map_err(fail)?;
    if named.len() >= sluice_vault::MAX_ENTRIES {
        return Err(Problem::TooLarge(format!("{} large files", sluice_vault::MAX_ENTRIES)));
    }
    for number in named {
        let (length, digest) = blobs.seal(number).map_err(fail)?;
        blobs::link(blobs, number, room).map_err(fail)?;
        pieces.push(piece(&blob_name(number), length, *digest.as_bytes()));
    }
    Ok(Taken { pieces, bytes, nodes: count, still, copied, left_out })
}

fn piece(name: &str, length: u64, digest: [u8; 32]) -> Piece {
    Piece {
        name: name.to_owned(),
        dtype: sluice_vault::FILE_DTYPE.to_owned(),
        shape: Vec::new(),
        file: name.to_owned(),
        offset: 0,
        length,
        blake3: sluice_types::Digest::from_bytes(digest),
    }
}

fn write(path: &PathBuf, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().create_new(true).write(true).mode(0o400).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
