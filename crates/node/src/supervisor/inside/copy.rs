//! Files in and out as tar archives. It runs as the user whose files they are, and leaves the home folder by no link all
//! the same: an archive is data of somebody else.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{Mode, mkdirat};
use sluice_vault::RelativePath;
use sluice_vault::archive::{self, ArchiveLimits};
use tar::{Builder, EntryType, Header};

/// Things in one archive, and their bytes: the same bounds both ways.
const LIMITS: fn() -> ArchiveLimits = ArchiveLimits::default;

/// Unpacks the archive that is the standard input into a folder below `home`, making that where it is missing.
///
/// # Errors
/// In words. What was unpacked before stays.
pub(super) fn unpack(home: &Path, path: &str) -> Result<(), String> {
    let folder =
        descend(home, path, true).map_err(|error| format!("{path:?} is no folder that can be used: {error}"))?;
    let folder = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    archive::unpack(Path::new("/proc/self/fd/0"), &folder, LIMITS()).map_err(|error| in_one_line(&error))?;
    // What follows the archive's end is filling, and whoever sends it should not be told that nobody reads.
    let _rest = io::copy(&mut io::stdin().lock(), &mut io::sink());
    Ok(())
}

/// Packs a file or folder below `home` to the standard output, under its own last name; the home folder itself without
/// one.
///
/// # Errors
/// In words.
pub(super) fn pack(home: &Path, path: &str) -> Result<(), String> {
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    let missing = |error: io::Error| format!("{path:?} cannot be read: {error}");
    let folder = descend(home, above, false).map_err(missing)?;
    let out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let mut packer = Packer { builder: Builder::new(out), entries: 0, bytes: 0, left_out: 0, example: String::new() };
    let packed = if name.is_empty() { packer.folder(&folder, "") } else { packer.one(&folder, name, name) };
    packed.map_err(missing)?;
    if packer.entries == 0 && !name.is_empty() {
        return Err(format!("{path:?} is neither a file nor a folder nor a link inside the home folder"));
    }
    let (left_out, example) = (packer.left_out, packer.example);
    packer.builder.into_inner().and_then(|mut out| out.flush()).map_err(missing)?;
    if left_out > 0 {
        eprintln!(
            "{left_out} things were left out, such as {example:?}: what you may not read, pipes, sockets, links that leave \
             the folder, or names too long"
        );
    }
    Ok(())
}

fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(&format!(": {source}"));
        next = source.source();
    }
    text
}

fn folder_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

/// Opens a folder below another through real folders only.
fn descend(home: &Path, path: &str, make: bool) -> io::Result<OwnedFd> {
    let mut at = open(home, folder_flags(), Mode::empty())?;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if make {
            match mkdirat(&at, part, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        at = openat(&at, part, folder_flags(), Mode::empty())?;
    }
    Ok(at)
}

struct Packer<W: Write> {
    builder: Builder<W>,
    entries: u64,
    bytes: u64,
    left_out: u64,
    /// One of them.
    example: String,
}

impl<W: Write> Packer<W> {
    fn folder(&mut self, folder: &OwnedFd, prefix: &str) -> io::Result<()> {
        // The folder that is open, whatever its name leads to by now.
        let mut names = std::fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()))?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        for name in names {
            let path = name.to_str().map(|name| (name, format!("{prefix}{name}")));
            match path {
                Some((name, path)) if RelativePath::parse(&path).is_ok() => self.one(folder, name, &path)?,
                _ => self.leave_out(&format!("{prefix}{}", name.display())),
            }
        }
        Ok(())
    }

    /// Packs one thing. What is gone by now is not there.
    fn one(&mut self, folder: &OwnedFd, name: &str, path: &str) -> io::Result<()> {
        if let Ok(below) = openat(folder, name, folder_flags(), Mode::empty()) {
            let below = File::from(below);
            let mut header = header(EntryType::Directory, &below.metadata()?, 0);
            self.count(0)?;
            self.builder.append_data(&mut header, format!("{path}/"), io::empty())?;
            return self.folder(&OwnedFd::from(below), &format!("{path}/"));
        }
        if let Ok(target) = readlinkat(folder, name) {
            let Some(target) = target.to_str().filter(|target| stays_inside(path, target)) else {
                self.leave_out(path);
                return Ok(());
            };
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::Symlink);
            header.set_mode(0o777);
            header.set_size(0);
            self.count(0)?;
            return self.builder.append_link(&mut header, path, target);
        }
        let Ok(file) = open_file(folder, name) else {
            self.leave_out(path);
            return Ok(());
        };
        let data = file.metadata()?;
        self.count(data.len())?;
        let mut header = header(EntryType::Regular, &data, data.len());
        self.builder.append_data(&mut header, path, Exactly { file: file.take(data.len()), left: data.len() })
    }

    fn leave_out(&mut self, path: &str) {
        if self.left_out == 0 {
            self.example = path.chars().take(200).collect();
        }
        self.left_out += 1;
    }

    fn count(&mut self, bytes: u64) -> io::Result<()> {
        let limits = LIMITS();
        (self.entries, self.bytes) = (self.entries + 1, self.bytes.saturating_add(bytes));
        if self.entries > limits.entries || self.bytes > limits.bytes.get() {
            let text = format!("an archive has at most {} entries and {} bytes", limits.entries, limits.bytes.get());
            return Err(io::Error::other(text));
        }
        Ok(())
    }
}

