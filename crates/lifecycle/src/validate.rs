//! Bounds and forms of what users send, independent of any row.

use sluice_types::{Bytes, CoreMilli, MilliGpu, Nanos};

use crate::command::Refusal;
use crate::model::{BlobRef, Capture, CheckpointPolicy, Completion, JobKind, JobSpec};

/// Tasks of one job.
pub const MAX_TASKS: u32 = 1024;
/// Arguments of a command, and bytes of all together.
pub const MAX_ARGUMENTS: usize = 1024;
/// Bytes of all arguments together.
pub const MAX_COMMAND_BYTES: usize = 64 << 10;
/// Entries of an environment.
pub const MAX_ENV: usize = 256;
/// Bytes of an environment.
pub const MAX_ENV_BYTES: usize = 32 << 10;
/// Labels of a job.
pub const MAX_LABELS: usize = 32;
/// Data inputs and secrets of a job.
pub const MAX_REFERENCES: usize = 64;
/// Sites that a job may name.
pub const MAX_SITES: usize = 64;

/// Checks a spec.
///
/// # Errors
/// A [`Refusal`] with the field's path below the request.
pub fn spec(spec: &JobSpec) -> Result<(), Refusal> {
    command(spec)?;
    model(spec)?;
    resources(spec)?;
    if spec.inputs.len() > MAX_REFERENCES {
        return Err(Refusal::field("spec.inputs", format!("at most {MAX_REFERENCES} inputs")));
    }
    spec.work_dir.iter().try_for_each(|blob| blob_ref("spec.work_dir", blob))?;
    spec.inputs.iter().try_for_each(|blob| blob_ref("spec.inputs", blob))?;
    if spec.secrets.len() > MAX_REFERENCES {
        return Err(Refusal::field("spec.secrets", format!("at most {MAX_REFERENCES} secrets")));
    }
    let variable = |name: &str| name.is_empty() || (is_variable(name) && !name.starts_with("SLUICE_"));
    if !spec.secrets.iter().all(|secret| variable(&secret.path_variable)) {
        return Err(Refusal::field("spec.secrets.path_variable", "a variable is letters, digits and _"));
    }
    if spec.sites.len() > MAX_SITES {
        return Err(Refusal::field("spec.sites", format!("at most {MAX_SITES} sites")));
    }
    let Some(policy) = &spec.checkpoint else { return Ok(()) };
    if (policy.capture == Capture::Home) != (spec.kind == JobKind::Rental) {
        let message = "the home folder is what a rental keeps, and nothing else does";
        return Err(Refusal::field("spec.checkpoint.capture", message));
    }
    if spec.tasks > 1 && policy.capture == Capture::StateProvider && policy.every != Nanos::ZERO {
        let message = "the tasks of a gang have no common clock, and parts of different steps are no checkpoint: \
                       set every_steps instead";
        return Err(Refusal::field("spec.checkpoint.every", message));
    }
    checkpoint(policy)
}

fn command(spec: &JobSpec) -> Result<(), Refusal> {
    match spec.kind {
        JobKind::Batch if spec.command.first().is_none_or(String::is_empty) => {
            return Err(Refusal::field("spec.command", "a job has a program to run"));
        }
        JobKind::Rental if !spec.command.is_empty() => {
            return Err(Refusal::field("spec.command", "a rental has none: its sessions run programs"));
        }
        JobKind::Replica | JobKind::Import if !spec.command.is_empty() => {
            return Err(Refusal::field(
                "spec.command",
                "a replica or an import has none: what it runs is the system's",
            ));
        }
        JobKind::Batch | JobKind::Rental | JobKind::Replica | JobKind::Import => {}
    }
    let bytes: usize = spec.command.iter().map(String::len).sum();
    if spec.command.len() > MAX_ARGUMENTS || bytes > MAX_COMMAND_BYTES {
        let message = format!("at most {MAX_ARGUMENTS} arguments of together {MAX_COMMAND_BYTES} bytes");
        return Err(Refusal::field("spec.command", message));
    }
    if spec.command.iter().any(|argument| argument.contains('\0')) {
        return Err(Refusal::field("spec.command", "an argument has no NUL byte"));
    }
    let bytes: usize = spec.env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if spec.env.len() > MAX_ENV || bytes > MAX_ENV_BYTES {
        let message = format!("at most {MAX_ENV} variables of together {MAX_ENV_BYTES} bytes");
        return Err(Refusal::field("spec.env", message));
    }
    if spec.env.iter().any(|(name, value)| !is_variable(name) || value.contains('\0')) {
        return Err(Refusal::field("spec.env", "a variable is letters, digits and _, its value has no NUL byte"));
    }
    if spec.env.keys().any(|name| name.starts_with("SLUICE_")) {
        return Err(Refusal::field("spec.env", "variables that begin with SLUICE_ are set by the system"));
    }
    let fits = |text: &String| text.len() <= 63 && !text.chars().any(char::is_control);
    if spec.labels.len() > MAX_LABELS || !spec.labels.iter().all(|(key, value)| fits(key) && fits(value)) {
        return Err(Refusal::field("spec.labels", format!("at most {MAX_LABELS} labels of 63 bytes")));
    }
    Ok(())
}

/// Sequences that one replica may have open.
pub const MAX_SEQUENCES: u32 = 256;
/// Tokens of context of one sequence.
pub const MAX_CONTEXT: u32 = 1 << 20;
/// What a model can be re-quantised to.
pub const QUANTIZATIONS: [&str; 1] = ["Q4_0"];

