//! `submit` and `run`.

use sluice_proto::v1;

use super::Invocation;
use super::logs::{Tail, follow_to_end};
use super::watch::{Waiting, is_end, wait_for};
use crate::args::{JobFlags, LogsArgs, RunArgs, SubmitArgs};
use crate::draft::{Draft, Workdir, draft};
use crate::error::CliError;
use crate::jobfile::{Loaded, load};
use crate::output::View as _;
use crate::records::{Decoder, Shown};
use crate::reference::leaf;
use crate::request_id::new_request_id;
use crate::upload::{pack_local, upload};
use crate::view::{JobView, cost_line};

/// Whether folders are sent or only measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Submit,
    DryRun,
}

pub(super) async fn submit(at: &Invocation, args: SubmitArgs) -> Result<(), CliError> {
    let mode = if args.dry_run { Mode::DryRun } else { Mode::Submit };
    let job = send(at, &args.job, mode).await?;
    if mode == Mode::DryRun {
        at.console.note("the job is valid; nothing was submitted");
        return at.console.data(&crate::output::document("Job", &JobView::from(&job), document_format(at))?);
    }
    tell_submitted(at, &job);
    let job = match &args.wait.wait {
        None => job,
        Some(condition) => wait_for(at, &job.name, Waiting::after_submit(condition), args.wait.timeout).await?,
    };
    let view = JobView::from(&job);
    // For people the id is the answer: it is what the next command takes.
    if at.console.is_human() { at.console.data(&view.id) } else { at.console.one(&view) }
}

fn document_format(at: &Invocation) -> crate::output::Format {
    if at.console.is_human() { crate::output::Format::Yaml } else { at.console.format }
}

pub(super) async fn run(at: &Invocation, args: RunArgs) -> Result<(), CliError> {
    let job = send(at, &args.job, Mode::Submit).await?;
    tell_submitted(at, &job);
    let id = leaf(&job.name).to_owned();
    let tail = Tail { job: job.name.clone(), rank: args.rank, offset: 0, decoder: Decoder::new(Shown::Text) };
    let follow = async {
        let ended = follow_to_end(at, tail).await?;
        let view = JobView::from(&ended);
        at.console.note(&cost_line(&view));
        Waiting::Success.judge(&ended)
    };
    let limit = args.timeout;
    let bounded = async {
        match limit {
            None => follow.await,
            Some(after) => tokio::time::timeout(after, follow)
                .await
                .unwrap_or_else(|_| Err(CliError::TimedOut { what: format!("the end of {id}"), after })),
        }
    };
    tokio::select! {
        done = bounded => done,
        _ = tokio::signal::ctrl_c() => Err(CliError::Interrupted(format!(
            "no longer followed; {id} goes on. Follow it: sluice logs -f {id}. End it: sluice cancel {id}"
        ))),
    }
}

fn tell_submitted(at: &Invocation, job: &v1::Job) {
    let view = JobView::from(job);
    let why = match (&view.reason, &view.message) {
        (Some(reason), Some(message)) => format!(" ({reason}: {message})"),
        (Some(reason), None) => format!(" ({reason})"),
        _ => String::new(),
    };
    at.console.note(&format!("submitted {} as {}: {}{why}", view.display_name, view.id, view.state));
    if !is_end(job) {
        at.console.note(&format!("next: sluice logs -f {}", leaf(&view.name())));
    }
}

/// Reads the job, uploads its folders and submits it.
async fn send(at: &Invocation, flags: &JobFlags, mode: Mode) -> Result<v1::Job, CliError> {
    let loaded = match flags.file.as_ref().or(flags.positional.as_ref()) {
        Some(path) => load(path)?,
        None => Loaded::default(),
    };
    let draft = draft(loaded, flags)?;
    let parent = at.scope.project()?;
    let request_id = new_request_id()?;
    let (display_name, spec) = with_folders(at, draft, &parent, mode).await?;
    let request = v1::SubmitJobRequest {
        request_id,
        parent,
        display_name,
        spec: Some(spec),
        validate_only: mode == Mode::DryRun,
        wait_for_decision: mode == Mode::Submit,
        manager: String::new(),
    };
    at.api.unary("submit the job", request, async |r| at.api.jobs().submit_job(r).await).await
}

async fn with_folders(
    at: &Invocation,
    draft: Draft,
    parent: &str,
    mode: Mode,
) -> Result<(String, v1::JobSpec), CliError> {
    let Draft { display_name, mut spec, workdir, inputs } = draft;
    let dir = match workdir {
        Workdir::None => None,
        Workdir::Named(dir) => Some(dir),
        Workdir::Current => {
            at.console
                .note("the command begins with ./, so the current folder is uploaded; see --workdir, --no-workdir");
            Some(".".into())
        }
    };
    if let Some(dir) = dir {
        if !dir.is_dir() {
            return Err(CliError::field("workdir", format!("{} is not a folder", dir.display())));
        }
        spec.work_dir = Some(blob(at, "workdir", &dir, parent, mode).await?);
    }
    for (number, (from, path)) in inputs.into_iter().enumerate() {
        let blob = blob(at, &format!("inputs[{number}].from"), &from, parent, mode).await?;
        spec.inputs.push(v1::BlobRef { path, ..blob });
    }
    Ok((display_name, spec))
}

async fn blob(
    at: &Invocation,
    field: &str,
    path: &std::path::Path,
    parent: &str,
    mode: Mode,
) -> Result<v1::BlobRef, CliError> {
    let packed = pack_local(field, path).await?;
    match mode {
        Mode::Submit => upload(at, parent, &packed).await,
        Mode::DryRun => {
            Ok(v1::BlobRef { digest: packed.digest.to_string(), size_bytes: packed.size, path: String::new() })
        }
    }
}

impl Tail {
    /// As `logs` asks for it.
    pub(super) fn of(job: String, args: &LogsArgs) -> Self {
        let shown = if args.records { Shown::Records } else { Shown::Text };
        Self { job, rank: args.rank, offset: args.offset, decoder: Decoder::new(shown) }
    }
}
