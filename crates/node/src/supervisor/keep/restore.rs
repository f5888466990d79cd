//! A kept home folder made again, in an empty folder that nobody else can write to yet.
//!
//! Tree and blobs came from a vault: their bytes are those of their digests, but who wrote them is not known here. Every
//! rule is checked again, every name is made below a folder that was made here, and nothing is ever opened through a link.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, symlinkat};

use super::tree::{Node, Run, TREE, TREE_BOUND, Tree, TreeError, What, blob_number};

const CHUNK: usize = 256 << 10;

/// What a home may take of its new host.
#[derive(Debug, Clone, Copy)]
pub struct RestoreBounds {
    /// Bytes of all files.
    pub bytes: u64,
    /// Files, folders and links.
    pub files: u64,
}

/// Why a home could not be made again.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It was not written by a capture, or by a newer one.
    #[error("the checkpoint is no kept home folder")]
    NoTree,
    /// A rule of the form is broken.
    #[error("the kept home folder is not well-formed")]
    Tree(#[from] TreeError),
    /// Bytes are named that are not there.
    #[error("the kept home folder names bytes that are not in the checkpoint")]
    NoBytes,
    /// More than this host gives one task.
    #[error("the kept home folder has {what}, more than the {limit} that a task may have here")]
    TooLarge {
        /// What there is too much of.
        what: String,
        /// The bound.
        limit: u64,
    },
    /// The file system.
    #[error("the kept home folder could not be made again")]
    Io(#[from] io::Error),
}

impl RestoreError {
    /// Whether trying again cannot help.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Io(_))
    }
}

impl From<nix::Error> for RestoreError {
    fn from(error: nix::Error) -> Self {
        Self::Io(error.into())
    }
}

/// Makes a home again in the empty folder `home`, for this user. `files` are the entries of the checkpoint by name; those
/// that become a file as they are, are moved.
///
/// # Errors
/// Whatever is wrong with the checkpoint; the file system's.
pub fn restore(
    files: &BTreeMap<String, PathBuf>,
    home: &Path,
    owner: Option<u32>,
    bounds: RestoreBounds,
) -> Result<(), RestoreError> {
    let path = files.get(TREE).ok_or(RestoreError::NoTree)?;
    if fs::metadata(path)?.len() > TREE_BOUND {
        return Err(TreeError::TooLarge("64 MiB of names").into());
    }
    let tree = Tree::parse(&fs::read(path)?)?;
    let too_large = |what, limit| Err(RestoreError::TooLarge { what, limit });
    if tree.bytes() > bounds.bytes {
        return too_large(format!("{} bytes", tree.bytes()), bounds.bytes);
    }
    if tree.nodes.len() as u64 > bounds.files {
        return too_large(format!("{} files", tree.nodes.len()), bounds.files);
    }
    let blobs = Blobs::of(files)?;
    let uses = blobs.check(&tree)?;
    let owner = owner.map(|uid| (Uid::from_raw(uid), Gid::from_raw(uid)));
    Maker { tree: &tree, blobs, uses, owner, open: Vec::new(), root: open(home, FOLDER, Mode::empty())? }.make()
}

const FOLDER: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
const NEW: OFlag =
    OFlag::O_WRONLY.union(OFlag::O_CREAT).union(OFlag::O_EXCL).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Files with the bytes, and their lengths.
struct Blobs(BTreeMap<u32, (PathBuf, u64)>);

impl Blobs {
    fn of(files: &BTreeMap<String, PathBuf>) -> io::Result<Self> {
        let numbered = files.iter().filter_map(|(name, path)| Some((blob_number(name)?, path)));
        let sized = numbered.map(|(number, path)| Ok((number, (path.clone(), fs::metadata(path)?.len()))));
        Ok(Self(sized.collect::<io::Result<_>>()?))
    }

    /// Whether everything that is named is there; how often each blob is.
    fn check(&self, tree: &Tree) -> Result<BTreeMap<u32, u32>, RestoreError> {
        let mut uses = BTreeMap::new();
        for node in &tree.nodes {
            let What::File { runs, .. } = &node.what else { continue };
            for run in runs {
                let length = self.0.get(&run.blob).map(|(_, length)| *length).ok_or(RestoreError::NoBytes)?;
                if run.offset + run.length > length {
                    return Err(RestoreError::NoBytes);
                }
                *uses.entry(run.blob).or_default() += 1;
            }
        }
        Ok(uses)
    }
}

struct Maker<'a> {
    tree: &'a Tree,
    blobs: Blobs,
    uses: BTreeMap<u32, u32>,
    owner: Option<(Uid, Gid)>,
    root: OwnedFd,
    /// Folders from below the root down to the one that was needed last.
    open: Vec<(u32, OwnedFd)>,
}

