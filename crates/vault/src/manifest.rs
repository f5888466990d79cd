//! A checkpoint as data: which tensors or files by digest, at which step, with which data position.
//!
//! A manifest's digest is the BLAKE3 of its canonical bytes: JSON without blanks, fields in the order of the structs
//! below, keys of the cursor sorted. Whoever stores one keeps the bytes as they came and never writes them anew.

use std::collections::{BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sluice_types::{AttemptId, Digest, Generation, JobId};

use crate::path::RelativePath;
use crate::store::hash_bytes;

/// The form described here.
const VERSION: u32 = 1;
/// Most entries of one manifest.
pub const MAX_ENTRIES: usize = 65_536;
/// Largest manifest in bytes.
pub const MAX_MANIFEST_BYTES: usize = 16 << 20;
/// Largest cursor as JSON in bytes.
pub const MAX_CURSOR_BYTES: usize = 64 << 10;
/// The `dtype` of an entry whose name is a path below the watched directory.
pub const FILE_DTYPE: &str = "file";
const MAX_NAME: usize = 1024;
const MAX_DTYPE: usize = 32;
const MAX_CODE: usize = 256;
const MAX_DIMENSIONS: usize = 32;
const MAX_WORLD: u32 = 65_536;

/// Why bytes are not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Larger than a bound.
    #[error("{what} is {asked}, the bound is {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// How large.
        asked: usize,
        /// The bound.
        limit: usize,
    },
    /// Not JSON of the right form.
    #[error("it is not JSON of the right form")]
    Json(#[from] serde_json::Error),
    /// A field has a wrong value.
    #[error("{field}: {rule}")]
    Field {
        /// Which.
        field: String,
        /// The rule that it breaks.
        rule: &'static str,
    },
}

fn field<T>(field: impl Into<String>, rule: &'static str) -> Result<T, ManifestError> {
    Err(ManifestError::Field { field: field.into(), rule })
}

fn bound(what: &'static str, asked: usize, limit: usize) -> Result<(), ManifestError> {
    if asked > limit { Err(ManifestError::TooLarge { what, asked, limit }) } else { Ok(()) }
}

/// What is sealed: the checkpoint of one task, or of a gang.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Manifest {
    /// One task's state.
    Task(CheckpointManifest),
    /// The tasks of a gang at one step.
    Group(GroupManifest),
}

/// One task's state at a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointManifest {
    /// Of the form: 1.
    pub version: u32,
    /// Whose.
    pub job: JobId,
    /// Which try wrote it.
    pub attempt: AttemptId,
    /// The fence under which it was written.
    pub generation: Generation,
    /// The task's place in its gang.
    pub rank: u32,
    /// Size of the gang.
    pub world_size: u32,
    /// The step that was complete.
    pub step: u64,
    /// The checkpoint before it.
    pub parent: Option<Digest>,
    /// The data position, as the program wrote it.
    pub cursor: serde_json::Value,
    /// Digest or version of the program.
    pub code: String,
    /// Tensors or files.
    pub entries: Vec<Entry>,
    /// Sum of the entries' lengths, in bytes.
    pub total: u64,
}

/// One tensor or file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Unique; a relative path where `dtype` is [`FILE_DTYPE`].
    pub name: String,
    /// What the bytes are, in the program's words, or [`FILE_DTYPE`].
    pub dtype: String,
    /// Dimensions, in the program's order.
    pub shape: Vec<u64>,
    /// BLAKE3 of the bytes.
    pub digest: Digest,
    /// How many bytes.
    pub length: u64,
}

/// The checkpoints of all tasks of a gang.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupManifest {
    /// Of the form: 1.
    pub version: u32,
    /// Whose.
    pub job: JobId,
    /// Which try wrote it.
    pub attempt: AttemptId,
    /// The fence under which it was written.
    pub generation: Generation,
    /// Size of the gang.
    pub world_size: u32,
    /// The step that was complete everywhere.
    pub step: u64,
    /// The checkpoint before it.
    pub parent: Option<Digest>,
    /// One per task, by rank.
    pub members: Vec<Member>,
    /// Sum over the members, in bytes.
    pub total: u64,
}

/// One task's part of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its place.
    pub rank: u32,
    /// Its manifest.
    pub manifest: Digest,
    /// Bytes of its state.
    pub length: u64,
}

impl Manifest {
    /// Reads and checks the bytes of a manifest.
    ///
    /// # Errors
    /// Anything that breaks a rule or bound of this module.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        bound("the manifest", bytes.len(), MAX_MANIFEST_BYTES)?;
        let manifest: Self = serde_json::from_slice(bytes)?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// The canonical bytes and their digest.
    ///
    /// # Errors
    /// Anything that breaks a rule or bound of this module.
    pub fn encode(&self) -> Result<(Bytes, Digest), ManifestError> {
        self.validate()?;
        let bytes = match self {
            Self::Task(task) => {
                serde_json::to_vec(&Self::Task(CheckpointManifest { cursor: sorted(&task.cursor), ..task.clone() }))?
            }
            Self::Group(_) => serde_json::to_vec(self)?,
        };
        bound("the manifest", bytes.len(), MAX_MANIFEST_BYTES)?;
        let digest = hash_bytes(&bytes);
        Ok((Bytes::from(bytes), digest))
    }

