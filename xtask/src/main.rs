//! The developer's entry point: `cargo xtask COMMAND`. The README and CI call the same commands.
//!
//! It never links the system it checks: it starts the `sluice` binary, talks to it as a user would (`-o json`) and
//! judges by the files that jobs wrote. The one room it uses is `device`, whose measurements need no system.

mod bench;
mod check;
mod collect;
mod demo;
mod generate;
mod judge;
mod kube;
mod lanes;
mod peer;
mod place;
mod run;
mod system;
mod test;
mod trainer;
mod verify;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, checks, shows and measures Sluice.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build and run `sluice up` in the foreground; arguments after `--` are its own
    Dev {
        /// For `sluice up`
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// Formatting, clippy, rooms and their direction, licences, documentation
    Check,
    /// Everything that CI runs: check, all tests, the quick part of verify
    Test,
    /// The main job: train on half a device, move it to another site, lose a node, compare, bill
    Demo(demo::DemoArgs),
    /// Run what an area must show and say which lines hold
    Verify(verify::VerifyArgs),
    /// Measure; without a name, list what can be measured
    Bench(bench::BenchArgs),
    /// Run the simulator; arguments are its own
    Sim {
        /// For `sluice-sim`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// A real Kubernetes control plane with Sluice's kinds, on the loopback
    Kube(kube::KubeArgs),
    /// Fetch and build llama.cpp's own server, which the engine is compared with; say where it is
    Peer,
    /// Write generated reference pages anew
    Gen,
    /// Spin on some threads until killed: the load of measurements
    #[command(hide = true)]
    Spin {
        /// How many threads
        threads: u32,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Dev { arguments } => dev(&arguments),
        Command::Check => check::command(),
        Command::Test => test::command(),
        Command::Demo(arguments) => demo::command(&arguments),
        Command::Verify(arguments) => verify::command(&arguments),
        Command::Bench(arguments) => bench::command(&arguments),
        Command::Sim { arguments } => generate::sim(&arguments),
        Command::Kube(arguments) => kube::command(&arguments),
        Command::Peer => peer::command(),
        Command::Gen => generate::command(),
        Command::Spin { threads } => sluice_device::measure::spin(threads),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dev(arguments: &[OsString]) -> anyhow::Result<()> {
    let program: PathBuf = place::build(place::Profile::Debug)?.sluice;
    run::step("sluice up", std::process::Command::new(program).arg("up").args(arguments)).map(drop)
}
