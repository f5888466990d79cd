//! Unpacks outputs that a job wrote, which may be hostile.
//!
//! Paths are plain names below the destination; files are created new and never through a link; links are made last,
//! so that no entry can be written through one of the archive's own; devices, hard links and set-id bits are refused
//! or dropped; entries and bytes are bounded.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use super::{ArchiveError, link_stays_inside};

/// The most entries that are unpacked.
const MOST_ENTRIES: usize = 100_000;
/// The deepest path.
const DEEPEST: usize = 128;

/// Which entries, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All, below this folder.
    All(PathBuf),
    /// One file or folder, to this very place.
    One { path: PathBuf, to: PathBuf },
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) files: usize,
    pub(crate) bytes: u64,
}

/// Unpacks an archive.
pub(crate) fn unpack(archive: impl Read, wanted: &Wanted) -> Result<Written, ArchiveError> {
    let broken = |source| ArchiveError::io("read the archive", source);
    let mut archive = tar::Archive::new(archive);
    let mut written = Written::default();
    let mut links: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    let (base, mut found) = match wanted {
        Wanted::All(base) => (base.clone(), true),
        Wanted::One { to, .. } => (to.parent().map(Path::to_path_buf).unwrap_or_default(), false),
    };
    for (number, entry) in archive.entries().map_err(broken)?.enumerate() {
        let mut entry = entry.map_err(broken)?;
        if number == MOST_ENTRIES {
            return Err(ArchiveError::Bound(format!("{MOST_ENTRIES} files and folders")));
        }
        let path = plain(&entry.path().map_err(broken)?)?;
        let Some((place, below)) = place(&path, wanted) else { continue };
        found = true;
        match entry.header().entry_type() {
            tar::EntryType::Directory => make_folders(&base, &place)?,
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let mode = entry.header().mode().map_err(broken)?;
                written.bytes += write_file(&base, &place, mode, &mut entry)?;
                written.files += 1;
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name().map_err(broken)?.map(|target| target.into_owned()).unwrap_or_default();
                if !link_stays_inside(&below, &target) {
                    let why = format!("is a link to {}, which may lead out of the folder", target.display());
                    return Err(ArchiveError::entry(&path, why));
                }
                links.insert(place, target);
            }
            tar::EntryType::XGlobalHeader => {}
            other => return Err(ArchiveError::entry(&path, format!("is of a kind that is not taken: {other:?}"))),
        }
    }
    for (place, target) in links {
        make_link(&base, &place, &target)?;
    }
    match wanted {
        Wanted::One { path, .. } if !found => Err(ArchiveError::Absent(path.display().to_string())),
        _ => Ok(written),
    }
}

/// The path if it has plain names only; `.` and a leading `./` are nothing.
fn plain(path: &Path) -> Result<PathBuf, ArchiveError> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            _ => return Err(ArchiveError::entry(path, "leads out of the folder")),
        }
    }
    if clean.components().count() > DEEPEST {
        return Err(ArchiveError::Bound(format!("{DEEPEST} folders in each other")));
    }
    Ok(clean)
}

/// Where an entry goes, relative to the base, and its path below what is copied; `None` if it is not wanted.
fn place(path: &Path, wanted: &Wanted) -> Option<(PathBuf, PathBuf)> {
    match wanted {
        Wanted::All(_) => Some((path.to_path_buf(), path.to_path_buf())),
        Wanted::One { path: one, to } => {
            let name = PathBuf::from(to.file_name()?);
            let below = path.strip_prefix(one).ok()?;
            let place = if below.as_os_str().is_empty() { name } else { name.join(below) };
            Some((place, below.to_path_buf()))
        }
    }
}

/// Makes the folders of a relative path; refuses to pass through a link or file that is in the way.
fn make_folders(base: &Path, relative: &Path) -> Result<(), ArchiveError> {
    let mut full = base.to_path_buf();
    for name in relative.components() {
        full.push(name);
        match fs::create_dir(&full) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let meta = fs::symlink_metadata(&full)
                    .map_err(|source| ArchiveError::io(format!("read {}", full.display()), source))?;
                if !meta.is_dir() {
                    return Err(ArchiveError::entry(&full, "exists and is not a folder"));
                }
            }
            Err(error) => return Err(ArchiveError::io(format!("create {}", full.display()), error)),
        }
    }
    Ok(())
}

/// Frees the place of a file or link; a folder stays and is an error.
fn clear(full: &Path) -> Result<(), ArchiveError> {
    match fs::symlink_metadata(full) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(meta) if meta.is_dir() => Err(ArchiveError::entry(full, "exists and is a folder")),
        Ok(_) => {
            fs::remove_file(full).map_err(|source| ArchiveError::io(format!("replace {}", full.display()), source))
        }
        Err(error) => Err(ArchiveError::io(format!("read {}", full.display()), error)),
    }
}

fn prepare(base: &Path, place: &Path) -> Result<PathBuf, ArchiveError> {
    if place.as_os_str().is_empty() {
        return Err(ArchiveError::entry(place, "has no name"));
    }
    make_folders(base, place.parent().unwrap_or(Path::new("")))?;
    let full = base.join(place);
    clear(&full)?;
    Ok(full)
}

fn write_file(base: &Path, place: &Path, mode: u32, from: &mut impl Read) -> Result<u64, ArchiveError> {
    let full = prepare(base, place)?;
    let writing = |source| ArchiveError::io(format!("write {}", full.display()), source);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&full).map_err(writing)?;
    let bytes = io::copy(from, &mut file).map_err(writing)?;
    // The owner can always read what was copied; set-id and sticky bits are nothing for outputs.
    file.set_permissions(Permissions::from_mode(mode & 0o777 | 0o600)).map_err(writing)?;
    Ok(bytes)
}

