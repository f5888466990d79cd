//! The bytes of captured files, on this host, for as long as the task lives: copied once, named by number ever after.
//!
//! A file is known by its inode and the kernel's marks on it. Small files share a blob; one that is mostly of bytes that
//! nobody names any more is written anew, so that what is kept stays within a few times what is in the folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use sluice_types::Digest;

use super::tree::{RUNS_BOUND, Run, blob_name};

/// Files of so many bytes have a blob of their own.
const LARGE: u64 = 256 << 10;
/// A shared blob ends when it is so large.
const SHARED: u64 = 8 << 20;
/// Holes that are smaller are written as what they read as: zeroes.
const HOLE: u64 = 64 << 10;
/// Shared blobs beyond which the smallest are written together anew.
const MANY: usize = 48;
const CHUNK: usize = 256 << 10;
/// Bytes that are copied between two looks at the clock.
const PART: u64 = 8 << 20;

/// Tells one state of a file from the next. The kernel sets the change time, and no program can set it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) size: u64,
    pub(super) modified: (i64, i64),
    pub(super) changed: (i64, i64),
}

/// What is known of a file.
#[derive(Debug, Clone)]
struct Known {
    mark: Mark,
    /// The marks may not show the next change: it was changed a moment before it was copied, or is mapped by a program.
    doubtful: bool,
    runs: Vec<Run>,
}

/// One blob on disk.
#[derive(Debug, Clone, Copy)]
struct Blob {
    length: u64,
    /// Once it is complete and on disk.
    digest: Option<Digest>,
}

/// A blob that small files are still written to.
#[derive(Debug)]
struct Open {
    number: u32,
    file: File,
    length: u64,
}

/// The bytes of all captured files.
#[derive(Debug)]
pub(super) struct Blobs {
    root: PathBuf,
    blobs: BTreeMap<u32, Blob>,
    known: BTreeMap<u64, Known>,
    open: Option<Open>,
    next: u32,
}

