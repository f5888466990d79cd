//! Folders as tar archives: packed so that the same content has the same bytes, unpacked so that no archive can reach
//! out of the folder, whoever wrote it.
//!
//! Neither trusts the other side. [`pack`] follows no link, so a program cannot have files packed that it could not read.
//! [`unpack`] writes only below the folder, through real folders only; the folder must not be writable by strangers
//! while it runs.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufReader, BufWriter, Read, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use sluice_types::{Bytes, Digest};
use tar::{Builder, EntryType, Header, PaxExtensions};

use crate::path::{Found, PathError, RelativePath, walk};

/// Longest name in a header of its own.
const MAX_LONG_NAME: u64 = 4096;
/// Largest extended header.
const MAX_PAX: u64 = 64 << 10;

/// Bounds of an archive.
#[derive(Debug, Clone, Copy)]
pub struct ArchiveLimits {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of all files.
    pub bytes: Bytes,
}

impl Default for ArchiveLimits {
    fn default() -> Self {
        Self { entries: 100_000, bytes: Bytes::mib(16 << 10) }
    }
}

/// Why a folder is not packed or an archive not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A path that could leave the folder.
    #[error("{path:?} is refused")]
    Path {
        /// The path.
        path: String,
        /// Why.
        source: PathError,
    },
    /// A link that leaves the folder, or could once others are in place.
    #[error("the link {path:?} to {target:?} leaves the folder")]
    Link {
        /// The link.
        path: String,
        /// Where it points.
        target: String,
    },
    /// Devices, fifos, sparse files and the like.
    #[error("{path:?} is neither a file nor a folder nor a link")]
    Kind {
        /// Which.
        path: String,
    },
    /// The path goes through, or replaces, something of another kind.
    #[error("{path:?} is in the way of what should be there")]
    Conflict {
        /// Which.
        path: String,
    },
    /// Over a bound.
    #[error("{what} would be {asked}, the bound is {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// How much.
        asked: u64,
        /// The bound.
        limit: u64,
    },
    /// Not a tar archive, or cut short.
    #[error("the archive is malformed: {0}")]
    Malformed(&'static str),
    /// The disk, or an archive that ends early.
    #[error("reading or writing failed")]
    Io(#[from] io::Error),
}

/// A packed folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// BLAKE3 of the archive.
    pub digest: Digest,
    /// Size of the archive.
    pub size: Bytes,
    /// Files, folders and links in it.
    pub entries: u64,
    /// Things left out: fifos, sockets, devices, links that leave the folder, names that are not UTF-8 or too long.
    pub left_out: u64,
}

/// Packs a folder into a new file. Names are sorted, times and owners are zero, permissions are 0644 or 0755.
///
/// # Errors
/// Bounds; a file that shrinks meanwhile; the disk.
pub fn pack(folder: &Path, archive: &Path, limits: ArchiveLimits) -> Result<Packed, ArchiveError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(archive)?;
    let mut builder =
        Builder::new(BufWriter::with_capacity(1 << 20, Hashing { file, hasher: blake3::Hasher::new(), size: 0 }));
    let mut budget = Budget { limits, entries: 0, bytes: 0 };
    let mut outside = 0;
    let left_out = walk(folder, &mut |path, found| match found {
        Found::Folder => {
            budget.take(0)?;
            let mut header = plain_header(EntryType::Directory, 0o755, 0);
            builder.append_data(&mut header, format!("{}/", path.as_str()), io::empty()).map_err(ArchiveError::Io)
        }
        Found::Link(target) => {
            if !target.to_str().is_some_and(|target| stays_inside(&path, target)) {
                outside += 1;
                return Ok(());
            }
            budget.take(0)?;
            let mut header = plain_header(EntryType::Symlink, 0o777, 0);
            builder.append_link(&mut header, path.as_str(), target).map_err(ArchiveError::Io)
        }
        Found::File(file) => {
            let meta = file.metadata()?;
            budget.take(meta.len())?;
            let mode = if meta.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 };
            let mut header = plain_header(EntryType::Regular, mode, meta.len());
            // One that grows is cut at the size in its header; one that shrinks is filled up with nothing, loudly.
            let exactly = Exactly { file: file.take(meta.len()), left: meta.len() };
            builder.append_data(&mut header, path.as_str(), exactly).map_err(ArchiveError::Io)
        }
    })?;
    let mut hashing = builder.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    hashing.file.flush()?;
    Ok(Packed {
        digest: Digest::from_bytes(*hashing.hasher.finalize().as_bytes()),
        size: Bytes::new(hashing.size),
        entries: budget.entries,
        left_out: left_out + outside,
    })
}

