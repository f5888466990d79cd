//! Granting the slice, writing down what to run, starting the supervisor.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use sluice_device::{DeviceError, Granted, SliceGrant};
use sluice_types::{Bytes, Nanos};
use tokio::time::{Instant, sleep};

use super::blocking;
use crate::assignment::{Assignment, Model, ModelWork};
use crate::error::{Failure, NodeError};
use crate::home::Home;
use crate::shared::Shared;
use crate::supervisor::{
    ENGINE_SOCKET, INNER, LaunchSpec, MODEL_DESCRIPTOR, SandboxMode, TaskKind, TaskLimits, read_json, spawn, write_json,
};

/// How often a slice that is not free yet is asked for.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a session waits for its client to come back, and its end to be fetched.
const SESSION_PATIENCE: Nanos = Nanos::from_secs(600);
/// How long a connection to an engine does: what a dead gateway had there is in the way of others.
const ENGINE_PATIENCE: Nanos = Nanos::from_secs(10);

/// Starts the task's supervisor. What another agent began and did not finish may be repeated.
pub(super) async fn launch(
    shared: Arc<Shared>,
    home: Home,
    assignment: Arc<Assignment>,
    grant: SliceGrant,
    uid: u32,
) -> Result<Child, Failure> {
    let granted = self::grant(&shared, grant).await?;
    blocking(move || {
        let spec = describe(&shared, &home, &assignment, granted, uid)?;
        write_json(&home.folder.launch(), &spec)?;
        Ok(spawn(&shared.config.program, &home.folder)?)
    })
    .await
}

/// The slice of a task that just ended here may be free only in a moment.
async fn grant(shared: &Shared, grant: SliceGrant) -> Result<Granted, Failure> {
    let end = Instant::now() + shared.config.limits.grant;
    loop {
        let (backend, wanted) = (shared.config.backend.clone(), grant.clone());
        match blocking(move || backend.grant(&wanted)).await {
            Err(DeviceError::DoesNotFit { .. }) if Instant::now() < end => sleep(PAUSE).await,
            other => return other.map_err(Failure::from),
        }
    }
}

fn describe(
    shared: &Shared,
    home: &Home,
    assignment: &Assignment,
    granted: Granted,
    uid: u32,
) -> Result<LaunchSpec, Failure> {
    let (config, limits) = (&shared.config, &shared.config.limits);
    let (model, mut env) = (assignment.model()?, assignment.env()?);
    let mut secrets = BTreeMap::new();
    for (name, variable) in assignment.secret_refs()? {
        let path = keep_secret(shared, home, assignment, &name)?;
        if !variable.is_empty() {
            let seen = match config.sandbox.mode {
                SandboxMode::Enforced => format!("/run/secrets/{name}"),
                SandboxMode::Advisory => path.display().to_string(),
            };
            env.insert(variable, seen);
        }
        secrets.insert(name, path);
    }
    // Which devices are visible is not the user's to choose.
    env.extend(granted.env);
    Ok(LaunchSpec {
        job: assignment.job()?,
        job_name: assignment.job_name()?,
        attempt: assignment.key.attempt,
        generation: assignment.key.generation,
        rank: assignment.rank(),
        world_size: assignment.world_size(),
        rendezvous: assignment.rendezvous(),
        kind: match &model {
            Some(Model { work: ModelWork::Serve { .. }, .. }) => TaskKind::Engine { patience: ENGINE_PATIENCE },
            _ if assignment.is_rental() => TaskKind::Sandbox { patience: SESSION_PATIENCE },
            _ => TaskKind::Command,
        },
        argv: match &model {
            Some(model) => model_program(shared, model, assignment.grant(0)?.memory),
            None => assignment.command()?,
        },
        model: model.is_some().then(|| home.model()),
        env,
        uid,
        gid: uid,
        work_dir: home.work(),
        secrets,
        resume: read_json(&home.resume_note())?,
        checkpoint: assignment.checkpoint()?,
        group: granted.group,
        network: assignment.network()?,
        sandbox: config.sandbox.clone(),
        limits: TaskLimits {
            log: limits.log,
            work: limits.work,
            stage: limits.stage,
            outputs: limits.outputs,
            files: limits.files,
            open_files: limits.open_files,
            run: assignment.run_limit(),
        },
    })
}

/// What works on a model: this very program, inside.
fn model_program(shared: &Shared, model: &Model, memory: Bytes) -> Vec<String> {
    let program = match shared.config.sandbox.mode {
        SandboxMode::Enforced => INNER.to_owned(),
        SandboxMode::Advisory => shared.config.program.display().to_string(),
    };
    let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let (descriptor, digest) = (MODEL_DESCRIPTOR.to_string(), model.digest.to_string());
    match &model.work {
        ModelWork::Serve { context, sequences } => {
            let (context, sequences) = (context.to_string(), sequences.max(&1).to_string());
            let door = format!("unix:{ENGINE_SOCKET}");
            let which = [&program, "engine-worker", "--model-fd", &descriptor, "--digest", &digest];
            let cache = sluice_types::serving::context_memory(memory).get().to_string();
            let how = ["--context", &context, "--cache", &cache, "--sequences", &sequences, "--listen", &door];
            let how = [&how[..], &["--meter", "meter"][..]].concat();
            text(&[&which[..], &how[..]].concat())
        }
        ModelWork::Check { requantize } => {
            // What is said on the standard output becomes a file of the outputs.
            let (before, file) = match requantize.as_str() {
                "" => (String::new(), format!("/proc/self/fd/{descriptor}")),
                _ => {
                    let made = "\"$SLUICE_OUTPUTS/model.gguf\"".to_owned();
                    (format!("\"$0\" engine-requantize /proc/self/fd/{descriptor} {made} && "), made)
                }
            };
            let script = format!("{before}\"$0\" engine-check {file} > \"$SLUICE_OUTPUTS/model.json\"");
            text(&["/bin/sh", "-c", &script, &program])
        }
    }
}

/// Where a task's secrets are while it runs.
pub(super) fn secrets_folder(shared: &Shared, home: &Home, assignment: &Assignment) -> PathBuf {
    let own = || home.secrets();
    shared.config.secrets.as_ref().map_or_else(own, |folder| folder.join(assignment.key.lease.to_string()))
}

fn keep_secret(shared: &Shared, home: &Home, assignment: &Assignment, name: &str) -> Result<PathBuf, Failure> {
    let value = assignment.secrets.0.get(name);
    let value = value.ok_or_else(|| Failure::start(format!("the secret `{name}` did not come with the assignment")))?;
    if !is_file_name(name) {
        return Err(Failure::start("a secret's name is no plain file name"));
    }
    let folder = secrets_folder(shared, home, assignment);
    let write = |path: &Path| {
        std::fs::create_dir_all(&folder)?;
        // A supervisor that was started before may have made it read-only.
        let _none = std::fs::remove_file(path);
        let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
        file.and_then(|mut file| file.write_all(value))
    };
    let path = folder.join(name);
    write(&path).map_err(NodeError::file("writing a secret below", &folder))?;
    Ok(path)
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}
