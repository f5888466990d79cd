//! `proof moves|partition|money|fractions|rents|serves|scales|speeds|beside|hostile|channels`: shows it on real processes.
//! Prints one JSON line per figure.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sluice_e2e::proof::{beside, channels, fractions, hostile, money, moves, partition, rents, scales, serves, speeds};
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
    /// Jobs share a core
    Fractions(fractions::Plan),
    /// Slices are rented and worked in
    Rents(rents::Plan),
    /// Models are served to the official client
    Serves(serves::Plan),
    /// An endpoint grows and shrinks, and a stream outlives its replica's site
    Scales(scales::Plan),
    /// A served model beside llama.cpp's own server
    Speeds(speeds::Plan),
    /// A training job beside a busy endpoint
    Beside(beside::Plan),
    /// Hostile clients at the gateway
    Hostile(hostile::Plan),
    /// Hostile clients at byte channels
    Channels(channels::Plan),
    /// The hostile clients at byte channels
    #[command(hide = true)]
    Attack(channels::attack::Plan),
    /// Spins: the load of measurements
    #[command(hide = true)]
    Spin(fractions::Spin),
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let What::Spin(load) = &arguments.what {
        fractions::spin(load);
        return Ok(ExitCode::SUCCESS);
    }
    if let What::Attack(plan) = &arguments.what {
        channels::attack::run(plan)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(reason) = wan::missing() {
        println!("SKIPPED: {reason}");
        return Ok(ExitCode::SUCCESS);
    }
    if matches!(arguments.what, What::Serves(_) | What::Scales(_)) {
        // Fetched while there is a way out.
        serves::prepare();
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
        What::Fractions(plan) => fractions::run(plan),
        What::Rents(plan) => rents::run(plan),
        What::Serves(plan) => serves::run(plan),
        What::Scales(plan) => scales::run(plan),
        What::Speeds(plan) => speeds::run(plan),
        What::Beside(plan) => beside::run(plan),
        What::Hostile(plan) => hostile::run(plan),
        What::Channels(plan) => channels::run(plan),
        What::Spin(_) | What::Attack(_) => Ok(Vec::new()),
    };
    Ok(if print(&figures?)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
