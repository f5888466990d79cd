//! The user commands of `sluice`: a client of the gRPC API and nothing more.
//!
//! The binary flattens [`Global`] and [`UserCommand`] into its own command line and hands both to [`run`]. Data goes
//! to stdout, all else to stderr; the exit codes are those of [`Exit`].
//!
//! | area | module |
//! |---|---|
//! | what can be typed | `args` |
//! | where to connect, as whom | `context`, `reference` |
//! | calls, deadlines, retries | `connect`, `request_id` |
//! | job files and what is submitted | `jobfile`, `draft` |
//! | sessions in rentals | `session` |
//! | folders as archives, and their transfer | `archive`, `upload` |
//! | what the commands do | `command` |
//! | what is printed | `view`, `output`, `error`, `duration` |
//!
//! It never retries a mutation with another request id, never follows a path that an archive made, and never prints
//! what could steer a terminal, except the log of a job, which is passed on as it was written.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

mod archive;
mod args;
mod command;
mod connect;
mod context;
#[doc(hidden)]
pub mod doors;
mod draft;
mod duration;
mod error;
mod jobfile;
mod output;
mod records;
mod reference;
mod request_id;
mod session;
mod upload;
mod view;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod golden;

use std::process::ExitCode;

use clap::{Args as _, Subcommand as _};

pub use args::*;
pub use connect::SERVER_NAME;
pub use context::{ApiKey, CONTEXT_FILE, Context, controller_of, default_data_dir};
pub use duration::{DurationError, parse_duration, print_duration};
pub use error::{CliError, Exit};
pub use output::{Format, Style};

/// The user commands alone, as a command line of its own.
#[must_use]
pub fn command() -> clap::Command {
    let bare = clap::Command::new("sluice").subcommand_required(true).arg_required_else_help(true);
    UserCommand::augment_subcommands(Global::augment_args(bare))
}

/// Runs one command and prints what it has to say. Errors are printed too; the code tells them apart.
pub async fn run(cmd: UserCommand, global: Global) -> ExitCode {
    end(Box::pin(command::dispatch(cmd, &global)).await).into()
}

/// Prints what went wrong. A reader of stdout that had enough (`| head`) is no error.
pub fn end(done: Result<(), CliError>) -> Exit {
    let Err(error) = done else { return Exit::Ok };
    if !matches!(error, CliError::Closed | CliError::Ended(_)) {
        output::write_stderr(&error.render(Style::stderr()));
    }
    error.exit()
}

/// The completion script of a whole command line, for a binary that has more commands than these.
///
/// # Errors
/// stdout cannot be written.
pub fn print_completion(shell: clap_complete::Shell, whole: &mut clap::Command) -> Result<(), CliError> {
    let mut script = Vec::new();
    let name = whole.get_name().to_owned();
    clap_complete::generate(shell, whole, name, &mut script);
    output::Console::new(Format::Table, false).bytes(&script)
}
