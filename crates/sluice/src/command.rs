//! The command line of the whole binary.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sluice_cli::{Global, UserCommand, parse_duration};
use sluice_types::Nanos;

/// Slices GPUs into metered fractions, runs jobs on them over many sites, and bills to the last unit.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, about)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) role: Role,
}

// Parsed once per process: its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Subcommand)]
pub(crate) enum Role {
    /// Starts a whole system on this machine: a controller, and sites with vaults and nodes.
    Up(UpArgs),
    /// Runs a controller.
    Controller(ControllerArgs),
    /// Runs the vault of a site.
    Vault(VaultArgs),
    /// Runs a node agent; `node join TOKEN` makes this machine a node of a site first.
    Node(NodeRole),
    /// Carries Tenants, GpuQuotas and GpuJobs of a Kubernetes cluster (KUBECONFIG, or the Pod's service account) to the
    /// controller, with the key of a platform admin.
    Operator(OperatorArgs),
    /// Supervises one task (started by a node agent).
    #[command(hide = true)]
    Supervise {
        /// The task's folder.
        folder: PathBuf,
    },
    /// Enters a task's control groups and sandbox (started by its supervisor).
    #[command(hide = true)]
    Enter {
        /// The task's folder.
        folder: PathBuf,
    },
    /// Becomes a task, inside its sandbox.
    #[command(hide = true)]
    EnterTask {
        /// What to become.
        file: PathBuf,
    },
    /// Serves a model to the system's gateways (started by a node agent).
    #[command(hide = true)]
    EngineWorker(EngineWorkerArgs),
    /// Says what a model's file is, as JSON.
    #[command(hide = true)]
    EngineCheck {
        /// The GGUF file.
        model: PathBuf,
    },
    /// Writes a model anew as Q4_0: smaller and faster here, and lossy.
    #[command(hide = true)]
    EngineRequantize {
        /// The GGUF file.
        from: PathBuf,
        /// The file to write.
        to: PathBuf,
    },
    #[command(flatten)]
    User(UserCommand),
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

/// Times of the control plane.
#[derive(Debug, Clone, Args)]
pub(crate) struct TimeArgs {
    /// Length of a metering window.
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub(crate) window: Duration,
    /// A node silent for longer is lost, and its jobs resume elsewhere.
    #[arg(long, default_value = "15s", value_parser = duration, value_name = "DURATION")]
    pub(crate) loss_timeout: Duration,
}

impl TimeArgs {
    pub(crate) fn settings(&self) -> sluice_lifecycle::Settings {
        let nanos = |span: Duration| Nanos::new(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX));
        sluice_lifecycle::Settings {
            window: nanos(self.window),
            loss_timeout: nanos(self.loss_timeout),
            ..sluice_lifecycle::Settings::default()
        }
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct UpArgs {
    /// How many sites, named a, b, c …; 0 = a controller that hosts join (`sluice node join TOKEN`).
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=26))]
    pub(crate) sites: u16,
    /// How many nodes per site.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) nodes: u16,
    /// Use this PostgreSQL database instead of SQLite.
    #[arg(long, value_name = "URL")]
    pub(crate) postgres: Option<String>,
    /// Where the controller listens.
    #[arg(long, default_value = "127.0.0.1:7443")]
    pub(crate) listen: SocketAddr,
    /// Where models are served over OpenAI's HTTP interface.
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub(crate) gateway: SocketAddr,
    /// Thousandths of every core kept for the system itself.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=900))]
    pub(crate) system_milli: u32,
    /// Run jobs although slices cannot be enforced here; every bill says so.
    #[arg(long)]
    pub(crate) advisory: bool,
    /// Leave processes that end as they are instead of starting them again.
    #[arg(long)]
    pub(crate) no_restart: bool,
    #[command(flatten)]
    pub(crate) times: TimeArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ControllerArgs {
    /// Folder of keys, uploads, logs and, unless --database says otherwise, the database.
    #[arg(long)]
    pub(crate) folder: PathBuf,
    /// sqlite:PATH or postgres://USER@HOST/NAME.
    #[arg(long, value_name = "URL")]
    pub(crate) database: Option<String>,
    /// Where to listen.
    #[arg(long, default_value = "0.0.0.0:7443")]
    pub(crate) listen: SocketAddr,
    /// A name or address that hosts and users reach this controller by. May be repeated.
    #[arg(long = "name", value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Lift limits of clients of sessions, to show what they are for.
    #[arg(long, hide = true, value_name = "LIMITS")]
    pub(crate) channels_without: Option<ChannelsWithout>,
    #[command(flatten)]
    pub(crate) gateway: GatewayArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    #[command(flatten)]
    pub(crate) times: TimeArgs,
}

