//! Arguments of the commands about jobs.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use sluice_types::{Bytes, CoreMilli, MilliGpu};

use super::{Kind, LimitFlag, WaitFlags, Yes};
use crate::duration::parse_duration;

/// What to run: a job file, flags that win over it, or both.
#[derive(Debug, Clone, Default, Args)]
pub struct JobFlags {
    /// A job file (YAML), `-` for stdin
    #[arg(value_name = "FILE", conflicts_with = "file")]
    pub positional: Option<PathBuf>,
    /// The same
    #[arg(long, short, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// A display name
    #[arg(long, value_name = "NAME", help_heading = "Job")]
    pub name: Option<String>,
    /// Share of one device for each task, for example 500m
    #[arg(long, short, value_name = "SHARE", help_heading = "Resources")]
    pub share: Option<MilliGpu>,
    /// Device class
    #[arg(long, value_name = "CLASS", help_heading = "Resources")]
    pub class: Option<String>,
    /// Device memory for each task, for example 512MiB
    #[arg(long, value_name = "SIZE", help_heading = "Resources")]
    pub memory: Option<Bytes>,
    /// Host cores for each task, for example 100m
    #[arg(long, value_name = "CORES", help_heading = "Resources")]
    pub host_cores: Option<CoreMilli>,
    /// Host memory for each task
    #[arg(long, value_name = "SIZE", help_heading = "Resources")]
    pub host_memory: Option<Bytes>,
    /// Tasks, started all or none
    #[arg(long, value_name = "COUNT", help_heading = "Resources")]
    pub tasks: Option<u32>,
    /// A site it may run at; can be repeated
    #[arg(long, value_name = "SITE", help_heading = "Resources")]
    pub site: Vec<String>,
    /// An environment variable; can be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair, help_heading = "Job")]
    pub env: Vec<(String, String)>,
    /// The folder that is uploaded and that the job starts in
    #[arg(long, value_name = "DIR", help_heading = "Job")]
    pub workdir: Option<PathBuf>,
    /// Upload no folder, even for a command that begins with ./
    #[arg(long, conflicts_with = "workdir", help_heading = "Job")]
    pub no_workdir: bool,
    /// End the job after so much run time
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Policy")]
    pub max_run_time: Option<Duration>,
    /// Checkpoint after so many steps
    #[arg(long, value_name = "STEPS", help_heading = "Policy")]
    pub checkpoint_every_steps: Option<u64>,
    /// Checkpoint after so much time
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Policy")]
    pub checkpoint_every: Option<Duration>,
    /// -100 to 100; higher goes first
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true, help_heading = "Policy")]
    pub priority: Option<i32>,
    /// A label; can be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair, help_heading = "Job")]
    pub label: Vec<(String, String)>,
    /// A secret to read as /run/secrets/NAME, and a variable that holds this path; can be repeated
    #[arg(long, value_name = "NAME[:VARIABLE]", help_heading = "Job")]
    pub secret: Vec<String>,
    /// Start it again so often after it failed by itself
    #[arg(long, value_name = "COUNT", help_heading = "Policy")]
    pub retry_on_failure: Option<u32>,
    /// Start it again so often after it lost its node or site
    #[arg(long, value_name = "COUNT", help_heading = "Policy")]
    pub retry_on_loss: Option<u32>,
    /// What it may reach: loopback, gang or egress
    #[arg(long, value_name = "MODE", help_heading = "Policy")]
    pub network: Option<String>,
    /// Program and arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not NAME=VALUE")),
    }
}

/// Arguments of `submit`.
#[derive(Debug, Clone, Args)]
pub struct SubmitArgs {
    /// The job.
    #[command(flatten)]
    pub job: JobFlags,
    /// Let the server check it and show it with its defaults; nothing is uploaded or submitted
    #[arg(long)]
    pub dry_run: bool,
    /// Waiting.
    #[command(flatten)]
    pub wait: WaitFlags,
}