impl<'a> Maker<'a> {
    fn make(mut self) -> Result<(), RestoreError> {
        for node in self.tree.nodes.iter().skip(1) {
            self.node(node)?;
        }
        // Last, and from below: what is made in a folder changes it, and one may forbid writing.
        for (at, node) in self.tree.nodes.iter().enumerate().rev() {
            if node.what != What::Folder {
                continue;
            }
            let owner = self.owner;
            if at == 0 {
                finish(owner, self.root.as_fd(), Path::new("."), node)?;
            } else {
                let (folder, name) = self.place(node)?;
                finish(owner, folder, &name, node)?;
            }
        }
        Ok(())
    }

    fn node(&mut self, node: &Node) -> Result<(), RestoreError> {
        match &node.what {
            What::Folder => {
                let (folder, name) = self.place(node)?;
                mkdirat(folder, name.as_path(), Mode::S_IRWXU)?;
                return Ok(());
            }
            What::Link { target } => {
                let target = target.bytes().unwrap_or_default();
                let (folder, name) = self.place(node)?;
                symlinkat(target.as_slice(), folder, name.as_path())?;
            }
            What::Same { file } => {
                let before = self.node_at(*file);
                let from = component(before);
                // Reopened: there may be another folder between the two.
                let above = self.folder(before.parent)?.try_clone_to_owned()?;
                let (folder, name) = self.place(node)?;
                linkat(above, from.as_path(), folder, name.as_path(), AtFlags::empty())?;
                return Ok(());
            }
            What::File { size, runs } => self.file(node, *size, runs)?,
        }
        let owner = self.owner;
        let (folder, name) = self.place(node)?;
        finish(owner, folder, &name, node)
    }

    fn file(&mut self, node: &Node, size: u64, runs: &[Run]) -> Result<(), RestoreError> {
        if let [run] = runs
            && self.uses.get(&run.blob) == Some(&1)
            && let Some((path, length)) = self.blobs.0.get(&run.blob).cloned()
            && (run.at, run.offset, run.length, size) == (0, 0, length, length)
        {
            let (folder, name) = self.place(node)?;
            return Ok(renameat(AT_FDCWD, path.as_path(), folder, name.as_path())?);
        }
        let (folder, name) = self.place(node)?;
        let into = File::from(openat(folder, name.as_path(), NEW, Mode::S_IRUSR | Mode::S_IWUSR)?);
        for run in runs {
            let Some((path, _)) = self.blobs.0.get(&run.blob) else { return Err(RestoreError::NoBytes) };
            copy(&File::open(path)?, run, &into)?;
        }
        Ok(into.set_len(size)?)
    }

    fn node_at(&self, at: u32) -> &'a Node {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        self.tree.nodes.get(at).expect("invariant: the tree was checked")
    }

    /// The folder of a node, open, and the node's name in it.
    fn place(&mut self, node: &Node) -> Result<(BorrowedFd<'_>, PathBuf), RestoreError> {
        let name = component(node);
        Ok((self.folder(node.parent)?, name))
    }

    /// Opens a folder that was made before, from the root down and through no link.
    fn folder(&mut self, at: u32) -> Result<BorrowedFd<'_>, RestoreError> {
        let mut way = Vec::new();
        let mut next = at;
        while next != 0 {
            way.push(next);
            next = self.node_at(next).parent;
        }
        way.reverse();
        let same = self.open.iter().zip(&way).take_while(|((open, _), wanted)| open == *wanted).count();
        self.open.truncate(same);
        for at in way.into_iter().skip(same) {
            let above = self.open.last().map_or(self.root.as_fd(), |(_, folder)| folder.as_fd());
            let folder = openat(above, component(self.node_at(at)).as_path(), FOLDER, Mode::empty())?;
            self.open.push((at, folder));
        }
        Ok(self.open.last().map_or(self.root.as_fd(), |(_, folder)| folder.as_fd()))
    }
}

/// Owner, permissions and time, in this order: giving a file away takes two of its bits.
fn finish(owner: Option<(Uid, Gid)>, folder: BorrowedFd<'_>, name: &Path, node: &Node) -> Result<(), RestoreError> {
    if let Some((uid, gid)) = owner {
        fchownat(folder, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    if !matches!(node.what, What::Link { .. }) {
        // Made here, and no link.
        fchmodat(folder, name, Mode::from_bits_truncate(node.mode), FchmodatFlags::FollowSymlink)?;
    }
    let time = TimeSpec::new(node.modified.0, i64::from(node.modified.1));
    Ok(utimensat(folder, name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}

fn component(node: &Node) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(&node.name.bytes().unwrap_or_default()))
}

fn copy(from: &File, run: &Run, into: &File) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK.min(usize::try_from(run.length).unwrap_or(CHUNK))];
    let mut done = 0;
    while done < run.length {
        let size = usize::try_from(run.length - done).unwrap_or(CHUNK).min(CHUNK);
        from.read_exact_at(&mut buffer[..size], run.offset + done)?;
        into.write_all_at(&buffer[..size], run.at + done)?;
        done += size as u64;
    }
    Ok(())
}
