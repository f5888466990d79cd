//! Everything a task needs before its start: working directory, inputs, the checkpoint to resume from.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sluice_types::Reason;
use sluice_vault::Materialised;
use tokio::time::{Instant, sleep, timeout_at};

use super::blocking;
use crate::assignment::Assignment;
use crate::depot::{Depot, DepotError, told};
use crate::error::{Failure, in_one_line};
use crate::home::Home;
use crate::shared::Shared;
use crate::supervisor::{
    CheckpointMode, RestoreBounds, RestoreError, Resume, ResumeEntry, SandboxMode, remove_tree, restore, write_json,
};

const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Fetches and unpacks, again and again until the deadline.
pub(super) async fn prepare(shared: &Shared, home: &Home, assignment: &Assignment, uid: u32) -> Result<(), Failure> {
    // What can never work is found before anything is fetched.
    assignment.job()?;
    assignment.checkpoint()?;
    assignment.work_dir()?;
    assignment.inputs()?;
    assignment.resume()?;
    assignment.model()?;
    let end = Instant::now() + shared.config.limits.prepare;
    let mut pause = Duration::from_millis(250);
    let mut last = "the address of the site's vault is not known yet".to_owned();
    loop {
        let tried = timeout_at(end, once(shared, home, assignment, uid)).await;
        match tried {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Trouble::Final(failure))) => return Err(failure),
            Ok(Err(Trouble::Again(message))) => last = message,
            Err(_) => {
                return Err(Failure { reason: Reason::DataUnreachable, message: format!("not ready in time: {last}") });
            }
        }
        tracing::info!(lease = %assignment.key.lease, error = last, "not ready yet");
        sleep(pause.min(end.saturating_duration_since(Instant::now()))).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

enum Trouble {
    Again(String),
    Final(Failure),
}

impl From<DepotError> for Trouble {
    fn from(error: DepotError) -> Self {
        if !error.is_final() {
            return Self::Again(told(&error));
        }
        let reason = error.reason().unwrap_or(Reason::StartFailed);
        Self::Final(Failure { reason, message: told(&error) })
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Final(failure)
    }
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        Self::Again(error.to_string())
    }
}

async fn once(shared: &Shared, home: &Home, assignment: &Assignment, uid: u32) -> Result<(), Trouble> {
    let (work, resume, note) = (home.work(), home.resume(), home.resume_note());
    blocking(move || {
        remove_tree(&work)?;
        remove_tree(&resume)?;
        std::fs::create_dir_all(&work)?;
        match std::fs::remove_file(&note) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    })
    .await?;
    let (work_dir, inputs) = (assignment.work_dir()?, assignment.inputs()?);
    let checkpoint = assignment.resume()?;
    let (work, scratch) = (home.work(), home.scratch());
    let owner = (shared.config.sandbox.mode == SandboxMode::Enforced).then_some(uid);
    if work_dir.is_some() || !inputs.is_empty() || checkpoint.is_some() {
        let depot = depot(shared).await;
        if let Some(digest) = work_dir {
            depot.fetch(digest, &work, "", &scratch).await?;
        }
        // The folder is the task's, what was there before the inputs as well; inputs stay ours, so it can only read them.
        give(&work, owner).await?;
        for (digest, path) in inputs {
            depot.fetch(digest, &work, &path, &scratch).await?;
        }
        if let Some((manifest, step)) = checkpoint {
            let found = depot.fetch_checkpoint(manifest, assignment.rank(), &home.resume()).await?;
            match assignment.checkpoint()?.mode {
                CheckpointMode::Home => restore_home(shared, home, step, found, owner).await?,
                _ => note_resume(home, step, found, owner).await?,
            }
        }
    }
    if let Some(model) = assignment.model()? {
        shared.models.give(&depot(shared).await, model.digest, model.size, &home.model()).await?;
    }
    let (work, owner) = (home.work(), owner.unwrap_or(0));
    blocking(move || own_folders(&work, owner)).await?;
    Ok(())
}

