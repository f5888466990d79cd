//! The command line: what can be typed, and nothing of what it does.

mod admin;
mod job;
mod rent;
mod serving;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use clap_complete::Shell;

pub use admin::*;
pub use job::*;
pub use rent::*;
pub use serving::*;

use crate::context::{ApiKey, default_data_dir};
use crate::duration::parse_duration;
use crate::error::CliError;
use crate::output::Format;

/// Flags that every user command takes.
#[derive(Debug, Clone, Default, Args)]
pub struct Global {
    /// The controller: https://HOST:PORT [default: the context in the data folder]
    #[arg(
        id = "global_server",
        long = "server",
        global = true,
        env = "SLUICE_SERVER",
        value_name = "URL",
        help_heading = "Connection"
    )]
    pub server: Option<String>,
    /// The CA that signed the controller's certificate, PEM
    #[arg(
        id = "global_ca",
        long = "ca",
        global = true,
        env = "SLUICE_CA",
        value_name = "FILE",
        help_heading = "Connection"
    )]
    pub ca: Option<PathBuf>,
    /// The API key; other users of this host can see it in the process list, so prefer SLUICE_KEY or --key-file
    #[arg(
        id = "global_key",
        long = "key",
        global = true,
        env = "SLUICE_KEY",
        value_name = "KEY",
        hide_env_values = true,
        help_heading = "Connection"
    )]
    pub key: Option<ApiKey>,
    /// A file that holds the API key
    #[arg(
        id = "global_key_file",
        long = "key-file",
        global = true,
        value_name = "FILE",
        conflicts_with = "global_key",
        help_heading = "Connection"
    )]
    pub key_file: Option<PathBuf>,
    /// The tenant that short names mean
    #[arg(
        id = "global_tenant",
        long = "tenant",
        global = true,
        env = "SLUICE_TENANT",
        value_name = "TENANT",
        help_heading = "Connection"
    )]
    pub tenant: Option<String>,
    /// The project that short names mean [default: `default`]
    #[arg(
        id = "global_project",
        long = "project",
        global = true,
        env = "SLUICE_PROJECT",
        value_name = "PROJECT",
        help_heading = "Connection"
    )]
    pub project: Option<String>,
    /// The data folder [default: $SLUICE_DATA, else $XDG_DATA_HOME/sluice, else ~/.local/share/sluice]
    #[arg(
        id = "global_data",
        long = "data",
        global = true,
        env = "SLUICE_DATA",
        value_name = "DIR",
        help_heading = "Connection"
    )]
    pub data: Option<PathBuf>,
    /// The form of what is printed on stdout
    #[arg(id = "global_output", long = "output", short = 'o', global = true, value_enum, default_value_t = Format::Table, value_name = "FORM", help_heading = "Output")]
    pub output: Format,
    /// Print no remarks and no progress on stderr
    #[arg(id = "global_quiet", long = "quiet", short = 'q', global = true, help_heading = "Output")]
    pub quiet: bool,
}

impl Global {
    /// The data folder that is meant.
    ///
    /// # Errors
    /// None is named and there is no home.
    pub fn data_dir(&self) -> Result<PathBuf, CliError> {
        self.data.clone().map_or_else(|| default_data_dir(|name| std::env::var(name).ok()), Ok)
    }
}

/// Waiting for what was asked to be done.
#[derive(Debug, Clone, Default, Args)]
pub struct WaitFlags {
    /// Wait until it is done, or for `end`, or for `state=STATE`
    #[arg(long, value_name = "CONDITION", num_args = 0..=1, require_equals = true, default_missing_value = "done")]
    pub wait: Option<WaitFor>,
    /// Wait at most so long, then end with exit code 8
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "wait")]
    pub timeout: Option<Duration>,
}

/// What `--wait` waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitFor {
    /// What the command is for: an end after submit, SUSPENDED after suspend, and so on.
    Done,
    /// Any end of the job.
    End,
    /// A state, as `JobState` names it without its prefix.
    State(String),
}

impl std::str::FromStr for WaitFor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "done" => Ok(Self::Done),
            "end" | "terminal" => Ok(Self::End),
            _ => {
                let state = text.strip_prefix("state=").unwrap_or(text).to_ascii_uppercase();
                match sluice_proto::v1::JobState::from_str_name(&format!("JOB_STATE_{state}")) {
                    Some(sluice_proto::v1::JobState::Unspecified) | None => {
                        Err(format!("`{text}` is neither done nor end nor state=STATE"))
                    }
                    Some(_) => Ok(Self::State(state)),
                }
            }
        }
    }
}

/// Confirmation beforehand.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Yes {
    /// Do it without asking
    #[arg(long, short)]
    yes: bool,
}

impl Yes {
    /// Whether it was confirmed on the command line.
    #[must_use]
    pub const fn given(self) -> bool {
        self.yes
    }
}

