//! From a manifest to what is submitted, and from a job to what its status shows. Pure.

use std::time::Duration;

use sluice_proto::v1;
use sluice_types::AmountError;

use crate::amount::{Share, Size, Span};
use crate::api::{Checkpoint, Directory, GpuJobSpec, GpuJobStatus, Network, Resources};

/// A field of a manifest that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct Unusable {
    /// Its path.
    pub field: String,
    /// In words.
    pub why: String,
}

fn unusable(field: &str, why: impl ToString) -> Unusable {
    Unusable { field: field.to_owned(), why: why.to_string() }
}

fn amount<T>(field: &str, read: Result<T, AmountError>) -> Result<T, Unusable> {
    read.map_err(|error| unusable(field, error))
}

/// Numbers that the schema bounds; what came past it is refused here.
fn number<T: TryFrom<i64>>(field: &str, value: i64) -> Result<T, Unusable> {
    T::try_from(value).map_err(|_| unusable(field, "the number is out of range"))
}

/// A share in thousandths.
pub(crate) fn milli<T: TryFrom<u64>>(field: &str, share: &Share) -> Result<T, Unusable> {
    T::try_from(amount(field, share.milli())?).map_err(|_| unusable(field, AmountError::Range))
}

fn bytes(field: &str, size: &Size) -> Result<u64, Unusable> {
    amount(field, size.bytes()).map(|bytes| bytes.get())
}

fn span(field: &str, span: &Span) -> Result<prost_types::Duration, Unusable> {
    let duration: Duration = amount(field, span.duration())?;
    let seconds = i64::try_from(duration.as_secs()).map_err(|_| unusable(field, AmountError::Range))?;
    let nanos = i32::try_from(duration.subsec_nanos()).map_err(|_| unusable(field, AmountError::Range))?;
    Ok(prost_types::Duration { seconds, nanos })
}

/// What is submitted for a manifest.
///
/// # Errors
/// A field that came past the schema cannot be used.
pub fn job_spec(spec: &GpuJobSpec) -> Result<v1::JobSpec, Unusable> {
    let blob = |field: &str, digest: &str, size: i64, path: &str| {
        Ok(v1::BlobRef {
            digest: digest.to_owned(),
            size_bytes: number(&format!("{field}.sizeBytes"), size)?,
            path: path.to_owned(),
        })
    };
    let work_dir = spec.work_dir.as_ref().map(|held| blob("spec.workDir", &held.digest, held.size_bytes, ""));
    let inputs = spec.inputs.iter().map(|held| blob("spec.inputs", &held.digest, held.size_bytes, &held.path));
    let secrets = spec.secrets.iter().map(|secret| v1::SecretRef {
        secret: secret.name.clone(),
        path_variable: secret.path_variable.clone().unwrap_or_default(),
    });
    let network = match spec.network {
        Network::Loopback => v1::NetworkMode::Loopback,
        Network::Gang => v1::NetworkMode::Gang,
        Network::Egress => v1::NetworkMode::Egress,
    };
    Ok(v1::JobSpec {
        // Endpoints' and models' own.
        model: None,
        command: spec.command.clone(),
        env: spec.env.iter().map(|variable| (variable.name.clone(), variable.value.clone())).collect(),
        work_dir: work_dir.transpose()?,
        inputs: inputs.collect::<Result<_, Unusable>>()?,
        tasks: number("spec.tasks", spec.tasks)?,
        resources: Some(resources(&spec.resources)?),
        priority: number("spec.priority", spec.priority)?,
        max_run_time: spec.max_run_time.as_ref().map(|limit| span("spec.maxRunTime", limit)).transpose()?,
        retry: Some(v1::RetryPolicy {
            on_failure: number("spec.retry.onFailure", spec.retry.on_failure)?,
            on_loss: Some(number("spec.retry.onLoss", spec.retry.on_loss)?),
        }),
        checkpoint: spec.checkpoint.as_ref().map(checkpoint).transpose()?,
        secrets: secrets.collect(),
        network: network.into(),
        sites: spec.sites.clone(),
        labels: Default::default(),
        kind: v1::JobKind::Batch.into(),
    })
}

fn resources(wanted: &Resources) -> Result<v1::TaskResources, Unusable> {
    Ok(v1::TaskResources {
        device_class: wanted.device_class.clone(),
        milli: milli("spec.resources.share", &wanted.share)?,
        memory_bytes: bytes("spec.resources.memory", &wanted.memory)?,
        host_core_milli: milli("spec.resources.hostCores", &wanted.host_cores)?,
        host_memory_bytes: bytes("spec.resources.hostMemory", &wanted.host_memory)?,
    })
}

fn checkpoint(wanted: &Checkpoint) -> Result<v1::CheckpointPolicy, Unusable> {
    use v1::checkpoint_policy::Capture;
    let capture = match (&wanted.state_provider, &wanted.directory) {
        (Some(_), None) => Capture::StateProvider(v1::StateProvider {}),
        (None, Some(folder)) => Capture::Directory(directory(folder)?),
        _ => return Err(unusable("spec.checkpoint", "either stateProvider or directory")),
    };
    Ok(v1::CheckpointPolicy {
        capture: Some(capture),
        every_steps: number("spec.checkpoint.everySteps", wanted.every_steps)?,
        every: wanted.every.as_ref().map(|every| span("spec.checkpoint.every", every)).transpose()?,
        durable_sites: number("spec.checkpoint.durableSites", wanted.durable_sites)?,
    })
}

