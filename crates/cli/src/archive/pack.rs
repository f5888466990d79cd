//! Packs a folder: entries sorted, times and owners zero, file modes kept.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _, Seek as _, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use sluice_types::Digest;

use super::ignore::{Entry, IGNORE_FILE, Ignore};
use super::{ArchiveError, link_stays_inside};
use crate::context::read_bounded;

/// The bounds of an upload.
const BOUNDS: Bounds = Bounds { bytes: 256 << 20, entries: 10_000 };
/// The deepest folder.
const DEEPEST: usize = 64;

/// How much is packed at most.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Bytes of the archive.
    bytes: u64,
    /// Files, folders and links.
    entries: usize,
}

impl Bounds {
    fn too_large(self) -> ArchiveError {
        ArchiveError::Bound(format!("{} bytes; leave files out by {IGNORE_FILE}", self.bytes))
    }
}

/// A packed folder, in a file that has no name.
#[derive(Debug)]
pub(crate) struct Packed {
    /// Read it from its beginning.
    pub(crate) file: File,
    /// BLAKE3 of the archive.
    pub(crate) digest: Digest,
    /// Bytes of the archive.
    pub(crate) size: u64,
    /// Entries in it.
    pub(crate) entries: usize,
}

/// Packs a folder, or a single file as its only entry.
pub(crate) fn pack(path: &Path) -> Result<Packed, ArchiveError> {
    pack_within(path, BOUNDS)
}

fn pack_within(path: &Path, bounds: Bounds) -> Result<Packed, ArchiveError> {
    let what = |source| ArchiveError::io(format!("read {}", path.display()), source);
    let meta = fs::metadata(path).map_err(what)?;
    let mut found = Vec::new();
    let base = if meta.is_dir() {
        let ignore = match read_bounded(&path.join(IGNORE_FILE)) {
            Ok(text) => Ignore::parse(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ignore::default(),
            Err(error) => return Err(ArchiveError::io(format!("read {IGNORE_FILE}"), error)),
        };
        walk(path, &ignore, bounds, &mut found)?;
        path.to_path_buf()
    } else {
        let name = path.file_name().ok_or_else(|| ArchiveError::entry(path, "is not a file or folder"))?;
        found.push(PathBuf::from(name));
        path.parent().map(Path::to_path_buf).unwrap_or_default()
    };
    write(&base, &found, bounds)
}

/// Collects relative paths, each folder before what it holds, names in the order of their bytes.
fn walk(root: &Path, ignore: &Ignore, bounds: Bounds, found: &mut Vec<PathBuf>) -> Result<(), ArchiveError> {
    let mut open = vec![PathBuf::new()];
    while let Some(folder) = open.pop() {
        if folder.components().count() > DEEPEST {
            return Err(ArchiveError::Bound(format!("{DEEPEST} folders in each other")));
        }
        let mut folders = Vec::new();
        let reading = |source| ArchiveError::io(format!("read the folder {}", root.join(&folder).display()), source);
        for entry in fs::read_dir(root.join(&folder)).map_err(reading)? {
            let entry = entry.map_err(reading)?;
            let path = folder.join(entry.file_name());
            let Some(text) = path.to_str() else {
                return Err(ArchiveError::entry(&path, "has a name that is not UTF-8"));
            };
            let is_folder = entry.file_type().map_err(reading)?.is_dir();
            if ignore.matches(text, if is_folder { Entry::Folder } else { Entry::Other }) {
                continue;
            }
            if found.len() == bounds.entries {
                return Err(ArchiveError::Bound(format!("{} files and folders", bounds.entries)));
            }
            found.push(path.clone());
            if is_folder {
                folders.push(path);
            }
        }
        open.append(&mut folders);
    }
    // Components, not text, so that a folder is always followed by what it holds.
    found.sort();
    Ok(())
}

fn write(base: &Path, found: &[PathBuf], bounds: Bounds) -> Result<Packed, ArchiveError> {
    let spool = |source| ArchiveError::io("write a temporary archive", source);
    let file = tempfile::tempfile().map_err(spool)?;
    let sink = Sink { file: io::BufWriter::new(file), hash: blake3::Hasher::new(), size: 0 };
    let mut archive = tar::Builder::new(sink);
    let mut total = 0u64;
    for path in found {
        let full = base.join(path);
        let meta = fs::symlink_metadata(&full)
            .map_err(|source| ArchiveError::io(format!("read {}", full.display()), source))?;
        total = total.saturating_add(if meta.is_file() { meta.len() } else { 0 });
        if total > bounds.bytes {
            return Err(bounds.too_large());
        }
        append(&mut archive, path, &full, &meta)?;
    }
    let sink = archive.into_inner().map_err(spool)?;
    if sink.size > bounds.bytes {
        return Err(bounds.too_large());
    }
    let digest = Digest::from_bytes(*sink.hash.finalize().as_bytes());
    let mut file = sink.file.into_inner().map_err(|error| spool(error.into_error()))?;
    file.rewind().map_err(spool)?;
    Ok(Packed { file, digest, size: sink.size, entries: found.len() })
}

fn append(archive: &mut tar::Builder<Sink>, path: &Path, full: &Path, meta: &Metadata) -> Result<(), ArchiveError> {
    let reading = |source| ArchiveError::io(format!("read {}", full.display()), source);
    let mut header = tar::Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mode(meta.permissions().mode() & 0o777);
    header.set_size(0);
    if meta.is_dir() {
        header.set_entry_type(tar::EntryType::Directory);
        archive.append_data(&mut header, path, io::empty()).map_err(reading)
    } else if meta.is_symlink() {
        let target = fs::read_link(full).map_err(reading)?;
        if !link_stays_inside(path, &target) {
            let why = format!("is a link to {}, which may lead out of the folder", target.display());
            return Err(ArchiveError::entry(path, why));
        }
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        archive.append_link(&mut header, path, &target).map_err(reading)
    } else if meta.is_file() {
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(meta.len());
        let mut source = Exact { inner: File::open(full).map_err(reading)?.take(meta.len()), left: meta.len() };
        archive.append_data(&mut header, path, &mut source).map_err(reading)
    } else {
        Err(ArchiveError::entry(path, "is neither a file, a folder nor a link"))
    }
}

/// A file that must give as many bytes as its header says.
struct Exact {
    inner: io::Take<File>,
    left: u64,
}

impl io::Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self.left.saturating_sub(u64::try_from(read).unwrap_or(u64::MAX));
        if read == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::other("the file became shorter while it was read"));
        }
        Ok(read)
    }
}