fn plain_header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

struct Budget {
    limits: ArchiveLimits,
    entries: u64,
    bytes: u64,
}

impl Budget {
    fn take(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.entries > self.limits.entries {
            return Err(too_large("entries", self.entries, self.limits.entries));
        }
        if self.bytes > self.limits.bytes.get() {
            return Err(too_large("bytes of all files", self.bytes, self.limits.bytes.get()));
        }
        Ok(())
    }
}

fn too_large(what: &'static str, asked: u64, limit: u64) -> ArchiveError {
    ArchiveError::TooLarge { what, asked, limit }
}

struct Hashing {
    file: File,
    hasher: blake3::Hasher,
    size: u64,
}

impl io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Fails where a file ends before its announced size, which would shift everything after it in the archive.
struct Exactly<R> {
    file: io::Take<R>,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        if read == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a file shrank while it was packed"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of all files.
    pub bytes: Bytes,
}

/// Unpacks an archive below a folder, which is created where needed. Files that are there are replaced.
///
/// # Errors
/// Any path or link that could leave the folder, anything but files, folders and links, bounds, malformed archives. What
/// was unpacked before the error stays.
pub fn unpack(archive: &Path, folder: &Path, limits: ArchiveLimits) -> Result<Unpacked, ArchiveError> {
    fs::create_dir_all(folder)?;
    let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 20, File::open(archive)?));
    let mut budget = Budget { limits, entries: 0, bytes: 0 };
    let mut named = Named::default();
    // Raw: the library would read names of any length into memory.
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        match entry.header().entry_type() {
            EntryType::GNULongName => named.path = Some(text(&mut entry, MAX_LONG_NAME)?),
            EntryType::GNULongLink => named.target = Some(text(&mut entry, MAX_LONG_NAME)?),
            EntryType::XHeader => named.take_pax(&small(&mut entry, MAX_PAX)?)?,
            EntryType::XGlobalHeader => budget.take(0)?,
            kind => {
                budget.take(entry.header().entry_size()?)?;
                let name = named.path.take().map_or_else(|| utf8(entry.header().path_bytes().as_ref()), Ok)?;
                let target = match named.target.take() {
                    Some(target) => Some(target),
                    None => entry.header().link_name_bytes().map(|target| utf8(target.as_ref())).transpose()?,
                };
                if let Some(path) = inside(&name)? {
                    place(folder, &path, kind, target, &mut entry)?;
                }
            }
        }
    }
    Ok(Unpacked { entries: budget.entries, bytes: Bytes::new(budget.bytes) })
}

/// Names that headers of their own gave for the next entry.
#[derive(Default)]
struct Named {
    path: Option<String>,
    target: Option<String>,
}

impl Named {
    fn take_pax(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        for extension in PaxExtensions::new(bytes) {
            let extension = extension?;
            match extension.key_bytes() {
                b"path" => self.path = Some(utf8(extension.value_bytes())?),
                b"linkpath" => self.target = Some(utf8(extension.value_bytes())?),
                // Two readers that disagree on a size disagree on everything after it.
                b"size" => return Err(ArchiveError::Malformed("a size in an extended header")),
                _ => {}
            }
        }
        Ok(())
    }
}

fn utf8(bytes: &[u8]) -> Result<String, ArchiveError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| ArchiveError::Malformed("a name that is not UTF-8"))
}

fn small(entry: &mut impl Read, limit: u64) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = Vec::new();
    entry.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(too_large("a header", bytes.len() as u64, limit)) } else { Ok(bytes) }
}