    /// Checks every rule.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<(), ManifestError> {
        match self {
            Self::Task(task) => task.validate(),
            Self::Group(group) => group.validate(),
        }
    }

    /// The step that was complete.
    #[must_use]
    pub fn step(&self) -> u64 {
        match self {
            Self::Task(task) => task.step,
            Self::Group(group) => group.step,
        }
    }

    /// All bytes of its state.
    #[must_use]
    pub fn total(&self) -> u64 {
        match self {
            Self::Task(task) => task.total,
            Self::Group(group) => group.total,
        }
    }

    /// The blobs it names, each once, with their sizes.
    #[must_use]
    pub fn blobs(&self) -> Vec<(Digest, u64)> {
        let Self::Task(task) = self else { return Vec::new() };
        let mut seen = HashSet::new();
        task.entries
            .iter()
            .filter(|entry| seen.insert(entry.digest))
            .map(|entry| (entry.digest, entry.length))
            .collect()
    }

    /// The manifests it names, each once.
    #[must_use]
    pub fn members(&self) -> Vec<Digest> {
        let Self::Group(group) = self else { return Vec::new() };
        group.members.iter().map(|member| member.manifest).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

impl CheckpointManifest {
    /// The form's number, for [`Self::version`].
    pub const VERSION: u32 = VERSION;

    fn validate(&self) -> Result<(), ManifestError> {
        header(self.version, self.world_size)?;
        if self.rank >= self.world_size {
            return field("rank", "less than world_size");
        }
        bound("code", self.code.len(), MAX_CODE)?;
        bound("the cursor", serde_json::to_vec(&self.cursor)?.len(), MAX_CURSOR_BYTES)?;
        bound("entries", self.entries.len(), MAX_ENTRIES)?;
        let mut names = HashSet::with_capacity(self.entries.len());
        let mut lengths = HashMap::with_capacity(self.entries.len());
        let mut total: u64 = 0;
        for (at, entry) in self.entries.iter().enumerate() {
            entry.validate(at)?;
            if !names.insert(entry.name.as_str()) {
                return field(format!("entries[{at}].name"), "unique");
            }
            if *lengths.entry(entry.digest).or_insert(entry.length) != entry.length {
                return field(format!("entries[{at}].length"), "the same for the same digest");
            }
            let Some(sum) = total.checked_add(entry.length) else { return field("total", "below 2^64") };
            total = sum;
        }
        if total != self.total {
            return field("total", "the sum of the entries' lengths");
        }
        self.no_file_is_a_folder()
    }

    /// `a` and `a/b` cannot both be files.
    fn no_file_is_a_folder(&self) -> Result<(), ManifestError> {
        let files: HashSet<&str> =
            self.entries.iter().filter(|entry| entry.is_file()).map(|entry| entry.name.as_str()).collect();
        for name in &files {
            if name.match_indices('/').any(|(end, _)| files.contains(&name[..end])) {
                return field("entries", "no file may be the folder of another");
            }
        }
        Ok(())
    }
}

impl Entry {
    /// Whether the name is a path.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.dtype == FILE_DTYPE
    }

    fn validate(&self, at: usize) -> Result<(), ManifestError> {
        bound("a name", self.name.len(), MAX_NAME)?;
        bound("a dtype", self.dtype.len(), MAX_DTYPE)?;
        bound("dimensions", self.shape.len(), MAX_DIMENSIONS)?;
        if self.name.is_empty() || self.name.chars().any(char::is_control) {
            return field(format!("entries[{at}].name"), "not empty and without control characters");
        }
        if self.dtype.is_empty() || !self.dtype.bytes().all(|byte| byte.is_ascii_graphic()) {
            return field(format!("entries[{at}].dtype"), "printable ASCII");
        }
        if self.is_file() && RelativePath::parse(&self.name).is_err() {
            return field(format!("entries[{at}].name"), "for a file, a relative path without `.` and `..`");
        }
        Ok(())
    }
}

impl GroupManifest {
    fn validate(&self) -> Result<(), ManifestError> {
        header(self.version, self.world_size)?;
        if u32::try_from(self.members.len()) != Ok(self.world_size) {
            return field("members", "one per rank");
        }
        let mut total: u64 = 0;
        for (rank, member) in self.members.iter().enumerate() {
            if u32::try_from(rank) != Ok(member.rank) {
                return field(format!("members[{rank}].rank"), "in order, from 0");
            }
            let Some(sum) = total.checked_add(member.length) else { return field("total", "below 2^64") };
            total = sum;
        }
        if total != self.total {
            return field("total", "the sum of the members' lengths");
        }
        Ok(())
    }
}

fn header(version: u32, world_size: u32) -> Result<(), ManifestError> {
    if version != VERSION {
        return field("version", "1");
    }
    if world_size == 0 || world_size > MAX_WORLD {
        return field("world_size", "1 to 65536");
    }
    Ok(())
}

