//! Job specs.

use std::collections::BTreeMap;

use sluice_lifecycle::Refusal;
use sluice_lifecycle::model::{
    BlobRef, Capture, CheckpointPolicy, Completion, JobKind, JobSpec, ModelFile, RetryPolicy, SecretRef, WatchSignal,
};
use sluice_types::{Bytes, CoreMilli, IsolationClass, MilliGpu, Nanos, NetworkMode, Reason, SiteId, TaskResources};

use super::{duration, duration_back, missing, parse};
use crate::v1;

/// Names of sites and back: specs on the wire name them, rows hold ids.
pub trait SiteNames {
    /// The id of a site's name.
    fn id(&self, name: &str) -> Option<SiteId>;
    /// The name of a site.
    fn name(&self, id: SiteId) -> String;
}

const DEFAULT_LOSS_RETRIES: u32 = 100;
const DEFAULT_GRACE: Nanos = Nanos::from_secs(30);
const DEFAULT_MEMORY: Bytes = Bytes::mib(256);

/// A spec from the wire, with defaults filled in. Bounds are checked by the writer.
///
/// # Errors
/// A [`Refusal`] with the field's path.
pub fn job_spec(spec: v1::JobSpec, sites: &impl SiteNames) -> Result<JobSpec, Refusal> {
    let resources = spec.resources.clone().ok_or_else(|| missing("spec.resources"))?;
    let limit = spec.max_run_time.as_ref().map(|span| duration_back("spec.max_run_time", span)).transpose()?;
    let network = network(spec.network())?;
    let kind = match spec.kind() {
        v1::JobKind::Unspecified | v1::JobKind::Batch => JobKind::Batch,
        v1::JobKind::Rental => JobKind::Rental,
        v1::JobKind::Replica => JobKind::Replica,
        v1::JobKind::Import => JobKind::Import,
    };
    let retry = spec.retry.unwrap_or_default();
    let mut ids = Vec::with_capacity(spec.sites.len().min(64));
    for name in spec.sites.iter().take(65) {
        let plain = name.strip_prefix("sites/").unwrap_or(name);
        ids.push(sites.id(plain).ok_or_else(|| Refusal::field("spec.sites", "one of the sites does not exist"))?);
    }
    ids.sort();
    ids.dedup();
    let secrets = spec.secrets.into_iter().map(|secret| {
        let name = parse("spec.secrets.secret", &secret.secret)?;
        Ok(SecretRef { secret: name, path_variable: secret.path_variable })
    });
    Ok(JobSpec {
        kind,
        command: spec.command,
        env: spec.env,
        work_dir: spec.work_dir.map(|blob| blob_ref("spec.work_dir", blob)).transpose()?,
        inputs: spec.inputs.into_iter().map(|blob| blob_ref("spec.inputs", blob)).collect::<Result<_, _>>()?,
        tasks: spec.tasks.max(1),
        resources: task_resources(&resources)?,
        priority: spec.priority,
        max_run_time: limit,
        retry: RetryPolicy { on_failure: retry.on_failure, on_loss: retry.on_loss.unwrap_or(DEFAULT_LOSS_RETRIES) },
        checkpoint: spec.checkpoint.map(checkpoint_policy).transpose()?,
        secrets: secrets.collect::<Result<_, Refusal>>()?,
        network,
        sites: ids,
        labels: spec.labels,
        model: spec.model.map(model_file).transpose()?,
    })
}

fn model_file(model: v1::ModelFile) -> Result<ModelFile, Refusal> {
    Ok(ModelFile {
        digest: parse("spec.model.digest", &model.digest)?,
        size: model.size_bytes,
        context: model.context,
        sequences: model.sequences,
        requantize: model.requantize,
    })
}

fn model_back(model: &ModelFile) -> v1::ModelFile {
    v1::ModelFile {
        digest: model.digest.to_string(),
        size_bytes: model.size,
        context: model.context,
        sequences: model.sequences,
        requantize: model.requantize.clone(),
    }
}

