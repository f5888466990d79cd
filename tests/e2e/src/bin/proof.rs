//! `proof moves|partition|money`: shows it on real processes. Prints one JSON line per figure.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sluice_e2e::proof::{money, moves, partition};
use sluice_e2e::{print, wan};

/// Moves and loses training jobs, cuts sites off, ends budgets; and judges what became of it by what jobs and nodes wrote.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Training jobs move, and lose their node, between sites in networks of their own
    Moves(moves::Plan),
    /// A site is cut off, and healed
    Partition(partition::Plan),
    /// A budget ends, a node dies, and every receipt is recomputed
    Money(money::Plan),
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(reason) = wan::missing() {
        println!("SKIPPED: {reason}");
        return Ok(ExitCode::SUCCESS);
    }
    // Before any thread is there.
    if let Err(error) = wan::enter() {
        println!("SKIPPED: {error:#}");
        return Ok(ExitCode::SUCCESS);
    }
    let figures = match &arguments.what {
        What::Moves(plan) => moves::run(plan),
        What::Partition(plan) => partition::run(plan),
        What::Money(plan) => money::run(plan),
    };
    Ok(if print(&figures?)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