fn open_file(folder: &impl AsFd, name: &str) -> io::Result<File> {
    // A pipe must not block, a device not be read.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(openat(folder, name, flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

fn header(kind: EntryType, data: &std::fs::Metadata, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(data.mode() & 0o777);
    header.set_size(size);
    header.set_mtime(u64::try_from(data.mtime()).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Whether a link cannot lead out of what is packed: up first, at most to the top, and only then down. The rule of the
/// site's vault, which whoever unpacks follows as well.
fn stays_inside(path: &str, target: &str) -> bool {
    let (mut up, mut down) = (0, false);
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
    up <= path.matches('/').count()
}

/// Fails where a file ends before the size in its header, which would shift everything after it.
struct Exactly<R> {
    file: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        if read == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a file shrank while it was packed"));
        }
        self.left -= u64::try_from(read).unwrap_or(0);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_up_first_and_not_beyond_the_top() {
        for (path, target) in [("l", "a"), ("d/l", "../a"), ("d/l", "./b/c"), ("a/b/l", "../../c")] {
            assert!(stays_inside(path, target), "{path} {target}");
        }
        for (path, target) in [("l", "../a"), ("l", "/etc"), ("l", ""), ("d/l", "a/../../b"), ("d/l", "../../a")] {
            assert!(!stays_inside(path, target), "{path} {target}");
        }
    }

    #[test]
    fn folders_are_reached_through_folders_only() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("real")).unwrap();
        std::os::unix::fs::symlink("/tmp", home.path().join("link")).unwrap();
        std::fs::write(home.path().join("file"), "x").unwrap();
        assert!(descend(home.path(), "real", false).is_ok() && descend(home.path(), "", false).is_ok());
        assert!(descend(home.path(), "real/new/deep", true).is_ok() && home.path().join("real/new/deep").is_dir());
        for bad in ["link", "link/x", "file", "none"] {
            assert!(descend(home.path(), bad, false).is_err(), "{bad}");
        }
        assert!(descend(home.path(), "link/x", true).is_err() && descend(home.path(), "file/x", true).is_err());
    }

    #[test]
    fn a_tree_is_packed_without_what_leads_out_and_unpacks_as_it_was() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("tree");
        std::fs::create_dir_all(root.join("empty")).unwrap();
        std::fs::write(root.join("file"), "content").unwrap();
        std::os::unix::fs::symlink("file", root.join("good")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("bad")).unwrap();
        nix::unistd::mkfifo(&root.join("pipe"), Mode::S_IRUSR).unwrap();
        let folder = descend(home.path(), "", false).unwrap();
        let mut packer =
            Packer { builder: Builder::new(Vec::new()), entries: 0, bytes: 0, left_out: 0, example: String::new() };
        packer.one(&folder, "tree", "tree").unwrap();
        assert_eq!((packer.entries, packer.left_out), (4, 2));
        let archive = home.path().join("a.tar");
        std::fs::write(&archive, packer.builder.into_inner().unwrap()).unwrap();
        let to = home.path().join("to");
        archive::unpack(&archive, &to, LIMITS()).unwrap();
        assert_eq!(std::fs::read(to.join("tree/good")).unwrap(), b"content");
        assert!(to.join("tree/empty").is_dir() && !to.join("tree/bad").exists());
    }
}
