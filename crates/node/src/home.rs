//! The folder of one task: what the agent keeps in it beside the supervisor's files, and how it is written.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sluice_device::SliceGrant;
use sluice_proto::v1;
use sluice_types::{BootId, Digest, LeaseId, NodeInstant, Reason};

use crate::assignment::{Assignment, Key};
use crate::error::NodeError;
use crate::meter::Chain;
use crate::supervisor::{Folder, read_json, remove_tree, write_json};

/// Sequences of sealed checkpoints remembered, to know whether the one of an order is among them.
const REMEMBERED: usize = 64;

/// Paths of one task.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    root: PathBuf,
    /// What the supervisor has there.
    pub(crate) folder: Folder,
}

impl Home {
    /// The task's folder below that of all attempts.
    pub(crate) fn new(attempts: &Path, lease: LeaseId) -> Self {
        let root = attempts.join(lease.to_string());
        Self { folder: Folder::new(&root), root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn record(&self) -> PathBuf {
        self.root.join("task.json")
    }

    fn assignment(&self) -> PathBuf {
        self.root.join("assignment.pb")
    }

    /// The working directory.
    pub(crate) fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// The checkpoint to resume from.
    pub(crate) fn resume(&self) -> PathBuf {
        self.root.join("resume")
    }

    /// The model's file.
    pub(crate) fn model(&self) -> PathBuf {
        self.root.join("model")
    }

    /// What is in it.
    pub(crate) fn resume_note(&self) -> PathBuf {
        self.root.join("resume.json")
    }

    /// Whatever is being downloaded or packed.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    /// Secrets, where no better folder is configured.
    pub(crate) fn secrets(&self) -> PathBuf {
        self.root.join("secrets")
    }

    /// Makes the folder with its first record: the task is accepted once this returns.
    pub(crate) fn accept(&self, assignment: &Assignment, record: &Record) -> Result<(), NodeError> {
        let made = fs::create_dir_all(&self.root);
        made.map_err(NodeError::file("creating", &self.root))?;
        self.write_assignment(assignment)?;
        self.write_record(record)?;
        let parent = self.root.parent().unwrap_or(Path::new("/"));
        fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(NodeError::file("writing", parent))
    }

    /// Keeps an assignment, without its secrets.
    pub(crate) fn write_assignment(&self, assignment: &Assignment) -> Result<(), NodeError> {
        let path = self.assignment();
        let new = path.with_extension("new");
        let file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new);
        let written = file.and_then(|mut file| {
            file.write_all(&assignment.bytes())?;
            file.sync_all()
        });
        written.and_then(|()| fs::rename(&new, &path)).map_err(NodeError::file("writing", &path))
    }

    pub(crate) fn write_record(&self, record: &Record) -> Result<(), NodeError> {
        Ok(write_json(&self.record(), record)?)
    }

    /// What an earlier agent kept; `None` where it was stopped before the task was accepted.
    pub(crate) fn read(&self) -> Result<Option<(Assignment, Record)>, NodeError> {
        let Some(record) = read_json::<Record>(&self.record())? else { return Ok(None) };
        Ok(Assignment::read(&self.assignment()).map(|assignment| (assignment, record)))
    }

    /// Removes what only a running task needs; best effort, since everything goes in the end.
    pub(crate) fn clean(&self) {
        let own = [self.work(), self.resume(), self.secrets()];
        let folder = &self.folder;
        let theirs =
            [folder.stage(), folder.staging(), folder.staged(), folder.outputs(), folder.inside(), folder.copies()];
        for path in own.into_iter().chain(theirs) {
            if let Err(error) = remove_tree(&path) {
                tracing::warn!(path = %path.display(), %error, "could not be removed yet");
            }
        }
        let _none = fs::remove_file(self.scratch());
        let _none = fs::remove_file(self.model());
    }
}

/// How far a task got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Accepted.
    Accepted,
    /// Everything it needs is here.
    Prepared,
    /// A supervisor was, or was about to be, started.
    Launched,
}

/// A sealed checkpoint that the controller may not know of yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SealedNote {
    pub(crate) step: u64,
    pub(crate) manifest: Digest,
    pub(crate) bytes: u64,
    pub(crate) captured: NodeInstant,
    pub(crate) next_window: u64,
}