/// Hashes and counts what is written.
struct Sink {
    file: io::BufWriter<File>,
    hash: blake3::Hasher,
    size: u64,
}

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.file.write(data)?;
        self.hash.update(&data[..written]);
        self.size = self.size.saturating_add(u64::try_from(written).unwrap_or(u64::MAX));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn fill(dir: &Path, order: &[&str]) {
        for path in order {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, path.file_name().unwrap().as_encoded_bytes()).unwrap();
        }
        let program = dir.join("train");
        fs::write(&program, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        for plain in order {
            fs::set_permissions(dir.join(plain), fs::Permissions::from_mode(0o640)).unwrap();
        }
        for folder in ["a", "a/b", "empty"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
            fs::set_permissions(dir.join(folder), fs::Permissions::from_mode(0o755)).unwrap();
        }
        symlink("../train", dir.join("a/link")).unwrap();
    }

    #[test]
    fn the_same_files_give_the_same_bytes_whatever_their_order_and_time() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fill(one.path(), &["a/b/c.txt", "a.txt", "z"]);
        fill(two.path(), &["z", "a.txt", "a/b/c.txt"]);
        File::open(two.path().join("z")).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let (first, second) = (pack(one.path()).unwrap(), pack(two.path()).unwrap());
        assert_eq!((first.digest, first.size, first.entries), (second.digest, second.size, 8));
        // Pinned: a change of the form would upload every folder again and break caches.
        assert_eq!(first.digest.to_string(), "56b7bc315c499ffa51314a6ae4afaa6ab99eda3d7f7cfe221d3b072bf39f686b");
        fs::set_permissions(two.path().join("z"), fs::Permissions::from_mode(0o600)).unwrap();
        assert_ne!(pack(two.path()).unwrap().digest, first.digest);
    }

    #[test]
    fn entries_are_sorted_with_zero_times_and_their_modes() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), &["a/b/c.txt", "a.txt"]);
        fs::write(dir.path().join(IGNORE_FILE), "empty/\n*.skip\n").unwrap();
        fs::write(dir.path().join("a/x.skip"), "").unwrap();
        let mut archive = tar::Archive::new(pack(dir.path()).unwrap().file);
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (0, 0, 0));
            seen.push((entry.path().unwrap().display().to_string(), header.mode().unwrap()));
        }
        let names: Vec<&str> = seen.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, [".sluiceignore", "a", "a/b", "a/b/c.txt", "a/link", "a.txt", "train"]);
        assert!(seen.contains(&("train".into(), 0o755)) && seen.contains(&("a.txt".into(), 0o640)));
    }

    #[test]
    fn links_out_and_special_files_are_refused_by_name() {
        for target in ["/etc/passwd", "../outside", "a/../../x"] {
            let dir = tempfile::tempdir().unwrap();
            symlink(target, dir.path().join("bad")).unwrap();
            let error = pack(dir.path()).unwrap_err().to_string();
            assert!(error.contains("bad") && error.contains(target), "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        assert!(pack(dir.path()).unwrap_err().to_string().contains("socket"));
    }

    #[test]
    fn bounds_hold_for_bytes_and_entries() {
        let dir = tempfile::tempdir().unwrap();
        File::create(dir.path().join("big")).unwrap().set_len(BOUNDS.bytes + 1).unwrap();
        assert!(matches!(pack(dir.path()), Err(ArchiveError::Bound(_))));
        let dir = tempfile::tempdir().unwrap();
        for at in 0..4 {
            File::create(dir.path().join(at.to_string())).unwrap();
        }
        let within = |bytes, entries| pack_within(dir.path(), Bounds { bytes, entries });
        assert_eq!(within(1 << 20, 4).unwrap().entries, 4);
        assert!(matches!(within(1 << 20, 3), Err(ArchiveError::Bound(_))));
        assert!(matches!(within(1000, 4), Err(ArchiveError::Bound(_))), "headers count too");
    }

    #[test]
    fn a_single_file_is_its_own_archive() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("data.bin"), "x").unwrap();
        let mut archive = tar::Archive::new(pack(&dir.path().join("data.bin")).unwrap().file);
        let names: Vec<_> = archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(names, [PathBuf::from("data.bin")]);
        assert!(pack(&dir.path().join("absent")).is_err());
    }
}