/// The same value with sorted keys, whatever order the JSON library keeps. Its depth was bounded by the parser.
fn sorted(value: &serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(map) => {
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_by(|a, b| a.0.cmp(b.0));
            pairs.into_iter().map(|(key, value)| (key.clone(), sorted(value))).collect()
        }
        serde_json::Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, dtype: &str) -> Entry {
        Entry {
            name: name.into(),
            dtype: dtype.into(),
            shape: vec![2, 2],
            digest: hash_bytes(name.as_bytes()),
            length: 16,
        }
    }

    fn task(entries: Vec<Entry>) -> CheckpointManifest {
        CheckpointManifest {
            version: 1,
            job: JobId::from_raw(1),
            attempt: AttemptId::from_raw(2),
            generation: Generation::new(3),
            rank: 0,
            world_size: 1,
            step: 7,
            parent: None,
            cursor: serde_json::json!({"b": 1, "a": [{"d": 2, "c": 3.5}]}),
            code: "v1".into(),
            total: entries.iter().map(|entry| entry.length).sum(),
            entries,
        }
    }

    #[test]
    fn bytes_are_canonical_and_come_back_as_they_were() {
        let manifest = Manifest::Task(task(vec![entry("w", "f32"), entry("b", "f32")]));
        let (bytes, digest) = manifest.encode().unwrap();
        assert_eq!(
            std::str::from_utf8(&bytes).unwrap().split("\"entries\"").next().unwrap(),
            "{\"kind\":\"task\",\"version\":1,\"job\":\"job-0000000000001\",\"attempt\":\"att-0000000000002\",\
             \"generation\":3,\"rank\":0,\"world_size\":1,\"step\":7,\"parent\":null,\
             \"cursor\":{\"a\":[{\"c\":3.5,\"d\":2}],\"b\":1},\"code\":\"v1\","
        );
        let again = Manifest::parse(&bytes).unwrap();
        assert_eq!(again.encode().unwrap(), (bytes, digest));
        assert_eq!(again, manifest);
    }

    #[test]
    fn every_rule_is_held() {
        type Breaker = fn(&mut CheckpointManifest);
        let breakers: &[(&str, Breaker)] = &[
            ("version", |m| m.version = 2),
            ("rank", |m| m.rank = 1),
            ("world_size", |m| m.world_size = 0),
            ("total", |m| m.total += 1),
            ("overflow", |m| m.entries[0].length = u64::MAX),
            ("twice", |m| m.entries[1].name = m.entries[0].name.clone()),
            ("lengths", |m| m.entries[1].digest = m.entries[0].digest),
            ("path", |m| m.entries[2].name = "../x".into()),
            ("absolute", |m| m.entries[2].name = "/x".into()),
            ("folder", |m| m.entries[2].name = "dir/f/g".into()),
            ("control", |m| m.entries[0].name = "a\0".into()),
            ("dtype", |m| m.entries[0].dtype = String::new()),
            ("code", |m| m.code = "x".repeat(257)),
            ("cursor", |m| m.cursor = "x".repeat(MAX_CURSOR_BYTES).into()),
            ("shape", |m| m.entries[0].shape = vec![1; 33]),
        ];
        let mut good = task(vec![entry("w", "f32"), entry("b", "f32"), entry("e", "file"), entry("dir/f", "file")]);
        good.entries[1].length = 8;
        good.total -= 8;
        Manifest::Task(good.clone()).validate().unwrap();
        for (what, breaker) in breakers {
            let mut bad = good.clone();
            breaker(&mut bad);
            assert!(Manifest::Task(bad).validate().is_err(), "{what}");
        }
        let crowd = (0..=MAX_ENTRIES).map(|at| entry(&at.to_string(), "f32")).collect();
        assert!(matches!(Manifest::Task(task(crowd)).validate(), Err(ManifestError::TooLarge { .. })));
    }

    #[test]
    fn hostile_bytes_are_refused_without_a_panic() {
        let deep = "[".repeat(200_000);
        for bytes in [&b""[..], b"{}", b"\xff\xfe", b"{\"kind\":\"task\"}", b"{\"kind\":\"other\"}", deep.as_bytes()] {
            assert!(Manifest::parse(bytes).is_err());
        }
        assert!(Manifest::parse(&vec![b' '; MAX_MANIFEST_BYTES + 1]).is_err());
    }

    #[test]
    fn a_group_has_one_member_per_rank() {
        let member = |rank| Member { rank, manifest: hash_bytes(&[7]), length: 5 };
        let mut group = GroupManifest {
            version: 1,
            job: JobId::from_raw(1),
            attempt: AttemptId::from_raw(2),
            generation: Generation::new(3),
            world_size: 2,
            step: 7,
            parent: None,
            members: vec![member(0), member(1)],
            total: 10,
        };
        let (bytes, _) = Manifest::Group(group.clone()).encode().unwrap();
        assert_eq!(Manifest::parse(&bytes).unwrap(), Manifest::Group(group.clone()));
        group.members.reverse();
        assert!(Manifest::Group(group.clone()).validate().is_err());
        group.members.pop();
        assert!(Manifest::Group(group).validate().is_err());
    }
}
