//! Reads the nodes' journals: a reader of its own for the form that a node's `journal` documents.
//!
//! A segment is a row of records `length: u32 LE`, `crc: u32 LE` (CRC-32 of length and payload), `payload`
//! (`WindowRecord`). What follows the last whole record of a segment is a torn append that nobody was told of.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Context as _;
use prost::Message as _;
use sluice_proto::v1::WindowRecord;

use super::Verdict;
use crate::keeper::Kept;

/// One window as a node wrote it down.
#[derive(Debug, Clone)]
pub struct Record {
    /// SITE/NODE.
    pub node: String,
    /// What it wrote.
    pub window: WindowRecord,
}

/// All windows of all kept journals, by lease and in order.
///
/// # Errors
/// A file cannot be read.
pub fn read(kept: &Kept, verdict: &mut Verdict) -> anyhow::Result<BTreeMap<String, Vec<Record>>> {
    let mut leases: BTreeMap<String, BTreeMap<u64, Record>> = BTreeMap::new();
    for (node, folder) in kept.journals() {
        let mut last = 0;
        let mut segments: Vec<_> = fs::read_dir(&folder)?.flatten().map(|entry| entry.path()).collect();
        segments.sort();
        for segment in segments {
            let bytes = fs::read(&segment).with_context(|| format!("the journal {}", segment.display()))?;
            for window in records(&bytes) {
                if window.journal <= last {
                    verdict.find(format!("{node}: journal number {} does not follow {last}", window.journal));
                }
                last = window.journal;
                let Some(key) = window.key.clone() else {
                    verdict.find(format!("{node}: a window without a lease in the journal"));
                    continue;
                };
                let sequence = window.sequence;
                let record = Record { node: node.clone(), window };
                let known = leases.entry(key.lease.clone()).or_default().insert(sequence, record);
                if known.is_some() {
                    verdict.find(format!("{}: window {sequence} is in a journal twice", key.lease));
                }
            }
        }
    }
    Ok(leases.into_iter().map(|(lease, windows)| (lease, windows.into_values().collect())).collect())
}

fn records(bytes: &[u8]) -> Vec<WindowRecord> {
    let (mut all, mut rest) = (Vec::new(), bytes);
    while let Some((record, behind)) = first(rest) {
        all.push(record);
        rest = behind;
    }
    all
}

fn first(bytes: &[u8]) -> Option<(WindowRecord, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let (payload, behind) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(length);
    hasher.update(payload);
    if hasher.finalize() != u32::from_le_bytes(*crc) {
        return None;
    }
    Some((WindowRecord::decode(payload).ok()?, behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_records_count_and_a_torn_tail_does_not() {
        let mut bytes = Vec::new();
        for sequence in 0..3 {
            let payload = WindowRecord { sequence, ..WindowRecord::default() }.encode_to_vec();
            let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(&length);
            hasher.update(&payload);
            bytes.extend(length.iter().chain(&hasher.finalize().to_le_bytes()).chain(&payload));
        }
        assert_eq!(records(&bytes).len(), 3);
        assert_eq!(records(&bytes[..bytes.len() - 1]).len(), 2);
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        assert_eq!(records(&bytes).len(), 2);
    }
}
