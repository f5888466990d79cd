//! The checkpoint a task starts from.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::wire::{WireEntry, WireResume};
use crate::{Error, MAX_ENTRIES, Result};

/// What to continue from: the state after [`Resume::step`] was complete.
#[derive(Debug, Clone, PartialEq)]
pub struct Resume {
    /// The last complete step; go on with the one after it.
    pub step: u64,
    /// The data position the checkpoint was announced with.
    pub cursor: Value,
    /// The program the checkpoint was written by, where the supervisor tells it.
    pub code: Option<String>,
    /// The entries in the order they were announced.
    pub entries: Vec<Entry>,
}

impl Resume {
    pub(crate) fn from_wire(wire: WireResume) -> Result<Self> {
        if wire.entries.len() > MAX_ENTRIES {
            let is = wire.entries.len();
            return Err(Error::TooBig { what: "the resumed checkpoint", is, most: MAX_ENTRIES, unit: "entries" });
        }
        let entries = wire.entries.into_iter().map(Entry::from_wire).collect::<Result<_>>()?;
        Ok(Self { step: wire.step, cursor: wire.cursor, code: wire.code, entries })
    }

    /// The entry called `name`.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// As [`Self::entry`], for one the program cannot do without.
    ///
    /// # Errors
    /// [`Error::Entry`] when the checkpoint has none of that name.
    pub fn require(&self, name: &str) -> Result<&Entry> {
        self.entry(name)
            .ok_or_else(|| Error::Entry { name: name.to_owned(), problem: "not in the checkpoint".to_owned() })
    }
}

/// One tensor of a checkpoint, still on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name it was announced with.
    pub name: String,
    /// Its element type by the name on the wire, which may be one this client does not know.
    pub dtype: String,
    /// Its shape; empty for a scalar.
    pub shape: Vec<u64>,
    /// Its size in bytes.
    pub length: u64,
    path: PathBuf,
    offset: u64,
}

impl Entry {
    fn from_wire(wire: WireEntry) -> Result<Self> {
        let path = PathBuf::from(wire.file);
        if !path.is_absolute() {
            return Err(Error::Entry { name: wire.name, problem: "its file is not an absolute path".to_owned() });
        }
        let WireEntry { name, dtype, shape, offset, length, .. } = wire;
        Ok(Self { name, dtype, shape, length, path, offset })
    }

    /// The file that holds the bytes and where in it they start, for callers that map it.
    #[must_use]
    pub fn place(&self) -> (&Path, u64) {
        (&self.path, self.offset)
    }

    /// Reads the bytes.
    ///
    /// # Errors
    /// [`Error::File`] when the file cannot be read, [`Error::Entry`] when it is too short.
    pub fn read(&self) -> Result<Vec<u8>> {
        let failed = |source| Error::File { path: self.path.clone(), source };
        let mut file = File::open(&self.path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        // Checked before memory is taken, so that an absurd length costs nothing.
        if self.offset.checked_add(self.length).is_none_or(|end| end > size) {
            return Err(self.unusable(format!("bytes {}+{} of a file of {size}", self.offset, self.length)));
        }
        let length = usize::try_from(self.length).map_err(|_| self.unusable("longer than memory".to_owned()))?;
        let mut bytes = vec![0; length];
        file.seek(SeekFrom::Start(self.offset)).map_err(failed)?;
        file.read_exact(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    /// Reads the values of an `f32` tensor, bit for bit.
    ///
    /// # Errors
    /// As [`Self::read`]; [`Error::Entry`] when it is of another type or its size does not match its shape.
    pub fn read_f32(&self) -> Result<Vec<f32>> {
        if self.dtype != crate::Dtype::F32.name() {
            return Err(self.unusable(format!("it is of type {}, not f32", self.dtype)));
        }
        if crate::Dtype::F32.size_of(&self.shape) != Some(self.length) {
            return Err(self.unusable(format!("{} bytes do not make {:?} of f32", self.length, self.shape)));
        }
        Ok(self.read()?.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect())
    }

    fn unusable(&self, problem: String) -> Error {
        Error::Entry { name: self.name.clone(), problem }
    }
}
