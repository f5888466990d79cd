//! One file of the journal.
//!
//! Each record is `length: u32 LE`, `crc: u32 LE` (CRC-32 of length and payload), `payload` (protobuf `WindowRecord`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use prost::Message;
use sluice_proto::v1::WindowRecord;

use super::JournalError;

const HEADER: usize = 8;
/// No record is larger; a length beyond it is damage.
const RECORD_BOUND: usize = 64 << 10;

/// A segment file.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    /// Number of its first record, or of the next one of all where it is empty.
    pub(super) first: u64,
    /// Number of its last record.
    pub(super) last: Option<u64>,
    /// Bytes that are whole records on disk; what is behind them does not count.
    pub(super) bytes: u64,
    file: File,
    #[cfg(test)]
    pub(super) fail_after: Option<usize>,
}

/// What a scan found.
pub(crate) struct Scan {
    pub(crate) records: Vec<WindowRecord>,
    /// Bytes up to the end of the last whole record.
    pub(crate) whole: usize,
}

/// Reads records until the end or the first damage.
pub(crate) fn scan(bytes: &[u8]) -> Scan {
    let (mut records, mut whole) = (Vec::new(), 0);
    while let Some((record, length)) = first_record(&bytes[whole..]) {
        records.push(record);
        whole += length;
    }
    Scan { records, whole }
}

fn first_record(bytes: &[u8]) -> Option<(WindowRecord, usize)> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let size = usize::try_from(u32::from_le_bytes(*length)).ok().filter(|size| *size <= RECORD_BOUND)?;
    let payload = rest.get(..size)?;
    if checksum(length, payload) != u32::from_le_bytes(*crc) {
        return None;
    }
    Some((WindowRecord::decode(payload).ok()?, HEADER + size))
}

fn checksum(length: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(length);
    hasher.update(payload);
    hasher.finalize()
}

impl Segment {
    /// The first number in a segment's file name.
    pub(super) fn first_of(name: &str) -> Option<u64> {
        let digits = name.strip_suffix(".seg").filter(|digits| digits.len() == 20)?;
        digits.parse().ok().filter(|first| *first > 0)
    }

    fn path_of(dir: &Path, first: u64) -> PathBuf {
        dir.join(format!("{first:020}.seg"))
    }

    /// A new, empty segment whose name is on disk.
    pub(super) fn create(dir: &Path, first: u64) -> Result<Self, JournalError> {
        let path = Self::path_of(dir, first);
        let fail = || JournalError::file("creating", &path);
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path);
        let file = file.map_err(fail())?;
        file.set_len(0).and_then(|()| file.sync_all()).map_err(fail())?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(fail())?;
        Ok(Self::of(path, first, None, 0, file))
    }

    /// Reads a segment. Of the newest one a torn tail is cut off; in older ones damage hides the rest of that segment.
    pub(super) fn open(dir: &Path, first: u64, newest: bool) -> Result<Self, JournalError> {
        let path = Self::path_of(dir, first);
        let bytes = std::fs::read(&path).map_err(JournalError::file("reading", &path))?;
        let found = scan(&bytes);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(JournalError::file("opening", &path))?;
        let whole = u64::try_from(found.whole).unwrap_or(u64::MAX);
        if found.whole < bytes.len() {
            let lost = bytes.len() - found.whole;
            tracing::warn!(segment = %path.display(), lost, newest, "bytes behind the last whole record are ignored");
            if newest {
                file.set_len(whole).and_then(|()| file.sync_all()).map_err(JournalError::file("cutting", &path))?;
            }
        }
        Ok(Self::of(path, first, found.records.last().map(|record| record.journal), whole, file))
    }

    fn of(path: PathBuf, first: u64, last: Option<u64>, bytes: u64, file: File) -> Self {
        Self {
            path,
            first,
            last,
            bytes,
            file,
            #[cfg(test)]
            fail_after: None,
        }
    }

    /// Writes numbered records behind what is whole, and waits for the disk.
    pub(super) fn append(&mut self, records: &[WindowRecord]) -> Result<(), JournalError> {
        let mut batch = Vec::with_capacity(records.len() * 192);
        for record in records {
            let payload = record.encode_to_vec();
            let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes();
            batch.extend_from_slice(&length);
            batch.extend_from_slice(&checksum(&length, &payload).to_le_bytes());
            batch.extend_from_slice(&payload);
        }
        let written = self.write(&batch).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // What got there is cut off; where even that fails, the next append overwrites it, and a restart finds it torn
            // or, if all of it got there, whole and never told to anybody.
            let _torn = self.file.set_len(self.bytes).and_then(|()| self.file.sync_data());
            return Err(JournalError::File { action: "appending to", path: self.path.clone(), source });
        }
        self.bytes += u64::try_from(batch.len()).unwrap_or(0);
        self.last = records.last().map(|record| record.journal);
        Ok(())
    }

    #[cfg(not(test))]
    fn write(&mut self, batch: &[u8]) -> io::Result<()> {
        self.write_at(batch)
    }

    #[cfg(test)]
    fn write(&mut self, batch: &[u8]) -> io::Result<()> {
        match self.fail_after {
            Some(most) => {
                self.write_at(&batch[..most.min(batch.len())])?;
                Err(io::ErrorKind::StorageFull.into())
            }
            None => self.write_at(batch),
        }
    }

    fn write_at(&mut self, batch: &[u8]) -> io::Result<()> {
        self.file.write_all_at(batch, self.bytes)?;
        self.file.flush()
    }
}