impl Blobs {
    /// In this folder, which is made when it is first needed.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, blobs: BTreeMap::new(), known: BTreeMap::new(), open: None, next: 1 }
    }

    /// Makes the folder.
    pub(super) fn prepare(&self) -> io::Result<()> {
        match fs::DirBuilder::new().create(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) fn path(&self, number: u32) -> PathBuf {
        self.root.join(blob_name(number))
    }

    /// Where the bytes of a file are, if they are here as its marks say it is.
    pub(super) fn find(&self, inode: u64, mark: &Mark) -> Option<&[Run]> {
        let known = self.known.get(&inode).filter(|known| known.mark == *mark && !known.doubtful)?;
        Some(&known.runs)
    }

    /// Where the bytes of a file are that was found or copied before.
    pub(super) fn runs(&self, inode: u64) -> &[Run] {
        self.known.get(&inode).map_or(&[], |known| &known.runs)
    }

    /// Copies a file, of at most so many bytes without its holes. Returns how many it has.
    ///
    /// # Errors
    /// The file system's; [`io::ErrorKind::FileTooLarge`] and [`io::ErrorKind::TimedOut`] beyond a bound.
    pub(super) fn copy(
        &mut self,
        inode: u64,
        mark: Mark,
        doubtful: bool,
        file: &File,
        bound: (u64, Option<Instant>),
    ) -> io::Result<u64> {
        let spans = spans(file, mark.size)?;
        let bytes = spans.iter().fold(0u64, |sum, span| sum.saturating_add(span.1));
        if bytes > bound.0 || spans.len() > RUNS_BOUND {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let runs = match bytes >= LARGE {
            true => self.copy_large(file, &spans, bound.1)?,
            false => self.copy_small(file, &spans)?,
        };
        self.known.insert(inode, Known { mark, doubtful, runs });
        Ok(bytes)
    }

    fn create(&mut self) -> io::Result<(u32, File)> {
        let number = self.next;
        self.next = number.checked_add(1).ok_or(io::ErrorKind::StorageFull)?;
        let file = OpenOptions::new().create_new(true).read(true).write(true).mode(0o400).open(self.path(number))?;
        self.blobs.insert(number, Blob { length: 0, digest: None });
        Ok((number, file))
    }

    fn copy_large(&mut self, file: &File, spans: &[(u64, u64)], end: Option<Instant>) -> io::Result<Vec<Run>> {
        let (blob, mut into) = self.create()?;
        let (mut runs, mut offset) = (Vec::with_capacity(spans.len()), 0);
        for (at, length) in spans {
            copy_range(file, *at, *length, &mut into, end)?;
            runs.push(Run { at: *at, length: *length, blob, offset });
            offset += length;
        }
        self.blobs.insert(blob, Blob { length: offset, digest: None });
        Ok(runs)
    }

    fn copy_small(&mut self, file: &File, spans: &[(u64, u64)]) -> io::Result<Vec<Run>> {
        let mut runs = Vec::with_capacity(spans.len());
        for (at, length) in spans {
            let mut bytes = vec![0; usize::try_from(*length).map_err(io::Error::other)?];
            file.read_exact_at(&mut bytes, *at)?;
            let (blob, offset) = self.append(&bytes)?;
            runs.push(Run { at: *at, length: *length, blob, offset });
        }
        Ok(runs)
    }

    /// Writes bytes behind those of other small files.
    fn append(&mut self, bytes: &[u8]) -> io::Result<(u32, u64)> {
        if self.open.as_ref().is_none_or(|open| open.length >= SHARED) {
            let (number, file) = self.create()?;
            self.open = Some(Open { number, file, length: 0 });
        }
        let open = self.open.as_mut().expect("invariant: one was just opened");
        let offset = open.length;
        open.file.seek(SeekFrom::Start(offset))?;
        open.file.write_all(bytes)?;
        open.length += bytes.len() as u64;
        self.blobs.insert(open.number, Blob { length: open.length, digest: None });
        Ok((open.number, offset))
    }

    /// Nothing is written any more to what is here; files that are gone are forgotten, with the bytes that nobody else has.
    pub(super) fn close(&mut self, present: &BTreeSet<u64>) -> io::Result<()> {
        self.known.retain(|inode, _| present.contains(inode));
        self.compact()?;
        self.open = None;
        self.sweep()
    }

    /// Removes blobs that no known file names.
    pub(super) fn sweep(&mut self) -> io::Result<()> {
        let named: BTreeSet<u32> = self.known.values().flat_map(|known| &known.runs).map(|run| run.blob).collect();
        let dead: Vec<u32> = self.blobs.keys().filter(|number| !named.contains(number)).copied().collect();
        if self.open.as_ref().is_some_and(|open| !named.contains(&open.number)) {
            self.open = None;
        }
        for number in dead {
            match fs::remove_file(self.path(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => drop(self.blobs.remove(&number)),
            }
        }
        Ok(())
    }

    /// Writes anew what is left of shared blobs that are half empty, or too many.
    fn compact(&mut self) -> io::Result<()> {
        let mut live: BTreeMap<u32, u64> = BTreeMap::new();
        for run in self.known.values().flat_map(|known| &known.runs) {
            *live.entry(run.blob).or_default() += run.length;
        }
        let large: BTreeSet<u32> =
            self.known.values().filter(|known| known.is_large()).flat_map(Known::blobs).collect();
        let shared: Vec<(u32, u64)> = live.into_iter().filter(|(number, _)| !large.contains(number)).collect();
        let many = shared.len() > MANY;
        let wasted = |number: &u32, live: u64| self.blobs.get(number).is_some_and(|blob| live < blob.length / 2);
        let poor: BTreeSet<u32> = shared
            .iter()
            .filter(|(number, live)| wasted(number, *live) || (many && *live < SHARED / 2))
            .map(|(number, _)| *number)
            .collect();
        if poor.is_empty() {
            return Ok(());
        }
        if self.open.as_ref().is_some_and(|open| poor.contains(&open.number)) {
            self.open = None;
        }
        let moved: Vec<u64> = self
            .known
            .iter()
            .filter(|(_, known)| known.runs.iter().any(|run| poor.contains(&run.blob)))
            .map(|(inode, _)| *inode)
            .collect();
        for inode in moved {
            let mut runs = self.runs(inode).to_vec();
            for run in runs.iter_mut().filter(|run| poor.contains(&run.blob)) {
                let mut bytes = vec![0; usize::try_from(run.length).map_err(io::Error::other)?];
                File::open(self.path(run.blob))?.read_exact_at(&mut bytes, run.offset)?;
                (run.blob, run.offset) = self.append(&bytes)?;
            }
            if let Some(known) = self.known.get_mut(&inode) {
                known.runs = runs;
            }
        }
        Ok(())
    }

    /// Length and digest of a blob; it is on disk when this returns.
    pub(super) fn seal(&mut self, number: u32) -> io::Result<(u64, Digest)> {
        let blob = self.blobs.get(&number).copied().ok_or(io::ErrorKind::NotFound)?;
        if let Some(digest) = blob.digest {
            return Ok((blob.length, digest));
        }
        let file = File::open(self.path(number))?;
        file.sync_all()?;
        let digest = hash(&file, blob.length)?;
        self.blobs.insert(number, Blob { digest: Some(digest), ..blob });
        Ok((blob.length, digest))
    }

    /// Bytes of all blobs.
    #[cfg(test)]
    pub(super) fn stored(&self) -> u64 {
        self.blobs.values().map(|blob| blob.length).sum()
    }
}

impl Known {
    fn is_large(&self) -> bool {
        self.runs.iter().map(|run| run.length).sum::<u64>() >= LARGE
    }

    fn blobs(&self) -> impl Iterator<Item = u32> {
        self.runs.iter().map(|run| run.blob)
    }
}

/// BLAKE3 of the first bytes of a file.
pub(super) fn hash(file: &File, length: u64) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < length {
        let size = usize::try_from(length - at).unwrap_or(CHUNK).min(CHUNK);
        file.read_exact_at(&mut buffer[..size], at)?;
        hasher.update(&buffer[..size]);
        at += size as u64;
    }
    Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
}

/// Where a file has data: begin and length of each run. File systems that cannot tell have one run.
fn spans(file: &File, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let (mut spans, mut at): (Vec<(u64, u64)>, u64) = (Vec::new(), 0);
    let signed = |offset: u64| i64::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge));
    while at < size {
        let begin = match lseek(file.as_fd(), signed(at)?, Whence::SeekData) {
            Ok(begin) => begin.cast_unsigned().min(size),
            // No data behind this.
            Err(Errno::ENXIO) => break,
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => at,
            Err(error) => return Err(error.into()),
        };
        let end = match lseek(file.as_fd(), signed(begin)?, Whence::SeekHole) {
            Ok(end) => end.cast_unsigned().min(size),
            Err(Errno::ENXIO) => break,
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => size,
            Err(error) => return Err(error.into()),
        };
        if end <= begin {
            break;
        }
        match spans.last_mut() {
            Some(last) if begin - (last.0 + last.1) < HOLE => last.1 = end - last.0,
            _ => spans.push((begin, end - begin)),
        }
        if spans.len() > RUNS_BOUND {
            break;
        }
        at = end;
    }
    Ok(spans)
}