/// The commands of users, tenants and administrators.
#[derive(Debug, Clone, Subcommand)]
pub enum UserCommand {
    /// Submit a job: `sluice submit -- ./train --steps 100`
    Submit(SubmitArgs),
    /// Submit a job and follow its log to the end; exit code 7 if it fails
    Run(RunArgs),
    /// List jobs, newest first
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show objects of a kind
    Get(GetArgs),
    /// Show all that is known of a job
    Describe(JobArg),
    /// Say why a job waits, and the smallest change that would admit it
    Why(JobArg),
    /// Print a job's log
    Logs(LogsArgs),
    /// Rent a slice and work in it at once: `sluice rent 500m --for 20m`
    Rent(RentArgs),
    /// Give a rental back
    Release(ReleaseArgs),
    /// Open a terminal in a rental
    Shell(ShellArgs),
    /// Run a program in a rental: `sluice exec RENTAL -- COMMAND`
    Exec(ExecArgs),
    /// Reach a port in a rental: `sluice port-forward RENTAL 8888`
    PortForward(PortForwardArgs),
    /// Import, list and delete models
    #[command(subcommand)]
    Model(ModelCommand),
    /// Serve a model: `sluice serve MODEL --replicas 0..2 --slice 500m`
    Serve(ServeArgs),
    /// Show, change and end endpoints, and list their requests
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// Copy a job's outputs (`sluice cp JOB DIR`, `sluice cp JOB:PATH DEST`), or files in and out of a rental
    Cp(CpArgs),
    /// End jobs for good
    Cancel(CancelArgs),
    /// Stop a job at a checkpoint and free what it holds
    Suspend(JobWaitArgs),
    /// Queue a suspended job again
    Resume(JobWaitArgs),
    /// Move a running job to another site at a checkpoint
    Migrate(MigrateArgs),
    /// List a job's checkpoints, newest first
    Checkpoints(JobArg),
    /// List, cordon, uncordon and drain nodes
    #[command(subcommand)]
    Nodes(NodesCommand),
    /// List and create sites
    #[command(subcommand)]
    Sites(SitesCommand),
    /// List devices
    Devices(DevicesArgs),
    /// List metered windows of a job, a project or the tenant
    Usage(UsageArgs),
    /// Print the bill of a job
    Receipt(JobArg),
    /// Show and set prices
    #[command(subcommand)]
    Price(PriceCommand),
    /// Book money that came in
    Deposit(DepositArgs),
    /// Show a tenant's balance
    Balance(TenantArg),
    /// Set how far a tenant may overdraw
    CreditLine(CreditLineArgs),
    /// Show and set quotas
    #[command(subcommand)]
    Quota(QuotaCommand),
    /// Take a job, tenant or quota away from what manages it, such as an operator of Kubernetes
    Detach(DetachArgs),
    /// Show and set budgets
    #[command(subcommand)]
    Budget(BudgetCommand),
    /// Create and show tenants
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Create, change and show projects
    #[command(subcommand)]
    Project(ProjectCommand),
    /// Create, list and revoke API keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// Put, list and delete secrets
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Make tokens with which hosts join
    #[command(subcommand)]
    Token(TokenCommand),
    /// Print a completion script for a shell
    Completion(CompletionArgs),
}

/// One job.
#[derive(Debug, Clone, Args)]
pub struct JobArg {
    /// job-…, a display name (the newest of that name), or a full resource name
    #[arg(value_name = "JOB")]
    pub job: String,
}

/// One tenant, by default one's own.
#[derive(Debug, Clone, Args)]
pub struct TenantArg {
    /// A tenant [default: --tenant]
    #[arg(value_name = "TENANT")]
    pub tenant: Option<String>,
}

/// For which shell.
#[derive(Debug, Clone, Args)]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// How much of a list is read.
#[derive(Debug, Clone, Copy, Args)]
pub struct LimitFlag {
    /// Show at most so many
    #[arg(long, value_name = "COUNT", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: u32,
}

impl LimitFlag {
    /// As a length.
    #[must_use]
    pub fn get(self) -> usize {
        usize::try_from(self.limit).unwrap_or(usize::MAX)
    }
}

/// The kinds of `get`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Jobs.
    #[value(alias = "job")]
    Jobs,
    /// Rentals.
    #[value(aliases = ["order", "rentals", "rental"])]
    Orders,
    /// Sites.
    #[value(alias = "site")]
    Sites,
    /// Nodes.
    #[value(alias = "node")]
    Nodes,
    /// Devices.
    #[value(alias = "device")]
    Devices,
    /// Device classes.
    #[value(alias = "class")]
    Classes,
    /// Tenants.
    #[value(alias = "tenant")]
    Tenants,
    /// Projects of a tenant.
    #[value(alias = "project")]
    Projects,
    /// API keys of a tenant.
    #[value(alias = "key")]
    Keys,
    /// Secrets of a project.
    #[value(alias = "secret")]
    Secrets,
    /// Quotas of a tenant.
    #[value(alias = "quota")]
    Quotas,
    /// Budgets of a tenant.
    #[value(alias = "budget")]
    Budgets,
    /// The price book.
    #[value(alias = "price")]
    Prices,
    /// Checkpoints of a job.
    #[value(alias = "checkpoint")]
    Checkpoints,
    /// Events of a job.
    #[value(alias = "event")]
    Events,
    /// Metered windows.
    Usage,
    /// Ledger entries of a tenant.
    #[value(alias = "transfer")]
    Transfers,
}