/// Limits of clients of sessions that a controller may be without.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ChannelsWithout {
    /// Those on what may wait in memory.
    Memory,
    /// All of them.
    All,
}

/// How models are served over HTTP.
#[derive(Debug, Clone, Args)]
pub(crate) struct GatewayArgs {
    /// Serve models over OpenAI's HTTP interface here: with TLS, unless that is the loopback.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) gateway: Option<SocketAddr>,
    /// Serve without limits, to show what they are for.
    #[arg(long, hide = true)]
    pub(crate) gateway_unlimited: bool,
    /// Requests that one key may begin in a minute; a tenant may begin twice as many.
    #[arg(long, default_value_t = 6_000, value_name = "COUNT")]
    pub(crate) gateway_requests: u32,
    /// Tokens that one key may use in a minute; a tenant may use twice as many.
    #[arg(long, default_value_t = 4_000_000, value_name = "COUNT")]
    pub(crate) gateway_tokens: u32,
}

/// What every role has.
#[derive(Debug, Clone, Args)]
pub(crate) struct ProcessArgs {
    /// Serve Prometheus metrics here; the address is written to metrics.addr in the folder.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) with_parent: ParentArgs,
}

/// Whether a process lives on without the one that started it.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ParentArgs {
    /// End when the process that started this one does.
    #[arg(long, hide = true)]
    pub(crate) with_parent: bool,
    /// Its number: a parent that was gone before anybody asked is noticed by it.
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) parent: Option<i32>,
}