/// Copies a range to the end of another file, without bringing it here where the file systems can.
fn copy_range(from: &File, at: u64, length: u64, into: &mut File, end: Option<Instant>) -> io::Result<()> {
    let mut from = from;
    from.seek(SeekFrom::Start(at))?;
    let mut left = length;
    while left > 0 {
        if end.is_some_and(|end| Instant::now() >= end) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let copied = io::copy(&mut io::Read::take(&mut from, left.min(PART)), into)?;
        if copied == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left -= copied;
    }
    Ok(())
}

/// Links a blob into a folder of a capture, which then has it whatever becomes of it here.
pub(super) fn link(blobs: &Blobs, number: u32, into: &Path) -> io::Result<()> {
    fs::hard_link(blobs.path(number), into.join(blob_name(number)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn mark(size: u64) -> Mark {
        Mark { size, modified: (0, 0), changed: (0, 0) }
    }

    fn file(root: &Path, bytes: &[u8]) -> File {
        let path = root.join("from");
        fs::write(&path, bytes).unwrap();
        File::open(path).unwrap()
    }

    fn read(blobs: &Blobs, inode: u64) -> Vec<u8> {
        let mut all = Vec::new();
        for run in blobs.runs(inode) {
            let mut bytes = vec![0; usize::try_from(run.length).unwrap()];
            File::open(blobs.path(run.blob)).unwrap().read_exact_at(&mut bytes, run.offset).unwrap();
            all.extend(bytes);
        }
        all
    }

    #[test]
    fn what_nobody_names_any_more_does_not_pile_up() {
        let root = tempfile::tempdir().unwrap();
        let mut blobs = Blobs::new(root.path().join("blobs"));
        blobs.prepare().unwrap();
        let text = |inode: u64, round: u64| format!("{inode} {round} ").repeat(500).into_bytes();
        let present: BTreeSet<u64> = (0..20).collect();
        for round in 0..100 {
            // One of twenty changes at a time.
            for inode in present.iter().filter(|inode| round == 0 || **inode == round % 20) {
                let bytes = text(*inode, round);
                let file = file(root.path(), &bytes);
                blobs.copy(*inode, mark(bytes.len() as u64), false, &file, (u64::MAX, None)).unwrap();
            }
            blobs.close(&present).unwrap();
        }
        let live: u64 = present.iter().map(|inode| read(&blobs, *inode).len() as u64).sum();
        assert!(blobs.stored() < 4 * live && blobs.blobs.len() <= MANY + 2, "{} {live}", blobs.stored());
        assert_eq!(fs::read_dir(root.path().join("blobs")).unwrap().count(), blobs.blobs.len());
        for inode in &present {
            let newest = (0..100).rev().find(|round| *round == 0 || round % 20 == *inode).unwrap();
            assert!(read(&blobs, *inode) == text(*inode, newest), "{inode}");
        }
        blobs.close(&BTreeSet::new()).unwrap();
        assert_eq!((blobs.stored(), fs::read_dir(root.path().join("blobs")).unwrap().count()), (0, 0));
    }

    #[test]
    fn holes_are_not_copied_and_large_files_have_their_own() {
        let root = tempfile::tempdir().unwrap();
        let mut blobs = Blobs::new(root.path().join("blobs"));
        blobs.prepare().unwrap();
        let sparse = File::create_new(root.path().join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        sparse.write_all_at(b"data", 1 << 30).unwrap();
        let sparse = File::open(root.path().join("sparse")).unwrap();
        let copied = blobs.copy(1, mark(1 << 40), false, &sparse, (1 << 20, None)).unwrap();
        assert!(copied < 1 << 20 && blobs.runs(1).len() == 1, "{copied}");
        let large = file(root.path(), &vec![7; 300 << 10]);
        blobs.copy(2, mark(300 << 10), false, &large, (u64::MAX, None)).unwrap();
        assert_ne!(blobs.runs(1)[0].blob, blobs.runs(2)[0].blob);
        let kind = blobs.copy(3, mark(300 << 10), false, &large, (100, None)).unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::FileTooLarge);
        let number = blobs.runs(2)[0].blob;
        let sealed = blobs.seal(number).unwrap();
        assert_eq!(sealed.1.as_bytes(), blake3::hash(&vec![7; 300 << 10]).as_bytes());
        // What a capture has linked stays when it is swept here.
        let into = tempfile::tempdir_in(root.path()).unwrap();
        link(&blobs, number, into.path()).unwrap();
        blobs.close(&BTreeSet::from([1])).unwrap();
        assert!(!blobs.path(number).exists());
        assert_eq!(fs::metadata(into.path().join(blob_name(number))).unwrap().nlink(), 1);
    }

    #[test]
    fn marks_that_cannot_be_trusted_find_nothing() {
        let root = tempfile::tempdir().unwrap();
        let mut blobs = Blobs::new(root.path().join("blobs"));
        blobs.prepare().unwrap();
        let from = file(root.path(), b"abc");
        blobs.copy(1, mark(3), false, &from, (10, None)).unwrap();
        assert!(
            blobs.find(1, &mark(3)).is_some() && blobs.find(1, &mark(4)).is_none() && blobs.find(2, &mark(3)).is_none()
        );
        blobs.copy(1, mark(3), true, &from, (10, None)).unwrap();
        assert!(blobs.find(1, &mark(3)).is_none());
    }
}