/// Arguments of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// The job.
    #[command(flatten)]
    pub job: JobFlags,
    /// Follow the log of this task
    #[arg(long, value_name = "RANK", default_value_t = 0)]
    pub rank: u32,
    /// Give up following after so long; the job goes on
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
}

/// Which jobs.
#[derive(Debug, Clone, Default, Args)]
pub struct JobFilter {
    /// Only in this state
    #[arg(long, value_name = "STATE")]
    pub state: Option<String>,
    /// Only of this display name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Only with this label; can be repeated
    #[arg(long, short = 'l', value_name = "KEY=VALUE", value_parser = pair)]
    pub label: Vec<(String, String)>,
    /// Of all projects of the tenant
    #[arg(long, short = 'a')]
    pub all_projects: bool,
    /// Of all tenants that you may see
    #[arg(long, short = 'A', conflicts_with = "all_projects")]
    pub all_tenants: bool,
}

/// Arguments of `list`.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Which jobs.
    #[command(flatten)]
    pub filter: JobFilter,
    /// How many.
    #[command(flatten)]
    pub limit: LimitFlag,
    /// Go on printing every change
    #[arg(long, short)]
    pub watch: bool,
}

/// Arguments of `get`.
#[derive(Debug, Clone, Args)]
pub struct GetArgs {
    /// What
    #[arg(value_enum, value_name = "KIND")]
    pub kind: Kind,
    /// Which: jobs to read; the job of checkpoints, events and usage; the tenant or site of the others
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Which jobs.
    #[command(flatten)]
    pub filter: JobFilter,
    /// How many.
    #[command(flatten)]
    pub limit: LimitFlag,
    /// Go on printing every change; for jobs
    #[arg(long, short)]
    pub watch: bool,
}

/// Arguments of `logs`.
#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// The job
    #[arg(value_name = "JOB")]
    pub job: String,
    /// Go on until the job has ended
    #[arg(long, short)]
    pub follow: bool,
    /// Which task
    #[arg(long, value_name = "RANK", default_value_t = 0)]
    pub rank: u32,
    /// Skip so many bytes of the log
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub offset: u64,
    /// Print each record as it is stored: time, stream, whole line or part, text
    #[arg(long)]
    pub records: bool,
}

/// Arguments of `cp`.
#[derive(Debug, Clone, Args)]
pub struct CpArgs {
    /// JOB for all outputs, JOB:PATH for one file or folder of them; RENTAL:PATH; a file or folder of this host
    #[arg(value_name = "FROM")]
    pub from: String,
    /// Where to: a folder for all outputs; a new name, or a folder that exists, for one path; RENTAL:DIR
    #[arg(value_name = "DEST")]
    pub to: String,
    /// Which task or sandbox
    #[arg(long, value_name = "RANK", default_value_t = 0)]
    pub rank: u32,
}

/// Arguments of `cancel`.
#[derive(Debug, Clone, Args)]
pub struct CancelArgs {
    /// The jobs
    #[arg(value_name = "JOB", required = true, num_args = 1..=1000)]
    pub jobs: Vec<String>,
    /// Confirmation.
    #[command(flatten)]
    pub yes: Yes,
    /// Waiting.
    #[command(flatten)]
    pub wait: WaitFlags,
}

/// A job to act on and wait for.
#[derive(Debug, Clone, Args)]
pub struct JobWaitArgs {
    /// The job
    #[arg(value_name = "JOB")]
    pub job: String,
    /// Waiting.
    #[command(flatten)]
    pub wait: WaitFlags,
}

/// Arguments of `migrate`.
#[derive(Debug, Clone, Args)]
pub struct MigrateArgs {
    /// The job
    #[arg(value_name = "JOB")]
    pub job: String,
    /// The site it moves to
    #[arg(long, value_name = "SITE")]
    pub to: String,
    /// Waiting.
    #[command(flatten)]
    pub wait: WaitFlags,
}
