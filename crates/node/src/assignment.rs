//! One task as the controller wants it, checked; and how it is kept on disk, without its secrets.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use prost::Message;
use serde::{Deserialize, Serialize};
use sluice_device::SliceGrant;
use sluice_proto::v1;
use sluice_types::{
    AttemptId, Bytes, CoreMilli, Digest, Generation, JobId, LeaseId, MilliGpu, Name, Nanos, NetworkMode,
};

use crate::error::Failure;
use crate::reconcile::Goal;
use crate::supervisor::{CheckpointMode, CheckpointPolicy, CheckpointSignal, Completion};

const DEFAULT_GRACE: Nanos = Nanos::from_secs(30);
const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);

/// Whose a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) attempt: AttemptId,
    pub(crate) lease: LeaseId,
    pub(crate) generation: Generation,
}

impl Key {
    /// For the wire.
    pub(crate) fn wire(&self) -> v1::TaskKey {
        v1::TaskKey {
            attempt: self.attempt.to_string(),
            lease: self.lease.to_string(),
            generation: self.generation.get(),
        }
    }

    /// From the wire; `None` where it is no key.
    pub(crate) fn parse(key: Option<&v1::TaskKey>) -> Option<Self> {
        let key = key?;
        Some(Self {
            attempt: key.attempt.parse().ok()?,
            lease: key.lease.parse().ok()?,
            generation: Generation::new(key.generation),
        })
    }
}

/// Secrets in the clear; never printed, never written with the assignment.
#[derive(Clone, Default)]
pub(crate) struct Secrets(pub(crate) BTreeMap<String, bytes::Bytes>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// An assignment whose key and goal are understood. The rest is checked when it is used, so that what is wrong with it
/// becomes the task's ended report.
#[derive(Debug, Clone)]
pub(crate) struct Assignment {
    pub(crate) key: Key,
    pub(crate) goal: Goal,
    pub(crate) revision: u64,
    pub(crate) secrets: Secrets,
    wire: v1::Assignment,
}

/// A model's file, and what is done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) digest: Digest,
    pub(crate) size: Bytes,
    pub(crate) work: ModelWork,
}

/// What is done with a model's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModelWork {
    /// It is served.
    Serve { context: u32, sequences: u32 },
    /// It is looked into, and quantised anew where a quantisation is named.
    Check { requantize: String },
}

impl Assignment {
    /// From the wire; `None` where nobody could be told about it, because it has no key or no known goal.
    pub(crate) fn parse(mut wire: v1::Assignment) -> Option<Self> {
        let key = Key::parse(wire.key.as_ref())?;
        let goal = match wire.goal() {
            v1::Goal::Unspecified => return None,
            v1::Goal::Prepare => Goal::Prepare,
            v1::Goal::Run => Goal::Run,
            v1::Goal::Checkpoint => Goal::Checkpoint,
            v1::Goal::Stop => Goal::Stop,
            v1::Goal::Release => Goal::Release,
        };
        let secrets = Secrets(std::mem::take(&mut wire.secrets).into_iter().collect());
        Some(Self { key, goal, revision: wire.revision, secrets, wire })
    }

