//! What a supervisor writes down for whoever comes later.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sluice_device::{TaskGroup, boot_id, process_start_ticks};
use sluice_types::{AttemptId, BootId, Bytes, Digest, Generation, JobId, NodeInstant, Reason};

use super::folder::{self, Folder};
use super::steps::StepMarks;
use super::{SupervisorError, clock};

/// Version of the folder's files and of the control socket.
pub const PROTOCOL: u32 = 1;

/// `supervisor.json`: names one process for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupervisorIdentity {
    /// Process id on the host.
    pub pid: u32,
    /// Its start, in clock ticks since boot.
    pub start_ticks: u64,
    /// The boot.
    pub boot: BootId,
    /// [`PROTOCOL`] that it speaks.
    pub protocol: u32,
    /// When it began.
    pub started_at: NodeInstant,
}

/// Whether a supervisor lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// This very process runs.
    Alive,
    /// It has ended.
    Gone,
    /// It belonged to an earlier boot of the host.
    OtherBoot,
}

impl SupervisorIdentity {
    /// The calling process.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn of_self() -> Result<Self, SupervisorError> {
        let pid = std::process::id();
        let start_ticks = process_start_ticks(pid).ok_or_else(|| {
            SupervisorError::file("reading", Path::new("/proc/self/stat"), std::io::Error::other("gone"))
        })?;
        Ok(Self { pid, start_ticks, boot: boot_id()?, protocol: PROTOCOL, started_at: clock::boottime() })
    }

    /// Whether that process lives. A reused process id is told apart by its start.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn liveness(&self) -> Result<Liveness, SupervisorError> {
        if boot_id()? != self.boot {
            return Ok(Liveness::OtherBoot);
        }
        let same = process_start_ticks(self.pid) == Some(self.start_ticks);
        Ok(if same { Liveness::Alive } else { Liveness::Gone })
    }
}

/// `exit.json`: how a task ended. Written once, last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// What happened.
    pub outcome: Outcome,
    /// The command of the agent that asked for the end, if one did.
    pub ordered: Option<Ordered>,
    /// The checkpoint that an order to checkpoint and exit led to.
    pub order_sequence: Option<u64>,
    /// When the task's program was started; `None` where it never was.
    pub started_at: Option<NodeInstant>,
    /// When it was gone.
    pub ended_at: NodeInstant,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// Processor time of the task's group, in nanoseconds.
    pub cpu_nanos: u64,
    /// Most memory at any time.
    pub memory_peak: Bytes,
    /// The last step that was reported.
    pub last_step: Option<u64>,
    /// When the last steps were finished.
    #[serde(default)]
    pub steps: StepMarks,
    /// Bytes in the log file.
    pub log_bytes: u64,
}

/// What ended a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Outcome {
    /// The program ended with this status. In a sandbox, 129 to 192 are told as signals (see `Outcome::of_status`).
    Exited {
        /// 0 is success.
        code: i32,
    },
    /// A signal ended it.
    Signalled {
        /// The signal's number.
        signal: i32,
    },
    /// The kernel killed a process of it at the memory cap; the rest was ended with it.
    OutOfMemory,
    /// It ran longer than allowed and was ended.
    RunLimit,
    /// It filled one of its folders and was ended.
    DiskLimit {
        /// Which folder, how much and the bound.
        detail: String,
    },
    /// It could not be started.
    StartFailed {
        /// Why.
        detail: String,
    },
    /// The host could not start it, or had not the memory that it promised.
    HostFailed {
        /// Why.
        detail: String,
    },
    /// The supervisor itself was killed or the host restarted, and the task with it.
    SupervisorLost,
}

impl Outcome {
    /// The documented word for it; `None` for success.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Exited { code: 0 } => None,
            Self::Exited { .. } => Some(Reason::ExitStatus),
            Self::Signalled { .. } => Some(Reason::Signalled),
            Self::OutOfMemory => Some(Reason::OutOfMemory),
            Self::RunLimit => Some(Reason::RunLimit),
            Self::DiskLimit { .. } => Some(Reason::DiskLimit),
            Self::StartFailed { .. } => Some(Reason::StartFailed),
            Self::HostFailed { .. } => Some(Reason::HostFailed),
            Self::SupervisorLost => Some(Reason::NodeLost),
        }
    }

    /// Reads the status of the sandbox's outer process, which, as a shell does, tells death by signal N as 128 + N.
    pub(crate) fn of_status(status: std::process::ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal()) {
            (Some(code @ 129..=192), _) => Self::Signalled { signal: code - 128 },
            (Some(code), _) => Self::Exited { code },
            (None, signal) => Self::Signalled { signal: signal.unwrap_or(9) },
        }
    }
}

/// The command that asked a task to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ordered {
    /// [`super::SupervisorClient::stop`].
    Stop,
    /// [`super::SupervisorClient::kill`].
    Kill,
    /// [`super::SupervisorClient::checkpoint_and_exit`].
    CheckpointAndExit,
    /// The supervisor was told to terminate, as at a shutdown of the host.
    Terminate,
}

/// `staged/N/manifest.json`: a complete checkpoint on this host, on disk before its folder has its final name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StagedManifest {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: AttemptId,
    /// Its fence.
    pub generation: Generation,
    /// The task of the gang.
    pub rank: u32,
    /// Counts the checkpoints of this attempt task, from 1.
    pub sequence: u64,
    /// The last step that it holds.
    pub step: u64,
    /// The data position, as the task gave it.
    pub cursor: serde_json::Value,
    /// Digest or version of the program, as the task gave it.
    pub code: String,
    /// When the supervisor took it over.
    pub captured_at: NodeInstant,
    /// What is in it.
    pub entries: Vec<StagedEntry>,
}