impl SealedNote {
    pub(crate) fn wire(&self, key: &Key) -> v1::SealedReport {
        v1::SealedReport {
            key: Some(key.wire()),
            step: self.step,
            manifest: self.manifest.to_string(),
            size_bytes: self.bytes,
            captured_ns: self.captured.nanos(),
            next_window: self.next_window,
        }
    }
}

/// What a task left in its outputs folder, as it is in the site's vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredOutputs {
    /// The archive.
    pub archive: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The manifest that keeps it there.
    pub manifest: Digest,
}

/// How a task ended, for as long as the controller lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndedNote {
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: u32,
    pub(crate) reason: Option<Reason>,
    pub(crate) message: String,
    pub(crate) ended: NodeInstant,
    pub(crate) outputs: Option<StoredOutputs>,
    pub(crate) at_checkpoint: bool,
    pub(crate) windows: u64,
    pub(crate) step: u64,
}

impl EndedNote {
    pub(crate) fn wire(&self) -> v1::TaskEnded {
        v1::TaskEnded {
            exit_code: self.exit_code,
            signal: self.signal,
            reason: self.reason.map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
            message: self.message.clone(),
            ended_ns: self.ended.nanos(),
            outputs: self.outputs.map(|stored| v1::BlobRef {
                digest: stored.archive.to_string(),
                size_bytes: stored.size,
                path: String::new(),
            }),
            outputs_manifest: self.outputs.map(|stored| stored.manifest.to_string()).unwrap_or_default(),
            at_checkpoint: self.at_checkpoint,
            windows: self.windows,
            step: self.step,
        }
    }
}

/// Everything about a task that must survive the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) key: Key,
    /// The boot in which it was accepted: a task does not outlive it.
    pub(crate) boot: BootId,
    /// Its user.
    pub(crate) uid: u32,
    pub(crate) phase: Phase,
    /// Its windows.
    pub(crate) chain: Chain,
    /// The first window after each staged checkpoint that is not sealed yet, by sequence.
    pub(crate) cuts: BTreeMap<u64, u64>,
    /// When its program started.
    pub(crate) started: Option<NodeInstant>,
    pub(crate) last_step: u64,
    /// The last step that a window named.
    #[serde(default)]
    pub(crate) window_step: u64,
    /// Newest revision for which a checkpoint was ordered.
    pub(crate) ordered: u64,
    /// Under that revision it is held behind this step, until the next one says where it stops.
    #[serde(default)]
    pub(crate) held: Option<u64>,
    /// Newest checkpoint of its lineage.
    pub(crate) parent: Option<Digest>,
    /// Sealed checkpoints that are told again at each reconnect.
    pub(crate) sealed: Vec<SealedNote>,
    /// Sequences of sealed checkpoints.
    pub(crate) sealed_sequences: VecDeque<u64>,
    /// Its slice, as granted.
    pub(crate) grant: Option<SliceGrant>,
    /// Its outputs, once that is settled: stored, or nothing there.
    pub(crate) outputs: Option<Option<StoredOutputs>>,
    pub(crate) ended: Option<EndedNote>,
}

impl Record {
    /// Of a task accepted now.
    pub(crate) fn new(assignment: &Assignment, boot: BootId, uid: u32, now: NodeInstant) -> Self {
        Self {
            key: assignment.key,
            boot,
            uid,
            phase: Phase::Accepted,
            chain: Chain::begin(now),
            cuts: BTreeMap::new(),
            started: None,
            last_step: assignment.resume_step(),
            window_step: assignment.resume_step(),
            ordered: 0,
            held: None,
            parent: assignment.parent(),
            sealed: Vec::new(),
            sealed_sequences: VecDeque::new(),
            grant: None,
            outputs: None,
            ended: None,
        }
    }

    /// A checkpoint is sealed.
    pub(crate) fn on_sealed(&mut self, sequence: u64, note: SealedNote) {
        self.parent = Some(note.manifest);
        self.sealed.push(note);
        self.cuts.remove(&sequence);
        self.sealed_sequences.push_back(sequence);
        if self.sealed_sequences.len() > REMEMBERED {
            self.sealed_sequences.pop_front();
        }
    }
}
