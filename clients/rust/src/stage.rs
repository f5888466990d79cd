//! Writing one checkpoint into a fresh folder of the stage.
//!
//! Nothing is synced here: the supervisor takes the folder over by a rename and makes it durable before it answers.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::wire::WireEntry;
use crate::{Dtype, Error, MAX_ENTRIES, Result};

/// Name of the one file in every folder this client writes.
const STATE_FILE: &str = "state.bin";
/// How many names are tried for a fresh folder. Left-overs of killed tries are the only reason to need a second.
const MAX_NAMES: u32 = 10_000;

/// Takes the entries of one checkpoint, in the caller's order. Names are unique.
#[derive(Debug)]
pub struct StateWriter {
    out: BufWriter<File>,
    path: PathBuf,
    offset: u64,
    entries: Vec<WireEntry>,
    names: BTreeSet<String>,
}

impl StateWriter {
    fn create(folder: &Path) -> Result<Self> {
        let path = folder.join(STATE_FILE);
        let file = File::create_new(&path).map_err(|source| Error::File { path: path.clone(), source })?;
        Ok(Self { out: BufWriter::new(file), path, offset: 0, entries: Vec::new(), names: BTreeSet::new() })
    }

    /// Adds one tensor given as its bytes (little endian, row-major, no gaps).
    ///
    /// # Errors
    /// [`Error::Entry`] when the name was used before or the bytes do not match `dtype` and `shape`,
    /// [`Error::TooBig`] beyond [`MAX_ENTRIES`], [`Error::File`] when the stage cannot be written.
    pub fn tensor(&mut self, name: &str, dtype: Dtype, shape: &[u64], bytes: &[u8]) -> Result<()> {
        let length = self.admit(name, dtype, shape, bytes.len())?;
        self.out.write_all(bytes).map_err(|source| Error::File { path: self.path.clone(), source })?;
        self.record(name, dtype, shape, length);
        Ok(())
    }

    /// Adds one `f32` tensor.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub fn tensor_f32(&mut self, name: &str, shape: &[u64], values: &[f32]) -> Result<()> {
        let length = self.admit(name, Dtype::F32, shape, size_of_val(values))?;
        for value in values {
            let written = self.out.write_all(&value.to_le_bytes());
            written.map_err(|source| Error::File { path: self.path.clone(), source })?;
        }
        self.record(name, Dtype::F32, shape, length);
        Ok(())
    }

    fn admit(&mut self, name: &str, dtype: Dtype, shape: &[u64], bytes: usize) -> Result<u64> {
        let refuse = |problem: String| Err(Error::Entry { name: name.to_owned(), problem });
        let is = self.entries.len() + 1;
        if is > MAX_ENTRIES {
            return Err(Error::TooBig { what: "the checkpoint", is, most: MAX_ENTRIES, unit: "entries" });
        }
        let length = u64::try_from(bytes).expect("invariant: usize fits in 64 bits");
        if dtype.size_of(shape) != Some(length) {
            return refuse(format!("{length} bytes given for {shape:?} of {}", dtype.name()));
        }
        if !self.names.insert(name.to_owned()) {
            return refuse("the name was used before".to_owned());
        }
        Ok(length)
    }

    fn record(&mut self, name: &str, dtype: Dtype, shape: &[u64], length: u64) {
        self.entries.push(WireEntry {
            name: name.to_owned(),
            dtype: dtype.name().to_owned(),
            shape: shape.to_vec(),
            file: STATE_FILE.to_owned(),
            offset: self.offset,
            length,
        });
        self.offset += length;
    }

    fn finish(mut self) -> Result<Vec<WireEntry>> {
        self.out.flush().map_err(|source| Error::File { path: self.path, source })?;
        Ok(self.entries)
    }
}

/// A written folder that was not yet announced; dropping it removes what is still there.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) name: String,
    pub(crate) entries: Vec<WireEntry>,
    path: PathBuf,
}

impl Staged {
    /// Writes a fresh folder for `step` in `stage` by calling `fill`.
    pub(crate) fn write(stage: &Path, step: u64, fill: impl FnOnce(&mut StateWriter) -> Result<()>) -> Result<Self> {
        let (name, path) = fresh_folder(stage, step)?;
        // From here on the folder is removed if anything fails, so that failed tries do not fill the stage.
        let mut staged = Self { name, entries: Vec::new(), path };
        let mut writer = StateWriter::create(&staged.path)?;
        fill(&mut writer)?;
        staged.entries = writer.finish()?;
        Ok(staged)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a good announcement the folder is gone already (the supervisor renamed it); a left-over is harmless
        // because names are never used twice.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn fresh_folder(stage: &Path, step: u64) -> Result<(String, PathBuf)> {
    let mut path = stage.to_owned();
    for number in 0..MAX_NAMES {
        let name = format!("step-{step}-{number}");
        path = stage.join(&name);
        match fs::create_dir(&path) {
            Ok(()) => return Ok((name, path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(Error::File { path, source }),
        }
    }
    let source = io::Error::new(io::ErrorKind::AlreadyExists, "every name for a fresh folder is taken");
    Err(Error::File { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_lie_one_after_another() {
        let stage = tempfile::tempdir().expect("folder");
        let staged = Staged::write(stage.path(), 3, |state| {
            state.tensor_f32("a", &[2], &[1.0, -2.0])?;
            state.tensor("b", Dtype::U8, &[3], b"xyz")
        })
        .expect("written");
        assert_eq!(staged.name, "step-3-0");
        let places: Vec<_> = staged.entries.iter().map(|e| (e.name.as_str(), e.offset, e.length)).collect();
        assert_eq!(places, [("a", 0, 8), ("b", 8, 3)]);
        let bytes = fs::read(stage.path().join("step-3-0/state.bin")).expect("readable");
        assert_eq!(bytes, [&1f32.to_le_bytes()[..], &(-2f32).to_le_bytes(), b"xyz"].concat());
    }

    #[test]
    fn wrong_tensors_are_refused_and_leave_nothing() {
        let stage = tempfile::tempdir().expect("folder");
        let wrong_size = Staged::write(stage.path(), 1, |state| state.tensor_f32("a", &[3], &[1.0]));
        assert!(matches!(wrong_size, Err(Error::Entry { .. })));
        let twice = Staged::write(stage.path(), 1, |state| {
            state.tensor_f32("a", &[1], &[1.0])?;
            state.tensor_f32("a", &[1], &[1.0])
        });
        assert!(matches!(twice, Err(Error::Entry { .. })));
        assert_eq!(fs::read_dir(stage.path()).expect("stage").count(), 0);
    }

    #[test]
    fn a_left_over_folder_is_never_reused() {
        let stage = tempfile::tempdir().expect("folder");
        fs::create_dir(stage.path().join("step-1-0")).expect("left-over");
        let staged = Staged::write(stage.path(), 1, |_| Ok(())).expect("written");
        assert_eq!(staged.name, "step-1-1");
    }
}