impl StagedManifest {
    /// It is a home folder: no task ever had a hand on its files, so that they are as they were announced.
    #[must_use]
    pub fn is_home(&self) -> bool {
        self.code == super::keep::HOME
    }

    /// Bytes of all entries together.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        Bytes::new(self.entries.iter().fold(0u64, |sum, entry| sum.saturating_add(entry.length)))
    }
}

/// One tensor or file of a staged checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedEntry {
    /// Unique name; for programs with a watched directory, the path below that directory.
    pub name: String,
    /// Type of the elements, or `file`.
    pub dtype: String,
    /// Dimensions; empty for scalars and files.
    pub shape: Vec<u64>,
    /// Plain name of a file beside the manifest.
    pub file: String,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// BLAKE3 of these bytes.
    pub blake3: Digest,
}

/// A staged checkpoint in a [`Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedSummary {
    /// Its folder's name.
    pub sequence: u64,
    /// The last step that it holds.
    pub step: u64,
    /// Bytes of all entries together.
    pub bytes: Bytes,
    /// When it was taken over.
    pub captured_at: NodeInstant,
}

/// Where a task is, as the control socket tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its phase.
    pub phase: Phase,
    /// The sandbox's outer process on the host.
    pub child: Option<u32>,
    /// The task's own program on the host.
    pub main: Option<u32>,
    /// When the program was started.
    pub started_at: Option<NodeInstant>,
    /// When it was gone, while what it left is still being taken over.
    #[serde(default)]
    pub ended_at: Option<NodeInstant>,
    /// The last complete step.
    pub last_step: Option<u64>,
    /// When the last steps were finished.
    #[serde(default)]
    pub steps: StepMarks,
    /// What came with it.
    pub metrics: BTreeMap<String, f64>,
    /// Checkpoints staged so far, whether or not the agent has taken them.
    pub staged: Vec<StagedSummary>,
    /// The newest order.
    pub order: Option<OrderStatus>,
    /// Bytes in the log file.
    pub log_bytes: u64,
}

/// Where a task is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The sandbox is being made.
    Starting,
    /// The program runs.
    Running,
    /// It is stopped, to go on later.
    Frozen,
    /// It was told to end.
    Stopping,
    /// It is gone; `exit.json` says how.
    Exited,
}

/// What became of an order to checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderStatus {
    /// Counts the orders of this task, from 1.
    pub number: u64,
    /// Whether the task is to end after it.
    pub exit: bool,
    /// How far it is.
    pub state: OrderState,
}

/// How far an order is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum OrderState {
    /// The task has not asked since.
    Waiting,
    /// The task was told, at this step (`None` for programs told by a signal).
    Told {
        /// The step.
        step: Option<u64>,
    },
    /// This checkpoint fulfils it.
    Done {
        /// Sequence number.
        sequence: u64,
    },
    /// It was not fulfilled.
    Failed {
        /// Why.
        why: String,
    },
    /// It was taken back.
    Cancelled,
}

/// Reads who supervises the task in this folder; `None` before it has begun.
///
/// # Errors
/// The file system's.
pub fn read_identity(folder: &Folder) -> Result<Option<SupervisorIdentity>, SupervisorError> {
    folder::read_json(&folder.identity())
}

/// Reads how the task in this folder ended; `None` while it has not.
///
/// # Errors
/// The file system's.
pub fn read_exit(folder: &Folder) -> Result<Option<ExitRecord>, SupervisorError> {
    folder::read_json(&folder.exit())
}

/// Reads the manifests of all staged checkpoints in order. Folders that the agent is removing are skipped.
///
/// # Errors
/// The file system's.
pub fn read_staged(folder: &Folder) -> Result<Vec<StagedManifest>, SupervisorError> {
    let path = folder.staged();
    let entries = match std::fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(SupervisorError::file("reading", &path, source)),
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
    let mut sequences: Vec<u64> = names.collect();
    sequences.sort_unstable();
    let read = |sequence| folder::read_json(&folder.staged_set(sequence).join("manifest.json"));
    sequences.into_iter().filter_map(|sequence| read(sequence).transpose()).collect()
}

/// Settles a folder whose supervisor is gone without having written `exit.json`: kills what is left in the group and
/// records the loss, so that no supervisor can start there any more. Returns the record, old or new; `None` where a
/// supervisor is alive (or just starting) and nothing was done. A folder never launched is settled as not started.
///
/// # Errors
/// The file system's; processes that cannot be killed within `patience`.
pub fn settle(
    folder: &Folder,
    group: &TaskGroup,
    patience: std::time::Duration,
) -> Result<Option<ExitRecord>, SupervisorError> {
    // Whoever holds the lock is the one supervisor there is; without it none can begin, because `exit.json` bars it.
    let Some(_lock) = folder.try_lock()? else { return Ok(None) };
    if let Some(record) = read_exit(folder)? {
        return Ok(Some(record));
    }
    group.kill(patience)?;
    let identity = read_identity(folder)?;
    let usage = if group.exists() { group.usage().unwrap_or_default() } else { Default::default() };
    let outcome = match identity {
        Some(_) => Outcome::SupervisorLost,
        None => Outcome::HostFailed { detail: "its supervisor never began".to_owned() },
    };
    let record = ExitRecord {
        outcome,
        ordered: None,
        order_sequence: None,
        started_at: identity.map(|identity| identity.started_at),
        ended_at: clock::boottime(),
        oom_kills: usage.oom_kills,
        cpu_nanos: usage.cpu_nanos,
        memory_peak: usage.memory_peak,
        last_step: None,
        steps: StepMarks::default(),
        log_bytes: std::fs::metadata(folder.log()).map_or(0, |data| data.len()),
    };
    folder::write_json(&folder.exit(), &record)?;
    Ok(Some(record))
}