/// What a task gets, from the wire.
///
/// # Errors
/// A [`Refusal`] that names the field.
pub fn task_resources(wanted: &v1::TaskResources) -> Result<TaskResources, Refusal> {
    let memory = if wanted.memory_bytes == 0 { DEFAULT_MEMORY } else { Bytes::new(wanted.memory_bytes) };
    Ok(TaskResources {
        class: parse("spec.resources.device_class", &wanted.device_class)?,
        milli: MilliGpu::new(wanted.milli),
        memory,
        host_cores: CoreMilli::new(wanted.host_core_milli),
        host_memory: Bytes::new(wanted.host_memory_bytes),
    })
}

/// A blob reference from the wire.
///
/// # Errors
/// A [`Refusal`] that names the field.
pub fn blob_ref(field: &str, blob: v1::BlobRef) -> Result<BlobRef, Refusal> {
    let digest = parse(&format!("{field}.digest"), &blob.digest)?;
    Ok(BlobRef { digest, size: blob.size_bytes, path: blob.path })
}

fn blob_back(blob: &BlobRef) -> v1::BlobRef {
    v1::BlobRef { digest: blob.digest.to_string(), size_bytes: blob.size, path: blob.path.clone() }
}

fn checkpoint_policy(policy: v1::CheckpointPolicy) -> Result<CheckpointPolicy, Refusal> {
    use v1::checkpoint_policy::Capture as Wire;
    let every = policy.every.as_ref().map(|span| duration_back("spec.checkpoint.every", span)).transpose()?;
    let capture = match policy.capture.ok_or_else(|| missing("spec.checkpoint.capture"))? {
        Wire::StateProvider(_) => Capture::StateProvider,
        Wire::Directory(directory) => watched(directory)?,
        Wire::Home(_) => Capture::Home,
    };
    Ok(CheckpointPolicy {
        capture,
        every_steps: policy.every_steps,
        every: every.unwrap_or(Nanos::ZERO),
        durable_sites: policy.durable_sites,
    })
}

fn watched(directory: v1::WatchedDirectory) -> Result<Capture, Refusal> {
    use v1::watched_directory::Completion as Wire;
    let undeclared = || Refusal {
        field: Some("spec.checkpoint.directory.completion".to_owned()),
        ..Refusal::new(
            Reason::CheckpointNotDeclared,
            "declare completion_file or renamed_prefix: without it a half-written checkpoint could be taken for a whole one",
        )
    };
    let completion = match directory.completion.ok_or_else(undeclared)? {
        Wire::CompletionFile(name) => Completion::File(name),
        Wire::RenamedPrefix(prefix) => Completion::RenamedPrefix(prefix),
    };
    let signal = match directory.signal.as_str() {
        "" => None,
        "USR1" => Some(WatchSignal::Usr1),
        "USR2" => Some(WatchSignal::Usr2),
        "TERM" => Some(WatchSignal::Term),
        _ => return Err(Refusal::field("spec.checkpoint.directory.signal", "USR1, USR2, TERM or nothing")),
    };
    let grace = directory.grace.as_ref().map(|span| duration_back("spec.checkpoint.directory.grace", span));
    let grace = grace.transpose()?.unwrap_or(DEFAULT_GRACE);
    Ok(Capture::Directory { path: directory.path, completion, signal, grace })
}

/// A spec for the wire.
#[must_use]
pub fn job_spec_back(spec: &JobSpec, sites: &impl SiteNames) -> v1::JobSpec {
    v1::JobSpec {
        command: spec.command.clone(),
        env: spec.env.clone(),
        work_dir: spec.work_dir.as_ref().map(blob_back),
        inputs: spec.inputs.iter().map(blob_back).collect(),
        tasks: spec.tasks,
        resources: Some(resources_back(&spec.resources)),
        priority: spec.priority,
        max_run_time: spec.max_run_time.map(duration),
        retry: Some(v1::RetryPolicy { on_failure: spec.retry.on_failure, on_loss: Some(spec.retry.on_loss) }),
        checkpoint: spec.checkpoint.as_ref().map(checkpoint_back),
        secrets: spec.secrets.iter().map(secret_back).collect(),
        network: network_back(spec.network).into(),
        sites: spec.sites.iter().map(|site| format!("sites/{}", sites.name(*site))).collect(),
        labels: BTreeMap::clone(&spec.labels),
        // Batch is what an absent kind means, so it stays absent.
        kind: match spec.kind {
            JobKind::Batch => v1::JobKind::Unspecified.into(),
            JobKind::Rental => v1::JobKind::Rental.into(),
            JobKind::Replica => v1::JobKind::Replica.into(),
            JobKind::Import => v1::JobKind::Import.into(),
        },
        model: spec.model.as_ref().map(model_back),
    }
}

