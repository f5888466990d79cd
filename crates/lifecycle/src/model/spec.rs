//! What a user wants run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sluice_types::{Digest, Name, Nanos, NetworkMode, SiteId, TaskResources};

/// Uploaded content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    /// BLAKE3.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// Path below the working directory where it is unpacked; empty = the directory itself.
    pub path: String,
}

/// How an unmodified program is asked for a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum WatchSignal {
    /// SIGUSR1.
    Usr1,
    /// SIGUSR2.
    Usr2,
    /// SIGTERM.
    Term,
}

/// How a complete set of files is recognised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Completion {
    /// This file appears in the set's folder.
    File(String),
    /// The folder is renamed to a name with this prefix.
    RenamedPrefix(String),
}

/// What a job's tasks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Each runs the command and ends with it.
    #[default]
    Batch,
    /// A leg of an order: each is a sandbox that lives until it is released.
    Rental,
    /// A replica of an endpoint: an engine that serves a model until the endpoint needs it no more.
    Replica,
    /// Looks into a model's file, and re-quantises it where that is asked for.
    Import,
}

impl JobKind {
    /// Its tasks are the system's own programs, which are given a model's file.
    #[must_use]
    pub const fn uses_model(self) -> bool {
        matches!(self, Self::Replica | Self::Import)
    }
}

impl JobKind {
    /// Whether it may hold nothing but its tenant's nominal quota: what was bought or serves others is never called back.
    #[must_use]
    pub const fn is_firm(self) -> bool {
        match self {
            Self::Batch | Self::Import => false,
            Self::Rental | Self::Replica => true,
        }
    }
}

/// How the state of the job is captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capture {
    /// The job speaks the state-provider protocol.
    StateProvider,
    /// The job writes complete sets into a folder.
    Directory {
        /// Path below the working directory.
        path: String,
        /// How a complete set is recognised.
        completion: Completion,
        /// How it is asked; `None` = it writes on its own.
        signal: Option<WatchSignal>,
        /// How long it may take after the signal.
        grace: Nanos,
    },
    /// The working directory itself, taken while everything in the sandbox stands still.
    Home,
}

/// When a job's state is captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointPolicy {
    /// How.
    pub capture: Capture,
    /// After so many steps; 0 = not by steps.
    pub every_steps: u64,
    /// After so much time; zero = not by time.
    pub every: Nanos,
    /// At how many sites it must be stored to be durable; 0 = two where there are two.
    pub durable_sites: u32,
}

/// Retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// After the job failed by itself.
    pub on_failure: u32,
    /// After it lost its node or site.
    pub on_loss: u32,
}

/// A secret that the job reads as a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRef {
    /// Its name within the project.
    pub secret: Name,
    /// Environment variable that holds the file's path; empty = none.
    pub path_variable: String,
}

/// A model's file as a task is given it, and what the task does with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFile {
    /// BLAKE3.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// Of a replica: tokens of context that each sequence may have; 0 = as many as the model was trained for.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub context: u32,
    /// Of a replica: sequences that may be open at once.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub sequences: u32,
    /// Of an import: the quantisation that is made of it; empty = none.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub requantize: String,
}

/// What a user wants run, checked and with defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// What its tasks are.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub kind: JobKind,
    /// Program and arguments; none for rentals, replicas and imports.
    pub command: Vec<String>,
    /// Environment.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub env: BTreeMap<String, String>,
    /// The working directory.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub work_dir: Option<BlobRef>,
    /// Read-only data.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub inputs: Vec<BlobRef>,
    /// Tasks, all or none.
    pub tasks: u32,
    /// What each task gets.
    pub resources: TaskResources,
    /// Higher goes first.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub priority: i32,
    /// Over all attempts; `None` = no limit.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub max_run_time: Option<Nanos>,
    /// What happens after failures.
    pub retry: RetryPolicy,
    /// How its state is captured.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub checkpoint: Option<CheckpointPolicy>,
    /// Secrets by reference.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub secrets: Vec<SecretRef>,
    /// What its tasks may reach.
    pub network: NetworkMode,
    /// Sites it may run at, sorted; empty = any that the project may use.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub sites: Vec<SiteId>,
    /// Free labels.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub labels: BTreeMap<String, String>,
    /// The model's file; of replicas and imports alone.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub model: Option<ModelFile>,
}
