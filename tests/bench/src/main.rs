//! Measures the real controller over its real API, beside a control that does only what cannot be left out.
//!
//! `cargo run --release -p sluice-bench -- submit`
//!
//! One process holds both ends, each on a runtime of its own, so that the processor time of every part can be told
//! by the names of its threads. Every figure is printed with the load of the machine, because other programs on the
//! same cores count against it.

mod bare;
mod client;
mod database;
mod judge;
mod kill;
mod load;
mod many;
mod process;
mod report;
mod server;
mod submit;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// As the controller's own program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the controller.
#[derive(Debug, Parser)]
#[command(name = "sluice-bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Durable submit-to-decision over gRPC on a world of 5,000 nodes, beside a bare loop that writes the same rows
    Submit(SubmitArgs),
    /// A controller by itself, for `submit` to kill
    #[command(hide = true)]
    Serve(kill::ServeArgs),
}

/// What to measure, and for how long.
#[derive(Debug, Clone, Args)]
pub(crate) struct SubmitArgs {
    /// Write the figures to this file as a JSON array too
    #[arg(long)]
    json: Option<PathBuf>,
    /// `auto` for a private server where one is installed, `off`, or the address of an empty database
    #[arg(long, default_value = "auto")]
    postgres: String,
    /// Leave SQLite out
    #[arg(long)]
    no_sqlite: bool,
    /// How long each rate is measured, after warm-up
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Only the laws: every job that a client was told of is placed and survives kill -9. No rate is judged
    #[arg(long)]
    quick: bool,
    /// Measure batches of 100 too
    #[arg(long)]
    batch: bool,
    /// Measure 100,000 jobs listed, watched, loaded by a cold start and cancelled
    #[arg(long)]
    many: bool,
    /// Nodes of the world, 8 devices each
    #[arg(long, default_value_t = 5_000)]
    nodes: u64,
    /// Clients, each with its own connection
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Calls that each client has in flight
    #[arg(long, default_value_t = 6)]
    in_flight: usize,
    /// Where databases are made; a folder on a disk, not in memory
    #[arg(long)]
    folder: Option<PathBuf>,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Submit(arguments) => submit::run(&arguments),
        Command::Serve(arguments) => kill::serve(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
