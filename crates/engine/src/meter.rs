//! The worker's meter: what each step did, on its way to disk before a token of it is told.
//!
//! Files of records in one folder, named by the number of their first record; framed as `engine.proto` says. Bounded: where the
//! reader does not take files away, the oldest go, and the records after that say how many are lost. Writes reach the kernel,
//! so that they outlive the process; they are not waited for on disk, because a host that dies takes the tokens with it too.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use prost::Message as _;
use sluice_proto::v1::EngineMetered;

/// A file is closed when it has so many bytes.
const FILE_BOUND: u64 = 8 << 20;
/// Files that are kept at most.
const FILES_BOUND: usize = 16;
/// No record is larger.
const RECORD_BOUND: usize = 1 << 20;
const HEADER: usize = 8;

/// Where steps are metered.
pub trait Meter {
    /// Takes a record; its number and what was lost are filled in here.
    ///
    /// # Errors
    ///
    /// Where it cannot be kept: then nothing of the step may be told.
    fn append(&mut self, record: EngineMetered) -> io::Result<()>;
}

/// A folder of records.
#[derive(Debug)]
pub struct MeterFolder {
    folder: PathBuf,
    file: File,
    bytes: u64,
    next: u64,
    lost: u64,
    file_bound: u64,
}

impl MeterFolder {
    /// Opens or creates a folder; numbers go on where its last whole record ended.
    ///
    /// # Errors
    ///
    /// Where the folder cannot be read or written.
    pub fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let (mut next, mut lost) = (1, 0);
        if let Some(newest) = files(folder)?.last() {
            next = newest.first;
            for record in read_file(&newest.path)? {
                (next, lost) = (record.record + 1, record.lost);
            }
        }
        // Never the old file: its end may be torn.
        let file = create(folder, next)?;
        Ok(Self { folder: folder.to_owned(), file, bytes: 0, next, lost, file_bound: FILE_BOUND })
    }

    fn roll(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.file = create(&self.folder, self.next)?;
        self.bytes = 0;
        let files = files(&self.folder)?;
        for pair in files.windows(2).take(files.len().saturating_sub(FILES_BOUND)) {
            self.lost += pair[1].first - pair[0].first;
            std::fs::remove_file(&pair[0].path)?;
            tracing::warn!(lost = self.lost, "the meter's folder is full: the oldest records are removed unread");
        }
        Ok(())
    }
}

impl Meter for MeterFolder {
    fn append(&mut self, mut record: EngineMetered) -> io::Result<()> {
        if self.bytes >= self.file_bound {
            self.roll()?;
        }
        (record.record, record.lost) = (self.next, self.lost);
        let framed = frame(&record);
        if let Err(error) = self.file.write_all(&framed) {
            // What got there is torn: nothing may follow it in this file. Its records before count.
            self.bytes = u64::MAX;
            return Err(error);
        }
        self.bytes += framed.len() as u64;
        self.next += 1;
        Ok(())
    }
}

fn frame(record: &EngineMetered) -> Vec<u8> {
    let payload = record.encode_to_vec();
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut framed = Vec::with_capacity(HEADER + payload.len());
    framed.extend_from_slice(&length);
    framed.extend_from_slice(&checksum(&length, &payload).to_le_bytes());
    framed.extend_from_slice(&payload);
    framed
}

fn checksum(length: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(length);
    hasher.update(payload);
    hasher.finalize()
}

struct MeterFile {
    first: u64,
    path: PathBuf,
}

/// The folder's files, oldest first.
fn files(folder: &Path) -> io::Result<Vec<MeterFile>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".meter"));
        if let Some(first) = name.filter(|digits| digits.len() == 20).and_then(|digits| digits.parse().ok()) {
            files.push(MeterFile { first, path });
        }
    }
    files.sort_by_key(|file| file.first);
    Ok(files)
}

fn create(folder: &Path, first: u64) -> io::Result<File> {
    let path = folder.join(format!("{first:020}.meter"));
    OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)
}

fn read_file(path: &Path) -> io::Result<Vec<EngineMetered>> {
    let mut bytes = Vec::new();
    // Twice the bound: the last record may go beyond it.
    File::open(path)?.take(2 * FILE_BOUND).read_to_end(&mut bytes)?;
    Ok(scan(&bytes))
}

/// Whole records until the end or the first damage.
fn scan(mut bytes: &[u8]) -> Vec<EngineMetered> {
    let mut records = Vec::new();
    while let Some((record, rest)) = first_record(bytes) {
        records.push(record);
        bytes = rest;
    }
    records
}

fn first_record(bytes: &[u8]) -> Option<(EngineMetered, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let size = usize::try_from(u32::from_le_bytes(*length)).ok().filter(|size| *size <= RECORD_BOUND)?;
    let (payload, rest) = rest.split_at_checked(size)?;
    if checksum(length, payload) != u32::from_le_bytes(*crc) {
        return None;
    }
    Some((EngineMetered::decode(payload).ok()?, rest))
}

/// Reads all whole records of a folder, oldest first.
///
/// # Errors
///
/// Where the folder cannot be read.
pub fn read_folder(folder: &Path) -> io::Result<Vec<EngineMetered>> {
    let mut records = Vec::new();
    for file in files(folder)? {
        records.extend(read_file(&file.path)?);
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(at: u64) -> EngineMetered {
        EngineMetered { at, ..EngineMetered::default() }
    }

    fn numbers(folder: &Path) -> Vec<u64> {
        read_folder(folder).unwrap().iter().map(|record| record.record).collect()
    }

    #[test]
    fn records_are_numbered_on_over_restarts_and_torn_ends() {
        let folder = tempfile::tempdir().unwrap();
        for start in 0..3_u64 {
            let mut meter = MeterFolder::open(folder.path()).unwrap();
            for at in 0..4 {
                meter.append(record(start * 4 + at)).unwrap();
            }
            // Killed in the middle of a write.
            meter.file.write_all(&frame(&record(99))[..6]).unwrap();
        }
        assert_eq!(numbers(folder.path()), (1..=12).collect::<Vec<_>>());
        let ats: Vec<u64> = read_folder(folder.path()).unwrap().iter().map(|record| record.at).collect();
        assert_eq!(ats, (0..12).collect::<Vec<_>>());
    }

    #[test]
    fn damage_hides_the_rest_of_its_file_only() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let mut meter = MeterFolder::open(folder.path()).unwrap();
            (0..3).for_each(|at| meter.append(record(at)).unwrap());
        }
        let first = &files(folder.path()).unwrap()[0].path;
        let mut bytes = std::fs::read(first).unwrap();
        let second = bytes.len() / 3 + HEADER;
        bytes[second] ^= 1;
        std::fs::write(first, bytes).unwrap();
        assert_eq!(numbers(folder.path()), [1, 4, 5, 6]);
    }

    #[test]
    fn a_full_folder_loses_the_oldest_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let mut meter = MeterFolder::open(folder.path()).unwrap();
        // A file for each record.
        meter.file_bound = 1;
        (0..40).for_each(|at| meter.append(record(at)).unwrap());
        assert_eq!(files(folder.path()).unwrap().len(), FILES_BOUND);
        let records = read_folder(folder.path()).unwrap();
        assert_eq!((records[0].record, records.last().unwrap().record), (25, 40));
        assert_eq!(records.last().unwrap().lost, 24);
        let again = MeterFolder::open(folder.path()).unwrap();
        assert_eq!((again.next, again.lost), (41, 24));
    }
}
