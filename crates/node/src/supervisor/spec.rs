//! What a supervisor is told to run: `launch.json`, written once by the node agent before the start.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use sluice_device::TaskGroup;
use sluice_types::{AttemptId, Bytes, Generation, JobId, Name, Nanos, NetworkMode};

/// One task of one attempt, complete: nothing else is asked of anybody to run it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// The job.
    pub job: JobId,
    /// Its name, the task's host name.
    pub job_name: Name,
    /// The attempt.
    pub attempt: AttemptId,
    /// The fence of everything this attempt does.
    pub generation: Generation,
    /// Place of this task in its gang, from 0.
    pub rank: u32,
    /// Number of tasks in the gang.
    pub world_size: u32,
    /// `host:port` of rank 0, for gangs.
    pub rendezvous: Option<String>,
    /// What it is. Absent from descriptions of before this was known.
    #[serde(default)]
    pub kind: TaskKind,
    /// A file that the task has open to read, as [`MODEL_DESCRIPTOR`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// Program and arguments of a command, or of an engine. A program without a slash is looked up in `PATH`.
    pub argv: Vec<String>,
    /// The user's variables; those of Sluice win over them.
    pub env: BTreeMap<String, String>,
    /// The attempt's own user.
    pub uid: u32,
    /// And group.
    pub gid: u32,
    /// Working directory on the host, prepared and owned by `uid`; the task sees it as `/work`.
    pub work_dir: PathBuf,
    /// Secret name to file on the host; the task sees `/run/secrets/NAME`.
    pub secrets: BTreeMap<String, PathBuf>,
    /// The checkpoint to resume from.
    pub resume: Option<Resume>,
    /// How state is captured.
    pub checkpoint: CheckpointPolicy,
    /// Where the task is held and counted, as granted by the device backend.
    pub group: TaskGroup,
    /// What it may reach.
    pub network: NetworkMode,
    /// How it is shut in.
    pub sandbox: Sandbox,
    /// Bounds of what it may leave behind and take.
    pub limits: TaskLimits,
}

/// Where a [`TaskKind::Engine`] listens, below its working directory.
pub const ENGINE_SOCKET: &str = "engine.sock";
/// The descriptor under which a task has [`LaunchSpec::model`] open.
pub const MODEL_DESCRIPTOR: i32 = 100;

/// What a task is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum TaskKind {
    /// A program, and ends with it.
    #[default]
    Command,
    /// A sandbox that lives until it is stopped, and in which sessions are opened.
    Sandbox {
        /// How long a session waits for a client to come back, and its end to be fetched.
        patience: Nanos,
    },
    /// A program that serves at [`ENGINE_SOCKET`] in its working directory, and ends with it. It has begun when it accepts
    /// connections there; sessions are connections to it.
    Engine {
        /// As above.
        patience: Nanos,
    },
}

/// A checkpoint to start from, its files already on this host and readable by the task's user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The last step that the checkpoint holds.
    pub step: u64,
    /// The data position, as the task gave it.
    pub cursor: serde_json::Value,
    /// Folder that holds all files; the task sees it, read-only, as `/sluice/resume`.
    pub dir: PathBuf,
    /// What is in it.
    pub entries: Vec<ResumeEntry>,
}

/// One tensor or file of a checkpoint to resume from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeEntry {
    /// Unique name; for programs with a watched directory, the path below that directory.
    pub name: String,
    /// Type of the elements, or `file`.
    pub dtype: String,
    /// Dimensions; empty for scalars and files.
    pub shape: Vec<u64>,
    /// Absolute path on the host, inside [`Resume::dir`].
    pub file: PathBuf,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// How and how often the state of a task is captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointPolicy {
    /// By which means.
    pub mode: CheckpointMode,
    /// After so many steps (state-provider only).
    pub every_steps: Option<u64>,
    /// After so much time.
    pub every: Option<Nanos>,
}

/// By which means state is captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum CheckpointMode {
    /// Not at all.
    Disabled,
    /// The program speaks the state-provider protocol.
    StateProvider,
    /// The working directory itself, by the supervisor, while everything in the sandbox stands still or after its end.
    Home,
    /// The program is unmodified and writes complete sets into a directory.
    Directory {
        /// The directory, relative to the working directory; empty for that itself.
        path: String,
        /// How a complete set is recognised.
        completion: Completion,
        /// What asks the program to write one; `None` where it writes on its own, and the next set is waited for.
        signal: Option<CheckpointSignal>,
        /// How long it may take.
        grace: Nanos,
    },
}

/// How a complete set in a watched directory is recognised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by", content = "name")]
pub enum Completion {
    /// A sub-folder (or the directory itself) is complete when it holds a file of this name.
    CompletionFile(String),
    /// A sub-folder or file whose name matches this pattern (`*` and `?`) is complete when it appears.
    AtomicRename(String),
}

/// The signal that asks an unmodified program for a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum CheckpointSignal {
    /// The usual choice.
    Sigusr1,
    /// For programs that use the other for something else.
    Sigusr2,
    /// For programs that write their state when told to end.
    Sigterm,
}

/// How a task is shut in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// On, or off by an explicit choice of the admin.
    pub mode: SandboxMode,
    /// Host paths that an admin shows to every task, read-only, at the same place.
    pub read_only_binds: Vec<PathBuf>,
    /// Size of `/tmp` and, apart, of `/dev/shm`; both count as the task's memory.
    pub tmp: Bytes,
}

