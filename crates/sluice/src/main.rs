//! The one binary: user commands, and every role of the system.

mod command;
mod metrics;
mod process;
mod roles;
mod telemetry;
mod up;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use command::{Cli, Role};

/// A call at the API is dozens of small allocations on one thread that another frees: the system's allocator takes a
/// seventh of the processor's time of a controller under load, this one a third of that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One TLS provider for the whole process; a second installation would be a second main.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli.role {
        // These run beside or inside jobs: no runtime, no threads before they are needed.
        Role::Supervise { folder } => roles::supervise(&folder),
        Role::Enter { folder } => roles::enter(&folder),
        Role::EnterTask { file } => roles::enter_task(&file),
        // Starts itself again before anything else, and has a runtime of its own.
        Role::EngineWorker(arguments) => roles::engine_worker(&arguments),
        Role::EngineCheck { model } => roles::engine_check(&model),
        Role::EngineRequantize { from, to } => roles::engine_requantize(&from, &to),
        role => match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(run(role, cli.global)),
            Err(error) => {
                eprintln!("error: cannot start: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

async fn run(role: Role, global: sluice_cli::Global) -> ExitCode {
    let done = match role {
        Role::User(sluice_cli::UserCommand::Completion(wanted)) => {
            return sluice_cli::end(sluice_cli::print_completion(wanted.shell, &mut Cli::command())).into();
        }
        Role::User(command) => return sluice_cli::run(command, global).await,
        Role::Up(arguments) => up::run(arguments, &global).await,
        Role::Controller(arguments) => roles::controller(arguments).await,
        Role::Vault(arguments) => Box::pin(roles::vault(arguments)).await,
        Role::Node(node) => roles::node(node.arguments(), &global).await,
        Role::Operator(arguments) => Box::pin(roles::operator(arguments, &global)).await,
        // Done before there was a runtime.
        Role::Supervise { .. }
        | Role::Enter { .. }
        | Role::EnterTask { .. }
        | Role::EngineWorker(_)
        | Role::EngineCheck { .. }
        | Role::EngineRequantize { .. } => Ok(()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