/// How a host joins.
#[derive(Debug, Clone, Args)]
pub(crate) struct JoinArgs {
    /// Join with this one-time token first (`sluice token create`); ignored once joined.
    #[arg(long, env = "SLUICE_JOIN_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// A controller, for example https://10.0.0.1:7443. May be repeated.
    #[arg(long = "controller", value_name = "URL")]
    pub(crate) controllers: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct VaultArgs {
    /// Folder of the identity and the blobs.
    #[arg(long)]
    pub(crate) folder: PathBuf,
    /// Where to listen.
    #[arg(long, default_value = "0.0.0.0:7444")]
    pub(crate) listen: SocketAddr,
    /// host:port that the nodes of the site and other vaults reach it by; empty = others use the controller's relay.
    #[arg(long, default_value = "")]
    pub(crate) advertise: String,
    #[command(flatten)]
    pub(crate) join: JoinArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct OperatorArgs {
    /// Namespace of the Lease that makes one operator act at a time.
    #[arg(long, default_value = "sluice-system")]
    pub(crate) namespace: String,
    #[command(flatten)]
    pub(crate) with_parent: ParentArgs,
}

/// `node …` and `node join TOKEN …`.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct NodeRole {
    #[command(subcommand)]
    join: Option<NodeCommand>,
    #[command(flatten)]
    run: NodeArgs,
}

#[derive(Debug, Clone, Subcommand)]
enum NodeCommand {
    /// Joins a site with a one-time token (`sluice token create --site SITE`) and runs the node; once joined, it only runs it.
    Join {
        /// The token.
        #[arg(id = "join_token", value_name = "TOKEN")]
        token: String,
        #[command(flatten)]
        run: NodeArgs,
    },
}

impl NodeRole {
    /// The node to run, with the token where one was given.
    pub(crate) fn arguments(self) -> NodeArgs {
        match self.join {
            Some(NodeCommand::Join { token, mut run }) => {
                run.join.token = Some(token);
                run
            }
            None => self.run,
        }
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct NodeArgs {
    /// Folder of the identity, the journal and the tasks [default: `node` in the data folder].
    #[arg(long)]
    pub(crate) folder: Option<PathBuf>,
    /// Name of the node within its site [default: the machine's].
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// IP address or name at which tasks on other hosts reach this one's [default: this host's address on the way to the
    /// controller].
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) advertise: Option<String>,
    /// Cores that this node sells, as CORE:MILLI,…; default: all of them less --system-milli each.
    #[arg(long, value_name = "LIST")]
    pub(crate) cores: Option<String>,
    /// Thousandths of every core kept for the system itself, where --cores is not given.
    #[arg(long, default_value_t = 100)]
    pub(crate) system_milli: u32,
    /// Memory that this node sells, for example 8Gi; default: half of the machine's.
    #[arg(long)]
    pub(crate) memory: Option<sluice_types::Bytes>,
    /// First user id for jobs; nodes on one host need ranges of 10,000 of their own.
    #[arg(long, default_value_t = 200_000)]
    pub(crate) first_uid: u32,
    /// Run jobs although slices cannot be enforced here; every bill says so.
    #[arg(long)]
    pub(crate) advisory: bool,
    #[command(flatten)]
    pub(crate) join: JoinArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct EngineWorkerArgs {
    /// The model's GGUF file.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: Option<PathBuf>,
    /// The number of a descriptor that the model's file is open as.
    #[arg(long, value_name = "NUMBER", conflicts_with = "model")]
    pub(crate) model_fd: Option<i32>,
    /// BLAKE3 of the model's file, where it is known already [default: read from the file].
    #[arg(long, value_name = "HEX")]
    pub(crate) digest: Option<String>,
    /// Compute nothing: answer nonsense at a small model's pace, for tests.
    #[arg(long, conflicts_with_all = ["model", "model_fd"])]
    pub(crate) simulated: bool,
    /// Where gateways come: unix:PATH or ADDRESS:PORT.
    #[arg(long, value_name = "WHERE")]
    pub(crate) listen: String,
    /// Folder of the meter's records.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) meter: PathBuf,
    /// Tokens of context that one sequence may have; 0 = as many as the model was trained for.
    #[arg(long, default_value_t = 0, value_name = "TOKENS")]
    pub(crate) context: u32,
    /// Memory for the contexts of all sequences; where it does not hold them they are shorter.
    #[arg(long, default_value = "512MiB", value_name = "SIZE")]
    pub(crate) cache: sluice_types::Bytes,
    /// Sequences that compute at once; a quarter more places are kept for tenants that have none.
    #[arg(long, default_value_t = 8, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=128))]
    pub(crate) sequences: u32,
    /// Tokens that a sequence may be ahead of its reader.
    #[arg(long, default_value_t = 256, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) window: u32,
    /// Threads to compute with, never more than what is granted; 0 = as many as that.
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    pub(crate) threads: u32,
    #[command(flatten)]
    pub(crate) with_parent: ParentArgs,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_node_joins_by_a_word_or_by_a_flag() {
        let node = |words: &[&str]| match Cli::try_parse_from(words).map(|cli| cli.role) {
            Ok(Role::Node(node)) => node.arguments(),
            other => panic!("{other:?}"),
        };
        let joins = node(&["sluice", "node", "join", "sj1.a.b", "--name", "x1", "--controller", "https://c:7443"]);
        assert_eq!((joins.join.token.as_deref(), joins.name.as_deref()), (Some("sj1.a.b"), Some("x1")));
        let joined = node(&["sluice", "node", "--folder", "f", "--token", "t"]);
        assert_eq!((joined.join.token.as_deref(), joined.name), (Some("t"), None));
    }
}