/// Whether a task is shut in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxMode {
    /// Own user, namespaces, whitelist of files, no privileges, filtered system calls.
    Enforced,
    /// None of it: the task runs as the node's own user and sees the host. For trusted users on machines without
    /// root or bubblewrap; shows on every bill.
    Advisory,
}

/// Bounds of what a task may leave behind and take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskLimits {
    /// Log kept; the rest is dropped.
    pub log: Bytes,
    /// Working directory on disk.
    pub work: Bytes,
    /// Checkpoints being written, and each one announced.
    pub stage: Bytes,
    /// Outputs on disk.
    pub outputs: Bytes,
    /// Files and folders in these three together.
    pub files: u64,
    /// Open files per process.
    pub open_files: u64,
    /// Wall time from the start, on the boot-time clock.
    pub run: Option<Nanos>,
}

/// Why a launch description cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field `{field}` {problem}")]
pub struct SpecError {
    /// Path of the field in `launch.json`.
    pub field: &'static str,
    /// What is wrong.
    pub problem: String,
}

/// Most bytes of all arguments and variables together, well under the kernel's bound.
const TEXT_BOUND: usize = 1 << 20;

impl LaunchSpec {
    /// Checks everything that could make a part of this leave its place or surprise the tools below.
    ///
    /// # Errors
    /// The first field that is not acceptable.
    pub fn check(&self) -> Result<(), SpecError> {
        let wrong = |field, problem: &str| Err(SpecError { field, problem: problem.to_owned() });
        if !matches!(self.kind, TaskKind::Sandbox { .. }) && self.argv.first().is_none_or(String::is_empty) {
            return wrong("argv", "is empty");
        }
        let variables = self.env.iter().flat_map(|(name, value)| [name, value]);
        let texts = self.argv.iter().chain(variables.clone()).chain(&self.rendezvous);
        if texts.clone().any(|text| text.contains('\0')) {
            return wrong("argv, env", "holds a NUL character");
        }
        if texts.map(String::len).sum::<usize>() > TEXT_BOUND {
            return wrong("argv, env", "is larger than 1 MiB");
        }
        if self.env.keys().any(|name| name.is_empty() || name.contains('=')) {
            return wrong("env", "has an empty name or one with `=`");
        }
        if self.world_size == 0 || self.rank >= self.world_size {
            return wrong("rank", "is not below world_size");
        }
        if self.sandbox.mode == SandboxMode::Enforced && (self.uid == 0 || self.gid == 0) {
            return wrong("uid", "is root's");
        }
        if self.model.as_ref().is_some_and(|path| !path.is_absolute()) {
            return wrong("model", "is not an absolute path");
        }
        if !self.work_dir.is_absolute() || self.secrets.values().any(|path| !path.is_absolute()) {
            return wrong("work_dir, secrets", "is not an absolute path");
        }
        if self.secrets.keys().any(|name| !is_plain_name(name)) {
            return wrong("secrets", "has a name that is no plain file name");
        }
        if self.sandbox.read_only_binds.iter().any(|path| !path.is_absolute() || path.parent().is_none()) {
            return wrong("sandbox.read_only_binds", "has a path that is not absolute, or the root");
        }
        self.check_checkpoint()
    }

    fn check_checkpoint(&self) -> Result<(), SpecError> {
        let wrong = |field, problem: &str| Err(SpecError { field, problem: problem.to_owned() });
        if let Some(resume) = &self.resume {
            let mut names = BTreeSet::new();
            for entry in &resume.entries {
                if !names.insert(&entry.name) {
                    return wrong("resume.entries", "has a name twice");
                }
                let inside = entry.file.strip_prefix(&resume.dir).ok();
                if !inside.is_some_and(is_relative_inside) {
                    return wrong("resume.entries", "has a file outside resume.dir");
                }
            }
        }
        if let CheckpointMode::Directory { path, completion, .. } = &self.checkpoint.mode {
            if !path.is_empty() && !is_relative_inside(Path::new(path)) {
                return wrong("checkpoint.path", "is not a path inside the working directory");
            }
            let (Completion::CompletionFile(name) | Completion::AtomicRename(name)) = completion;
            if !is_plain_name(name) {
                return wrong("checkpoint.completion", "is no plain file name or pattern");
            }
        }
        Ok(())
    }
}

/// Whether `name` is one ordinary path component that any file system takes.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name);
    plain && name.len() <= 255 && !name.chars().any(char::is_control)
}

/// Whether `path` is relative, not empty and never steps up.
pub(crate) fn is_relative_inside(path: &Path) -> bool {
    let mut parts = path.components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_components_are_names() {
        for good in ["a", "a b", "state.bin", "..a", "ä"] {
            assert!(is_plain_name(good), "{good}");
        }
        for bad in ["", ".", "..", "/", "a/", "/a", "a/b", "../a", "a\n", &"x".repeat(256)] {
            assert!(!is_plain_name(bad), "{bad:?}");
        }
        assert!(is_relative_inside(Path::new("a/b")));
        for bad in ["", "/a", "a/../b", "..", "./.."] {
            assert!(!is_relative_inside(Path::new(bad)), "{bad:?}");
        }
    }
}
