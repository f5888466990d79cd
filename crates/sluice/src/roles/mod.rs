//! One function per role: reads its arguments, wires the room that does the work, and waits.

mod controller;
mod engine;
mod host;
mod node;
mod operator;
mod vault;

use std::path::Path;
use std::process::ExitCode;

pub(crate) use controller::controller;
pub(crate) use engine::{engine_check, engine_requantize, engine_worker};
pub(crate) use node::{half_of_memory, node};
pub(crate) use operator::operator;
pub(crate) use vault::vault;

/// Supervises one task to its end.
pub(crate) fn supervise(folder: &Path) -> ExitCode {
    match sluice_node::supervisor::run(folder) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// Becomes a sandbox.
pub(crate) fn enter(folder: &Path) -> ExitCode {
    match sluice_node::supervisor::enter(folder) {
        Ok(never) => match never {},
        Err(error) => failed(&error),
    }
}

/// Becomes a task.
pub(crate) fn enter_task(file: &Path) -> ExitCode {
    match sluice_node::supervisor::enter_task(file) {
        Ok(never) => match never {},
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}