fn make_link(base: &Path, place: &Path, target: &Path) -> Result<(), ArchiveError> {
    let full = prepare(base, place)?;
    symlink(target, &full).map_err(|source| ArchiveError::io(format!("link {}", full.display()), source))
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Made<'a> {
        File(&'a [u8], u32),
        Folder,
        Link(&'a str),
        Kind(tar::EntryType),
    }

    /// An archive whose names are written raw, as an attacker would.
    fn archive(entries: &[(&str, Made<'_>)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, made) in entries {
            let mut header = tar::Header::new_gnu();
            let (kind, data, mode) = match made {
                Made::File(data, mode) => (tar::EntryType::Regular, *data, *mode),
                Made::Folder => (tar::EntryType::Directory, &b""[..], 0o755),
                Made::Link(target) => {
                    header.as_gnu_mut().unwrap().linkname[..target.len()].copy_from_slice(target.as_bytes());
                    (tar::EntryType::Symlink, &b""[..], 0o777)
                }
                Made::Kind(kind) => (*kind, &b""[..], 0o644),
            };
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append(&header, data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn outputs_are_written_with_safe_modes() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = archive(&[
            ("./", Made::Folder),
            ("./model/w.bin", Made::File(b"weights", 0o4755)),
            ("log", Made::File(b"l", 0o000)),
            ("latest", Made::Link("model/w.bin")),
        ]);
        let written = unpack(&bytes[..], &Wanted::All(dir.path().into())).unwrap();
        assert_eq!(written, Written { files: 2, bytes: 8 });
        assert_eq!(fs::read(dir.path().join("latest")).unwrap(), b"weights");
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("model/w.bin"), mode("log")), (0o755, 0o600));
    }

    #[test]
    fn path_tricks_write_nothing_outside() {
        let tricks: [&[(&str, Made<'_>)]; 9] = [
            &[("../x", Made::File(b"x", 0o644))],
            &[("a/../../x", Made::File(b"x", 0o644))],
            &[("/tmp/x", Made::File(b"x", 0o644))],
            &[("l", Made::Link("/etc")), ("l/x", Made::File(b"x", 0o644))],
            &[("l", Made::Link("..")), ("l/x", Made::File(b"x", 0o644))],
            &[("d/l", Made::Link("k/../../..")), ("d/l/x", Made::File(b"x", 0o644))],
            &[("h", Made::Kind(tar::EntryType::Link))],
            &[("p", Made::Kind(tar::EntryType::Fifo))],
            &[("c", Made::Kind(tar::EntryType::Char))],
        ];
        for (at, trick) in tricks.into_iter().enumerate() {
            let outer = tempfile::tempdir().unwrap();
            let inner = outer.path().join("in");
            fs::create_dir(&inner).unwrap();
            assert!(unpack(&archive(trick)[..], &Wanted::All(inner)).is_err(), "trick {at}");
            assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 1, "trick {at}");
        }
    }

    #[test]
    fn links_that_were_there_are_never_followed() {
        let outer = tempfile::tempdir().unwrap();
        let (inner, victim) = (outer.path().join("in"), outer.path().join("victim"));
        fs::create_dir(&inner).unwrap();
        fs::write(&victim, "keep").unwrap();
        symlink(&victim, inner.join("f")).unwrap();
        symlink(outer.path(), inner.join("d")).unwrap();
        unpack(&archive(&[("f", Made::File(b"new", 0o644))])[..], &Wanted::All(inner.clone())).unwrap();
        assert_eq!((fs::read(&victim).unwrap(), fs::read(inner.join("f")).unwrap()), (b"keep".into(), b"new".into()));
        let through = archive(&[("d/victim", Made::File(b"new", 0o644))]);
        assert!(unpack(&through[..], &Wanted::All(inner)).is_err());
        assert_eq!(fs::read(&victim).unwrap(), b"keep");
    }

    #[test]
    fn one_path_is_taken_alone() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = archive(&[
            ("model/w.bin", Made::File(b"w", 0o644)),
            ("model/sub/v", Made::File(b"v", 0o644)),
            ("models", Made::File(b"no", 0o644)),
        ]);
        let one = |path: &str, to: &str| Wanted::One { path: path.into(), to: dir.path().join(to) };
        assert_eq!(unpack(&bytes[..], &one("model", "m")).unwrap().files, 2);
        assert_eq!(fs::read(dir.path().join("m/sub/v")).unwrap(), b"v");
        unpack(&bytes[..], &one("model/w.bin", "weights")).unwrap();
        assert_eq!(fs::read(dir.path().join("weights")).unwrap(), b"w");
        assert!(matches!(unpack(&bytes[..], &one("absent", "x")), Err(ArchiveError::Absent(_))));
        let beside = archive(&[("model/l", Made::Link("../other"))]);
        assert!(unpack(&beside[..], &one("model", "n")).is_err(), "a link out of what is copied");
    }

    #[test]
    fn truncated_and_random_bytes_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let whole = archive(&[("f", Made::File(&[7; 2000], 0o644))]);
        assert!(unpack(&whole[..1500], &Wanted::All(dir.path().into())).is_err());
        assert!(unpack(&[0xa5u8; 4096][..], &Wanted::All(dir.path().into())).is_err());
    }
}
