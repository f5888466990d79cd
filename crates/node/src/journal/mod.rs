//! The node's journal of metered windows: what is in it will be posted, whatever is killed in between.
//!
//! Append-only segment files, named by the number of their first record. A record is on disk (fsynced) before anybody is
//! told of it; numbers grow for ever, because the newest segment, even an empty one, is never deleted and its name holds
//! the next number. A torn tail, which only a crash during an append leaves, is cut off at the start. Settled records go
//! segment by segment.
//!
//! [`Journal`] is the plain, blocking thing; [`JournalHandle`] the one thread that owns it.

mod handle;
mod segment;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sluice_proto::v1::WindowRecord;

pub(crate) use handle::JournalHandle;
use segment::Segment;
pub(crate) use segment::scan;

/// A segment is closed when it is larger than this.
const SEGMENT_BYTES: u64 = 1 << 20;
/// Settled segments kept beside the newest one: a window's note beside its task is written after its record.
const KEPT: usize = 1;

/// Why the journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk; nothing of the batch counts, and it may be tried again.
    #[error("{action} {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The journal's thread is gone, as at a stop of the agent.
    #[error("the journal is closed")]
    Closed,
}

impl JournalError {
    fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}

/// The journal of one node.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    /// In order; the last one is written to.
    segments: Vec<Segment>,
    /// Number of the next record.
    next: u64,
    segment_bytes: u64,
}