fn model(spec: &JobSpec) -> Result<(), Refusal> {
    let Some(model) = &spec.model else {
        if spec.kind.uses_model() {
            return Err(Refusal::field("spec.model", "a replica or an import has a model's file"));
        }
        return Ok(());
    };
    let alone = spec.tasks == 1 && spec.work_dir.is_none() && spec.inputs.is_empty() && spec.checkpoint.is_none();
    if !spec.kind.uses_model() || !alone {
        let message = "a model's file is given to replicas and imports, which have one task and nothing else";
        return Err(Refusal::field("spec.model", message));
    }
    if model.context > MAX_CONTEXT {
        return Err(Refusal::field("spec.model.context", format!("at most {MAX_CONTEXT} tokens")));
    }
    let sequences = if spec.kind == JobKind::Replica { 1..=MAX_SEQUENCES } else { 0..=0 };
    if !sequences.contains(&model.sequences) {
        return Err(Refusal::field("spec.model.sequences", format!("a replica has 1 to {MAX_SEQUENCES} sequences")));
    }
    let known = model.requantize.is_empty() || QUANTIZATIONS.contains(&model.requantize.as_str());
    if !known || (spec.kind == JobKind::Replica && !model.requantize.is_empty()) {
        let message = format!("an import makes {} of a model, or nothing", QUANTIZATIONS.join(", "));
        return Err(Refusal::field("spec.model.requantize", message));
    }
    Ok(())
}

/// The least device memory that a task may ask for.
pub const LEAST_MEMORY: Bytes = Bytes::mib(1);

fn resources(spec: &JobSpec) -> Result<(), Refusal> {
    if !(1..=MAX_TASKS).contains(&spec.tasks) {
        return Err(Refusal::field("spec.tasks", format!("a job has 1 to {MAX_TASKS} tasks")));
    }
    let wanted = &spec.resources;
    if wanted.milli == MilliGpu::ZERO || wanted.milli > MilliGpu::WHOLE {
        return Err(Refusal::field("spec.resources.milli", "a slice is 1 to 1000 thousandths of a device"));
    }
    let memory = LEAST_MEMORY..=Bytes::new(1 << 50);
    if !memory.contains(&wanted.memory) {
        return Err(Refusal::field("spec.resources.memory_bytes", "a slice has 1MiB to 1024TiB of memory"));
    }
    if wanted.host_cores > CoreMilli::new(1_000_000) {
        return Err(Refusal::field("spec.resources.host_core_milli", "a task has at most 1000 host cores"));
    }
    if wanted.host_memory > Bytes::new(1 << 50) {
        return Err(Refusal::field("spec.resources.host_memory_bytes", "a task has at most 1024TiB of host memory"));
    }
    if !(-100..=100).contains(&spec.priority) {
        return Err(Refusal::field("spec.priority", "a priority is -100 to 100"));
    }
    let year = Nanos::from_secs(366 * 24 * 3600);
    if spec.max_run_time.is_some_and(|limit| limit < Nanos::from_secs(1) || limit > year) {
        return Err(Refusal::field("spec.max_run_time", "a run limit is 1 second to 366 days"));
    }
    if spec.retry.on_failure > 1000 || spec.retry.on_loss > 100_000 {
        return Err(Refusal::field("spec.retry", "at most 1000 retries on failure and 100000 on loss"));
    }
    Ok(())
}

fn checkpoint(policy: &CheckpointPolicy) -> Result<(), Refusal> {
    if policy.every != Nanos::ZERO && policy.every < Nanos::from_millis(100) {
        return Err(Refusal::field("spec.checkpoint.every", "an interval is at least 0.1 seconds"));
    }
    if policy.durable_sites > 64 {
        return Err(Refusal::field("spec.checkpoint.durable_sites", "at most 64 sites"));
    }
    let Capture::Directory { path, completion, grace, .. } = &policy.capture else { return Ok(()) };
    if path.is_empty() || !is_inner_path(path) {
        let message = "a path below the working directory, without `..`";
        return Err(Refusal::field("spec.checkpoint.directory.path", message));
    }
    let (Completion::File(name) | Completion::RenamedPrefix(name)) = completion;
    if name.is_empty() || name.len() > 255 || name.contains(['/', '\0']) || name == "." || name == ".." {
        return Err(Refusal::field("spec.checkpoint.directory.completion", "one plain file name"));
    }
    if *grace > Nanos::from_secs(3600) {
        return Err(Refusal::field("spec.checkpoint.directory.grace", "at most one hour"));
    }
    Ok(())
}

fn blob_ref(field: &str, blob: &BlobRef) -> Result<(), Refusal> {
    if blob.path.is_empty() || is_inner_path(&blob.path) {
        return Ok(());
    }
    Err(Refusal::field(&format!("{field}.path"), "a path below the working directory, without `..`"))
}

/// A relative path of at most 4096 bytes that stays below where it starts.
#[must_use]
pub fn is_inner_path(path: &str) -> bool {
    path.len() <= 4096
        && !path.starts_with('/')
        && !path.contains('\0')
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

fn is_variable(name: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    name.bytes().next().is_some_and(letter) && name.bytes().all(|b| letter(b) || b.is_ascii_digit())
}