    /// The form for the disk.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.wire.encode_to_vec()
    }

    /// From the disk.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        let bytes = std::fs::read(path).ok()?;
        Self::parse(v1::Assignment::decode(bytes.as_slice()).ok()?)
    }

    fn spec(&self) -> Result<&v1::JobSpec, Failure> {
        self.wire.spec.as_ref().ok_or_else(|| wrong("spec", "is missing"))
    }

    /// The job, from its resource name.
    pub(crate) fn job(&self) -> Result<JobId, Failure> {
        let last = self.wire.job.rsplit('/').next().unwrap_or("");
        last.parse().map_err(|_| wrong("job", "does not end with a job's id"))
    }

    /// Host name of the task.
    pub(crate) fn job_name(&self) -> Result<Name, Failure> {
        self.job()?.to_string().parse().map_err(|_| wrong("job", "is no label"))
    }

    /// It is a sandbox that lives until it is released, and not a command.
    pub(crate) fn is_rental(&self) -> bool {
        self.wire.spec.as_ref().is_some_and(|spec| spec.kind() == v1::JobKind::Rental)
    }

    /// It hosts sessions.
    pub(crate) fn hosts_sessions(&self) -> bool {
        let kind = self.wire.spec.as_ref().map(v1::JobSpec::kind);
        matches!(kind, Some(v1::JobKind::Rental | v1::JobKind::Replica))
    }

    /// The model that it serves or looks into.
    pub(crate) fn model(&self) -> Result<Option<Model>, Failure> {
        let spec = self.spec()?;
        let given = spec.model.as_ref();
        let given = || given.ok_or_else(|| wrong("spec.model", "is missing"));
        let file = |work: ModelWork| {
            let given = given()?;
            let digest = digest("spec.model.digest", &given.digest)?;
            Ok(Some(Model { digest, size: Bytes::new(given.size_bytes), work }))
        };
        match spec.kind() {
            v1::JobKind::Replica => {
                let given = given()?;
                file(ModelWork::Serve { context: given.context, sequences: given.sequences })
            }
            v1::JobKind::Import => file(ModelWork::Check { requantize: given()?.requantize.clone() }),
            v1::JobKind::Unspecified | v1::JobKind::Batch | v1::JobKind::Rental => Ok(None),
        }
    }

    pub(crate) fn rank(&self) -> u32 {
        self.wire.rank
    }

    pub(crate) fn world_size(&self) -> u32 {
        self.wire.world_size.max(1)
    }

    pub(crate) fn rendezvous(&self) -> Option<String> {
        (!self.wire.rendezvous.is_empty()).then(|| self.wire.rendezvous.clone())
    }

    pub(crate) fn command(&self) -> Result<Vec<String>, Failure> {
        Ok(self.spec()?.command.clone())
    }

    pub(crate) fn env(&self) -> Result<BTreeMap<String, String>, Failure> {
        Ok(self.spec()?.env.clone().into_iter().collect())
    }

    /// Names of the secrets it reads, each with the variable that holds the path of its file.
    pub(crate) fn secret_refs(&self) -> Result<Vec<(String, String)>, Failure> {
        let refs = self.spec()?.secrets.iter();
        Ok(refs.map(|secret| (secret.secret.clone(), secret.path_variable.clone())).collect())
    }

    /// The working directory's archive.
    pub(crate) fn work_dir(&self) -> Result<Option<Digest>, Failure> {
        self.spec()?.work_dir.as_ref().map(|blob| digest("spec.work_dir", &blob.digest)).transpose()
    }

    /// Inputs, each with its path below the working directory.
    pub(crate) fn inputs(&self) -> Result<Vec<(Digest, String)>, Failure> {
        let inputs = self.spec()?.inputs.iter();
        inputs.map(|blob| Ok((digest("spec.inputs", &blob.digest)?, blob.path.clone()))).collect()
    }

    /// The manifest to resume from as it was named; empty for none.
    pub(crate) fn resume_manifest(&self) -> &str {
        &self.wire.resume_manifest
    }

    /// The manifest to resume from, with its step.
    pub(crate) fn resume(&self) -> Result<Option<(Digest, u64)>, Failure> {
        if self.wire.resume_manifest.is_empty() {
            return Ok(None);
        }
        Ok(Some((digest("resume_manifest", &self.wire.resume_manifest)?, self.wire.resume_step)))
    }

    /// The step that it begins behind.
    pub(crate) fn resume_step(&self) -> u64 {
        self.wire.resume_step
    }

    /// The parent of its first checkpoint.
    pub(crate) fn parent(&self) -> Option<Digest> {
        let parent = self.wire.parent_manifest.parse().ok();
        parent.or_else(|| self.wire.resume_manifest.parse().ok())
    }

    /// How long a checkpoint that is ordered may take.
    pub(crate) fn deadline(&self) -> Duration {
        let told = self.wire.deadline.as_ref().and_then(nanos);
        told.map_or(DEFAULT_DEADLINE, Duration::from)
    }

    /// It is to be held at its next step boundary first.
    pub(crate) fn hold(&self) -> bool {
        self.wire.hold
    }

    /// The first step at which it may stop at a checkpoint.
    pub(crate) fn stop_step(&self) -> u64 {
        self.wire.stop_step
    }

    /// Run time left.
    pub(crate) fn run_limit(&self) -> Option<Nanos> {
        self.wire.run_limit.as_ref().and_then(nanos)
    }

    pub(crate) fn network(&self) -> Result<NetworkMode, Failure> {
        Ok(match self.spec()?.network() {
            v1::NetworkMode::Unspecified | v1::NetworkMode::Loopback => NetworkMode::Loopback,
            v1::NetworkMode::Gang => NetworkMode::Gang,
            v1::NetworkMode::Egress => NetworkMode::Egress,
        })
    }

    /// Its slice.
    pub(crate) fn grant(&self, pids_max: u32) -> Result<SliceGrant, Failure> {
        let wanted = self.spec()?.resources.as_ref().ok_or_else(|| wrong("spec.resources", "is missing"))?;
        Ok(SliceGrant {
            key: self.key.lease.to_string(),
            device: u16::try_from(self.wire.device).map_err(|_| wrong("device", "is no device of this node"))?,
            milli: MilliGpu::new(wanted.milli),
            memory: Bytes::new(wanted.memory_bytes),
            host_cores: CoreMilli::new(wanted.host_core_milli),
            host_memory: Bytes::new(wanted.host_memory_bytes),
            pids_max,
        })
    }

    /// How its state is captured.
    pub(crate) fn checkpoint(&self) -> Result<CheckpointPolicy, Failure> {
        let Some(policy) = &self.spec()?.checkpoint else {
            return Ok(CheckpointPolicy { mode: CheckpointMode::Disabled, every_steps: None, every: None });
        };
        use v1::checkpoint_policy::Capture;
        let mode = match &policy.capture {
            None => CheckpointMode::Disabled,
            Some(Capture::Home(_)) => CheckpointMode::Home,
            Some(Capture::StateProvider(_)) => CheckpointMode::StateProvider,
            Some(Capture::Directory(directory)) => watched(directory)?,
        };
        Ok(CheckpointPolicy {
            mode,
            every_steps: Some(policy.every_steps).filter(|steps| *steps > 0),
            every: policy.every.as_ref().and_then(nanos).filter(|span| *span > Nanos::ZERO),
        })
    }
}