/// What a task gets, for the wire.
#[must_use]
pub fn resources_back(resources: &TaskResources) -> v1::TaskResources {
    v1::TaskResources {
        device_class: resources.class.to_string(),
        milli: resources.milli.get(),
        memory_bytes: resources.memory.get(),
        host_core_milli: resources.host_cores.get(),
        host_memory_bytes: resources.host_memory.get(),
    }
}

fn secret_back(secret: &SecretRef) -> v1::SecretRef {
    v1::SecretRef { secret: secret.secret.to_string(), path_variable: secret.path_variable.clone() }
}

fn checkpoint_back(policy: &CheckpointPolicy) -> v1::CheckpointPolicy {
    use v1::checkpoint_policy::Capture as Wire;
    let capture = match &policy.capture {
        Capture::StateProvider => Wire::StateProvider(v1::StateProvider {}),
        Capture::Directory { path, completion, signal, grace } => Wire::Directory(v1::WatchedDirectory {
            path: path.clone(),
            completion: Some(match completion {
                Completion::File(name) => v1::watched_directory::Completion::CompletionFile(name.clone()),
                Completion::RenamedPrefix(name) => v1::watched_directory::Completion::RenamedPrefix(name.clone()),
            }),
            signal: match signal {
                None => String::new(),
                Some(WatchSignal::Usr1) => "USR1".to_owned(),
                Some(WatchSignal::Usr2) => "USR2".to_owned(),
                Some(WatchSignal::Term) => "TERM".to_owned(),
            },
            grace: Some(duration(*grace)),
        }),
        Capture::Home => Wire::Home(v1::HomeFolder {}),
    };
    v1::CheckpointPolicy {
        capture: Some(capture),
        every_steps: policy.every_steps,
        every: (policy.every != Nanos::ZERO).then(|| duration(policy.every)),
        durable_sites: policy.durable_sites,
    }
}

/// A network mode from the wire.
///
/// # Errors
/// None today: unknown numbers read as unspecified, which is loopback.
pub fn network(mode: v1::NetworkMode) -> Result<NetworkMode, Refusal> {
    Ok(match mode {
        v1::NetworkMode::Unspecified | v1::NetworkMode::Loopback => NetworkMode::Loopback,
        v1::NetworkMode::Gang => NetworkMode::Gang,
        v1::NetworkMode::Egress => NetworkMode::Egress,
    })
}

/// A network mode for the wire.
#[must_use]
pub const fn network_back(mode: NetworkMode) -> v1::NetworkMode {
    match mode {
        NetworkMode::Loopback => v1::NetworkMode::Loopback,
        NetworkMode::Gang => v1::NetworkMode::Gang,
        NetworkMode::Egress => v1::NetworkMode::Egress,
    }
}

/// An isolation class from the wire; `None` = any.
#[must_use]
pub const fn isolation(class: v1::IsolationClass) -> Option<IsolationClass> {
    match class {
        v1::IsolationClass::Unspecified => None,
        v1::IsolationClass::Exclusive => Some(IsolationClass::Exclusive),
        v1::IsolationClass::Mig => Some(IsolationClass::Mig),
        v1::IsolationClass::Mps => Some(IsolationClass::Mps),
        v1::IsolationClass::Windowed => Some(IsolationClass::Windowed),
        v1::IsolationClass::Cpu => Some(IsolationClass::Cpu),
    }
}

/// An isolation class for the wire.
#[must_use]
pub const fn isolation_back(class: Option<IsolationClass>) -> v1::IsolationClass {
    match class {
        None => v1::IsolationClass::Unspecified,
        Some(IsolationClass::Exclusive) => v1::IsolationClass::Exclusive,
        Some(IsolationClass::Mig) => v1::IsolationClass::Mig,
        Some(IsolationClass::Mps) => v1::IsolationClass::Mps,
        Some(IsolationClass::Windowed) => v1::IsolationClass::Windowed,
        Some(IsolationClass::Cpu) => v1::IsolationClass::Cpu,
    }
}
