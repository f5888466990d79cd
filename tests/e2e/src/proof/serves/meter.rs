//! What a worker metered of its steps, read beside it: which requests it had under way when something was killed. Clients
//! cannot tell that: their requests may wait in front of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use anyhow::Context as _;
use prost::Message as _;
use sluice_proto::v1::EngineMetered;

/// Length and checksum in front of each record.
const HEADER: usize = 8;

/// The newest file of a worker's meter. Open, it is there to be read when the worker and its folder are gone.
#[derive(Debug)]
pub(super) struct Metered {
    file: File,
    read: u64,
    steps: Vec<EngineMetered>,
}

impl Metered {
    /// Opens what the worker writes.
    ///
    /// # Errors
    /// It is gone, or has no meter.
    pub(super) fn of(pid: i32) -> anyhow::Result<Self> {
        // By the worker's own eyes, wherever its sandbox lies; named by their first records, so that the last is the newest.
        let folder = PathBuf::from(format!("/proc/{pid}/cwd/meter"));
        let files = std::fs::read_dir(&folder).with_context(|| format!("no meter of worker {pid}"))?;
        let newest = files.flatten().map(|entry| entry.path()).max().context("a meter without a file")?;
        Ok(Self { file: File::open(newest)?, read: 0, steps: Vec::new() })
    }

    /// All whole records so far.
    pub(super) fn steps(&mut self) -> anyhow::Result<&[EngineMetered]> {
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(self.read))?;
        self.file.read_to_end(&mut bytes)?;
        let mut rest = bytes.as_slice();
        while let Some((step, behind)) = first(rest)? {
            self.steps.push(step);
            rest = behind;
        }
        self.read += (bytes.len() - rest.len()) as u64;
        Ok(&self.steps)
    }
}

/// The first record, and what is behind it; none where it is not whole yet.
fn first(bytes: &[u8]) -> anyhow::Result<Option<(EngineMetered, &[u8])>> {
    let Some((header, rest)) = bytes.split_at_checked(HEADER) else { return Ok(None) };
    let (length, _) = header.split_first_chunk::<4>().context("a length")?;
    let size = usize::try_from(u32::from_le_bytes(*length))?;
    let Some((payload, behind)) = rest.split_at_checked(size) else { return Ok(None) };
    Ok(Some((EngineMetered::decode(payload).context("a record of a meter")?, behind)))
}

/// How far each request is of which steps that ended at `since` or later did something, Unix time in milliseconds: its
/// generated tokens.
pub(super) fn begun(steps: &[EngineMetered], since: u64) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::<String, u64>::new();
    for part in steps.iter().filter(|step| step.at >= since).flat_map(|step| &step.sequences) {
        let tokens = all.entry(part.request.clone()).or_default();
        *tokens = (*tokens).max(u64::from(part.generated_from) + u64::from(part.generated_tokens));
    }
    all
}

/// Requests of which steps did something up to `from` and behind `to`: they were under way in between.
pub(super) fn across(steps: &[EngineMetered], from: u64, to: u64) -> BTreeSet<String> {
    let of = |side: &dyn Fn(u64) -> bool| -> BTreeSet<&str> {
        let steps = steps.iter().filter(|step| side(step.at));
        steps.flat_map(|step| &step.sequences).map(|part| part.request.as_str()).collect()
    };
    of(&|at| at <= from).intersection(&of(&|at| at > to)).map(|request| (*request).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use sluice_proto::v1::EngineMeteredSequence;

    use super::*;

    fn step(at: u64, parts: &[(&str, u32)]) -> EngineMetered {
        let part = |(request, generated_from): &(&str, u32)| EngineMeteredSequence {
            request: (*request).to_owned(),
            generated_from: *generated_from,
            generated_tokens: 1,
            ..EngineMeteredSequence::default()
        };
        EngineMetered { at, sequences: parts.iter().map(part).collect(), ..EngineMetered::default() }
    }

    #[test]
    fn a_request_is_under_way_where_it_has_steps_on_both_sides() {
        let steps = [step(10, &[("ended", 0), ("on", 0)]), step(20, &[("on", 1)]), step(30, &[("on", 2), ("new", 0)])];
        assert_eq!(across(&steps, 10, 20), ["on".to_owned()].into());
        assert_eq!(across(&steps, 10, 30), BTreeSet::new(), "nothing is known behind it");
        assert_eq!(across(&steps, 9, 20), BTreeSet::new(), "nothing is known before it");
        assert_eq!(begun(&steps, 20), [("on".to_owned(), 3), ("new".to_owned(), 1)].into());
        assert_eq!(begun(&steps, 0)["ended"], 1);
    }

    #[test]
    fn records_are_read_once_they_are_whole() {
        let mut writes = tempfile::NamedTempFile::new().unwrap();
        let mut metered = Metered { file: writes.reopen().unwrap(), read: 0, steps: Vec::new() };
        let steps = [step(10, &[("one", 0)]), step(20, &[("one", 1)])];
        let framed = |step: &EngineMetered| {
            let payload = step.encode_to_vec();
            [&u32::try_from(payload.len()).unwrap().to_le_bytes()[..], &[0; 4], &payload].concat()
        };
        let (head, tail) = (framed(&steps[1])[..9].to_vec(), framed(&steps[1])[9..].to_vec());
        writes.write_all(&[framed(&steps[0]), head].concat()).unwrap();
        assert_eq!(metered.steps().unwrap(), &steps[..1]);
        writes.write_all(&tail).unwrap();
        assert_eq!(metered.steps().unwrap(), &steps);
    }
}