/// Waits until the controller has told where the site's vault is.
async fn depot(shared: &Shared) -> Arc<dyn Depot> {
    let mut known = shared.depot.subscribe();
    let found = known.wait_for(Option::is_some).await;
    let depot = found.ok().and_then(|depot| depot.clone());
    match depot {
        Some(depot) => depot,
        // The sender lives as long as the agent.
        None => std::future::pending().await,
    }
}

/// Makes the home folder as it was kept. What is left to resume from is the number of the capture.
async fn restore_home(
    shared: &Shared,
    home: &Home,
    step: u64,
    found: Materialised,
    owner: Option<u32>,
) -> Result<(), Trouble> {
    check_step(&found, step)?;
    let limits = &shared.config.limits;
    let bounds = RestoreBounds { bytes: limits.work.get(), files: limits.files };
    let files: BTreeMap<String, PathBuf> =
        found.placed.into_iter().filter(|placed| placed.entry.is_file()).map(|it| (it.entry.name, it.file)).collect();
    let (work, dir) = (home.work(), home.resume());
    let made = blocking(move || {
        restore(&files, &work, owner, bounds)?;
        remove_tree(&dir)?;
        std::fs::create_dir(&dir)?;
        Ok::<_, RestoreError>(())
    });
    made.await.map_err(|error| match &error {
        RestoreError::TooLarge { .. } => {
            Trouble::Final(Failure { reason: Reason::TooLarge, message: in_one_line(&error) })
        }
        error if error.is_final() => Trouble::Final(Failure::start(in_one_line(error))),
        error => Trouble::Again(in_one_line(error)),
    })?;
    let resume = Resume { step, cursor: serde_json::Value::Null, dir: home.resume(), entries: Vec::new() };
    let note = home.resume_note();
    blocking(move || write_json(&note, &resume)).await.map_err(|error| Trouble::Again(error.in_one_line()))
}

fn check_step(found: &Materialised, step: u64) -> Result<(), Trouble> {
    if step == found.manifest.step {
        return Ok(());
    }
    let message = format!("the checkpoint is of step {}, not {step}", found.manifest.step);
    Err(Trouble::Final(Failure::start(message)))
}

async fn note_resume(home: &Home, step: u64, found: Materialised, owner: Option<u32>) -> Result<(), Trouble> {
    check_step(&found, step)?;
    let dir = home.resume();
    let entries = found.placed.into_iter().map(|placed| ResumeEntry {
        name: placed.entry.name,
        dtype: placed.entry.dtype,
        shape: placed.entry.shape,
        file: placed.file,
        offset: placed.offset,
        length: placed.entry.length,
    });
    let resume = Resume { step, cursor: found.manifest.cursor, dir: dir.clone(), entries: entries.collect() };
    give(&dir, owner).await?;
    let note = home.resume_note();
    blocking(move || write_json(&note, &resume)).await.map_err(|error| Trouble::Again(error.in_one_line()))
}

/// Gives a folder and everything in it to the task's user.
async fn give(folder: &Path, owner: Option<u32>) -> std::io::Result<()> {
    let Some(uid) = owner else { return Ok(()) };
    let folder = folder.to_owned();
    blocking(move || walk(&folder, &mut |path| lchown(path, Some(uid), Some(uid)))).await
}

/// Folders below the working directory are the task's, so that it can write beside its inputs; what inputs brought as
/// files is readable for all.
fn own_folders(work: &Path, uid: u32) -> std::io::Result<()> {
    walk(work, &mut |path| {
        let data = std::fs::symlink_metadata(path)?;
        if data.is_dir() && uid != 0 {
            lchown(path, Some(uid), Some(uid))?;
        }
        if data.is_file() && uid != 0 && data.uid() != uid {
            let mode = 0o444 | (data.permissions().mode() & 0o111);
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    })
}

/// Visits a folder and everything below it, following no link. Nobody else writes there yet.
fn walk(folder: &Path, visit: &mut impl FnMut(&Path) -> std::io::Result<()>) -> std::io::Result<()> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        visit(&folder)?;
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                visit(&entry.path())?;
            }
        }
    }
    Ok(())
}
