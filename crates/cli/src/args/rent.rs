//! Arguments of the commands about rentals.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use sluice_types::{Bytes, CoreMilli, MilliGpu};

use super::Yes;
use crate::duration::parse_duration;

/// Arguments of `rent`.
#[derive(Debug, Clone, Args)]
pub struct RentArgs {
    /// Share of one device, for example 500m
    #[arg(value_name = "SHARE")]
    pub share: MilliGpu,
    /// Device class
    #[arg(long, value_name = "CLASS", default_value = "cpu")]
    pub class: String,
    /// For how long; without it until it is released, paid window by window
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    pub time: Option<Duration>,
    /// Device memory
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Bytes>,
    /// So many of them, all at one site
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub count: u32,
    /// Host cores beside each slice, for example 100m
    #[arg(long, value_name = "CORES")]
    pub host_cores: Option<CoreMilli>,
    /// Host memory beside each slice
    #[arg(long, value_name = "SIZE")]
    pub host_memory: Option<Bytes>,
    /// A site it may be at; can be repeated
    #[arg(long, value_name = "SITE")]
    pub site: Vec<String>,
    /// What it may reach: loopback, gang or egress
    #[arg(long, value_name = "MODE")]
    pub network: Option<String>,
    /// Begin with the files of another rental: as it left them or, while it runs, as they were captured last
    #[arg(long, value_name = "RENTAL")]
    pub home: Option<String>,
    /// How often its files are captured while it is worked in; `never` = only at its end [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = parse_every)]
    pub capture_every: Option<Duration>,
    /// A display name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Show the price and rent nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Confirmation.
    #[command(flatten)]
    pub yes: Yes,
}

/// A time, or `never` for none.
fn parse_every(text: &str) -> Result<Duration, String> {
    if text == "never" { Ok(Duration::ZERO) } else { parse_duration(text).map_err(|error| error.to_string()) }
}

/// Arguments of `release`.
#[derive(Debug, Clone, Args)]
pub struct ReleaseArgs {
    /// The rentals
    #[arg(value_name = "RENTAL", required = true, num_args = 1..=1000)]
    pub rentals: Vec<String>,
    /// Confirmation.
    #[command(flatten)]
    pub yes: Yes,
}

/// One sandbox of a rental.
#[derive(Debug, Clone, Args)]
pub struct SandboxArg {
    /// ord-…, a display name (the newest of that name), or a full resource name
    #[arg(value_name = "RENTAL")]
    pub rental: String,
    /// Which of its sandboxes
    #[arg(long, value_name = "RANK", default_value_t = 0)]
    pub rank: u32,
}

/// Arguments of `shell`.
#[derive(Debug, Clone, Args)]
pub struct ShellArgs {
    /// Where.
    #[command(flatten)]
    pub sandbox: SandboxArg,
}

/// Arguments of `exec`.
#[derive(Debug, Clone, Args)]
pub struct ExecArgs {
    /// Where.
    #[command(flatten)]
    pub sandbox: SandboxArg,
    /// Pass standard input on
    #[arg(long, short)]
    pub interactive: bool,
    /// Run it in a terminal
    #[arg(long, short = 't')]
    pub terminal: bool,
    /// A folder below the home folder to start in
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// An environment variable; can be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = super::job::pair)]
    pub env: Vec<(String, String)>,
    /// Program and arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Arguments of `port-forward`.
#[derive(Debug, Clone, Args)]
pub struct PortForwardArgs {
    /// Where.
    #[command(flatten)]
    pub sandbox: SandboxArg,
    /// Ports: the same on both ends, LOCAL:PORT, or :PORT for any free one here
    #[arg(value_name = "[LOCAL:]PORT", required = true, num_args = 1..=16)]
    pub ports: Vec<Ports>,
}

/// A port here and one in the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// On 127.0.0.1 of this host; 0 = any that is free.
    pub local: u16,
    /// On 127.0.0.1 of the sandbox.
    pub remote: u16,
}

impl std::str::FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (local, remote) = text.split_once(':').unwrap_or((text, text));
        let port = |text: &str| text.parse::<u16>().map_err(|_| format!("`{text}` is no port"));
        let local = if local.is_empty() { 0 } else { port(local)? };
        match port(remote)? {
            0 => Err("a sandbox's port is 1 to 65535".to_owned()),
            remote => Ok(Self { local, remote }),
        }
    }
}

/// A file or folder, here or in a rental.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Here.
    Local(PathBuf),
    /// In a rental or a job's outputs: which, and the path.
    Remote(String, String),
}

impl std::str::FromStr for Place {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // As scp reads it: a slash in front of the colon makes it a file of this host.
        Ok(match text.split_once(':') {
            Some((name, path)) if !name.is_empty() && !name.contains('/') && !name.starts_with('.') => {
                Self::Remote(name.to_owned(), path.to_owned())
            }
            _ => Self::Local(PathBuf::from(text)),
        })
    }
}
