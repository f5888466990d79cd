//! One JSON line per executed step, by which a separate checker rebuilds what ran where.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use sluice_checkpoint::Surroundings;

/// An open log. Lines of earlier attempts are kept.
#[derive(Debug)]
pub(crate) struct StepLog {
    file: File,
    path: PathBuf,
    attempt: Option<String>,
    generation: Option<String>,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    step: u64,
    /// The bits of the loss as eight hex digits; `loss` beside it is for people.
    loss_bits: String,
    loss: f32,
    /// Start offsets of the samples, in order.
    samples: &'a [usize],
    /// Epoch of the first sample.
    epoch: u64,
    attempt: Option<&'a str>,
    generation: Option<&'a str>,
}

impl StepLog {
    /// Opens `path` for appending.
    pub(crate) fn open(path: PathBuf, surroundings: &Surroundings) -> Result<Self> {
        let file = open_after_whole_lines(&path).with_context(|| format!("cannot open the log {}", path.display()))?;
        let Surroundings { attempt, generation, .. } = surroundings.clone();
        Ok(Self { file, path, attempt, generation })
    }

    /// Appends the line of `step` by one write, so that a kill leaves it whole or absent.
    pub(crate) fn append(&mut self, step: u64, loss: f32, epoch: u64, samples: &[usize]) -> Result<()> {
        let line = Line {
            step,
            loss_bits: hex::encode(loss.to_bits().to_be_bytes()),
            loss,
            samples,
            epoch,
            attempt: self.attempt.as_deref(),
            generation: self.generation.as_deref(),
        };
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        let written = self.file.write_all(&bytes).and_then(|()| self.file.flush());
        written.with_context(|| format!("cannot append to the log {}", self.path.display()))
    }
}

/// A machine that died may have left half a line; the next line must not grow onto it.
fn open_after_whole_lines(path: &Path) -> std::io::Result<File> {
    let mut file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
    if file.seek(SeekFrom::End(0))? > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_half_line_of_an_earlier_attempt_stays_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("steps.jsonl");
        fs::write(&path, "{\"step\":1}\n{\"ste").expect("written");
        let surroundings = Surroundings { attempt: Some("2".to_owned()), ..Surroundings::default() };
        let mut log = StepLog::open(path.clone(), &surroundings).expect("opened");
        log.append(2, 1.5, 0, &[7, 3]).expect("appended");
        let text = fs::read_to_string(&path).expect("readable");
        let lines: Vec<_> = text.lines().collect();
        let expected = "{\"step\":2,\"loss_bits\":\"3fc00000\",\"loss\":1.5,\"samples\":[7,3],\"epoch\":0,\
            \"attempt\":\"2\",\"generation\":null}";
        assert_eq!(lines, ["{\"step\":1}", "{\"ste", expected]);
    }
}