fn watched(directory: &v1::WatchedDirectory) -> Result<CheckpointMode, Failure> {
    use v1::watched_directory::Completion as Wire;
    let completion = match &directory.completion {
        Some(Wire::CompletionFile(name)) => Completion::CompletionFile(name.clone()),
        Some(Wire::RenamedPrefix(prefix)) => Completion::AtomicRename(format!("{prefix}*")),
        None => return Err(wrong("spec.checkpoint.directory", "does not declare how a complete set is recognised")),
    };
    let signal = match directory.signal.as_str() {
        "" => None,
        "USR1" => Some(CheckpointSignal::Sigusr1),
        "USR2" => Some(CheckpointSignal::Sigusr2),
        "TERM" => Some(CheckpointSignal::Sigterm),
        _ => return Err(wrong("spec.checkpoint.directory.signal", "is none of USR1, USR2 and TERM")),
    };
    let grace = directory.grace.as_ref().and_then(nanos).unwrap_or(DEFAULT_GRACE);
    Ok(CheckpointMode::Directory { path: directory.path.clone(), completion, signal, grace })
}

fn digest(field: &str, text: &str) -> Result<Digest, Failure> {
    text.parse().map_err(|_| wrong(field, "is no digest"))
}

fn wrong(field: &str, problem: &str) -> Failure {
    Failure::start(format!("the assignment's {field} {problem}"))
}

/// A duration of the wire; `None` where it is negative or absurd.
pub(crate) fn nanos(span: &prost_types::Duration) -> Option<Nanos> {
    let seconds = u64::try_from(span.seconds).ok()?.checked_mul(1_000_000_000)?;
    Some(Nanos::new(seconds.checked_add(u64::try_from(span.nanos).ok()?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_neither_printed_nor_kept() {
        let key = Key { attempt: AttemptId::from_raw(1), lease: LeaseId::from_raw(2), generation: Generation::new(3) };
        let wire = v1::Assignment {
            key: Some(key.wire()),
            goal: v1::Goal::Run.into(),
            secrets: [("token".to_owned(), b"hunter2".to_vec().into())].into(),
            ..v1::Assignment::default()
        };
        let assignment = Assignment::parse(wire).unwrap();
        assert_eq!((assignment.key, assignment.goal), (key, Goal::Run));
        assert_eq!(assignment.secrets.0["token"], b"hunter2"[..]);
        assert!(!format!("{assignment:?}").contains("hunter2") && !format!("{assignment:?}").contains("104, 117"));
        assert!(!assignment.bytes().windows(7).any(|window| window == b"hunter2"));
    }

    #[test]
    fn nonsense_is_refused_in_words_and_never_panics() {
        assert!(Assignment::parse(v1::Assignment::default()).is_none());
        let key = v1::TaskKey {
            attempt: AttemptId::from_raw(1).to_string(),
            lease: LeaseId::from_raw(1).to_string(),
            generation: 1,
        };
        let wire = v1::Assignment { key: Some(key), goal: 2, device: u32::MAX, ..v1::Assignment::default() };
        let assignment = Assignment::parse(wire).unwrap();
        assert!(assignment.job().is_err() && assignment.grant(1).is_err() && assignment.command().is_err());
        let absurd = prost_types::Duration { seconds: i64::MAX, nanos: -1 };
        assert_eq!(nanos(&absurd), None);
    }
}
