//! `chaos --target controller|agents|nodes`: kills while clients submit, then judges. Prints one JSON line per figure.

use std::process::ExitCode;

use clap::Parser;
use sluice_e2e::chaos::{self, Plan};
use sluice_e2e::print;

/// Kills parts of a system while clients submit jobs, and judges what became of them.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    plan: Plan,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(reason) = sluice_e2e::missing() {
        println!("SKIPPED: {reason}");
        return Ok(ExitCode::SUCCESS);
    }
    let figures = chaos::run(&arguments.plan)?;
    Ok(if print(&figures)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