fn directory(folder: &Directory) -> Result<v1::WatchedDirectory, Unusable> {
    use v1::watched_directory::Completion;
    let completion = match (&folder.completion_file, &folder.renamed_prefix) {
        (Some(file), None) => Completion::CompletionFile(file.clone()),
        (None, Some(prefix)) => Completion::RenamedPrefix(prefix.clone()),
        _ => return Err(unusable("spec.checkpoint.directory", "declare completionFile or renamedPrefix")),
    };
    Ok(v1::WatchedDirectory {
        path: folder.path.clone(),
        completion: Some(completion),
        signal: folder.signal.clone().unwrap_or_default(),
        grace: folder.grace.as_ref().map(|grace| span("spec.checkpoint.directory.grace", grace)).transpose()?,
    })
}

/// One CamelCase word for a state.
#[must_use]
pub(crate) fn phase(state: v1::JobState) -> &'static str {
    match state {
        v1::JobState::Unspecified => "Unknown",
        v1::JobState::Pending => "Pending",
        v1::JobState::Starting => "Starting",
        v1::JobState::Running => "Running",
        v1::JobState::Suspending => "Suspending",
        v1::JobState::Suspended => "Suspended",
        v1::JobState::Migrating => "Migrating",
        v1::JobState::Cancelling => "Cancelling",
        v1::JobState::Succeeded => "Succeeded",
        v1::JobState::Failed => "Failed",
        v1::JobState::Cancelled => "Cancelled",
    }
}

/// Whether a job has ended for good.
#[must_use]
pub(crate) fn has_ended(state: v1::JobState) -> bool {
    matches!(state, v1::JobState::Succeeded | v1::JobState::Failed | v1::JobState::Cancelled)
}

/// Whether a job has neither ended nor been told to: one that was has its order, and a second would be another request.
#[must_use]
pub(crate) fn goes_on(state: v1::JobState) -> bool {
    !has_ended(state) && state != v1::JobState::Cancelling
}

/// The part of a status that is read from the job alone.
#[must_use]
pub fn job_status(job: &v1::Job) -> GpuJobStatus {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let time = |time: &prost_types::Timestamp| {
        let nanos = u32::try_from(time.nanos).unwrap_or(0);
        let moment = k8s_openapi::jiff::Timestamp::new(time.seconds, i32::try_from(nanos).unwrap_or(0));
        moment.map(|moment| moment.to_string()).unwrap_or_default()
    };
    GpuJobStatus {
        phase: Some(phase(job.state()).to_owned()),
        reason: text(&job.reason),
        message: text(&job.message),
        job: text(&job.name),
        site: text(&job.site),
        attempts: Some(i64::from(job.attempts)),
        step: Some(count(job.step)),
        start_time: job.start_time.as_ref().map(time),
        completion_time: job.end_time.as_ref().map(time),
        spent_credits: Some(job.spent_credits),
        credited_credits: Some(job.credited_credits),
        ..GpuJobStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mk_spec(change: serde_json::Value) -> GpuJobSpec {
        let mut spec = json!({ "command": ["/bin/true"], "resources": { "share": "500m" } });
        for (name, value) in change.as_object().cloned().unwrap_or_default() {
            spec[name] = value;
        }
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn what_is_left_out_has_the_defaults_of_the_schema() {
        let spec = job_spec(&mk_spec(json!({}))).unwrap();
        let resources = spec.resources.unwrap();
        assert_eq!((resources.milli, resources.memory_bytes, resources.device_class.as_str()), (500, 512 << 20, "cpu"));
        assert_eq!((spec.tasks, spec.retry.unwrap().on_loss), (1, Some(100)));
        assert!(spec.checkpoint.is_none() && spec.max_run_time.is_none());
    }

    #[test]
    fn every_field_arrives() {
        let spec = job_spec(&mk_spec(json!({
            "maxRunTime": "1m30s", "network": "Gang", "sites": ["a"], "priority": -3, "tasks": 4,
            "env": [{ "name": "A", "value": "1" }],
            "workDir": { "digest": "d", "sizeBytes": 7 },
            "inputs": [{ "digest": "e", "sizeBytes": 8, "path": "data" }],
            "secrets": [{ "name": "token", "pathVariable": "TOKEN" }],
            "checkpoint": { "directory": { "path": "s", "renamedPrefix": "set-", "signal": "TERM", "grace": "500ms" } },
        })));
        let spec = spec.unwrap();
        assert_eq!(spec.max_run_time, Some(prost_types::Duration { seconds: 90, nanos: 0 }));
        assert_eq!((spec.network(), spec.priority, spec.tasks), (v1::NetworkMode::Gang, -3, 4));
        assert_eq!((spec.work_dir.unwrap().size_bytes, spec.inputs[0].path.as_str()), (7, "data"));
        let Some(v1::checkpoint_policy::Capture::Directory(folder)) = spec.checkpoint.unwrap().capture else {
            panic!("a directory")
        };
        assert_eq!((folder.signal.as_str(), folder.grace.unwrap().nanos), ("TERM", 500_000_000));
    }

    #[test]
    fn what_came_past_the_schema_is_refused_by_its_path() {
        for (change, field) in [
            (json!({ "tasks": -1 }), "spec.tasks"),
            (json!({ "resources": { "share": "half" } }), "spec.resources.share"),
            (json!({ "resources": { "share": "99999999999999999999" } }), "spec.resources.share"),
            (json!({ "maxRunTime": "soon" }), "spec.maxRunTime"),
            (json!({ "checkpoint": {} }), "spec.checkpoint"),
        ] {
            assert_eq!(job_spec(&mk_spec(change)).unwrap_err().field, field);
        }
    }
}