fn text(entry: &mut impl Read, limit: u64) -> Result<String, ArchiveError> {
    let mut bytes = small(entry, limit)?;
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    utf8(&bytes)
}

/// The path without `.` components and a trailing slash. `None` for the folder itself.
fn inside(name: &str) -> Result<Option<RelativePath>, ArchiveError> {
    let refuse = |source| ArchiveError::Path { path: name.to_owned(), source };
    if name.starts_with('/') {
        return Err(refuse(PathError::Empty));
    }
    let kept: Vec<_> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if kept.is_empty() {
        return Ok(None);
    }
    RelativePath::parse(&kept.join("/")).map(Some).map_err(refuse)
}

/// Whether a link can never lead out, whatever other such links are made: its target goes up first, at most to the
/// folder (the link's own parents are real folders), and only then down. Down it may pass other links, each of which
/// stays inside by the same rule; a way up after a way down could start at the end of one of those.
fn stays_inside(path: &RelativePath, target: &str) -> bool {
    let depth = path.parents().count();
    let mut up = 0;
    let mut down = false;
    if target.is_empty() || target.starts_with('/') || target.len() > 1024 || target.chars().any(char::is_control) {
        return false;
    }
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if down => return false,
            ".." => up += 1,
            _ => down = true,
        }
    }
    up <= depth
}

fn place(
    folder: &Path,
    path: &RelativePath,
    kind: EntryType,
    target: Option<String>,
    entry: &mut tar::Entry<'_, impl Read>,
) -> Result<(), ArchiveError> {
    for parent in path.parents() {
        real_folder(folder, parent, 0o755)?;
    }
    let full = path.below(folder);
    let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
    match kind {
        EntryType::Directory => real_folder(folder, path.as_str(), mode | 0o700),
        EntryType::Regular | EntryType::Continuous => {
            make_room(path, &full)?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&full)?;
            let size = entry.header().entry_size()?;
            if io::copy(&mut entry.take(size), &mut file)? != size {
                return Err(ArchiveError::Malformed("it ends inside a file"));
            }
            Ok(file.set_permissions(Permissions::from_mode(mode | 0o600))?)
        }
        EntryType::Symlink => {
            let target = target.unwrap_or_default();
            if !stays_inside(path, &target) {
                return Err(ArchiveError::Link { path: path.as_str().to_owned(), target });
            }
            make_room(path, &full)?;
            Ok(symlink(target, full)?)
        }
        EntryType::Link => hard_link(folder, path, &target.unwrap_or_default()),
        _ => Err(ArchiveError::Kind { path: path.as_str().to_owned() }),
    }
}

/// A second name for a file of the same archive.
fn hard_link(folder: &Path, path: &RelativePath, target: &str) -> Result<(), ArchiveError> {
    let leaves = || ArchiveError::Link { path: path.as_str().to_owned(), target: target.to_owned() };
    let source = inside(target)?.ok_or_else(leaves)?;
    for parent in source.parents() {
        if !fs::symlink_metadata(folder.join(parent)).is_ok_and(|meta| meta.is_dir()) {
            return Err(leaves());
        }
    }
    if !fs::symlink_metadata(source.below(folder)).is_ok_and(|meta| meta.is_file()) || source == *path {
        return Err(leaves());
    }
    let full = path.below(folder);
    make_room(path, &full)?;
    Ok(fs::hard_link(source.below(folder), full)?)
}

fn real_folder(root: &Path, path: &str, mode: u32) -> Result<(), ArchiveError> {
    let full: PathBuf = root.join(path);
    match fs::symlink_metadata(&full) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(ArchiveError::Conflict { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir(&full)?;
            Ok(fs::set_permissions(&full, Permissions::from_mode(mode))?)
        }
        Err(error) => Err(error.into()),
    }
}

/// A file or link may be replaced, a folder may not.
fn make_room(path: &RelativePath, full: &Path) -> Result<(), ArchiveError> {
    match fs::symlink_metadata(full) {
        Ok(meta) if meta.is_dir() => Err(ArchiveError::Conflict { path: path.as_str().to_owned() }),
        Ok(_) => Ok(fs::remove_file(full)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}