impl Journal {
    /// Opens the folder, cuts a torn tail off.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn open(dir: &Path) -> Result<Self, JournalError> {
        Self::open_with(dir, SEGMENT_BYTES)
    }

    fn open_with(dir: &Path, segment_bytes: u64) -> Result<Self, JournalError> {
        fs::create_dir_all(dir).map_err(JournalError::file("creating", dir))?;
        let mut firsts: Vec<u64> = Vec::new();
        for entry in fs::read_dir(dir).map_err(JournalError::file("reading", dir))? {
            let entry = entry.map_err(JournalError::file("reading", dir))?;
            firsts.extend(entry.file_name().to_str().and_then(Segment::first_of));
        }
        firsts.sort_unstable();
        let (mut segments, mut next) = (Vec::new(), 1);
        let newest = firsts.last().copied();
        for first in firsts {
            let found = Segment::open(dir, first, Some(first) == newest)?;
            next = next.max(first).max(found.last.map_or(0, |last| last + 1));
            segments.push(found);
        }
        let mut journal = Self { dir: dir.to_owned(), segments, next, segment_bytes };
        if journal.segments.is_empty() {
            journal.rotate()?;
        }
        Ok(journal)
    }

    /// Number of the newest record; 0 before the first.
    pub(crate) fn last(&self) -> u64 {
        self.next - 1
    }

    /// Bytes on disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Numbers the records, writes them and waits for the disk. All or none.
    ///
    /// # Errors
    /// The file system's, a full disk above all; then nothing was written.
    pub(crate) fn append(&mut self, records: &mut [WindowRecord]) -> Result<(), JournalError> {
        if records.is_empty() {
            return Ok(());
        }
        if self.newest().bytes >= self.segment_bytes {
            self.rotate()?;
        }
        let mut number = self.next;
        for record in records.iter_mut() {
            record.journal = number;
            number += 1;
        }
        self.newest_mut().append(records)?;
        self.next = number;
        Ok(())
    }

    /// Reads up to `most` records behind `number`, in order.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn read_after(&self, number: u64, most: usize) -> Result<Vec<WindowRecord>, JournalError> {
        let mut records: Vec<WindowRecord> = Vec::new();
        let relevant = self.segments.iter().filter(|segment| segment.last.is_some_and(|last| last > number));
        for segment in relevant {
            let bytes = fs::read(&segment.path).map_err(JournalError::file("reading", &segment.path))?;
            let from = records.last().map_or(number, |record| record.journal);
            let fresh = scan(&bytes).records.into_iter().filter(|record| record.journal > from);
            records.extend(fresh.take(most - records.len()));
            if records.len() >= most {
                break;
            }
        }
        Ok(records)
    }

    /// Records up to `number` are settled and may go. A number beyond the newest record (the controller knows more than
    /// this disk) moves the numbering on.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn settle(&mut self, number: u64) -> Result<(), JournalError> {
        if number >= self.next {
            self.next = number + 1;
            self.rotate()?;
        }
        while self.segments.len() > 1 + KEPT && self.segments[0].last.is_none_or(|last| last <= number) {
            let path = &self.segments[0].path;
            fs::remove_file(path).map_err(JournalError::file("removing", path))?;
            self.segments.remove(0);
        }
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), JournalError> {
        if self.segments.last().is_none_or(|newest| newest.first != self.next) {
            self.segments.push(Segment::create(&self.dir, self.next)?);
        }
        Ok(())
    }

    fn newest(&self) -> &Segment {
        self.segments.last().expect("invariant: opening makes a segment, and the newest is never removed")
    }

    fn newest_mut(&mut self) -> &mut Segment {
        self.segments.last_mut().expect("invariant: opening makes a segment, and the newest is never removed")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(sequence: u64) -> WindowRecord {
        let boot_id = "x".repeat(usize::try_from(sequence % 7).unwrap());
        WindowRecord { sequence, boot_id, start_ns: sequence, end_ns: sequence + 1, ..WindowRecord::default() }
    }

    fn sequences(journal: &Journal, after: u64) -> Vec<(u64, u64)> {
        let records = journal.read_after(after, 10_000).unwrap();
        records.iter().map(|record| (record.journal, record.sequence)).collect()
    }

    fn fill(journal: &mut Journal, range: std::ops::Range<u64>) {
        for sequence in range {
            journal.append(&mut [record(sequence)]).unwrap();
        }
    }

    #[test]
    fn records_come_back_in_order_over_segments_and_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open_with(dir.path(), 200).unwrap();
        fill(&mut journal, 0..50);
        assert!(journal.segments.len() > 3);
        let wanted: Vec<_> = (0..50).map(|sequence| (sequence + 1, sequence)).collect();
        assert_eq!(sequences(&journal, 0), wanted);
        let mut journal = Journal::open_with(dir.path(), 200).unwrap();
        assert_eq!(sequences(&journal, 0), wanted);
        assert_eq!(sequences(&journal, 47), wanted[47..]);
        assert_eq!(journal.read_after(3, 2).unwrap().iter().map(|r| r.journal).collect::<Vec<_>>(), [4, 5]);
        fill(&mut journal, 50..51);
        assert_eq!(journal.last(), 51);
    }

    #[test]
    fn settled_segments_go_and_numbers_never_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open_with(dir.path(), 200).unwrap();
        fill(&mut journal, 0..50);
        let before = journal.bytes();
        journal.settle(50).unwrap();
        assert!(journal.bytes() < before && journal.segments.len() == 2);
        drop(journal);
        let mut journal = Journal::open_with(dir.path(), 200).unwrap();
        assert_eq!(journal.last(), 50);
        journal.settle(90).unwrap();
        drop(journal);
        let mut journal = Journal::open_with(dir.path(), 200).unwrap();
        fill(&mut journal, 7..8);
        assert_eq!(sequences(&journal, 90), [(91, 7)]);
    }

    #[test]
    fn a_full_disk_fails_the_batch_and_the_next_try_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        fill(&mut journal, 0..3);
        journal.newest_mut().fail_after = Some(17);
        assert!(journal.append(&mut [record(3), record(4)]).is_err());
        assert_eq!(journal.last(), 3);
        assert_eq!(sequences(&Journal::open(dir.path()).unwrap(), 0).len(), 3);
        journal.newest_mut().fail_after = None;
        journal.append(&mut [record(3), record(4)]).unwrap();
        assert_eq!(sequences(&journal, 3), [(4, 3), (5, 4)]);
        assert_eq!(sequences(&Journal::open(dir.path()).unwrap(), 3), [(4, 3), (5, 4)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A crash at any byte of the newest segment loses only what was not yet whole, and what is appended later
        /// follows on.
        #[test]
        fn any_cut_replays_every_whole_record(count in 1u64..20, cut in 0.0f64..1.0, flip in any::<bool>()) {
            let dir = tempfile::tempdir().unwrap();
            let mut journal = Journal::open(dir.path()).unwrap();
            let mut ends = Vec::new();
            for sequence in 0..count {
                journal.append(&mut [record(sequence)]).unwrap();
                ends.push(journal.bytes());
            }
            let path = journal.newest().path.clone();
            drop(journal);
            let mut bytes = fs::read(&path).unwrap();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let place = (bytes.len() as f64 * cut) as usize;
            if flip && place < bytes.len() { bytes[place] ^= 0x40 } else { bytes.truncate(place) }
            fs::write(&path, &bytes).unwrap();
            let whole = ends.iter().filter(|end| **end <= u64::try_from(place).unwrap()).count();
            let mut journal = Journal::open(dir.path()).unwrap();
            let wanted: Vec<_> = (0..u64::try_from(whole).unwrap()).map(|n| (n + 1, n)).collect();
            prop_assert_eq!(sequences(&journal, 0), wanted.clone());
            journal.append(&mut [record(77)]).unwrap();
            let again = sequences(&Journal::open(dir.path()).unwrap(), 0);
            prop_assert_eq!(again.len(), whole + 1);
            prop_assert_eq!(&again[..whole], &wanted[..]);
        }
    }
}
